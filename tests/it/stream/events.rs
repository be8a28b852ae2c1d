//! Events and listeners: their order, and the isolation of listeners.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Wake},
    thread,
    time::Duration,
};

use flipswitch::{
    ConnectionStatus, FlipswitchProvider, HealthState, ProviderEvent, Subscription,
    open_feature::provider::{FeatureProvider, ProviderStatus},
    serde_json::{self, json},
};
use flipswitch_local::{Endpoint, Fault, LocalServer};
use futures_util::StreamExt;

use crate::support::{
    PATIENCE, builder,
    events::{CONNECTED, connected, is, is_change_of, is_error, until},
    eventually, in_time, reserved_port, user,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_evaluates_sees_the_new_value() {
    const CHANGES: i64 = 1_000;
    let service = LocalServer::start(json!({"counter": 0})).await.unwrap();
    let provider = connected(&service).await;
    let (heard, seen) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    let late = Arc::new(Mutex::new(Vec::new()));
    let _subscription = provider.add_flag_change_listener_for("counter", {
        let (provider, heard, seen, late) =
            (provider.clone(), Arc::clone(&heard), Arc::clone(&seen), Arc::clone(&late));
        move |_| {
            let changes = heard.fetch_add(1, Ordering::Relaxed) + 1;
            let flags = pollster::block_on(provider.flags(&user("u")));
            let value = flags.int("counter", -1);
            if value < changes || flags.is_stale() {
                late.lock().unwrap().push((changes, value));
            }
            seen.store(value, Ordering::Relaxed);
        }
    });
    for value in 1..=CHANGES {
        service.set_flag("counter", value);
        // Other flags also change, for which this listener is not called. There are too few changes to be combined.
        service.set_flag("other", value);
        eventually(async || heard.load(Ordering::Relaxed) > value - 300).await;
    }
    eventually(async || heard.load(Ordering::Relaxed) == CHANGES && seen.load(Ordering::Relaxed) == CHANGES).await;
    assert_eq!((heard.load(Ordering::Relaxed), &*late.lock().unwrap()), (CHANGES, &Vec::new()));
    provider.shutdown().await;
}

#[tokio::test]
async fn events_start_with_the_current_state_and_are_in_order() {
    let service = LocalServer::start(json!({"f": 0})).await.unwrap();
    let provider = builder(&service).build().unwrap();
    let mut events = provider.events();
    assert_eq!(in_time(events.recv()).await, Some(ProviderEvent::Status(ConnectionStatus::Disconnected)));
    in_time(provider.ready(PATIENCE)).await.unwrap();
    let mut first = until(&mut events, is(CONNECTED)).await;
    first.retain(|event| *event != ProviderEvent::Ready);
    assert_eq!(first, [ProviderEvent::Status(ConnectionStatus::Connecting)]);

    service.set_flag("f", 1);
    until(&mut events, is_change_of("f")).await;
    // A later subscriber gets the current state and no earlier events.
    let mut later = provider.events();
    assert_eq!(in_time(later.recv()).await, Some(CONNECTED));
    assert_eq!(in_time(later.recv()).await, Some(ProviderEvent::Ready));

    in_time(provider.shutdown()).await;
    for events in [&mut events, &mut later, &mut provider.events()] {
        assert_eq!(in_time(events.recv()).await, None);
    }
    assert_eq!(provider.sse_status(), ConnectionStatus::Disconnected);
}

#[tokio::test]
async fn after_an_outage_events_arrive_in_the_order_status_ready_change() {
    let address = reserved_port();
    let service = LocalServer::builder().flags(json!({"f": 0})).listen(address).start().await.unwrap();
    let api_key = service.api_key();
    let provider = builder(&service).polling_interval(Duration::from_millis(50)).max_sse_retries(1).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    let mut events = provider.events();
    until(&mut events, is(CONNECTED)).await;
    service.shutdown().await;
    until(&mut events, is(ProviderEvent::Stale)).await;
    assert_eq!((provider.health().state, provider.status()), (HealthState::Stale, ProviderStatus::STALE));
    assert!(provider.health().is_ready() && provider.health().is_live());

    let service = LocalServer::builder().flags(json!({"f": 1})).listen(address).api_key(api_key).start().await.unwrap();
    // The change has the key if a poll detected it, or concerns all flags if the stream reconnected.
    let mut told = until(&mut events, |event| matches!(event, ProviderEvent::ConfigurationChanged(_))).await;
    told.retain(|event| !matches!(event, ProviderEvent::Status(status) if *status != ConnectionStatus::Connected));
    // The stream or a poll recovers first; in either case values are fresh before a change is reported.
    assert!(told.contains(&ProviderEvent::Ready), "{told:?}");
    assert_eq!(told.iter().filter(|event| **event == ProviderEvent::Ready).count(), 1, "{told:?}");
    assert_eq!(provider.flags(&user("u")).await.int("f", 0), 1);
    drop(service);
}

/// Listeners do not run on the task that reads the stream, so a slow listener does not stop the stream.
#[tokio::test]
async fn a_blocking_listener_delays_nothing_and_gets_the_latest_events() {
    const CHANGES: i64 = 3_000;
    // A heartbeat would let the provider find the last change while the stream still delivers earlier changes.
    let service = LocalServer::builder().flags(json!({"counter": 0})).heartbeat(Duration::from_secs(3_600));
    let service = service.start().await.unwrap();
    let provider = connected(&service).await;
    let (release, released) = mpsc::channel::<()>();
    let (released, heard) = (Mutex::new(released), Arc::new(Mutex::new(Vec::new())));
    let _subscription = provider.add_flag_change_listener({
        let heard = Arc::clone(&heard);
        move |change| {
            let before = {
                let mut heard = heard.lock().unwrap();
                heard.push(change.flag_key.clone());
                heard.len() - 1
            };
            if before == 0 {
                released.lock().unwrap().recv().unwrap();
            }
        }
    });
    let (mut slow, mut quick) = (provider.events(), provider.events());
    for value in 1..=CHANGES {
        service.set_flag("counter", value);
        if value % 100 == 0 {
            // The stream is read, and values change, while the listener is blocked.
            eventually(async || provider.flags(&user("u")).await.int("counter", 0) == value).await;
        }
    }
    service.set_flag("last", true);
    until(&mut quick, is_change_of("last")).await;
    assert_eq!(heard.lock().unwrap().len(), 1);
    release.send(()).unwrap();
    eventually(async || heard.lock().unwrap().last() == Some(&Some("last".to_owned()))).await;
    let keys = heard.lock().unwrap().clone();
    assert!(keys.len() <= 1_030 && keys.contains(&None), "{} told", keys.len());
    // The same holds for events that were not received yet.
    let taken = until(&mut slow, is_change_of("last")).await;
    assert!(taken.len() <= 1_030, "{} told", taken.len());
    assert!(
        taken.contains(&CONNECTED) && taken.contains(&ProviderEvent::Ready),
        "the last event of each kind must remain"
    );
}

#[tokio::test]
async fn a_panicking_listener_stays_subscribed_and_affects_no_other() {
    let service = LocalServer::start(json!({"f": 0})).await.unwrap();
    let provider = connected(&service).await;
    let (panicked, heard) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&panicked);
    let _panics = provider.add_flag_change_listener_for("f", move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        panic!("on purpose");
    });
    let count = Arc::clone(&heard);
    let _hears = provider.add_flag_change_listener_for("f", move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    for value in 1..=3 {
        service.set_flag("f", value);
        let heard_so_far = usize::try_from(value).unwrap();
        eventually(async || heard.load(Ordering::Relaxed) == heard_so_far).await;
    }
    assert_eq!(panicked.load(Ordering::Relaxed), 3);
}

