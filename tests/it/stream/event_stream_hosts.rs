//! Services and hosts of event streams that are broken or malicious.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use flipswitch::{Auth, ConnectionStatus, FlipswitchProvider, reqwest};
use serde_json::{Value, json};
use tokio::{runtime::Handle, sync::broadcast};

use super::event_streams::{FLAGD, KEEP_ALIVE, Service, flagd, is, sees};
use crate::support::{
    Log, PATIENCE, eventually, in_time,
    scripted::{Reply, Scripted},
    user,
};

fn stream(path: &str) -> Value {
    json!({"type": "sse", "endpoint": {"requestUri": path}})
}

/// Two changes within a second may have the same version, so a known version does not mean that nothing has changed.
#[tokio::test]
async fn a_second_change_with_the_same_version_invalidates_flags() {
    const EVENT: &str = "data: {\"type\":\"refetchEvaluation\",\"lastModified\":1771622898}\n\n";
    let (first, second) = (Service::start(Value::Null).await, Service::start(Value::Null).await);
    let stream = |service: &Service| json!({"type": "sse", "url": format!("{}/sse", service.scripted.url())});
    let service = Service::start(json!([stream(&first), stream(&second)])).await;
    let provider = service.connected().await;
    for (host, value) in [(&first, 2), (&second, 3), (&second, 4), (&first, 5)] {
        service.value.store(value, Ordering::SeqCst);
        host.send(EVENT);
        sees(&provider, &service, "u", value).await;
    }
    provider.shutdown().await;
}

/// Returns the numbers of requests for flags and for streams while many users read repeatedly for some time.
async fn under_load(advertises: fn(usize) -> Value, users: &[&str], time: Duration) -> (usize, usize) {
    let service = Service::tokens(Value::Null, move |_, number| advertises(number)).await;
    let provider = service.builder().build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    let began = Instant::now();
    eventually(async || {
        for id in users {
            provider.flags(user(id)).await;
        }
        began.elapsed() > time
    })
    .await;
    provider.shutdown().await;
    let received = service.scripted.received();
    let bulk = received.iter().filter(|request| request.is_bulk()).count();
    (bulk, received.len() - bulk)
}

/// A service that advertises other streams in each response must not make all flags out of date each time.
#[tokio::test]
async fn streams_that_change_with_each_response_do_not_defeat_the_cache() {
    const TIME: Duration = Duration::from_secs(6);
    let users: Vec<_> = (0..50).map(|number| format!("user-{number}")).collect();
    let users: Vec<_> = users.iter().map(String::as_str).collect();
    let services: [fn(usize) -> Value; 3] = [
        |number| if number.is_multiple_of(2) { json!([stream("/sse")]) } else { Value::Null },
        |number| {
            let one = stream(&format!("/a{number}"));
            if number.is_multiple_of(2) { json!([one]) } else { json!([one, stream(&format!("/b{number}"))]) }
        },
        |number| json!([stream(&format!("/a{number}"))]),
    ];
    for advertises in services {
        let (bulk, streams) = under_load(advertises, &users, TIME).await;
        // One request at startup, one for an opening every two seconds, and one in flight.
        let bound = users.len() * (1 + 3 + 1) + 20;
        assert!(
            bulk <= bound && streams <= 10,
            "{bulk} requests for flags, {bound} allowed, and {streams} for streams"
        );
    }
    // The application may have a user with the name of the start-up context.
    let (bulk, streams) = under_load(services[2], &["_init_", "u"], Duration::from_secs(2)).await;
    assert!(bulk <= 30 && streams <= 5, "{bulk} requests for flags, and {streams} for streams");
}

/// The streams of the old environment do not report changes of the new one.
#[tokio::test]
async fn a_new_key_closes_the_streams_of_the_previous_one() {
    let events = broadcast::channel(4).0;
    let service = Scripted::start(move |request, _| {
        if !request.is_bulk() {
            return Reply::Bytes("", events.clone());
        }
        let is_new = request.header("x-api-key") == Some("new");
        if is_new && request.body.contains("_init_") {
            return Reply::status(500, "");
        }
        let mut body = json!({"flags": [{"key": "f", "value": is_new}]});
        if !is_new {
            body["eventStreams"] = json!([stream("/sse?env=old")]);
        }
        Reply::json(body)
    })
    .await;
    let builder = FlipswitchProvider::ofrep(service.url()).auth(Auth::ApiKey("old".into())).miss_wait(PATIENCE);
    let provider = builder.polling_interval(Duration::from_millis(200)).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    is(&provider, ConnectionStatus::Connected).await;
    provider.set_api_key("new").unwrap();
    is(&provider, ConnectionStatus::Disconnected).await;
    eventually(async || provider.flags(user("u")).await.bool("f", false)).await;
    let streams = service.received().iter().filter(|request| !request.is_bulk()).count();
    assert_eq!((streams, provider.sse_status()), (1, ConnectionStatus::Disconnected));
    provider.shutdown().await;
}

