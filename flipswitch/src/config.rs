//! The configuration of a provider: options with their defaults and limits, the base URL, and the API key.

use std::{fmt, net::IpAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use reqwest::{ClientBuilder, Url};
use tokio::runtime::Handle;

use crate::{
    error::ConfigError,
    flags::{flag_set::FlagSet, override_file::OverrideFile},
    sanitize::printable,
    secret::Secret,
};

/// Accepted durations: the sum of any two is a valid instant.
const DURATIONS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(7 * 24 * 3600);

/// A valid configuration.
pub(crate) struct Config {
    pub(crate) service: ServiceKind,
    pub(crate) credential: Credential,
    /// Headers that the application adds to every request.
    pub(crate) headers: HeaderMap,
    pub(crate) base_url: BaseUrl,
    pub(crate) bootstrap: Option<FlagSet>,
    pub(crate) override_file: Option<OverrideFile>,
    pub(crate) name: Option<String>,
    pub(crate) secret: Option<Secret>,
    pub(crate) secret_before: Option<Secret>,
    pub(crate) options: Options,
}

#[cfg(test)]
impl Config {
    /// Returns the configuration for a Flipswitch service, with an API key and defaults.
    pub(crate) fn of_service(base_url: BaseUrl) -> Self {
        Self {
            service: ServiceKind::Flipswitch,
            credential: Credential::ApiKey(ApiKey::new("key").unwrap()),
            headers: HeaderMap::new(),
            base_url,
            bootstrap: None,
            override_file: None,
            name: None,
            secret: None,
            secret_before: None,
            options: Options::default(),
        }
    }
}

/// What the service speaks beside OFREP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServiceKind {
    /// Flipswitch, with its own stream of changes and headers.
    Flipswitch,
    /// Nothing else: its changes arrive over the event streams that it advertises.
    Ofrep,
}

/// The options that are used as they are set. `FlipswitchProviderBuilder` documents each of them at its setter.
#[derive(Clone, Debug)]
pub(crate) struct Options {
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
}

impl Default for Options {
    fn default() -> Self {
        Self {
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
        }
    }
}

impl Options {
    /// Checks every option against its limits.
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

/// Makes the builders of HTTP clients; set by the application.
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

/// The header of an API key.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// How an OFREP service authenticates requests; see [`FlipswitchProviderBuilder::auth`](crate::FlipswitchProviderBuilder::auth).
///
/// `Debug` shows at most the last four characters of the key or the token.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Auth {
    /// Sends nothing. The default of [`FlipswitchProvider::ofrep`](crate::FlipswitchProvider::ofrep).
    #[default]
    None,
    /// Sends an API key, in the header `X-API-Key`. The default of
    /// [`FlipswitchProvider::builder`](crate::FlipswitchProvider::builder).
    ApiKey(String),
    /// Sends a token, in the header `Authorization: Bearer <token>`.
    Bearer(String),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, key) = match self {
            Self::None => return f.write_str("None"),
            Self::ApiKey(key) => ("ApiKey", key),
            Self::Bearer(token) => ("Bearer", token),
        };
        write!(f, "{name}({})", end(key.trim()))
    }
}

/// What authenticates requests.
#[derive(Clone)]
pub(crate) enum Credential {
    None,
    ApiKey(ApiKey),
    Bearer(ApiKey),
}

impl Credential {
    pub(crate) fn new(auth: &Auth) -> Result<Self, ConfigError> {
        Ok(match auth {
            Auth::None => Self::None,
            Auth::ApiKey(key) => Self::ApiKey(ApiKey::new(key)?),
            Auth::Bearer(token) => Self::Bearer(bearer(token)?),
        })
    }

    /// Returns the same kind of credential with another key or token.
    pub(crate) fn replaced_by(&self, key: &str) -> Result<Self, ConfigError> {
        match self {
            Self::None => Err(ConfigError::NoAuth),
            Self::ApiKey(_) => Ok(Self::ApiKey(ApiKey::new(key)?)),
            Self::Bearer(_) => Ok(Self::Bearer(bearer(key)?)),
        }
    }

