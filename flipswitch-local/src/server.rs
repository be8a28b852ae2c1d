//! The server: built, started, and stopped.

use std::{fmt, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    broadcast::Broadcaster,
    faults::{faults::Faults, registry::FaultRegistry},
    flags::{
        definition::{self, Definition},
        error::DefinitionError,
        file::{self, FileWatcher},
        store::FlagStore,
    },
    keys::{KeyRotation, Keys},
    request_log::{RecordedRequest, RequestLog},
    serve::{self, SHUTDOWN_TIMEOUT},
    state::AppState,
};

/// Heartbeats are at most this far apart: they show that a stream is alive, and clocks have an end.
const MAX_HEARTBEAT: Duration = Duration::from_secs(24 * 60 * 60);

/// A flag service in this process, on a loopback port. It stops when it is shut down or dropped.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// use flipswitch_local::LocalServer;
///
/// let service = LocalServer::start(serde_json::json!({"new-home": false})).await?;
/// println!("flags at {}", service.url());
/// service.set_flag("new-home", true);
/// service.shutdown().await;
/// # Ok(())
/// # }
/// ```
pub struct LocalServer {
    state: Arc<AppState>,
    address: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
    _stop_on_drop: DropGuard,
}

/// Settings of a [`LocalServer`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `start`"]
pub struct LocalServerBuilder {
    flags: Value,
    flags_file: Option<PathBuf>,
    listen: SocketAddr,
    api_key: Option<String>,
    heartbeat: Duration,
    expose_control: bool,
}

/// Shows everything but the API key.
impl fmt::Debug for LocalServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalServerBuilder")
            .field("flags", &self.flags)
            .field("flags_file", &self.flags_file)
            .field("listen", &self.listen)
            .field("heartbeat", &self.heartbeat)
            .field("expose_control", &self.expose_control)
            .finish_non_exhaustive()
    }
}

impl LocalServer {
    /// Starts a service with these flags on a free loopback port: `{"key": value, ..}`, or flagd's format.
    ///
    /// # Errors
    ///
    /// As [`LocalServerBuilder::start`].
    pub async fn start(flags: Value) -> io::Result<Self> {
        Self::builder().flags(flags).start().await
    }

    /// Begins a service with other settings than the defaults.
    pub fn builder() -> LocalServerBuilder {
        LocalServerBuilder {
            flags: Value::Object(Map::new()),
            flags_file: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            api_key: None,
            heartbeat: Duration::from_secs(15),
            expose_control: false,
        }
    }

    /// Returns the base URL, for a provider's `base_url`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the address of the dashboard, for a browser on this machine.
    ///
    /// It is [`url`](Self::url) with a slash, unless the service listens on all addresses, of which none is one to go to.
    #[must_use]
    pub fn dashboard_url(&self) -> String {
        if self.address.ip().is_unspecified() {
            return format!("http://localhost:{}/", self.address.port());
        }
        format!("{}/", self.url())
    }

    /// Returns a key that the service takes.
    #[must_use]
    pub fn api_key(&self) -> String {
        self.state.keys.current()
    }

    /// Gives the service another API key, and tells the open streams (`api-key-rotated`); returns the new key, which
    /// [`api_key`](Self::api_key) returns from now on.
    ///
    /// A service that took any key takes only the new one afterwards. Streams that are open stay open.
    #[expect(clippy::must_use_candidate, reason = "called for its effect")]
    pub fn rotate_api_key(&self, rotation: KeyRotation) -> String {
        self.state.rotate_api_key(rotation).0
    }

    /// Returns the handle on what goes wrong.
    #[must_use]
    pub fn faults(&self) -> Faults {
        Faults(Arc::clone(&self.state.faults))
    }

    /// Sets a flag to one value for everyone, and tells the open streams.
    pub fn set_flag(&self, key: &str, value: impl Into<Value>) {
        self.state.flags.set(key, Definition::Plain(value.into()));
    }

    /// Sets a flag to a definition in flagd's format, or to `{"value": ..}`, and tells the open streams.
    ///
    /// # Errors
    ///
    /// A [`DefinitionError`] naming what is wrong with the definition; the flag stays as it was.
    pub fn set_definition(&self, key: &str, definition: Value) -> Result<(), DefinitionError> {
        self.state.flags.set(key, Definition::parse(key, definition)?);
        Ok(())
    }

    /// Removes a flag, and tells the open streams; returns whether there was one.
    #[expect(clippy::must_use_candidate, reason = "called for its effect")]
    pub fn remove_flag(&self, key: &str) -> bool {
        self.state.flags.remove(key)
    }

    /// Sends any event to the open streams.
    #[expect(clippy::needless_pass_by_value, reason = "callers write `json!(..)` on the spot")]
    pub fn send_event(&self, event: &str, data: Value) {
        self.state.broadcaster.send(event, &data);
    }

