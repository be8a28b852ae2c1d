//! The service to check, and the check.

use std::{fmt, time::Duration};

use reqwest::{
    Method, RequestBuilder, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH},
};
use serde_json::{Value, json};
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout_at},
};

use super::{
    client::{Finding, Miss, Reply, Requests, fails, not_applicable, send},
    report::{Outcome, Report, Row},
    streams::{MAX_STREAMS, OpenedStream},
    table::{Check, TABLE},
    tags::Contexts,
};

/// Limits the time of a check, without the waits for streams.
const MAX_TIME: Duration = Duration::from_secs(120);

/// The characters of a key that need not be encoded, without the dot: a key of dots would otherwise be a relative path.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~')
}

/// A service to check, and how.
#[derive(Clone)]
pub struct Service {
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) flag: Option<String>,
    pub(crate) stream_wait: Duration,
}

/// Why a service cannot be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The URL is not one of a service.
    Url(String),
    /// A header is invalid. Has its name.
    Header(String),
    /// There was no answer at all. Says why.
    Unreachable(String),
}

impl Service {
    /// Creates a service with this base URL, and without credentials.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Url`] if the URL is not an absolute one with `http` or `https`, or has a user name.
    pub fn new(url: &str) -> Result<Self, Error> {
        let problem = |problem: &str| Error::Url(problem.to_owned());
        let mut url = Url::parse(url).map_err(|error| problem(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(problem("must begin with http:// or https://"));
        }
        // The URLs of streams would have them, too.
        if !url.username().is_empty() || url.password().is_some() {
            return Err(problem("must not have a user name or a password: send them in a header"));
        }
        url.set_query(None);
        url.set_fragment(None);
        Ok(Self { url, headers: HeaderMap::new(), flag: None, stream_wait: Duration::from_secs(35) })
    }

    /// Sends this key as `X-API-Key`.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Header`] if the key cannot be sent in a header.
    pub fn api_key(self, key: &str) -> Result<Self, Error> {
        self.header("x-api-key", key)
    }

    /// Sends this token as `Authorization: Bearer`.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Header`] if the token cannot be sent in a header.
    pub fn bearer(self, token: &str) -> Result<Self, Error> {
        self.header(AUTHORIZATION.as_str(), &format!("Bearer {token}"))
    }

    /// Sends this header, which counts as a credential.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Header`] if the name or the value is invalid.
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, Error> {
        let invalid = || Error::Header(name.to_owned());
        let header: HeaderName = name.parse().map_err(|_| invalid())?;
        let mut value = HeaderValue::from_str(value).map_err(|_| invalid())?;
        value.set_sensitive(true);
        self.headers.append(header, value);
        Ok(self)
    }

    /// Sets the flag that is evaluated alone. Defaults to the first of all flags that has a value.
    #[must_use]
    pub fn flag(mut self, key: impl Into<String>) -> Self {
        self.flag = Some(key.into());
        self
    }

    /// Sets how long a stream may be silent after it was opened, at most an hour. Defaults to 35 seconds.
    #[must_use]
    pub fn stream_wait(mut self, wait: Duration) -> Self {
        self.stream_wait = wait.min(Duration::from_secs(60 * 60));
        self
    }

    /// Returns what must not be in a report.
    fn secrets(&self) -> Vec<String> {
        let values = self.headers.values().filter_map(|value| value.to_str().ok());
        let mut secrets: Vec<_> = values.map(|value| value.trim_start_matches("Bearer ").to_owned()).collect();
        secrets.retain(|secret| !secret.is_empty());
        secrets
    }
}

/// Shows neither credentials nor the URL.
impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("flag", &self.flag)
            .field("stream_wait", &self.stream_wait)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(problem) => write!(f, "invalid URL: {problem}"),
            Self::Header(name) => write!(f, "invalid header {name:?}"),
            Self::Unreachable(problem) => write!(f, "cannot reach the service: {problem}"),
        }
    }
}

impl std::error::Error for Error {}

