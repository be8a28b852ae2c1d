//! Settings: their defaults, their limits, and where they come from.

use std::{env, fmt, ops::RangeInclusive, path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tokio::runtime::Handle;

use crate::{
    ConfigError, FlagType, FlipswitchProvider,
    config::{ApiKey, BaseUrl},
    flags::flag_set::FlagSet,
    flags::override_file::Overrides,
    wire::transport::{ClientBuilder, ClientFactory},
};

/// The service itself.
const DEFAULT_BASE_URL: &str = "https://api.flipswitch.io";

const API_KEY_VARIABLE: &str = "FLIPSWITCH_API_KEY";
const BASE_URL_VARIABLE: &str = "FLIPSWITCH_BASE_URL";

/// No interval and no time-out makes sense outside these; within them every sum of two is a valid instant.
const DURATIONS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(7 * 24 * 3600);

/// Builds a [`FlipswitchProvider`]. Setters take any value; [`build`](Self::build) reports the ones that cannot work.
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
#[must_use = "a builder does nothing until `build`"]
pub struct FlipswitchProviderBuilder {
    api_key: String,
    base_url: String,
    http_client: Option<ClientFactory>,
    request_timeout: Duration,
    connect_timeout: Duration,
    max_concurrent_requests: usize,
    telemetry: bool,
    bootstrap: Option<Value>,
    override_file: Option<PathBuf>,
    override_in_release: bool,
    runtime: Option<Handle>,
    enable_realtime: bool,
    enable_polling_fallback: bool,
    polling_interval: Duration,
    max_sse_retries: u32,
    idle_timeout: Duration,
    max_wait: Duration,
    cache_capacity: usize,
    cache_bytes: usize,
    cache_ttl: Duration,
    max_stale: Duration,
}

/// Settings that were found to be good.
pub(crate) struct Settings {
    pub(crate) api_key: ApiKey,
    pub(crate) base_url: BaseUrl,
    pub(crate) http_client: Option<ClientFactory>,
    pub(crate) request_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) max_concurrent_requests: usize,
    pub(crate) telemetry: bool,
    pub(crate) bootstrap: Option<FlagSet>,
    pub(crate) overrides: Option<Overrides>,
    pub(crate) runtime: Option<Handle>,
    pub(crate) enable_realtime: bool,
    pub(crate) polling_interval: Duration,
    pub(crate) enable_polling_fallback: bool,
    pub(crate) max_sse_retries: u32,
    pub(crate) idle_timeout: Duration,
    pub(crate) max_wait: Duration,
    pub(crate) cache_capacity: usize,
    pub(crate) cache_bytes: usize,
    pub(crate) cache_ttl: Duration,
    pub(crate) max_stale: Duration,
}

impl FlipswitchProviderBuilder {
    pub(crate) fn new(api_key: String) -> Self {
        Self {
            api_key,
            base_url: DEFAULT_BASE_URL.to_owned(),
            http_client: None,
            request_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            max_concurrent_requests: 64,
            telemetry: true,
            bootstrap: None,
            override_file: None,
            override_in_release: false,
            runtime: None,
            enable_realtime: true,
            enable_polling_fallback: true,
            polling_interval: Duration::from_secs(30),
            max_sse_retries: 5,
            idle_timeout: Duration::from_secs(60),
            max_wait: Duration::from_millis(250),
            cache_capacity: 10_000,
            cache_bytes: 256 << 20,
            cache_ttl: Duration::from_secs(15 * 60),
            max_stale: Duration::from_secs(24 * 3600),
        }
    }

    /// Reads `FLIPSWITCH_API_KEY` and `FLIPSWITCH_BASE_URL`. OFREP's own variables are not read: they may name another
    /// service, and the key would go there.
    pub(crate) fn from_env() -> Result<Self, ConfigError> {
        // What is not Unicode is no good key and no good URL either, and is refused as such.
        let variable = |name| env::var_os(name).map(|value| value.to_string_lossy().trim().to_owned());
        let api_key = variable(API_KEY_VARIABLE).ok_or(ConfigError::MissingVariable { variable: API_KEY_VARIABLE })?;
        let builder = Self::new(api_key);
        Ok(match variable(BASE_URL_VARIABLE).filter(|base_url| !base_url.is_empty()) {
            Some(base_url) => builder.base_url(base_url),
            None => builder,
        })
    }

