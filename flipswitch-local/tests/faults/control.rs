//! Faults over HTTP, with the endpoints under `/local`.

use flipswitch_local::{Endpoint, Fault, LocalServer};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{BULK, End, STREAM, Socket, assert_responds, eventually, in_time, service};

async fn call(service: &LocalServer, method: Method, path: &str, body: &str) -> (StatusCode, Value) {
    let request = Client::new().request(method, format!("{}/local{path}", service.url())).body(body.to_owned());
    let response = in_time(request.send()).await.unwrap();
    let status = response.status();
    let text = in_time(response.text()).await.unwrap();
    (status, if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() })
}

#[tokio::test]
async fn faults_are_added_listed_and_removed() {
    let (service, faults) = service().await;
    let fault = json!({
        "on": "bulk", "after": 1, "times": 2,
        "effect": {"status": {"code": 429, "headers": {"retry-after": "1"}, "body": "slow down"}},
    });
    let (status, added) = call(&service, Method::POST, "/faults", &fault.to_string()).await;
    assert_eq!(status, StatusCode::CREATED, "{added}");
    let mut listed = fault.clone();
    for (field, value) in [("id", json!(1)), ("struck", json!(0)), ("remaining", json!(2))] {
        listed[field] = value;
    }
    assert_eq!(added, listed);
    assert_responds(&service, BULK).await;
    let mut socket = Socket::request(&service, BULK).await;
    let head = socket.head().await;
    assert!(head.starts_with("http/1.1 429") && head.contains("retry-after: 1\r\n"), "{head}");
    assert_eq!(socket.body(&head).await, "slow down");
    (listed["struck"], listed["remaining"]) = (json!(1), json!(1));
    assert_eq!(call(&service, Method::GET, "/faults", "").await, (StatusCode::OK, json!({"faults": [listed]})));

    let gone = (StatusCode::NO_CONTENT, Value::Null);
    assert_eq!(call(&service, Method::DELETE, "/faults/1", "").await, gone);
    for id in ["1", "x"] {
        let (status, error) = call(&service, Method::DELETE, &format!("/faults/{id}"), "").await;
        assert_eq!((status, &error["error"]), (StatusCode::NOT_FOUND, &json!(format!("there is no fault {id:?}"))));
    }
    faults.add(Fault::on(Endpoint::All).hang()).unwrap();
    assert_eq!(call(&service, Method::DELETE, "/faults", "").await, gone);
    assert_eq!(faults.active(), []);
}

