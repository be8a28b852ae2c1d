//! The proxy between the provider and the flag service, for logs and errors.

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;

use crate::{config::Config, sanitize::printable};

/// Returns the proxy that the provider's own client uses for the service, without its credentials. The proxy of a client that the
/// application configures is not known.
pub(crate) fn proxy(config: &Config) -> Option<String> {
    if config.options.http_client.is_some() || config.base_url.is_loopback() {
        return None;
    }
    let service = config.base_url.url().as_str().parse().ok()?;
    // Reads the environment and the system in the same way as the client.
    display_proxy(Matcher::from_system().intercept(&service)?.uri())
}

/// Returns the scheme, host and port of a proxy. Returns `None` if it has no scheme or host, or if its port is not a number. In
/// the latter case, the text before the port may be part of a password that was not escaped.
fn display_proxy(proxy: &Uri) -> Option<String> {
    let (scheme, host) = (proxy.scheme_str()?, proxy.host()?);
    let text = match proxy.port_u16() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let is_whole = proxy.authority()?.as_str().rsplit('@').next() == Some(&text);
    is_whole.then(|| printable(&format!("{scheme}://{text}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_proxys_credentials_is_displayed() {
        let cases = [
            ("http://proxy:3128", Some("http://proxy:3128")),
            ("socks5://proxy", Some("socks5://proxy")),
            ("http://[::1]:3128/", Some("http://[::1]:3128")),
            // What remains if the password was not escaped.
            ("http://ss@proxy:3128", Some("http://proxy:3128")),
            ("http://x@y@proxy", Some("http://proxy")),
            ("http://user:se", None),
        ];
        for (proxy, displayed) in cases {
            // This parser accepts fewer strings than the parser of the HTTP client.
            let uri = Uri::builder().scheme(proxy.split_once(':').unwrap().0).path_and_query("/");
            let uri = uri.authority(proxy.split_once("//").unwrap().1.trim_end_matches('/')).build();
            assert_eq!(uri.ok().and_then(|uri| display_proxy(&uri)).as_deref(), displayed, "{proxy}");
        }
    }
}