    /// Sets where the flag service is. Default: `https://api.flipswitch.io`.
    ///
    /// An `http` or `https` URL, with a path if the service lives under one, without credentials, query and fragment.
    /// Proxies from the environment are used, but not for a loopback address.
    pub fn base_url(mut self, base_url: impl Into<String>) -> Self {
        self.base_url = base_url.into();
        self
    }

    /// Sets where HTTP clients come from: a proxy, a private certificate authority, mutual TLS. Default: a plain
    /// [`reqwest::ClientBuilder`].
    ///
    /// The function is called for every client the provider needs. Redirects, time-outs and encodings are set by the
    /// provider afterwards.
    pub fn http_client(mut self, factory: impl Fn() -> ClientBuilder + Send + Sync + 'static) -> Self {
        self.http_client = Some(Arc::new(factory));
        self
    }

    /// Sets how long one request may take, from the wait for a slot to the last byte. Default: 10 s.
    pub fn request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Sets how long connecting may take, TLS included. Default: 5 s.
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// Sets how many requests may be on the wire at once; further ones wait. Default: 64.
    pub fn max_concurrent_requests(mut self, max_concurrent_requests: usize) -> Self {
        self.max_concurrent_requests = max_concurrent_requests;
        self
    }

    /// Sets whether requests tell the service the versions of this crate and of the compiler, the operating system and
    /// the features in use, as every Flipswitch SDK does. Default: true.
    pub fn telemetry(mut self, telemetry: bool) -> Self {
        self.telemetry = telemetry;
        self
    }

    /// Sets values that hold for every context until the service has answered: an object, `{"dark-mode": true, ..}`.
    /// Default: none, so that the defaults given in code hold.
    pub fn bootstrap(mut self, values: Value) -> Self {
        self.bootstrap = Some(values);
        self
    }

    /// Sets a file of flags that win over the service's, for development: a JSON object `{"dark-mode": true, ..}`, with values
    /// for everybody. It is read by [`build`](Self::build), and told in a warning when the provider starts; the values have
    /// the reason `OVERRIDE`. Default: none.
    ///
    /// Release builds refuse it, so that no such file goes into production unnoticed; see
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

    /// Sets whether an [`override_file`](Self::override_file) is taken in a release build, that is in one without debug
    /// assertions. Default: false.
    pub fn override_in_release(mut self, allowed: bool) -> Self {
        self.override_in_release = allowed;
        self
    }

    /// Sets the runtime that requests and listeners run on; it must have I/O and time enabled and must be running: while it
    /// stands still, an evaluation that memory has no answer for waits. Default: a thread of the provider's own, started at
    /// first use.
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Sets whether changes are followed as they happen, over the service's event stream. Default: true. Without it the
    /// service is polled, unless [polling](Self::enable_polling_fallback) is switched off as well.
    pub fn enable_realtime(mut self, enable_realtime: bool) -> Self {
        self.enable_realtime = enable_realtime;
        self
    }

    /// Sets whether the service is polled while the stream of changes is away, or where it is not followed. Default: true.
    ///
    /// A poll asks for the context of the start-up check, with the tag of its last answer, and tells listeners which of
    /// its flags changed. Other contexts are asked for at their next use, once their answer is older than the
    /// [polling interval](Self::polling_interval). Without the stream and without polling nothing is asked for in the
    /// background, and answers live for [`cache_ttl`](Self::cache_ttl).
    pub fn enable_polling_fallback(mut self, enable_polling_fallback: bool) -> Self {
        self.enable_polling_fallback = enable_polling_fallback;
        self
    }

    /// Sets the time between two polls, give or take a tenth, and how old an answer may grow while the stream is away. Default: 30 s.
    pub fn polling_interval(mut self, polling_interval: Duration) -> Self {
        self.polling_interval = polling_interval;
        self
    }

    /// Sets after how many failures of the stream in a row polling begins; the stream goes on trying. Default: 5, at
    /// least 1.
    pub fn max_sse_retries(mut self, max_sse_retries: u32) -> Self {
        self.max_sse_retries = max_sse_retries;
        self
    }

