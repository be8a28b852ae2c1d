//! Changes that arrive early, late, or all at the same time.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use flipswitch_local::LocalServer;
use futures_util::future::join_all;
use serde_json::{Map, json};

use crate::support::{
    self, eventually,
    faults::{CHANGED, Kind, Mute, Row, Service, service},
    user,
};

/// The service may begin to report changes some time after it sent its headers. Earlier changes are not reported.
#[tokio::test]
async fn a_change_before_the_first_heartbeat_is_detected() {
    let service = Mute::start().await;
    let row = Row::new(service.builder());
    row.opens(&service.service, 1).await;
    service.set(2);
    assert_eq!(row.read().await.int("f", -1), 1, "no event has arrived");
    service.say("event: heartbeat\ndata: {}\n\n");
    row.sees(2).await;
    row.ends("connecting connected", service.service.asked()).await;
}

/// The service may still return the old value after its event.
#[tokio::test]
async fn flags_are_requested_again_from_a_service_that_lags_behind_its_event() {
    let service = Mute::start().await;
    let row = Row::new(service.builder());
    row.opens(&service.service, 1).await;
    let asked = service.service.asked_for(Kind::User).len();
    let told = Instant::now();
    service.say("event: flag-updated\ndata: {\"flagKey\":\"f\"}\n\n");
    row.hears_of("f").await;
    row.sees(1).await;
    eventually(async || service.service.asked_for(Kind::User).len() == asked + 1).await;
    service.set(2);
    row.sees(2).await;
    assert!(told.elapsed() >= Duration::from_millis(1_990), "{:?}", told.elapsed());
    row.ends("connecting connected", service.service.asked()).await;
}

/// A listener that evaluates gets the new value, because listeners run after the cached flags became stale.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_evaluates_sees_each_new_value() {
    let service = service(1).await;
    let row = Row::new(support::builder(&service).stale_wait(support::PATIENCE));
    row.opens(&service, 1).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let _listening = row.provider.add_flag_change_listener({
        let (seen, provider) = (Arc::clone(&seen), row.provider.clone());
        move |_| seen.lock().unwrap().push(pollster::block_on(provider.flags(&user("u"))).int("f", -1))
    });
    for value in 2..30 {
        service.set_flag("f", value);
        eventually(async || !seen.lock().unwrap().is_empty()).await;
        assert_eq!(*seen.lock().unwrap(), [value]);
        seen.lock().unwrap().clear();
    }
    row.ends("connecting connected", Vec::new()).await;
}

/// After ten thousand events of three kinds, the last value is read, and there are fewer requests than events.
#[tokio::test]
async fn a_burst_of_events_causes_few_requests() {
    const EVENTS: i64 = 10_000;
    let flag = |key: i64| format!("event: flag-updated\ndata: {{\"flagKey\":\"flag-{key}\"}}\nid: {key}\n\n");
    let bursts: [&dyn Fn(&LocalServer); 3] = [
        &|service| assert_eq!(service.faults().inject((0..EVENTS).map(flag).collect::<String>()), 1),
        &|service| assert_eq!(service.faults().inject(CHANGED.repeat(EVENTS as usize)), 1),
        &|service| (0..EVENTS).for_each(|value| service.set_flag("f", value)),
    ];
    join_all(bursts.map(async |burst| {
        let service = service(1).await;
        let row = Row::new(support::builder(&service));
        row.opens(&service, 1).await;
        let before = service.asked();
        burst(&service);
        service.set_flag("last", true);
        service.set_flag("f", EVENTS);
        row.sees(EVENTS).await;
        eventually(async || row.changes.lock().unwrap().iter().any(|key| key.as_deref().is_none_or(|key| key == "f")))
            .await;
        // Longer than the time for which requests are delayed and combined.
        let burst_over = Instant::now();
        eventually(async || burst_over.elapsed() > Duration::from_millis(600)).await;
        let asked = service.asked();
        let (start_up, all) = (service.asked_for(Kind::StartUp), asked.len() - before.len());
        let start_up = start_up.len() - before.iter().filter(|asked| asked.0 == Kind::StartUp).count();
        assert!(start_up <= 4, "{start_up} requests in the background");
        assert!(all <= 50, "{all} requests");
        assert!(row.changes.lock().unwrap().len() <= EVENTS as usize + 3);
        row.ends("connecting connected", Vec::new()).await;
    }))
    .await;
}

/// Background requests are combined, so consecutive events cause one request.
#[tokio::test]
async fn consecutive_changes_share_requests() {
    const EVENTS: usize = 20;
    // Requests are combined for at least this time.
    const TOGETHER: Duration = Duration::from_millis(50);
    let service = Mute::start().await;
    let row = Row::new(service.builder());
    row.opens(&service.service, 1).await;
    let asked = || service.service.asked_for(Kind::StartUp).len();
    let (before, began) = (asked(), Instant::now());
    for number in 1..=EVENTS {
        service.say(CHANGED);
        row.eventually("told", async || row.changes.lock().unwrap().len() == number).await;
    }
    row.eventually("asked", async || asked() > before).await;
    let most = 1 + began.elapsed().as_millis() / TOGETHER.as_millis();
    assert!((asked() - before) as u128 <= most, "{} requests, {most} expected", asked() - before);
    row.ends("connecting connected", service.service.asked()).await;
}

/// Continuous events do not prevent a reader from getting flags.
#[tokio::test]
async fn continuous_changes_do_not_delay_evaluations() {
    let flags: Map<_, _> = [("f".to_owned(), json!(0))].into_iter().collect();
    let service = LocalServer::start(flags.into()).await.unwrap();
    let row = Row::new(support::builder(&service).stale_wait(support::PATIENCE));
    row.opens(&service, 0).await;
    let mut last = 0;
    for value in 1..200 {
        service.set_flag("f", value);
        let seen = row.read().await.int("f", -1);
        assert!((last..=value).contains(&seen), "{seen} after {last}, of {value}");
        last = seen;
    }
    row.sees(199).await;
    row.ends("connecting connected", Vec::new()).await;
}
