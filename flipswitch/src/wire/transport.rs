//! HTTP: URLs, headers, limits, and the meaning of status codes. This is the only file that sends requests.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use parking_lot::{Mutex, RwLock};
use reqwest::{Client, ClientBuilder, Response, Url, redirect};
use serde::de::IgnoredAny;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    config::{BaseUrl, Config, Options, ServiceKind},
    context::canonical::CanonicalContext,
    credential::Credential,
    error::{Chain, ConfigError, Error, Failure},
    flags::{
        flag_set::{FlagSet, Item},
        intern::Interner,
        usage::UsageLog,
    },
    sanitize::printable,
    wire::{
        event_streams::{self, Advertised, ConfigVersion, StreamUrl},
        not_found::NotFound,
        ofrep,
        proxy::proxy,
    },
};

/// Maximum size of the body of a bulk response, in bytes.
const MAX_BODY: usize = 16 << 20;

/// Maximum size of the body of an error response that is read, in bytes.
const MAX_ERROR_BODY: usize = 64 << 10;

/// How long the body of an error response is read if the status alone is not sufficient.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum number of redirects that are followed, all of them within the origin.
const MAX_REDIRECTS: usize = 5;

/// Maximum length of a tag that is kept, in bytes.
const MAX_ETAG: usize = 1_024;

/// Time limit for the response head of a stream: some servers send it with the first event.
const STREAM_HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A time limit that never applies.
const NO_TIMEOUT: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Interval between HTTP/2 pings on a connection, even while it is idle.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How long a ping may remain without a response. A connection whose peer is gone is replaced after this time plus the interval,
/// even if its packets are still acknowledged.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Sent unless the application configures a user agent, because some firewalls reject requests without one.
const USER_AGENT: &str = concat!("flipswitch-rust/", env!("CARGO_PKG_VERSION"));

/// Sends requests to the flag service. Must be used on the provider's runtime.
pub(crate) struct Transport {
    /// Two clients from the same factory, so that a stalled stream cannot hold up requests on a shared connection.
    requests: Client,
    streams: Client,
    base_url: BaseUrl,
    options: Options,
    bulk_url: Url,
    events_url: Url,
    /// The proxy between the provider and the service, if the system or the environment has one, without its credentials.
    proxy: Option<String>,
    /// Headers of every request to the service; the API key among them may be replaced.
    headers: RwLock<HeaderMap>,
    not_found: Mutex<NotFound>,
    interner: Interner,
}

/// Returns the headers that are sent with every request to the service, including those for streams.
fn common_headers(config: &Config) -> HeaderMap {
    let mut headers = config.headers.clone();
    config.credential.insert_into(&mut headers);
    if config.options.telemetry && config.options.service == ServiceKind::Flipswitch {
        insert_telemetry(&mut headers, config.options.enable_realtime);
    }
    headers
}

