//! The official OFREP provider for browsers, in Node, with an event source from npm.

use std::time::Duration;

use flipswitch_local::{Endpoint, Fault, LocalServer, LocalServerBuilder, RecordedRequest};
use serde_json::{Value, json};

use super::common::{context, default, header, requests_to};
use crate::support::{BULK, EVENT_STREAM, driver::Driver, eventually, reserved_port, sample_flags};

#[tokio::test]
async fn the_web_provider_reads_every_type_of_flag() {
    let service = service().start().await.unwrap();
    let mut client = Client::start(&service, json!({})).await;
    let page = json!({"title": "Hi", "steps": [1, 2.5, "x"], "size": {"wide": true}});
    let cases = [
        ("boolean", "bool", json!(true), "on", "STATIC"),
        ("string", "string", json!("Grüße 👋"), "hello", "STATIC"),
        ("integer", "int", json!(42), "many", "STATIC"),
        // All of its numbers are doubles.
        ("integer", "large-int", json!(9_007_199_254_740_992_i64), "large", "STATIC"),
        ("float", "float", json!(0.1), "tenth", "STATIC"),
        ("float", "whole-float", json!(42), "whole", "STATIC"),
        ("object", "object", page, "page", "STATIC"),
        ("string", "targeted", json!("10 %"), "standard", "DEFAULT"),
    ];
    for (flag_type, key, value, variant, reason) in cases {
        let details = client.details(flag_type, key).await;
        assert_eq!(
            (&details["value"], &details["variant"], &details["reason"]),
            (&value, &json!(variant), &json!(reason)),
            "{key}: {details}"
        );
    }
    let details = client.details("boolean", "bool").await;
    assert_eq!(details["metadata"], json!({"flagType": "boolean", "owner": "web", "priority": 3}));
    // For flags without a value, the default in the code is used, which is not an error.
    for (key, reason) in [("disabled", "DISABLED"), ("code-default", "DEFAULT")] {
        let details = client.details("boolean", key).await;
        assert_eq!((&details["value"], &details["reason"]), (&json!(false), &json!(reason)), "{key}: {details}");
    }
    let failures = [("unknown", "FLAG_NOT_FOUND"), ("string", "TYPE_MISMATCH"), ("misdirected", "GENERAL")];
    for (key, error) in failures {
        let details = client.details("boolean", key).await;
        assert_eq!((&details["value"], &details["error"]), (&json!(false), &json!(error)), "{key}: {details}");
    }

    // Another context of the same user is sent with the tag of the previous flags, which differ.
    client.set_context("premium").await;
    let details = client.details("string", "targeted").await;
    assert_eq!((&details["value"], &details["reason"]), (&json!("5 %"), &json!("TARGETING_MATCH")));
    let requests = service.requests();
    let [first, second] = &requests[..] else { panic!("two requests: {requests:?}") };
    assert_eq!((header(first, "if-none-match"), header(second, "if-none-match").is_empty()), ("", false));
    assert_eq!(serde_json::from_slice::<Value>(&second.body).unwrap(), json!({"context": context("premium")}));
    client.end(service).await;
}

#[tokio::test]
async fn the_web_provider_sends_its_key_in_either_header() {
    let service = service().api_key("key").start().await.unwrap();
    for (name, value, is_accepted) in [
        ("X-API-Key", "key", true),
        ("Authorization", "Bearer key", true),
        ("X-API-Key", "another", false),
        ("Authorization", "Bearer another", false),
    ] {
        let (mut client, answer) = Client::spawn(&service, json!({"headers": [[name, value]]})).await;
        if is_accepted {
            assert_eq!(answer, "ready", "{name}");
            assert_eq!(client.details("boolean", "bool").await["value"], true);
        } else {
            assert_eq!(answer["error"], "PROVIDER_FATAL", "{name}: {answer}");
        }
        client.0.end().await;
    }
    let sent = service.requests();
    assert_eq!((header(&sent[0], "x-api-key"), header(&sent[1], "authorization")), ("key", "Bearer key"));
    service.shutdown().await;
}