    /// Returns the requests received so far, oldest first; of many the latest: at most 16 384 of them, with at most
    /// 32 MiB of bodies and paths together.
    #[must_use]
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.state.request_log.all()
    }

    /// Returns how many streams of changes are open.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.state.broadcaster.stream_count()
    }

    /// Stops the service: streams end, connections close, the port is free.
    ///
    /// No new connection is taken. Requests that have come in are answered; a connection that has not ended within 2 s,
    /// with half a request sent or an answer that nobody reads, is cut. No request is answered after this has returned.
    pub async fn shutdown(self) {
        self.state.stop.cancel();
        for mut task in self.tasks {
            // Tasks end by themselves, unless their runtime does not run any more.
            if tokio::time::timeout(SHUTDOWN_TIMEOUT * 2, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

impl fmt::Debug for LocalServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalServer")
            .field("url", &self.url())
            .field("streams", &self.streams())
            .finish_non_exhaustive()
    }
}

impl LocalServerBuilder {
    /// Sets the flags: `{"key": value, ..}`, or flagd's format. Default: none.
    pub fn flags(mut self, flags: Value) -> Self {
        self.flags = flags;
        self
    }

    /// Sets a file of flags, in either form, that is followed as it changes; its flags win over
    /// [`flags`](Self::flags). Default: none.
    pub fn flags_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.flags_file = Some(path.into());
        self
    }

    /// Sets the address to listen on. Default: a free port of `127.0.0.1`.
    ///
    /// On another address than loopback, other machines are served flags and the stream of changes; they may not change
    /// anything unless [`expose_control`](Self::expose_control) is set.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Sets the API key that clients must send. Default: any key, or none, will do.
    pub fn api_key(mut self, api_key: impl Into<String>) -> Self {
        self.api_key = Some(api_key.into());
        self
    }

    /// Sets the time between two heartbeats on a stream, at most a day. Default: 15 s, as the service has it.
    pub fn heartbeat(mut self, heartbeat: Duration) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// Sets whether other machines may use the dashboard and the endpoints under `/local`. Default: only this one.
    ///
    /// Whoever reaches the address can then change flags, without a key. Requests are taken for IP addresses, names without
    /// dots, and those of loopback, so that pages elsewhere cannot reach the service by a name of their own.
    pub fn expose_control(mut self, expose: bool) -> Self {
        self.expose_control = expose;
        self
    }

    /// Starts the service on the current tokio runtime.
    ///
    /// # Errors
    ///
    /// An I/O error naming the address if it cannot be listened on, or the file if it cannot be read; of kind
    /// `InvalidData`, with the place, for flags that are none; of kind `InvalidInput` for a heartbeat of zero or of more
    /// than a day.
    pub async fn start(self) -> io::Result<LocalServer> {
        let Self { flags, flags_file, listen, api_key, heartbeat, expose_control } = self;
        if heartbeat.is_zero() || heartbeat > MAX_HEARTBEAT {
            let problem = format!("heartbeat is {heartbeat:?}; give it a duration above zero and of a day at most");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let mut flags =
            definition::parse_document(flags).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let file = match &flags_file {
            None => None,
            Some(path) => {
                // Read once for its mistakes, and again when it is watched, so that no change is lost in between.
                file::read(path)?;
                let watcher = FileWatcher::new(path)?;
                let from_file = file::read(path)?;
                file::warn_of_invalid_rules(path, &from_file);
                flags.extend(from_file.clone());
                Some((watcher, from_file))
            }
        };
        let refuse = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {listen}: {error}"));
        let listener = TcpListener::bind(listen).await.map_err(refuse)?;
        let address = listener.local_addr()?;

        let stop = CancellationToken::new();
        let broadcaster = Arc::<Broadcaster>::default();
        let state = Arc::new(AppState {
            flags: Arc::new(FlagStore::new(flags, Arc::clone(&broadcaster))),
            keys: Keys::new(api_key),
            faults: Arc::new(FaultRegistry::new(Arc::clone(&broadcaster), stop.clone())),
            request_log: RequestLog::new(Arc::clone(&broadcaster)),
            broadcaster,
            heartbeat,
            expose_control,
            stop: stop.clone(),
        });
        let mut tasks = vec![tokio::spawn(serve::serve(listener, Arc::clone(&state)))];
        if let Some((watcher, from_file)) = file {
            let (store, stop) = (Arc::clone(&state.flags), stop.clone());
            tasks.push(tokio::spawn(async move {
                stop.run_until_cancelled(watcher.run(store, from_file)).await;
            }));
        }
        Ok(LocalServer { state, address, tasks, _stop_on_drop: stop.drop_guard() })
    }
}
