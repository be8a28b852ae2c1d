//! The cost of evaluations: requests and allocations.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use flipswitch::{
    ConnectionStatus, Context, FlagEvaluation, Flags, FlipswitchProvider,
    serde_json::{Map, json},
};
use flipswitch_local::LocalServer;
use futures_util::{FutureExt, future::join_all};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, broadcast},
};

use crate::support::{
    self, Log, builder, eventually, in_time,
    scripted::{Reply, Scripted},
    user,
};

#[tokio::test]
async fn reading_a_flag_allocates_nothing() {
    let flags: Map<_, _> = (0..100).map(|number| (format!("flag-{number}"), json!(true))).collect();
    let service = LocalServer::start(flags.into()).await.unwrap();
    for (key, value) in [("int", json!(42)), ("float", json!(0.5)), ("string", json!("text"))] {
        service.set_flag(key, value);
    }
    let provider = builder(&service).enable_realtime(false).build().unwrap();
    let context = user("user-123")
        .with_custom_field("plan", "premium")
        .with_custom_field("age", 42)
        .with_custom_field("beta", true);
    let flags = in_time(provider.flags(&context)).await;

    let allocations = |read: &mut dyn FnMut()| {
        // A thread that evaluates the same context for the third time remembers it.
        (0..3).for_each(|_| read());
        allocation_counter::measure(read).count_total
    };
    assert_eq!(allocations(&mut || assert!(flags.bool("flag-50", false))), 0);
    assert_eq!(allocations(&mut || assert_eq!(flags.int("int", 0), 42)), 0);
    assert_eq!(allocations(&mut || assert!(flags.float("float", 0.0) > 0.4)), 0);
    assert_eq!(allocations(&mut || assert_eq!(flags.string("string", ""), "text")), 0);
    assert_eq!(allocations(&mut || assert!(!flags.bool("unknown", false))), 0);
    let written = Context::user("user-123").with("plan", "premium").with("age", 42).with("beta", true);
    let prepared = written.clone().prepared();
    let cached = |flags: Option<Flags>| assert!(flags.expect("flags are in memory").bool("flag-50", false));
    assert_eq!(allocations(&mut || cached(provider.flags(&context).now_or_never())), 0);
    assert_eq!(allocations(&mut || cached(provider.flags(&written).now_or_never())), 0);
    assert_eq!(allocations(&mut || cached(provider.flags(&prepared).now_or_never())), 0);
    // These contexts are found in the cache once or twice, so the thread does not remember them.
    let others = ["one", "two", "three"].map(|key| user(key).with_custom_field("plan", "premium"));
    let written = ["one", "two"].map(|key| Context::user(key).with("plan", "premium"));
    let prepared = Context::user("three").with("plan", "premium").prepared();
    for other in &others {
        assert!(in_time(provider.flags(other)).await.error().is_none());
    }
    let in_turns = || {
        others.iter().for_each(|other| cached(provider.flags(other).now_or_never()));
        written.iter().for_each(|written| cached(provider.flags(written).now_or_never()));
        cached(provider.flags(&prepared).now_or_never());
    };
    assert_eq!(allocation_counter::measure(in_turns).count_total, 0);
    service
        .set_definition("off", json!({"state": "DISABLED", "variants": {"on": true}, "defaultVariant": "on"}))
        .unwrap();
    let disabled = in_time(provider.flags(&user("another"))).await;
    assert!(disabled.evaluation("off").unwrap().value.is_null());
    assert_eq!(allocations(&mut || assert!(!disabled.bool("off", false))), 0);
    assert_eq!(allocations(&mut || assert!(disabled.bool("string", true))), 0);
    // Checks that the counter counts.
    assert!(allocations(&mut || drop(std::hint::black_box(flags.to_json()))) > 0);
}

