//! Panics in application code that the provider calls: a resolver, a waker, a log subscriber.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Wake, Waker},
};

use flipswitch::{
    ConnectionStatus, FlipswitchProvider,
    reqwest::{
        ClientBuilder,
        dns::{Addrs, Name, Resolve, Resolving},
    },
    serde_json::json,
};
use flipswitch_local::LocalServer;
use futures_util::StreamExt;
use tokio::runtime::Handle;
use tracing_subscriber::util::SubscriberInitExt;

use crate::support::{PATIENCE, builder, events::connected, eventually, in_time, user};

/// Resolves every name to the service's address, after some panics.
#[derive(Debug)]
struct PanickingResolver {
    address: SocketAddr,
    panics: AtomicUsize,
}

impl Resolve for PanickingResolver {
    fn resolve(&self, _: Name) -> Resolving {
        let left = self.panics.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        let address = self.address;
        Box::pin(async move {
            assert!(left.is_err(), "the application's resolver panics");
            Ok(Box::new(std::iter::once(address)) as Addrs)
        })
    }
}

#[tokio::test]
async fn the_stream_and_the_requests_survive_panics_of_the_applications_resolver() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let address: SocketAddr = service.url().strip_prefix("http://").unwrap().parse().unwrap();
    // One client is for requests, and the other one for the stream.
    let resolvers = [0; 2].map(|_| Arc::new(PanickingResolver { address, panics: AtomicUsize::new(2) }));
    let (made, unused) = (AtomicUsize::new(0), resolvers.clone());
    let provider = FlipswitchProvider::builder("key")
        .base_url(format!("http://flags.example:{}", address.port()))
        .http_client(move || {
            let resolver = Arc::clone(&unused[made.fetch_add(1, Ordering::AcqRel)]);
            ClientBuilder::new().no_proxy().dns_resolver(resolver)
        })
        .build()
        .unwrap();
    eventually(async || provider.flags(&user("u")).await.bool("on", false)).await;
    eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;
    assert!(resolvers.iter().all(|resolver| resolver.panics.load(Ordering::Acquire) == 0));
    provider.shutdown().await;
}

struct PanickingWaker(AtomicUsize);

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::AcqRel);
        panic!("the application's waker panics");
    }
}

#[tokio::test]
async fn the_stream_survives_a_panic_of_the_applications_waker() {
    let service = LocalServer::start(json!({"on": false})).await.unwrap();
    let provider = connected(&service).await;
    let wakes = Arc::new(PanickingWaker(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&wakes));
    let mut events = provider.events();
    while events.poll_next_unpin(&mut Context::from_waker(&waker)).is_ready() {}
    service.set_flag("on", true);
    eventually(async || wakes.0.load(Ordering::Acquire) == 1).await;
    eventually(async || provider.flags(&user("u")).await.bool("on", false)).await;
    // The next change also arrives.
    service.set_flag("on", false);
    eventually(async || !provider.flags(&user("u")).await.bool("on", true)).await;
    assert_eq!((provider.sse_status(), provider.stats().reconnects), (ConnectionStatus::Connected, 0));
    provider.shutdown().await;
}

/// A log subscriber that panics once, at a certain line.
#[derive(Clone)]
struct PanickingLog {
    line: &'static str,
    has_panicked: Arc<AtomicBool>,
}

impl io::Write for PanickingLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let is_line = line.windows(self.line.len()).any(|part| part == self.line.as_bytes());
        assert!(!is_line || self.has_panicked.swap(true, Ordering::AcqRel), "the application's log panics");
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_stream_survives_a_panic_of_the_applications_log() {
    let service = LocalServer::start(json!({"on": false})).await.unwrap();
    let log = PanickingLog { line: "the stream of changes is open", has_panicked: Arc::default() };
    let writer = log.clone();
    let _guard = tracing_subscriber::fmt().with_writer(move || writer.clone()).set_default();
    // The provider runs on this thread, which has this subscriber.
    let provider = builder(&service).runtime(Handle::current()).stale_wait(PATIENCE).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    eventually(async || log.has_panicked.load(Ordering::Acquire)).await;
    eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;
    assert!(!in_time(provider.flags(&user("u"))).await.bool("on", true));
    service.set_flag("on", true);
    eventually(async || provider.flags(&user("u")).await.bool("on", false)).await;
    provider.shutdown().await;
}
