//! Faults: the endpoint and the requests that they apply to, and their effect.

use std::{collections::BTreeMap, time::Duration};

use axum::body::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::faults::{
    effect::{self, Effect, FlagError},
    error::FaultError,
    filter::{Attribute, IncomingRequest, RequestFilter},
    payload::Payload,
};

/// Path of the evaluation of all flags. The path of one flag is `{BULK_PATH}/{key}`.
pub(crate) const BULK_PATH: &str = "/ofrep/v1/evaluate/flags";

/// Path of the stream of changes.
pub(crate) const STREAM_PATH: &str = "/api/v1/flags/events";

/// Path of the OFREP event stream.
pub(crate) const EVENT_STREAM_PATH: &str = "/ofrep/v1/sse/flags";

/// The endpoint that a fault applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum Endpoint {
    /// Requests to any of the three API endpoints listed below.
    All,
    /// The evaluation of all flags, `POST /ofrep/v1/evaluate/flags`.
    Bulk,
    /// The evaluation of one flag, `POST /ofrep/v1/evaluate/flags/{key}`.
    Single,
    /// The stream of changes, `GET /api/v1/flags/events`, and the OFREP event stream, `GET /ofrep/v1/sse/flags`, if
    /// [`event_streams`](crate::LocalServerBuilder::event_streams) is on.
    Stream,
    /// New connections, before anything is read from them. This includes connections for the endpoints under `/local`.
    ///
    /// Supports [`close`](FaultOn::close), [`reset`](FaultOn::reset) and [`hang`](FaultOn::hang). Also supports
    /// [`half_open`](FaultOn::half_open), which applies to connections that are already open, but not to new ones.
    Connections,
}

impl Endpoint {
    /// Returns the endpoint at a path.
    pub(crate) fn of_path(path: &str) -> Option<Self> {
        match path.strip_prefix(BULK_PATH) {
            Some("") => Some(Self::Bulk),
            Some(key) if key.starts_with('/') => Some(Self::Single),
            _ => matches!(path, STREAM_PATH | EVENT_STREAM_PATH).then_some(Self::Stream),
        }
    }

    /// Returns the content type of the endpoint's responses.
    pub(crate) fn content_type(self) -> &'static str {
        if self == Self::Stream { "text/event-stream" } else { "application/json" }
    }
}

/// A failure to simulate, for [`Faults::add`](crate::Faults::add).
///
/// ```
/// use flipswitch_local::{Endpoint, Fault};
///
/// // The response to the second and third evaluations is 429 Too Many Requests.
/// let fault = Fault::on(Endpoint::Bulk).status(429).header("retry-after", "1").after(1).times(2);
/// ```
///
/// In JSON, this is `{"on": "bulk", "effect": {"status": {"code": 429, "headers": {"retry-after": "1"}}}, "after": 1, "times":
/// 2}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[must_use = "a fault does nothing until it is added"]
pub struct Fault {
    pub(crate) on: Endpoint,
    #[serde(default, skip_serializing_if = "RequestFilter::is_empty")]
    pub(crate) when: RequestFilter,
    #[serde(deserialize_with = "effect::deserialize")]
    pub(crate) effect: Effect,
    #[serde(default)]
    pub(crate) after: u64,
    #[serde(default)]
    pub(crate) times: Option<u64>,
    /// The first option that does not fit the effect.
    #[serde(skip)]
    invalid_option: Option<FaultError>,
}

/// A [`Fault`] whose effect has not been set yet.
#[derive(Clone, Copy, Debug)]
#[must_use = "a fault needs an effect"]
pub struct FaultOn(Endpoint);

impl FaultOn {
    /// Responds with this status code instead of the regular response.
    ///
    /// Headers and a body are set with [`header`](Fault::header), and with [`body`](Fault::body), [`json`](Fault::json),
    /// [`html`](Fault::html) or [`text`](Fault::text).
    pub fn status(self, code: u16) -> Fault {
        self.effect(Effect::Status { code, headers: BTreeMap::new(), body: Payload::default() })
    }

