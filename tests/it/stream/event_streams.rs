//! Event streams of OFREP services, in the formats of flagd and Flipt.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::body::Bytes;
use flipswitch::{
    Auth, ConnectionStatus, FlipswitchProvider, FlipswitchProviderBuilder, HealthState, ProviderEvent, reqwest,
};
use flipswitch_local::{Endpoint, Fault, LocalServer};
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::support::{
    self, Log, PATIENCE,
    events::until,
    eventually, in_time,
    scripted::{Received, Reply, Scripted},
    session::session,
    user,
};

/// The bytes that flagd sends after a change, and the bytes that keep its connections open.
pub(super) const FLAGD: &str = "id: 7\nevent: message\ndata: {\"type\":\"refetchEvaluation\",\"etag\":\"\\\"a b\\\"\",\"lastModified\":1771622898}\n\n";
const FLAGD_QUERY: &str = "flagConfigEtag=%22a+b%22&flagConfigLastModified=1771622898";
pub(super) const KEEP_ALIVE: &str = ":keep-alive\n";

/// The event of Flipt, which has no name.
const FLIPT: &str = "data: {\"type\":\"refetchEvaluation\",\"etag\":\"5d41\"}\nid: 8\n\n";
const FLIPT_QUERY: &str = "flagConfigEtag=5d41";

/// The stream that flagd advertises, and a stream with a token.
pub(super) fn flagd() -> Value {
    json!([{"type": "sse", "endpoint": {"requestUri": "/ofrep/v1/sse/"}, "inactivityDelaySec": 120}])
}

/// A service with the flag `f`, whose response advertises event streams.
pub(super) struct Service {
    pub(super) scripted: Scripted,
    pub(super) value: Arc<AtomicI64>,
    pub(super) streams: Arc<Mutex<Value>>,
    /// The reply that is sent instead of a stream.
    pub(super) instead: Arc<Mutex<Option<Reply>>>,
    pub(super) events: broadcast::Sender<Bytes>,
}

impl Service {
    pub(super) async fn start(streams: Value) -> Self {
        Self::tokens(streams, |streams, _| streams).await
    }

    /// Starts a service that adds a token to the streams of each response.
    pub(super) async fn tokens(streams: Value, write: impl Fn(Value, usize) -> Value + Send + Sync + 'static) -> Self {
        let (value, streams) = (Arc::new(AtomicI64::new(1)), Arc::new(Mutex::new(streams)));
        let instead = Arc::<Mutex<Option<Reply>>>::default();
        let events = broadcast::channel(16).0;
        let scripted = {
            let (value, streams) = (Arc::clone(&value), Arc::clone(&streams));
            let (instead, events) = (Arc::clone(&instead), events.clone());
            Scripted::start(move |request, number| {
                if request.query() == Some("token=expired") {
                    return Reply::status(401, "");
                }
                if !request.is_bulk() {
                    return instead.lock().unwrap().clone().unwrap_or_else(|| Reply::Bytes("", events.clone()));
                }
                let streams = write(streams.lock().unwrap().clone(), number);
                let mut body = json!({"flags": [{"key": "f", "value": value.load(Ordering::SeqCst)}]});
                if !streams.is_null() {
                    body["eventStreams"] = streams;
                }
                let tag = format!("\"{}\"", body.to_string().replace('"', "'"));
                // A request with the version of another configuration gets a full response.
                if request.query().is_none() && request.header("if-none-match") == Some(&tag.to_ascii_lowercase()) {
                    return Reply::status(304, "").with("etag", tag);
                }
                Reply::json(body).with("etag", tag)
            })
            .await
        };
        Self { scripted, value, streams, instead, events }
    }

    pub(super) fn builder(&self) -> FlipswitchProviderBuilder {
        FlipswitchProvider::ofrep(self.scripted.url()).miss_wait(PATIENCE).stale_wait(PATIENCE)
    }

    /// Builds a provider, and waits until its stream is open.
    pub(super) async fn connected(&self) -> FlipswitchProvider {
        let provider = self.builder().build().unwrap();
        in_time(provider.ready(PATIENCE)).await.unwrap();
        is(&provider, ConnectionStatus::Connected).await;
        // The opening of the stream causes this request.
        self.start_ups(2).await;
        provider
    }

