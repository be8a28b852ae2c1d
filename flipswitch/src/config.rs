//! The configuration of a provider: options with their defaults and limits, and the base URL.

use std::{fmt, net::IpAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use http::HeaderMap;
use reqwest::{ClientBuilder, Url};
use tokio::runtime::Handle;

use crate::{
    cache_store::CacheStore,
    credential::Credential,
    error::ConfigError,
    flags::{flag_set::FlagSet, override_file::OverrideFile},
    sanitize::printable,
    secret::Secret,
};

/// Accepted durations. They are short enough that adding two of them to an instant does not overflow.
pub(crate) const DURATIONS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(7 * 24 * 3600);

/// A valid configuration.
pub(crate) struct Config {
    pub(crate) credential: Credential,
    /// Headers that the application adds to every request.
    pub(crate) headers: HeaderMap,
    pub(crate) base_url: BaseUrl,
    pub(crate) bootstrap: Option<FlagSet>,
    pub(crate) override_file: Option<OverrideFile>,
    pub(crate) name: Option<String>,
    pub(crate) secret: Option<Secret>,
    pub(crate) secret_before: Option<Secret>,
    pub(crate) store: Option<Arc<dyn CacheStore>>,
    pub(crate) store_namespace: Option<String>,
    pub(crate) options: Options,
}

#[cfg(test)]
impl Config {
    /// Returns the configuration for a Flipswitch service, with an API key and the default options.
    pub(crate) fn of_service(base_url: BaseUrl) -> Self {
        Self {
            credential: Credential::new(&crate::credential::Auth::ApiKey("key".to_owned())).unwrap(),
            headers: HeaderMap::new(),
            base_url,
            bootstrap: None,
            override_file: None,
            name: None,
            secret: None,
            secret_before: None,
            store: None,
            store_namespace: None,
            options: Options::default(),
        }
    }
}

/// Which reads of flags are reported as events; see
/// [`evaluation_events`](crate::FlipswitchProviderBuilder::evaluation_events).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EvaluationEvents {
    /// Reports no reads.
    #[default]
    Off,
    /// Reports the first read of each flag from a [`Flags`](crate::Flags), that is, the first read in a request if all parts of
    /// the request share one `Flags`.
    PerRequest,
    /// Reports every read, as OpenTelemetry's semantic conventions recommend.
    PerRead,
}

/// What the attribute `feature_flag.context.id` of events contains; see
/// [`evaluation_context_id`](crate::FlipswitchProviderBuilder::evaluation_context_id).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContextId {
    /// A hash of the targeting key, as 32 hexadecimal digits: HMAC-SHA-256 with a key that is derived from the provider's secret.
    /// A user has the same hash in all instances with the same secret. Without the secret, the hash does not reveal the targeting
    /// key.
    #[default]
    Hashed,
    /// The targeting key itself, which may be personal data.
    Plain,
    /// No id.
    Off,
}

/// The kind of flag service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServiceKind {
    /// Flipswitch, which has its own headers and stream of changes.
    Flipswitch,
    /// Any other OFREP service, which may advertise event streams.
    Ofrep,
}

/// The options that need no conversion. `FlipswitchProviderBuilder` documents each of them at its setter.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) service: ServiceKind,
    pub(crate) http_client: Option<ClientFactory>,
    pub(crate) runtime: Option<Handle>,
    pub(crate) request_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) max_concurrent_requests: usize,
    pub(crate) max_queued_requests: usize,
    pub(crate) telemetry: bool,
    pub(crate) enable_realtime: bool,
    pub(crate) enable_polling_fallback: bool,
    pub(crate) polling_interval: Duration,
    pub(crate) max_sse_retries: u32,
    pub(crate) stream_idle_timeout: Duration,
    pub(crate) stale_wait: Duration,
    pub(crate) miss_wait: Duration,
    pub(crate) cache_capacity: usize,
    pub(crate) cache_bytes: usize,
    pub(crate) cache_ttl: Duration,
    pub(crate) max_stale: Duration,
    pub(crate) evaluation_events: EvaluationEvents,
    pub(crate) evaluation_context_id: ContextId,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            service: ServiceKind::Flipswitch,
            http_client: None,
            runtime: None,
            request_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            max_concurrent_requests: 64,
            max_queued_requests: 16_384,
            telemetry: true,
            enable_realtime: true,
            enable_polling_fallback: true,
            polling_interval: Duration::from_secs(30),
            max_sse_retries: 5,
            stream_idle_timeout: Duration::from_secs(60),
            stale_wait: Duration::from_millis(250),
            miss_wait: Duration::from_secs(1),
            cache_capacity: 10_000,
            cache_bytes: 256 << 20,
            cache_ttl: Duration::from_secs(15 * 60),
            max_stale: Duration::from_secs(24 * 3600),
            evaluation_events: EvaluationEvents::Off,
            evaluation_context_id: ContextId::Hashed,
        }
    }
}