    /// Returns the key or the token.
    pub(crate) fn key(&self) -> Option<&ApiKey> {
        match self {
            Self::None => None,
            Self::ApiKey(key) | Self::Bearer(key) => Some(key),
        }
    }

    /// Replaces its header among those of a request.
    pub(crate) fn insert_into(&self, headers: &mut HeaderMap) {
        if let Some((name, value)) = self.header() {
            headers.insert(name, value);
        }
    }

    /// Returns the header that is sent, marked as sensitive.
    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::None => None,
            Self::ApiKey(key) => Some((API_KEY, key.0.clone())),
            Self::Bearer(token) => {
                let mut value = HeaderValue::from_bytes(&[b"Bearer ", token.0.as_bytes()].concat()).ok()?;
                value.set_sensitive(true);
                Some((header::AUTHORIZATION, value))
            }
        }
    }
}

fn bearer(token: &str) -> Result<ApiKey, ConfigError> {
    ApiKey::new(token).map_err(|error| {
        let problem = error.to_string();
        ConfigError::BearerToken { problem: problem.trim_start_matches("api_key ").to_owned() }
    })
}

/// Shows at most the end of the key.
impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key() {
            Some(key) => key.fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// Longest accepted API key, in bytes.
const MAX_KEY_BYTES: usize = 4_096;

/// An API key or a token, as a header value.
#[derive(Clone)]
pub(crate) struct ApiKey(HeaderValue);

impl ApiKey {
    pub(crate) fn new(key: &str) -> Result<Self, ConfigError> {
        let key = key.trim();
        if key.is_empty() {
            return Err(ConfigError::EmptyApiKey);
        }
        if key.len() > MAX_KEY_BYTES {
            return Err(ConfigError::LongApiKey { length: key.len() });
        }
        if let Some(problem) = wrapping(key) {
            return Err(ConfigError::WrappedApiKey { problem });
        }
        if let Some(position) = key.chars().position(|character| !matches!(character, ' '..='~')) {
            return Err(ConfigError::IllegalApiKey { position: position + 1 });
        }
        let mut value = HeaderValue::from_str(key).map_err(|_| ConfigError::IllegalApiKey { position: 1 })?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    /// Returns the secret of a provider that was given none.
    pub(crate) fn secret(&self) -> Secret {
        Secret::new(self.0.as_bytes())
    }

    /// Returns whether the key looks like a placeholder from an example.
    pub(crate) fn is_placeholder(&self) -> bool {
        let key = self.0.to_str().unwrap_or_default().to_ascii_lowercase().replace(['_', ' '], "-");
        key.starts_with('<')
            || key.chars().all(|character| character == 'x')
            || ["your-", "changeme", "change-me", "placeholder", "my-api-key", "api-key"]
                .iter()
                .any(|start| key.starts_with(start))
    }
}

/// Returns what is wrong with a key that was copied together with something else.
fn wrapping(key: &str) -> Option<&'static str> {
    let is_variable =
        |name: &str| name.contains('_') && name.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_'));
    if key.starts_with(['"', '\'', '`', '“', '‘', '«']) {
        Some("begins with a quote")
    } else if key.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("bearer ")) {
        Some("begins with \"Bearer\"")
    } else if key.starts_with("${") || key.starts_with("$(") || key.strip_prefix('$').is_some_and(is_variable) {
        Some("is the name of a variable that was not expanded")
    } else if key.split_once('=').is_some_and(|(name, value)| !value.is_empty() && is_variable(name)) {
        Some("is an assignment to a variable")
    } else {
        None
    }
}

/// Shows the last four characters of a key of at least 16, and nothing of a shorter one.
impl fmt::Display for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&end(self.0.to_str().unwrap_or_default()))
    }
}