impl Transport {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let Config { base_url, options, .. } = config;
        Ok(Self {
            requests: client(client_builder(base_url, options)?, base_url, options, Method::POST)?,
            streams: client(client_builder(base_url, options)?, base_url, options, Method::GET)?,
            base_url: base_url.clone(),
            options: options.clone(),
            bulk_url: config.base_url.join("/ofrep/v1/evaluate/flags"),
            events_url: config.base_url.join("/api/v1/flags/events"),
            proxy: proxy(config),
            headers: RwLock::new(common_headers(config)),
            not_found: Mutex::default(),
            interner: Interner::default(),
        })
    }

    /// Returns the log of which flags are read.
    pub(crate) fn usage(&self) -> &Arc<UsageLog> {
        self.interner.usage()
    }

    /// Returns the interner, which shares the items of responses.
    pub(crate) fn interner(&self) -> &Interner {
        &self.interner
    }

    /// Returns the flag set for items that differ from the items of a response.
    pub(crate) fn flag_set(&self, items: Vec<Arc<Item>>) -> Arc<FlagSet> {
        self.interner.flag_set(items)
    }

    /// Sends a new API key or token from now on.
    pub(crate) fn set_credential(&self, credential: &Credential) {
        credential.insert_into(&mut self.headers.write());
        // Another environment may have no flags yet.
        *self.not_found.lock() = NotFound::default();
    }

    /// Returns the proxy between the provider and the service, without its credentials.
    pub(crate) fn proxy(&self) -> Option<&str> {
        self.proxy.as_deref()
    }

    fn headers(&self) -> HeaderMap {
        self.headers.read().clone()
    }

    /// Requests all flags of one context. `etag` is the tag of the flag set that is cached for exactly this context.
    ///
    /// `version` is the version of the flags that the request sends back if an event requires it. `may_lack_flags` is true if the
    /// service may respond with 404 because it has no flags. This function has no time limit of its own.
    pub(crate) async fn bulk(
        &self,
        context: &CanonicalContext,
        etag: Option<&[u8]>,
        version: &ConfigVersion,
        may_lack_flags: bool,
    ) -> Result<Bulk, Failure> {
        let mut request = self
            .requests
            .post(version.added_to(&self.bulk_url))
            .headers(self.headers())
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
            // Otherwise, a cache that ignores the body could return the flags of one user to another.
            .header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))
            .body(context.as_bytes().to_vec());
        if let Some(etag) = etag.and_then(|etag| HeaderValue::from_bytes(etag).ok()) {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        let retry = request.try_clone();
        let response = match (request.send().await, retry) {
            // The service has just closed the pooled connection. Evaluation is idempotent, so the request is repeated.
            (Err(error), Some(retry)) if error.is_request() && !error.is_connect() && !error.is_timeout() => {
                retry.send().await.map_err(|error| self.request_failure(error))?
            }
            (outcome, _) => outcome.map_err(|error| self.request_failure(error))?,
        };
        let etag = response.headers().get(header::ETAG).map(HeaderValue::as_bytes);
        // Copied, because a header value keeps the whole head of its response in memory.
        let etag = etag.filter(|etag| (1..=MAX_ETAG).contains(&etag.len())).map(Box::from);
        match response.status() {
            StatusCode::OK => {
                let body = body(response, MAX_BODY).await?;
                let flag_set = ofrep::bulk(&body, context.as_bytes(), &self.interner)?;
                self.has_flags();
                let reads_streams = self.options.follows_event_streams() && context.is_start_up();
                let streams = reads_streams.then(|| event_streams::advertised(&body, self.base_url.url()));
                Ok(Bulk::Flags { flag_set, etag, streams })
            }
            StatusCode::NOT_MODIFIED => {
                self.has_flags();
                Ok(Bulk::NotModified { etag })
            }
            StatusCode::NOT_FOUND => {
                match self.status_failure(response, self.bulk_url.as_str(), context.as_bytes()).await {
                    Failure { error: Error::Status(_), .. }
                        if may_lack_flags && self.not_found.lock().means_no_flags(Instant::now()) =>
                    {
                        if self.not_found.lock().must_report() {
                            tracing::warn!(
                                target: "flipswitch", url = %self.bulk_url,
                                "the flag service has responded with 404 for a minute, so all flags have their defaults; check \
                                 the base URL"
                            );
                        }
                        Ok(Bulk::NoFlags)
                    }
                    failure => Err(failure),
                }
            }
            _ => Err(self.status_failure(response, self.bulk_url.as_str(), context.as_bytes()).await),
        }
    }

    /// Records that the service has sent flags.
    fn has_flags(&self) {
        let had_none = self.not_found.lock().answered();
        if had_none {
            tracing::warn!(target: "flipswitch", "the flag service has flags again");
        }
    }

    /// Opens a stream of changes, after the event with this id.
    pub(crate) async fn events(
        &self,
        source: &StreamSource,
        last_id: Option<&str>,
    ) -> Result<EventStream, StreamRefused> {
        // The limit includes the body of an error response, which may stall as well.
        let timed_out = |_| Err(StreamRefused { status: None, failure: Error::Timeout.into() });
        tokio::time::timeout(STREAM_HEAD_TIMEOUT, self.open_stream(source, last_id)).await.unwrap_or_else(timed_out)
    }

    async fn open_stream(&self, source: &StreamSource, last_id: Option<&str>) -> Result<EventStream, StreamRefused> {
        let url = match source {
            StreamSource::Own => &self.events_url,
            StreamSource::Advertised(stream) => stream.url(),
        };
        let (client, headers) = if url.origin() == self.base_url.url().origin() {
            (self.streams.clone(), self.headers())
        } else {
            let refused = |error: Error| StreamRefused { status: None, failure: error.into() };
            (self.client_for_other_origin(url).map_err(refused)?, HeaderMap::new())
        };
        let mut request = client
            .get(url.clone())
            .headers(headers)
            .header(header::ACCEPT, HeaderValue::from_static("text/event-stream"))
            .header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"))
            .header(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if let Some(last_id) = last_id.and_then(|id| HeaderValue::from_bytes(id.as_bytes()).ok()) {
            request = request.header(HeaderName::from_static("last-event-id"), last_id);
        }
        let response = request
            .send()
            .await
            .map_err(|error| StreamRefused { status: None, failure: self.request_failure(error) })?;
        let status = response.status();
        if status != StatusCode::OK {
            let failure = match source {
                StreamSource::Own => self.status_failure(response, self.events_url.as_str(), b"").await,
                // Its body may repeat the URL. A status says nothing about the API key: the token in the URL may have expired.
                StreamSource::Advertised(_) => {
                    let retry_after = retry_after(response.headers());
                    Failure { error: Error::Status(status), is_connect: false, status: Some(status), retry_after }
                }
            };
            return Err(StreamRefused { status: Some(status), failure });
        }
        let media_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.unwrap_or_default();
        if media_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/event-stream") {
            return Ok(EventStream(response));
        }
        let shown = match source {
            StreamSource::Own => printable(media_type),
            // Another host controls this text.
            StreamSource::Advertised(_) => "another type".to_owned(),
        };
        let error = Error::decode(NoEventStream(shown));
        Err(StreamRefused { status: Some(status), failure: error.into() })
    }

    /// Returns the part of a stream's URL that may be shown.
    pub(crate) fn shown(&self, source: &StreamSource) -> String {
        match source {
            StreamSource::Own => self.events_url.to_string(),
            StreamSource::Advertised(stream) => stream.to_string(),
        }
    }

    /// Creates a client for a stream at an origin other than the origin of the service.
    ///
    /// # Errors
    ///
    /// An [`Error`] if the application's client has its own headers, which it would send there.
    fn client_for_other_origin(&self, url: &Url) -> Result<Client, Error> {
        let base_url = BaseUrl::of_origin(url);
        let builder = client_builder(&base_url, &self.options).map_err(Error::transport)?;
        if has_own_headers(&builder) {
            return Err(Error::transport(HeadersForOtherOrigin));
        }
        client(builder, &base_url, &self.options, Method::GET).map_err(Error::transport)
    }

    /// Returns the failure for a request that received no response.
    fn request_failure(&self, error: reqwest::Error) -> Failure {
        let is_connect = error.is_connect();
        let error = if error.is_timeout() {
            Error::Timeout
        } else {
            let proxy = self.proxy.clone().filter(|_| is_connect);
            // The URL is left out, because it may come from the service after a redirect.
            let source = error.without_url();
            match proxy {
                Some(proxy) => Error::transport(ThroughProxy { proxy, source }),
                None if speaks_no_tls(&source) => Error::transport(NoTls { source }),
                None => Error::transport(source),
            }
        };
        Failure { is_connect, ..error.into() }
    }

    /// Returns the failure for a status that is neither success nor 304. `url` is the part of the URL that may be shown, and
    /// `context` is the context that was sent.
    async fn status_failure(&self, response: Response, url: &str, context: &[u8]) -> Failure {
        let retry_after = retry_after(response.headers());
        let status = response.status();
        let error = match status {
            // A firewall that rejects a request says nothing about the API key.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                self.own_body(response, url).await.err().unwrap_or(Error::Unauthorized)
            }
            StatusCode::NOT_FOUND => self.own_body(response, url).await.err().unwrap_or(Error::Status(status)),
            StatusCode::TOO_MANY_REQUESTS => Error::RateLimited { retry_after: retry_after.unwrap_or_default() },
            StatusCode::BAD_REQUEST => {
                let body = body(response, MAX_ERROR_BODY).await.ok();
                body.and_then(|body| ofrep::rejection(&body, context)).unwrap_or(Error::Status(status))
            }
            _ => Error::Status(status),
        };
        Failure { error, is_connect: false, status: Some(status), retry_after }
    }

    /// Reads the body of an error response, to check that it comes from the flag service itself.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] if the body is neither empty nor JSON. In that case, a proxy, a firewall or another server has
    /// responded.
    async fn own_body(&self, response: Response, url: &str) -> Result<(), Error> {
        let status = response.status();
        let media_type =
            response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(printable);
        let is_own = match tokio::time::timeout(ERROR_BODY_TIMEOUT, body(response, MAX_ERROR_BODY)).await {
            Ok(Ok(body)) => body.trim_ascii().is_empty() || serde_json::from_slice::<IgnoredAny>(&body).is_ok(),
            // The body is too large, cut off, or does not end.
            Ok(Err(_)) | Err(_) => false,
        };
        if is_own {
            return Ok(());
        }
        let media_type = media_type.unwrap_or_else(|| "no content type".to_owned());
        let or = match status {
            StatusCode::NOT_FOUND => "the base URL is wrong",
            _ => "the service refuses the API key or token with a response that is not JSON",
        };
        let sender = self.proxy.as_ref().map_or_else(|| "a proxy".to_owned(), |proxy| format!("the proxy {proxy}"));
        Err(Error::decode(ForeignResponse { status, media_type, url: url.to_owned(), sender, or }))
    }
}

