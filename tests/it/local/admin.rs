//! The dashboard and the controls: who may use them, and what they show and hide.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use flipswitch_local::{Endpoint, Fault, LocalServer};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::{BULK, eventually, in_time};

const KEY: &str = "a-key-that-must-stay-secret-4711";

type Headers<'a> = &'a [(&'a str, &'a str)];

/// The requests that only this machine may send.
const CONTROLS: [(&str, &str); 20] = [
    ("GET", "/"),
    ("GET", "/dashboard/script.js"),
    ("GET", "/dashboard/style.css"),
    ("GET", "/dashboard/icon.svg"),
    ("GET", "/local/flags"),
    ("PUT", "/local/flags/a"),
    ("DELETE", "/local/flags/a"),
    ("POST", "/local/evaluate"),
    ("GET", "/local/faults"),
    ("POST", "/local/faults"),
    ("DELETE", "/local/faults"),
    ("DELETE", "/local/faults/1"),
    ("GET", "/local/streams"),
    ("POST", "/local/streams/finish"),
    ("POST", "/local/streams/inject"),
    ("GET", "/local/requests"),
    ("GET", "/local/activity"),
    ("GET", "/local/api-key"),
    ("POST", "/local/api-key"),
    ("OPTIONS", "/local/flags/a"),
];