/// Returns the last four characters of a key of at least 16, and nothing of a shorter one.
fn end(key: &str) -> String {
    let end = key.len().checked_sub(4).filter(|_| key.len() >= 16).and_then(|from| key.get(from..));
    format!("…{}", end.unwrap_or_default())
}

/// Headers that the provider sets itself, or that belong to the connection.
const OWN_HEADERS: [HeaderName; 14] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::CACHE_CONTROL,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::EXPECT,
    header::HOST,
    header::IF_NONE_MATCH,
    HeaderName::from_static("last-event-id"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::USER_AGENT,
];

/// Checks a header of the application, whose value is marked as sensitive.
pub(crate) fn custom_header(
    name: &str,
    value: &str,
    credential: &Credential,
) -> Result<(HeaderName, HeaderValue), ConfigError> {
    let refuse = |problem| ConfigError::Header { name: printable(name), problem };
    let known: HeaderName = name.trim().parse().map_err(|_| refuse("no header can have this name"))?;
    if OWN_HEADERS.contains(&known) || known.as_str().starts_with("x-flipswitch-") {
        return Err(refuse("the provider sets it; leave it out, or set a `user-agent` with `http_client`"));
    }
    if credential.header().is_some_and(|(name, _)| name == known) {
        return Err(refuse("`auth` or the API key sets it; leave out one of both"));
    }
    let mut value = HeaderValue::from_str(value.trim())
        .map_err(|_| refuse("its value has a character that a header cannot carry, such as a line break"))?;
    value.set_sensitive(true);
    Ok((known, value))
}

/// The URL of the flag service: an origin, and a path that may be empty.
#[derive(Clone)]
pub(crate) struct BaseUrl(Url);

impl BaseUrl {
    pub(crate) fn new(text: &str) -> Result<Self, ConfigError> {
        let refuse = |problem: &str| ConfigError::BaseUrl {
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
            return Err(refuse("credentials in a URL end up in logs; the service needs the API key only"));
        }
        if url.query().is_some() {
            return Err(refuse("a query is not supported, because paths are appended"));
        }
        if url.fragment().is_some() {
            return Err(refuse("a fragment is never sent"));
        }
        let path = url.path().trim_end_matches('/').to_owned();
        if path.ends_with("/ofrep/v1") || path.ends_with("/ofrep") {
            return Err(refuse("it ends in the path of OFREP, which the provider appends"));
        }
        url.set_path(&path);
        Ok(Self(url))
    }

    /// Returns what may be shown of a text that was passed as a URL: without anything that could be a credential, in case
    /// it is an API key.
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

    /// Returns the base URL of the origin of a URL.
    pub(crate) fn of_origin(url: &Url) -> Self {
        let mut url = url.clone();
        // Each of both fails for a URL without a host only.
        let _ = (url.set_username(""), url.set_password(None));
        url.set_path("/");
        url.set_query(None);
        url.set_fragment(None);
        Self(url)
    }

    pub(crate) fn url(&self) -> &Url {
        &self.0
    }

    /// Returns whether requests stay on this machine.
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

    /// Returns the URL of a path of the service.
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
    fn placeholder_keys_are_recognized() {
        for key in ["your-api-key", "YOUR_API_KEY", "<key>", "changeme", "xxxx", "api_key", "my-api-key-here"] {
            assert!(ApiKey::new(key).unwrap().is_placeholder(), "{key}");
        }
        for key in ["sk_live_8f3a", "quickstart-key", "x1"] {
            assert!(!ApiKey::new(key).unwrap().is_placeholder(), "{key}");
        }
    }

    #[test]
    fn at_most_the_end_of_a_key_is_shown() {
        assert_eq!(ApiKey::new("0123456789abcdef").unwrap().to_string(), "…cdef");
        assert_eq!(ApiKey::new("short-key").unwrap().to_string(), "…");
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
