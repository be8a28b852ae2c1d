//! HTTP. The only file that knows the client library: URLs, headers, limits, and what a status means.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::RwLock;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
pub(crate) use reqwest::ClientBuilder;
pub(crate) use reqwest::Url;
use reqwest::{Client, Response, redirect};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    ConfigError, Error,
    config::{ApiKey, BaseUrl},
    context::canonical::CanonicalContext,
    error::Chain,
    flags::flag_set::FlagSet,
    flags::intern::Interner,
    provider::builder::Settings,
    wire::ofrep,
};

/// Makes the clients: one factory for every request there is.
pub(crate) type ClientFactory = Arc<dyn Fn() -> ClientBuilder + Send + Sync>;

/// A bulk answer may not be larger than this.
const MAX_ANSWER: usize = 16 << 20;

/// Of the body of an error this much is read, and the rest left alone.
const MAX_REFUSAL: usize = 64 << 10;

/// At most this many redirects are followed, all within the origin.
const MAX_REDIRECTS: usize = 5;

/// A longer tag is not kept.
const MAX_ETAG: usize = 1_024;

/// How long the head of the stream's response may take: some servers send it with the first event.
const HEADERS: Duration = Duration::from_secs(30);

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A limit that is none.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Sends requests to the service. Lives on the home runtime.
pub(crate) struct Transport {
    /// Two clients of one factory, so that a stream whose reader stalls cannot hold up requests.
    requests: Client,
    streams: Client,
    bulk: Url,
    events: Url,
    headers: RwLock<HeaderMap>,
    told_not_found: AtomicBool,
    interner: Interner,
}

impl Transport {
    pub(crate) fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let mut headers = HeaderMap::new();
        headers.insert(API_KEY, settings.api_key.header());
        if settings.telemetry {
            telemetry(&mut headers, settings.enable_realtime);
        }
        Ok(Self {
            requests: client(settings, Method::POST, settings.request_timeout)?,
            // Nothing limits a stream as a whole; how long it may be silent is its reader's business.
            streams: client(settings, Method::GET, FOR_EVER)?,
            bulk: settings.base_url.join("/ofrep/v1/evaluate/flags"),
            events: settings.base_url.join("/api/v1/flags/events"),
            headers: RwLock::new(headers),
            told_not_found: AtomicBool::new(false),
            interner: Interner::default(),
        })
    }

    /// Sends another key from now on.
    pub(crate) fn set_api_key(&self, key: &ApiKey) {
        self.headers.write().insert(API_KEY, key.header());
    }

    fn headers(&self) -> HeaderMap {
        self.headers.read().clone()
    }

    /// Asks for all flags of one context; `etag` is the tag of the answer that is known for this very context.
    ///
    /// Takes as long as it takes: the caller sets the limit.
    pub(crate) async fn bulk(&self, context: &CanonicalContext, etag: Option<&[u8]>) -> Result<Bulk, Failure> {
        let mut request = self
            .requests
            .post(self.bulk.clone())
            .headers(self.headers())
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(context.as_bytes().to_vec());
        if let Some(etag) = etag.and_then(|etag| HeaderValue::from_bytes(etag).ok()) {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        let again = request.try_clone();
        let response = match (request.send().await, again) {
            // A connection that was kept open was closed by the service just then; asking twice does no harm.
            (Err(error), Some(again)) if error.is_request() && !error.is_connect() && !error.is_timeout() => {
                again.send().await.map_err(transport)?
            }
            (outcome, _) => outcome.map_err(transport)?,
        };
        let etag = response.headers().get(header::ETAG).map(HeaderValue::as_bytes);
        // Copied, since a header keeps the whole head of its response in memory.
        let etag = etag.filter(|etag| (1..=MAX_ETAG).contains(&etag.len())).map(Box::from);
        match response.status() {
            StatusCode::OK => {
                let flag_set = ofrep::bulk(&body(response, MAX_ANSWER).await?, &self.interner)?;
                Ok(Bulk::Flags { flag_set, etag })
            }
            StatusCode::NOT_MODIFIED => Ok(Bulk::NotModified { etag }),
            // OFREP knows no 404 for bulk; services that have no flags yet send it.
            StatusCode::NOT_FOUND => {
                if !self.told_not_found.swap(true, Ordering::Relaxed) {
                    tracing::warn!(target: "flipswitch", url = %self.bulk, "404: taken for \"no flags yet\"; is the base URL right?");
                }
                Ok(Bulk::Flags { flag_set: Arc::default(), etag: None })
            }
            _ => Err(failure(response).await),
        }
    }

    /// Opens the stream of changes, from after the event of this id.
    pub(crate) async fn events(&self, last_id: Option<&str>) -> Result<Events, Refused> {
        // The body of a refusal may not come either.
        let late = |_| Err(Refused { status: None, failure: Failure::of(Error::Timeout) });
        tokio::time::timeout(HEADERS, self.open(last_id)).await.unwrap_or_else(late)
    }

    async fn open(&self, last_id: Option<&str>) -> Result<Events, Refused> {
        let mut request = self
            .streams
            .get(self.events.clone())
            .headers(self.headers())
            .header(header::ACCEPT, HeaderValue::from_static("text/event-stream"))
            .header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"))
            .header(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if let Some(last_id) = last_id.and_then(|id| HeaderValue::from_bytes(id.as_bytes()).ok()) {
            request = request.header(HeaderName::from_static("last-event-id"), last_id);
        }
        let response = request.send().await.map_err(|error| Refused { status: None, failure: transport(error) })?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(Refused { status: Some(status), failure: failure(response).await });
        }
        let media_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.unwrap_or_default();
        if media_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/event-stream") {
            return Ok(Events(response));
        }
        let error = Error::decode(NoEventStream(ofrep::printable(media_type)));
        Err(Refused { status: Some(status), failure: Failure::of(error) })
    }
}