/// A response to a bulk request.
#[derive(Debug)]
pub(crate) enum Bulk {
    Flags {
        flag_set: Arc<FlagSet>,
        etag: Option<Box<[u8]>>,
        /// The event streams that the service advertises, if the provider follows them.
        streams: Option<Advertised>,
    },
    /// The service has no flags.
    NoFlags,
    /// The flag set that the request's tag identifies is still valid.
    NotModified { etag: Option<Box<[u8]>> },
}

/// Where a stream of changes comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StreamSource {
    /// The Flipswitch stream.
    Own,
    /// An OFREP event stream.
    Advertised(StreamUrl),
}

/// The reason why the stream did not open.
#[derive(Debug)]
pub(crate) struct StreamRefused {
    pub(crate) status: Option<StatusCode>,
    pub(crate) failure: Failure,
}

/// The open stream of changes.
pub(crate) struct EventStream(Response);

impl EventStream {
    /// Returns the next bytes, or `None` at the end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        self.0.chunk().await.map_err(|error| {
            // The URL is left out, because it may come from the service after a redirect.
            if error.is_timeout() { Error::Timeout } else { Error::transport(error.without_url()) }
        })
    }
}

/// The response is not an event stream. It may be a page from a proxy.
#[derive(Debug, thiserror::Error)]
#[error("content of type {0:?} instead of an event stream")]
struct NoEventStream(String);