    /// Responds with a redirect, for example with status code 307.
    pub fn redirect(self, code: u16, location: impl Into<String>) -> Fault {
        self.effect(Effect::Redirect { code, location: location.into() })
    }

    /// Delays the regular response. The delay ends early when the fault is removed or the server shuts down.
    ///
    /// [`concurrency`](Fault::concurrency) limits how many requests are delayed at a time.
    pub fn delay(self, delay: Duration) -> Fault {
        self.effect(Effect::Delay { millis: delay, concurrency: None })
    }

    /// Rejects requests that exceed this number within one second, with status code 429 and no `Retry-After`. The maximum is
    /// 10 000.
    ///
    /// Headers and a body are set in the same way as for [`status`](Self::status). [`after`](Fault::after) and
    /// [`times`](Fault::times) count rejected requests.
    ///
    /// ```
    /// use flipswitch_local::{Endpoint, Fault};
    ///
    /// let fault = Fault::on(Endpoint::Bulk).rate_limit(50).header("retry-after", "2");
    /// ```
    pub fn rate_limit(self, per_second: usize) -> Fault {
        self.effect(Effect::RateLimit { per_second, headers: BTreeMap::new(), body: Payload::default() })
    }

    /// Never responds. The connection stays open until the client closes it, the fault is removed, or the server shuts
    /// down.
    pub fn hang(self) -> Fault {
        self.effect(Effect::Hang {})
    }

    /// Closes the connection (FIN) without a response, or in the middle of a response with
    /// [`after_bytes`](Fault::after_bytes) or [`after_time`](Fault::after_time).
    pub fn close(self) -> Fault {
        self.effect(Effect::Close { after_bytes: None, after_millis: None })
    }

    /// Resets the connection (RST) without a response, or in the middle of a response with
    /// [`after_bytes`](Fault::after_bytes) or [`after_time`](Fault::after_time).
    ///
    /// As with every reset, bytes that were sent just before may be lost.
    pub fn reset(self) -> Fault {
        self.effect(Effect::Reset { after_bytes: None, after_millis: None })
    }

    /// Ends each stream gracefully, immediately or after [`after_time`](Fault::after_time), like a load balancer that limits the
    /// duration of responses. Also applies to streams that are open when the fault is added.
    ///
    /// ```
    /// use std::time::Duration;
    /// use flipswitch_local::{Endpoint, Fault};
    ///
    /// // Each stream ends after 30 seconds, until the fault is removed.
    /// let fault = Fault::on(Endpoint::Stream).finish().after_time(Duration::from_secs(30));
    /// ```
    pub fn finish(self) -> Fault {
        self.effect(Effect::Finish { after_millis: Duration::ZERO })
    }

    /// Stops in the middle of the response without closing the connection: after the head, or after
    /// [`after_bytes`](Fault::after_bytes) of the body.
    ///
    /// Also applies to streams that are open when the fault is added, oldest first. For these streams, bytes are counted from
    /// then on. The connection stays silent until the client closes it, the fault is removed, or the server shuts down.
    ///
    /// On [`Endpoint::Connections`], silences the connections that are open when the fault is added: data that clients send is
    /// acknowledged by TCP and discarded. New connections still work, and so do connections that were used for `/local` or the
    /// dashboard. For a client that uses HTTP/2, this means that its only connection is dead although the service is healthy.
    pub fn half_open(self) -> Fault {
        self.effect(Effect::HalfOpen { after_bytes: 0 })
    }

    /// Sends the body of the response in pieces of this many bytes, with a pause between them.
    ///
    /// When the fault is removed or the server shuts down, the rest of the body is sent without pauses.
    pub fn trickle(self, bytes: usize, every: Duration) -> Fault {
        self.effect(Effect::Trickle { bytes, every_millis: every })
    }

    /// Responds with these bytes as the body, with status code 200.
    ///
    /// The content type defaults to the content type of the endpoint; [`content_type`](Fault::content_type) sets a different one.
    /// A stream ends after the bytes; [`Faults::inject`](crate::Faults::inject) sends bytes into open streams.
    pub fn garbage(self, body: impl Into<Vec<u8>>) -> Fault {
        self.effect(Effect::Garbage { body: Payload(Bytes::from(body.into())), content_type: None })
    }

