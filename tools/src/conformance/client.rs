//! Sends requests with a limited time and size.

use std::time::Duration;

use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode, Url,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName},
    redirect,
};
use serde_json::Value;

use super::conformance::{Error, Service};

/// The time limit of a request, except for streams.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum size of a response body, in bytes.
const MAX_BODY: usize = 4 << 20;

/// The reason why a requirement is not met or does not apply.
#[derive(Clone, Debug)]
pub(crate) enum Miss {
    Fails(String),
    NotApplicable(String),
}

/// The result of the check of one requirement.
pub(crate) type Finding<T = ()> = Result<T, Miss>;

/// Returns a failure with a description of what the service did.
pub(crate) fn fails<T>(seen: impl Into<String>) -> Finding<T> {
    Err(Miss::Fails(seen.into()))
}

/// Returns the reason why a requirement does not apply.
pub(crate) fn not_applicable<T>(why: impl Into<String>) -> Finding<T> {
    Err(Miss::NotApplicable(why.into()))
}

/// A complete response.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(crate) fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// Returns the JSON of the response if it has this status.
    pub(crate) fn json_with(&self, status: StatusCode) -> Finding<Value> {
        self.has_status(status)?;
        self.json().ok_or_else(|| Miss::Fails(format!("status {} with a body that is not JSON", status.as_u16())))
    }

    pub(crate) fn has_status(&self, status: StatusCode) -> Finding {
        if self.status == status { Ok(()) } else { fails(self.seen()) }
    }

    pub(crate) fn has_json_content_type(&self) -> Finding {
        match self.header(CONTENT_TYPE) {
            Some(value) if is_media_type(value, "application/json") => Ok(()),
            Some(value) => fails(format!("{}, content type {}", self.seen(), printable(value))),
            None => fails(format!("{}, without a content type", self.seen())),
        }
    }

    /// Describes the status and the error code.
    pub(crate) fn seen(&self) -> String {
        let status = self.status.as_u16();
        match self.json().as_ref().map(|body| &body["errorCode"]) {
            Some(Value::String(code)) => format!("status {status} with the errorCode {}", printable(code)),
            _ => format!("status {status}"),
        }
    }
}

/// Returns whether a content type is this media type, with or without parameters.
pub(crate) fn is_media_type(value: &str, media_type: &str) -> bool {
    value.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case(media_type))
}

/// Returns a string from the service in a form that a report can show: short, and without control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(60).map(|char| if char.is_ascii_graphic() || char == ' ' { char } else { '?' }).collect()
}

/// Describes why there is no response. The text does not contain the URL.
pub(crate) fn no_response(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "no response in time".to_owned();
    }
    let error = error.without_url();
    let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    format!("no response: {}", chain.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}

/// Sends requests to a service.
pub(crate) struct Requests {
    client: Client,
    base: Url,
    credentials: HeaderMap,
}

impl Requests {
    pub(crate) fn new(service: &Service) -> Result<Self, Error> {
        // Redirects must not receive the credentials, and compressed responses must be visible as such.
        let client = Client::builder().redirect(redirect::Policy::none()).no_gzip().no_brotli().no_deflate().no_zstd();
        let client = client.build().map_err(|error| Error::Unreachable(no_response(error)))?;
        Ok(Self { client, base: service.url.clone(), credentials: service.headers.clone() })
    }

    pub(crate) fn base(&self) -> &Url {
        &self.base
    }

    pub(crate) fn has_credentials(&self) -> bool {
        !self.credentials.is_empty()
    }

    /// Returns the URL of all flags, or of the flag with this percent-encoded key.
    pub(crate) fn url(&self, encoded_key: Option<&str>) -> Url {
        let mut url = self.base.clone();
        let key = encoded_key.map(|key| format!("/{key}")).unwrap_or_default();
        url.set_path(&format!("{}/ofrep/v1/evaluate/flags{key}", self.base.path().trim_end_matches('/')));
        url
    }

    /// Begins a request with the credentials.
    pub(crate) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.anonymous(method, url).headers(self.credentials.clone())
    }

    /// Begins a request without the credentials.
    pub(crate) fn anonymous(&self, method: Method, url: Url) -> RequestBuilder {
        self.client.request(method, url).timeout(REQUEST_TIMEOUT)
    }

    /// Opens a stream in the same way as browsers.
    pub(crate) async fn open(&self, url: Url, wait: Duration) -> Result<Response, reqwest::Error> {
        let request = self.client.get(url).timeout(wait);
        request.header(ACCEPT, "text/event-stream").header(ACCEPT_ENCODING, "gzip, deflate, br").send().await
    }
}

/// Sends a request and reads the response.
pub(crate) async fn send(request: RequestBuilder) -> Result<Reply, String> {
    let mut response = request.send().await.map_err(no_response)?;
    let (status, headers, mut body) = (response.status(), response.headers().clone(), Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(no_response)? {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(format!("a response of more than {MAX_BODY} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Reply { status, headers, body })
}
