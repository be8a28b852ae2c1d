//! Helpers for tests with faults. After each fault, the provider must have the values of the service again. It must have reported
//! the states of its connection, sent no more requests than its backoff allows, and not panicked.

use std::{
    net::SocketAddr,
    panic,
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use axum::body::Bytes;
use flipswitch::{ConnectionStatus, Flags, FlipswitchProvider, FlipswitchProviderBuilder, Subscription};
use flipswitch_local::LocalServer;
use serde_json::json;
use tokio::sync::broadcast;

use super::{
    PATIENCE, in_time, reserved_port,
    scripted::{Reply, Scripted},
    user,
};

/// The polling interval of tests that poll.
pub(crate) const POLLING: Duration = Duration::from_millis(100);

/// The default polling interval of the provider.
const POLLING_BY_DEFAULT: Duration = Duration::from_secs(30);

/// A provider that is tested with a fault, and its reports. The user `u` reads the flag `f`.
pub(crate) struct Row {
    /// The name of the row in its table.
    pub(crate) name: String,
    pub(crate) provider: FlipswitchProvider,
    pub(crate) statuses: Arc<Mutex<Vec<String>>>,
    /// Keys of flags that changed; `None` for all.
    pub(crate) changes: Arc<Mutex<Vec<Option<String>>>>,
    _listening: [Subscription; 2],
    polling: Duration,
    pub(crate) began: Instant,
    /// How many times `reconnect_sse` has reset the backoff.
    reconnects: AtomicUsize,
}

impl Row {
    /// Builds a provider with the default polling interval.
    pub(crate) fn new(builder: FlipswitchProviderBuilder) -> Self {
        Self::with_polling(builder, POLLING_BY_DEFAULT)
    }

    /// Builds a provider that polls often, beginning with the first failure of the stream.
    pub(crate) fn polling(builder: FlipswitchProviderBuilder) -> Self {
        Self::with_polling(builder.polling_interval(POLLING).max_sse_retries(1), POLLING)
    }

    pub(crate) fn with_polling(builder: FlipswitchProviderBuilder, polling: Duration) -> Self {
        count_panics();
        let provider = builder.build().unwrap();
        let (statuses, changes) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<Vec<_>>>::default());
        let listening = [
            provider.add_connection_status_listener({
                let statuses = Arc::clone(&statuses);
                move |status| statuses.lock().unwrap().push(status.to_string())
            }),
            provider.add_flag_change_listener({
                let changes = Arc::clone(&changes);
                move |change| changes.lock().unwrap().push(change.flag_key.clone())
            }),
        ];
        let (began, reconnects) = (Instant::now(), AtomicUsize::new(0));
        Self { name: String::new(), provider, statuses, changes, _listening: listening, polling, began, reconnects }
    }

    pub(crate) fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Waits until a state is reached. Panics with the name of the state if this takes too long.
    pub(crate) async fn eventually(&self, state: impl std::fmt::Display, mut reached: impl AsyncFnMut() -> bool) {
        let began = Instant::now();
        while !reached().await {
            let heard = self.statuses.lock().unwrap().join(" ");
            assert!(began.elapsed() < PATIENCE, "{}: not {state}; {heard}; {:?}", self.name, self.provider.stats());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn read(&self) -> Flags {
        in_time(self.provider.flags(&user("u"))).await
    }

    /// Waits until the value is this one, and fresh.
    pub(crate) async fn sees(&self, value: i64) {
        self.eventually(format_args!("fresh with {value}"), async || {
            let flags = self.read().await;
            flags.int("f", -1) == value && !flags.is_stale() && flags.error().is_none()
        })
        .await;
    }

    /// Waits until the value is this one, stale and with an error.
    pub(crate) async fn keeps(&self, value: i64) {
        self.eventually(format_args!("stale with {value}"), async || {
            let flags = self.read().await;
            assert_eq!(flags.int("f", -1), value, "{}: the last known value", self.name);
            flags.is_stale() && flags.error().is_some()
        })
        .await;
    }

    pub(crate) async fn shows(&self, status: ConnectionStatus) {
        self.eventually(status, async || self.provider.sse_status() == status).await;
    }

    pub(crate) async fn polls(&self, polls: bool) {
        let state = if polls { "polling" } else { "done with polling" };
        self.eventually(state, async || self.provider.is_polling_active() == polls).await;
    }

    /// Waits until the stream is open, the value is this one, and the requests that opening the stream causes are
    /// answered.
    pub(crate) async fn opens(&self, service: &impl Service, value: i64) {
        self.provider.ready(PATIENCE).await.unwrap();
        self.shows(ConnectionStatus::Connected).await;
        // The request at startup may have been new enough.
        let checks = || service.asked().iter().filter(|asked| asked.0 == Kind::StartUp).count();
        self.eventually("asked again", async || checks() >= 2 || self.began.elapsed() > Duration::from_millis(1_500))
            .await;
        self.sees(value).await;
    }

    pub(crate) fn reconnect(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
        self.provider.reconnect_sse();
    }

    /// Waits until a change of this flag was reported, without evaluations.
    pub(crate) async fn hears_of(&self, key: &str) {
        let heard = || self.changes.lock().unwrap().iter().any(|change| change.as_deref() == Some(key));
        self.eventually(format_args!("told of {key}"), async || heard()).await;
    }

    /// Checks the whole row: the statuses in their order, with repeated sequences written once, and the number of
    /// requests. Waits for the last status, because a requested reconnect may follow an automatic one.
    pub(crate) async fn ends(self, statuses: &str, asked: Vec<(Kind, Instant)>) {
        let heard = || folded(self.statuses.lock().unwrap().clone()).join(" ");
        self.eventually(format_args!("told of {statuses}"), async || heard() == statuses).await;
        let name = &self.name;

        let elapsed = self.began.elapsed();
        let attempts = scheduled(elapsed) + self.reconnects.load(Ordering::Relaxed);
        let polls = usize::try_from(elapsed.as_millis() / self.polling.as_millis()).unwrap();
        let count = |kind| asked.iter().filter(|asked| asked.0 == kind).count();
        let (streams, start_up, of_users) = (count(Kind::Stream), count(Kind::StartUp), count(Kind::User));
        assert!(streams <= 2 * attempts, "{name}: {streams} streams in {elapsed:?}");
        // The start-up request, one request for each stream, and the polls.
        assert!(start_up <= 2 * (1 + attempts + polls), "{name}: {start_up} start-up requests in {elapsed:?}");
        // The requests for one user: for each stream, its first heartbeat, and one or two events with their echo windows.
        assert!(of_users <= 2 * (5 * attempts + polls), "{name}: {of_users} requests for a user in {elapsed:?}");

        in_time(self.provider.shutdown()).await;
        assert_eq!(PANICS.load(Ordering::Relaxed), 0, "{}: nothing panics", self.name);
    }
}

/// Returns the number of attempts that the backoff allows in a time: immediately, after one second, after two more, and so on.
pub(crate) fn scheduled(time: Duration) -> usize {
    (0..).take_while(|failures| Duration::from_secs((1 << failures) - 1) <= time).count()
}

/// Removes sequences that repeat the one before them.
pub(crate) fn folded(mut statuses: Vec<String>) -> Vec<String> {
    let repeated = |statuses: &[String]| {
        let of_length = |length| (2 * length..=statuses.len()).map(move |end| (end, length));
        (1..=3)
            .flat_map(of_length)
            .find(|&(end, length)| statuses[end - 2 * length..end - length] == statuses[end - length..end])
    };
    while let Some((end, length)) = repeated(&statuses) {
        statuses.drain(end - length..end);
    }
    statuses
}

#[test]
fn repeated_statuses_are_folded() {
    let folded = |statuses: &str| folded(statuses.split(' ').map(str::to_owned).collect()).join(" ");
    assert_eq!(folded("a b c b c b c d"), "a b c d");
    assert_eq!(folded("a b c d b c d e"), "a b c d e");
    assert_eq!(folded("a b b a"), "a b a");
}

/// Records panics in the threads and the code of providers, in the whole process.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let at = panic.location().map_or("", |location| location.file());
            let at_home = thread::current().name().is_some_and(|name| name.starts_with("flipswitch"));
            if at.contains("flipswitch/src/") || at_home && !at.contains("tests/it") {
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            tell(panic);
        }));
    });
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Stream,
    /// A request for the start-up context.
    StartUp,
    User,
}

