//! A service that is slow, fails, or rejects requests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use flipswitch::{Error, FlipswitchProvider, open_feature::EvaluationContext, serde_json::json};
use flipswitch_local::{Endpoint, Fault, LocalServer};
use futures_util::future::join_all;
use tokio::runtime::Handle;

use crate::support::{
    self, Log, eventually, in_time,
    scripted::{Reply, Scripted},
    user,
};

/// The default of `miss_wait`.
const MISS_WAIT: Duration = Duration::from_secs(1);

#[tokio::test]
async fn evaluations_of_a_silent_service_share_one_timeout() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    let service = Scripted::answering(Reply::Silence).await;
    let provider = FlipswitchProvider::builder("key")
        .base_url(service.url())
        .enable_realtime(false)
        .request_timeout(TIMEOUT)
        .build()
        .unwrap();
    let first = join_all((0..20).map(|id| {
        let provider = provider.clone();
        async move { provider.flags(&user(&format!("first-{id}"))).await }
    }));
    let began = Instant::now();
    for flags in in_time(first).await {
        assert!(matches!(flags.error(), Some(Error::Timeout)), "{:?}", flags.error());
    }
    assert!(began.elapsed() < 10 * TIMEOUT, "evaluations must share one wait: {:?}", began.elapsed());

    eventually(async || provider.stats().throttling.is_circuit_open).await;
    let before = service.received().len();
    let began = Instant::now();
    for id in 0..1_000 {
        let flags = provider.flags(&user(&format!("later-{id}"))).await;
        assert_eq!(flags.int("limit", 7), 7);
    }
    let each = began.elapsed() / 1_000;
    assert!(each < Duration::from_millis(1), "{each:?} each");
    assert!(service.received().len() - before <= 3, "at most one round may be sent in the meantime");
}

#[tokio::test]
async fn one_slow_context_does_not_delay_others() {
    let service = Scripted::start(|request, _| {
        if request.body.contains("slow") {
            Reply::Silence
        } else {
            Reply::json(json!({"flags": [{"key": "f", "value": true}]}))
        }
    })
    .await;
    let provider = FlipswitchProvider::builder("key")
        .base_url(service.url())
        .enable_realtime(false)
        .request_timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    let slow = tokio::spawn({
        let provider = provider.clone();
        async move { provider.flags(&user("slow")).await }
    });
    eventually(async || service.received().iter().any(|request| request.body.contains("slow"))).await;
    let mut id = 0;
    while !slow.is_finished() || id < 200 {
        id += 1;
        let flags = in_time(provider.flags(&user(&id.to_string()))).await;
        assert!(flags.bool("f", false), "user {id}: {:?}", flags.error());
    }
    assert!(matches!(slow.await.unwrap().error(), Some(Error::Timeout)));
}

#[tokio::test]
async fn the_provider_recovers_without_evaluations() {
    let service = Scripted::start(|_, before| match before {
        0 | 1 => Reply::status(503, ""),
        _ => Reply::json(json!({"flags": [{"key": "f", "value": true}]})),
    })
    .await;
    let provider = FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false).build().unwrap();
    assert!(in_time(provider.flags(&user("first"))).await.error().is_some());
    // The provider retries without evaluations.
    in_time(provider.ready(support::PATIENCE)).await.unwrap();
    eventually(async || provider.flags(&user("first")).await.bool("f", false)).await;
}

#[tokio::test]
async fn a_request_is_retried_if_its_connection_closes() {
    let closed = Arc::new(AtomicBool::new(false));
    let service = Scripted::start(move |request, _| {
        if request.body.contains("\"u\"") && !closed.swap(true, Ordering::Relaxed) {
            Reply::Raw(vec![])
        } else {
            Reply::json(json!({"flags": [{"key": "f", "value": true}]}))
        }
    })
    .await;
    let provider = FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false).build().unwrap();
    assert!(in_time(provider.flags(&user("u"))).await.bool("f", false));
    assert_eq!(service.received().iter().filter(|request| request.body.contains("\"u\"")).count(), 2);
}