/// Unsubscribing during an event does not affect other listeners, and neither does unsubscribing twice.
#[tokio::test]
async fn listeners_can_unsubscribe_themselves_and_others() {
    let service = LocalServer::start(json!({"f": 0})).await.unwrap();
    let provider = connected(&service).await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let subscribe = |name: &'static str, then: Box<dyn Fn() + Send + Sync>| {
        let heard = Arc::clone(&heard);
        provider.add_flag_change_listener_for("f", move |_| {
            heard.lock().unwrap().push(name);
            then();
        })
    };
    let places: Arc<Mutex<Vec<Subscription>>> = Arc::default();
    let leave = {
        let places = Arc::clone(&places);
        // Unsubscribes twice. The second call has no effect.
        move || drop(std::mem::take(&mut *places.lock().unwrap()))
    };
    subscribe("stays", Box::new(|| {})).detach();
    let leaves = subscribe("leaves, and takes another along", Box::new(leave));
    let taken = subscribe("is taken along", Box::new(|| {}));
    places.lock().unwrap().extend([leaves, taken]);
    let last = subscribe("last", Box::new(|| {}));
    for value in 1..=2 {
        service.set_flag("f", value);
        eventually(async || heard.lock().unwrap().iter().filter(|name| **name == "last").count() == value).await;
    }
    drop(last);
    service.set_flag("f", 3);
    eventually(async || heard.lock().unwrap().len() == 6).await;
    let expected = ["stays", "leaves, and takes another along", "last", "stays", "last", "stays"];
    assert_eq!(*heard.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_subscription_can_outlive_its_provider() {
    let service = LocalServer::start(json!({"f": 0})).await.unwrap();
    let provider = connected(&service).await;
    let changes = provider.add_flag_change_listener(|_| {});
    let statuses = provider.add_connection_status_listener(|_| {});
    in_time(provider.shutdown()).await;
    drop(changes);
    drop(provider);
    drop(statuses);
}

#[tokio::test]
async fn no_events_follow_a_shutdown_from_a_listener() {
    for given in [false, true] {
        let service = LocalServer::start(json!({"f": 0})).await.unwrap();
        let mut builder = builder(&service);
        if given {
            builder = builder.runtime(tokio::runtime::Handle::current());
        }
        let provider = builder.build().unwrap();
        in_time(provider.ready(PATIENCE)).await.unwrap();
        eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;
        let (done, is_done) = tokio::sync::oneshot::channel();
        let done = Mutex::new(Some(done));
        let heard = Arc::new(AtomicUsize::new(0));
        let ends = provider.add_flag_change_listener_for("f", {
            let (provider, heard) = (provider.clone(), Arc::clone(&heard));
            move |_| {
                heard.fetch_add(1, Ordering::Relaxed);
                let began = std::time::Instant::now();
                pollster::block_on(provider.shutdown());
                done.lock().unwrap().take().unwrap().send(began.elapsed()).unwrap();
            }
        });
        let count = Arc::clone(&heard);
        let statuses = provider.add_connection_status_listener(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        service.set_flag("f", 1);
        service.set_flag("f", 2);
        assert!(in_time(is_done).await.unwrap() < Duration::from_secs(5));
        in_time(provider.shutdown()).await;
        eventually(async || service.streams() == 0).await;
        assert_eq!(heard.load(Ordering::Relaxed), 1);
        drop((ends, statuses));
    }
}

#[tokio::test]
async fn the_start_up_request_is_retried_until_it_succeeds() {
    let address = reserved_port();
    let provider = FlipswitchProvider::builder("key").base_url(format!("http://{address}")).build().unwrap();
    let mut events = provider.events();
    assert_eq!((provider.health().state, provider.status()), (HealthState::Starting, ProviderStatus::NotReady));
    assert!(!in_time(provider.flags(&user("u"))).await.bool("on", false));
    until(&mut events, is_error(false)).await;
    assert!(!provider.health().is_ready());
    let service =
        LocalServer::builder().flags(json!({"on": true})).listen(address).api_key("key").start().await.unwrap();
    // There are no evaluations in the meantime.
    let before = until(&mut events, is(ProviderEvent::Ready)).await;
    assert!(!before.iter().any(is_error(false)), "the error must be reported only once: {before:?}");
    assert!(in_time(provider.flags(&user("u"))).await.bool("on", false));
    assert_eq!(provider.status(), ProviderStatus::Ready);
    eventually(async || provider.health().state == HealthState::Streaming).await;
    drop(service);
}

#[tokio::test]
async fn an_invalid_response_causes_an_error_event() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let provider =
        builder(&service).polling_interval(Duration::from_millis(20)).enable_realtime(false).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    let mut events = provider.events();
    until(&mut events, is(ProviderEvent::Ready)).await;
    let garbage = service.faults().add(Fault::on(Endpoint::Bulk).garbage("<html>")).unwrap();
    until(&mut events, is_error(false)).await;
    until(&mut events, is(ProviderEvent::Stale)).await;
    service.faults().remove(garbage);
    until(&mut events, is(ProviderEvent::Ready)).await;
}

#[tokio::test]
async fn health_serializes_to_json() {
    let service = LocalServer::start(json!({})).await.unwrap();
    let provider = connected(&service).await;
    service.set_flag("f", 1);
    eventually(async || provider.health().last_event.is_some()).await;
    let health = serde_json::to_value(provider.health()).unwrap();
    assert_eq!((&health["state"], &health["ready"]), (&json!("streaming"), &json!(true)));
    for date in ["since", "lastEvent", "lastSuccess"] {
        assert!(health[date].as_str().is_some_and(|date| date.ends_with('Z')), "{date}: {health}");
    }
    assert_eq!(health["apiKeyValidUntil"], json!(null));
    provider.shutdown().await;
    assert_eq!((provider.health().state, provider.health().is_live()), (HealthState::ShutDown, false));

    let memory = FlipswitchProvider::in_memory(json!({}));
    assert_eq!((memory.health().state, memory.health().is_ready()), (HealthState::Streaming, true));
    let mut events = memory.events();
    until(&mut events, is(ProviderEvent::Ready)).await;
}

/// After the shutdown, the stream is no longer read.
#[tokio::test]
async fn initialize_and_shutdown_do_not_wait_for_the_service() {
    let service = LocalServer::start(json!({})).await.unwrap();
    service.faults().add(Fault::on(Endpoint::All).hang()).unwrap();
    let mut provider = builder(&service).build().unwrap();
    let context = user("u");
    let hangs = tokio::spawn({
        let (provider, context) = (provider.clone(), context.clone());
        async move { provider.flags(&context).await }
    });
    let began = std::time::Instant::now();
    provider.initialize(&context).await;
    assert!(began.elapsed() < Duration::from_secs(1));
    eventually(async || service.requests().len() > 1).await;
    let began = std::time::Instant::now();
    in_time(provider.shutdown()).await;
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(in_time(hangs).await.unwrap().error().is_some());
    eventually(async || service.streams() == 0).await;
}

/// The operating system counts the same threads and sockets after a thousand providers as after one.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_thousand_providers_leak_no_threads_or_files() {
    let service = LocalServer::builder().flags(json!({"on": true})).api_key("key").start().await.unwrap();
    let output =
        tokio::process::Command::new(env!("CARGO_BIN_EXE_cycles")).args([service.url(), "1000".into()]).output();
    let output = tokio::time::timeout(4 * PATIENCE, output).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let counts = String::from_utf8(output.stdout).unwrap();
    let counts: Vec<_> = counts.lines().collect();
    assert!(counts.len() == 2 && counts[0] == counts[1], "{counts:?}");
    eventually(async || service.streams() == 0).await;
}