#[tokio::test]
async fn the_web_provider_sees_changes_by_polling() {
    let service = service().start().await.unwrap();
    let mut client = Client::start(&service, json!({"pollInterval": 50})).await;
    eventually(async || requests_to(&service, BULK).len() > 2).await;
    flip(&service, "bool");
    client.hears_change("bool").await;
    assert_eq!(client.details("boolean", "bool").await["value"], false);
    let requests = service.requests();
    assert!(requests.iter().all(|request| request.path == BULK), "{requests:?}");
    assert!(requests[1..].iter().all(|request| !header(request, "if-none-match").is_empty()), "{requests:?}");
    client.end(service).await;
}

#[tokio::test]
async fn the_web_provider_follows_the_event_stream_without_polling() {
    let service = service().event_streams(true).api_key("key").start().await.unwrap();
    let mut client = Client::following(&service).await;
    flip(&service, "bool");
    client.hears_change("bool").await;
    assert_eq!(client.details("boolean", "bool").await["value"], false);

    // Exactly these: all flags, the stream, all flags again once the stream is open, and all flags after the change.
    let requests = service.requests();
    let [first, stream, opened, changed] = &requests[..] else { panic!("four requests: {requests:?}") };
    assert_eq!((first.path.as_str(), header(first, "if-none-match")), (BULK, ""));
    // An event source sends no headers of its application.
    assert_eq!((stream.path.as_str(), header(stream, "accept")), (EVENT_STREAM, "text/event-stream"));
    assert_eq!(header(stream, "x-api-key"), "");
    let tag = header(opened, "if-none-match");
    assert_eq!((tag.is_empty(), header(changed, "if-none-match")), (false, tag), "the first refetch was not modified");
    let versions = [opened, changed].map(announced);
    assert!(versions.iter().all(|(etag, last_modified)| !etag.is_empty() && !last_modified.is_empty()), "{versions:?}");
    assert_ne!(versions[0].0, versions[1].0, "each event names its version");

    // The next stream loses nothing either.
    flip(&service, "targeted");
    client.hears_change("targeted").await;
    assert_eq!(service.requests().len(), 5);
    client.end(service).await;
}

#[tokio::test]
async fn the_web_provider_follows_a_stream_that_was_cut() {
    let service = service().event_streams(true).start().await.unwrap();
    let mut client = Client::following(&service).await;
    let before = bulk_requests(&service);
    service.faults().drop_streams();
    // While it waits, there is no stream that could announce this change.
    eventually(async || service.streams() == 0).await;
    flip(&service, "bool");
    client.hears(|heard| heard["heard"] == "stale").await;
    client.hears_change("bool").await;
    let streams = requests_to(&service, EVENT_STREAM);
    assert_eq!((streams.len(), header(&streams[1], "last-event-id").is_empty()), (2, false), "{streams:?}");
    assert_eq!(bulk_requests(&service), before + 1, "it sends a request only after the first event of the stream");

    flip(&service, "targeted");
    client.hears_change("targeted").await;
    assert_eq!(bulk_requests(&service), before + 2);
    client.end(service).await;
}

#[tokio::test]
async fn the_web_provider_misses_a_change_that_no_event_repeats() {
    let service = service().event_streams(true).start().await.unwrap();
    let mut client = Client::following(&service).await;
    let before = bulk_requests(&service);
    service.faults().add(Fault::on(Endpoint::Stream).no_replay()).unwrap();
    service.faults().drop_streams();
    eventually(async || service.streams() == 0).await;
    flip(&service, "bool");
    eventually(async || service.streams() == 1).await;
    // It does not refetch by itself, although it should. This is why a stream begins with an event.
    flip(&service, "targeted");
    let changed = client.hears(|heard| heard["heard"] == "changed").await;
    assert_eq!(changed["flags"], json!(["bool", "targeted"]));
    assert_eq!(bulk_requests(&service), before + 1);
    client.end(service).await;
}

#[tokio::test]
async fn the_web_provider_reads_events_in_pieces() {
    let service = service().event_streams(true).heartbeat(Duration::from_millis(200)).start().await.unwrap();
    service.faults().add(Fault::on(Endpoint::Stream).split_events()).unwrap();
    let mut client = Client::following(&service).await;
    for key in ["bool", "targeted"] {
        flip(&service, key);
        client.hears_change(key).await;
    }
    assert_eq!((requests_to(&service, EVENT_STREAM).len(), bulk_requests(&service)), (1, 4));
    client.end(service).await;
}

