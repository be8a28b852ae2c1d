//! The client of the flag vendor, which the local service must serve like the real service.

use std::{
    env,
    time::{Duration, SystemTime},
};

use flipswitch_local::{KeyRotation, LocalServer, LocalServerBuilder};
use serde_json::{Value, json};

use super::common::{FAILURES, TYPED, context, default, header};
use crate::support::{BULK, driver::Driver, eventually, reserved_port, sample_flags};

const KEY: &str = "key";
const STREAM: &str = "/api/v1/flags/events";

/// More often than the real service, so that tests need not wait for them.
const HEARTBEAT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn the_vendor_client_reads_every_type_of_flag() {
    let service = service().start().await.unwrap();
    let mut client = Client::start(&service).await;
    // A number that is not an integer has the type `decimal` in the metadata, and `number` in what the client returns.
    for (flag_type, key, plan, value, variant, reason) in &*TYPED {
        let (in_metadata, shown) = if *flag_type == "float" { ("decimal", "number") } else { (*flag_type, *flag_type) };
        let details = client.details(flag_type, key, plan).await;
        assert_eq!(
            (&details["value"], &details["variant"], &details["reason"]),
            (value, &json!(variant), &json!(reason)),
            "{key}: {details}"
        );
        assert_eq!(details["metadata"]["flagType"], in_metadata, "{key}: {details}");
        let evaluation = json!({"key": key, "value": value, "value_type": shown, "variant": variant, "reason": reason});
        assert_eq!(client.one(key, plan).await, evaluation);
        assert_eq!(*find(&client.all(plan).await, key), evaluation);
    }
    let details = client.details("boolean", "bool", "free").await;
    assert_eq!(details["metadata"], json!({"flagType": "boolean", "owner": "web", "priority": 3}));

    for (key, error, message) in FAILURES {
        let details = client.details("boolean", key, "free").await;
        assert_eq!((&details["value"], &details["error"]), (&json!(false), &json!(error)), "{key}: {details}");
        assert!(details["message"].as_str().unwrap().contains(message), "{key}: {details}");
    }
    // Its own methods read a flag without a variant. They return the same for a flag that fails and for a missing flag.
    // In the list of all flags, a flag that fails has neither value nor reason.
    let all = client.all("free").await;
    for (key, reason) in [("disabled", "DISABLED"), ("code-default", "DEFAULT")] {
        let evaluation = json!({"key": key, "value": null, "value_type": "boolean", "variant": null, "reason": reason});
        assert_eq!((&client.one(key, "free").await, find(&all, key)), (&evaluation, &evaluation));
    }
    assert_eq!(
        (client.one("unknown", "free").await, client.one("misdirected", "free").await),
        (json!(null), json!(null))
    );
    assert_eq!(find(&all, "misdirected")["reason"], json!(null));
    let flags = sample_flags();
    assert_eq!(all.len(), flags["flags"].as_object().unwrap().len(), "each flag once: {all:?}");
    client.end(service).await;
}

#[tokio::test]
async fn the_vendor_client_identifies_itself_in_each_request() {
    let service = service().start().await.unwrap();
    let mut client = Client::start(&service).await;
    client.details("boolean", "bool", "premium").await;
    client.one("bool", "premium").await;
    client.all("premium").await;

    // Requests have neither the tag of a response nor the id of an event, since the client does not keep them.
    let system = env::consts::OS.replace("macos", "darwin");
    let machine = env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64");
    let os = format!("{system}/{machine}");
    let requests = service.requests();
    for request in &requests {
        for (name, value) in [
            ("x-api-key", KEY),
            ("x-flipswitch-sdk", "python/1.0.0"),
            ("x-flipswitch-os", &os),
            ("x-flipswitch-features", "sse=true"),
        ] {
            assert_eq!(header(request, name), value, "{name}: {request:?}");
        }
        assert!(header(request, "x-flipswitch-runtime").starts_with("python/3."), "{request:?}");
    }
    let (streams, evaluations): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.path == STREAM);
    let [stream] = streams[..] else { panic!("one stream: {streams:?}") };
    assert_eq!(
        (stream.method.as_str(), header(stream, "accept"), header(stream, "cache-control")),
        ("GET", "text/event-stream", "no-cache")
    );
    let asked = evaluations.iter().map(|request| {
        assert_eq!((request.method.as_str(), header(request, "content-type")), ("POST", "application/json"));
        (request.path.as_str(), serde_json::from_slice::<Value>(&request.body).unwrap())
    });
    let premium = json!({"context": {"targetingKey": "user-123", "plan": "premium"}});
    let expected = [
        (BULK, json!({"context": {"targetingKey": "_init_"}})),
        ("/ofrep/v1/evaluate/flags/bool", premium.clone()),
        ("/ofrep/v1/evaluate/flags/bool", premium.clone()),
        (BULK, premium),
    ];
    assert_eq!(asked.collect::<Vec<_>>(), expected);
    client.end(service).await;
}