    /// Sends the regular response with a different content type.
    pub fn content_type(self, content_type: impl Into<String>) -> Fault {
        self.effect(Effect::ContentType(content_type.into()))
    }

    /// Evaluates all flags except this one, whose item has this `errorCode` instead of a value, for example `"GENERAL"`.
    ///
    /// Requires [`Endpoint::Bulk`]. The flag need not exist.
    pub fn flag_error(self, key: impl Into<String>, code: impl Into<String>) -> Fault {
        self.effect(Effect::FlagError(FlagError::new(key.into(), code.into())))
    }

    /// Sends no heartbeats on streams.
    ///
    /// [`after`](Fault::after) and [`times`](Fault::times) count heartbeats instead of requests.
    pub fn no_heartbeats(self) -> Fault {
        self.effect(Effect::NoHeartbeats {})
    }

    /// Sends nothing when an OFREP event stream opens. Without the fault, the server asks the client to refetch the flags at that
    /// point, unless the client has received the newest change.
    ///
    /// Requires [`Endpoint::Stream`].
    ///
    /// ```
    /// use flipswitch_local::{Endpoint, Fault};
    ///
    /// // A client that reopens its stream must refetch the flags by itself.
    /// let fault = Fault::on(Endpoint::Stream).no_replay();
    /// ```
    pub fn no_replay(self) -> Fault {
        self.effect(Effect::NoReplay {})
    }

    /// Sends each event of a stream in two pieces with a pause of 50 ms between them, so that clients read half an event
    /// at a time. Also applies to heartbeats.
    ///
    /// Requires [`Endpoint::Stream`]. When the fault is removed or the server shuts down, the pauses end.
    pub fn split_events(self) -> Fault {
        self.effect(Effect::SplitEvents {})
    }

    /// Responds to requests that have an `If-None-Match` header with 304 Not Modified and the tag in that header, even if the
    /// flags have changed. Does not apply to requests without the header.
    ///
    /// Requires [`Endpoint::Bulk`].
    pub fn not_modified(self) -> Fault {
        self.effect(Effect::NotModified {})
    }

    fn effect(self, effect: Effect) -> Fault {
        Fault { on: self.0, when: RequestFilter::default(), effect, after: 0, times: None, invalid_option: None }
    }
}

impl Fault {
    /// Starts building a fault that applies to an endpoint. A method of [`FaultOn`] sets its effect.
    pub fn on(endpoint: Endpoint) -> FaultOn {
        FaultOn(endpoint)
    }

    /// Sets how many requests the fault applies to before it is exhausted. Defaults to no limit.
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Sets how many matching requests the fault skips first. Defaults to none.
    pub fn after(mut self, requests: u64) -> Self {
        self.after = requests;
        self
    }

    /// Limits the fault to evaluations for this targeting key. Call this several times to list up to 100 keys; the fault applies
    /// to each of them.
    ///
    /// ```
    /// use flipswitch_local::{Endpoint, Fault};
    ///
    /// // Flags cannot be evaluated for the targeting key `poison`, regardless of other attributes.
    /// let fault = Fault::on(Endpoint::Bulk).status(500).for_targeting_key("poison");
    /// // Flags can be evaluated only for the context with which the provider checks the service at startup.
    /// let fault = Fault::on(Endpoint::Bulk).status(500).except_targeting_key("_init_");
    /// ```
    pub fn for_targeting_key(mut self, key: impl Into<String>) -> Self {
        self.when.targeting_keys.push(key.into());
        self
    }

    /// Excludes evaluations for this targeting key. Several calls exclude several keys, up to 100.
    pub fn except_targeting_key(mut self, key: impl Into<String>) -> Self {
        self.when.except_targeting_keys.push(key.into());
        self
    }

    /// Limits the fault to evaluations for contexts with this attribute, regardless of its value. Several calls, including calls
    /// to [`for_attribute_value`](Self::for_attribute_value), require all of the attributes, up to 100.
    pub fn for_attribute(mut self, name: impl Into<String>) -> Self {
        self.when.attributes.push(Attribute { name: name.into(), value: None });
        self
    }