#[tokio::test]
async fn every_fault_has_a_json_form() {
    let on = Fault::on(Endpoint::Stream);
    let second = std::time::Duration::from_secs(1);
    let cases = [
        (on.status(503), r#"{"status": {"code": 503}}"#),
        (on.redirect(307, "/x"), r#"{"redirect": {"location": "/x"}}"#),
        (on.redirect(308, "/x"), r#"{"redirect": {"location": "/x", "code": 308}}"#),
        (on.delay(second), r#"{"delay": {"millis": 1000}}"#),
        (on.delay(second).concurrency(2), r#"{"delay": {"millis": 1000, "concurrency": 2}}"#),
        (on.rate_limit(5), r#"{"rateLimit": {"perSecond": 5}}"#),
        (
            on.rate_limit(5).header("retry-after", "1").body("slow"),
            r#"{"rateLimit": {"perSecond": 5, "headers": {"retry-after": "1"}, "body": "slow"}}"#,
        ),
        (
            on.status(404).json(json!({"a": [1]})),
            r#"{"status": {"code": 404, "headers": {"content-type": "application/json"}, "body": {"json": {"a": [1]}}}}"#,
        ),
        (on.hang(), r#""hang""#),
        (on.hang(), r#"{"hang": {}}"#),
        (on.close(), r#""close""#),
        (on.close().after_bytes(1), r#"{"close": {"afterBytes": 1}}"#),
        (on.reset(), r#""reset""#),
        (on.reset().after_bytes(2), r#"{"reset": {"afterBytes": 2}}"#),
        (on.close().after_time(second), r#"{"close": {"afterMillis": 1000}}"#),
        (on.reset().after_time(second), r#"{"reset": {"afterMillis": 1000}}"#),
        (on.finish(), r#""finish""#),
        (on.finish().after_time(second), r#"{"finish": {"afterMillis": 1000}}"#),
        (on.half_open(), r#""halfOpen""#),
        (on.half_open().after_bytes(3), r#"{"halfOpen": {"afterBytes": 3}}"#),
        (on.trickle(1, second), r#"{"trickle": {"bytes": 1, "everyMillis": 1000}}"#),
        (on.garbage("<"), r#"{"garbage": {"body": "<"}}"#),
        (on.garbage([255]).content_type("x/y"), r#"{"garbage": {"body": {"base64": "/w=="}, "contentType": "x/y"}}"#),
        (on.content_type("x/y"), r#"{"contentType": "x/y"}"#),
        (on.no_heartbeats(), r#""noHeartbeats""#),
    ];
    let (service, faults) = service().await;
    for (fault, effect) in cases {
        let body = format!(r#"{{"on": "stream", "effect": {effect}}}"#);
        let (status, added) = call(&service, Method::POST, "/faults", &body).await;
        assert_eq!(status, StatusCode::CREATED, "{body}: {added}");
        assert_eq!(faults.active()[0].fault, fault, "{body}");
        // A listed fault can be added again.
        let again = json!({"on": added["on"], "effect": added["effect"], "after": 0, "times": null});
        assert_eq!(serde_json::from_value::<Fault>(again).unwrap(), fault, "{added}");
        faults.clear();
    }
}

#[tokio::test]
async fn every_filter_has_a_json_form() {
    let on = || Fault::on(Endpoint::Bulk).hang();
    let cases = [
        (on(), "{}"),
        (on().for_targeting_key("a").for_targeting_key("b"), r#"{"targetingKeys": ["a", "b"]}"#),
        (on().except_targeting_key("_init_"), r#"{"exceptTargetingKeys": ["_init_"]}"#),
        (on().for_attribute("plan"), r#"{"attributes": [{"name": "plan"}]}"#),
        (on().for_attribute_value("age", 18), r#"{"attributes": [{"name": "age", "value": 18}]}"#),
        (on().if_none_match(true), r#"{"ifNoneMatch": true}"#),
    ];
    let (service, faults) = service().await;
    for (fault, filter) in cases {
        let body = format!(r#"{{"on": "bulk", "effect": "hang", "when": {filter}}}"#);
        let (status, added) = call(&service, Method::POST, "/faults", &body).await;
        assert_eq!(status, StatusCode::CREATED, "{body}: {added}");
        assert_eq!(faults.active()[0].fault, fault, "{body}");
        let filter: Value = serde_json::from_str(filter).unwrap();
        assert_eq!(added["when"], if filter == json!({}) { Value::Null } else { filter });
        faults.clear();
    }
}

#[tokio::test]
async fn errors_name_the_field() {
    let cases = [
        ("", &["EOF"][..]),
        ("7", &["invalid type"]),
        (r#"{"on": "bulk", "effect": "hang"} x"#, &["trailing"]),
        (r#"{"effect": "hang"}"#, &["`on`"]),
        (r#"{"on": "bulk"}"#, &["`effect`"]),
        (r#"{"on": "bulk", "effect": "hang", "tims": 1}"#, &["`tims`", "`times`"]),
        (r#"{"on": "bulck", "effect": "hang"}"#, &["on: ", "`bulck`", "`bulk`", "`stream`"]),
        (r#"{"on": "bulk", "effect": "hang", "times": "x"}"#, &["times: ", "\"x\""]),
        (r#"{"on": "bulk", "effect": "hang", "after": -1}"#, &["after: "]),
        (r#"{"on": "bulk", "effect": "hang", "times": 0}"#, &["times: "]),
        (r#"{"on": "bulk", "effect": "hung"}"#, &["effect: ", "`hung`", "`hang`"]),
        (r#"{"on": "bulk", "effect": "status"}"#, &["effect: ", "`code`"]),
        (r#"{"on": "bulk", "effect": {}}"#, &["effect"]),
        (r#"{"on": "bulk", "effect": {"hang": {}, "close": {}}}"#, &["effect: ", "close"]),
        (r#"{"on": "bulk", "effect": {"hang": {"for": 1}}}"#, &["effect.hang", "`for`"]),
        (r#"{"on": "bulk", "effect": {"status": {"code": "x"}}}"#, &["effect.status.code: "]),
        (r#"{"on": "bulk", "effect": {"status": {"code": 7}}}"#, &["effect.status.code: 7"]),
        (r#"{"on": "bulk", "effect": {"status": {"code": 200, "headers": {"a": 1}}}}"#, &["headers.a: "]),
        (r#"{"on": "bulk", "effect": {"delay": {"millis": 1.5}}}"#, &["effect.delay.millis: "]),
        (r#"{"on": "bulk", "effect": {"garbage": {"body": {"base64": "?"}}}}"#, &["effect.garbage.body", "base64"]),
        (r#"{"on": "bulk", "effect": {"garbage": {"body": {"hex": ""}}}}"#, &["effect.garbage.body", "`hex`"]),
        (r#"{"on": "bulk", "effect": "noHeartbeats"}"#, &["on: ", "stream", "noHeartbeats"]),
        (r#"{"on": "all", "effect": "finish"}"#, &["on: ", "stream", "finish"]),
        (r#"{"on": "bulk", "effect": {"close": {"afterMillis": 1}}}"#, &["on: ", "stream", "afterMillis"]),
        (r#"{"on": "stream", "effect": {"flagError": {"key": "a"}}}"#, &["on: ", "bulk", "flagError"]),
        (r#"{"on": "bulk", "effect": "flagError"}"#, &["effect: ", "`key`"]),
        (r#"{"on": "stream", "effect": {"reset": {"afterMillis": "x"}}}"#, &["effect.reset.afterMillis: ", "\"x\""]),
        (r#"{"on": "stream", "effect": {"reset": {"afterMillis": 1, "afterBytes": 1}}}"#, &["effect.reset: "]),
        (r#"{"on": "bulk", "effect": {"rateLimit": {"perSecond": 0}}}"#, &["effect.rateLimit.perSecond: 0", "10000"]),
        (
            r#"{"on": "bulk", "effect": {"delay": {"millis": 1, "concurrency": 10001}}}"#,
            &["effect.delay.concurrency: 10001"],
        ),
        (
            r#"{"on": "bulk", "effect": {"status": {"code": 404, "body": {}}}}"#,
            &["effect.status.body", "json", "base64"],
        ),
        (
            r#"{"on": "bulk", "effect": {"status": {"code": 404, "body": {"json": 1, "base64": ""}}}}"#,
            &["effect.status.body", "base64"],
        ),
        (
            r#"{"on": "bulk", "effect": "hang", "when": {"targetingKey": "a"}}"#,
            &["when", "`targetingKey`", "`targetingKeys`"],
        ),
        (r#"{"on": "bulk", "effect": "hang", "when": {"targetingKeys": "a"}}"#, &["when.targetingKeys: ", "\"a\""]),
        (
            r#"{"on": "bulk", "effect": "hang", "when": {"attributes": [{"value": 1}]}}"#,
            &["when.attributes[0]: ", "`name`"],
        ),
        (
            r#"{"on": "bulk", "effect": "hang", "when": {"attributes": [{"name": "a", "value": null}]}}"#,
            &["when.attributes: ", "\"a\""],
        ),
        (r#"{"on": "bulk", "effect": "hang", "when": {"ifNoneMatch": 1}}"#, &["when.ifNoneMatch: "]),
        (r#"{"on": "stream", "effect": "hang", "when": {"ifNoneMatch": true}}"#, &["when: ", "bulk"]),
        (r#"{"on": "connections", "effect": {"status": {"code": 500}}, "times": 1}"#, &["effect: "]),
        (r#"{"on": "connections", "effect": "close"}"#, &["times: "]),
    ];
    let (service, faults) = service().await;
    for (body, expected) in cases {
        let (status, response) = call(&service, Method::POST, "/faults", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        let error = response["error"].as_str().unwrap();
        assert!(expected.iter().all(|part| error.contains(part)), "{body}: {error}");
    }
    assert_eq!(faults.active(), []);
}

#[tokio::test]
async fn streams_are_ended_and_injected_into() {
    let (service, _) = service().await;
    let act = async |action: &str, body: &str| call(&service, Method::POST, &format!("/streams/{action}"), body).await;
    let mut stream = Socket::open_stream(&service).await;
    assert_eq!(call(&service, Method::GET, "/streams", "").await, (StatusCode::OK, json!({"open": 1})));
    let one = (StatusCode::OK, json!({"streams": 1}));
    assert_eq!(act("inject", ":\u{0}raw\n").await, one);
    stream.until(":\u{0}raw\n").await;
    assert_eq!(act("finish", "").await, one);
    stream.until("0\r\n\r\n").await;
    for (action, end) in [("drop", End::Closed), ("reset", End::Reset)] {
        eventually(|| service.streams() == 0).await;
        let stream = Socket::open_stream(&service).await;
        assert_eq!(act(action, "").await, one);
        assert_eq!(stream.end().await.1, end);
    }
    let (status, error) = act("close", "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(error["error"].as_str().unwrap().contains("\"close\""), "{error}");
}

#[tokio::test]
async fn the_api_key_is_rotated() {
    let (service, _) = service().await;
    let mut stream = Socket::request(&service, STREAM).await;
    stream.head().await;
    let body = r#"{"key": "next", "validUntil": "2100-01-01T01:00:00+01:00"}"#;
    let (status, response) = call(&service, Method::POST, "/api-key", body).await;
    let expected = json!({"key": "next", "validUntil": "2100-01-01T00:00:00.000Z"});
    assert_eq!((status, response), (StatusCode::OK, expected));
    assert_eq!(service.api_key(), "next");
    stream.until("api-key-rotated").await;
    let (_, response) = call(&service, Method::POST, "/api-key", "").await;
    assert_eq!(response["key"], service.api_key());
    assert_ne!(response["key"], "next");
    for (body, field) in [
        (r#"{"kee": "x"}"#, "`kee`"),
        (r#"{"key": 1}"#, "key: "),
        (r#"{"validUntil": "tomorrow"}"#, "validUntil: \"tomorrow\""),
        (r#"{"validUntil": "9999-12-31T23:59:59-01:00"}"#, "validUntil: "),
    ] {
        let (status, response) = call(&service, Method::POST, "/api-key", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(response["error"].as_str().unwrap().contains(field), "{response}");
    }
    assert_eq!(call(&service, Method::POST, "/api-key", "").await.0, StatusCode::OK);
}