#[tokio::test]
async fn request_timeout_does_not_end_the_stream() {
    const TIMEOUT: Duration = Duration::from_millis(50);
    let service = LocalServer::builder().heartbeat(Duration::from_millis(10)).start().await.unwrap();
    let provider = support::builder(&service)
        .request_timeout(TIMEOUT)
        .http_client(|| reqwest::Client::builder().timeout(TIMEOUT).read_timeout(TIMEOUT))
        .build()
        .unwrap();
    provider.flags(&user("u")).await;
    eventually(async || service.streams() == 1).await;
    let opened = Instant::now();
    eventually(async || opened.elapsed() > 6 * TIMEOUT).await;
    let connections = service.requests().iter().filter(|request| request.method == "GET").count();
    assert_eq!((connections, service.streams()), (1, 1));
}

#[tokio::test]
async fn evaluations_add_no_requests_to_a_failing_service() {
    let service = Scripted::answering(Reply::status(503, "")).await;
    let provider = FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false).build().unwrap();
    let mut id = 0;
    let mut read_some = async || {
        for _ in 0..50 {
            id += 1;
            provider.flags(&user(&id.to_string())).await;
        }
    };
    eventually(async || {
        read_some().await;
        provider.stats().throttling.is_circuit_open
    })
    .await;
    let before = service.received().len();
    eventually(async || {
        read_some().await;
        service.received().len() > before + 6
    })
    .await;
    // From now on, there are rounds of up to three requests, at doubling intervals.
    let times: Vec<_> = service.received().split_off(before).iter().map(|request| request.at).collect();
    assert!(times[3] - times[0] >= Duration::from_millis(990), "{times:?}");
    assert!(times[6] - times[3] >= Duration::from_millis(1_990), "{times:?}");
}

#[tokio::test]
async fn rate_limits_are_respected_and_cached_users_keep_their_values() {
    let service = Scripted::start(|request, _| {
        if request.body.contains("known") || request.body.contains("_init_") {
            Reply::json(json!({"flags": [{"key": "f", "value": true}]}))
        } else {
            Reply::status(429, "").with("retry-after", 100)
        }
    })
    .await;
    let provider =
        support::unattended(service.url(), Duration::from_millis(1)).stale_wait(Duration::ZERO).build().unwrap();
    assert!(in_time(provider.flags(&user("known"))).await.bool("f", false));
    assert!(matches!(in_time(provider.flags(&user("new"))).await.error(), Some(Error::RateLimited { .. })));
    let before = service.received().len();
    eventually(async || {
        let flags = provider.flags(&user("known")).await;
        assert!(flags.bool("f", false));
        flags.is_stale() && matches!(flags.error(), Some(Error::RateLimited { .. }))
    })
    .await;
    assert_eq!(service.received().len(), before, "no request may be sent before `Retry-After` is over");

    // Another provider is not affected, because each provider has its own wait.
    let other = FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false).build().unwrap();
    assert!(in_time(other.flags(&user("known"))).await.bool("f", false));
}

#[tokio::test]
async fn a_rejected_context_pauses_only_itself() {
    let service = Scripted::start(|request, _| {
        if request.body.contains("targetingKey") {
            Reply::json(json!({"flags": [{"key": "f", "value": true}]}))
        } else {
            Reply::status(400, json!({"errorCode": "TARGETING_KEY_MISSING"}))
        }
    })
    .await;
    let provider = FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false).build().unwrap();
    let anonymous = EvaluationContext::default();
    for _ in 0..100 {
        let flags = in_time(provider.flags(&anonymous)).await;
        assert!(matches!(flags.error(), Some(Error::Evaluation { code, .. }) if code == "TARGETING_KEY_MISSING"));
    }
    assert!(in_time(provider.flags(&user("u"))).await.bool("f", false));
    let asked = service.received().iter().filter(|request| !request.body.contains("targetingKey")).count();
    assert!(asked <= 2, "{asked} requests for a context that is refused");
}