#[tokio::test]
async fn the_web_provider_asks_again_after_a_stream_without_content() {
    let service = service().event_streams(true).start().await.unwrap();
    // An event source does not reconnect after a response with 204. The provider does, after a second.
    service.faults().add(Fault::on(Endpoint::Stream).status(204).times(1)).unwrap();
    let mut client = Client::start(&service, json!({})).await;
    eventually(async || !requests_to(&service, EVENT_STREAM).is_empty()).await;
    flip(&service, "bool");
    eventually(async || service.streams() == 1).await;
    eventually(async || client.details("boolean", "bool").await["value"] == false).await;
    flip(&service, "targeted");
    client.hears_change("targeted").await;
    assert_eq!(requests_to(&service, EVENT_STREAM).len(), 2);
    client.end(service).await;
}

#[tokio::test]
async fn the_web_provider_follows_a_restarted_service() {
    let address = reserved_port();
    let first = service().event_streams(true).listen(address).start().await.unwrap();
    let mut client = Client::following(&first).await;
    first.shutdown().await;
    client.hears(|heard| heard["heard"] == "stale").await;

    let second = service().event_streams(true).listen(address).start().await.unwrap();
    flip(&second, "bool");
    client.hears_change("bool").await;
    flip(&second, "targeted");
    client.hears_change("targeted").await;
    let tags: Vec<_> = requests_to(&second, BULK).iter().map(|it| header(it, "if-none-match").to_owned()).collect();
    assert!(tags.len() <= 3 && tags.iter().all(|tag| !tag.is_empty()), "{tags:?}");
    client.end(second).await;
}

fn service() -> LocalServerBuilder {
    LocalServer::builder().flags(sample_flags())
}

/// Gives a flag a different value.
fn flip(service: &LocalServer, key: &str) {
    let value = if key == "bool" { json!(false) } else { json!("changed") };
    let definition = json!({"state": "ENABLED", "variants": {"flipped": value}, "defaultVariant": "flipped"});
    service.set_definition(key, definition).unwrap();
}

fn bulk_requests(service: &LocalServer) -> usize {
    requests_to(service, BULK).len()
}

/// Returns the version that an event has announced: `flagConfigEtag` and `flagConfigLastModified`.
fn announced(request: &RecordedRequest) -> (String, String) {
    let query = request.path.split_once('?').unwrap_or_default().1;
    let parameter = |name: &str| {
        let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().to_owned()
    };
    (parameter("flagConfigEtag"), parameter("flagConfigLastModified"))
}

struct Client(Driver);

impl Client {
    /// Starts a client with these options of the provider.
    async fn start(service: &LocalServer, options: Value) -> Self {
        let (client, answer) = Self::spawn(service, options).await;
        assert_eq!(answer, "ready");
        client
    }

    /// Starts a client that follows the event stream, and waits until it has refetched the flags once the stream was open.
    async fn following(service: &LocalServer) -> Self {
        let client = Self::start(service, json!({"headers": [["X-API-Key", "key"]]})).await;
        eventually(async || service.streams() == 1 && bulk_requests(service) == 2).await;
        client
    }

    async fn spawn(service: &LocalServer, mut options: Value) -> (Self, Value) {
        options["baseUrl"] = json!(service.url());
        options["context"] = context("free");
        let (driver, answer) = Driver::node("web_client.mjs", &[&options.to_string()]).await;
        (Self(driver), answer)
    }

    async fn details(&mut self, flag_type: &str, key: &str) -> Value {
        self.0.ask(json!({"ask": "details", "type": flag_type, "key": key, "default": default(flag_type)})).await
    }

    async fn set_context(&mut self, plan: &str) {
        assert_eq!(self.0.ask(json!({"ask": "context", "context": context(plan)})).await, "set");
    }

    async fn hears(&mut self, what: impl Fn(&Value) -> bool) -> Value {
        self.0.hears(what).await
    }

    /// Waits for a change of exactly this flag.
    async fn hears_change(&mut self, key: &str) {
        self.hears(|heard| heard["heard"] == "changed" && heard["flags"] == json!([key])).await;
    }

    async fn end(self, service: LocalServer) {
        self.0.end().await;
        eventually(async || service.streams() == 0).await;
        service.shutdown().await;
    }
}
