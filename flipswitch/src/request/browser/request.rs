//! Requests from browsers. No I/O.

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::context::context::Context;

/// Maximum length of the value of an attribute that a browser may add, in bytes.
const MAX_ATTRIBUTE: usize = 64;

/// A route for browsers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrowserRoute {
    /// Evaluation of all flags.
    Bulk,
    /// Evaluation of one flag.
    Flag,
    /// The OFREP event stream.
    Events,
    /// The stream that the web provider of Flipswitch opens.
    OwnEvents,
    /// The script for pages.
    Script,
}

impl BrowserRoute {
    /// All routes.
    pub const ALL: [Self; 5] = [Self::Bulk, Self::Flag, Self::Events, Self::OwnEvents, Self::Script];

    /// Returns the path relative to the mount. `{key}` stands for any single segment.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Bulk => "/ofrep/v1/evaluate/flags",
            Self::Flag => "/ofrep/v1/evaluate/flags/{key}",
            Self::Events => "/ofrep/v1/events",
            Self::OwnEvents => "/api/v1/flags/events",
            Self::Script => "/flipswitch.js",
        }
    }

    /// Returns the method of the route. OPTIONS is accepted as well.
    pub(super) fn method(self) -> &'static str {
        match self {
            Self::Bulk | Self::Flag => "POST",
            Self::Events | Self::OwnEvents | Self::Script => "GET",
        }
    }

    /// Returns whether the route takes requests with this method.
    pub(super) fn takes(self, method: &str) -> bool {
        self.method() == method || self == Self::Script && method == "HEAD"
    }

    /// Returns whether a request with this method has a body that is read.
    #[must_use]
    pub fn reads_body(self, method: &str) -> bool {
        method == "POST" && self.method() == method
    }
}

/// The head of a browser's request.
#[derive(Clone, Debug)]
pub struct BrowserRequest {
    pub(super) route: BrowserRoute,
    pub(super) method: String,
    path: String,
    query: String,
    if_none_match: String,
    origin: String,
    host: String,
    fetch_site: String,
    requested_method: String,
    is_of_own_provider: bool,
}

impl BrowserRequest {
    /// Creates the head of a request. `path` is the whole path of the request, even inside a nested router. `header_values`
    /// returns all values of a header, by its name in lower case.
    pub fn new<'a, I>(
        route: BrowserRoute,
        method: &str,
        path: &str,
        query: Option<&str>,
        header_values: impl Fn(&'static str) -> I,
    ) -> Self
    where
        I: Iterator<Item = &'a [u8]>,
    {
        let header = |name| {
            let values = header_values(name).map(|value| String::from_utf8_lossy(value).into_owned());
            values.collect::<Vec<_>>().join(",")
        };
        Self {
            route,
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.unwrap_or_default().to_owned(),
            if_none_match: header("if-none-match"),
            origin: header("origin"),
            host: header("host"),
            fetch_site: header("sec-fetch-site"),
            requested_method: header("access-control-request-method"),
            is_of_own_provider: header_values("x-flipswitch-sdk").next().is_some(),
        }
    }

    /// Returns whether the request is a CORS preflight.
    pub(super) fn is_preflight(&self) -> bool {
        self.method == "OPTIONS" && !self.origin.is_empty() && !self.requested_method.is_empty()
    }

    /// Returns whether the web provider of Flipswitch sent the request.
    pub(super) fn is_of_own_provider(&self) -> bool {
        self.is_of_own_provider
    }

    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// Returns whether the origin of the page differs from the origin of the application, according to the headers of the
    /// request.
    pub(super) fn is_cross_origin(&self) -> bool {
        match self.fetch_site.as_str() {
            "" if self.host.is_empty() => false,
            "" => self.origin.split_once("://").is_some_and(|(_, host)| host != self.host),
            site => !matches!(site, "same-origin" | "none"),
        }
    }

    /// Returns the path under which the routes are mounted, if it is a plain path.
    pub(super) fn mount(&self) -> Option<&str> {
        let (path, _) = self.route.path().split_once("/{key}").unwrap_or((self.route.path(), ""));
        let mount = &self.path[..self.path.rfind(path)?];
        is_plain_path(mount).then_some(mount)
    }

    /// Returns the key of the flag that is named in the path.
    pub(super) fn key(&self) -> Option<String> {
        let (path, _) = self.route.path().split_once("{key}")?;
        let key = &self.path[self.path.rfind(path)? + path.len()..];
        percent_decode_str(key).decode_utf8().ok().map(Into::into)
    }

