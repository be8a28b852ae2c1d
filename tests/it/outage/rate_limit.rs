//! A service that limits the rate of requests, and more users than it allows.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use flipswitch::{Error, FlipswitchProvider, serde_json::json};
use flipswitch_local::{Endpoint, Fault, LocalServer};
use tokio::{sync::Semaphore, task::JoinSet, time::MissedTickBehavior};

use crate::support::{
    PATIENCE, evaluations, eventually, in_time,
    scripted::{Reply, Scripted},
    user,
};

/// The number of requests per second that the service allows. Three times as many are possible even on a busy machine.
const ALLOWED: usize = 40;

/// The number of new users per second.
const DEMAND: u32 = 120;

/// Reads the flags of new users, whose numbers begin here, for some time.
async fn demand(provider: &FlipswitchProvider, mut id: u64, time: Duration) {
    let mut every = tokio::time::interval(Duration::from_secs(1) / DEMAND);
    every.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut reads = JoinSet::new();
    let began = Instant::now();
    while began.elapsed() < time {
        every.tick().await;
        id += 1;
        let provider = provider.clone();
        reads.spawn(async move { provider.flags(&user(&id.to_string())).await.bool("f", false) });
        while reads.try_join_next().is_some() {}
    }
    reads.abort_all();
}

/// Returns a provider that has started, without a stream.
async fn started(url: String) -> FlipswitchProvider {
    let provider = FlipswitchProvider::builder("key").base_url(url).enable_realtime(false).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    provider
}

/// The first two seconds, in which the provider learns the limit, are not counted: they are a small part of a minute, but a large
/// part of this test.
#[tokio::test]
async fn requests_use_the_rate_limit_and_rarely_exceed_it() {
    const TIME: Duration = Duration::from_secs(15);
    let of_service = async |retry_after: Option<&str>| {
        let service = LocalServer::start(json!({"f": true})).await.unwrap();
        let provider = started(service.url()).await;
        let mut limit = Fault::on(Endpoint::Bulk).rate_limit(ALLOWED);
        if let Some(seconds) = retry_after {
            limit = limit.header("retry-after", seconds);
        }
        let limit = service.faults().add(limit).unwrap();
        let counts = || (evaluations(&service) as u64, service.faults().applied(limit));
        demand(&provider, 0, Duration::from_secs(2)).await;
        let (sent_at_first, limited_at_first) = counts();
        demand(&provider, 1_000_000, TIME).await;
        let (sent, limited) = counts();
        assert!(limited_at_first > 0, "the demand must be above the limit");
        assert!(limited_at_first <= 2 * ALLOWED as u64, "{limited_at_first} were limited at first");
        let (sent, limited) = (sent - sent_at_first, limited - limited_at_first);
        let four_fifths = ALLOWED as u64 * TIME.as_secs() * 4 / 5;
        assert!(sent - limited >= four_fifths, "Retry-After {retry_after:?}: {} answers", sent - limited);
        assert!(limited * 20 <= sent, "Retry-After {retry_after:?}: {limited} of {sent} were limited");
        let throttling = provider.stats().throttling;
        assert!(throttling.requests_per_second.is_some() && !throttling.is_circuit_open, "{throttling:?}");
        assert_eq!(throttling.backed_off_contexts, 0, "a rate limit must not back off a context");
        provider.shutdown().await;
    };
    tokio::join!(of_service(None), of_service(Some("1")));
}

#[tokio::test]
async fn no_request_is_sent_before_retry_after() {
    const RETRY_AFTER: Duration = Duration::from_secs(1);
    /// Requests that were sent before the response arrived.
    const ON_THE_WAY: Duration = Duration::from_millis(200);
    // The times of requests, and whether the requests were limited.
    let received = Arc::new(Mutex::new(Vec::<(Instant, bool)>::new()));
    let service = {
        let received = Arc::clone(&received);
        Scripted::start(move |request, _| {
            let mut received = received.lock().unwrap();
            let recent = received.iter().rev().take_while(|(at, _)| request.at.duration_since(*at) < RETRY_AFTER);
            let is_limited = recent.filter(|(_, is_limited)| !is_limited).count() >= ALLOWED;
            received.push((request.at, is_limited));
            match is_limited {
                true => Reply::status(429, "").with("retry-after", RETRY_AFTER.as_secs()),
                false => Reply::json(json!({"flags": [{"key": "f", "value": true}]})),
            }
        })
        .await
    };
    let provider = started(service.url()).await;
    demand(&provider, 0, 4 * RETRY_AFTER).await;
    provider.shutdown().await;
    let received = received.lock().unwrap();
    let limited: Vec<_> = received.iter().filter(|(_, is_limited)| *is_limited).map(|(at, _)| *at).collect();
    assert!(!limited.is_empty(), "the demand must be above the limit");
    let mut pauses = 0;
    for pair in received.windows(2) {
        let [(before, _), (next, _)] = pair else { unreachable!("windows of two") };
        for at in &limited {
            let early = *next > *at + ON_THE_WAY && *next < *at + RETRY_AFTER;
            assert!(!early, "a request {:?} after a limited one", *next - *at);
        }
        pauses += usize::from(*next - *before >= RETRY_AFTER - ON_THE_WAY);
    }
    assert!(pauses > 0, "requests must continue after the pause");
}

#[tokio::test]
async fn queued_evaluations_return_the_rate_limit_as_their_error() {
    let released = Arc::new(Semaphore::new(0));
    let service = {
        let released = Arc::clone(&released);
        Scripted::start(move |request, _| {
            if request.body.contains("_init_") {
                return Reply::json(json!({"flags": []}));
            }
            Reply::Held(Arc::clone(&released), Box::new(Reply::status(429, "").with("retry-after", 100)))
        })
        .await
    };
    let builder = FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false);
    let provider = builder.max_concurrent_requests(1).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    let read = |id: &'static str| {
        let provider = provider.clone();
        tokio::spawn(async move { provider.flags(&user(id)).await.error().cloned() })
    };
    let sent = read("sent");
    eventually(async || evaluations_received(&service) == 1).await;
    let waiting = read("waiting");
    eventually(async || provider.stats().throttling.queued_requests == 1).await;
    released.add_permits(1);
    for (read, name) in [(sent, "sent"), (waiting, "waiting")] {
        let error = in_time(read).await.unwrap();
        assert!(matches!(error, Some(Error::RateLimited { .. })), "{name}: {error:?}");
    }
    assert_eq!(evaluations_received(&service), 1);
    provider.shutdown().await;
}

/// Returns the number of requests for users that a service has received.
fn evaluations_received(service: &Scripted) -> usize {
    service.received().iter().filter(|request| !request.body.contains("_init_")).count()
}
