//! The builder of a provider.

use std::{env, fmt, path::PathBuf, sync::Arc, time::Duration};

use http::{HeaderMap, header};
use reqwest::ClientBuilder;
use serde_json::Value;
use tokio::runtime::Handle;

use crate::{
    cache_store::CacheStore,
    config::{BaseUrl, ClientFactory, Config, ContextId, EvaluationEvents, Options, ServiceKind},
    credential::{API_KEY, ApiKey, Auth, Credential, custom_header, shown_name},
    error::ConfigError,
    flags::{
        flag_set::{FlagSet, object},
        override_file::OverrideFile,
    },
    provider::{
        ofrep_env::{self, OfrepEnv},
        provider::FlipswitchProvider,
    },
    sanitize::printable,
    secret::Secret,
};

/// The hosted service.
const DEFAULT_BASE_URL: &str = "https://api.flipswitch.io";

const API_KEY_VARIABLE: &str = "FLIPSWITCH_API_KEY";
const BASE_URL_VARIABLE: &str = "FLIPSWITCH_BASE_URL";

/// Configures and builds a [`FlipswitchProvider`]. Setters accept any value; [`build`](Self::build) returns an error
/// for an invalid one.
///
/// ```
/// # fn main() -> Result<(), flipswitch::ConfigError> {
/// use std::time::Duration;
///
/// use flipswitch::FlipswitchProvider;
///
/// let provider = FlipswitchProvider::builder("my-key")
///     .base_url("http://127.0.0.1:3001")
///     .request_timeout(Duration::from_secs(2))
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct FlipswitchProviderBuilder {
    auth: Auth,
    headers: Vec<(String, String)>,
    /// The values of OFREP's environment variables. Options in code take precedence.
    environment: Option<OfrepEnv>,
    base_url: String,
    bootstrap: Option<Value>,
    override_file: Option<PathBuf>,
    override_in_release: bool,
    name: Option<String>,
    secret: Option<Vec<u8>>,
    secret_before: Option<Vec<u8>>,
    store: Option<Arc<dyn CacheStore>>,
    store_namespace: Option<String>,
    options: Options,
}

impl FlipswitchProviderBuilder {
    fn new(service: ServiceKind, base_url: String, auth: Auth) -> Self {
        Self {
            auth,
            headers: Vec::new(),
            environment: None,
            base_url,
            bootstrap: None,
            override_file: None,
            override_in_release: false,
            name: None,
            secret: None,
            secret_before: None,
            store: None,
            store_namespace: None,
            options: Options { service, ..Options::default() },
        }
    }

    pub(crate) fn flipswitch(api_key: String) -> Self {
        Self::new(ServiceKind::Flipswitch, DEFAULT_BASE_URL.to_owned(), Auth::ApiKey(api_key))
    }

    pub(crate) fn ofrep(base_url: String) -> Self {
        Self::new(ServiceKind::Ofrep, base_url, Auth::None)
    }

    /// Reads `FLIPSWITCH_API_KEY` and `FLIPSWITCH_BASE_URL`. OFREP's own variables are not read: they may name a different
    /// service, to which the key would be sent.
    pub(crate) fn from_env() -> Result<Self, ConfigError> {
        // A value that is not Unicode is neither a valid key nor a valid URL, and is rejected as invalid.
        let variable = |name| env::var_os(name).map(|value| value.to_string_lossy().trim().to_owned());
        let api_key = variable(API_KEY_VARIABLE).ok_or(ConfigError::MissingVariable { variable: API_KEY_VARIABLE })?;
        let builder = Self::flipswitch(api_key);
        Ok(match variable(BASE_URL_VARIABLE).filter(|base_url| !base_url.is_empty()) {
            Some(base_url) => builder.base_url(base_url),
            None => builder,
        })
    }