/// Returns whether the application's factory has set a user agent. The HTTP client shows its headers only in its `Debug` output.
fn has_user_agent(builder: &ClientBuilder) -> bool {
    format!("{builder:?}").contains("\"user-agent\"")
}

/// The application's client has default headers.
#[derive(Debug, thiserror::Error)]
#[error(
    "the event stream and the service have different origins, and the default headers of `http_client` would be sent there; \
     set them with `header` instead"
)]
struct HeadersForOtherOrigin;

/// Returns whether the application's factory has set headers other than a user agent. The HTTP client shows its headers only
/// in its `Debug` output, as `"name": value`. Other text of this form is also taken for a header.
fn has_own_headers(builder: &ClientBuilder) -> bool {
    let text = format!("{builder:?}");
    let Some((_, headers)) = text.split_once("default_headers: {") else { return true };
    // Cookies belong to a host, regardless of the port.
    if text.contains("cookie_store: true") {
        return true;
    }
    headers.match_indices("\": ").any(|(end, _)| {
        let name = headers[..end].rsplit('"').next();
        !matches!(name, Some("accept" | "user-agent"))
    })
}

/// Creates the builder of a client, with the application's factory if there is one.
fn client_builder(base_url: &BaseUrl, options: &Options) -> Result<ClientBuilder, ConfigError> {
    match &options.http_client {
        Some(factory) => Ok(factory.client_builder()),
        None => default_client(base_url),
    }
}

/// Builds a client. Settings that must apply to every request are applied last. A client for GET is used for streams.
fn client(
    mut builder: ClientBuilder,
    base_url: &BaseUrl,
    options: &Options,
    method: Method,
) -> Result<Client, ConfigError> {
    // The duration of a stream is unlimited; its reader limits how long it may be silent.
    let timeout = if method == Method::GET { NO_TIMEOUT } else { options.request_timeout };
    if !has_user_agent(&builder) {
        builder = builder.user_agent(USER_AGENT);
    }
    if base_url.is_loopback() {
        builder = builder.no_proxy();
    }
    if method == Method::GET {
        // A stream has its own connection, because the connection of another stream may be about to be cut.
        builder = builder.pool_max_idle_per_host(0);
    }
    // A compressed stream could be delayed until there is enough data to compress.
    #[cfg(feature = "gzip")]
    let builder = builder.gzip(method == Method::POST);
    #[cfg(not(feature = "gzip"))]
    let builder = builder.no_gzip();
    let builder = builder
        .redirect(same_origin(base_url.url().clone(), method))
        .connect_timeout(options.connect_timeout)
        .timeout(timeout)
        .read_timeout(timeout)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_keep_alive_while_idle(true)
        // Verbose logging would include the API key.
        .connection_verbose(false)
        .no_brotli()
        .no_zstd()
        .no_deflate();
    build(builder).map_err(|cause| ConfigError::HttpClient { cause })
}

