//! The local service, and services that are wrong on purpose.

use flipswitch_local::LocalServer;
use flipswitch_tools::conformance::{Error, Outcome, Report, Service, check};
use serde_json::{Value, json};

use crate::support::{
    closed_port, in_time, sample_flags,
    scripted::{Received, Reply, Scripted},
};

#[tokio::test]
async fn the_local_service_conforms() {
    let service = LocalServer::builder().flags(sample_flags()).api_key("secret").start().await.unwrap();
    let report = report(Service::new(&service.url()).unwrap().header("x-api-key", "secret").unwrap()).await;
    assert_eq!(report.failures(), [""; 0], "{report}");
    assert_eq!(
        report.not_applicable(),
        [
            "streams",
            "streams-inactivity",
            "streams-single",
            "stream-opens",
            "stream-uncompressed",
            "stream-speaks",
            "stream-syntax",
            "stream-lf",
            "stream-events",
            "stream-ids",
            "stream-refetch",
            "flag-config-etag",
            "flag-config-last-modified",
        ]
    );
    assert!(report.conforms());
    service.shutdown().await;
}

#[tokio::test]
async fn the_local_service_conforms_with_event_streams() {
    let service =
        LocalServer::builder().flags(sample_flags()).api_key("secret").event_streams(true).start().await.unwrap();
    let report = report(Service::new(&service.url()).unwrap().header("authorization", "Bearer secret").unwrap()).await;
    assert_eq!(report.failures(), [""; 0], "{report}");
    // The local service leaves the delay to the clients.
    assert_eq!(report.not_applicable(), ["streams-inactivity"], "{report}");
    service.shutdown().await;
}

#[tokio::test]
async fn a_service_that_ignores_requests_fails() {
    // The service sends the same response to all requests.
    let response = Reply::json(json!({"flags": [{"key": "f", "value": true}], "key": "f", "value": false}));
    let service = Scripted::answering(response).await;
    let report = report(Service::new(&service.url()).unwrap().header("authorization", "Bearer secret").unwrap()).await;
    assert_eq!(
        report.failures(),
        [
            "reasons",
            "not-json",
            "context-no-object",
            "single-agrees",
            "unknown-flag",
            "unknown-flag-key",
            "encoded-characters",
            "encoded-slash",
            "other-methods",
            "credentials",
            "tag",
        ],
        "{report}"
    );
    assert!(!report.conforms());
}

#[tokio::test]
async fn tags_that_do_not_cover_the_context_fail() {
    let service = Scripted::start(|request, _| {
        if request.header("if-none-match").is_some() {
            return Reply::Http(304, vec![("etag", "\"other\"".to_owned())], Vec::new());
        }
        let plan = request.body.contains("premium");
        let flag = json!({"key": "f", "value": plan, "reason": "STATIC"});
        let body = if request.is_bulk() { json!({"flags": [flag]}) } else { flag };
        Reply::json(body).with("etag", "unquoted")
    })
    .await;
    let report = report(Service::new(&service.url()).unwrap()).await;
    let tags: Vec<_> =
        report.failures().into_iter().filter(|name| name.contains("tag") || name.contains("mod")).collect();
    assert_eq!(
        tags,
        ["tag-syntax", "not-modified-tag", "other-tag", "tag-differs", "tag-of-other-context"],
        "{report}"
    );
    assert_eq!(seen(&report, "tag-of-other-context"), "status 304");
}

#[tokio::test]
async fn wrong_event_streams_fail() {
    let service = Scripted::start(|request, _| {
        let streams = json!([
            {"type": "sse", "endpoint": {"requestUri": "/events?token=stream-token"}, "inactivityDelaySec": 0},
            {"type": "sse", "endpoint": {"requestUri": "/denied"}},
            {"type": "sse", "url": "/a", "endpoint": {"requestUri": "/b"}},
        ]);
        if request.path.starts_with("/events") {
            let head =
                vec![("content-type", "text/event-stream".to_owned()), ("content-encoding", "identity".to_owned())];
            return Reply::Http(200, head, b"event: refetch\r\ndata: now\r\n\r\n".to_vec());
        }
        if request.path.starts_with("/denied") {
            return Reply::status(403, "no credentials");
        }
        answer_with_streams(request, &streams)
    })
    .await;
    let report = report(Service::new(&service.url()).unwrap().header("x-token", "secret").unwrap()).await;
    let streams: Vec<_> = report.failures().into_iter().filter(|name| name.starts_with("stream")).collect();
    assert_eq!(
        streams,
        [
            "streams",
            "streams-inactivity",
            "streams-single",
            "stream-opens",
            "stream-lf",
            "stream-events",
            "stream-ids",
            "stream-refetch",
        ],
        "{report}"
    );
    assert_eq!(seen(&report, "stream-opens"), "status 403");
    let text = format!("{report}{}", report.to_json());
    assert!(!text.contains("stream-token") && !text.contains("/events"), "{text}");
}

#[tokio::test]
async fn reports_do_not_contain_credentials() {
    // The service repeats the credentials in a content type and in an error code.
    let service = Scripted::start(|request, _| match request.header("x-api-key") {
        Some(key) => Reply::status(400, json!({"errorCode": key})).with("content-type", key),
        None => Reply::status(200, ""),
    })
    .await;
    let key = "sesame-open";
    let service = Service::new(&service.url()).unwrap().header("x-api-key", key).unwrap();
    assert!(!format!("{service:?}").contains(key), "{service:?}");
    let report = report(service).await;
    let text = format!("{report}{}", report.to_json());
    assert!(text.contains("***") && !text.contains(key), "{text}");
}

#[tokio::test]
async fn an_unreachable_service_cannot_be_checked() {
    let service = Service::new(&format!("http://{}", closed_port())).unwrap();
    assert!(matches!(check(&service).await, Err(Error::Unreachable(_))));
    for url in ["", "example.com", "ftp://example.com", "http://user:password@example.com"] {
        assert!(matches!(Service::new(url), Err(Error::Url(_))), "{url}");
    }
    assert_eq!(service.header("x-api-key", "a\nb").unwrap_err(), Error::Header("x-api-key".to_owned()));
}

/// A service that ignores everything except the path.
fn answer_with_streams(request: &Received, streams: &Value) -> Reply {
    let flag = json!({"key": "f", "value": true, "reason": "STATIC", "eventStreams": streams});
    Reply::json(if request.is_bulk() { json!({"flags": [flag], "eventStreams": streams}) } else { flag })
}

async fn report(service: Service) -> Report {
    in_time(check(&service)).await.unwrap()
}

/// Returns what the report says about a requirement that is not met.
fn seen<'a>(report: &'a Report, name: &str) -> &'a str {
    match &report.rows().iter().find(|row| row.rule.name == name).unwrap().outcome {
        Outcome::Fails(seen) => seen,
        other => panic!("{name}: {other}"),
    }
}