#[tokio::test]
async fn changes_missed_in_an_outage_are_reported() {
    let definition = |targeting| json!({"state": "ENABLED", "variants": {"a": 1, "b": 2}, "defaultVariant": "a", "targeting": targeting});
    let service = LocalServer::start(json!({"flags": {"f": definition(json!({}))}})).await.unwrap();
    let provider = connected(&service).await;
    let outage = service.faults().add(Fault::on(Endpoint::Stream).status(503)).unwrap();
    service.faults().reset_streams();
    eventually(async || provider.sse_status() == ConnectionStatus::Error).await;
    let mut events = provider.events();
    let of_u = json!({"if": [{"==": [{"var": "targetingKey"}, "u"]}, "b", "a"]});
    service.set_definition("f", definition(of_u)).unwrap();
    service.faults().remove(outage);
    provider.reconnect_sse();
    until(&mut events, |event| matches!(event, ProviderEvent::ConfigurationChanged(all) if all.flag_key.is_none()))
        .await;
    assert_eq!(provider.flags(&user("u")).await.int("f", 0), 2);
}

#[tokio::test]
async fn stale_is_reported_without_polling() {
    let service = LocalServer::start(json!({})).await.unwrap();
    service.faults().add(Fault::on(Endpoint::Stream).hang()).unwrap();
    let provider =
        builder(&service).enable_polling_fallback(false).polling_interval(Duration::from_millis(1)).build().unwrap();
    let mut events = provider.events();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    until(&mut events, is(ProviderEvent::Ready)).await;
    until(&mut events, is(ProviderEvent::Stale)).await;
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(thread::panicking(), "on purpose");
    }
}

