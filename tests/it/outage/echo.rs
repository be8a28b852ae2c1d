//! A service that uses old rules for a moment after its own event: which flag sets are final, and what this costs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use flipswitch::{ConnectionStatus, FlipswitchProvider, serde_json::json};
use flipswitch_local::LocalServer;
use futures_util::future::join_all;
use tokio::sync::broadcast;

use crate::support::{
    PATIENCE,
    events::connected,
    eventually, in_time,
    scripted::{Received, Reply, Scripted},
    user,
};

/// The time after an event in which a response may be from before the event.
const ECHO_WINDOW: Duration = Duration::from_secs(2);

/// The margin for delays on a busy machine.
const LATE: Duration = Duration::from_secs(1);

/// Returns the number of requests that a service received for each user, without the first `after` requests.
fn requests(service: &LocalServer, after: usize) -> HashMap<String, usize> {
    let mut requests = HashMap::new();
    for request in service.requests().split_off(after) {
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap_or_default();
        if let Some(id) = body["context"]["targetingKey"].as_str() {
            *requests.entry(id.to_owned()).or_default() += 1;
        }
    }
    requests
}

#[tokio::test]
async fn changed_flags_cost_one_request_and_unchanged_flags_two() {
    const USERS: usize = 60;
    let flag = |for_beta: &str| {
        json!({
            "state": "ENABLED", "variants": {"old": 1, "new": 2}, "defaultVariant": "old",
            "targeting": {"if": [{"starts_with": [{"var": "targetingKey"}, "beta"]}, for_beta]},
        })
    };
    let service = LocalServer::start(json!({"flags": {"f": flag("old")}})).await.unwrap();
    let provider = connected(&service).await;
    let ids: Vec<_> = (0..USERS).map(|id| format!("{}-{id}", if id % 2 == 0 { "beta" } else { "other" })).collect();
    let read =
        async || in_time(join_all(ids.iter().map(|id| async { provider.flags(&user(id)).await.int("f", 0) }))).await;
    assert!(read().await.iter().all(|value| *value == 1));
    // Waits until the requests that the opening of the stream causes have received responses.
    eventually(async || {
        let before = service.requests().len();
        read().await;
        service.requests().len() == before
    })
    .await;
    let before = service.requests().len();
    let changed = Instant::now();
    service.set_definition("f", flag("new")).unwrap();
    let expected: Vec<_> = (0..USERS).map(|id| if id % 2 == 0 { 2 } else { 1 }).collect();
    eventually(async || read().await == expected).await;
    let reached = changed.elapsed();
    assert!(reached < ECHO_WINDOW, "the change reached the last user after {reached:?}");
    let asked_again = |requests: &HashMap<String, usize>| {
        ids.iter().filter(|id| id.starts_with("other")).all(|id| requests.get(id.as_str()) == Some(&2))
    };
    eventually(async || {
        assert_eq!(read().await, expected);
        asked_again(&requests(&service, before))
    })
    .await;
    let settled = changed.elapsed();
    assert!(settled < Duration::from_secs(5), "{settled:?}");
    assert!(settled > ECHO_WINDOW, "the second request is sent after the window: {settled:?}");
    // Reads continue for a while, and cause no more requests.
    while changed.elapsed() < settled + LATE {
        assert_eq!(read().await, expected);
    }
    let requests = requests(&service, before);
    for id in &ids {
        let expected = if id.starts_with("beta") { 1 } else { 2 };
        assert_eq!(requests.get(id), Some(&expected), "user {id}");
    }
    provider.shutdown().await;
}

#[tokio::test]
async fn values_of_old_rules_after_an_event_do_not_remain_fresh() {
    const USERS: usize = 50;
    const BEHIND: Duration = Duration::from_secs(1);
    const EVENT: &str = "event: flag-updated\ndata: {\"flagKey\": \"f\", \"timestamp\": \"2026-01-01T00:00:00Z\"}\n\n";
    let (events, _) = broadcast::channel(16);
    // The time when the event was sent.
    let announced = Arc::new(Mutex::new(None::<Instant>));
    let service = {
        let (events, announced) = (events.clone(), Arc::clone(&announced));
        Scripted::start(move |request, _| {
            if request.method == "GET" {
                return Reply::Events(events.clone());
            }
            let is_new = announced.lock().unwrap().is_some_and(|at| at.elapsed() >= BEHIND);
            Reply::json(json!({"flags": [{"key": "f", "value": if is_new { 2 } else { 1 }}]}))
        })
        .await
    };
    let provider = FlipswitchProvider::builder("key")
        .base_url(service.url())
        .miss_wait(PATIENCE)
        .stale_wait(PATIENCE)
        .build()
        .unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;
    let read = async |id: usize| in_time(provider.flags(&user(&id.to_string()))).await;
    for id in 0..USERS {
        assert_eq!(read(id).await.int("f", 0), 1);
    }
    let sent = Instant::now();
    *announced.lock().unwrap() = Some(sent);
    events.send(EVENT).unwrap();
    let mut old_within_window = 0;
    // One of the users was not known before.
    eventually(async || {
        let mut are_new = true;
        for id in 0..=USERS {
            let began = sent.elapsed();
            let flags = read(id).await;
            let is_new = flags.int("f", 0) == 2;
            are_new &= is_new;
            old_within_window += usize::from(!is_new);
            // The event needs a moment to arrive.
            let is_window_over = began > ECHO_WINDOW + LATE / 2;
            assert!(
                is_new || !is_window_over || flags.is_stale(),
                "user {id} has the old value {began:?} after the event"
            );
        }
        assert!(sent.elapsed() < ECHO_WINDOW + 2 * LATE, "not all have the new value after {:?}", sent.elapsed());
        are_new
    })
    .await;
    assert!(old_within_window > 0, "the service must lag behind its event");
    // New values are final.
    let before = service.received().len();
    eventually(async || sent.elapsed() > ECHO_WINDOW + 2 * LATE).await;
    for id in 0..=USERS {
        assert_eq!(read(id).await.int("f", 0), 2, "user {id}");
    }
    let later = service.received().split_off(before);
    assert!(later.iter().filter(|request| Received::is_bulk(request)).count() <= 1, "{later:?}");
    provider.shutdown().await;
}
