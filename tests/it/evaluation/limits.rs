//! The limits of concurrent requests, queued requests and cached bytes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use flipswitch::{Error, FlipswitchProvider, FlipswitchProviderBuilder, serde_json::json};
use tokio::{
    net::{TcpSocket, TcpStream},
    runtime::Handle,
    sync::{Semaphore, broadcast},
    task::{self, JoinSet},
};

use crate::support::{
    PATIENCE, eventually, in_time,
    scripted::{Received, Reply, Scripted},
    user,
};

/// Returns whether a request is for a user.
fn is_about(request: &Received, id: &str) -> bool {
    request.body.contains(&format!("\"{id}\""))
}

fn asked(service: &Scripted, id: &str) -> usize {
    service.received().iter().filter(|request| is_about(request, id)).count()
}

/// Returns a builder of a provider that runs on the test's own thread, so that its tasks start when the test yields.
fn builder(service: &Scripted) -> FlipswitchProviderBuilder {
    FlipswitchProvider::builder("key")
        .base_url(service.url())
        .request_timeout(10 * PATIENCE)
        .miss_wait(10 * PATIENCE)
        .runtime(Handle::current())
}

fn on() -> Reply {
    Reply::json(json!({"flags": [{"key": "on", "value": true}]}))
}

/// Reads a user's flags until they are no longer cached and the read waits for a request.
async fn begin(reads: &mut JoinSet<()>, provider: &FlipswitchProvider, id: &'static str) {
    eventually(async || {
        let (provider, context) = (provider.clone(), user(id));
        let mut read = Box::pin(async move { drop(provider.flags(&context).await) });
        let waits = futures_util::poll!(&mut read).is_pending();
        if waits {
            reads.spawn(read);
        }
        waits
    })
    .await;
    // The request of this user is now in the queue.
    for _ in 0..10 {
        task::yield_now().await;
    }
}

#[tokio::test]
async fn requests_for_cached_users_are_sent_first() {
    let released = Arc::new(Semaphore::new(0));
    let service = {
        let released = Arc::clone(&released);
        Scripted::start(move |request, _| match is_about(request, "blocker") {
            true => Reply::Held(Arc::clone(&released), Box::new(on())),
            false => on(),
        })
        .await
    };
    let provider = builder(&service)
        .enable_realtime(false)
        .enable_polling_fallback(false)
        .cache_ttl(Duration::from_millis(1))
        .max_concurrent_requests(1)
        .stale_wait(PATIENCE)
        .build()
        .unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    assert!(in_time(provider.flags(&user("known"))).await.bool("on", false));
    // The flags have aged when they are requested again.
    eventually(async || {
        provider.flags(&user("known")).await;
        asked(&service, "known") > 1
    })
    .await;
    let mut reads = JoinSet::new();
    begin(&mut reads, &provider, "blocker").await;
    eventually(async || asked(&service, "blocker") == 1).await;
    let before = service.received().len();
    for id in ["new-1", "new-2"] {
        begin(&mut reads, &provider, id).await;
    }
    begin(&mut reads, &provider, "known").await;
    released.add_permits(1);
    while let Some(read) = in_time(reads.join_next()).await {
        read.unwrap();
    }
    let order: Vec<_> = service.received().split_off(before).into_iter().map(|request| request.body).collect();
    assert!(order[0].contains("known"), "{order:?}");
    assert!(order[1].contains("new-2") && order[2].contains("new-1"), "the newest request is sent first: {order:?}");
}

#[tokio::test]
async fn queued_requests_are_not_sent_to_a_service_that_is_down() {
    let (released, down) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicBool::new(false)));
    let service = {
        let (released, down) = (Arc::clone(&released), Arc::clone(&down));
        Scripted::start(move |request, _| match is_about(request, "_init_") {
            true if down.load(Ordering::Relaxed) => Reply::status(503, "down"),
            true => on(),
            false => Reply::Held(Arc::clone(&released), Box::new(Reply::status(503, "down"))),
        })
        .await
    };
    let provider = builder(&service).enable_realtime(false).max_concurrent_requests(1).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    down.store(true, Ordering::Relaxed);
    let mut reads = JoinSet::new();
    let users = ["1", "2", "3", "4", "5", "6", "7", "8"];
    for id in users {
        begin(&mut reads, &provider, id).await;
    }
    // Three contexts fail, and then the start-up context.
    released.add_permits(3);
    eventually(async || provider.stats().throttling.is_circuit_open).await;
    released.add_permits(10);
    while let Some(read) = in_time(reads.join_next()).await {
        read.unwrap();
    }
    let tried: usize = users.map(|id| asked(&service, id)).iter().sum();
    assert!(tried <= 4, "one was sent before the service counted as down: {tried}");
}