    /// Sets after how long without a byte the stream counts as broken. The service sends one every 15 s. Default: 60 s.
    pub fn idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.idle_timeout = idle_timeout;
        self
    }

    /// Sets how long a reader that has an old answer waits for a new one before it takes the old one. Default: 250 ms;
    /// zero never waits.
    pub fn max_wait(mut self, max_wait: Duration) -> Self {
        self.max_wait = max_wait;
        self
    }

    /// Sets how many contexts have their answers kept at most; a few less if their hashes fall unevenly. Default: 10 000.
    pub fn cache_capacity(mut self, contexts: usize) -> Self {
        self.cache_capacity = contexts;
        self
    }

    /// Sets how many bytes the kept answers may take, about. Default: 256 MiB, at least 1 MiB.
    ///
    /// What contexts have in common is kept once and counts for the one that had it first, so that memory may be more for a
    /// while after that one was forgotten. An answer is kept in any case, also one that is larger than this.
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// Sets how old an answer may grow while the stream is open and tells of no change. Default: 15 min.
    pub fn cache_ttl(mut self, cache_ttl: Duration) -> Self {
        self.cache_ttl = cache_ttl;
        self
    }

    /// Sets how old the last known values may be when the service cannot be asked; after that, defaults. Default: 24 h;
    /// zero never serves an old value. What is still [fresh](Self::cache_ttl) is no old one.
    pub fn max_stale(mut self, max_stale: Duration) -> Self {
        self.max_stale = max_stale;
        self
    }

    /// Builds the provider. Nothing is requested and nothing started: that is left to the first use, or to
    /// [`ready`](FlipswitchProvider::ready). Only an [`override_file`](Self::override_file) is read.
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] naming the first option whose value cannot work.
    pub fn build(self) -> Result<FlipswitchProvider, ConfigError> {
        FlipswitchProvider::with_settings(self.validate()?)
    }

    pub(crate) fn validate(self) -> Result<Settings, ConfigError> {
        number("max_sse_retries", self.max_sse_retries as usize, 1..=1_000_000)?;
        Ok(Settings {
            api_key: ApiKey::new(&self.api_key)?,
            base_url: BaseUrl::new(&self.base_url)?,
            http_client: self.http_client,
            request_timeout: duration("request_timeout", self.request_timeout)?,
            connect_timeout: duration("connect_timeout", self.connect_timeout)?,
            max_concurrent_requests: number("max_concurrent_requests", self.max_concurrent_requests, 1..=1_000_000)?,
            telemetry: self.telemetry,
            bootstrap: self.bootstrap.map(|values| Ok(FlagSet::of_values(object(values)?, "DEFAULT"))).transpose()?,
            overrides: self
                .override_file
                .map(|path| Overrides::read(&path, cfg!(debug_assertions) || self.override_in_release))
                .transpose()?,
            runtime: self.runtime,
            enable_realtime: self.enable_realtime,
            polling_interval: duration("polling_interval", self.polling_interval)?,
            enable_polling_fallback: self.enable_polling_fallback,
            max_sse_retries: self.max_sse_retries,
            idle_timeout: duration("idle_timeout", self.idle_timeout)?,
            max_wait: duration_or_zero("max_wait", self.max_wait)?,
            cache_capacity: number("cache_capacity", self.cache_capacity, 1..=1_000_000_000)?,
            cache_bytes: number("cache_bytes", self.cache_bytes, 1 << 20..=usize::MAX)?,
            cache_ttl: duration("cache_ttl", self.cache_ttl)?,
            max_stale: duration_or_zero("max_stale", self.max_stale)?,
        })
    }
}

fn duration(option: &'static str, value: Duration) -> Result<Duration, ConfigError> {
    if DURATIONS.contains(&value) {
        Ok(value)
    } else {
        Err(ConfigError::Duration { option, value, min: *DURATIONS.start(), max: *DURATIONS.end() })
    }
}

fn duration_or_zero(option: &'static str, value: Duration) -> Result<Duration, ConfigError> {
    if value.is_zero() { Ok(value) } else { duration(option, value) }
}

fn number(option: &'static str, value: usize, range: RangeInclusive<usize>) -> Result<usize, ConfigError> {
    if range.contains(&value) {
        Ok(value)
    } else {
        let [value, min, max] = [value, *range.start(), *range.end()].map(|number| number as u64);
        Err(ConfigError::Number { option, value, min, max })
    }
}

fn object(values: Value) -> Result<Map<String, Value>, ConfigError> {
    match values {
        Value::Object(values) => Ok(values),
        other => Err(ConfigError::Bootstrap {
            found: match FlagType::of_value(&other) {
                FlagType::Null => "null",
                FlagType::Boolean => "a boolean",
                FlagType::String => "a string",
                FlagType::Array => "an array",
                _ => "a number",
            },
        }),
    }
}