/// The number of users, and of the reads of each user before and after a change. Each read reads several flags.
const USERS: usize = 1_000;
const READS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_user_costs_one_request_and_one_more_after_a_change() {
    let service = Arc::new(LocalServer::start(support::whoami((0..USERS).map(|id| id.to_string()))).await.unwrap());
    // A thousand requests take some time, and no reader may get stale flags.
    let provider = builder(&service).stale_wait(support::PATIENCE).build().unwrap();
    // Requests are counted after the stream has opened, because its opening counts as a change.
    provider.ready(support::PATIENCE).await.unwrap();
    eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;
    let opened = user("opened");

    let everybody_reads = async |extra: Option<i64>| {
        let tasks = (0..USERS).map(|id| {
            let provider = provider.clone();
            tokio::spawn(async move {
                for _ in 0..READS {
                    let flags = provider.flags(&user(&id.to_string())).await;
                    assert_eq!(flags.string("whoami", ""), id.to_string());
                    assert_eq!(flags.evaluation("extra").ok().and_then(FlagEvaluation::as_i64), extra);
                    assert!(!flags.is_stale());
                }
            })
        });
        join_all(tasks).await.into_iter().for_each(Result::unwrap);
    };
    let before = support::evaluations(&service);
    everybody_reads(None).await;
    assert_eq!(support::evaluations(&service) - before, USERS);

    service.set_flag("extra", 7);
    // The change has arrived once a read returns the new value.
    eventually(async || provider.flags(&opened).await.int("extra", 0) == 7).await;
    let (before, unchanged) = (support::evaluations(&service), provider.stats().not_modified);
    everybody_reads(Some(7)).await;
    // Two seconds after an event, all flags are requested once more, which may happen on a slow machine. The response is a 304.
    let unchanged = usize::try_from(provider.stats().not_modified - unchanged).unwrap();
    assert_eq!(support::evaluations(&service) - before - unchanged, USERS);
    assert!(unchanged <= USERS);
    let stats = provider.stats();
    assert!(stats.hits >= ((2 * READS - 4) * USERS) as u64, "{stats:?}");
    assert_eq!(stats.contexts, USERS as u64 + 2, "{stats:?}");
    provider.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_first_reads_of_one_user_cost_one_request() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let provider = builder(&service).enable_realtime(false).build().unwrap();
    let reads = (0..1_000).map(|_| {
        let provider = provider.clone();
        tokio::spawn(async move { provider.flags(&user("u")).await.bool("on", false) })
    });
    assert!(join_all(reads).await.into_iter().all(Result::unwrap));
    assert_eq!(support::evaluations(&service), 1);
}

#[tokio::test]
async fn cancelled_and_panicking_callers_do_not_affect_others() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let provider = builder(&service).enable_realtime(false).build().unwrap();
    for _ in 0..100 {
        // The future is polled once, which starts the request, and then dropped.
        assert!(provider.flags(&user("u")).now_or_never().is_none_or(|flags| flags.bool("on", false)));
        let provider = provider.clone();
        let panics = tokio::spawn(async move {
            provider.flags(&user("u")).await;
            panic!("on purpose");
        });
        assert!(panics.await.is_err());
    }
    assert!(in_time(provider.flags(&user("u"))).await.bool("on", false));
    assert_eq!(support::evaluations(&service), 1);
}

#[tokio::test]
async fn the_number_of_cached_contexts_is_bounded() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let provider = builder(&service).enable_realtime(false).cache_capacity(10).build().unwrap();
    for id in 0..200 {
        assert!(in_time(provider.flags(&user(&id.to_string()))).await.bool("on", false));
    }
    let stats = provider.stats();
    assert!((1..=10).contains(&stats.contexts), "{stats:?}");
}

