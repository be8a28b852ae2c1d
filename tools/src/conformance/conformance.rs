//! Describes a service and checks it.

use std::{fmt, time::Duration};

use reqwest::{
    Method, RequestBuilder, StatusCode, Url,
    header::{CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH},
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
    table::TABLE,
    tags::Contexts,
};

/// The time limit of a check, without the waits for streams.
const MAX_TIME: Duration = Duration::from_secs(120);

/// A service to check, with the options of the check.
#[derive(Clone)]
pub struct Service {
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) flag: Option<String>,
    pub(crate) stream_wait: Duration,
}

/// The reason why a service cannot be checked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The URL cannot be the URL of a service.
    #[error("invalid URL: {0}")]
    Url(String),
    /// A header is invalid. Contains its name.
    #[error("invalid header {0:?}")]
    Header(String),
    /// There was no response. Contains the reason.
    #[error("cannot reach the service: {0}")]
    Unreachable(String),
    /// The service rejects the credentials, or requires credentials.
    #[error("the service responds with {0}: pass --api-key, --bearer or --header")]
    Refused(StatusCode),
    /// There is no OFREP service at this URL.
    #[error("the service responds with {0}: there is no OFREP service at this URL, which must not contain /ofrep/v1")]
    NotFound(StatusCode),
}

impl Service {
    /// Creates a service with this base URL, and without credentials.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Url`] if the URL is not an absolute URL with `http` or `https`, or if it has a user name or a password.
    pub fn new(url: &str) -> Result<Self, Error> {
        let problem = |problem: &str| Error::Url(problem.to_owned());
        let mut url = Url::parse(url).map_err(|error| problem(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(problem("must begin with http:// or https://"));
        }
        // The URLs of streams would contain them as well.
        if !url.username().is_empty() || url.password().is_some() {
            return Err(problem("must not have a user name or a password: send them in a header"));
        }
        url.set_query(None);
        url.set_fragment(None);
        Ok(Self { url, headers: HeaderMap::new(), flag: None, stream_wait: Duration::from_secs(35) })
    }

    /// Adds a header to all requests except streams. It counts as a credential.
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

    /// Sets the flag that is evaluated individually. Defaults to the first flag that has a value.
    #[must_use]
    pub fn flag(mut self, key: impl Into<String>) -> Self {
        self.flag = Some(key.into());
        self
    }

    /// Sets how long a stream may be silent after it was opened, up to an hour. Defaults to 35 seconds.
    #[must_use]
    pub fn stream_wait(mut self, wait: Duration) -> Self {
        self.stream_wait = wait.min(Duration::from_secs(60 * 60));
        self
    }

    /// Returns the strings that must not appear in a report.
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

/// Checks a service. The check sends about a hundred requests. It takes at most two minutes, plus [`Service::stream_wait`] for
/// each of at most four streams.
///
/// # Errors
///
/// Returns [`Error::Unreachable`] if there is no response to the first request.
pub async fn check(service: &Service) -> Result<Report, Error> {
    let run = Run::start(service).await?;
    let secrets = service.secrets();
    let until = Instant::now() + MAX_TIME + service.stream_wait * MAX_STREAMS as u32;
    let mut rows = Vec::with_capacity(TABLE.len());
    for rule in TABLE {
        let finding = timeout_at(until, (rule.check)(&run)).await;
        let outcome = match finding.unwrap_or_else(|_| fails("not checked, because the service is too slow")) {
            Ok(()) => Outcome::Holds,
            Err(Miss::Fails(seen)) => Outcome::Fails(redacted(&secrets, seen)),
            Err(Miss::NotApplicable(why)) => Outcome::NotApplicable(redacted(&secrets, why)),
        };
        rows.push(Row { rule, outcome });
    }
    Ok(Report { rows })
}

fn redacted(secrets: &[String], text: String) -> String {
    secrets.iter().fold(text, |text, secret| text.replace(secret, "***"))
}

/// The state of a running check.
pub(crate) struct Run {
    pub(crate) requests: Requests,
    /// The response to the first request.
    pub(crate) first: Reply,
    /// All flags of this response.
    pub(crate) flags: Vec<Value>,
    /// The key of the flag to evaluate individually.
    flag: Option<String>,
    pub(crate) stream_wait: Duration,
    pub(crate) streams: OnceCell<Vec<OpenedStream>>,
    pub(crate) contexts: OnceCell<Finding<Contexts>>,
}

impl Run {
    async fn start(service: &Service) -> Result<Self, Error> {
        let requests = Requests::new(service)?;
        let request = requests.request(Method::POST, requests.url(None)).json(&body());
        let first = send(request).await.map_err(Error::Unreachable)?;
        match first.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(Error::Refused(first.status)),
            StatusCode::NOT_FOUND => return Err(Error::NotFound(first.status)),
            _ => {}
        }
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

    /// Returns the key of the flag to evaluate individually.
    pub(crate) fn flag(&self) -> Finding<&str> {
        match &self.flag {
            Some(flag) => Ok(flag),
            None => not_applicable("there is no flag with a value"),
        }
    }

    /// Builds a request for all flags.
    pub(crate) fn bulk(&self) -> RequestBuilder {
        self.requests.request(Method::POST, self.requests.url(None))
    }

    /// Builds a request for all flags of the usual context, with a parameter in the query.
    pub(crate) fn bulk_with(&self, name: &str, value: &str) -> RequestBuilder {
        let mut url = self.requests.url(None);
        url.query_pairs_mut().append_pair(name, value);
        self.requests.request(Method::POST, url).json(&body())
    }

    /// Builds a request for one flag.
    pub(crate) fn single(&self, key: &str) -> RequestBuilder {
        self.requests.request(Method::POST, self.requests.url(Some(&encoded(key))))
    }

    /// Requests all flags of the usual context, with `If-None-Match` and this tag.
    pub(crate) async fn bulk_unless(&self, tag: &str) -> Finding<Reply> {
        let Ok(mut tag) = HeaderValue::from_str(tag) else {
            return not_applicable("the ETag cannot be sent in a header");
        };
        tag.set_sensitive(true);
        ask(self.bulk().json(&body()).header(IF_NONE_MATCH, tag)).await
    }

    /// Returns the tag of the first response.
    pub(crate) fn tag(&self) -> Finding<&str> {
        match self.first.header(ETAG) {
            Some(tag) if self.first.status == StatusCode::OK => Ok(tag),
            _ => not_applicable("the response with all flags has no ETag"),
        }
    }
}

/// Returns the body of the usual request.
pub(crate) fn body() -> Value {
    json!({"context": {"targetingKey": "conformance"}})
}

/// Sends a request. If there is no response, the requirement fails.
pub(crate) async fn ask(request: RequestBuilder) -> Finding<Reply> {
    send(request).await.map_err(Miss::Fails)
}

/// Adds bytes as a JSON body.
pub(crate) fn raw(request: RequestBuilder, body: &[u8]) -> RequestBuilder {
    request.header(CONTENT_TYPE, "application/json").body(body.to_vec())
}

/// Percent-encodes a key, including its dots, because a key of dots would be a relative path.
fn encoded(key: &str) -> String {
    let encode = |byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    key.bytes().map(encode).collect()
}