    /// Ends the open streams properly.
    pub(super) fn end_streams(&self) {
        self.send("");
    }

    pub(super) fn send(&self, bytes: &'static str) {
        self.events.send(Bytes::from_static(bytes.as_bytes())).unwrap();
    }

    pub(super) fn asked(&self, which: impl Fn(&Received) -> bool) -> Vec<Received> {
        self.scripted.received().into_iter().filter(which).collect()
    }

    pub(super) fn streams_asked_for(&self) -> Vec<Received> {
        self.asked(|request| !request.is_bulk())
    }

    pub(super) fn asked_for(&self, user: &str) -> Vec<Received> {
        let body = format!("\"targetingKey\":\"{user}\"");
        self.asked(|request| request.is_bulk() && request.body.contains(&body))
    }

    /// Waits for this many requests of the start-up context, and returns the last one.
    pub(super) async fn start_ups(&self, number: usize) -> Received {
        eventually(async || self.asked_for("_init_").len() >= number).await;
        self.asked_for("_init_").remove(number - 1)
    }

    pub(super) fn advertise(&self, streams: Value) {
        *self.streams.lock().unwrap() = streams;
    }
}

pub(super) async fn is(provider: &FlipswitchProvider, status: ConnectionStatus) {
    eventually(async || provider.sse_status() == status).await;
}

fn is_change_of_all(event: &ProviderEvent) -> bool {
    matches!(event, ProviderEvent::ConfigurationChanged(change) if change.flag_key.is_none())
}

/// Waits until a user has this value, and returns the last request for the user.
pub(super) async fn sees(provider: &FlipswitchProvider, service: &Service, id: &str, value: i64) -> Received {
    eventually(async || provider.flags(user(id)).await.int("f", 0) == value).await;
    service.asked_for(id).pop().unwrap()
}