/// Checks a service. This takes about a hundred requests and at most two minutes, and for each of at most four streams
/// [`Service::stream_wait`].
///
/// # Errors
///
/// Returns [`Error::Unreachable`] if the first request is not answered.
pub async fn check(service: &Service) -> Result<Report, Error> {
    let session = Session::start(service).await?;
    let secrets = service.secrets();
    let until = Instant::now() + MAX_TIME + service.stream_wait * MAX_STREAMS as u32;
    let mut rows = Vec::with_capacity(TABLE.len());
    for rule in TABLE {
        let finding = timeout_at(until, Box::pin(session.finding(rule.check))).await;
        let outcome = match finding.unwrap_or_else(|_| fails("not checked: the service is too slow")) {
            Ok(()) => Outcome::Holds,
            Err(Miss::Fails(seen)) => Outcome::Fails(redacted(&secrets, seen)),
            Err(Miss::NotApplicable(why)) => Outcome::NotApplicable(redacted(&secrets, why)),
        };
        let (name, demand, level, source) = (rule.name, rule.demand, rule.level, rule.source);
        rows.push(Row { name, demand, level, source, outcome });
    }
    Ok(Report { rows })
}

fn redacted(secrets: &[String], text: String) -> String {
    secrets.iter().fold(text, |text, secret| text.replace(secret, "***"))
}

/// A check under way.
pub(crate) struct Session {
    pub(crate) requests: Requests,
    /// The answer to the first request.
    pub(crate) first: Reply,
    /// All flags of that answer.
    pub(crate) flags: Vec<Value>,
    /// The flag to evaluate alone.
    flag: Option<String>,
    pub(crate) stream_wait: Duration,
    pub(crate) streams: OnceCell<Vec<OpenedStream>>,
    pub(crate) contexts: OnceCell<Finding<Contexts>>,
}

impl Session {
    async fn start(service: &Service) -> Result<Self, Error> {
        let requests = Requests::new(service)?;
        let request = requests.request(Method::POST, requests.url(None)).json(&body());
        let first = send(request).await.map_err(Error::Unreachable)?;
        let flags = match first.json() {
            Some(mut body) if first.status == StatusCode::OK => match body["flags"].take() {
                Value::Array(flags) => flags,
                _ => Vec::new(),
            },
            _ => Vec::new(),
        };
        let with_value = flags.iter().find(|flag| flag["key"].is_string() && !flag["value"].is_null());
        let flag = service.flag.clone().or_else(|| with_value?["key"].as_str().map(str::to_owned));
        Ok(Self {
            requests,
            first,
            flags,
            flag,
            stream_wait: service.stream_wait,
            streams: OnceCell::new(),
            contexts: OnceCell::new(),
        })
    }