#[tokio::test]
async fn the_vendor_client_receives_changes_and_heartbeats() {
    let service = service().start().await.unwrap();
    let mut client = Client::start(&service).await;
    // It ignores heartbeats, except for a line in its log.
    for _ in 0..3 {
        client.hears_log("Heartbeat received").await;
    }
    service.set_flag("bool", false);
    client.hears_change(Some("bool")).await;
    // Through OpenFeature it cannot read a flag without variants.
    assert_eq!(client.one("bool", "free").await["value"], false);
    service
        .set_definition("int", json!({"state": "ENABLED", "variants": {"more": 43}, "defaultVariant": "more"}))
        .unwrap();
    client.hears_change(Some("int")).await;
    assert_eq!(client.details("integer", "int", "free").await["value"], 43);
    assert!(service.remove_flag("int"));
    client.hears_change(Some("int")).await;
    assert_eq!(client.details("integer", "int", "free").await["error"], "FLAG_NOT_FOUND");

    for data in [
        json!({"timestamp": "2024-01-21T10:30:45.123Z", "reason": "segment-modified"}),
        json!({"timestamp": "2024-01-21T10:30:45.123Z"}),
    ] {
        service.send_event("config-updated", data);
        assert_eq!(client.hears_change(None).await, "2024-01-21T10:30:45.123000+00:00");
    }
    assert_eq!(client.ask(json!({"ask": "status"})).await, "connected");
    assert_eq!(streams_asked_for(&service), 1, "it is still the first one");
    client.end(service).await;
}

#[tokio::test]
async fn the_vendor_client_continues_after_a_key_rotation() {
    let service = service().start().await.unwrap();
    let mut client = Client::start(&service).await;
    let in_an_hour = SystemTime::now() + Duration::from_secs(3_600);
    let next = service.rotate_api_key(KeyRotation::new().valid_until(in_an_hour));
    client.hears_log("API key was rotated. Current key valid until: 2").await;
    // Its key cannot be replaced, and its current key is valid for an hour.
    assert_eq!(client.details("boolean", "bool", "free").await["value"], true);
    assert_eq!(Client::spawn(&service, &next).await.1, "ready");
    for valid_until in [json!(null), json!("")] {
        let data = json!({"validUntil": valid_until, "timestamp": "2024-01-21T10:30:45.123Z"});
        service.send_event("api-key-rotated", data);
        client.hears_log("API key rotation was aborted").await;
    }
    service.set_flag("bool", false);
    client.hears_change(Some("bool")).await;
    assert_eq!(streams_asked_for(&service), 1, "it is still the first one");
    client.end(service).await;
}

#[tokio::test]
async fn the_vendor_client_keeps_its_stream_after_its_key_expired() {
    let service = service().start().await.unwrap();
    let mut client = Client::start(&service).await;
    let next = service.rotate_api_key(KeyRotation::new());
    client.hears_log("API key was rotated. Current key valid until: 2").await;
    let details = client.details("boolean", "bool", "free").await;
    assert_eq!(details, json!({"value": false, "error": "GENERAL", "message": "unauthorized"}));
    service.set_flag("bool", false);
    client.hears_change(Some("bool")).await;
    assert_eq!(Client::spawn(&service, KEY).await.1, "Invalid API key");
    assert_eq!(Client::spawn(&service, &next).await.1, "ready");
    client.end(service).await;
}

