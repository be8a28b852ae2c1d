//! The server: configuration, startup, and shutdown.

use std::{fmt, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    api::cors,
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

/// Limits the interval of heartbeats, which show that a stream is alive.
const MAX_HEARTBEAT: Duration = Duration::from_secs(24 * 60 * 60);

/// A flag service in this process. It stops when it is shut down or dropped.
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

/// Configures a [`LocalServer`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// use std::time::Duration;
///
/// use flipswitch_local::LocalServer;
/// use serde_json::json;
///
/// let service = LocalServer::builder()
///     .flags(json!({"new-home": true}))
///     .api_key("test-key")
///     .heartbeat(Duration::from_secs(1))
///     .start()
///     .await?;
/// assert_eq!(service.api_key(), "test-key");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing until `start` is called"]
pub struct LocalServerBuilder {
    flags: Value,
    flags_file: Option<PathBuf>,
    listen: SocketAddr,
    api_key: Option<String>,
    heartbeat: Duration,
    expose_control: bool,
    event_streams: bool,
    allowed_origins: Vec<String>,
}

impl LocalServer {
    /// Starts a server with these flags on a free loopback port. The flags are `{"key": value, ..}`, or a document in
    /// [flagd's format](https://flagd.dev/reference/flag-definitions/).
    ///
    /// # Errors
    ///
    /// Returns the errors of [`LocalServerBuilder::start`].
    pub async fn start(flags: Value) -> io::Result<Self> {
        Self::builder().flags(flags).start().await
    }

    /// Returns a builder with the default settings.
    pub fn builder() -> LocalServerBuilder {
        LocalServerBuilder {
            flags: Value::Object(Map::new()),
            flags_file: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            api_key: None,
            heartbeat: Duration::from_secs(15),
            expose_control: false,
            event_streams: false,
            allowed_origins: Vec::new(),
        }
    }

    /// Returns the base URL, for a provider's `base_url`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the URL of the dashboard, for a browser on this machine.
    ///
    /// This is [`url`](Self::url) with a trailing slash. If the server listens on all addresses, the host is `localhost`.
    #[must_use]
    pub fn dashboard_url(&self) -> String {
        if self.address.ip().is_unspecified() {
            return format!("http://localhost:{}/", self.address.port());
        }
        format!("{}/", self.url())
    }

    /// Returns an API key that the server accepts.
    #[must_use]
    pub fn api_key(&self) -> String {
        self.state.keys.current()
    }

    /// Replaces the API key, and announces the change on the open streams (`api-key-rotated`). Returns the new key.
    ///
    /// Open streams stay open. If the server accepted any key before, it now accepts only the new one.
    #[expect(clippy::must_use_candidate, reason = "called for its effect")]
    pub fn rotate_api_key(&self, rotation: KeyRotation) -> String {
        self.state.rotate_api_key(rotation).0
    }

    /// Returns a handle to the faults, for tests that add and remove them.
    #[must_use]
    pub fn faults(&self) -> Faults {
        Faults(Arc::clone(&self.state.faults))
    }

    /// Sets a flag to one value for every context, and announces the change on the open streams.
    pub fn set_flag(&self, key: &str, value: impl Into<Value>) {
        self.state.flags.set(key, Definition::Plain(value.into()));
    }

    /// Sets a flag to a definition in flagd's format, or to `{"value": ..}`, and announces the change on the open
    /// streams.
    ///
    /// # Errors
    ///
    /// Returns a [`DefinitionError`] if the definition is invalid. In that case, the flag keeps its definition.
    pub fn set_definition(&self, key: &str, definition: Value) -> Result<(), DefinitionError> {
        self.state.flags.set(key, Definition::parse(key, definition)?);
        Ok(())
    }

    /// Removes a flag, and announces the change on the open streams. Returns whether the flag existed.
    #[expect(clippy::must_use_candidate, reason = "called for its effect")]
    pub fn remove_flag(&self, key: &str) -> bool {
        self.state.flags.remove(key)
    }

    /// Sends an event to the open streams. OFREP event streams receive only `flag-updated` and `config-updated`, in their own
    /// format.
    #[expect(clippy::needless_pass_by_value, reason = "callers write `json!(..)` on the spot")]
    pub fn send_event(&self, event: &str, data: Value) {
        self.state.broadcaster.send(event, &data);
    }

    /// Returns the latest requests, oldest first, including requests from the dashboard.
    ///
    /// The server keeps at most 16 384 requests, with at most 32 MiB of bodies, headers and paths.
    #[must_use]
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.state.request_log.all()
    }

    /// Returns the number of open streams.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.state.broadcaster.stream_count()
    }

    /// Stops the server: ends the streams, closes the connections, and frees the port.
    ///
    /// Requests that have been received get a response. Connections that are still open after 2 seconds, because of an incomplete
    /// request or an unread response, are aborted. No response is sent after this method has returned.
    pub async fn shutdown(self) {
        self.state.stop.cancel();
        for mut task in self.tasks {
            // Tasks end by themselves, unless their runtime is no longer running.
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
    /// Sets the flags: `{"key": value, ..}`, or a document in flagd's format. Defaults to no flags.
    pub fn flags(mut self, flags: Value) -> Self {
        self.flags = flags;
        self
    }

    /// Sets a file of flags, in either format. The server reloads it whenever it changes. Its flags replace flags from
    /// [`flags`](Self::flags) with the same key. Defaults to no file.
    pub fn flags_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.flags_file = Some(path.into());
        self
    }

    /// Sets the address to listen on. Defaults to a free port on `127.0.0.1`.
    ///
    /// On an address other than loopback, other machines can evaluate flags and open streams. Changes require
    /// [`expose_control`](Self::expose_control).
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Sets the API key that clients must send. By default, the server accepts any key, and requests without a key.
    ///
    /// Clients send the key in `X-API-Key`, or in `Authorization` as a bearer token. If a request has both, `X-API-Key` is used.
    pub fn api_key(mut self, api_key: impl Into<String>) -> Self {
        self.api_key = Some(api_key.into());
        self
    }

    /// Sets the interval between heartbeats on streams. Defaults to 15 seconds, as in the real service; the maximum is 1 day.
    pub fn heartbeat(mut self, heartbeat: Duration) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// Sets whether other machines can use the dashboard and the endpoints under `/local`. Defaults to `false`.
    ///
    /// With `true`, anyone who can reach the address can change flags without a key. The `Host` of a request must be an IP
    /// address, a loopback name, or a name without dots, so that web pages cannot reach the server through DNS rebinding.
    pub fn expose_control(mut self, expose: bool) -> Self {
        self.expose_control = expose;
        self
    }

    /// Sets whether the server has OFREP event streams. Defaults to `false`.
    ///
    /// With `true`, each response with all flags advertises the stream, `GET /ofrep/v1/sse/flags`, in `eventStreams`. Clients
    /// that support OFREP event streams open it, and refetch the flags when the stream asks them to. It does so after each
    /// change, and when it opens, unless the client has received the newest change (`Last-Event-ID`).
    ///
    /// The stream requires no API key, because a page cannot add headers to the request that opens an event stream. An event says
    /// that flags changed, but not which ones.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// use flipswitch_local::LocalServer;
    /// use serde_json::json;
    ///
    /// // A page from the development server on port 5173 can use this service.
    /// let service = LocalServer::builder()
    ///     .flags(json!({"new-home": true}))
    ///     .event_streams(true)
    ///     .allow_origin("http://localhost:5173")
    ///     .start()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn event_streams(mut self, event_streams: bool) -> Self {
        self.event_streams = event_streams;
        self
    }

    /// Allows pages from this origin to evaluate flags and open streams from a browser (CORS). Several calls allow several
    /// origins, and `*` allows all of them. Defaults to none.
    ///
    /// The origin must be written as browsers send it, such as `http://localhost:5173`. Pages from other origins still cannot use
    /// the dashboard and the endpoints under `/local`. Allowed pages can also read the responses of [faults](crate::Faults). The
    /// server responds to preflight requests (`OPTIONS`) before faults apply, and without an API key.
    pub fn allow_origin(mut self, origin: impl Into<String>) -> Self {
        self.allowed_origins.push(origin.into());
        self
    }

    /// Starts the server on the current tokio runtime.
    ///
    /// # Errors
    ///
    /// Returns an I/O error that names the address if the server cannot listen on it, or the file if it cannot be read. The kind
    /// is `InvalidData` for invalid flags, and `InvalidInput` for an invalid origin or for a heartbeat of zero or more than 1
    /// day.
    pub async fn start(self) -> io::Result<LocalServer> {
        let Self { flags, flags_file, listen, api_key, heartbeat, expose_control, event_streams, allowed_origins } =
            self;
        let invalid_input = |problem| io::Error::new(io::ErrorKind::InvalidInput, problem);
        if heartbeat.is_zero() || heartbeat > MAX_HEARTBEAT {
            let problem = format!("heartbeat is {heartbeat:?}, but must be more than zero and at most 1 day");
            return Err(invalid_input(problem));
        }
        let parse_origin = |origin: &String| {
            cors::parse_origin(origin).map_err(|problem| invalid_input(format!("allow_origin: {problem}")))
        };
        let allowed_origins = allowed_origins.iter().map(parse_origin).collect::<io::Result<_>>()?;
        let mut flags =
            definition::parse_document(flags).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let file = match &flags_file {
            None => None,
            Some(path) => {
                // Read before it is watched, so that errors are reported, and again afterwards, so that no change is
                // missed.
                file::read(path)?;
                let watcher = FileWatcher::new(path)?;
                let from_file = file::read(path)?;
                file::warn_of_invalid_rules(path, &from_file);
                flags.extend(from_file.clone());
                Some((watcher, from_file))
            }
        };
        let cannot_listen =
            |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {listen}: {error}"));
        let listener = TcpListener::bind(listen).await.map_err(cannot_listen)?;
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
            event_streams,
            allowed_origins,
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

/// Shows all settings except the API key.
impl fmt::Debug for LocalServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalServerBuilder")
            .field("flags", &self.flags)
            .field("flags_file", &self.flags_file)
            .field("listen", &self.listen)
            .field("heartbeat", &self.heartbeat)
            .field("expose_control", &self.expose_control)
            .field("event_streams", &self.event_streams)
            .field("allowed_origins", &self.allowed_origins)
            .finish_non_exhaustive()
    }
}
