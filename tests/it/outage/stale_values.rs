//! The service is slow or down: which values are served, for how long, and how the provider recovers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use flipswitch::{FlipswitchProvider, serde_json::json};
use flipswitch_local::LocalServer;

use crate::support::{
    self, builder, eventually, in_time, reserved_port,
    scripted::{Reply, Scripted},
    user,
};

#[tokio::test]
async fn an_override_file_takes_precedence_over_the_service_and_works_without_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, json!({"theme": "mine", "new": true}).to_string()).unwrap();
    let service = LocalServer::start(json!({"theme": "theirs", "limit": 10})).await.unwrap();
    let provider = builder(&service).override_file(file.path()).build().unwrap();
    let log = support::Log::of_this_thread();
    in_time(provider.ready(support::PATIENCE)).await.unwrap();
    let told = log.lines().into_iter().filter(|line| line.contains("OVERRIDDEN")).collect::<Vec<_>>();
    assert!(matches!(told.as_slice(), [line] if line.contains("theme") && line.contains("new")), "{told:?}");
    let flags = provider.flags(&user("alice")).await;
    assert_eq!((flags.string("theme", "-"), flags.int("limit", 0), flags.bool("new", false)), ("mine", 10, true));
    assert_eq!(flags.evaluation("theme").unwrap().reason, "OVERRIDE");
    // A change of the overridden flag has no effect, and a change of another flag has.
    service.set_flag("theme", "other");
    service.set_flag("limit", 20);
    eventually(async || provider.flags(&user("alice")).await.int("limit", 0) == 20).await;
    assert_eq!(provider.flags(&user("alice")).await.string("theme", "-"), "mine");
    provider.shutdown().await;

    let nothing = FlipswitchProvider::builder("key").base_url(format!("http://{}", support::closed_port()));
    let values = json!({"limit": 5, "theme": "bootstrap"});
    let provider = nothing.bootstrap(values).override_file(file.path()).build().unwrap();
    let flags = provider.flags(&user("alice")).await;
    assert_eq!((flags.string("theme", "-"), flags.int("limit", 0), flags.bool("new", false)), ("mine", 5, true));
    provider.shutdown().await;
}

#[tokio::test]
async fn cached_users_keep_their_values_until_the_service_is_back() {
    let address = reserved_port();
    let service = LocalServer::builder().flags(json!({"on": true})).listen(address).start().await.unwrap();
    let provider = builder(&service).polling_interval(Duration::from_millis(1)).build().unwrap();
    assert!(in_time(provider.flags(&user("known"))).await.bool("on", false));
    in_time(service.shutdown()).await;

    eventually(async || {
        let flags = provider.flags(&user("known")).await;
        assert!(flags.bool("on", false), "the last known value");
        flags.is_stale() && flags.error().is_some()
    })
    .await;
    let began = std::time::Instant::now();
    for _ in 0..1_000 {
        assert!(provider.flags(&user("known")).await.bool("on", false));
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?} for a thousand", began.elapsed());
    let unknown = in_time(provider.flags(&user("new"))).await;
    assert!(!unknown.bool("on", false) && unknown.error().is_some());

    let service = LocalServer::builder().flags(json!({"on": false})).listen(address).start().await.unwrap();
    eventually(async || {
        let flags = provider.flags(&user("known")).await;
        !flags.bool("on", true) && !flags.is_stale()
    })
    .await;
    assert!(in_time(provider.flags(&user("new"))).await.error().is_none());
    drop(service);
}

#[tokio::test]
async fn a_slow_service_delays_a_stale_read_by_at_most_stale_wait() {
    let service = Scripted::start(|_, before| match before {
        // The start-up request and the request of the first evaluation.
        0 | 1 => Reply::json(json!({"flags": [{"key": "on", "value": true}]})),
        _ => Reply::Silence,
    })
    .await;
    let provider = support::unattended(service.url(), Duration::from_millis(1))
        .request_timeout(10 * support::PATIENCE)
        .stale_wait(Duration::from_millis(20))
        .build()
        .unwrap();
    provider.ready(support::PATIENCE).await.unwrap();
    assert!(in_time(provider.flags(&user("u"))).await.bool("on", false));
    eventually(async || {
        let flags = provider.flags(&user("u")).await;
        assert!(flags.bool("on", false));
        flags.is_stale() && flags.error().is_none()
    })
    .await;
    let asked = service.received().len();
    for _ in 0..100 {
        assert!(in_time(provider.flags(&user("u"))).await.is_stale());
    }
    assert_eq!(service.received().len(), asked, "one request must continue, and no read may start another");
    assert!(provider.stats().stale_served > 100);
}

#[tokio::test]
async fn values_older_than_max_stale_are_not_served() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let provider = builder(&service)
        .enable_realtime(false)
        .polling_interval(Duration::from_millis(1))
        .max_stale(Duration::from_millis(50))
        .build()
        .unwrap();
    assert!(in_time(provider.flags(&user("u"))).await.bool("on", false));
    in_time(service.shutdown()).await;
    eventually(async || !provider.flags(&user("u")).await.bool("on", false)).await;
    assert!(provider.flags(&user("u")).await.error().is_some());
}

#[tokio::test]
async fn the_provider_recovers_from_a_second_outage() {
    let down = Arc::new(AtomicBool::new(false));
    let service = {
        let down = Arc::clone(&down);
        Scripted::start(move |_, _| match down.load(Ordering::Relaxed) {
            true => Reply::status(503, ""),
            false => Reply::json(json!({"flags": [{"key": "on", "value": true}]})),
        })
        .await
    };
    let provider = FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false).build().unwrap();
    provider.ready(support::PATIENCE).await.unwrap();
    for outage in ["first", "second"] {
        down.store(true, Ordering::Relaxed);
        assert!(in_time(provider.flags(&user(outage))).await.error().is_some());
        down.store(false, Ordering::Relaxed);
        eventually(async || provider.flags(&user(outage)).await.bool("on", false)).await;
    }
}

#[tokio::test]
async fn the_first_read_in_an_outage_waits_for_at_most_stale_wait() {
    let silent = Arc::new(AtomicBool::new(false));
    let service = {
        let silent = Arc::clone(&silent);
        Scripted::start(move |_, _| match silent.load(Ordering::Relaxed) {
            true => Reply::Silence,
            false => Reply::json(json!({"flags": [{"key": "on", "value": true}]})),
        })
        .await
    };
    let provider = support::unattended(service.url(), Duration::from_millis(1))
        .request_timeout(10 * support::PATIENCE)
        .build()
        .unwrap();
    assert!(in_time(provider.flags(&user("u"))).await.bool("on", false));
    silent.store(true, Ordering::Relaxed);
    eventually(async || {
        let began = std::time::Instant::now();
        let flags = in_time(provider.flags(&user("u"))).await;
        assert!(flags.bool("on", false) && began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        flags.is_stale()
    })
    .await;
}