    /// Returns the time of the change that is given in the query. It comes from an event that the browser has received
    /// (ADR-0008).
    pub(super) fn last_modified(&self) -> Option<OffsetDateTime> {
        let value = self.query.split('&').find_map(|pair| pair.strip_prefix("flagConfigLastModified="))?;
        time_of(&percent_decode_str(value).decode_utf8().ok()?)
    }

    /// Returns whether the browser has the response with this tag. Tags are compared weakly (RFC 9110, section 13.1.2). Tags that
    /// a proxy has changed because it compressed the response also match.
    pub(super) fn has(&self, tag: &str) -> bool {
        let opaque = tag.trim_matches('"');
        self.if_none_match.split(',').map(str::trim).any(|held| {
            let held = held.strip_prefix("W/").unwrap_or(held).trim_matches('"');
            let held = ["-gzip", "-br", "-zstd"].iter().find_map(|end| held.strip_suffix(end)).unwrap_or(held);
            held == "*" || held == opaque
        })
    }
}

/// Returns whether a path is empty or begins with one slash. Browsers may interpret other paths as the name of another host.
pub(super) fn is_plain_path(path: &str) -> bool {
    path.is_empty() || path.starts_with('/') && !path[1..].starts_with(['/', '\\'])
}

/// Parses a time in seconds since the epoch or in RFC 3339.
fn time_of(text: &str) -> Option<OffsetDateTime> {
    match text.parse() {
        Ok(seconds) => OffsetDateTime::from_unix_timestamp(seconds).ok(),
        Err(_) => OffsetDateTime::parse(text, &Rfc3339).ok(),
    }
}

/// The body of an evaluation.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Body(Map<String, Value>);

/// The reason why a body cannot be read: an OFREP error code, and a description.
#[derive(Debug, PartialEq)]
pub(super) struct InvalidBody(pub(super) &'static str, pub(super) &'static str);

