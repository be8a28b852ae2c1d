//! Many new users at the same time, and a service that is healthy but slow.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use flipswitch::{Error, FlipswitchProvider, FlipswitchProviderBuilder, serde_json::json};
use flipswitch_local::{Endpoint, Fault, LocalServer, RecordedRequest};
use futures_util::future::join_all;

use crate::support::{PATIENCE, eventually, in_time, user};

/// The default of `miss_wait`.
const MISS_WAIT: Duration = Duration::from_secs(1);

/// The margin for delays on a busy machine.
const LATE: Duration = Duration::from_secs(2);

/// Starts a service that takes 200 ms for a response, and handles 64 requests at the same time.
async fn service() -> LocalServer {
    let service = LocalServer::start(json!({"f": true})).await.unwrap();
    let busy = Fault::on(Endpoint::Bulk).delay(Duration::from_millis(200)).concurrency(64);
    service.faults().add(busy).unwrap();
    service
}

/// Returns a provider that has received the flags of the start-up context, so this request does not count later.
async fn started(
    service: &LocalServer,
    set: impl Fn(FlipswitchProviderBuilder) -> FlipswitchProviderBuilder,
) -> FlipswitchProvider {
    let builder = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).enable_realtime(false);
    let provider = set(builder).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    provider
}

/// Returns the requests for each user.
fn requests(service: &LocalServer) -> HashMap<String, Vec<Instant>> {
    let mut requests = HashMap::<_, Vec<_>>::new();
    for RecordedRequest { body, at, .. } in service.requests() {
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        if let Some(id) = body["context"]["targetingKey"].as_str().filter(|id| *id != "_init_") {
            requests.entry(id.to_owned()).or_default().push(at);
        }
    }
    requests
}

/// Tests 1 000 users instead of 3 000, which take a third of the time. Half of the 64 concurrent requests may be for unknown
/// contexts, so the service handles 160 of them per second.
#[tokio::test]
async fn every_user_gets_the_flags_or_the_defaults_after_miss_wait() {
    const USERS: usize = 1_000;
    let service = service().await;
    let provider = started(&service, |builder| builder).await;
    let reads = (0..USERS).map(|id| {
        let provider = provider.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            let flags = provider.flags(&user(&id.to_string())).await;
            (flags.bool("f", false), flags.error().cloned(), began.elapsed())
        })
    });
    let mut waiting = Vec::new();
    for (id, read) in in_time(join_all(reads)).await.into_iter().enumerate() {
        let (value, error, waited) = read.unwrap();
        assert!(waited < MISS_WAIT + LATE, "user {id} waited {waited:?}");
        if !value {
            assert!(matches!(error, Some(Error::Timeout | Error::QueueFull)), "user {id}: {error:?}");
            assert!(waited >= MISS_WAIT, "user {id} did not wait: {waited:?}");
            waiting.push(id);
        }
    }
    assert_eq!(provider.stats().unavailable, waiting.len() as u64);
    // Each later read of a user joins the request in the queue.
    eventually(async || {
        let read = waiting.iter().map(|id| {
            let context = user(&id.to_string());
            let provider = provider.clone();
            async move { provider.flags(&context).await.bool("f", false) }
        });
        join_all(read).await.into_iter().all(|value| value)
    })
    .await;
    let requests = requests(&service);
    assert_eq!(requests.len(), USERS);
    for (id, sent) in requests {
        assert_eq!(sent.len(), 1, "user {id}: {sent:?}");
    }
    assert!(!provider.stats().throttling.is_circuit_open);
    provider.shutdown().await;
}

#[tokio::test]
async fn requests_that_no_evaluation_waits_for_leave_the_queue() {
    const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
    const USERS: usize = 1_000;
    let service = service().await;
    let provider = started(&service, |builder| builder.request_timeout(REQUEST_TIMEOUT)).await;
    let read = |id: usize| {
        let provider = provider.clone();
        async move { provider.flags(&user(&id.to_string())).await.bool("f", false) }
    };
    let began = Instant::now();
    in_time(join_all((0..USERS).map(read))).await;
    assert!(provider.stats().throttling.queued_requests > 0, "the service cannot handle all requests in this time");
    eventually(async || provider.stats().throttling.queued_requests == 0).await;
    assert!(began.elapsed() < REQUEST_TIMEOUT + LATE, "{:?}", began.elapsed());
    let sent = requests(&service);
    assert!(sent.len() < USERS, "some requests must have left the queue");
    for (id, sent) in &sent {
        assert_eq!(sent.len(), 1, "user {id}: {sent:?}");
        let waited = sent[0].saturating_duration_since(began);
        assert!(waited < REQUEST_TIMEOUT + LATE, "user {id}: its request was sent after {waited:?}");
    }
    // This is not a failure of the service, and the next read gets the flags.
    let left = (0..USERS).find(|id| !sent.contains_key(&id.to_string())).unwrap();
    assert!(in_time(read(left)).await, "user {left}");
    let throttling = provider.stats().throttling;
    assert!(!throttling.is_circuit_open && throttling.backed_off_contexts == 0, "{throttling:?}");
    provider.shutdown().await;
}
