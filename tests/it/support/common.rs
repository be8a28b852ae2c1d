//! Providers, services, waiting and logs for all tests.

use std::{
    cell::RefCell,
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Once,
    time::Duration,
};

use flipswitch::{FlipswitchProvider, FlipswitchProviderBuilder, open_feature::EvaluationContext};
use flipswitch_local::LocalServer;
use serde_json::{Map, Value, json};
use tokio::net::TcpSocket;
use tracing_subscriber::filter::LevelFilter;

/// The maximum time that a test waits for a state, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The path of all flags.
pub(crate) const BULK: &str = "/ofrep/v1/evaluate/flags";

/// The path of the OFREP event stream.
pub(crate) const EVENT_STREAM: &str = "/ofrep/v1/sse/flags";

/// Returns flags of every type, in flagd's format, for tests with services and clients of other projects.
pub(crate) fn sample_flags() -> Value {
    serde_json::from_str(include_str!("../../peers/flags.json")).unwrap()
}

/// Returns the context of a user.
pub(crate) fn user(id: &str) -> EvaluationContext {
    EvaluationContext::default().with_targeting_key(id)
}

/// Returns a builder of a provider for a local service. Evaluations wait for flags even on a busy machine.
pub(crate) fn builder(service: &LocalServer) -> FlipswitchProviderBuilder {
    FlipswitchProvider::builder(service.api_key()).base_url(service.url()).miss_wait(PATIENCE)
}

/// Returns a provider for a local service.
pub(crate) fn provider(service: &LocalServer) -> FlipswitchProvider {
    builder(service).build().unwrap()
}

/// Returns a builder of a provider without background requests, whose flags become stale after `cache_ttl`.
pub(crate) fn unattended(base_url: String, cache_ttl: Duration) -> FlipswitchProviderBuilder {
    FlipswitchProvider::builder("key")
        .base_url(base_url)
        .miss_wait(PATIENCE)
        .enable_realtime(false)
        .enable_polling_fallback(false)
        .cache_ttl(cache_ttl)
}

/// Returns a provider for an address where nothing listens.
pub(crate) fn provider_of_nothing() -> FlipswitchProvider {
    let builder = FlipswitchProvider::builder("key").secret("the secret of the applications in these tests");
    builder.base_url(format!("http://{}", closed_port())).build().unwrap()
}

/// Returns an address where nothing listens. The address is reserved until the process ends.
pub(crate) fn closed_port() -> SocketAddr {
    let (address, taken) = port_taken();
    std::mem::forget(taken);
    address
}

/// Returns an address for servers that are stopped and started again. On Linux, a server can listen on an address that a
/// different socket reserves, so the system gives the port to no other process.
pub(crate) fn reserved_port() -> SocketAddr {
    let (address, taken) = port_taken();
    if cfg!(target_os = "linux") {
        std::mem::forget(taken);
    }
    address
}

/// Returns an address where nothing listens. The address is reserved until the socket is dropped.
fn port_taken() -> (SocketAddr, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    // Allows a service to use the address immediately.
    socket.set_reuseaddr(true).unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    (socket.local_addr().unwrap(), socket)
}

/// Returns a flag `whoami`, whose value is the id for each of these users and `nobody` for others.
pub(crate) fn whoami(users: impl IntoIterator<Item = String>) -> Value {
    let mut variants: Map<String, Value> = users.into_iter().map(|id| (id.clone(), json!(id))).collect();
    variants.insert("nobody".to_owned(), json!("nobody"));
    json!({"flags": {"whoami": {
        "state": "ENABLED", "variants": variants, "defaultVariant": "nobody",
        "targeting": {"if": [{"var": "targetingKey"}, {"var": "targetingKey"}]},
    }}})
}

/// Returns the number of bulk requests that a service has received, without the start-up request.
pub(crate) fn evaluations(service: &LocalServer) -> usize {
    let start_up = json!({"context": {"targetingKey": "_init_"}}).to_string();
    let is_evaluation = |path: &str, body: &[u8]| path == BULK && body != start_up.as_bytes();
    service.requests().iter().filter(|request| is_evaluation(&request.path, &request.body)).count()
}

/// Fails the test if a future takes longer than [`PATIENCE`].
pub(crate) async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("the future takes too long")
}

/// Waits until a state is reached.
pub(crate) async fn eventually(mut reached: impl AsyncFnMut() -> bool) {
    in_time(async {
        while !reached().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Returns the text of an error and of its sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The warnings and errors that were logged on this thread.
pub(crate) struct Log(());

thread_local! {
    static LOGGED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Log {
    /// Starts an empty log.
    pub(crate) fn of_this_thread() -> Self {
        static SUBSCRIBED: Once = Once::new();
        SUBSCRIBED.call_once(|| {
            let log = tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_ansi(false).without_time();
            log.with_writer(|| ThreadsLog).init();
        });
        LOGGED.take();
        Self(())
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        LOGGED.with_borrow(|logged| str::from_utf8(logged).unwrap().lines().map(str::to_owned).collect())
    }
}

/// Writes to the log of the current thread.
struct ThreadsLog;

impl io::Write for ThreadsLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOGGED.with_borrow_mut(|logged| logged.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
