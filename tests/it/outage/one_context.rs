//! The service fails for one context and works for all others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use flipswitch::{ConnectionStatus, Error, Flags, FlipswitchProvider, HealthState, serde_json::json};
use flipswitch_local::{Endpoint, Fault, LocalServer};
use futures_util::future::join_all;
use tokio::runtime::Handle;

use crate::support::{
    self, Log, PATIENCE, eventually,
    faults::{Row, service},
    in_time, user,
};

/// Reads the flags of these users at the same time.
async fn read_all(provider: &FlipswitchProvider, ids: &[String]) -> Vec<Flags> {
    in_time(join_all(ids.iter().map(|id| async { provider.flags(&user(id)).await }))).await
}

#[tokio::test]
async fn a_service_that_fails_for_the_start_up_context_serves_all_users() {
    let service = LocalServer::start(json!({"f": true})).await.unwrap();
    let fault = Fault::on(Endpoint::Bulk).status(500).for_targeting_key("_init_");
    let fault = service.faults().add(fault).unwrap();
    let provider = support::provider(&service);
    let context = user("first");
    let (ready, first) = tokio::join!(provider.ready(PATIENCE), provider.flags(&context));
    ready.unwrap();
    assert!(first.bool("f", false), "{:?}", first.error());
    // Waits until the start-up context was requested at startup, and again after its backoffs.
    let mut id = 0;
    while id < 150 || service.faults().applied(fault) < 3 {
        id += 1;
        let flags = in_time(provider.flags(&user(&id.to_string()))).await;
        assert!(flags.bool("f", false) && !flags.is_stale(), "user {id}: {:?}", flags.error());
        let health = provider.health();
        assert!(health.is_ready() && health.state != HealthState::Stale, "user {id}: {health:?}");
        assert!(!health.throttling.is_circuit_open, "user {id}: {health:?}");
    }
    eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;
    assert_eq!(provider.health().state, HealthState::Streaming);
    assert!(service.faults().applied(fault) <= 8, "requests for the start-up context must back off");
    provider.shutdown().await;
}