#[tokio::test]
async fn concurrent_requests_are_bounded() {
    let service = Scripted::answering(Reply::Silence).await;
    let provider = FlipswitchProvider::builder("key")
        .base_url(service.url())
        .enable_realtime(false)
        .max_concurrent_requests(6)
        .request_timeout(10 * support::PATIENCE)
        .miss_wait(10 * support::PATIENCE)
        .build()
        .unwrap();
    let reads = join_all((0..50).map(|id| {
        let provider = provider.clone();
        async move { provider.flags(&user(&id.to_string())).await }
    }));
    let reads = tokio::spawn(reads);
    // Contexts without flags, including the start-up context, have half of the permits.
    eventually(async || provider.stats().throttling.queued_requests == 48 && service.received().len() == 3).await;
    provider.shutdown().await;
    assert!(in_time(reads).await.unwrap().iter().all(|flags| flags.error().is_some()));
    assert_eq!(service.received().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_during_a_request_makes_its_response_stale() {
    const CHANGE: &str = "event: flag-updated\ndata: {\"flagKey\":\"f\"}\n\n";
    let (released, events) = (Arc::new(Semaphore::new(0)), broadcast::channel(16).0);
    let service = {
        let (released, events, of_u) = (Arc::clone(&released), events.clone(), AtomicUsize::new(0));
        Scripted::start(move |request, _| {
            if request.method == "GET" {
                return Reply::Events(events.clone());
            }
            let is_held = request.body.contains("\"u\"");
            let version = if is_held { of_u.fetch_add(1, Ordering::Relaxed) + 1 } else { 0 };
            let answer = Reply::json(json!({"flags": [{"key": "version", "value": version}]}));
            if is_held { Reply::Held(Arc::clone(&released), Box::new(answer)) } else { answer }
        })
        .await
    };
    let asked =
        |id: &str| service.received().iter().filter(|request| request.body.contains(&format!("\"{id}\""))).count();
    let provider = FlipswitchProvider::builder("key").base_url(service.url()).build().unwrap();
    let read = |id: &'static str| {
        let provider = provider.clone();
        tokio::spawn(async move { provider.flags(&user(id)).await.int("version", -1) })
    };
    // Once the provider requests the flags of a known user again, it has opened the stream and received a change.
    let heard_of_a_change = async || {
        in_time(read("witness")).await.unwrap();
        let before = asked("witness");
        eventually(async || {
            events.send(CHANGE).ok();
            in_time(read("witness")).await.unwrap();
            asked("witness") > before
        })
        .await;
    };
    heard_of_a_change().await;
    let first = read("u");
    eventually(async || asked("u") == 1).await;
    heard_of_a_change().await;
    // This read begins after the change. The request in flight is too old for it, so a second request is sent.
    let second = read("u");
    eventually(async || asked("u") == 2).await;
    released.add_permits(2);
    assert_eq!(in_time(second).await.unwrap(), 2);
    assert!(in_time(first).await.unwrap() > 0);

    // A response to a request that is in flight during the change is stale, even without another read in the meantime.
    heard_of_a_change().await;
    let third = read("u");
    eventually(async || asked("u") == 3).await;
    heard_of_a_change().await;
    released.add_permits(1);
    assert_eq!(in_time(third).await.unwrap(), 3);
    let fourth = read("u");
    eventually(async || asked("u") == 4).await;
    released.add_permits(1);
    assert_eq!(in_time(fourth).await.unwrap(), 4);
}

/// Starts a service whose stream is open and sends nothing.
async fn quiet() -> Scripted {
    let events = broadcast::channel(1).0;
    Scripted::start(move |request, _| match request.method.as_str() {
        "GET" => Reply::Events(events.clone()),
        _ => Reply::json(json!({"flags": [{"key": "on", "value": true}]})),
    })
    .await
}

#[tokio::test]
async fn a_silent_stream_is_replaced_after_the_idle_timeout() {
    let service = quiet().await;
    let provider = FlipswitchProvider::builder("key")
        .base_url(service.url())
        .stream_idle_timeout(Duration::from_millis(20))
        .build()
        .unwrap();
    provider.ready(support::PATIENCE).await.unwrap();
    eventually(async || service.received().iter().filter(|request| request.method == "GET").count() > 1).await;
}

#[tokio::test]
async fn cache_ttl_applies_while_the_stream_is_open() {
    let service = quiet().await;
    let provider = FlipswitchProvider::builder("key")
        .base_url(service.url())
        .cache_ttl(Duration::from_millis(1))
        .polling_interval(Duration::from_secs(3_600))
        .build()
        .unwrap();
    // There are more requests than the opening of the stream causes, which counts as a change.
    eventually(async || {
        in_time(provider.flags(&user("u"))).await;
        service.received().iter().filter(|request| request.body.contains("\"u\"")).count() > 3
    })
    .await;
}

/// Starts a service with one response, whose `ETag` never changes. Its `304` responses can be delayed.
async fn unchanging(held: Option<Arc<Semaphore>>) -> Scripted {
    Scripted::start(move |request, _| {
        if request.header("if-none-match") != Some("\"1\"") {
            return Reply::json(json!({"flags": [{"key": "on", "value": true}]})).with("etag", "\"1\"");
        }
        match (&held, request.body.contains("\"u\"")) {
            (Some(held), true) => Reply::Held(Arc::clone(held), Box::new(Reply::status(304, ""))),
            _ => Reply::status(304, ""),
        }
    })
    .await
}

fn asked_for_u(service: &Scripted) -> usize {
    service.received().iter().filter(|request| request.body.contains("\"u\"")).count()
}

#[tokio::test]
async fn not_modified_makes_a_stale_flag_set_fresh() {
    let service = unchanging(None).await;
    let provider =
        support::unattended(service.url(), Duration::from_secs(1)).stale_wait(support::PATIENCE).build().unwrap();
    assert!(in_time(provider.flags(&user("u"))).await.bool("on", false));
    eventually(async || {
        in_time(provider.flags(&user("u"))).await;
        provider.stats().not_modified > 0
    })
    .await;
    let (asked, began) = (asked_for_u(&service), std::time::Instant::now());
    for _ in 0..20 {
        let flags = in_time(provider.flags(&user("u"))).await;
        assert!(flags.bool("on", false) && !flags.is_stale());
    }
    // A machine that takes a second for this may send one more request.
    let again = asked_for_u(&service) - asked;
    assert!(again as u64 <= began.elapsed().as_secs(), "{again} requests");
}

#[tokio::test]
async fn not_modified_after_a_change_makes_a_flag_set_fresh() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let provider = builder(&service).stale_wait(support::PATIENCE).build().unwrap();
    provider.ready(support::PATIENCE).await.unwrap();
    eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;
    assert!(in_time(provider.flags(&user("u"))).await.bool("on", false));
    service.send_event("flag-updated", json!({"flagKey": "other"}));
    eventually(async || {
        in_time(provider.flags(&user("u"))).await;
        provider.stats().not_modified > 0
    })
    .await;
    for _ in 0..50 {
        assert!(!in_time(provider.flags(&user("u"))).await.is_stale());
    }
    // One more request is sent at the end of the echo window.
    assert!(support::evaluations(&service) <= 3, "{}", support::evaluations(&service));
}

