//! Restricts the control endpoints and the dashboard to this machine, and to pages from this server.
//!
//! A browser sends requests on behalf of any page. The page is in `Origin`, and a page that has pointed its own name at a
//! loopback address (DNS rebinding) shows that name in `Host`, so both are checked. Clients other than browsers send no `Origin`
//! and are allowed.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, uri::Authority};

use crate::{admin::error::AdminError, faults::connection::Peer, state::AppState};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Headers of every response of the control endpoints and the dashboard. The page of the dashboard has a policy of its
/// own.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Rejects requests from other machines and from pages on other servers.
pub(crate) async fn restrict(
    State(state): State<Arc<AppState>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    let mut response = match check(state.expose_control, peer.address.ip(), method, uri, headers) {
        Ok(()) => {
            peer.handle.mark_control();
            next.run(request).await
        }
        Err(error) => error.into_response(),
    };
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

fn check(exposed: bool, peer: IpAddr, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), AdminError> {
    if !exposed && !peer.to_canonical().is_loopback() {
        return Err(forbidden(format!(
            "{peer} is another machine, and only this machine may use the dashboard and /local; to allow other machines, \
             start with --expose-control (in Rust, expose_control(true))"
        )));
    }
    let host = host(exposed, uri, headers)?;
    let changes = *method != Method::GET && *method != Method::HEAD;
    if let Some(origin) = single_value(headers, &header::ORIGIN).map_err(forbidden)? {
        let Some(authority) = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) else {
            return Err(forbidden(format!("Origin: {origin:?} is not the origin of this server")));
        };
        if !parse_host(authority).is_some_and(|authority| is_this_machine(authority.host(), exposed)) {
            return Err(forbidden(format!("Origin: {origin:?} is not an origin on this machine")));
        }
        if changes && !authority.eq_ignore_ascii_case(&host) {
            return Err(forbidden(format!(
                "Origin: only pages from {host:?} may make changes, not pages from {origin:?}"
            )));
        }
    }
    // This header, which newer browsers send, distinguishes more cases than `Origin` does.
    let site = headers.get(FETCH_SITE).map(HeaderValue::as_bytes);
    if changes && !matches!(site, None | Some(b"same-origin" | b"none")) {
        return Err(forbidden("Sec-Fetch-Site: only pages from this server may make changes"));
    }
    Ok(())
}

/// Returns the host that a request is for, if it is this machine.
fn host(exposed: bool, uri: &Uri, headers: &HeaderMap) -> Result<String, AdminError> {
    let misdirected = |message: String| AdminError::new(StatusCode::MISDIRECTED_REQUEST, message);
    let Some(host) = single_value(headers, &header::HOST).map_err(misdirected)? else {
        return Err(misdirected("Host: is missing".to_owned()));
    };
    let target = uri.authority().is_none_or(|target| target.as_str().eq_ignore_ascii_case(host));
    match parse_host(host) {
        Some(authority) if target && is_this_machine(authority.host(), exposed) => Ok(host.to_owned()),
        _ if exposed => Err(misdirected(format!(
            "Host: {host:?} is not an address of this server; use its IP address, localhost, or a name without dots"
        ))),
        _ => Err(misdirected(format!("Host: {host:?} is not a name of this machine; use localhost or 127.0.0.1"))),
    }
}

/// Returns the value of a header that may occur once.
fn single_value<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, String> {
    let mut values = headers.get_all(name).iter();
    match (values.next().map(HeaderValue::to_str), values.next()) {
        (None, _) => Ok(None),
        (Some(Ok(value)), None) => Ok(Some(value)),
        _ => Err(format!("{name}: must have one value, in ASCII")),
    }
}

/// Parses a host with or without a port.
fn parse_host(text: &str) -> Option<Authority> {
    text.parse().ok().filter(|authority: &Authority| !authority.as_str().contains('@'))
}

/// Returns whether a host is this machine regardless of name servers. If the control endpoints are exposed, IP addresses and
/// names without dots are allowed as well, since no page from outside can have them.
fn is_this_machine(host: &str, exposed: bool) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse().is_ok_and(|address: Ipv6Addr| exposed || address.is_loopback());
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return exposed || address.is_loopback();
    }
    let host = host.to_ascii_lowercase();
    host == "localhost"
        || host.strip_suffix(".localhost").is_some_and(|name| !name.is_empty())
        || exposed && !host.is_empty() && !host.contains('.')
}