impl Body {
    pub(super) fn parse(body: &[u8]) -> Result<Self, InvalidBody> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        let Ok(Value::Object(mut body)) = serde_json::from_slice(body) else {
            return Err(InvalidBody("PARSE_ERROR", "the body is not a JSON object"));
        };
        match body.remove("context") {
            None | Some(Value::Null) => Ok(Self::default()),
            Some(Value::Object(context)) => Ok(Self(context)),
            Some(_) => Err(InvalidBody("INVALID_CONTEXT", "`context` is not a JSON object")),
        }
    }

    pub(super) fn targeting_key(&self) -> Option<&str> {
        self.0.get("targetingKey")?.as_str()
    }

    /// Returns a context of the attributes that a browser may add, if there are any.
    pub(super) fn additions(&self, allowed: &[String]) -> Option<Context> {
        let mut additions: Option<Context> = None;
        for name in allowed {
            let base = || additions.clone().unwrap_or_default();
            let next = match self.0.get(name) {
                Some(Value::String(text)) if text.len() <= MAX_ATTRIBUTE => base().with(name, text),
                Some(Value::Bool(value)) => base().with(name, *value),
                Some(number @ Value::Number(_)) if number.to_string().len() <= MAX_ATTRIBUTE => {
                    base().with(name, number.clone())
                }
                _ => continue,
            };
            additions = Some(next);
        }
        additions
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(route: BrowserRoute, path: &str, headers: &[(&str, &str)]) -> BrowserRequest {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        BrowserRequest::new(route, "POST", path, Some(query), |name| {
            headers.iter().filter(move |(other, _)| *other == name).map(|(_, value)| value.as_bytes())
        })
    }

    #[test]
    fn the_mount_is_the_path_before_the_route() {
        use BrowserRoute::{Bulk, Flag};
        let cases = [
            (Bulk, "/flags/ofrep/v1/evaluate/flags", Some("/flags")),
            (Bulk, "/ofrep/v1/evaluate/flags", Some("")),
            (Bulk, "/a/ofrep/v1/evaluate/flags/ofrep/v1/evaluate/flags", Some("/a/ofrep/v1/evaluate/flags")),
            (Flag, "/flags/ofrep/v1/evaluate/flags/a%2Fb", Some("/flags")),
            (Bulk, "//evil.example/ofrep/v1/evaluate/flags", None),
            (Bulk, "/\\evil.example/ofrep/v1/evaluate/flags", None),
            (Bulk, "https://evil.example/ofrep/v1/evaluate/flags", None),
            (Bulk, "/rewritten", None),
        ];
        for (route, path, expected) in cases {
            assert_eq!(request(route, path, &[]).mount(), expected, "{path}");
        }
        for (path, key) in [("a%2Fb", "a/b"), ("%C3%A4", "ä"), ("a b", "a b"), ("", "")] {
            let request = request(Flag, &format!("/flags/ofrep/v1/evaluate/flags/{path}"), &[]);
            assert_eq!(request.key().as_deref(), Some(key));
        }
        assert_eq!(request(Flag, "/ofrep/v1/evaluate/flags/%ff", &[]).key(), None);
    }

    #[test]
    fn tags_are_compared_weakly_and_as_proxies_change_them() {
        let cases = [
            (r#""a""#, true),
            (r#"W/"a""#, true),
            (r#""x", W/"a-gzip""#, true),
            (r#""a-br""#, true),
            ("*", true),
            ("a", true),
            (r#""b""#, false),
            (r#""a-""#, false),
            ("", false),
        ];
        for (held, expected) in cases {
            assert_eq!(request(BrowserRoute::Bulk, "/", &[("if-none-match", held)]).has(r#""a""#), expected, "{held}");
        }
        assert!(
            request(BrowserRoute::Bulk, "/", &[("if-none-match", "\"b\""), ("if-none-match", "\"a\"")]).has("\"a\"")
        );
    }

    #[test]
    fn times_are_in_seconds_or_rfc_3339() {
        let at = |query: &str| {
            let path = format!("/?x=1&{query}");
            Some(request(BrowserRoute::Bulk, &path, &[]).last_modified()?.unix_timestamp())
        };
        assert_eq!(at("flagConfigLastModified=1700000000"), Some(1_700_000_000));
        assert_eq!(at("flagConfigLastModified=2023-11-14T22%3A13%3A20.5Z&y=2"), Some(1_700_000_000));
        for query in ["", "flagConfigLastModified=", "flagConfigLastModified=x", "flagConfigLastModified=1e99", "a=%ff"]
        {
            assert_eq!(at(query), None, "{query}");
        }
    }

    #[test]
    fn a_page_of_another_origin_is_recognized_by_headers() {
        let cross = |headers: &[(&str, &str)]| request(BrowserRoute::Bulk, "/", headers).is_cross_origin();
        assert!(!cross(&[]) && !cross(&[("sec-fetch-site", "same-origin"), ("origin", "https://other.example")]));
        assert!(cross(&[("sec-fetch-site", "same-site")]) && cross(&[("sec-fetch-site", "cross-site")]));
        assert!(!cross(&[("origin", "https://shop.example"), ("host", "shop.example")]));
        assert!(cross(&[("origin", "https://shop.example"), ("host", "api.shop.example")]));
        assert!(!cross(&[("origin", "null")]));
    }

    #[test]
    fn only_allowed_scalars_are_added() {
        let body = json!({"context": {
            "targetingKey": "mallory", "locale": "de", "n": 1.5, "on": true, "long": "x".repeat(65), "list": [1], "none": null,
        }});
        let body = Body::parse(body.to_string().as_bytes()).unwrap();
        assert_eq!(body.targeting_key(), Some("mallory"));
        let allowed = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            body.additions(&names).map(|context| context.with_canonical(|context| context.bytes.to_vec()))
        };
        let of = |context: Context| context.with_canonical(|context| context.bytes.to_vec());
        let added = Context::anonymous().with("locale", "de").with("n", 1.5).with("on", true);
        assert_eq!(allowed(&["locale", "n", "on", "long", "list", "none", "absent"]), Some(of(added)));
        assert_eq!((allowed(&[]), allowed(&["long", "list"])), (None, None));
    }

    #[test]
    fn a_body_is_an_object_with_a_context() {
        for empty in ["", " \r\n", "{}", r#"{"context":null}"#, r#"{"other":1}"#] {
            assert_eq!(Body::parse(empty.as_bytes()), Ok(Body::default()), "{empty}");
        }
        for (body, code) in [("[", "PARSE_ERROR"), ("[]", "PARSE_ERROR"), (r#"{"context":[]}"#, "INVALID_CONTEXT")] {
            assert_eq!(Body::parse(body.as_bytes()).unwrap_err().0, code, "{body}");
        }
    }
}