#[tokio::test]
async fn a_service_that_fails_for_one_user_serves_all_others() {
    const FAILING: &str = "poison";
    let log = Log::of_this_thread();
    let service = LocalServer::start(json!({"f": true, "kill": false})).await.unwrap();
    let fault = Fault::on(Endpoint::Bulk).status(500).for_targeting_key(FAILING);
    let fault = service.faults().add(fault).unwrap();
    // The provider runs on this thread, whose log is read.
    let provider = support::builder(&service).runtime(Handle::current()).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;

    let hostile = tokio::spawn({
        let provider = provider.clone();
        async move {
            loop {
                let flags = provider.flags(&user(FAILING)).await;
                assert!(!flags.bool("f", false), "this context has no flags");
                assert!(matches!(flags.error(), Some(Error::Status(status)) if *status == 500), "{:?}", flags.error());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    let is_healthy = |provider: &FlipswitchProvider| {
        let health = provider.health();
        let throttling = health.throttling;
        assert_eq!(health.state, HealthState::Streaming, "{health:?}");
        assert!(!throttling.is_circuit_open && throttling.backed_off_contexts <= 1, "{health:?}");
    };
    let known: Vec<_> = (0..200).map(|id| format!("known-{id}")).collect();
    for (id, flags) in known.iter().zip(read_all(&provider, &known).await) {
        assert!(flags.bool("f", false), "{id}: {:?}", flags.error());
    }
    let (is_over, started) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let newcomers = tokio::spawn({
        let (provider, is_over, started) = (provider.clone(), Arc::clone(&is_over), Arc::clone(&started));
        async move {
            let mut id = 0;
            while id < 300 || !is_over.load(Ordering::Relaxed) {
                id += 1;
                let flags = in_time(provider.flags(&user(&format!("new-{id}")))).await;
                assert!(flags.bool("f", false) && !flags.is_stale(), "user {id}: {:?}", flags.error());
                is_healthy(&provider);
                started.store(id >= 100, Ordering::Relaxed);
            }
        }
    });
    eventually(async || started.load(Ordering::Relaxed)).await;
    let switched = Instant::now();
    service.set_flag("kill", true);
    eventually(async || {
        let read = read_all(&provider, &known).await;
        assert!(read.iter().all(|flags| flags.bool("f", false)), "all values must remain");
        read.iter().all(|flags| flags.bool("kill", false))
    })
    .await;
    let took = switched.elapsed();
    assert!(took < Duration::from_secs(5), "the change reached the last user after {took:?}");
    // Requests fail at first, after the change or the first wait, and finally after a wait of two seconds.
    eventually(async || service.faults().applied(fault) >= 3).await;
    eventually(async || provider.stats().throttling.backed_off_contexts == 1).await;
    is_over.store(true, Ordering::Relaxed);
    in_time(newcomers).await.unwrap();
    assert!(!hostile.is_finished(), "{hostile:?}");
    hostile.abort();
    is_healthy(&provider);
    assert!(service.faults().applied(fault) <= 8, "reads of a failing context must not send requests");
    provider.shutdown().await;

    let lines = log.lines();
    assert!(lines.iter().any(|line| line.contains("500")), "the log must contain the kind of the failure: {lines:?}");
    assert!(!lines.iter().any(|line| line.contains(FAILING)), "{lines:?}");
    assert!(lines.len() <= 2, "{lines:?}");
}

/// Failures are fast, and the responses that show that the service works are slow.
#[tokio::test]
async fn failing_invented_contexts_do_not_open_the_breaker_of_a_slow_service() {
    let service = LocalServer::start(json!({"f": true})).await.unwrap();
    let provider = support::builder(&service).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;
    let on = || Fault::on(Endpoint::Bulk);
    let failing = service.faults().add(on().status(500).for_attribute("made-up")).unwrap();
    service.faults().add(on().delay(Duration::from_secs(3))).unwrap();
    let hostile = tokio::spawn({
        let provider = provider.clone();
        async move {
            for id in 0.. {
                let context = user(&id.to_string()).with_custom_field("made-up", true);
                assert!(provider.flags(&context).await.error().is_some());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    eventually(async || service.faults().applied(failing) >= 3).await;
    for id in 0..3 {
        let flags = in_time(provider.flags(&user(&format!("new-{id}")))).await;
        assert!(flags.bool("f", false), "user {id}: {:?}", flags.error());
        assert!(!provider.stats().throttling.is_circuit_open);
    }
    assert!(!hostile.is_finished(), "{hostile:?}");
    hostile.abort();
    provider.shutdown().await;
}

/// A round of requests determines whether the circuit breaker opens. If the stream opens in the meantime, the round continues.
#[tokio::test]
async fn a_stream_that_opens_while_contexts_fail_does_not_open_the_breaker() {
    let service = service(1).await;
    let row = Row::new(support::builder(&service));
    row.opens(&service, 1).await;
    let provider = &row.provider;
    let on = || Fault::on(Endpoint::Bulk);
    service.faults().add(on().status(500).for_attribute("made-up")).unwrap();
    let delayed = service.faults().add(on().delay(Duration::from_secs(1))).unwrap();
    for id in 0..3 {
        let context = user(&id.to_string()).with_custom_field("made-up", true);
        assert!(in_time(provider.flags(&context)).await.error().is_some());
    }
    // The round requests the start-up context.
    eventually(async || service.faults().applied(delayed) >= 1).await;
    provider.reconnect_sse();
    eventually(async || provider.stats().reconnects == 1).await;
    let read = tokio::spawn({
        let provider = provider.clone();
        async move { provider.flags(&user("new")).await.int("f", 0) }
    });
    eventually(async || {
        assert!(!provider.stats().throttling.is_circuit_open);
        read.is_finished()
    })
    .await;
    assert_eq!(read.await.unwrap(), 1);
    provider.shutdown().await;
}
