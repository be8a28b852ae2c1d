//! The event source that most programs in Rust use, `reqwest-eventsource`, on both streams of the local service.

use std::time::Duration;

use flipswitch_local::{Endpoint, Fault, KeyRotation, LocalServer, LocalServerBuilder};
use futures_util::StreamExt;
use reqwest_012::{
    Client, StatusCode,
    header::{HeaderMap, HeaderValue},
};
use reqwest_eventsource::{Error, Event, EventSource, RequestBuilderExt, retry};
use serde_json::{Value, json};

use super::common::{header, requests_to};
use crate::support::{EVENT_STREAM, eventually, in_time};

const KEY: &str = "key";
const STREAM: &str = "/api/v1/flags/events";

#[tokio::test]
async fn an_event_source_reads_the_stream_of_changes() {
    let service = service().heartbeat(Duration::from_millis(50)).start().await.unwrap();
    let mut source = open(&service, STREAM, KEY);
    opens(&mut source).await;
    for _ in 0..2 {
        assert_eq!(next(&mut source).await, ("heartbeat".to_owned(), json!({}), String::new()));
    }
    service.set_flag("f", false);
    let (name, data, id) = next_change(&mut source).await;
    assert_eq!((name.as_str(), &data["flagKey"]), ("flag-updated", &json!("f")));
    // Events of this stream have the time as their id.
    let first: u64 = id.parse().unwrap();
    assert!(data["timestamp"].is_string(), "{data}");

    let next_key = service.rotate_api_key(KeyRotation::new());
    let (name, data, id) = next_change(&mut source).await;
    assert_eq!(name, "api-key-rotated");
    assert!(data["validUntil"].is_string(), "{data}");
    assert!(id.parse::<u64>().unwrap() >= first, "{id}");

    // The stream stays open although its key is no longer valid. A new stream cannot be opened with that key.
    service.set_flag("f", true);
    assert_eq!(next_change(&mut source).await.1["flagKey"], "f");
    let mut refused = open(&service, STREAM, KEY);
    let error = in_time(refused.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::InvalidStatusCode(StatusCode::UNAUTHORIZED, _)), "{error}");
    opens(&mut open(&service, STREAM, &next_key)).await;
    drop(source);
    ends(service).await;
}

#[tokio::test]
async fn an_event_source_reconnects_to_the_stream_of_changes() {
    let service = service().start().await.unwrap();
    let mut source = open(&service, STREAM, KEY);
    opens(&mut source).await;
    service.set_flag("f", false);
    let (_, _, id) = next_change(&mut source).await;
    for cut in [cut_in_the_middle, cut_at_the_end] {
        cut(&service);
        in_time(source.next()).await.unwrap().unwrap_err();
        opens(&mut source).await;
    }
    service.set_flag("f", true);
    assert_eq!(next_change(&mut source).await.1["flagKey"], "f");
    let streams = requests_to(&service, STREAM);
    let ids: Vec<_> = streams.iter().map(|request| header(request, "last-event-id")).collect();
    assert_eq!(ids, ["", &id, &id]);
    drop(source);
    ends(service).await;
}

#[tokio::test]
async fn an_event_source_reads_the_event_stream_of_ofrep() {
    let service = service().event_streams(true).heartbeat(Duration::from_millis(50)).start().await.unwrap();
    // The stream requires no key.
    let mut source = open(&service, EVENT_STREAM, "");
    opens(&mut source).await;
    let opening = refetch(&mut source).await;
    // Comments keep the stream alive, and are not events.
    service.set_flag("f", false);
    let changed = refetch(&mut source).await;
    assert_ne!(opening, changed);

    // A client that knows the newest change receives no event when the stream opens again.
    for cut in [cut_in_the_middle, cut_at_the_end] {
        cut(&service);
        in_time(source.next()).await.unwrap().unwrap_err();
        opens(&mut source).await;
    }
    service.set_flag("f", true);
    let last = refetch(&mut source).await;
    assert_ne!(changed, last);

    // A client that does not know it receives one event, however many changes it has missed.
    service.faults().drop_streams();
    in_time(source.next()).await.unwrap().unwrap_err();
    service.set_flag("f", false);
    service.set_flag("f", true);
    opens(&mut source).await;
    let after = refetch(&mut source).await;
    assert_ne!(last, after);
    service.set_flag("f", false);
    assert_ne!(after, refetch(&mut source).await);
    let streams = requests_to(&service, EVENT_STREAM);
    let ids: Vec<_> = streams.iter().map(|request| header(request, "last-event-id").is_empty()).collect();
    assert_eq!(ids, [true, false, false, false]);
    drop(source);
    ends(service).await;
}

#[tokio::test]
async fn an_event_source_reads_events_in_pieces() {
    let service = service().event_streams(true).heartbeat(Duration::from_millis(200)).start().await.unwrap();
    service.faults().add(Fault::on(Endpoint::Stream).split_events()).unwrap();
    let mut source = open(&service, STREAM, KEY);
    opens(&mut source).await;
    service.set_flag("f", false);
    assert_eq!(next_change(&mut source).await.1["flagKey"], "f");
    drop(source);
    let mut source = open(&service, EVENT_STREAM, KEY);
    opens(&mut source).await;
    let opening = refetch(&mut source).await;
    service.set_flag("f", true);
    assert_ne!(opening, refetch(&mut source).await);
    drop(source);
    ends(service).await;
}

fn service() -> LocalServerBuilder {
    LocalServer::builder().flags(json!({"f": true})).api_key(KEY)
}

fn open(service: &LocalServer, path: &str, key: &str) -> EventSource {
    let mut headers = HeaderMap::new();
    if !key.is_empty() {
        headers.insert("x-api-key", HeaderValue::from_str(key).unwrap());
    }
    let client = Client::builder().no_proxy().default_headers(headers).build().unwrap();
    let mut source = client.get(format!("{}{path}", service.url())).eventsource().unwrap();
    let wait = Duration::from_millis(20);
    source.set_retry_policy(Box::new(retry::Constant::new(wait, None)));
    source
}

async fn opens(source: &mut EventSource) {
    assert_eq!(in_time(source.next()).await.unwrap().unwrap(), Event::Open);
}

/// Returns the next event: name, data and the last id.
async fn next(source: &mut EventSource) -> (String, Value, String) {
    match in_time(source.next()).await.unwrap().unwrap() {
        Event::Message(event) => (event.event, serde_json::from_str(&event.data).unwrap(), event.id),
        Event::Open => panic!("it was open already"),
    }
}

/// Returns the next event that is not a heartbeat.
async fn next_change(source: &mut EventSource) -> (String, Value, String) {
    loop {
        let event = next(source).await;
        if event.0 != "heartbeat" {
            return event;
        }
    }
}

/// Returns the tag and the id of the next event, which asks for a refetch.
async fn refetch(source: &mut EventSource) -> (String, String) {
    let (name, data, id) = next(source).await;
    assert_eq!((name.as_str(), &data["type"]), ("message", &json!("refetchEvaluation")));
    assert!(data["lastModified"].is_u64() || data["lastModified"].is_string(), "{data}");
    assert!(!id.is_empty());
    (data["etag"].as_str().unwrap().to_owned(), id)
}

fn cut_in_the_middle(service: &LocalServer) {
    assert_eq!(service.faults().drop_streams(), 1);
}

fn cut_at_the_end(service: &LocalServer) {
    assert_eq!(service.faults().finish_streams(), 1);
}

async fn ends(service: LocalServer) {
    eventually(async || service.streams() == 0).await;
    service.shutdown().await;
}