impl Kind {
    pub(crate) fn of(path: &str, body: &[u8]) -> Self {
        match path {
            "/api/v1/flags/events" => Self::Stream,
            _ if body == json!({"context": {"targetingKey": "_init_"}}).to_string().as_bytes() => Self::StartUp,
            _ => Self::User,
        }
    }
}

pub(crate) trait Service {
    /// Returns the received requests, with their times.
    fn asked(&self) -> Vec<(Kind, Instant)>;

    fn asked_for(&self, kind: Kind) -> Vec<Instant> {
        self.asked().into_iter().filter(|asked| asked.0 == kind).map(|asked| asked.1).collect()
    }
}

impl Service for LocalServer {
    fn asked(&self) -> Vec<(Kind, Instant)> {
        self.requests().iter().map(|request| (Kind::of(&request.path, &request.body), request.at)).collect()
    }
}

impl Service for Scripted {
    fn asked(&self) -> Vec<(Kind, Instant)> {
        let of = |request: &crate::support::scripted::Received| Kind::of(&request.path, request.body.as_bytes());
        self.received().iter().map(|request| (of(request), request.at)).collect()
    }
}

/// Starts a service with the flag `f`.
pub(crate) async fn service(value: i64) -> LocalServer {
    LocalServer::start(json!({"f": value})).await.unwrap()
}

