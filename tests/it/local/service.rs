//! The local service, as clients and developers with `curl` use it.

use std::time::Duration;

use flipswitch_local::{Endpoint, Fault, LocalServer};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{BULK, EVENT_STREAM, eventually, in_time, reserved_port};

async fn post(service: &LocalServer, path: &str, body: &str) -> Response {
    let request = Client::new().post(format!("{}{path}", service.url())).header("x-api-key", service.api_key());
    in_time(request.body(body.to_owned()).send()).await.unwrap()
}

async fn bulk(service: &LocalServer, context: Value) -> Value {
    post(service, BULK, &json!({ "context": context }).to_string()).await.json().await.unwrap()
}

/// Returns the value of a flag for an empty context.
async fn value(service: &LocalServer, key: &str) -> Value {
    let body: Value = post(service, &format!("{BULK}/{key}"), "{}").await.json().await.unwrap();
    body["value"].clone()
}

/// A reader of the events of a stream, without heartbeats.
struct Events(Response, String);

impl Events {
    async fn open(service: &LocalServer) -> Self {
        let request = Client::new().get(format!("{}/api/v1/flags/events", service.url()));
        let response = in_time(request.header("x-api-key", service.api_key()).send()).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self(response, String::new())
    }

    /// Returns name, data and id of the next event, or `None` at the end of the stream.
    async fn next(&mut self) -> Option<(String, Value, String)> {
        loop {
            if let Some(end) = self.1.find("\n\n") {
                let frame: String = self.1.drain(..end + 2).collect();
                let lines: Vec<&str> = frame.lines().collect();
                let event = lines[0].strip_prefix("event: ").unwrap();
                let data = serde_json::from_str(lines[1].strip_prefix("data: ").unwrap()).unwrap();
                let id = lines.get(2).and_then(|line| line.strip_prefix("id: ")).unwrap_or_default();
                if event == "heartbeat" {
                    continue;
                }
                return Some((event.to_owned(), data, id.to_owned()));
            }
            let chunk = in_time(self.0.chunk()).await.unwrap()?;
            self.1.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

async fn with_event_streams() -> LocalServer {
    LocalServer::builder().flags(json!({"a": 1})).event_streams(true).start().await.unwrap()
}

/// A reader of the pieces of an OFREP event stream, as they arrive.
struct Refetches(Response);

impl Refetches {
    /// Opens a stream as a browser does, without an API key.
    async fn open(service: &LocalServer, last_event_id: Option<&str>) -> Self {
        let mut request = Client::new().get(format!("{}{EVENT_STREAM}", service.url()));
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        Self(in_time(request.send()).await.unwrap().error_for_status().unwrap())
    }

    async fn piece(&mut self) -> Option<String> {
        let chunk = in_time(self.0.chunk()).await.unwrap()?;
        Some(str::from_utf8(&chunk).unwrap().to_owned())
    }

    /// Returns id and data of the next event, which must be one piece.
    async fn next(&mut self) -> (String, Value) {
        let piece = self.piece().await.unwrap();
        let (id, data) = piece.strip_suffix("\n\n").unwrap().split_once('\n').unwrap();
        let id = id.strip_prefix("id: ").unwrap().to_owned();
        (id, serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap())
    }
}

#[tokio::test]
async fn event_streams_exist_only_if_they_are_switched_on() {
    let without = LocalServer::builder().flags(json!({"a": 1})).api_key("key").start().await.unwrap();
    let with = LocalServer::builder().flags(json!({"a": 1})).api_key("key").event_streams(true).start().await.unwrap();
    let streams = json!([{"type": "sse", "endpoint": {"requestUri": EVENT_STREAM}}]);
    for (service, on) in [(without, false), (with, true)] {
        let expected = on.then_some(&streams);
        assert_eq!(bulk(&service, json!({})).await.get("eventStreams"), expected);
        assert_eq!(bulk(&service, json!({"targetingKey": "u"})).await.get("eventStreams"), expected);
        let single: Value = post(&service, &format!("{BULK}/a"), "{}").await.json().await.unwrap();
        assert_eq!(single.get("eventStreams"), None, "only the response with all flags has it");
        for (path, found) in [(EVENT_STREAM, on), ("/ofrep/v1/sse/other", false), ("/ofrep/v1/sse", false)] {
            let answer = in_time(Client::new().get(format!("{}{path}", service.url())).send()).await.unwrap();
            let expected = if found { StatusCode::OK } else { StatusCode::NOT_FOUND };
            assert_eq!(answer.status(), expected, "{path}");
        }
    }
}

#[tokio::test]
async fn an_event_stream_asks_to_refetch_on_opening_and_after_each_change() {
    let service = with_event_streams().await;
    let mut own = Events::open(&service).await;
    let mut stream = Refetches::open(&service, None).await;
    for (name, value) in
        [("content-type", "text/event-stream"), ("cache-control", "no-cache"), ("x-accel-buffering", "no")]
    {
        assert_eq!(stream.0.headers()[name], value);
    }
    eventually(async || service.streams() == 2).await;

    let (first, data) = stream.next().await;
    assert_eq!((&data["type"], &data["etag"]), (&json!("refetchEvaluation"), &json!(format!("\"{first}\""))));
    assert!(data["lastModified"].as_i64().unwrap() > 1_600_000_000, "{data}");

    service.set_flag("a", 2);
    service.send_event("api-key-rotated", json!({}));
    service.send_event("config-updated", json!({}));
    let mut etags = vec![data["etag"].clone()];
    for expected in ["flag-updated", "api-key-rotated", "config-updated"] {
        let (name, _, id) = own.next().await.unwrap();
        assert_eq!(name, expected);
        if name != "api-key-rotated" {
            let (own_id, data) = stream.next().await;
            assert_eq!((own_id, &data["type"]), (id, &json!("refetchEvaluation")));
            assert!(!etags.contains(&data["etag"]), "{data} after {etags:?}");
            etags.push(data["etag"].clone());
        }
    }
    assert_eq!(service.faults().inject("data: {"), 2);
    assert_eq!(stream.piece().await.unwrap(), "data: {");

    let requests: Value = {
        let answer = in_time(Client::new().get(format!("{}/local/requests", service.url())).send()).await.unwrap();
        answer.json().await.unwrap()
    };
    assert_eq!(
        (&requests["requests"][0]["path"], &requests["requests"][0]["status"]),
        (&json!(EVENT_STREAM), &json!(200))
    );
    drop(stream);
    eventually(async || service.streams() == 1).await;
}

#[tokio::test]
async fn a_reopened_event_stream_asks_to_refetch_if_a_change_was_missed() {
    let service = with_event_streams().await;
    let (opened, _) = Refetches::open(&service, None).await.next().await;
    // The first event is the one that follows.
    let mut known = Refetches::open(&service, Some(&opened)).await;
    service.set_flag("a", 2);
    let (changed, data) = known.next().await;
    assert_ne!(changed, opened);
    for missed in [Some(opened.as_str()), Some("unknown"), Some(""), None] {
        assert_eq!(Refetches::open(&service, missed).await.next().await, (changed.clone(), data.clone()), "{missed:?}");
    }
    service.send_event("api-key-rotated", json!({}));
    let mut known = Refetches::open(&service, Some(&changed)).await;
    service.remove_flag("a");
    assert_ne!(known.next().await.0, changed, "other events do not announce changes of flags");
}

#[tokio::test]
async fn event_streams_have_comments_as_heartbeats_and_end_at_shutdown() {
    let builder = LocalServer::builder().heartbeat(Duration::from_millis(20)).event_streams(true);
    let service = builder.start().await.unwrap();
    let mut stream = Refetches::open(&service, None).await;
    stream.next().await;
    for _ in 0..3 {
        assert_eq!(stream.piece().await.unwrap(), ":\n\n");
    }
    let silenced = service.faults().add(Fault::on(Endpoint::Stream).no_heartbeats()).unwrap();
    eventually(async || service.faults().applied(silenced) > 3).await;
    in_time(service.shutdown()).await;
    while let Some(piece) = stream.piece().await {
        assert_eq!(piece.replace(":\n\n", ""), "", "heartbeats from before");
    }
}

#[tokio::test]
async fn flags_are_at_least_as_new_as_the_event_that_announces_them() {
    let service = with_event_streams().await;
    let mut stream = Refetches::open(&service, None).await;
    stream.next().await;
    let mut held = post(&service, BULK, "{}").await.headers()["etag"].clone();
    for value in 2..40 {
        service.set_flag("a", value);
        let (id, data) = stream.next().await;
        let query = format!("flagConfigEtag=%22{id}%22&flagConfigLastModified={}", data["lastModified"]);
        let request = Client::new().post(format!("{}{BULK}?{query}", service.url())).body("{}");
        let answer = in_time(request.header("if-none-match", held).send()).await.unwrap();
        held = answer.headers()["etag"].clone();
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["flags"][0]["value"], value);
    }
}

#[tokio::test]
async fn a_client_that_knows_of_another_version_gets_the_flags_whatever_their_tag() {
    let service = with_event_streams().await;
    let (id, event) = Refetches::open(&service, None).await.next().await;
    let tag = post(&service, BULK, "{}").await.headers()["etag"].clone();
    let cases = [
        (&*format!("flagConfigEtag=%22{id}%22&flagConfigLastModified={}", event["lastModified"]), 304),
        ("flagConfigEtag=%22other%22", 200),
        ("flagConfigLastModified=9000-01-01T00%3A00%3A00Z", 200),
        // Parameters that cannot be read are ignored.
        ("flagConfigLastModified=%FF", 304),
        ("flagConfigEtag=1&flagConfigEtag=2", 304),
    ];
    for (query, expected) in cases {
        let request = Client::new().post(format!("{}{BULK}?{query}", service.url())).body("{}");
        let answer = in_time(request.header("if-none-match", &tag).send()).await.unwrap();
        assert_eq!(answer.status().as_u16(), expected, "{query}");
        assert_eq!(answer.headers()["etag"], tag, "{query}");
    }
}

#[tokio::test]
async fn tags_are_recognized_in_lists_and_as_proxies_change_them() {
    let service = LocalServer::start(json!({"a": 1})).await.unwrap();
    let tag = post(&service, BULK, "{}").await.headers()["etag"].to_str().unwrap().to_owned();
    for (line, expected) in
        [(format!("W/\"0\", W/{tag}"), StatusCode::NOT_MODIFIED), ("\"0\"".to_owned(), StatusCode::OK)]
    {
        let request = Client::new().post(format!("{}{BULK}", service.url())).body("{}");
        let request = request.header("if-none-match", "\"1\"").header("if-none-match", &line);
        assert_eq!(in_time(request.send()).await.unwrap().status(), expected, "{line}");
    }
}

/// A page of another origin.
const PAGE: &str = "http://localhost:5173";

/// Headers that the page sends.
const REQUEST_HEADERS: [&str; 7] = [
    "content-type",
    "if-none-match",
    "x-api-key",
    "authorization",
    "cache-control",
    "last-event-id",
    "x-flipswitch-sdk",
];

/// Returns the value of a header, or an empty string.
fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// Sends the request with which a browser asks whether a page may send a request.
async fn preflight(service: &LocalServer, path: &str, origin: &str) -> Response {
    let request = Client::new().request(reqwest::Method::OPTIONS, format!("{}{path}", service.url()));
    let request = request.header("origin", origin).header("access-control-request-method", "POST");
    in_time(request.header("access-control-request-headers", REQUEST_HEADERS.join(",")).send()).await.unwrap()
}

#[tokio::test]
async fn pages_of_allowed_origins_can_use_the_api() {
    let builder = LocalServer::builder().flags(json!({"a": 1})).api_key("key").event_streams(true);
    let service = builder.allow_origin("https://other.example").allow_origin(PAGE).start().await.unwrap();
    let refused = service.faults().add(Fault::on(Endpoint::All).status(503).header("retry-after", "1")).unwrap();
    for path in [BULK, "/ofrep/v1/evaluate/flags/a", "/api/v1/flags/events", EVENT_STREAM] {
        let answer = preflight(&service, path, PAGE).await;
        assert_eq!(answer.status(), StatusCode::OK, "without a key, and before faults: {path}");
        assert_eq!(header(&answer, "access-control-allow-origin"), PAGE);
        assert!(header(&answer, "vary").split(", ").any(|name| name == "origin"));
        let methods = header(&answer, "access-control-allow-methods");
        assert!(methods.contains("GET") && methods.contains("POST"), "{methods}");
        let headers = header(&answer, "access-control-allow-headers");
        for name in REQUEST_HEADERS {
            assert!(headers.split(',').any(|allowed| allowed.trim() == name), "{name}: {headers}");
        }
        let denied = preflight(&service, path, "http://localhost:5174").await;
        assert_eq!(header(&denied, "access-control-allow-origin"), "", "{path}");
    }
    assert_eq!(service.faults().applied(refused), 0);

    let send = async |key: &str, origin: &str| {
        let request = Client::new().post(format!("{}{BULK}", service.url())).header("x-api-key", key).body("{}");
        in_time(request.header("origin", origin).send()).await.unwrap()
    };
    let fault = send("key", PAGE).await;
    assert_eq!((fault.status().as_u16(), header(&fault, "retry-after")), (503, "1"));
    assert_eq!(header(&fault, "access-control-allow-origin"), PAGE, "a page sees the status of a fault");
    service.faults().clear();
    for (key, status) in [("wrong", 401), ("key", 200)] {
        let answer = send(key, PAGE).await;
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(header(&answer, "access-control-allow-origin"), PAGE);
        assert_eq!(header(&answer, "access-control-expose-headers").to_lowercase(), "etag,retry-after");
        assert!(header(&answer, "vary").split(", ").any(|name| name == "origin"));
    }
    assert_eq!(
        header(&send("key", "https://other.example").await, "access-control-allow-origin"),
        "https://other.example"
    );
    assert_eq!(header(&send("key", "https://elsewhere.example").await, "access-control-allow-origin"), "");
    let stream = in_time(Client::new().get(format!("{}{EVENT_STREAM}", service.url())).header("origin", PAGE).send());
    assert_eq!(header(&stream.await.unwrap(), "access-control-allow-origin"), PAGE);

    // The dashboard and its endpoints stay closed.
    for path in ["/", "/local/flags", "/local/faults"] {
        let answer = preflight(&service, path, PAGE).await;
        assert!(answer.status().is_client_error(), "{path}: {}", answer.status());
        assert_eq!(header(&answer, "access-control-allow-origin"), "");
        let answer = Client::new().get(format!("{}{path}", service.url())).header("origin", PAGE).send();
        assert_eq!(header(&in_time(answer).await.unwrap(), "access-control-allow-origin"), "");
    }
}

#[tokio::test]
async fn pages_of_other_origins_are_denied_by_default() {
    let closed = LocalServer::start(json!({"a": 1})).await.unwrap();
    assert_eq!(preflight(&closed, BULK, PAGE).await.status(), StatusCode::METHOD_NOT_ALLOWED);
    let request = Client::new().post(format!("{}{BULK}", closed.url())).header("origin", PAGE).body("{}");
    let answer = in_time(request.send()).await.unwrap();
    assert!(answer.headers().keys().all(|name| name != "vary" && !name.as_str().starts_with("access-control-")));

    let open = LocalServer::builder().allow_origin(PAGE).allow_origin("*").start().await.unwrap();
    let answer = preflight(&open, BULK, "https://any.example").await;
    assert_eq!((answer.status(), header(&answer, "access-control-allow-origin")), (StatusCode::OK, "*"));

    for origin in ["localhost:5173", "http://localhost:5173/", "null", ""] {
        let error = LocalServer::builder().allow_origin(PAGE).allow_origin(origin).start().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(&format!("allow_origin: {origin:?} is not an origin")), "{error}");
    }
}

#[tokio::test]
async fn the_key_is_accepted_in_two_headers() {
    let service = LocalServer::builder().api_key("a-key-of-some-length").start().await.unwrap();
    let bearer = "Bearer a-key-of-some-length";
    for (headers, expected) in [
        (&[("authorization", bearer)][..], StatusCode::OK),
        (&[("authorization", bearer), ("x-api-key", "wrong")], StatusCode::UNAUTHORIZED),
    ] {
        let request = Client::new().post(format!("{}{BULK}", service.url())).body("{}");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        assert_eq!(in_time(request.send()).await.unwrap().status(), expected, "{headers:?}");
    }
    let answer = in_time(Client::new().get(format!("{}/local/requests", service.url())).send()).await.unwrap();
    let listed: Value = answer.json().await.unwrap();
    assert_eq!(listed["requests"][1]["apiKey"], "••••ngth", "{listed}");
}

#[tokio::test]
async fn bulk_answers_have_an_etag_and_are_not_sent_twice() {
    let service = LocalServer::start(json!({"a": 1, "b": "x"})).await.unwrap();
    let answer = post(&service, BULK, r#"{"context":{"targetingKey":"u"}}"#).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let tag = answer.headers()["etag"].clone();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(
        body["flags"][0],
        json!({"key": "a", "value": 1, "reason": "STATIC", "metadata": {"flagType": "integer"}})
    );

    let again = |tag: reqwest::header::HeaderValue| {
        let request = Client::new().post(format!("{}{BULK}", service.url()));
        in_time(request.header("if-none-match", tag).body(r#"{"context":{}}"#).send())
    };
    let unchanged = again(tag.clone()).await.unwrap();
    assert_eq!((unchanged.status(), unchanged.headers()["etag"].clone()), (StatusCode::NOT_MODIFIED, tag.clone()));
    assert!(unchanged.bytes().await.unwrap().is_empty());
    service.set_flag("a", 2);
    let changed = again(tag.clone()).await.unwrap();
    assert_eq!(changed.status(), StatusCode::OK);
    assert_ne!(changed.headers()["etag"], tag);
}

#[tokio::test]
async fn single_flags_and_errors_follow_ofrep() {
    let service = LocalServer::start(json!({"flags": {
        "on/off": {"state": "ENABLED", "variants": {"on": true}, "defaultVariant": "on"},
        "broken": {"state": "ENABLED", "variants": {"on": true}, "targeting": {"if": [true, "of"]}},
    }}))
    .await
    .unwrap();
    let cases = [
        ("/on%2Foff", "{}", 200, json!({"value": true})),
        ("/on/off", "{}", 200, json!({"value": true})),
        ("/unknown", "{}", 404, json!({"key": "unknown", "errorCode": "FLAG_NOT_FOUND"})),
        ("/broken", "{}", 400, json!({"key": "broken", "errorCode": "GENERAL"})),
        ("/on/off", "{", 400, json!({"errorCode": "PARSE_ERROR"})),
        ("", r#"{"context":[]}"#, 400, json!({"errorCode": "INVALID_CONTEXT"})),
        ("", "", 400, json!({"errorCode": "PARSE_ERROR"})),
    ];
    for (key, body, status, expected) in cases {
        let answer = post(&service, &format!("{BULK}{key}"), body).await;
        assert_eq!(answer.status().as_u16(), status, "{key} {body}");
        let answer: Value = answer.json().await.unwrap();
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(&answer[field], value, "{key} {body}: {answer}");
        }
    }
    let all = bulk(&service, json!({})).await;
    assert_eq!(all["flags"][0]["errorCode"], "GENERAL", "the error of one flag is in the list with the others: {all}");
    assert_eq!(all["flags"][1]["value"], true);
}

#[tokio::test]
async fn a_wrong_key_is_rejected_everywhere_except_by_the_controls() {
    let service = LocalServer::builder().flags(json!({"a": 1})).api_key("right").start().await.unwrap();
    let url = service.url();
    let client = Client::new();
    let requests = [
        (client.post(format!("{url}{BULK}")).body("{}"), 401),
        (client.post(format!("{url}{BULK}")).body("{}").header("x-api-key", "wrong"), 401),
        (client.post(format!("{url}{BULK}/a")).body("{}").header("x-api-key", "wrong"), 401),
        (client.get(format!("{url}/api/v1/flags/events")).header("x-api-key", "wrong"), 401),
        (client.post(format!("{url}{BULK}")).body("{}").header("x-api-key", "right"), 200),
        (client.get(format!("{url}/local/flags")), 200),
    ];
    for (request, status) in requests {
        assert_eq!(in_time(request.send()).await.unwrap().status().as_u16(), status);
    }
    let open = LocalServer::start(json!({})).await.unwrap();
    let anyone = client.post(format!("{}{BULK}", open.url())).body("{}").send();
    assert_eq!(in_time(anyone).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn every_change_is_an_event_with_an_increasing_id() {
    let service = LocalServer::start(json!({"a": 1})).await.unwrap();
    let mut events = Events::open(&service).await;
    eventually(async || service.streams() == 1).await;
    service.set_flag("a", 2);
    service.set_definition("b", json!({"value": "x"})).unwrap();
    assert!(service.set_definition("b", json!({"state": "ENABLED"})).is_err());
    assert!(service.remove_flag("a"));
    assert!(!service.remove_flag("a"));
    service.send_event("api-key-rotated", json!({"validUntil": null}));
    let mut last = 0;
    for (event, key) in [("flag-updated", "a"), ("flag-updated", "b"), ("flag-updated", "a"), ("api-key-rotated", "")] {
        let (name, data, id) = events.next().await.unwrap();
        assert_eq!(name, event);
        if event == "flag-updated" {
            assert_eq!(data["flagKey"], key);
            assert!(data["timestamp"].as_str().unwrap().ends_with('Z'), "{data}");
        }
        let id: i64 = id.parse().unwrap();
        assert!(id > last && id > 1_600_000_000_000, "milliseconds since the epoch, and never twice: {id}");
        last = id;
    }
    drop(events);
    eventually(async || service.streams() == 0).await;
}

#[tokio::test]
async fn heartbeats_are_sent_at_their_interval() {
    let service = LocalServer::builder().heartbeat(Duration::from_millis(20)).start().await.unwrap();
    let mut stream = Events::open(&service).await;
    let mut text = String::new();
    while text.matches("event: heartbeat\ndata: {}\n\n").count() < 3 {
        let chunk = in_time(stream.0.chunk()).await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
}

#[tokio::test]
async fn impossible_heartbeat_intervals_are_rejected() {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    for heartbeat in [Duration::ZERO, DAY + Duration::from_nanos(1), Duration::MAX] {
        let error = LocalServer::builder().heartbeat(heartbeat).start().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("heartbeat"), "{error}");
    }
    let service = LocalServer::builder().heartbeat(DAY).start().await.unwrap();
    let _events = Events::open(&service).await;
    eventually(async || service.streams() == 1).await;
}

#[tokio::test]
async fn flags_can_be_set_and_removed_with_curl() {
    let service = LocalServer::start(json!({"a": 1})).await.unwrap();
    let url = format!("{}/local/flags", service.url());
    let client = Client::new();
    let put = |key: &str, body: &str| {
        // The content type that `curl -d` sends.
        let request = client.put(format!("{url}/{key}")).header("content-type", "application/x-www-form-urlencoded");
        in_time(request.body(body.to_owned()).send())
    };
    assert_eq!(put("a", r#"{"value": true}"#).await.unwrap().status(), StatusCode::OK);
    assert_eq!(value(&service, "a").await, json!(true));
    let definition = r#"{"state": "ENABLED", "variants": {"x": 1}, "defaultVariant": "x"}"#;
    assert_eq!(put("dir/b", definition).await.unwrap().status(), StatusCode::OK);
    assert_eq!(value(&service, "dir/b").await, json!(1));

    for (body, reason) in
        [("true", "must be a JSON object, not a boolean"), ("{", "not JSON"), (r#"{"state": "ON"}"#, "state")]
    {
        let answer = put("a", body).await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{body}");
        let answer: Value = answer.json().await.unwrap();
        assert!(answer["error"].as_str().unwrap().contains(reason), "{answer}");
    }
    assert_eq!(value(&service, "a").await, json!(true), "a rejected definition changes nothing");

    let listed: Value = client.get(&url).send().await.unwrap().json().await.unwrap();
    assert_eq!(listed["flags"]["a"], json!({"value": true}));
    assert_eq!(listed["flags"]["dir/b"]["variants"], json!({"x": 1}));
    let delete = || in_time(client.delete(format!("{url}/a")).send());
    assert_eq!(delete().await.unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!(delete().await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn changes_of_the_flags_file_are_applied() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flags.json");
    std::fs::write(&path, r#"{"a": 1, "b": 1}"#).unwrap();
    let service = LocalServer::builder().flags_file(&path).start().await.unwrap();
    let mut events = Events::open(&service).await;
    eventually(async || service.streams() == 1).await;
    service.set_flag("b", "by hand");
    assert_eq!(events.next().await.unwrap().1["flagKey"], "b");

    // Written in place. The flag that was set by request stays, since it is the same in the file as before.
    std::fs::write(&path, r#"{"a": 2, "b": 1}"#).unwrap();
    let (event, data, _) = events.next().await.unwrap();
    assert_eq!((event.as_str(), &data["flagKey"]), ("flag-updated", &json!("a")));
    assert_eq!((value(&service, "a").await, value(&service, "b").await), (json!(2), json!("by hand")));

    // Replaced, as editors do it, with several changed flags.
    let replacement = folder.path().join("flags.json~");
    std::fs::write(&replacement, r#"{"a": 3, "c": 1}"#).unwrap();
    std::fs::rename(&replacement, &path).unwrap();
    assert_eq!(events.next().await.unwrap().0, "config-updated");
    assert_eq!((value(&service, "a").await, value(&service, "c").await), (json!(3), json!(1)));
    assert_eq!(value(&service, "b").await, json!(null), "removed from the file, removed from the service");
}

#[cfg(unix)]
#[tokio::test]
async fn changes_of_a_flags_file_behind_a_symlink_are_applied() {
    let (here, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let target = elsewhere.path().join("target.json");
    let link = here.path().join("flags.json");
    std::fs::write(&target, r#"{"a": 1}"#).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let service = LocalServer::builder().flags_file(&link).start().await.unwrap();
    assert_eq!(value(&service, "a").await, json!(1));
    std::fs::write(&target, r#"{"a": 2}"#).unwrap();
    eventually(async || value(&service, "a").await == json!(2)).await;
}

#[tokio::test]
async fn changes_of_a_flags_file_in_a_recreated_folder_are_applied() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("config");
    let path = folder.join("flags.json");
    let write = |text: &str| {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(&path, text).unwrap();
    };
    write(r#"{"a": 1}"#);
    let service = LocalServer::builder().flags_file(&path).start().await.unwrap();
    // Twice, since the first change may be noticed together with the removal of the folder.
    for round in [2, 3] {
        std::fs::remove_dir_all(&folder).unwrap();
        write(&json!({ "a": round }).to_string());
        eventually(async || value(&service, "a").await == json!(round)).await;
    }
}

/// Returns all flags for a user of each plan.
async fn seen(service: &LocalServer) -> [Value; 2] {
    let free = bulk(service, json!({"targetingKey": "u1", "plan": "free"})).await;
    [free, bulk(service, json!({"targetingKey": "u2", "plan": "premium"})).await]
}

#[tokio::test]
async fn listed_flags_can_be_set_again_and_saved_as_a_file() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/flags.json");
    let service = LocalServer::builder().flags_file(example).start().await.unwrap();
    service.set_flag("plain", true);
    service.set_flag("nothing", Value::Null);
    let client = Client::new();
    let list = async |service: &LocalServer| -> Value {
        let answer = in_time(client.get(format!("{}/local/flags", service.url())).send()).await.unwrap();
        answer.json().await.unwrap()
    };
    let listed = list(&service).await;
    let flags = listed["flags"].as_object().unwrap();
    assert_eq!(flags.len(), 9);

    let put_back = LocalServer::start(json!({})).await.unwrap();
    for (key, definition) in flags {
        let request = client.put(format!("{}/local/flags/{key}", put_back.url())).body(definition.to_string());
        let answer = in_time(request.send()).await.unwrap();
        let status = answer.status();
        assert_eq!(status, StatusCode::OK, "{key}: {}", answer.text().await.unwrap());
    }

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flags.json");
    std::fs::write(&path, listed.to_string()).unwrap();
    let from_file = LocalServer::builder().flags_file(&path).start().await.unwrap();

    let expected = seen(&service).await;
    assert_ne!(expected[0], expected[1], "the plans have different flags");
    for copy in [put_back, from_file] {
        assert_eq!(list(&copy).await, listed);
        assert_eq!(seen(&copy).await, expected);
    }
}

#[tokio::test]
async fn errors_in_a_flags_file_are_reported_with_their_position() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flags.json");
    let start = || LocalServer::builder().flags_file(&path).start();
    let missing = start().await.unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    for (text, place) in [
        ("{\n  \"a\": yes\n}", "flags.json:2:8"),
        (r#"{"flags": {"x": {"state": "ENABLED"}}}"#, "flags.json: flag \"x\": variants"),
        (r#"{"flags": {"x": {"state": "ENABLED"}}, "flagSets": {}}"#, "flags.json: flagSets: is not a field"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = start().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "not an error of the address: {error}");
        assert!(error.to_string().contains(place), "{error}");
    }
}

#[tokio::test]
async fn shutdown_ends_streams_and_frees_the_port() {
    let address = reserved_port();
    let service = LocalServer::builder().listen(address).start().await.unwrap();
    let mut events = Events::open(&service).await;
    eventually(async || service.streams() == 1).await;
    in_time(service.shutdown()).await;
    assert!(events.next().await.is_none(), "the stream has ended gracefully");
    LocalServer::builder().listen(address).start().await.unwrap().shutdown().await;

    let service = LocalServer::start(json!({})).await.unwrap();
    let mut events = Events::open(&service).await;
    drop(service);
    assert!(events.next().await.is_none(), "dropping the server shuts it down");
}

#[tokio::test]
async fn an_incomplete_request_is_not_answered_after_shutdown() {
    let service = LocalServer::start(json!({"a": 1})).await.unwrap();
    let mut connection = TcpStream::connect(service.url().trim_start_matches("http://")).await.unwrap();
    let head = format!("POST {BULK} HTTP/1.1\r\nhost: local\r\nexpect: 100-continue\r\ncontent-length: 14\r\n\r\n{{");
    connection.write_all(head.as_bytes()).await.unwrap();
    // The service asks for the body, so it has accepted the request.
    let mut asked = *b"HTTP/1.1 100 Continue\r\n\r\n";
    in_time(connection.read_exact(&mut asked)).await.unwrap();
    assert!(asked.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&asked));

    in_time(service.shutdown()).await;
    // Either of these may fail, as the connection is closed.
    connection.write_all(br#""context":{}}"#).await.ok();
    let mut answer = Vec::new();
    in_time(connection.read_to_end(&mut answer)).await.ok();
    assert_eq!(String::from_utf8_lossy(&answer), "");
}

#[tokio::test]
async fn an_address_in_use_is_named_in_the_error() {
    let service = LocalServer::start(json!({})).await.unwrap();
    let address: std::net::SocketAddr = service.url().trim_start_matches("http://").parse().unwrap();
    let error = LocalServer::builder().listen(address).start().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn requests_are_recorded_as_received() {
    let service = LocalServer::start(json!({})).await.unwrap();
    post(&service, &format!("{BULK}?trace=1"), r#"{"context":{"a":1}}"#).await;
    let requests = service.requests();
    let [request] = &requests[..] else { panic!("one request: {requests:?}") };
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/ofrep/v1/evaluate/flags?trace=1"));
    assert_eq!(&request.body[..], br#"{"context":{"a":1}}"#);
    assert_eq!(request.headers["x-api-key"], "local");
}