#[tokio::test]
async fn not_modified_works_after_the_entry_was_evicted() {
    let released = Arc::new(Semaphore::new(0));
    let service = unchanging(Some(Arc::clone(&released))).await;
    let provider = support::unattended(service.url(), Duration::from_millis(1))
        .cache_capacity(2)
        .stale_wait(support::PATIENCE)
        .build()
        .unwrap();
    assert!(in_time(provider.flags(&user("u"))).await.bool("on", false));
    let mut read = None;
    eventually(async || {
        // Once the flags have aged, they are requested again.
        let provider = provider.clone();
        let mut reads = Box::pin(async move { provider.flags(&user("u")).await });
        if futures_util::poll!(&mut reads).is_pending() {
            read = Some(tokio::spawn(reads));
        }
        read.is_some()
    })
    .await;
    eventually(async || asked_for_u(&service) == 2).await;
    for id in 0..20 {
        for _ in 0..3 {
            in_time(provider.flags(&user(&format!("other {id}")))).await;
        }
    }
    released.add_permits(1);
    let flags = in_time(read.unwrap()).await.unwrap();
    assert!(flags.bool("on", false) && !flags.is_stale(), "{flags:?}");
}

#[tokio::test]
async fn contexts_that_differ_between_requests_are_reported_once() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let log = Log::of_this_thread();
    // The provider runs on this thread, whose log is read.
    let provider = builder(&service).cache_capacity(100).runtime(Handle::current()).build().unwrap();
    for request in 0..3_000 {
        // Ten users, whose plan seldom changes.
        let user = Context::user(format!("user-{}", request % 10)).with("plan", request / 1_000);
        in_time(provider.flags(user.with("request-id", request))).await;
    }
    provider.shutdown().await;
    let lines = log.lines();
    let with = |text: &str| lines.iter().filter(|line| line.contains(text)).collect::<Vec<_>>();
    let differing = with("an attribute differs between requests from the same user");
    assert!(differing.len() == 1 && differing[0].contains(r#"attribute="request-id" count=30"#), "{lines:?}");
    let unused = with("most evaluations have a context that is not in the cache");
    assert!(unused.len() == 1 && unused[0].contains("hits=0"), "{lines:?}");
}