/// What asking for the stream came to, if not to a stream.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: Option<StatusCode>,
    pub(crate) failure: Failure,
}

/// An answer to a bulk request.
#[derive(Debug)]
pub(crate) enum Bulk {
    Flags {
        flag_set: Arc<FlagSet>,
        etag: Option<Box<[u8]>>,
    },
    /// What is known under the tag is still right.
    NotModified {
        etag: Option<Box<[u8]>>,
    },
}

/// A request that failed, and when the service wants to be asked again, if it said so.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) retry_after: Option<Duration>,
}

impl Failure {
    pub(crate) fn of(error: Error) -> Self {
        Self { error, retry_after: None }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::of(error)
    }
}

fn transport(error: reqwest::Error) -> Failure {
    // Without the URL: after a redirect it is the service's text.
    Failure::of(if error.is_timeout() { Error::Timeout } else { Error::transport(error.without_url()) })
}

/// What a status means that is neither an answer nor "unchanged".
async fn failure(response: Response) -> Failure {
    let retry_after = retry_after(response.headers().get(header::RETRY_AFTER), OffsetDateTime::now_utc());
    let error = match response.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Unauthorized,
        StatusCode::TOO_MANY_REQUESTS => Error::RateLimited { retry_after: retry_after.unwrap_or_default() },
        status @ StatusCode::BAD_REQUEST => {
            let refusal = body(response, MAX_REFUSAL).await.ok().and_then(|body| ofrep::refusal(&body));
            refusal.unwrap_or(Error::Status(status))
        }
        status => Error::Status(status),
    };
    Failure { error, retry_after }
}

/// What answered instead of the stream: a page of a proxy, for instance.
#[derive(Debug, thiserror::Error)]
#[error("no event stream, but content of type {0:?}")]
struct NoEventStream(String);

/// The open stream of changes.
#[derive(Debug)]
pub(crate) struct Events(Response);

impl Events {
    /// The next bytes; `None` at the end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        self.0.chunk().await.map_err(|error| transport(error).error)
    }
}