#[cfg(any(feature = "rustls", feature = "rustls-no-provider", feature = "native-tls"))]
fn default_client(base_url: &BaseUrl) -> Result<ClientBuilder, ConfigError> {
    Ok(match base_url.url().scheme() {
        // Certificates are not needed here, and may be missing.
        "http" => ClientBuilder::new().tls_certs_only([]),
        _ => ClientBuilder::new(),
    })
}

#[cfg(not(any(feature = "rustls", feature = "rustls-no-provider", feature = "native-tls")))]
fn default_client(base_url: &BaseUrl) -> Result<ClientBuilder, ConfigError> {
    match base_url.url().scheme() {
        "http" => Ok(ClientBuilder::new()),
        _ => Err(ConfigError::NoTls { value: base_url.to_string() }),
    }
}

#[cfg(not(feature = "rustls-no-provider"))]
fn build(builder: ClientBuilder) -> Result<Client, String> {
    builder.build().map_err(|error| Chain(&error).to_string())
}

/// The HTTP client panics if the application has not installed a crypto provider.
#[cfg(feature = "rustls-no-provider")]
fn build(builder: ClientBuilder) -> Result<Client, String> {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    match catch_unwind(AssertUnwindSafe(|| builder.build())) {
        Ok(outcome) => outcome.map_err(|error| Chain(&error).to_string()),
        Err(_) => Err("no crypto provider is installed in this process".to_owned()),
    }
}

/// Follows redirects only within the origin, because requests carry the API key. A redirect that would turn a POST into a
/// GET is not followed, and counts as a response.
fn same_origin(base: Url, method: Method) -> redirect::Policy {
    redirect::Policy::custom(move |attempt| {
        let keeps_method = method == Method::GET
            || matches!(attempt.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
        if attempt.url().origin() != base.origin() {
            let refused = RefusedRedirect::OtherOrigin(printable(&attempt.url().origin().ascii_serialization()));
            attempt.error(refused)
        } else if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error(RefusedRedirect::TooMany)
        } else if keeps_method {
            attempt.follow()
        } else {
            attempt.stop()
        }
    })
}

/// The reason why a redirect was not followed.
#[derive(Debug, thiserror::Error)]
enum RefusedRedirect {
    #[error("redirected to another origin, {0}, to which neither the API key nor other headers are sent")]
    OtherOrigin(String),
    #[error("redirected more than {MAX_REDIRECTS} times")]
    TooMany,
}

