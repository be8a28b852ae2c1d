//! OFREP event streams: their URLs, and the content of their events. No I/O.
//!
//! Source: ADR-0008 of the OpenFeature protocol.

use std::{fmt, sync::Arc};

use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::sanitize::printable;

/// Maximum number of streams that are followed. Further streams are ignored.
const MAX_STREAMS: usize = 4;

/// Maximum size of the list of streams, in bytes.
const MAX_LIST: usize = 64 << 10;

/// Maximum length of the URL of a stream, in bytes.
const MAX_URL: usize = 2_048;

/// Maximum length of the tag or date of a version, in bytes. Longer ones are not sent back.
const MAX_VERSION: usize = 1_024;

/// The URL of an event stream. It may contain a token, so only its origin is ever shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct StreamUrl(Arc<Url>);

impl StreamUrl {
    pub(crate) fn url(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for StreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/…", self.0.origin().ascii_serialization())
    }
}

impl fmt::Debug for StreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamUrl({self})")
    }
}

/// The streams that a response advertises, and the first reason why one of them is not followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Advertised {
    pub(crate) streams: Vec<StreamUrl>,
    pub(crate) problem: Option<StreamProblem>,
}

/// Why an advertised stream is not followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamProblem {
    #[error("`eventStreams` is not a list of streams (ADR-0008 of the OpenFeature protocol), or is larger than 64 KiB")]
    Unreadable,
    #[error("a stream must have either `url` or `endpoint`")]
    NotOneOfBoth,
    #[error("the URL of a stream is invalid, or is longer than {MAX_URL} bytes")]
    InvalidUrl,
    #[error("the connection to a stream at {0} would not be encrypted, although the connection to the service is")]
    Unencrypted(String),
    #[error("more than {MAX_STREAMS} streams are advertised; the others are ignored")]
    TooMany,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    #[serde(borrow, default)]
    event_streams: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Stream {
    url: Option<String>,
    endpoint: Option<Endpoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    origin: Option<String>,
    request_uri: String,
}

/// Reads the streams that the body of a bulk response with status 200 advertises. `base` is the URL of the service.
pub(crate) fn advertised(body: &[u8], base: &Url) -> Advertised {
    let mut advertised = Advertised::default();
    let list = match serde_json::from_slice(body) {
        Ok(Body { event_streams: Some(list) }) if list.get() != "null" => list.get(),
        Ok(_) => return advertised,
        Err(_) => "",
    };
    let streams = Some(list).filter(|list| list.len() <= MAX_LIST).and_then(|list| serde_json::from_str(list).ok());
    let Some(Value::Array(streams)) = streams else {
        advertised.problem = Some(StreamProblem::Unreadable);
        return advertised;
    };
    for stream in streams {
        // Streams of other types are ignored.
        match &stream["type"] {
            Value::String(kind) if kind == "sse" => {}
            Value::String(_) => continue,
            _ => {
                advertised.problem.get_or_insert(StreamProblem::Unreadable);
                continue;
            }
        }
        match stream_url(stream, base) {
            Ok(url) if advertised.streams.contains(&url) => {}
            Ok(_) if advertised.streams.len() == MAX_STREAMS => {
                advertised.problem.get_or_insert(StreamProblem::TooMany);
            }
            Ok(url) => advertised.streams.push(url),
            Err(problem) => {
                advertised.problem.get_or_insert(problem);
            }
        }
    }
    advertised
}

fn stream_url(stream: Value, base: &Url) -> Result<StreamUrl, StreamProblem> {
    let stream: Stream = serde_json::from_value(stream).map_err(|_| StreamProblem::Unreadable)?;
    let text = match (stream.url, stream.endpoint) {
        (Some(url), None) => url,
        (None, Some(Endpoint { origin, request_uri })) if request_uri.starts_with('/') => {
            let origin = origin.unwrap_or_else(|| base.origin().ascii_serialization());
            format!("{}{request_uri}", origin.trim_end_matches('/'))
        }
        (None, Some(_)) => return Err(StreamProblem::InvalidUrl),
        _ => return Err(StreamProblem::NotOneOfBoth),
    };
    if text.len() > MAX_URL {
        return Err(StreamProblem::InvalidUrl);
    }
    let mut url = Url::parse(&text).map_err(|_| StreamProblem::InvalidUrl)?;
    url.set_fragment(None);
    match (base.scheme(), url.scheme()) {
        ("https", "http") => Err(StreamProblem::Unencrypted(printable(&url.origin().ascii_serialization()))),
        (_, "http" | "https") if url.has_host() => Ok(StreamUrl(Arc::new(url))),
        _ => Err(StreamProblem::InvalidUrl),
    }
}