    async fn finding(&self, check: Check) -> Finding {
        match check {
            Check::BulkAnswer => self.bulk_answer(),
            Check::BulkContentType => self.bulk_content_type(),
            Check::BulkItems => self.bulk_items(),
            Check::Reasons => self.reasons(),
            Check::Attributes => self.attributes().await,
            Check::NoTargetingKey => self.is_evaluated_or_rejected(br#"{"context":{"plan":"free"}}"#).await,
            Check::UnknownFields => self.unknown_fields().await,
            Check::RequestCharset => self.request_charset().await,
            Check::NoContext => self.is_evaluated_or_rejected(b"{}").await,
            Check::EmptyBody => self.is_evaluated_or_rejected(b"").await,
            Check::NotJson => self.is_rejected(b"{\"context\":").await,
            Check::ContextNoObject => self.is_rejected(br#"{"context":["conformance"]}"#).await,
            Check::LargeContext => self.large_context().await,
            Check::SingleAnswer => self.single_answer().await,
            Check::SingleAgrees => self.single_agrees().await,
            Check::UnknownFlag => self.unknown_flag().await,
            Check::UnknownFlagKey => self.unknown_flag_key().await,
            Check::EncodedKey => self.encoded_key().await,
            Check::EncodedCharacters => self.is_unknown("conformance no such?flag %é").await,
            Check::EncodedSlash => self.is_unknown("conformance/no-such-flag").await,
            Check::ErrorBodies => self.error_bodies().await,
            Check::OtherMethods => self.other_methods().await,
            Check::Allow => self.allow().await,
            Check::Credentials => self.credentials().await,
            Check::CredentialsBody => self.credentials_body().await,
            Check::Tag => self.tag().map(drop).or_else(|_| fails("no ETag")),
            Check::TagSyntax => self.tag_syntax(),
            Check::TagStable => self.tag_stable().await,
            Check::NotModified => self.not_modified().await.map(drop),
            Check::NotModifiedBody => self.not_modified_body().await,
            Check::NotModifiedTag => self.not_modified_tag().await,
            Check::OtherTag => self.other_tag().await,
            Check::TagDiffers => self.tag_differs().await,
            Check::TagOfOtherContext => self.tag_of_other_context().await,
            Check::TagList => self.tag_as(|tag| format!("\"0\", {tag}, W/\"1\"")).await,
            Check::TagWeak => self.tag_as(|tag| format!("W/{}", tag.trim_start_matches("W/"))).await,
            Check::TagAny => self.tag_as(|_| "*".to_owned()).await,
            Check::TagUnquoted => self.tag_as(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned()).await,
            Check::TagSuffix => self.tag_as(|tag| format!("{}-gzip\"", tag.trim_end_matches('"'))).await,
            Check::Streams => self.streams(),
            Check::StreamsInactivity => self.streams_inactivity(),
            Check::StreamsSingle => self.streams_single().await,
            Check::StreamOpens => self.stream_opens().await,
            Check::StreamUncompressed => self.stream_uncompressed().await,
            Check::StreamSpeaks => self.stream_speaks().await,
            Check::StreamSyntax => self.stream_syntax().await,
            Check::StreamLf => self.stream_lf().await,
            Check::StreamEvents => self.stream_events().await,
            Check::StreamIds => self.stream_ids().await,
            Check::StreamRefetch => self.stream_refetch().await,
            Check::FlagConfigEtag => self.flag_config_etag().await,
            Check::FlagConfigLastModified => self.flag_config_last_modified().await,
        }
    }

    /// Returns the key of the flag to evaluate alone.
    pub(crate) fn flag(&self) -> Finding<&str> {
        match &self.flag {
            Some(flag) => Ok(flag),
            None => not_applicable("there is no flag with a value"),
        }
    }

    /// Begins an evaluation of all flags.
    pub(crate) fn bulk(&self) -> RequestBuilder {
        self.requests.request(Method::POST, self.requests.url(None))
    }

    /// Begins an evaluation of one flag.
    pub(crate) fn single(&self, key: &str) -> RequestBuilder {
        self.requests.request(Method::POST, self.requests.url(Some(&encoded(key, is_unreserved))))
    }

    /// Evaluates all flags for the usual context, under the condition that the tag is not this one.
    pub(crate) async fn bulk_unless(&self, tag: &str) -> Finding<Reply> {
        let Ok(mut tag) = HeaderValue::from_str(tag) else {
            return not_applicable("the ETag cannot be sent in a header");
        };
        tag.set_sensitive(true);
        ask(self.bulk().json(&body()).header(IF_NONE_MATCH, tag)).await
    }

    /// Returns the tag of the first answer.
    pub(crate) fn tag(&self) -> Finding<&str> {
        match self.first.header(ETAG) {
            Some(tag) if self.first.status == StatusCode::OK => Ok(tag),
            _ => not_applicable("all flags have no ETag"),
        }
    }
}

/// Returns the body of the usual request.
pub(crate) fn body() -> Value {
    json!({"context": {"targetingKey": "conformance"}})
}

/// Sends a request. Without an answer, the row fails.
pub(crate) async fn ask(request: RequestBuilder) -> Finding<Reply> {
    send(request).await.map_err(Miss::Fails)
}

/// Sends bytes as JSON.
pub(crate) fn raw(request: RequestBuilder, body: &[u8]) -> RequestBuilder {
    request.header(CONTENT_TYPE, "application/json").body(body.to_vec())
}

/// Percent-encodes a key.
pub(crate) fn encoded(key: &str, is_plain: impl Fn(u8) -> bool) -> String {
    let encode = |byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    key.bytes().map(encode).collect()
}
