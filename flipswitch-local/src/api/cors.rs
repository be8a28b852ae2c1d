//! Access for pages from other origins (CORS), which a browser denies unless the server allows it.

use axum::Router;
use http::{HeaderValue, Method, Uri, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// Allows pages from any origin.
const ANY: &str = "*";

/// Checks an origin, which is `*` or written as browsers send it.
pub(crate) fn parse_origin(origin: &str) -> Result<HeaderValue, String> {
    match HeaderValue::from_str(origin) {
        Ok(value) if origin == ANY || is_origin(origin) => Ok(value),
        _ => Err(format!(
            "{origin:?} is not an origin as browsers send it, such as http://localhost:5173; write the scheme, host and port \
             (unless it is the default) in lower case, without a path"
        )),
    }
}

fn is_origin(origin: &str) -> bool {
    let Ok(uri) = origin.parse::<Uri>() else { return false };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return false };
    let (host, port) = (authority.host(), authority.port_u16());
    let is_default = matches!((scheme, port), ("http", Some(80)) | ("https", Some(443)));
    // Without anything else that a URI can contain.
    let written = match port {
        Some(port) => format!("{scheme}://{host}:{port}"),
        None => format!("{scheme}://{host}"),
    };
    origin == written
        && !host.is_empty()
        && !is_default
        && !origin.bytes().any(|byte| byte.is_ascii_uppercase() || byte == b'*')
}

/// Responds to preflight requests, and adds CORS headers to all other responses, for pages from these origins.
///
/// The layer comes before faults and the API key, so that a page can also read their responses.
pub(crate) fn allow<S: Clone + Send + Sync + 'static>(api: Router<S>, origins: &[HeaderValue]) -> Router<S> {
    if origins.is_empty() {
        return api;
    }
    let allowed = if origins.iter().any(|origin| origin == ANY) {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().cloned())
    };
    let cors = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        // SDKs and tracing libraries send headers of their own.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::ETAG, header::RETRY_AFTER]);
    api.route_layer(cors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_written_as_browsers_send_them() {
        let valid = [
            "*",
            "http://localhost:5173",
            "https://app.example.com",
            "http://127.0.0.1:3000",
            "http://[::1]:5173",
            "https://example.com:80",
            "tauri://localhost",
        ];
        for origin in valid {
            assert_eq!(parse_origin(origin).unwrap(), origin);
        }
        let invalid = [
            "",
            "null",
            "localhost",
            "localhost:5173",
            "//localhost:5173",
            "http://",
            "http://:5173",
            "http://localhost:5173/",
            "http://localhost:5173/app",
            "http://localhost:5173?a",
            "http://localhost:5173#a",
            "http://user@localhost:5173",
            "http://localhost:",
            "http://localhost:05173",
            "http://localhost:65536",
            "http://localhost:80",
            "https://localhost:443",
            "HTTP://localhost",
            "http://Localhost",
            "http://*.localhost",
            "http://localhost:5173, http://localhost:5174",
            " http://localhost",
            "http://bücher.example",
            "http://localhost\n",
        ];
        for origin in invalid {
            let error = parse_origin(origin).expect_err(origin);
            assert!(error.contains(&format!("{origin:?}")), "{error}");
        }
    }
}