impl Options {
    /// Returns whether changes arrive over the Flipswitch stream.
    pub(crate) fn has_own_stream(&self) -> bool {
        self.enable_realtime && self.service == ServiceKind::Flipswitch
    }

    /// Returns whether changes arrive over event streams, if the service advertises any.
    pub(crate) fn follows_event_streams(&self) -> bool {
        self.enable_realtime && self.service == ServiceKind::Ofrep
    }

    /// Checks that every option is within its limits.
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] that names the first option with an invalid value.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        duration("request_timeout", self.request_timeout)?;
        duration("connect_timeout", self.connect_timeout)?;
        number("max_concurrent_requests", self.max_concurrent_requests, 1..=1_000_000)?;
        number("max_queued_requests", self.max_queued_requests, 1..=1_000_000)?;
        duration("polling_interval", self.polling_interval)?;
        number("max_sse_retries", self.max_sse_retries as usize, 1..=1_000_000)?;
        duration("stream_idle_timeout", self.stream_idle_timeout)?;
        duration_or_zero("stale_wait", self.stale_wait)?;
        duration_or_zero("miss_wait", self.miss_wait)?;
        number("cache_capacity", self.cache_capacity, 1..=1_000_000_000)?;
        number("cache_bytes", self.cache_bytes, 1 << 20..=usize::MAX)?;
        duration("cache_ttl", self.cache_ttl)?;
        duration_or_zero("max_stale", self.max_stale)
    }
}

fn duration(option: &'static str, value: Duration) -> Result<(), ConfigError> {
    if DURATIONS.contains(&value) {
        Ok(())
    } else {
        Err(ConfigError::Duration { option, value, min: *DURATIONS.start(), max: *DURATIONS.end() })
    }
}

fn duration_or_zero(option: &'static str, value: Duration) -> Result<(), ConfigError> {
    if value.is_zero() { Ok(()) } else { duration(option, value) }
}

fn number(option: &'static str, value: usize, range: RangeInclusive<usize>) -> Result<(), ConfigError> {
    if range.contains(&value) {
        Ok(())
    } else {
        let [value, min, max] = [value, *range.start(), *range.end()].map(|number| number as u64);
        Err(ConfigError::Number { option, value, min, max })
    }
}

/// Creates the builders for HTTP clients. Set by the application.
#[derive(Clone)]
pub(crate) struct ClientFactory(Arc<dyn Fn() -> ClientBuilder + Send + Sync>);

impl ClientFactory {
    pub(crate) fn new(factory: impl Fn() -> ClientBuilder + Send + Sync + 'static) -> Self {
        Self(Arc::new(factory))
    }

    pub(crate) fn client_builder(&self) -> ClientBuilder {
        (self.0)()
    }
}

impl fmt::Debug for ClientFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientFactory").finish_non_exhaustive()
    }
}

/// The URL of the flag service: an origin, and a path that may be empty.
#[derive(Clone)]
pub(crate) struct BaseUrl(Url);

impl BaseUrl {
    pub(crate) fn new(text: &str) -> Result<Self, ConfigError> {
        Self::of_option("base_url", text)
    }