    /// Returns a builder for the OFREP service that OFREP's environment variables describe (ADR-0007 of the OpenFeature
    /// protocol). All other options have the defaults of [`ofrep`](FlipswitchProvider::ofrep).
    ///
    /// | variable | meaning |
    /// |---|---|
    /// | `OFREP_ENDPOINT` | base URL of the service |
    /// | `OFREP_HEADERS` | headers of every request, as in `Authorization=Bearer%20abc,X-Team=web`; percent-encoded |
    /// | `OFREP_TIMEOUT_MS` | the [`request_timeout`](Self::request_timeout) in milliseconds |
    ///
    /// Options that are set in code take precedence: [`auth`](Self::auth) drops `X-API-Key` and `Authorization` from
    /// `OFREP_HEADERS`, and [`header`](Self::header) replaces a header of the same name. If code sets a
    /// [`base_url`](Self::base_url) with a different origin, no headers from the environment are sent, because they may contain a
    /// key. Invalid entries in `OFREP_HEADERS` and an invalid `OFREP_TIMEOUT_MS` are ignored with a warning.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), flipswitch::ConfigError> {
    /// let provider = flipswitch::FlipswitchProviderBuilder::from_ofrep_env()?.build()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] if `OFREP_ENDPOINT` is missing or is not a valid URL.
    pub fn from_ofrep_env() -> Result<Self, ConfigError> {
        let read = ofrep_env::read(|name| env::var_os(name).map(|value| value.to_string_lossy().into_owned()))?;
        let mut builder = Self::ofrep(read.base_url.to_string());
        if let Some(timeout) = read.timeout {
            builder = builder.request_timeout(timeout);
        }
        builder.environment = Some(read);
        Ok(builder)
    }