async fn ask(url: &str, method: &str, path: &str, headers: Headers<'_>, body: impl Into<reqwest::Body>) -> Response {
    let mut request = Client::new().request(method.parse::<Method>().unwrap(), format!("{url}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    in_time(request.body(body).send()).await.unwrap()
}

async fn get(service: &LocalServer, path: &str) -> Value {
    ask(&service.url(), "GET", path, &[], "").await.json().await.unwrap()
}

async fn post(service: &LocalServer, path: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
    let answer = ask(&service.url(), "POST", path, &[("x-api-key", &service.api_key())], body).await;
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test]
async fn pages_of_other_origins_cannot_use_the_controls() {
    let service = LocalServer::builder().flags(json!({"a": 1})).api_key(KEY).start().await.unwrap();
    let here = service.url();
    let host = here.trim_start_matches("http://");
    let foreign: [(Headers<'_>, u16, &str); 10] = [
        (&[("host", "evil.example")], 421, "evil.example"),
        (&[("host", "evil.example:3001"), ("origin", "http://evil.example:3001")], 421, "evil.example"),
        (&[("host", "localhost.evil.example")], 421, "Host"),
        (&[("host", "127.0.0.1.evil.example")], 421, "Host"),
        (&[("host", "192.168.1.1")], 421, "Host"),
        (&[("host", "")], 421, "Host"),
        (&[("origin", "http://evil.example")], 403, "Origin"),
        (&[("origin", "https://localhost.evil.example")], 403, "Origin"),
        (&[("origin", "null")], 403, "null"),
        (&[("origin", "chrome-extension://abcdefgh")], 403, "Origin"),
    ];
    for (method, path) in CONTROLS {
        for (headers, status, reason) in foreign {
            let answer = ask(&here, method, path, headers, "{}").await;
            assert_eq!(answer.status().as_u16(), status, "{method} {path} {headers:?}");
            assert!(answer.headers().get("access-control-allow-origin").is_none());
            let answer: Value = answer.json().await.unwrap();
            assert!(answer["error"].as_str().unwrap().contains(reason), "{answer}");
        }
        // Another application on this machine may not change anything either.
        if method != "GET" {
            for headers in [[("origin", "http://localhost:1")], [("sec-fetch-site", "cross-site")]] {
                let answer = ask(&here, method, path, &headers, "{}").await;
                assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{method} {path} {headers:?}");
            }
        }
    }
    assert_eq!(get(&service, "/local/flags").await, json!({"flags": {"a": {"value": 1}}}), "nothing was changed");
    assert_eq!(service.api_key(), KEY);

    let own = format!("http://{host}");
    let ours: [Headers<'_>; 6] = [
        &[],
        &[("origin", &own), ("sec-fetch-site", "same-origin")],
        &[("host", "localhost:1234"), ("origin", "http://localhost:1234")],
        &[("host", "flags.localhost"), ("origin", "http://flags.localhost")],
        &[("host", "[::1]:3001"), ("origin", "http://[::1]:3001")],
        &[("host", "127.5.5.5"), ("origin", "http://127.5.5.5")],
    ];
    for headers in ours {
        for path in ["/", "/local/flags", "/local/requests"] {
            assert_eq!(ask(&here, "GET", path, headers, "").await.status(), StatusCode::OK, "{path} {headers:?}");
        }
        let put = ask(&here, "PUT", "/local/flags/a", headers, r#"{"value": 2}"#).await;
        assert_eq!(put.status(), StatusCode::OK, "{headers:?}");
    }

    // Applications reach their endpoints by any name.
    for headers in
        [[("host", "flags.internal"), ("x-api-key", KEY)], [("origin", "https://shop.example"), ("x-api-key", KEY)]]
    {
        assert_eq!(ask(&here, "POST", BULK, &headers, "{}").await.status(), StatusCode::OK, "{headers:?}");
        assert_eq!(ask(&here, "GET", "/api/v1/flags/events", &headers, "").await.status(), StatusCode::OK);
    }
}

/// Returns an address of this machine that is not a loopback address, if there is one.
fn another_address() -> Option<IpAddr> {
    // Nothing is sent. The system only selects the route.
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[tokio::test]
async fn other_machines_can_use_the_controls_only_if_they_are_exposed() {
    let Some(address) = another_address() else { return };
    for (exposed, status) in [(false, 403), (true, 200)] {
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let service = LocalServer::builder().listen(any).expose_control(exposed).start().await.unwrap();
        let port = service.url().rsplit(':').next().unwrap().to_owned();
        assert_eq!(service.dashboard_url(), format!("http://localhost:{port}/"));
        let (near, far) = (format!("http://127.0.0.1:{port}"), format!("http://{address}:{port}"));
        for path in ["/", "/local/flags"] {
            assert_eq!(ask(&near, "GET", path, &[], "").await.status(), StatusCode::OK, "{path}");
            let answer = ask(&far, "GET", path, &[], "").await;
            assert_eq!(answer.status().as_u16(), status, "{path}, exposed: {exposed}");
            if !exposed {
                assert!(answer.text().await.unwrap().contains("--expose-control"), "it says what to do");
            }
        }
        assert_eq!(ask(&far, "POST", BULK, &[], "{}").await.status(), StatusCode::OK);
        // A page cannot use an exposed service either, through a name of its own that resolves to the address of the service.
        let rebound = [("host", "evil.example"), ("origin", "http://evil.example")];
        assert!(!ask(&near, "PUT", "/local/flags/a", &rebound, r#"{"value": 1}"#).await.status().is_success());
        let own = [("host", "flags:3001"), ("origin", "http://flags:3001")];
        let put = ask(&near, "PUT", "/local/flags/a", &own, r#"{"value": 1}"#).await;
        assert_eq!(put.status().is_success(), exposed, "a name without dots, as containers have");
    }
}

#[tokio::test]
async fn the_dashboard_loads_nothing_from_elsewhere() {
    let service = LocalServer::start(json!({})).await.unwrap();
    let mut types = Vec::new();
    for (method, path) in CONTROLS.iter().filter(|(method, _)| *method == "GET") {
        let answer = ask(&service.url(), method, path, &[], "").await;
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header("referrer-policy"), "no-referrer", "{path}");
        assert_eq!(header("cache-control"), "no-store", "{path}");
        assert_eq!(header("cross-origin-resource-policy"), "same-origin", "{path}");
        let policy = header("content-security-policy");
        for part in ["default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{path}: {policy}");
        if *path == "/" {
            for part in ["script-src 'self'", "style-src 'self'", "connect-src 'self'", "form-action 'self'"] {
                assert!(policy.contains(part), "{policy}");
            }
        }
        types.push(header("content-type"));
        if path.starts_with("/dashboard") || *path == "/" {
            let text = answer.text().await.unwrap();
            for way_out in
                ["src=\"http", "href=\"http", "url(", "@import", "innerHTML", "insertAdjacent", "eval(", " style="]
            {
                assert!(!text.contains(way_out), "{path} has {way_out}");
            }
        }
    }
    assert_eq!(types[..2], ["text/html; charset=utf-8", "text/javascript; charset=utf-8"]);
    assert_eq!(service.dashboard_url(), format!("{}/", service.url()));
}

#[tokio::test]
async fn api_keys_are_listed_masked() {
    let service = LocalServer::builder().api_key(KEY).start().await.unwrap();
    assert_eq!(get(&service, "/local/api-key").await, json!({"key": "••••4711"}));
    post(&service, BULK, r#"{"context":{"targetingKey":"alice"}}"#).await;
    ask(&service.url(), "POST", BULK, &[("x-api-key", "a-guess")], "{}").await;
    ask(&service.url(), "POST", BULK, &[], "{}").await;
    let listed = get(&service, "/local/requests").await;
    let text = listed.to_string();
    assert!(!text.contains(KEY) && !text.contains("a-guess"), "{text}");
    let keys: Vec<_> = listed["requests"].as_array().unwrap().iter().map(|request| &request["apiKey"]).collect();
    assert_eq!(keys, [&json!(null), &json!("••••"), &json!("••••4711")]);
    let open = LocalServer::start(json!({})).await.unwrap();
    assert_eq!(get(&open, "/local/api-key").await, json!({"key": null}), "any key is accepted");
}

#[tokio::test]
async fn all_flags_are_evaluated_for_a_context() {
    let service = LocalServer::start(json!({"flags": {
        "broken": {"state": "ENABLED", "variants": {"on": true}, "targeting": {"if": [true, "of"]}},
        "max": {
            "state": "ENABLED", "variants": {"few": 3, "many": 100}, "defaultVariant": "few",
            "targeting": {"if": [{"==": [{"var": "plan"}, "premium"]}, "many"]},
        },
        "off": {"state": "DISABLED", "variants": {"on": true}, "defaultVariant": "on"},
    }}))
    .await
    .unwrap();
    for (context, expected) in [
        (json!({}), [json!(3), json!("few"), json!("DEFAULT")]),
        (json!({"targetingKey": "alice", "plan": "premium"}), [json!(100), json!("many"), json!("TARGETING_MATCH")]),
    ] {
        let (status, answer) = post(&service, "/local/evaluate", json!({ "context": context }).to_string()).await;
        let flags = answer["flags"].as_array().unwrap();
        assert_eq!((status, flags.len()), (200, 3));
        assert_eq!(flags[0]["errorCode"], "GENERAL");
        assert_eq!(["value", "variant", "reason"].map(|field| flags[1][field].clone()), expected);
        assert_eq!((&flags[2]["reason"], flags[2].get("value")), (&json!("DISABLED"), None));
    }
    assert_eq!(get(&service, "/local/requests").await["requests"], json!([]), "no application has asked");
}

#[tokio::test]
async fn errors_in_control_requests_are_reported_with_their_position() {
    let service = LocalServer::start(json!({"a": 1})).await.unwrap();
    let flag = |field: &str, value: Value| {
        let mut flag = json!({"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "on"});
        flag[field] = value;
        flag.to_string()
    };
    let large = format!("{{\"value\": \"{}\"}}", "x".repeat(1 << 20));
    let deep = format!("{{\"value\": {}1{}}}", "[".repeat(200), "]".repeat(200));
    let cases: [(&str, &str, String, u16, &str); 26] = [
        ("PUT", "/local/flags/a", "{".into(), 400, "line 1 column 1"),
        ("PUT", "/local/flags/a", String::new(), 400, "not JSON"),
        ("PUT", "/local/flags/a", "\u{0}".into(), 400, "not JSON"),
        ("PUT", "/local/flags/a", "[]".into(), 400, "flag \"a\": must be a JSON object, not an array"),
        ("PUT", "/local/flags/a", deep, 400, "recursion"),
        (
            "PUT",
            "/local/flags/a",
            flag("state", json!("ON")),
            400,
            "flag \"a\": state: must be \"ENABLED\" or \"DISABLED\", not \"ON\"",
        ),
        ("PUT", "/local/flags/a", flag("defaultVariant", json!("of")), 400, "defaultVariant: \"of\" is not one of"),
        (
            "PUT",
            "/local/flags/a",
            flag("variants", json!({"on": 1, "off": "x"})),
            400,
            "variants: must all have the same type",
        ),
        (
            "PUT",
            "/local/flags/a",
            flag("targeting", json!("on")),
            400,
            "targeting: must be a JSON object, not a string",
        ),
        ("PUT", "/local/flags/a", flag("targeting", json!({"$ref": "who"})), 400, "targeting: "),
        ("PUT", "/local/flags/a", large, 413, "1048576 bytes"),
        ("PUT", "/local/flags/%ff", r#"{"value": 1}"#.into(), 400, "UTF-8"),
        ("DELETE", "/local/flags/b", String::new(), 404, "no flag \"b\""),
        ("PATCH", "/local/flags/a", "{}".into(), 405, "does not support PATCH"),
        ("POST", "/local/flags", "{}".into(), 405, "does not support POST"),
        ("POST", "/local/evaluate", String::new(), 400, "EOF"),
        ("POST", "/local/evaluate", "{}".into(), 400, "`context`"),
        ("POST", "/local/evaluate", r#"{"contex": {}}"#.into(), 400, "`contex`"),
        ("POST", "/local/evaluate", r#"{"context": 1}"#.into(), 400, "context: must be a JSON object, not a number"),
        (
            "POST",
            "/local/evaluate",
            r#"{"context": {"targetingKey": 1}}"#.into(),
            400,
            "context.targetingKey: must be a string",
        ),
        ("POST", "/local/evaluate", r#"{"context": {}} x"#.into(), 400, "trailing"),
        (
            "POST",
            "/local/faults",
            r#"{"on": "bulk", "effect": {"status": {"code": "x"}}}"#.into(),
            400,
            "effect.status.code: ",
        ),
        ("DELETE", "/local/faults/x", String::new(), 404, "no fault \"x\""),
        ("POST", "/local/streams/stop", String::new(), 404, "\"stop\""),
        ("POST", "/local/api-key", r#"{"key": 1}"#.into(), 400, "key: "),
        ("GET", "/local/flag", String::new(), 404, "nothing at \"/local/flag\""),
    ];
    for (method, path, body, status, reason) in cases {
        let shown: String = body.chars().take(80).collect();
        let answer = ask(&service.url(), method, path, &[], body).await;
        assert_eq!(answer.status().as_u16(), status, "{method} {path} {shown}");
        assert_eq!(answer.headers()["content-type"], "application/json", "{method} {path} {shown}");
        let answer: Value = answer.json().await.unwrap();
        assert!(answer["error"].as_str().unwrap().contains(reason), "{method} {path} {shown}: {answer}");
    }
    assert_eq!(get(&service, "/local/flags").await, json!({"flags": {"a": {"value": 1}}}), "nothing was changed");
}

#[tokio::test]
async fn requests_are_listed_newest_first_with_their_outcome() {
    let service = LocalServer::start(json!({"a": 1})).await.unwrap();
    post(&service, BULK, r#"{"context":{"targetingKey":"alice","plan":"premium"}}"#).await;
    post(&service, &format!("{BULK}/b"), "{}").await;
    let hang = service.faults().add(Fault::on(Endpoint::Bulk).hang().times(1)).unwrap();
    let hanging = tokio::spawn(Client::new().post(format!("{}{BULK}", service.url())).body("<html>").send());
    let listed = async || get(&service, "/local/requests").await["requests"].as_array().unwrap().clone();
    eventually(async || listed().await.len() == 3).await;
    let requests = listed().await;
    let seen: Vec<_> = requests.iter().map(|request| (request["status"].clone(), request["millis"].is_u64())).collect();
    assert_eq!(seen, [(json!(null), false), (json!(404), true), (json!(200), true)]);
    let expected = json!({
        "id": 1, "method": "POST", "path": BULK, "apiKey": "••••", "status": 200,
        "context": r#"{"plan":"premium","targetingKey":"alice"}"#,
    });
    for (field, value) in expected.as_object().unwrap() {
        // In the order in which it was sent, or sorted: this depends on the features of serde_json.
        let same = |shown: &Value| serde_json::from_str::<Value>(shown.as_str().unwrap()).unwrap();
        match field.as_str() {
            "context" => assert_eq!(same(&requests[2][field]), same(value)),
            _ => assert_eq!(&requests[2][field], value, "{field}"),
        }
    }
    assert!(requests[2]["at"].as_str().unwrap().ends_with('Z'));
    assert_eq!((&requests[0]["context"], &requests[0]["apiKey"]), (&json!("<html>"), &json!(null)));
    // Its connection is closed without a response.
    service.faults().remove(hang);
    assert!(in_time(hanging).await.unwrap().is_err());
    eventually(async || listed().await[0]["millis"].is_u64()).await;
    assert_eq!(listed().await[0]["status"], json!(null));
    for _ in 0..210 {
        post(&service, BULK, "{}").await;
    }
    assert_eq!(listed().await.len(), 200, "the list is limited");
}

/// A reader of the activity stream.
struct Activity(Response, String);

impl Activity {
    async fn open(service: &LocalServer) -> Self {
        let answer = ask(&service.url(), "GET", "/local/activity", &[], "").await;
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self(answer, String::new())
    }

    /// Returns the next topic and its data.
    async fn next(&mut self) -> (String, Value) {
        loop {
            if let Some((frame, rest)) = self.1.split_once("\n\n") {
                let event = frame.strip_prefix("event: ").and_then(|frame| frame.split_once("\ndata: "));
                let event = event.map(|(topic, data)| (topic.to_owned(), serde_json::from_str(data).unwrap()));
                self.1 = rest.to_owned();
                match event {
                    Some(event) => return event,
                    None => continue,
                }
            }
            let chunk = self.0.chunk().await.unwrap().expect("the stream goes on");
            self.1.push_str(str::from_utf8(&chunk).unwrap());
        }
    }

    /// Waits for all of these topics, in any order. Returns the data of the last one.
    async fn tells(&mut self, topics: &[&str]) -> Value {
        in_time(async {
            let mut missing = topics.to_vec();
            loop {
                let (topic, data) = self.next().await;
                missing.retain(|wanted| *wanted != topic);
                if missing.is_empty() {
                    return data;
                }
            }
        })
        .await
    }
}

#[tokio::test]
async fn watchers_receive_the_topics_that_change() {
    let service = LocalServer::start(json!({"a": 1})).await.unwrap();
    let mut activity = Activity::open(&service).await;
    // Begins with all topics, so that a watcher that reconnects misses nothing.
    activity.tells(&["flags", "streams", "requests", "faults", "api-key"]).await;
    service.set_flag("a", 2);
    activity.tells(&["flags"]).await;
    assert!(service.remove_flag("a"));
    activity.tells(&["flags"]).await;

    let client = [("user-agent", "a client <b>")];
    let stream = ask(&service.url(), "GET", "/api/v1/flags/events", &client, "").await;
    let mut told = activity.tells(&["streams"]).await;
    assert_eq!((&told["open"], &told["streams"][0]["client"]), (&json!(1), &json!("a client <b>")));
    assert!(told["streams"][0]["since"].as_str().unwrap().ends_with('Z'));
    drop(stream);
    while told["open"] != 0 {
        told = activity.tells(&["streams"]).await;
    }

    let fault = service.faults().add(Fault::on(Endpoint::Bulk).status(503)).unwrap();
    activity.tells(&["faults"]).await;
    assert_eq!(ask(&service.url(), "POST", BULK, &[], "{}").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    activity.tells(&["faults", "requests"]).await;
    service.faults().remove(fault);
    activity.tells(&["faults"]).await;
    service.rotate_api_key(flipswitch_local::KeyRotation::new());
    activity.tells(&["api-key"]).await;

    in_time(service.shutdown()).await;
    while in_time(activity.0.chunk()).await.expect("a graceful end").is_some() {}
}

#[tokio::test]
async fn hostile_names_and_values_are_treated_as_data() {
    let service = LocalServer::start(json!({})).await.unwrap();
    let key = "<img src=x onerror=alert(1)>";
    let value = "</script><script>alert(1)</script>\u{2028}\u{0}";
    let path = "/local/flags/%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E";
    let put = ask(&service.url(), "PUT", path, &[], json!({ "value": value }).to_string()).await;
    assert_eq!(put.status(), StatusCode::OK);
    assert_eq!(put.headers()["content-type"], "application/json");
    assert_eq!(get(&service, "/local/flags").await["flags"][key], json!({ "value": value }));
    let (_, evaluated) = post(&service, "/local/evaluate", r#"{"context": {}}"#).await;
    assert_eq!((&evaluated["flags"][0]["key"], &evaluated["flags"][0]["value"]), (&json!(key), &json!(value)));
    assert!(!ask(&service.url(), "GET", "/", &[], "").await.text().await.unwrap().contains("onerror"));
    assert_eq!(ask(&service.url(), "DELETE", path, &[], "").await.status(), StatusCode::NO_CONTENT);
}