/// The version of the flags that an event names. The requests that the event causes send it back, so that an instance of the
/// service can tell that its own version is older.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConfigVersion {
    etag: Option<String>,
    last_modified: Option<String>,
}

impl ConfigVersion {
    /// Returns whether it names a version.
    pub(crate) fn is_known(&self) -> bool {
        *self != Self::default()
    }

    /// Returns the URL of a bulk request with this version in its query.
    pub(crate) fn added_to(&self, url: &Url) -> Url {
        let mut url = url.clone();
        let names = [("flagConfigEtag", &self.etag), ("flagConfigLastModified", &self.last_modified)];
        for (name, value) in names {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        url
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EventData {
    r#type: String,
    #[serde(default)]
    etag: Value,
    #[serde(default)]
    last_modified: Value,
}

/// Reads the data of an event. Returns `None` unless the event requires a new request for flags. A tag or a date that cannot be
/// read is left out.
pub(crate) fn refetch(data: &str) -> Option<(ConfigVersion, Option<OffsetDateTime>)> {
    let data: EventData = serde_json::from_str(data).ok()?;
    if data.r#type != "refetchEvaluation" {
        return None;
    }
    let at = match &data.last_modified {
        Value::Number(seconds) => seconds.as_i64().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok()),
        Value::String(text) => OffsetDateTime::parse(text, &Rfc3339).ok(),
        _ => None,
    };
    let text = |value: Value| {
        let text = match value {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        (1..=MAX_VERSION).contains(&text.len()).then_some(text)
    };
    let etag = Some(data.etag).filter(Value::is_string).and_then(text);
    Some((ConfigVersion { etag, last_modified: text(data.last_modified) }, at))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    fn read(base: &str, streams: &Value) -> (Vec<String>, Option<StreamProblem>) {
        let body = json!({"flags": [], "eventStreams": streams}).to_string();
        let Advertised { streams, problem } = advertised(body.as_bytes(), &Url::parse(base).unwrap());
        (streams.iter().map(|stream| stream.url().to_string()).collect(), problem)
    }

    #[test]
    fn a_stream_has_a_url_or_an_endpoint() {
        let cases = [
            (json!({"type": "sse", "url": "https://s.example/a?token=1"}), "https://s.example/a?token=1"),
            (json!({"type": "sse", "endpoint": {"requestUri": "/sse/x?y"}}), "https://flags.example:8443/sse/x?y"),
            (
                json!({"type": "sse", "endpoint": {"origin": "https://s.example", "requestUri": "/sse"}, "inactivityDelaySec": 9}),
                "https://s.example/sse",
            ),
            (
                json!({"type": "sse", "endpoint": {"origin": "https://s.example/", "requestUri": "/sse"}}),
                "https://s.example/sse",
            ),
            (json!({"type": "sse", "url": "https://s.example/a#b", "endpoint": null, "x": 1}), "https://s.example/a"),
        ];
        for (stream, url) in cases {
            let read = read("https://flags.example:8443/below", &json!([stream, {"type": "push", "to": 7}]));
            assert_eq!(read, (vec![url.to_owned()], None), "{stream}");
        }
        assert_eq!(read("http://flags.example", &json!([{"type": "sse", "url": "http://s.example/"}])).1, None);
    }

    #[test]
    fn a_stream_that_cannot_be_followed_is_left_out_with_the_reason() {
        let long = format!("https://s.example/{}", "x".repeat(MAX_URL));
        let cases = [
            (json!("https://s.example"), StreamProblem::Unreadable),
            (json!([7]), StreamProblem::Unreadable),
            (json!([{"type": "x", "url": "x".repeat(MAX_LIST)}]), StreamProblem::Unreadable),
            (json!([{"url": "https://s.example"}]), StreamProblem::Unreadable),
            (json!([{"type": "sse", "url": 7}]), StreamProblem::Unreadable),
            (json!([{"type": "sse", "endpoint": {"origin": "https://s.example"}}]), StreamProblem::Unreadable),
            (json!([{"type": "sse"}]), StreamProblem::NotOneOfBoth),
            (
                json!([{"type": "sse", "url": "https://s.example", "endpoint": {"requestUri": "/"}}]),
                StreamProblem::NotOneOfBoth,
            ),
            (json!([{"type": "sse", "url": "/sse"}]), StreamProblem::InvalidUrl),
            (json!([{"type": "sse", "url": long}]), StreamProblem::InvalidUrl),
            (json!([{"type": "sse", "url": "ftp://s.example/"}]), StreamProblem::InvalidUrl),
            (json!([{"type": "sse", "url": "data:text/event-stream,x"}]), StreamProblem::InvalidUrl),
            (json!([{"type": "sse", "endpoint": {"requestUri": "@s.example/"}}]), StreamProblem::InvalidUrl),
            (json!([{"type": "sse", "endpoint": {"requestUri": ""}}]), StreamProblem::InvalidUrl),
            (
                json!([{"type": "sse", "url": "http://s.example/?token=1"}]),
                StreamProblem::Unencrypted("http://s.example".to_owned()),
            ),
        ];
        for (streams, problem) in cases {
            assert_eq!(read("https://flags.example", &streams), (Vec::new(), Some(problem)), "{streams}");
        }
    }

    #[test]
    fn the_number_of_streams_is_limited_and_each_counts_once() {
        let stream = |number: usize| json!({"type": "sse", "url": format!("https://s.example/{number}")});
        let same: Vec<_> = [1, 1, 2, 2].map(stream).into();
        assert_eq!(read("https://flags.example", &json!(same)).0.len(), 2);
        let many: Vec<_> = (0..=MAX_STREAMS).map(stream).collect();
        let (streams, problem) = read("https://flags.example", &json!(many));
        assert_eq!((streams.len(), problem), (MAX_STREAMS, Some(StreamProblem::TooMany)));
    }

    #[test]
    fn a_body_without_streams_advertises_none() {
        let base = Url::parse("https://flags.example").unwrap();
        for body in [r#"{"flags":[]}"#, r#"{"flags":[],"eventStreams":null}"#, r#"{"flags":[],"eventStreams":[]}"#] {
            assert_eq!(advertised(body.as_bytes(), &base), Advertised::default(), "{body}");
        }
    }

    #[test]
    fn a_url_shows_only_its_origin() {
        let url = StreamUrl(Arc::new(Url::parse("https://user:pass@s.example/path-secret?token=secret").unwrap()));
        assert_eq!(url.to_string(), "https://s.example/…");
        assert_eq!(format!("{url:?}"), "StreamUrl(https://s.example/…)");
        let problem = read("https://x.example", &json!([{"type": "sse", "url": "http://u:pass@s.example/a?secret"}])).1;
        assert!(!problem.unwrap().to_string().contains("secret"));
    }

    #[test]
    fn events_are_read_by_their_type() {
        let version = |etag: Option<&str>, last_modified: Option<&str>| ConfigVersion {
            etag: etag.map(str::to_owned),
            last_modified: last_modified.map(str::to_owned),
        };
        let at = datetime!(2026-02-20 21:28:18 UTC);
        let long = "x".repeat(MAX_VERSION + 1);
        let cases = [
            (json!({"type": "refetchEvaluation"}), Some((version(None, None), None))),
            (
                json!({"type": "refetchEvaluation", "etag": "\"abc\"", "lastModified": 1_771_622_898}),
                Some((version(Some("\"abc\""), Some("1771622898")), Some(at))),
            ),
            (
                json!({"type": "refetchEvaluation", "lastModified": "2026-02-20T21:28:18Z", "more": []}),
                Some((version(None, Some("2026-02-20T21:28:18Z")), Some(at))),
            ),
            (
                json!({"type": "refetchEvaluation", "etag": 7, "lastModified": "yesterday"}),
                Some((version(None, Some("yesterday")), None)),
            ),
            (json!({"type": "refetchEvaluation", "etag": long, "lastModified": []}), Some((version(None, None), None))),
            (json!({"type": "fullConfig", "flags": []}), None),
            (json!({"etag": "\"abc\""}), None),
            (json!({"type": 7}), None),
            (json!([]), None),
        ];
        for (data, expected) in cases {
            assert_eq!(refetch(&data.to_string()), expected, "{data}");
        }
        assert_eq!(refetch("no JSON"), None);
    }

    #[test]
    fn a_version_is_encoded_in_the_query() {
        let url = Url::parse("http://flags.example/ofrep/v1/evaluate/flags").unwrap();
        let of = |data: Value| refetch(&data.to_string()).unwrap().0;
        let version = of(json!({"type": "refetchEvaluation", "etag": "\"a+b&c=d e\"", "lastModified": 7}));
        let added = version.added_to(&url);
        assert_eq!(added.query(), Some("flagConfigEtag=%22a%2Bb%26c%3Dd+e%22&flagConfigLastModified=7"));
        let none = of(json!({"type": "refetchEvaluation"}));
        assert!(!none.is_known() && none.added_to(&url) == url);
    }
}