#[tokio::test]
async fn a_panic_of_a_value_that_is_dropped_with_its_listener_is_caught() {
    let service = LocalServer::start(json!({"f": 0})).await.unwrap();
    let provider = connected(&service).await;
    let place: Arc<Mutex<Option<Subscription>>> = Arc::default();
    let leaves = provider.add_flag_change_listener_for("f", {
        let (place, bomb) = (Arc::clone(&place), Bomb);
        move |_| {
            let _owned = &bomb;
            drop(place.lock().unwrap().take());
        }
    });
    *place.lock().unwrap() = Some(leaves);
    let bomb = Bomb;
    let owner = move |_: &_| {
        let _owned = &bomb;
    };
    provider.add_flag_change_listener_for("other", owner).detach();
    let heard = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heard);
    let _hears = provider.add_flag_change_listener_for("f", move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    for value in 1..=3 {
        service.set_flag("f", value);
        eventually(async || heard.load(Ordering::Relaxed) == value).await;
    }
    in_time(provider.shutdown()).await;
    eventually(async || service.streams() == 0).await;
}

#[tokio::test]
async fn a_waker_may_call_the_provider() {
    struct Asks(FlipswitchProvider, AtomicUsize);

    impl Wake for Asks {
        fn wake(self: Arc<Self>) {
            assert!(self.0.health().is_live());
            drop(self.0.events());
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }

    let service = LocalServer::start(json!({"f": 0})).await.unwrap();
    let provider = connected(&service).await;
    let mut events = provider.events();
    let asks = Arc::new(Asks(provider.clone(), AtomicUsize::new(0)));
    let waker = Arc::clone(&asks).into();
    let mut context = Context::from_waker(&waker);
    while events.poll_next_unpin(&mut context).is_ready() {}
    service.set_flag("f", 1);
    eventually(async || asks.1.load(Ordering::Relaxed) > 0).await;
}

#[test]
fn shutdown_completes_on_a_runtime_that_shuts_down() {
    let services = tokio::runtime::Runtime::new().unwrap();
    let service = services.block_on(LocalServer::start(json!({"on": true}))).unwrap();
    service.faults().add(Fault::on(Endpoint::Stream).hang()).unwrap();
    for given in [true, false] {
        // The provider runs on this runtime, or is only used and shut down from it.
        let ending = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut builder = builder(&service);
        if given {
            builder = builder.runtime(ending.handle().clone());
        }
        let provider = builder.build().unwrap();
        assert!(ending.block_on(in_time(provider.flags(&user("u")))).bool("on", false));
        let (ended, has_ended) = mpsc::channel();
        ending.spawn({
            let provider = provider.clone();
            async move {
                provider.shutdown().await;
                ended.send(()).unwrap();
            }
        });
        ending.shutdown_background();
        let began = std::time::Instant::now();
        services.block_on(in_time(provider.shutdown()));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        // The task has either completed or ended with its runtime.
        assert_ne!(has_ended.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Timeout));
        assert_eq!(provider.health().state, HealthState::ShutDown);
    }
    services.block_on(eventually(async || service.streams() == 0));
}