/// Shows everything but the API key.
impl fmt::Debug for FlipswitchProviderBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlipswitchProviderBuilder")
            .field("base_url", &BaseUrl::without_credentials(&self.base_url))
            .field("request_timeout", &self.request_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("max_concurrent_requests", &self.max_concurrent_requests)
            .field("telemetry", &self.telemetry)
            .field("override_file", &self.override_file)
            .field("enable_realtime", &self.enable_realtime)
            .field("enable_polling_fallback", &self.enable_polling_fallback)
            .field("polling_interval", &self.polling_interval)
            .field("max_sse_retries", &self.max_sse_retries)
            .field("idle_timeout", &self.idle_timeout)
            .field("max_wait", &self.max_wait)
            .field("cache_capacity", &self.cache_capacity)
            .field("cache_bytes", &self.cache_bytes)
            .field("cache_ttl", &self.cache_ttl)
            .field("max_stale", &self.max_stale)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    type Change = fn(FlipswitchProviderBuilder) -> FlipswitchProviderBuilder;

    #[test]
    fn an_option_that_cannot_work_is_refused_by_name_with_a_remedy() {
        let cases: &[(Change, &str, &str)] = &[
            (|b| b.base_url(""), "base_url", "write it like"),
            (|b| b.base_url("api.flipswitch.io"), "base_url", "write it like"),
            (|b| b.base_url("ftp://flags.example"), "base_url", "http or https"),
            (|b| b.base_url("https://me:secret@flags.example"), "base_url", "credentials"),
            (|b| b.base_url("https://flags.example?env=1"), "base_url", "query"),
            (|b| b.base_url("https://flags.example#top"), "base_url", "fragment"),
            (|b| b.request_timeout(Duration::ZERO), "request_timeout", "from 1ms"),
            (|b| b.connect_timeout(Duration::MAX), "connect_timeout", "to 604800s"),
            (|b| b.max_concurrent_requests(0), "max_concurrent_requests", "from 1"),
            (|b| b.polling_interval(Duration::ZERO), "polling_interval", "from 1ms"),
            (|b| b.max_sse_retries(0), "max_sse_retries", "from 1"),
            (|b| b.idle_timeout(Duration::ZERO), "idle_timeout", "from 1ms"),
            (|b| b.max_wait(Duration::MAX), "max_wait", "to 604800s"),
            (|b| b.cache_capacity(0), "cache_capacity", "from 1"),
            (|b| b.cache_bytes(1_000), "cache_bytes", "from 1048576"),
            (|b| b.cache_ttl(Duration::ZERO), "cache_ttl", "from 1ms"),
            (|b| b.max_stale(Duration::MAX), "max_stale", "to 604800s"),
            (|b| b.bootstrap(json!([1])), "bootstrap", "JSON object"),
            (|b| b.override_file("no/such/file.json"), "override_file no/such/file.json", "JSON object"),
        ];
        for (change, option, remedy) in cases {
            let error = change(FlipswitchProviderBuilder::new("key".into())).build().unwrap_err().to_string();
            assert!(error.contains(option) && error.contains(remedy), "{option}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_key_that_cannot_be_sent_is_refused_and_not_shown() {
        let cases = [("", "empty"), (" \t", "empty"), ("abc\ndef", "position 4"), ("clé", "position 3")];
        for (key, expected) in cases {
            let error = FlipswitchProviderBuilder::new(key.into()).build().unwrap_err().to_string();
            assert!(error.contains("api_key") && error.contains(expected), "{error}");
            assert!(!error.contains("abc"), "{error}");
        }
        let error = FlipswitchProviderBuilder::new("k".repeat(5_000)).build().unwrap_err();
        assert!(error.to_string().contains("5000 bytes"), "{error}");
    }

    #[test]
    fn zero_is_a_good_wait_and_a_good_staleness() {
        let builder = FlipswitchProviderBuilder::new("key".into());
        assert!(builder.max_wait(Duration::ZERO).max_stale(Duration::ZERO).build().is_ok());
    }

    #[test]
    fn debug_output_does_not_show_the_key() {
        let builder = FlipswitchProviderBuilder::new("very-secret-key".into()).base_url("http://u:p4ss@127.0.0.1");
        let shown = format!("{builder:?}");
        assert!(!shown.contains("very-secret-key") && !shown.contains("p4ss"), "{shown}");
    }
}