    /// Sets how requests are authenticated. Defaults to [`Auth::None`] for [`ofrep`](FlipswitchProvider::ofrep), and to the API
    /// key otherwise.
    ///
    /// The key or the token is sent only to the origin of the [`base_url`](Self::base_url), and never to a redirect target or an
    /// event stream at a different origin. [`set_api_key`](FlipswitchProvider::set_api_key) replaces it at runtime.
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        if let Some(OfrepEnv { headers, .. }) = &mut self.environment {
            headers.remove(API_KEY);
            headers.remove(header::AUTHORIZATION);
        }
        self
    }

    /// Adds a header to every request, for example one that selects a namespace or a set of flags. If a name is set twice, the
    /// last value is sent.
    ///
    /// The header is sent only to the origin of the [`base_url`](Self::base_url). Its value is never logged.
    /// [`build`](Self::build) rejects invalid headers, and headers that the provider sets itself.
    ///
    /// ```
    /// # fn main() -> Result<(), flipswitch::ConfigError> {
    /// use flipswitch::{Auth, FlipswitchProvider};
    ///
    /// let provider = FlipswitchProvider::ofrep("https://flags.example")
    ///     .auth(Auth::Bearer("token".to_owned()))
    ///     .header("x-flipt-namespace", "shop")
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets a name for the provider, for applications with several providers. A name consists of 1 to 32 letters, digits, `-`
    /// and `_`. Defaults to none.
    ///
    /// The name appears in every log line of the provider, as the field `provider` of a span, and in the name of the [visitor
    /// cookie](crate::integration::Anonymous::cookie).
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the secret from which all keys of the application are derived, such as the key that authenticates [visitor
    /// cookies](crate::integration::Anonymous::cookie). It must be at least 16 bytes long, and the same in all instances; use 32
    /// random bytes. White space around it is ignored. Defaults to the API key or token or, if there is none, to random bytes
    /// that differ in each process.
    ///
    /// What browsers receive from a [`BrowserService`](crate::integration::BrowserService) is derived from the API key only if
    /// the key is at least 16 bytes long, because a shorter key could be guessed from it.
    ///
    /// With the default, cookies are only as safe as the API key, which must not be public. After the API key is replaced, all
    /// visitors count as new, and may get different variants. With a separate secret, visitors keep their flags.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use flipswitch::FlipswitchProvider;
    ///
    /// let secret = std::fs::read("/run/secrets/flipswitch")?;
    /// let provider = FlipswitchProvider::builder("my-api-key").secret(secret).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn secret(mut self, secret: impl Into<Vec<u8>>) -> Self {
        self.secret = Some(secret.into());
        self
    }

    /// Sets the previous secret, so that visitor cookies are still accepted after the secret is replaced. Defaults to none. If
    /// there was no secret, pass the previous API key.
    ///
    /// Instances that have only the old secret replace the cookies that other instances have set. To avoid this, first set the
    /// old secret as `secret` and the new one as `secret_before` in all instances, and then swap them.
    pub fn secret_before(mut self, secret: impl Into<Vec<u8>>) -> Self {
        self.secret_before = Some(secret.into());
        self
    }

    /// Sets the URL of the flag service. Defaults to `https://api.flipswitch.io`.
    ///
    /// The URL has the scheme `http` or `https`, and may have a path, but no credentials, query or fragment. Proxies from
    /// the environment are used, except for a loopback address.
    pub fn base_url(mut self, base_url: impl Into<String>) -> Self {
        self.base_url = base_url.into();
        self
    }

    /// Sets a function that configures the HTTP clients, for example with a proxy, a certificate authority, mutual TLS or default
    /// headers. Defaults to a plain [`reqwest::ClientBuilder`].
    ///
    /// The function is called for every client that the provider needs. Afterwards, the provider sets redirects, timeouts and
    /// content encodings. It also sets the user agent `flipswitch-rust/<version>`, unless the function sets one.
    ///
    /// Prefer [`header`](Self::header) for headers. If the client has default headers, event streams at origins other than the
    /// origin of the [`base_url`](Self::base_url) are not opened, because they would receive the headers.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use flipswitch::{FlipswitchProvider, reqwest};
    ///
    /// let proxy = reqwest::Proxy::https("http://proxy.internal:3128")?;
    /// let authority = reqwest::Certificate::from_pem(&std::fs::read("internal-ca.pem")?)?;
    /// let mut headers = reqwest::header::HeaderMap::new();
    /// headers.insert("x-team", "checkout".parse()?);
    ///
    /// let provider = FlipswitchProvider::builder("my-key")
    ///     .http_client(move || {
    ///         reqwest::ClientBuilder::new()
    ///             .proxy(proxy.clone())
    ///             .tls_certs_merge([authority.clone()])
    ///             .default_headers(headers.clone())
    ///     })
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn http_client(mut self, factory: impl Fn() -> ClientBuilder + Send + Sync + 'static) -> Self {
        self.options.http_client = Some(ClientFactory::new(factory));
        self
    }

    /// Sets the time limit for a request, from sending it to the last byte of the response. Also limits how long a request waits
    /// to be sent. Defaults to 10 seconds.
    pub fn request_timeout(mut self, request_timeout: Duration) -> Self {
        self.options.request_timeout = request_timeout;
        self
    }

    /// Sets the time limit for connecting, including TLS. Defaults to 5 seconds.
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.options.connect_timeout = connect_timeout;
        self
    }

    /// Sets how many requests may be in flight at the same time. Further requests wait. Defaults to 64.
    ///
    /// At most half of them can be for contexts without flags. A request that has taken longer than
    /// [`miss_wait`](Self::miss_wait), and at least a second, no longer counts towards the limit. If there are more than 64 such
    /// requests, the oldest ones are cancelled if later ones have received a response, beginning with those for contexts without
    /// flags.
    pub fn max_concurrent_requests(mut self, max_concurrent_requests: usize) -> Self {
        self.options.max_concurrent_requests = max_concurrent_requests;
        self
    }

    /// Sets how many requests may wait to be sent. Defaults to 16 384. Their contexts take up at most 16 MiB.
    ///
    /// The newest request that an evaluation is waiting for is sent first. When the queue is full, the oldest requests are
    /// dropped with [`Error::QueueFull`](crate::Error::QueueFull): first those that were passed over because no evaluation
    /// is waiting for them, then those for contexts without flags, then all others.
    pub fn max_queued_requests(mut self, max_queued_requests: usize) -> Self {
        self.options.max_queued_requests = max_queued_requests;
        self
    }

    /// Sets whether requests report the versions of this crate and of the compiler, the operating system and the enabled
    /// features, as all Flipswitch SDKs do. Defaults to `true`. Other OFREP services never receive them.
    pub fn telemetry(mut self, telemetry: bool) -> Self {
        self.options.telemetry = telemetry;
        self
    }

    /// Sets flag values, as a JSON object, that apply to each context while no flags for it from the service are known, or
    /// only flags older than [`max_stale`](Self::max_stale). Defaults to none, so the defaults in the code apply.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), flipswitch::ConfigError> {
    /// use flipswitch::{Context, FlipswitchProvider, serde_json::json};
    ///
    /// // Nothing listens at this address.
    /// let provider = FlipswitchProvider::builder("my-key")
    ///     .base_url("http://127.0.0.1:9")
    ///     .bootstrap(json!({"checkout": true}))
    ///     .build()?;
    /// let flags = provider.flags(Context::anonymous()).await;
    /// assert!(flags.bool("checkout", false));
    /// assert!(flags.is_stale());
    /// # provider.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn bootstrap(mut self, values: Value) -> Self {
        self.bootstrap = Some(values);
        self
    }

    /// Sets a file of flag values that override the values from the service, for development. Defaults to none.
    ///
    /// The file contains a JSON object of flag keys and values, which apply to every context with the reason `OVERRIDE`.
    /// [`build`](Self::build) reads the file, and a warning names the flags when the provider starts.
    ///
    /// A release build rejects the file, so that it is not deployed by mistake; see
    /// [`override_in_release`](Self::override_in_release).
    ///
    /// ```no_run
    /// # fn main() -> Result<(), flipswitch::ConfigError> {
    /// let mut builder = flipswitch::FlipswitchProvider::builder("my-api-key");
    /// if cfg!(debug_assertions) && std::path::Path::new("flags.override.json").exists() {
    ///     builder = builder.override_file("flags.override.json");
    /// }
    /// let provider = builder.build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn override_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.override_file = Some(path.into());
        self
    }

    /// Sets whether an [`override_file`](Self::override_file) is accepted in a release build, that is, in a build without
    /// debug assertions. Defaults to `false`.
    pub fn override_in_release(mut self, allowed: bool) -> Self {
        self.override_in_release = allowed;
        self
    }

    /// Sets the runtime for requests and listeners. Defaults to a thread of the provider, which starts at its first use.
    ///
    /// The runtime must have I/O and time enabled, and must be running: while it is blocked, evaluations for contexts that are
    /// not cached wait. The thread of the provider has no such requirement, and serves several runtimes at the same time.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use flipswitch::FlipswitchProvider;
    ///
    /// let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    /// let provider = FlipswitchProvider::builder("my-key").runtime(runtime.handle().clone()).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.options.runtime = Some(runtime);
        self
    }

    /// Sets whether the provider opens the service's stream of changes, which updates flags in milliseconds. Defaults to
    /// `true`. Otherwise the service is polled, unless [polling](Self::enable_polling_fallback) is disabled as well.
    ///
    /// An OFREP service advertises its event streams in its responses (ADR-0008 of the OpenFeature protocol). The provider
    /// follows up to 4 of them, and polls while there are none.
    pub fn enable_realtime(mut self, enable_realtime: bool) -> Self {
        self.options.enable_realtime = enable_realtime;
        self
    }

    /// Sets whether the service is polled while the stream of changes is closed or disabled. Defaults to `true`.
    ///
    /// A poll requests the flags for the start-up context conditionally, and notifies listeners of changed flags. The flags for
    /// other contexts are requested at their next use, once they are older than the [polling interval](Self::polling_interval).
    /// With neither the stream nor polling, nothing is requested in the background, and flags are fresh for
    /// [`cache_ttl`](Self::cache_ttl).
    pub fn enable_polling_fallback(mut self, enable_polling_fallback: bool) -> Self {
        self.options.enable_polling_fallback = enable_polling_fallback;
        self
    }

    /// Sets the time between two polls, and the maximum age of fresh flags while the stream of changes is closed. Defaults to 30
    /// seconds. A poll may be early or late by up to a tenth of this time.
    pub fn polling_interval(mut self, polling_interval: Duration) -> Self {
        self.options.polling_interval = polling_interval;
        self
    }

    /// Sets the number of consecutive failures of the stream after which polling begins. The provider keeps retrying
    /// the stream. Defaults to 5; the minimum is 1.
    pub fn max_sse_retries(mut self, max_sse_retries: u32) -> Self {
        self.options.max_sse_retries = max_sse_retries;
        self
    }

    /// Sets how long the stream of changes may be silent before it counts as broken. Defaults to 60 seconds; the service
    /// sends a heartbeat every 15 seconds.
    ///
    /// It is not a failure if the service ends a stable stream. A stream is stable once it has been open for 10 seconds and has
    /// received an event or a heartbeat, or once it has been open for 60 seconds and has received anything. With a timeout of
    /// less than 60 seconds, these times are proportionally shorter.
    pub fn stream_idle_timeout(mut self, stream_idle_timeout: Duration) -> Self {
        self.options.stream_idle_timeout = stream_idle_timeout;
        self
    }

    /// Sets how long an evaluation waits for fresh flags if stale ones are cached. Defaults to 250 milliseconds; with zero, it
    /// never waits.
    pub fn stale_wait(mut self, stale_wait: Duration) -> Self {
        self.options.stale_wait = stale_wait;
        self
    }

    /// Sets how long an evaluation waits for the flags of a context that has none yet. Defaults to 1 second; with zero, it never
    /// waits.
    ///
    /// After that time, the evaluation returns the [bootstrap](Self::bootstrap) values or defaults, with
    /// [`Error::Timeout`](crate::Error::Timeout). The request continues, and later evaluations use its response.
    pub fn miss_wait(mut self, miss_wait: Duration) -> Self {
        self.options.miss_wait = miss_wait;
        self
    }

    /// Sets the maximum number of contexts in the cache. Defaults to 10 000. The actual limit is slightly lower if their
    /// hashes are distributed unevenly.
    pub fn cache_capacity(mut self, contexts: usize) -> Self {
        self.options.cache_capacity = contexts;
        self
    }

    /// Sets the approximate memory limit of the cache, in bytes. Defaults to 256 MiB; the minimum is 1 MiB.
    ///
    /// Parts that contexts share are stored once, and count towards the context that had them first. After that context is
    /// evicted, the cache may exceed its limit for a while. Flags that are larger than the limit are still cached.
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.options.cache_bytes = bytes;
        self
    }

    /// Sets the maximum age of fresh flags while the stream of changes is open. Defaults to 15 minutes.
    pub fn cache_ttl(mut self, cache_ttl: Duration) -> Self {
        self.options.cache_ttl = cache_ttl;
        self
    }

    /// Sets the maximum age of stale flags, which are served when the service does not respond. If only older flags are known,
    /// evaluations return bootstrap values or defaults. Defaults to 24 hours; zero disables stale flags. Does not limit
    /// [fresh](Self::cache_ttl) flags.
    pub fn max_stale(mut self, max_stale: Duration) -> Self {
        self.options.max_stale = max_stale;
        self
    }

    /// Sets a store outside the process that keeps the flags of users. Defaults to none.
    ///
    /// With `flipswitch-redis`, one instance of a fleet requests the flags for a user after a change, and the others read them
    /// from the store. `flipswitch-disk` keeps the last known flags across restarts. To write your own store, see [`CacheStore`].
    ///
    /// Flags in memory always come first. A store that is slow or unavailable causes more requests and short waits, but no
    /// errors. Flags from the store are fresh only if the stream of changes proves that they are; all other flags from it are
    /// served as stale. Evaluations wait at most 50 milliseconds for a call to the store, and no longer than
    /// [`stale_wait`](Self::stale_wait) and [`miss_wait`](Self::miss_wait). The store is dropped with the last handle of the
    /// provider, not by `shutdown`.
    ///
    /// Entries are encrypted with a key that is derived from the [`secret`](Self::secret) or, without one, from the API key or
    /// token. The secret, or the key or token, must be the same in all instances. Neither contexts nor API keys can be read from
    /// the store. An entry that was written with a different base URL, different [headers](Self::header), or a different API key
    /// or [`store_namespace`](Self::store_namespace) is never used. With an [`override_file`](Self::override_file), the store is
    /// not used.
    ///
    /// [`build`](Self::build) returns an error if there is no secret, and no API key or token of 16 bytes or more.
    pub fn store(mut self, store: impl CacheStore) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// Sets a name that identifies the environment in the [`store`](Self::store) instead of the API key or token. Defaults to
    /// none, so flags in the store are no longer found after the API key is replaced.
    ///
    /// With a name and a [`secret`](Self::secret), stored flags remain usable after the key is replaced. Each environment of the
    /// flag service needs a separate name, and [`set_api_key`](FlipswitchProvider::set_api_key) must not change the environment.
    pub fn store_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.store_namespace = Some(namespace.into());
        self
    }

    /// Sets which reads of flags are reported as events. Defaults to [`Off`](EvaluationEvents::Off).
    ///
    /// Events are emitted with `tracing` at INFO level and with the target `flipswitch::evaluation`. They have the name and the
    /// attributes of [`feature_flag.evaluation`] in OpenTelemetry's semantic conventions, and belong to the span in which the
    /// flag is read.
    ///
    /// | reason of the event | value |
    /// |---|---|
    /// | the service's reason in lower case | a fresh value |
    /// | `stale` | a value that may be out of date, or a bootstrap value |
    /// | `override` | an overridden value |
    /// | `error` | the default, because of an error |
    ///
    /// Reads of all flags together, as in [`Flags::to_json`](crate::Flags::to_json), and reads by routes for browsers are not
    /// reported. Reads of an [in-memory](FlipswitchProvider::in_memory) provider are not reported either.
    ///
    /// [`feature_flag.evaluation`]: https://opentelemetry.io/docs/specs/semconv/feature-flags/feature-flags-events/
    pub fn evaluation_events(mut self, events: EvaluationEvents) -> Self {
        self.options.evaluation_events = events;
        self
    }

    /// Sets what the attribute `feature_flag.context.id` of [events](Self::evaluation_events) contains. Defaults to
    /// [`Hashed`](ContextId::Hashed).
    ///
    /// The hash of a user is the same in all instances with the same [`secret`](Self::secret) or, without a secret, in all
    /// instances with the same API key or token. If there is neither, or if the key is shorter than 16 bytes and could be
    /// guessed, the hash differs in each process.
    pub fn evaluation_context_id(mut self, context_id: ContextId) -> Self {
        self.options.evaluation_context_id = context_id;
        self
    }

    /// Builds the provider, and reads the [`override_file`](Self::override_file) if there is one.
    ///
    /// The provider starts at its first use, or with [`ready`](FlipswitchProvider::ready).
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] that names the first option with an invalid value.
    pub fn build(self) -> Result<FlipswitchProvider, ConfigError> {
        let Self {
            auth,
            headers,
            environment,
            base_url,
            bootstrap,
            override_file,
            override_in_release,
            name,
            secret,
            secret_before,
            store,
            store_namespace,
            options,
        } = self;
        let (credential, base_url) = (Credential::new(&auth)?, BaseUrl::new(&base_url)?);
        let mut sent = environment.map_or_else(HeaderMap::new, |environment| environment.headers_for(&base_url));
        for (name, value) in headers {
            let (name, value) = custom_header(&name, &value, &credential)?;
            sent.insert(name, value);
        }
        options.validate()?;
        if let Some(name) = name.as_ref().filter(|name| !is_name(name)) {
            return Err(ConfigError::Name { value: printable(name) });
        }
        let secret = secret.map(|secret| long_secret("secret", &secret, 16)).transpose()?;
        // It may be an old API key, which can be short.
        let secret_before = secret_before.map(|secret| long_secret("secret_before", &secret, 1)).transpose()?;
        if store.is_some() && secret.is_none() && credential.key().is_none_or(ApiKey::is_short) {
            return Err(ConfigError::StoreSecret { has_key: credential.key().is_some() });
        }
        let bootstrap = bootstrap.map(object).transpose();
        let bootstrap = bootstrap.map_err(|error| ConfigError::Bootstrap { found: error.found })?;
        let is_allowed = cfg!(debug_assertions) || override_in_release;
        FlipswitchProvider::with_config(Config {
            credential,
            headers: sent,
            base_url,
            bootstrap: bootstrap.map(|values| FlagSet::of_values(values, "DEFAULT")),
            override_file: override_file.map(|path| OverrideFile::read(&path, is_allowed)).transpose()?,
            name,
            secret,
            secret_before,
            store,
            store_namespace,
            options,
        })
    }
}

fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=32).contains(&name.len()) && name.bytes().all(is_allowed)
}

/// Creates a secret. White space around it is removed, such as the line break at the end of a file.
fn long_secret(option: &'static str, secret: &[u8], min: usize) -> Result<Secret, ConfigError> {
    let secret = secret.trim_ascii();
    if secret.len() < min {
        return Err(ConfigError::ShortSecret { option, length: secret.len(), min });
    }
    Ok(Secret::new(secret))
}

/// Omits the API key, the values of headers, the secrets and the bootstrap values.
impl fmt::Debug for FlipswitchProviderBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlipswitchProviderBuilder")
            .field("name", &self.name)
            .field("base_url", &BaseUrl::without_credentials(&self.base_url))
            .field("auth", &self.auth)
            .field("headers", &self.headers.iter().map(|(name, _)| shown_name(name)).collect::<Vec<_>>())
            .field("override_file", &self.override_file)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    type Change = fn(FlipswitchProviderBuilder) -> FlipswitchProviderBuilder;

    #[test]
    fn an_invalid_option_is_refused_by_name_with_a_remedy() {
        let cases: &[(Change, &str, &str)] = &[
            (|b| b.base_url(""), "base_url", "use a URL such as"),
            (|b| b.base_url("api.flipswitch.io"), "base_url", "no scheme; use a URL such as"),
            (|b| b.base_url("localhost:3001"), "base_url", "no scheme; use a URL such as"),
            (|b| b.base_url("\"https://flags.example\""), "base_url", "a quote; use a URL such as"),
            (|b| b.base_url("https://flags.example/ofrep/v1/"), "base_url", "the provider appends"),
            (|b| b.base_url("ftp://flags.example"), "base_url", "http and https"),
            (|b| b.base_url("https://me:secret@flags.example"), "base_url", "credentials"),
            (|b| b.base_url("https://flags.example?env=1"), "base_url", "query"),
            (|b| b.base_url("https://flags.example#top"), "base_url", "fragment"),
            (|b| b.request_timeout(Duration::ZERO), "request_timeout", "from 1ms"),
            (|b| b.connect_timeout(Duration::MAX), "connect_timeout", "to 604800s"),
            (|b| b.max_concurrent_requests(0), "max_concurrent_requests", "from 1"),
            (|b| b.max_queued_requests(0), "max_queued_requests", "from 1"),
            (|b| b.polling_interval(Duration::ZERO), "polling_interval", "from 1ms"),
            (|b| b.max_sse_retries(0), "max_sse_retries", "from 1"),
            (|b| b.stream_idle_timeout(Duration::ZERO), "stream_idle_timeout", "from 1ms"),
            (|b| b.stale_wait(Duration::MAX), "stale_wait", "to 604800s"),
            (|b| b.miss_wait(Duration::MAX), "miss_wait", "to 604800s"),
            (|b| b.cache_capacity(0), "cache_capacity", "from 1"),
            (|b| b.cache_bytes(1_000), "cache_bytes", "from 1048576"),
            (|b| b.cache_ttl(Duration::ZERO), "cache_ttl", "from 1ms"),
            (|b| b.max_stale(Duration::MAX), "max_stale", "to 604800s"),
            (|b| b.bootstrap(json!([1])), "bootstrap", "JSON object"),
            (|b| b.override_file("no/such/file.json"), "override_file no/such/file.json", "JSON object"),
        ];
        for (change, option, remedy) in cases {
            let error = change(FlipswitchProviderBuilder::flipswitch("key".into())).build().unwrap_err().to_string();
            assert!(error.contains(option) && error.contains(remedy), "{option}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn an_invalid_key_is_refused_and_not_shown() {
        let cases = [("", "empty"), (" \t", "empty"), ("abc\ndef", "position 4"), ("clé", "position 3")];
        for (key, expected) in cases {
            let error = FlipswitchProviderBuilder::flipswitch(key.into()).build().unwrap_err().to_string();
            assert!(error.contains("api_key") && error.contains(expected), "{error}");
            assert!(!error.contains("abc"), "{error}");
        }
        for (key, expected) in [
            ("\"secret-key\"", "a quote"),
            ("'secret-key'", "a quote"),
            ("Bearer secret-key", "\"Bearer\""),
            ("FLIPSWITCH_API_KEY=secret-key", "an assignment"),
            ("${FLIPSWITCH_API_KEY}", "not expanded"),
            ("$FLIPSWITCH_API_KEY", "not expanded"),
        ] {
            let error = FlipswitchProviderBuilder::flipswitch(key.into()).build().unwrap_err().to_string();
            assert!(error.contains("api_key") && error.contains(expected), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        for key in ["c2VjcmV0LWtleQ==", "ABCDEF=", "sk_live_$x=1"] {
            assert!(FlipswitchProviderBuilder::flipswitch(key.into()).build().is_ok(), "{key}");
        }
        let error = FlipswitchProviderBuilder::flipswitch("k".repeat(5_000)).build().unwrap_err();
        assert!(error.to_string().contains("5000 bytes"), "{error}");
    }

    #[test]
    fn short_secrets_are_refused_and_none_is_shown() {
        let builder = || FlipswitchProviderBuilder::flipswitch("key".into());
        let cases = [
            (builder().secret("not 16 bytes"), "secret is 12 bytes long", "16"),
            (builder().secret(" \n not 16 bytes \n"), "secret is 12 bytes long", "16"),
            (builder().secret_before(""), "secret_before is 0 bytes long", "at least 1"),
            (builder().secret_before("\n"), "secret_before is 0 bytes long", "at least 1"),
        ];
        for (builder, problem, remedy) in cases {
            assert!(!format!("{builder:?}").contains("not 16"), "{builder:?}");
            let error = builder.build().unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains(remedy), "{error}");
        }
        for name in ["", "a b", "a;b", "x".repeat(33).as_str(), "é"] {
            let error = builder().name(name).build().unwrap_err().to_string();
            assert!(error.contains("name is") && error.contains("\"billing\""), "{error}");
        }
        assert!(builder().name("billing-2_b").secret("0123456789abcdef").secret_before("key").build().is_ok());
    }

    #[test]
    fn zero_is_accepted_for_waiting_and_for_staleness() {
        let builder = FlipswitchProviderBuilder::flipswitch("key".into());
        assert!(builder.stale_wait(Duration::ZERO).miss_wait(Duration::ZERO).max_stale(Duration::ZERO).build().is_ok());
    }

    #[test]
    fn debug_output_does_not_show_the_key() {
        let builder =
            FlipswitchProviderBuilder::flipswitch("very-secret-key".into()).base_url("http://u:p4ss@127.0.0.1");
        let shown = format!("{builder:?}");
        assert!(!shown.contains("very-secret-key") && !shown.contains("p4ss"), "{shown}");
    }
}