#[tokio::test]
async fn a_rejected_context_is_logged_once_with_a_remedy() {
    let cases = [
        (400, json!({"errorCode": "TARGETING_KEY_MISSING"}), "set a targeting key"),
        (400, json!({"errorCode": "INVALID_CONTEXT"}), "fields"),
        (400, json!({"errorCode": "ODD"}), "log of the flag service"),
        (413, json!({}), "send a smaller context"),
    ];
    for (status, body, remedy) in cases {
        let service = Scripted::answering(Reply::status(status, body.clone())).await;
        let log = Log::of_this_thread();
        let provider = FlipswitchProvider::builder("key")
            .base_url(service.url())
            .enable_realtime(false)
            // The provider runs on this thread, whose log is read.
            .runtime(Handle::current())
            .build()
            .unwrap();
        for user_id in ["a", "b", "c"] {
            assert!(in_time(provider.flags(&user(user_id))).await.error().is_some());
        }
        provider.shutdown().await;
        let lines = log.lines();
        let warned: Vec<_> = lines.iter().filter(|line| line.contains("rejects a context")).collect();
        let code = body["errorCode"].as_str().map_or_else(|| status.to_string(), str::to_owned);
        assert!(warned.len() == 1 && warned[0].contains(&code) && warned[0].contains(remedy), "{lines:?}");
    }
}

/// Starts a service that responds immediately for the start-up context, and after four seconds for others.
async fn slow_service() -> LocalServer {
    let service = LocalServer::start(json!({"f": true})).await.unwrap();
    let slow = Fault::on(Endpoint::Bulk).delay(Duration::from_secs(4)).except_targeting_key("_init_");
    service.faults().add(slow).unwrap();
    service
}

/// Returns a provider that has started, with default waits and without a stream.
async fn with_default_waits(service: &LocalServer) -> FlipswitchProvider {
    let builder = FlipswitchProvider::builder(service.api_key()).base_url(service.url());
    // Flags stay fresh for the whole test, even on a busy machine.
    let builder = builder.enable_realtime(false).polling_interval(Duration::from_secs(3_600));
    let provider = builder.build().unwrap();
    in_time(provider.ready(support::PATIENCE)).await.unwrap();
    provider
}

#[tokio::test]
async fn a_new_user_of_a_slow_service_waits_for_miss_wait_and_gets_the_flags_later() {
    let service = slow_service().await;
    let provider = with_default_waits(&service).await;
    let began = Instant::now();
    let flags = in_time(provider.flags(&user("new"))).await;
    let waited = began.elapsed();
    assert!(!flags.bool("f", false) && matches!(flags.error(), Some(Error::Timeout)), "{:?}", flags.error());
    assert!(waited >= MISS_WAIT && waited < 2 * MISS_WAIT, "{waited:?}");
    assert_eq!(provider.stats().unavailable, 1);
    eventually(async || provider.flags(&user("new")).await.bool("f", false)).await;
    assert!(!provider.flags(&user("new")).await.is_stale());
    assert_eq!(support::evaluations(&service), 1, "the first request must continue");
    provider.shutdown().await;
}

#[tokio::test]
async fn no_user_of_a_slow_service_waits_longer_than_miss_wait() {
    const USERS: u64 = 400;
    let service = slow_service().await;
    let provider = with_default_waits(&service).await;
    let read = (0..USERS).map(|id| {
        let provider = provider.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            let flags = provider.flags(&user(&id.to_string())).await;
            (flags.error().cloned(), began.elapsed())
        })
    });
    let mut longest = Duration::ZERO;
    for (id, read) in in_time(join_all(read)).await.into_iter().enumerate() {
        let (error, waited) = read.unwrap();
        assert!(matches!(error, Some(Error::Timeout | Error::QueueFull)), "user {id}: {error:?}");
        longest = longest.max(waited);
    }
    // All waits end at the same time, on a busy machine.
    assert!(longest >= MISS_WAIT && longest < 2 * MISS_WAIT, "{longest:?}");
    assert_eq!(provider.stats().unavailable, USERS);
    // The service is slow but not down, so no request is cancelled.
    let ids = || (0..USERS).map(|id| id.to_string());
    eventually(async || {
        let served = join_all(ids().map(|id| {
            let provider = provider.clone();
            async move { provider.flags(&user(&id)).await.bool("f", false) }
        }));
        served.await.into_iter().all(|is_served| is_served)
    })
    .await;
    assert_eq!(support::evaluations(&service) as u64, USERS, "each user must cause one request");
    let throttling = provider.stats().throttling;
    assert!(!throttling.is_circuit_open && throttling.backed_off_contexts == 0, "{throttling:?}");
    provider.shutdown().await;
}