#[tokio::test]
async fn a_rejected_context_is_requested_again_after_a_change() {
    const CHANGE: &str = "event: flag-updated\ndata: {\"flagKey\":\"f\"}\n\n";
    let (mended, events) = (Arc::new(AtomicBool::new(false)), broadcast::channel(16).0);
    let service = {
        let (mended, events) = (Arc::clone(&mended), events.clone());
        Scripted::start(move |request, _| match request.method.as_str() {
            "GET" => Reply::Events(events.clone()),
            _ if is_about(request, "odd") && !mended.load(Ordering::Relaxed) => {
                Reply::status(400, json!({"errorCode": "INVALID_CONTEXT", "errorDetails": "odd"}))
            }
            _ => on(),
        })
        .await
    };
    let provider = builder(&service).build().unwrap();
    // The context is rejected until its backoff is long. Each change allows a request for it.
    eventually(async || {
        events.send(CHANGE).ok();
        let flags = provider.flags(&user("odd")).await;
        assert!(matches!(flags.error(), Some(Error::Evaluation { .. })), "{flags:?}");
        asked(&service, "odd") > 8
    })
    .await;
    mended.store(true, Ordering::Relaxed);
    let refusals = asked(&service, "odd");
    // Other users get their flags in the meantime. Without a change, the context is not requested.
    for _ in 0..100 {
        assert!(in_time(provider.flags(&user("other"))).await.bool("on", false));
    }
    assert!(asked(&service, "odd") <= refusals + 1);
    let began = std::time::Instant::now();
    eventually(async || {
        events.send(CHANGE).ok();
        provider.flags(&user("odd")).await.bool("on", false)
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(10), "the change did not end the backoff: {:?}", began.elapsed());
}

#[tokio::test]
async fn the_bytes_of_cached_contexts_and_flag_sets_are_bounded() {
    const LIMIT: usize = 4 << 20;
    /// The size of contexts, and of values that no other context has.
    const LARGE: usize = 50_000;
    let service = Scripted::start(|request, before| {
        let own = if request.body.contains("by-value") { format!("{before:0>LARGE$}") } else { String::new() };
        Reply::json(json!({"flags": [{"key": "own", "value": own}]}))
    })
    .await;
    let provider = builder(&service).enable_realtime(false).cache_bytes(LIMIT).build().unwrap();
    let by_context = |id: usize| user(&id.to_string()).with_custom_field("large", "x".repeat(LARGE));
    let by_value = |id: usize| user(&format!("by-value {id}"));
    for id in 0..200 {
        in_time(provider.flags(&by_context(id))).await;
        in_time(provider.flags(&by_value(id))).await;
        let stats = provider.stats();
        assert!(stats.bytes <= LIMIT as u64, "{stats:?}");
        assert!(stats.contexts <= (LIMIT / LARGE) as u64 + 1, "{stats:?}");
    }
    assert!(provider.stats().contexts > (LIMIT / LARGE / 8) as u64, "{:?}", provider.stats());
}

#[tokio::test]
async fn connecting_fails_after_connect_timeout() {
    // The socket does not accept connections, and its queue is full.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(connection) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        queued.push(connection.unwrap());
    }
    let provider = FlipswitchProvider::builder("key")
        .base_url(format!("http://{address}"))
        .enable_realtime(false)
        .connect_timeout(Duration::from_millis(50))
        .request_timeout(10 * PATIENCE)
        .build()
        .unwrap();
    let flags = in_time(provider.flags(&user("u"))).await;
    assert!(flags.error().is_some(), "{flags:?}");
}