/// A service whose flag `f` changes without an event, and whose streams send the bytes of a test.
pub(crate) struct Mute {
    pub(crate) service: Scripted,
    value: Arc<AtomicI64>,
    pub(crate) pieces: broadcast::Sender<Bytes>,
}

/// An event for a change of any flag.
pub(crate) const CHANGED: &[u8] = b"event: config-updated\ndata: {}\n\n";

impl Mute {
    pub(crate) async fn start() -> Self {
        Self::with_head("").await
    }

    /// Starts a service whose streams have these additional headers.
    pub(crate) async fn with_head(head: &'static str) -> Self {
        let (value, pieces) = (Arc::new(AtomicI64::new(1)), broadcast::channel(16).0);
        let service = {
            let (value, pieces) = (Arc::clone(&value), pieces.clone());
            Scripted::start(move |request, _| match request.method.as_str() {
                "GET" => Reply::Bytes(head, pieces.clone()),
                _ => Reply::json(json!({"flags": [{"key": "f", "value": value.load(Ordering::SeqCst)}]})),
            })
            .await
        };
        Self { service, value, pieces }
    }

    pub(crate) fn set(&self, value: i64) {
        self.value.store(value, Ordering::SeqCst);
    }

    pub(crate) fn say(&self, bytes: impl Into<Vec<u8>>) {
        self.pieces.send(bytes.into().into()).unwrap();
    }

    /// Finishes the streams.
    pub(crate) fn finish(&self) {
        self.pieces.send(Bytes::new()).unwrap();
    }

    pub(crate) fn builder(&self) -> FlipswitchProviderBuilder {
        FlipswitchProvider::builder("key").base_url(self.service.url())
    }
}

/// A reserved port for services that start and stop.
pub(crate) struct Port {
    address: SocketAddr,
}

impl Port {
    pub(crate) fn new() -> Self {
        Self { address: reserved_port() }
    }

    pub(crate) async fn service(&self, value: i64) -> LocalServer {
        LocalServer::builder().flags(json!({"f": value})).listen(self.address).start().await.unwrap()
    }

    pub(crate) fn builder(&self) -> FlipswitchProviderBuilder {
        FlipswitchProvider::builder("key").base_url(format!("http://{}", self.address))
    }
}