    /// Reads the value of an option or an environment variable. Errors name the option or variable.
    pub(crate) fn of_option(option: &'static str, text: &str) -> Result<Self, ConfigError> {
        let refuse = |problem: &str| ConfigError::BaseUrl {
            option,
            value: Self::without_credentials(text),
            problem: problem.to_owned(),
        };
        if text.trim().starts_with(['"', '\'', '`', '“', '‘', '«']) {
            return Err(refuse("it begins with a quote"));
        }
        if !text.contains("://") {
            return Err(refuse("it has no scheme"));
        }
        let mut url = Url::parse(text.trim()).map_err(|error| refuse(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refuse("only http and https are supported"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("credentials in a URL end up in logs; use the API key, `auth` or `header`"));
        }
        if url.query().is_some() {
            return Err(refuse("a query is not supported, because paths are appended"));
        }
        if url.fragment().is_some() {
            return Err(refuse("a fragment is never sent"));
        }
        let path = url.path().trim_end_matches('/').to_owned();
        if path.ends_with("/ofrep/v1") || path.ends_with("/ofrep") {
            return Err(refuse("it ends with the OFREP path, which the provider appends"));
        }
        url.set_path(&path);
        Ok(Self(url))
    }

    /// Returns the part of a string that may be shown when a URL was expected. Leaves out everything that could be a credential,
    /// because the string may be an API key.
    pub(crate) fn without_credentials(text: &str) -> String {
        let text = text.trim();
        let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| scheme.len() <= 10) else {
            return format!("({} characters)", text.chars().count());
        };
        // Anything before an @ may be a password, which may contain any character.
        let (hidden, rest) = rest.rsplit_once('@').map_or(("", rest), |(_, rest)| ("…@", rest));
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        printable(&format!("{scheme}://{hidden}{rest}"))
    }

    /// Returns the origin of a URL as a base URL.
    pub(crate) fn of_origin(url: &Url) -> Self {
        let mut url = url.clone();
        // Both fail only for a URL without a host.
        let _ = (url.set_username(""), url.set_password(None));
        url.set_path("/");
        url.set_query(None);
        url.set_fragment(None);
        Self(url)
    }

    pub(crate) fn url(&self) -> &Url {
        &self.0
    }

    /// Returns whether requests stay on this machine, that is, whether the host is a loopback address or name.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = self.0.host_str().unwrap_or_default();
        match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => host == "localhost" || host.ends_with(".localhost"),
        }
    }

    /// Returns whether requests cross the network unencrypted.
    pub(crate) fn is_plain_and_remote(&self) -> bool {
        self.0.scheme() == "http" && !self.is_loopback()
    }

    /// Returns the URL for a path on the service.
    pub(crate) fn join(&self, path: &str) -> Url {
        let mut url = self.0.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}{path}"));
        url
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_appended_to_the_base_url() {
        let cases = [
            ("https://api.flipswitch.io", "https://api.flipswitch.io/x"),
            (" https://api.flipswitch.io// ", "https://api.flipswitch.io/x"),
            ("http://127.0.0.1:3001/flags/", "http://127.0.0.1:3001/flags/x"),
        ];
        for (base, expected) in cases {
            assert_eq!(BaseUrl::new(base).unwrap().join("/x").as_str(), expected);
        }
    }

    #[test]
    fn loopback_is_recognized_by_address_and_by_name() {
        for text in
            ["http://127.0.0.1:1", "http://127.8.9.1", "http://[::1]:1", "http://localhost", "http://a.localhost"]
        {
            assert!(BaseUrl::new(text).unwrap().is_loopback(), "{text}");
        }
        for text in ["http://10.0.0.1", "http://localhost.example", "http://[::2]", "https://api.flipswitch.io"] {
            assert!(!BaseUrl::new(text).unwrap().is_loopback(), "{text}");
        }
    }

    #[test]
    fn an_unencrypted_remote_url_is_recognized() {
        let cases = [("http://flags.example", true), ("https://flags.example", false), ("http://127.0.0.1", false)];
        for (url, expected) in cases {
            assert_eq!(BaseUrl::new(url).unwrap().is_plain_and_remote(), expected, "{url}");
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        let cases = [
            ("https://me:secret@flags.example/x?token=secret#secret", "https://…@flags.example/x"),
            ("https://me:pa?ss#word@flags.example/x", "https://…@flags.example/x"),
            ("me:secret@flags.example", "(23 characters)"),
            ("fs_live_secret_123", "(18 characters)"),
            ("https://flags.example", "https://flags.example"),
        ];
        for (text, expected) in cases {
            assert_eq!(BaseUrl::without_credentials(text), expected);
        }
    }
}