/// The host chooses the text of an error, which may repeat the URL.
#[tokio::test]
async fn text_sent_by_a_host_is_not_logged() {
    const TOKEN: &str = "stream-secret-9b1f";
    let echo = json!({"errorCode": TOKEN, "errorDetails": TOKEN}).to_string();
    for reply in [
        Reply::status(400, echo),
        Reply::status(200, "").with("content-type", format!("text/html; x={TOKEN}")),
        Reply::status(404, "<html>").with("content-type", TOKEN),
    ] {
        let log = Log::of_this_thread();
        let service = Service::start(json!([stream(&format!("/sse?token={TOKEN}"))])).await;
        *service.instead.lock().unwrap() = Some(reply);
        let provider = service.builder().runtime(Handle::current()).build().unwrap();
        in_time(provider.ready(PATIENCE)).await.unwrap();
        is(&provider, ConnectionStatus::Error).await;
        let lines = log.lines();
        assert!(lines.iter().any(|line| line.contains("stream of changes failed")), "{lines:?}");
        assert!(!lines.iter().any(|line| line.contains(TOKEN)), "{lines:?}");
        provider.shutdown().await;
    }
}

/// A tag may cover only the flags, so a response with 304 may keep a URL that has expired.
#[tokio::test]
async fn an_expired_url_is_renewed_although_no_flag_has_changed() {
    let (answered, events) = (AtomicUsize::new(0), broadcast::channel(4).0);
    let service = Scripted::start(move |request, _| {
        if !request.is_bulk() {
            return if request.path.contains("old") {
                Reply::status(401, "")
            } else {
                Reply::Bytes("", events.clone())
            };
        }
        if request.header("if-none-match").is_some() {
            return Reply::status(304, "").with("etag", "\"flags\"");
        }
        let token = if answered.fetch_add(1, Ordering::SeqCst) == 0 { "old" } else { "new" };
        let streams = json!([stream(&format!("/sse?token={token}"))]);
        Reply::json(json!({"flags": [{"key": "f", "value": 1}], "eventStreams": streams})).with("etag", "\"flags\"")
    })
    .await;
    let provider = FlipswitchProvider::ofrep(service.url()).miss_wait(PATIENCE).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    is(&provider, ConnectionStatus::Connected).await;
    provider.shutdown().await;
}

/// A firewall may only allow the URL without the query that an event requires.
#[tokio::test]
async fn a_request_whose_query_is_rejected_is_repeated_without_it() {
    let (value, events) = (Arc::new(AtomicI64::new(1)), broadcast::channel(4).0);
    let (served, sent) = (Arc::clone(&value), events.clone());
    let service = Scripted::start(move |request, _| match (request.is_bulk(), request.query()) {
        (false, _) => Reply::Bytes("", sent.clone()),
        (true, Some(_)) => Reply::status(400, "unknown parameter"),
        (true, None) => Reply::json(json!({
            "flags": [{"key": "f", "value": served.load(Ordering::SeqCst)}], "eventStreams": [stream("/sse")],
        })),
    })
    .await;
    let provider = FlipswitchProvider::ofrep(service.url()).miss_wait(PATIENCE).stale_wait(PATIENCE).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    is(&provider, ConnectionStatus::Connected).await;
    events.send(KEEP_ALIVE.into()).unwrap();
    eventually(async || provider.flags(user("u")).await.int("f", 0) == 1).await;
    value.store(2, Ordering::SeqCst);
    events.send(FLAGD.into()).unwrap();
    let is_rejected = || service.received().iter().any(|it| it.query().is_some() && it.body.contains("\"u\""));
    eventually(async || provider.flags(user("u")).await.int("f", 0) == 2 && is_rejected()).await;
    assert!(!provider.flags(user("u")).await.is_stale());
    provider.shutdown().await;
}

/// The function that configures clients may set headers only in some calls.
#[tokio::test]
async fn default_headers_of_each_new_client_are_checked() {
    let elsewhere = Service::start(Value::Null).await;
    let service = Service::start(json!([{"type": "sse", "url": format!("{}/x", elsewhere.scripted.url())}])).await;
    let calls = AtomicUsize::new(0);
    let builder = service.builder().http_client(move || {
        let builder = reqwest::Client::builder();
        let headers =
            || reqwest::header::HeaderMap::from_iter([("x-token".parse().unwrap(), "secret".parse().unwrap())]);
        // The first two clients are for the service. After that, every second client has no headers.
        let call = calls.fetch_add(1, Ordering::SeqCst);
        if call < 2 || call.is_multiple_of(2) { builder } else { builder.default_headers(headers()) }
    });
    let provider = builder.build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    is(&provider, ConnectionStatus::Connected).await;
    for reconnects in 1..4 {
        provider.reconnect_sse();
        eventually(async || provider.stats().reconnects >= reconnects).await;
    }
    let received = elsewhere.scripted.received();
    assert!(received.iter().all(|request| !request.head.contains("secret")), "{received:?}");
    provider.shutdown().await;
}

#[tokio::test]
async fn a_stream_that_moves_while_it_is_refused_is_opened_at_its_new_url() {
    let service = Service::start(flagd()).await;
    *service.instead.lock().unwrap() = Some(Reply::status(503, ""));
    let provider = service.builder().polling_interval(Duration::from_millis(50)).max_sse_retries(1).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    is(&provider, ConnectionStatus::Error).await;
    *service.instead.lock().unwrap() = None;
    service.advertise(json!([stream("/elsewhere")]));
    is(&provider, ConnectionStatus::Connected).await;
    assert!(service.streams_asked_for().iter().any(|request| request.path == "/elsewhere"));
    provider.shutdown().await;
}