/// Tests each row of the table in ADR-0008: what is sent with a request depends on its reason.
#[tokio::test]
async fn requests_send_the_tag_and_the_version_that_adr_0008_requires() {
    for (event, query) in [(FLAGD, FLAGD_QUERY), (FLIPT, FLIPT_QUERY)] {
        let service = Service::start(flagd()).await;
        let provider = service.connected().await;
        let opened = service.start_ups(2).await;
        assert!(opened.header("if-none-match").is_some() && opened.query().is_none(), "stream opened: {opened:?}");
        let new = sees(&provider, &service, "u", 1).await;
        assert!(new.header("if-none-match").is_none() && new.query().is_none(), "new context: {new:?}");

        let before = service.asked_for("_init_").len();
        service.value.store(2, Ordering::SeqCst);
        service.send(event);
        let start_up = service.start_ups(before + 1).await;
        let changed = sees(&provider, &service, "u", 2).await;
        for request in [&start_up, &changed] {
            assert!(request.header("if-none-match").is_some(), "event: {request:?}");
            assert_eq!(request.query(), Some(query), "event: {request:?}");
        }
        let new = sees(&provider, &service, "later", 2).await;
        assert!(new.header("if-none-match").is_none() && new.query().is_none(), "new context: {new:?}");

        // The stream ends properly, and a new connection follows.
        service.value.store(3, Ordering::SeqCst);
        let before = service.asked_for("_init_").len();
        service.end_streams();
        let reopened = service.start_ups(before + 1).await;
        assert!(reopened.header("if-none-match").is_some() && reopened.query().is_none(), "reopened: {reopened:?}");
        let last_id = service.streams_asked_for()[1].header("last-event-id").map(str::to_owned);
        assert!(last_id.is_some_and(|id| event.contains(&format!("id: {id}"))));
        let reread = sees(&provider, &service, "u", 3).await;
        assert!(reread.header("if-none-match").is_some() && reread.query().is_none(), "reopened: {reread:?}");
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn while_the_stream_fails_the_service_is_polled_without_a_version() {
    let service = Service::start(flagd()).await;
    *service.instead.lock().unwrap() = Some(Reply::Raw(Vec::new()));
    let provider = service.builder().polling_interval(Duration::from_millis(50)).max_sse_retries(1).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    is(&provider, ConnectionStatus::Error).await;
    eventually(async || provider.stats().polls >= 2 && provider.is_polling_active()).await;
    service.value.store(2, Ordering::SeqCst);
    sees(&provider, &service, "u", 2).await;
    for poll in service.asked_for("_init_").iter().skip(1) {
        assert!(poll.header("if-none-match").is_some() && poll.query().is_none(), "{poll:?}");
    }
    provider.shutdown().await;
}

#[tokio::test]
async fn comments_and_unknown_events_change_nothing() {
    let service = Service::start(flagd()).await;
    let provider = service.connected().await;
    // The first bytes show that the connection receives changes.
    service.send(KEEP_ALIVE);
    let mut events = provider.events();
    for unknown in [
        KEEP_ALIVE,
        "event: message\ndata: {\"type\":\"fullConfig\",\"flags\":[]}\n\n",
        "data: refetchEvaluation\n\n",
        "event: refetchEvaluation\ndata: {\"etag\":\"x\"}\n\n",
        "event: flag-updated\ndata: {\"flagKey\":\"f\"}\n\n",
        "data:\n\n",
    ] {
        service.send(unknown);
    }
    // The event is recognised by its type, regardless of the name of the envelope, and over several lines.
    service.value.store(2, Ordering::SeqCst);
    service.send("event: anything\r\ndata: {\"type\":\r\ndata: \"refetchEvaluation\"}\r\n\r\n");
    // This is the first event with a meaning.
    let before = until(&mut events, is_change_of_all).await;
    assert!(before.iter().all(|event| !matches!(event, ProviderEvent::ConfigurationChanged(_))), "{before:?}");
    assert_eq!(provider.flags(user("u")).await.int("f", 0), 2);
    // This event has a time, which the first one does not have.
    service.send(FLAGD);
    let is_dated = |event: &ProviderEvent| matches!(event, ProviderEvent::ConfigurationChanged(change) if change.timestamp.is_some());
    let between = until(&mut events, is_dated).await;
    assert!(!between.iter().any(is_change_of_all), "the change must be announced once: {between:?}");
    provider.shutdown().await;
}

#[tokio::test]
async fn streams_are_opened_and_closed_as_responses_advertise_them() {
    let service = Service::start(Value::Null).await;
    let provider = service.builder().polling_interval(Duration::from_millis(50)).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    eventually(async || provider.stats().polls >= 2).await;
    assert_eq!(provider.sse_status(), ConnectionStatus::Disconnected);
    assert!(provider.is_polling_active() && provider.health().state == HealthState::Polling);

    service.advertise(flagd());
    is(&provider, ConnectionStatus::Connected).await;
    eventually(async || !provider.is_polling_active() && provider.health().state == HealthState::Streaming).await;
    // A response with 304 has no streams, so the streams remain.
    let not_modified = provider.stats().not_modified;
    service.send("data: {\"type\":\"refetchEvaluation\"}\n\n");
    eventually(async || provider.stats().not_modified > not_modified).await;
    assert_eq!((provider.sse_status(), service.streams_asked_for().len()), (ConnectionStatus::Connected, 1));

    service.advertise(Value::Null);
    service.send(FLAGD);
    is(&provider, ConnectionStatus::Disconnected).await;
    eventually(async || provider.is_polling_active() && provider.health().state == HealthState::Polling).await;
    eventually(async || {
        service.events.receiver_count() == 0 || service.events.send(Bytes::from_static(b":\n")).is_err()
    })
    .await;
    service.value.store(2, Ordering::SeqCst);
    sees(&provider, &service, "u", 2).await;
    provider.shutdown().await;
}

#[tokio::test]
async fn without_polling_nothing_is_requested_in_the_background() {
    let service = Service::start(Value::Null).await;
    let interval = Duration::from_millis(20);
    let provider = service.builder().enable_polling_fallback(false).polling_interval(interval).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    let before = service.asked_for("_init_").len();
    // In this time, a poll would have been due.
    let began = Instant::now();
    eventually(async || provider.flags(user("u")).await.int("f", 0) == 1 && began.elapsed() > 5 * interval).await;
    assert_eq!((service.asked_for("_init_").len(), provider.is_polling_active()), (before, false));
    provider.shutdown().await;
}

#[tokio::test]
async fn without_realtime_updates_advertised_streams_are_not_opened() {
    let service = Service::start(flagd()).await;
    let builder = service.builder().enable_realtime(false).polling_interval(Duration::from_millis(20));
    let provider = builder.build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    eventually(async || provider.stats().polls >= 2).await;
    assert!(service.streams_asked_for().is_empty());
    provider.shutdown().await;
}

/// Our headers are sent only to the origin of the service.
#[tokio::test]
async fn a_stream_at_another_origin_receives_none_of_our_headers() {
    let elsewhere = Service::start(Value::Null).await;
    for streams in [
        json!([{"type": "sse", "url": format!("{}/x?token=secret", elsewhere.scripted.url())}]),
        json!([{"type": "sse", "endpoint": {"origin": elsewhere.scripted.url(), "requestUri": "/x?token=secret"}}]),
    ] {
        let service = Service::start(json!([flagd()[0], streams[0]])).await;
        let before = elsewhere.scripted.received().len();
        let provider = service
            .builder()
            .auth(Auth::Bearer("the-token-of-the-service".into()))
            .header("flagd-selector", "the-selector")
            .http_client(|| reqwest::Client::builder().user_agent("app"))
            .build()
            .unwrap();
        in_time(provider.ready(PATIENCE)).await.unwrap();
        is(&provider, ConnectionStatus::Connected).await;
        let own = service.streams_asked_for();
        assert_eq!(own[0].path, "/ofrep/v1/sse/");
        for own in own.iter().chain(&service.asked_for("_init_")) {
            assert_eq!(own.header("authorization"), Some("bearer the-token-of-the-service"), "{own:?}");
            assert_eq!(own.header("flagd-selector"), Some("the-selector"), "{own:?}");
            assert!(own.header("x-api-key").is_none() && !own.head.contains("x-flipswitch"), "{own:?}");
        }
        let foreign = elsewhere.scripted.received().split_off(before);
        assert_eq!(foreign.len(), 1);
        assert_eq!(
            (foreign[0].path.as_str(), foreign[0].header("accept")),
            ("/x?token=secret", Some("text/event-stream"))
        );
        for ours in ["the-token", "the-selector", "x-flipswitch", "x-api-key", "authorization"] {
            assert!(!foreign[0].head.contains(ours), "{:?}", foreign[0]);
        }
        // The events of this stream also count.
        service.value.store(2, Ordering::SeqCst);
        elsewhere.send(FLAGD);
        sees(&provider, &service, "u", 2).await;
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn default_headers_of_a_client_are_not_sent_to_another_origin() {
    let log = Log::of_this_thread();
    let elsewhere = Service::start(Value::Null).await;
    let service = Service::start(json!([{"type": "sse", "url": format!("{}/x", elsewhere.scripted.url())}])).await;
    let headers = || reqwest::header::HeaderMap::from_iter([("x-team".parse().unwrap(), "web".parse().unwrap())]);
    let provider = service
        .builder()
        .runtime(tokio::runtime::Handle::current())
        .max_sse_retries(1)
        .polling_interval(Duration::from_millis(50))
        .http_client(move || reqwest::Client::builder().default_headers(headers()))
        .build()
        .unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    eventually(async || provider.is_polling_active() && provider.stats().polls > 0).await;
    assert!(elsewhere.scripted.received().is_empty());
    let lines = log.lines();
    assert!(lines.iter().any(|line| line.contains("default headers of `http_client`")), "{lines:?}");
    provider.shutdown().await;
}

/// Changes arrive only while all streams are open.
#[tokio::test]
async fn several_streams_count_as_open_together() {
    let (first, second) = (Service::start(Value::Null).await, Service::start(Value::Null).await);
    *second.instead.lock().unwrap() = Some(Reply::Silence);
    let stream = |service: &Service| json!({"type": "sse", "url": format!("{}/sse", service.scripted.url())});
    let service = Service::start(json!([stream(&first), stream(&second)])).await;
    let provider = service.builder().max_sse_retries(1).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    eventually(async || first.events.receiver_count() == 1 && second.scripted.received().len() == 1).await;
    assert_eq!(provider.sse_status(), ConnectionStatus::Connecting);
    *second.instead.lock().unwrap() = None;
    provider.reconnect_sse();
    is(&provider, ConnectionStatus::Connected).await;

    // Each of the streams reports changes.
    provider.flags(user("u")).await;
    let mut events = provider.events();
    service.value.store(2, Ordering::SeqCst);
    first.send(FLAGD);
    second.send(FLAGD);
    until(&mut events, is_change_of_all).await;
    sees(&provider, &service, "u", 2).await;
    service.value.store(3, Ordering::SeqCst);
    second.send(FLIPT);
    sees(&provider, &service, "u", 3).await;

    *first.instead.lock().unwrap() = Some(Reply::status(503, ""));
    first.end_streams();
    is(&provider, ConnectionStatus::Error).await;
    eventually(async || provider.is_polling_active()).await;
    *first.instead.lock().unwrap() = None;
    provider.reconnect_sse();
    is(&provider, ConnectionStatus::Connected).await;
    eventually(async || !provider.is_polling_active()).await;
    provider.shutdown().await;
}

/// If every response of a service has a different URL, the provider must not request flags repeatedly.
#[tokio::test]
async fn a_new_url_in_each_response_causes_a_limited_number_of_requests() {
    let paths: [fn(usize) -> String; 2] = [|number| format!("/sse?token={number}"), |number| format!("/sse/{number}")];
    for path in paths {
        let service = Service::tokens(
            flagd(),
            move |_, number| json!([{"type": "sse", "endpoint": {"requestUri": path(number)}}]),
        )
        .await;
        let provider = service.connected().await;
        let is_settled = async || {
            let (asked, streams) = (service.asked_for("_init_"), service.streams_asked_for());
            let newest = service.scripted.received().iter().rposition(|it| it.body.contains("_init_"));
            newest.is_some_and(|newest| streams.last().is_some_and(|last| last.path == path(newest)))
                && asked.len() <= 4
                && provider.sse_status() == ConnectionStatus::Connected
        };
        eventually(is_settled).await;
        let asked = service.asked_for("_init_").len();
        service.value.store(2, Ordering::SeqCst);
        service.send(FLAGD);
        sees(&provider, &service, "u", 2).await;
        eventually(async || service.asked_for("_init_").len() > asked && is_settled().await).await;
        provider.shutdown().await;
    }
}

/// If the URL of a stream has expired, the stream gets a new URL.
#[tokio::test]
async fn a_refused_stream_causes_a_request_for_a_new_url() {
    let token = |number| if number == 0 { "expired" } else { "new" };
    let service = Service::tokens(
        flagd(),
        move |_, number| json!([{"type": "sse", "endpoint": {"requestUri": format!("/sse?token={}", token(number))}}]),
    )
    .await;
    let provider = service.builder().build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    is(&provider, ConnectionStatus::Connected).await;
    let queries: Vec<_> = service.streams_asked_for().iter().map(|it| it.query().unwrap().to_owned()).collect();
    assert_eq!(queries, ["token=expired", "token=new"]);
    assert_ne!(provider.health().state, HealthState::Unauthorized, "the key must not count as refused");
    provider.shutdown().await;
}

#[tokio::test]
async fn the_url_of_a_stream_does_not_appear_in_output_logs_or_errors() {
    const TOKEN: &str = "stream-secret-9b1f";
    const KEY: &str = "sk-5f0d1c7e9a3b-do-not-show";
    let page = Reply::Http(403, vec![("content-type", "text/html".to_owned())], b"<html>".to_vec());
    let replies = [
        Reply::status(404, ""),
        Reply::status(401, ""),
        page,
        Reply::json("{}"),
        Reply::Raw(b"nonsense\r\n\r\n".to_vec()),
        Reply::Http(307, vec![("location", format!("http://127.0.0.1:9/{TOKEN}"))], Vec::new()),
        Reply::Http(307, vec![("location", format!("/again/{TOKEN}"))], Vec::new()),
        Reply::status(204, ""),
    ];
    let mut services = Vec::new();
    for reply in replies {
        let service = Service::start(Value::Null).await;
        *service.instead.lock().unwrap() = Some(reply);
        let uri = format!("/{TOKEN}?token={TOKEN}");
        service.advertise(json!([
            {"type": "sse", "endpoint": {"requestUri": uri}},
            {"type": "sse", "url": format!("http://user:{TOKEN}@localhost:9{uri}")},
            {"type": "sse", "url": format!("ftp://{TOKEN}")},
        ]));
        services.push(service);
    }
    let urls: Vec<_> = services.iter().map(|service| format!("ofrep+{}", service.scripted.url())).collect();
    let endpoint = services[0].scripted.url();
    let headers = format!("Authorization=Bearer%20{KEY},X-Secret={KEY},{KEY},Host={KEY}");
    let environment =
        [("OFREP_ENDPOINT", endpoint.as_str()), ("OFREP_HEADERS", &headers), ("OFREP_TIMEOUT_MS", "soon")];
    let (output, said) = session(KEY, urls, &environment).await;
    assert!(output.status.success(), "{said}");
    for expected in ["TRACE", "hyper", "stream of changes failed", "entry=3", "entry=4", "OFREP_TIMEOUT_MS is ignored"]
    {
        assert!(said.contains(expected), "the session did not print {expected}: {said}");
    }
    for service in &services {
        assert!(
            service.streams_asked_for().iter().any(|request| request.path.contains(TOKEN)),
            "the stream must be opened"
        );
    }
    let shown: Vec<_> = said.lines().filter(|line| line.contains(TOKEN) || line.contains("5f0d1c7e9a3b")).collect();
    assert!(shown.is_empty(), "{shown:#?}");
}

/// Changes of the local service arrive over its event stream, even if events are split, without a replay, and after a 304.
#[tokio::test]
async fn changes_of_the_local_service_arrive_over_its_event_stream() {
    for fault in [
        None,
        Some(Fault::on(Endpoint::Stream).split_events()),
        Some(Fault::on(Endpoint::Stream).no_replay()),
        Some(Fault::on(Endpoint::Bulk).not_modified().after(2).times(2)),
    ] {
        let service =
            LocalServer::builder().flags(json!({"f": 1})).event_streams(true).api_key("k").start().await.unwrap();
        if let Some(fault) = fault.clone() {
            service.faults().add(fault).unwrap();
        }
        let builder = FlipswitchProvider::ofrep(service.url()).auth(Auth::Bearer("k".into()));
        let provider = builder.miss_wait(PATIENCE).stale_wait(PATIENCE).build().unwrap();
        in_time(provider.ready(PATIENCE)).await.unwrap();
        is(&provider, ConnectionStatus::Connected).await;
        for value in 2..5 {
            service.set_flag("f", value);
            eventually(async || provider.flags(user("u")).await.int("f", 0) == value).await;
        }
        let requests = service.requests();
        let paths: Vec<_> = requests.iter().map(|request| request.path.as_str()).collect();
        assert!(paths.contains(&"/ofrep/v1/sse/flags") && !paths.contains(&"/api/v1/flags/events"), "{paths:?}");
        assert_eq!((provider.stats().polls, provider.is_polling_active()), (0, false), "{fault:?}");
        provider.shutdown().await;
        eventually(async || service.streams() == 0).await;
    }
}

/// Flipswitch's own stream contains more information, so the provider does not replace it.
#[tokio::test]
async fn a_flipswitch_provider_keeps_its_own_stream() {
    for advertises in [false, true] {
        let service = LocalServer::builder().flags(json!({"f": 1})).event_streams(advertises).start().await.unwrap();
        let provider = support::events::connected(&service).await;
        let requests = service.requests();
        let streams: Vec<_> = requests.iter().filter(|request| request.method == "GET").map(|it| &it.path).collect();
        assert_eq!(streams, ["/api/v1/flags/events"]);
        provider.shutdown().await;
    }
}