/// Adds what every Flipswitch SDK reports about itself.
fn insert_telemetry(headers: &mut HeaderMap, realtime: bool) {
    let os = match std::env::consts::OS {
        "macos" => "darwin",
        os => os,
    };
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        arch => arch,
    };
    let values = [
        ("x-flipswitch-sdk", concat!("rust/", env!("CARGO_PKG_VERSION")).to_owned()),
        ("x-flipswitch-runtime", concat!("rust/", env!("FLIPSWITCH_RUSTC_VERSION")).to_owned()),
        ("x-flipswitch-os", format!("{os}/{arch}")),
        ("x-flipswitch-features", format!("sse={realtime}")),
    ];
    for (name, value) in values {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// Reads a body of up to `limit` bytes.
async fn body(mut response: Response, limit: usize) -> Result<Vec<u8>, Error> {
    let announced = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    if announced > limit {
        return Err(Error::TooLarge);
    }
    let mut body = Vec::with_capacity(announced);
    while let Some(chunk) = response.chunk().await.map_err(|error| Error::transport(error.without_url()))? {
        let needed = body.len() + chunk.len();
        if needed > limit {
            return Err(Error::TooLarge);
        }
        if needed > body.capacity() {
            // Doubles like a vector, but never beyond the limit.
            let capacity = (body.capacity() * 2).clamp(needed, limit);
            body.reserve_exact(capacity - body.len());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The response is not from the flag service.
#[derive(Debug, thiserror::Error)]
#[error(
    "{status} with a body that is not JSON ({media_type}) from {url}; {sender} or a firewall has responded, or {or}"
)]
struct ForeignResponse {
    status: StatusCode,
    media_type: String,
    url: String,
    sender: String,
    or: &'static str,
}

/// Connecting to the proxy, or through it, failed.
#[derive(Debug, thiserror::Error)]
#[error("through the proxy {proxy}")]
struct ThroughProxy {
    proxy: String,
    source: reqwest::Error,
}

/// The TLS handshake failed because the server speaks plain HTTP.
#[derive(Debug, thiserror::Error)]
#[error("the server at this port does not use TLS; should the scheme of the base URL be http?")]
struct NoTls {
    source: reqwest::Error,
}

/// Returns whether the server does not speak TLS. rustls and OpenSSL report this only in the text of their errors.
fn speaks_no_tls(error: &reqwest::Error) -> bool {
    let text = Chain(error).to_string();
    error.is_connect() && (text.contains("InvalidContentType") || text.contains("wrong version number"))
}

/// Returns the wait that a response requests.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    parse_retry_after(headers.get(header::RETRY_AFTER), OffsetDateTime::now_utc())
}

/// Parses `Retry-After`: seconds or an HTTP date (RFC 9110 §10.2.3), or an ISO 8601 date, which some services send.
/// Returns `None` for anything else, and for a time in the past.
fn parse_retry_after(value: Option<&HeaderValue>, now: OffsetDateTime) -> Option<Duration> {
    let text = value?.to_str().ok()?.trim();
    let all_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // A number that does not fit is longer than any wait.
    let seconds = || all_digits.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    let http_date = || httpdate::parse_http_date(text).ok().map(OffsetDateTime::from);
    let iso_date = || OffsetDateTime::parse(text, &Rfc3339).ok();
    let date = || http_date().or_else(iso_date).and_then(|date| Duration::try_from(date - now).ok());
    seconds().or_else(date).filter(|wait| !wait.is_zero())
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn retry_after_is_parsed_in_its_three_forms() {
        let now = datetime!(2024-01-21 10:30:00 UTC);
        let cases = [
            (Some("7"), Some(7)),
            (Some(" 7 "), Some(7)),
            (Some("0"), None),
            (Some("86400"), Some(86_400)),
            (Some("99999999999999999999"), Some(u64::MAX)),
            (Some("Sun, 21 Jan 2024 10:30:30 GMT"), Some(30)),
            (Some("Sunday, 21-Jan-24 10:30:30 GMT"), Some(30)),
            (Some("2024-01-21T10:31:00Z"), Some(60)),
            (Some("2024-01-21T12:31:00+02:00"), Some(60)),
            (Some("Sun, 21 Jan 2024 10:29:00 GMT"), None),
            (Some("-5"), None),
            (Some("soon"), None),
            (Some(""), None),
            (None, None),
        ];
        for (text, seconds) in cases {
            let value = text.map(|text| HeaderValue::from_str(text).unwrap());
            assert_eq!(parse_retry_after(value.as_ref(), now), seconds.map(Duration::from_secs), "{text:?}");
        }
    }

    #[test]
    fn default_headers_of_a_client_are_recognised() {
        let with = |name: &'static str, value: &str| {
            let value = HeaderValue::from_str(value).unwrap();
            ClientBuilder::new().default_headers(HeaderMap::from_iter([(HeaderName::from_static(name), value)]))
        };
        let usual = || ClientBuilder::new().no_proxy().connect_timeout(Duration::from_secs(1));
        assert!(!has_own_headers(&usual()) && !has_own_headers(&usual().user_agent("my } agent")));
        let secret = with("authorization", "secret");
        assert!(has_own_headers(&secret));
        assert!(has_own_headers(&secret.user_agent("x")));
        let mut sensitive = HeaderValue::from_static("secret");
        sensitive.set_sensitive(true);
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-token"), sensitive)]);
        assert!(has_own_headers(&usual().user_agent("a } b").default_headers(headers)));
    }

    #[test]
    fn missing_tls_is_reported_before_any_request() {
        let expected: &[&str] = if cfg!(any(feature = "rustls", feature = "native-tls")) {
            &[]
        } else if cfg!(feature = "rustls-no-provider") {
            &["no crypto provider", "`rustls-no-provider`"]
        } else {
            &["built without TLS", "`rustls`"]
        };
        let base_url = BaseUrl::new("https://flags.example").unwrap();
        let text =
            Transport::new(&Config::of_service(base_url)).err().map_or_else(String::new, |error| error.to_string());
        assert_eq!(text.is_empty(), expected.is_empty(), "{text}");
        for words in expected {
            assert!(text.contains(words), "{text}");
        }
    }
}