#[tokio::test]
async fn the_vendor_client_reconnects_to_a_restarted_service() {
    let address = reserved_port();
    let first = service().listen(address).start().await.unwrap();
    let mut client = Client::start(&first).await;
    first.shutdown().await;
    // The stream ends gracefully, since the client would report an error. It waits for a second before it reconnects.
    client.hears_log("SSE connection closed").await;

    let second = service().listen(address).start().await.unwrap();
    client.is_connected_to(&second).await;
    second.set_flag("bool", false);
    // The client does not notice changes in between.
    client.hears_change(Some("bool")).await;
    assert_eq!(client.one("bool", "free").await["value"], false);
    assert_eq!(client.details("integer", "int", "free").await["value"], 42);
    client.end(second).await;
}

fn service() -> LocalServerBuilder {
    LocalServer::builder().flags(sample_flags()).api_key(KEY).heartbeat(HEARTBEAT)
}

fn streams_asked_for(service: &LocalServer) -> usize {
    service.requests().iter().filter(|request| request.path == STREAM).count()
}

fn find<'a>(all: &'a [Value], key: &str) -> &'a Value {
    all.iter().find(|evaluation| evaluation["key"] == key).unwrap()
}

/// The client, in a process that ends with the test.
struct Client(Driver);

impl Client {
    /// Starts a client and waits until its stream is open.
    async fn start(service: &LocalServer) -> Self {
        let (mut client, answer) = Self::spawn(service, KEY).await;
        assert_eq!(answer, "ready");
        client.is_connected_to(service).await;
        client
    }

    /// Starts a client and returns it with its first message.
    async fn spawn(service: &LocalServer, api_key: &str) -> (Self, Value) {
        let (driver, answer) = Driver::python("vendor_client.py", &[&service.url(), api_key]).await;
        (Self(driver), answer)
    }

    async fn is_connected_to(&mut self, service: &LocalServer) {
        eventually(async || service.streams() == 1 && self.ask(json!({"ask": "status"})).await == "connected").await;
    }

    /// Reads a flag through OpenFeature, as applications do.
    async fn details(&mut self, flag_type: &str, key: &str, plan: &str) -> Value {
        let default = default(flag_type);
        let context = context(plan);
        self.ask(json!({"ask": "details", "type": flag_type, "key": key, "default": default, "context": context})).await
    }

    /// Reads a flag by its key.
    async fn one(&mut self, key: &str, plan: &str) -> Value {
        self.ask(json!({"ask": "one", "key": key, "context": context(plan)})).await
    }

    /// Reads all flags.
    async fn all(&mut self, plan: &str) -> Vec<Value> {
        let Value::Array(all) = self.ask(json!({"ask": "all", "context": context(plan)})).await else {
            panic!("all flags are a list")
        };
        all
    }

    async fn ask(&mut self, question: Value) -> Value {
        self.0.ask(question).await
    }

    /// Waits until both listeners got a change, of one flag or of all. Returns its time.
    async fn hears_change(&mut self, flag: Option<&str>) -> Value {
        let flags = flag.map(|flag| [flag]);
        self.0.hears(|heard| heard["heard"] == "openfeature" && heard["flags"] == json!(flags)).await;
        self.0.hears(|heard| heard["heard"] == "listener" && heard["flag"] == json!(flag)).await["at"].take()
    }

    async fn hears_log(&mut self, text: &str) {
        self.0.hears(|heard| heard["text"].as_str().is_some_and(|logged| logged.starts_with(text))).await;
    }

    /// Stops the client, which must have understood every event, and its stream.
    async fn end(self, service: LocalServer) {
        let heard = self.0.end().await;
        eventually(async || service.streams() == 0).await;
        let is_error = |line: &&Value| {
            line["level"] == "ERROR" && line["logger"].as_str().is_some_and(|logger| logger.starts_with("flipswitch"))
        };
        assert_eq!(heard.iter().find(is_error), None);
        service.shutdown().await;
    }
}