    /// Limits the fault to evaluations for contexts with this value of an attribute.
    pub fn for_attribute_value(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.when.attributes.push(Attribute { name: name.into(), value: Some(value.into()) });
        self
    }

    /// Limits the fault to evaluations with (`true`) or without (`false`) an `If-None-Match` header, which clients send if they
    /// have received the flags for the context before.
    pub fn if_none_match(mut self, present: bool) -> Self {
        self.when.if_none_match = Some(present);
        self
    }

    /// Sets a header of the response, for [`status`](FaultOn::status) and [`rate_limit`](FaultOn::rate_limit). Replaces a
    /// header of the same name.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        match &mut self.effect {
            Effect::Status { headers, .. } | Effect::RateLimit { headers, .. } => {
                headers.insert(name.to_ascii_lowercase(), value.to_owned());
            }
            _ => self.reject_option("headers", "requires one of the effects status and rateLimit"),
        }
        self
    }

    /// Sets the body of the response, for [`status`](FaultOn::status) and [`rate_limit`](FaultOn::rate_limit). Defaults to
    /// an empty body.
    pub fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        match &mut self.effect {
            Effect::Status { body, .. } | Effect::RateLimit { body, .. } => *body = Payload(Bytes::from(bytes.into())),
            _ => self.reject_option("body", "requires one of the effects status and rateLimit"),
        }
        self
    }

    /// Sets a JSON [`body`](Self::body) and its content type.
    #[expect(clippy::needless_pass_by_value, reason = "callers write `json!(..)` on the spot")]
    pub fn json(self, value: Value) -> Self {
        self.body(value.to_string()).header("content-type", "application/json")
    }

    /// Sets an HTML page as the [`body`](Self::body), and its content type.
    pub fn html(self, page: impl Into<String>) -> Self {
        self.body(page.into()).header("content-type", "text/html")
    }

    /// Sets plain text as the [`body`](Self::body), and its content type.
    pub fn text(self, text: impl Into<String>) -> Self {
        self.body(text.into()).header("content-type", "text/plain")
    }

    /// Sets the content type, for [`garbage`](FaultOn::garbage). Defaults to the content type of the endpoint.
    pub fn content_type(mut self, value: impl Into<String>) -> Self {
        match &mut self.effect {
            Effect::Garbage { content_type, .. } => *content_type = Some(value.into()),
            _ => self.reject_option("contentType", "requires the effect garbage"),
        }
        self
    }

    /// Sets how many requests are delayed at a time, for [`delay`](FaultOn::delay). The others wait for their turn. Defaults to
    /// no limit; the maximum is 10 000.
    pub fn concurrency(mut self, requests: usize) -> Self {
        match &mut self.effect {
            Effect::Delay { concurrency, .. } => *concurrency = Some(requests),
            _ => self.reject_option("concurrency", "requires the effect delay"),
        }
        self
    }

    /// Sets how long each stream stays open, for [`finish`](FaultOn::finish), [`close`](FaultOn::close) and
    /// [`reset`](FaultOn::reset) on [`Endpoint::Stream`].
    ///
    /// The fault then also applies to streams that are open when it is added, oldest first. For these streams, time is counted
    /// from then on. Streams whose time has not elapsed when the fault is removed stay open.
    pub fn after_time(mut self, time: Duration) -> Self {
        match &mut self.effect {
            Effect::Close { after_millis, .. } | Effect::Reset { after_millis, .. } => *after_millis = Some(time),
            Effect::Finish { after_millis } => *after_millis = time,
            _ => self.reject_option("afterMillis", "requires one of the effects close, reset and finish"),
        }
        self
    }

    /// Sets how many bytes of the body are sent first, for [`close`](FaultOn::close), [`reset`](FaultOn::reset) and
    /// [`half_open`](FaultOn::half_open). A shorter body is sent completely.
    ///
    /// By default, a close or a reset happens before the head of the response is sent, and a half-open connection falls silent
    /// right after the head.
    pub fn after_bytes(mut self, bytes: u64) -> Self {
        match &mut self.effect {
            Effect::Close { after_bytes, .. } | Effect::Reset { after_bytes, .. } => *after_bytes = Some(bytes),
            Effect::HalfOpen { after_bytes } => *after_bytes = bytes,
            _ => self.reject_option("afterBytes", "requires one of the effects close, reset and halfOpen"),
        }
        self
    }

    fn reject_option(&mut self, field: &'static str, problem: &str) {
        self.invalid_option.get_or_insert_with(|| FaultError::new(field, problem));
    }

    /// Checks the fault when it is added.
    pub(crate) fn validate(&self) -> Result<(), FaultError> {
        if let Some(error) = &self.invalid_option {
            return Err(error.clone());
        }
        if self.times == Some(0) {
            return Err(FaultError::new("times", "must be at least 1"));
        }
        self.effect.validate()?;
        self.when.validate()?;
        self.validate_endpoint()
    }

    /// Checks that the endpoint supports the effect and the filter.
    fn validate_endpoint(&self) -> Result<(), FaultError> {
        let has_contexts = matches!(self.on, Endpoint::All | Endpoint::Bulk | Endpoint::Single)
            && self.effect != Effect::NoHeartbeats {};
        if !(self.when.is_empty() || has_contexts) {
            return Err(FaultError::new("when", "requires evaluations: on must be bulk, single or all"));
        }
        if self.on == Endpoint::Connections && !self.applies_to_open_connections() && !self.ends_new_connections() {
            let problem = "must be halfOpen, hang, close or reset for connections, without afterBytes and afterMillis";
            return Err(FaultError::new("effect", problem));
        }
        let (is_supported, problem) = match &self.effect {
            Effect::NoHeartbeats {} => {
                (matches!(self.on, Endpoint::Stream | Endpoint::All), "must be stream for the effect noHeartbeats")
            }
            Effect::FlagError(_) => (self.on == Endpoint::Bulk, "must be bulk for the effect flagError"),
            Effect::NotModified {} => (self.on == Endpoint::Bulk, "must be bulk for the effect notModified"),
            Effect::NoReplay {} => (self.on == Endpoint::Stream, "must be stream for the effect noReplay"),
            Effect::SplitEvents {} => (self.on == Endpoint::Stream, "must be stream for the effect splitEvents"),
            effect if effect.end_of_stream().is_some() => {
                (self.on == Endpoint::Stream, "must be stream for the effect finish and for afterMillis")
            }
            _ => return Ok(()),
        };
        if is_supported { Ok(()) } else { Err(FaultError::new("on", problem)) }
    }

    /// Returns whether the fault applies to new connections.
    pub(crate) fn ends_new_connections(&self) -> bool {
        let is_supported = matches!(
            self.effect,
            Effect::Hang {}
                | Effect::Close { after_bytes: None, after_millis: None }
                | Effect::Reset { after_bytes: None, after_millis: None }
        );
        self.on == Endpoint::Connections && is_supported
    }

    /// Returns whether the fault applies to connections that are already open.
    pub(crate) fn applies_to_open_connections(&self) -> bool {
        self.on == Endpoint::Connections && self.effect == Effect::HalfOpen { after_bytes: 0 }
    }

    /// Returns whether the fault applies to a request.
    pub(crate) fn applies_to(&self, request: &IncomingRequest) -> bool {
        let has_tag = request.has_tag || self.effect != Effect::NotModified {};
        has_tag && self.applies_to_endpoint(request.endpoint) && self.when.matches(request)
    }

    /// Returns whether the fault applies to requests to this endpoint, which is one of the three API endpoints.
    fn applies_to_endpoint(&self, endpoint: Endpoint) -> bool {
        let matches = self.on == endpoint || self.on == Endpoint::All;
        matches && self.effect != Effect::NoHeartbeats {}
    }

    /// Returns whether the fault applies to streams that are already open.
    pub(crate) fn applies_to_open_streams(&self) -> bool {
        let is_supported = matches!(self.effect, Effect::HalfOpen { .. }) || self.effect.end_of_stream().is_some();
        is_supported && self.applies_to_endpoint(Endpoint::Stream) && self.when.is_empty()
    }
}