/// A client of the application's factory, with what must hold for every request set last.
fn client(settings: &Settings, method: Method, timeout: Duration) -> Result<Client, ConfigError> {
    let base_url = &settings.base_url;
    let mut builder = match &settings.http_client {
        Some(factory) => factory(),
        None => default_client(base_url)?,
    };
    if base_url.is_loopback() {
        builder = builder.no_proxy();
    }
    let builder = builder
        .redirect(same_origin(base_url.url().clone(), method))
        .connect_timeout(settings.connect_timeout)
        .timeout(timeout)
        .read_timeout(timeout)
        // It would log every byte, the key among them.
        .connection_verbose(false)
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate();
    build(builder).map_err(|cause| ConfigError::HttpClient { cause })
}

#[cfg(any(feature = "rustls", feature = "rustls-no-provider", feature = "native-tls"))]
fn default_client(base_url: &BaseUrl) -> Result<ClientBuilder, ConfigError> {
    Ok(match base_url.url().scheme() {
        // Without TLS there is nothing to trust: the system's certificates need not even be there.
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

/// The client library panics where it finds no crypto provider, which is the application's to install.
#[cfg(feature = "rustls-no-provider")]
fn build(builder: ClientBuilder) -> Result<Client, String> {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    match catch_unwind(AssertUnwindSafe(|| builder.build())) {
        Ok(outcome) => outcome.map_err(|error| Chain(&error).to_string()),
        Err(_) => Err("no crypto provider is installed in this process".to_owned()),
    }
}

/// Redirects stay within the origin, since they carry the API key, and keep the method: a redirect that would turn a
/// POST into a GET is an answer like any other.
fn same_origin(base: Url, method: Method) -> redirect::Policy {
    redirect::Policy::custom(move |attempt| {
        let keeps_method = method == Method::GET
            || matches!(attempt.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
        if attempt.url().origin() != base.origin() {
            let refused = RefusedRedirect::OtherOrigin(ofrep::printable(&attempt.url().origin().ascii_serialization()));
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

/// Why a redirect was not followed.
#[derive(Debug, thiserror::Error)]
enum RefusedRedirect {
    #[error("redirected to another origin, {0}, which the API key must not reach")]
    OtherOrigin(String),
    #[error("redirected more than {MAX_REDIRECTS} times")]
    TooMany,
}

/// What every Flipswitch SDK tells the service about itself.
fn telemetry(headers: &mut HeaderMap, realtime: bool) {
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

/// Reads a body up to `limit` bytes.
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
            // Doubled, as a vector does it, but not to twice what may ever be needed.
            let capacity = (body.capacity() * 2).clamp(needed, limit);
            body.reserve_exact(capacity - body.len());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Reads `Retry-After`: seconds or an HTTP date (RFC 9110 §10.2.3), or an ISO 8601 date, which services send too. `None`
/// for anything else, and for a time that is over.
fn retry_after(value: Option<&HeaderValue>, now: OffsetDateTime) -> Option<Duration> {
    let text = value?.to_str().ok()?.trim();
    let all_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // More seconds than fit are more than anybody waits.
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
    fn retry_after_is_read_in_its_three_forms() {
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
            assert_eq!(retry_after(value.as_ref(), now), seconds.map(Duration::from_secs), "{text:?}");
        }
    }

    #[test]
    fn what_tls_lacks_is_told_before_any_request() {
        let expected: &[&str] = if cfg!(any(feature = "rustls", feature = "native-tls")) {
            &[]
        } else if cfg!(feature = "rustls-no-provider") {
            &["no crypto provider", "`rustls-no-provider`"]
        } else {
            &["built without TLS", "`rustls`"]
        };
        let told = crate::FlipswitchProvider::new("key").err().map_or_else(String::new, |error| error.to_string());
        assert_eq!(told.is_empty(), expected.is_empty(), "{told}");
        for words in expected {
            assert!(told.contains(words), "{told}");
        }
    }
}