fn forbidden(message: impl Into<String>) -> AdminError {
    AdminError::new(StatusCode::FORBIDDEN, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the status of the error, or 200.
    fn outcome(exposed: bool, peer: &str, method: &Method, uri: &str, headers: &[(HeaderName, &str)]) -> u16 {
        let headers =
            headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect();
        let checked = check(exposed, peer.parse().unwrap(), method, &uri.parse().unwrap(), &headers);
        checked.map_or_else(|error| error.status.as_u16(), |()| 200)
    }

    #[test]
    fn other_machines_are_rejected_unless_control_is_exposed() {
        for (peer, closed) in [
            ("127.0.0.1", 200),
            ("127.9.9.9", 200),
            ("::1", 200),
            ("::ffff:127.0.0.1", 200),
            ("192.168.1.5", 403),
            ("172.17.0.1", 403),
            ("fe80::1", 403),
            ("::ffff:10.0.0.1", 403),
        ] {
            let host = [(header::HOST, "localhost:3001")];
            assert_eq!(outcome(false, peer, &Method::GET, "/", &host), closed, "{peer}");
            assert_eq!(outcome(true, peer, &Method::GET, "/", &host), 200, "{peer}");
        }
    }

    #[test]
    fn hosts_that_a_name_server_could_redirect_are_rejected() {
        for (host, closed, exposed) in [
            ("localhost", 200, 200),
            ("LocalHost:80", 200, 200),
            ("flags.localhost:3001", 200, 200),
            ("127.0.0.1:3001", 200, 200),
            ("127.255.0.3", 200, 200),
            ("[::1]:3001", 200, 200),
            ("192.168.1.5:3001", 421, 200),
            ("[fe80::1]", 421, 200),
            ("flags:3001", 421, 200),
            ("evil.example", 421, 421),
            ("localhost.evil.example", 421, 421),
            ("evil-localhost.example", 421, 421),
            ("127.0.0.1.evil.example", 421, 421),
            (".localhost", 421, 421),
            ("user@localhost", 421, 421),
            ("localhost/x", 421, 421),
            ("", 421, 421),
        ] {
            for (is_exposed, expected) in [(false, closed), (true, exposed)] {
                let got = outcome(is_exposed, "127.0.0.1", &Method::GET, "/", &[(header::HOST, host)]);
                assert_eq!(got, expected, "{host:?}, exposed: {is_exposed}");
            }
        }
        assert_eq!(outcome(false, "::1", &Method::GET, "/", &[]), 421, "no host");
        let mut two = HeaderMap::new();
        two.append(header::HOST, HeaderValue::from_static("localhost"));
        two.append(header::HOST, HeaderValue::from_static("localhost"));
        assert!(check(false, [127, 0, 0, 1].into(), &Method::GET, &Uri::from_static("/"), &two).is_err());
        let host = [(header::HOST, "localhost")];
        assert_eq!(outcome(false, "::1", &Method::GET, "http://localhost/", &host), 200);
        assert_eq!(outcome(false, "::1", &Method::GET, "http://evil.example/", &host), 421);
    }

    #[test]
    fn pages_of_other_servers_make_no_changes() {
        for (origin, get, put) in [
            ("http://localhost:3001", 200, 200),
            ("https://localhost:3001", 200, 200),
            ("http://LOCALHOST:3001", 200, 200),
            ("http://localhost:3000", 200, 403),
            ("http://127.0.0.1:3001", 200, 403),
            ("http://evil.example", 403, 403),
            ("http://evil.example:3001", 403, 403),
            ("http://localhost:3001@evil.example", 403, 403),
            ("null", 403, 403),
            ("", 403, 403),
            ("file://localhost:3001", 403, 403),
            ("http://localhost:3001/", 403, 403),
        ] {
            for (method, expected) in
                [(Method::GET, get), (Method::PUT, put), (Method::POST, put), (Method::DELETE, put)]
            {
                let headers = [(header::HOST, "localhost:3001"), (header::ORIGIN, origin)];
                assert_eq!(outcome(false, "::1", &method, "/", &headers), expected, "{method} {origin:?}");
            }
        }
        for (site, get, put) in
            [("same-origin", 200, 200), ("none", 200, 200), ("same-site", 200, 403), ("cross-site", 200, 403)]
        {
            let headers = [(header::HOST, "localhost"), (FETCH_SITE, site)];
            assert_eq!(outcome(false, "::1", &Method::GET, "/", &headers), get, "{site}");
            assert_eq!(outcome(false, "::1", &Method::PUT, "/", &headers), put, "{site}");
        }
        let rebound = [(header::HOST, "evil.example"), (header::ORIGIN, "http://evil.example")];
        assert_eq!(
            outcome(true, "10.0.0.1", &Method::PUT, "/", &rebound),
            421,
            "exposed, and still protected from rebinding"
        );
    }
}
