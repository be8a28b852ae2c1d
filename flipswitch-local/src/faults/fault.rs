//! What a fault is: where it strikes, which requests, and with which effect.

use std::{collections::BTreeMap, time::Duration};

use axum::body::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    faults::effect::{self, Effect},
    faults::error::FaultError,
    faults::payload::Payload,
};

/// Path of the evaluation of all flags; that of one flag is `{BULK_PATH}/{key}`.
pub(crate) const BULK_PATH: &str = "/ofrep/v1/evaluate/flags";

/// Path of the stream of changes.
pub(crate) const STREAM_PATH: &str = "/api/v1/flags/events";

/// Where a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum Endpoint {
    /// Requests to any of the service's own endpoints: the three that follow.
    All,
    /// The evaluation of all flags, `POST /ofrep/v1/evaluate/flags`.
    Bulk,
    /// The evaluation of one flag, `POST /ofrep/v1/evaluate/flags/{key}`.
    Single,
    /// The stream of changes, `GET /api/v1/flags/events`.
    Stream,
    /// New connections, before anything is read from them. Nobody knows yet what they want, so that those that want
    /// something of `/local` are struck as well. For [`close`](FaultOn::close), [`reset`](FaultOn::reset) and
    /// [`hang`](FaultOn::hang).
    Connections,
}

impl Endpoint {
    /// Returns the endpoint at this path.
    pub(crate) fn of_path(path: &str) -> Option<Self> {
        match path.strip_prefix(BULK_PATH) {
            Some("") => Some(Self::Bulk),
            Some(key) if key.starts_with('/') => Some(Self::Single),
            _ => (path == STREAM_PATH).then_some(Self::Stream),
        }
    }

    /// Returns the content type of the endpoint's responses.
    pub(crate) fn content_type(self) -> &'static str {
        if self == Self::Stream { "text/event-stream" } else { "application/json" }
    }
}

/// Something that goes wrong, for [`Faults::add`](crate::Faults::add).
///
/// ```
/// use flipswitch_local::{Endpoint, Fault};
///
/// // The second and the third evaluation are refused.
/// let fault = Fault::on(Endpoint::Bulk).status(429).header("retry-after", "1").after(1).times(2);
/// ```
///
/// In JSON this is
/// `{"on": "bulk", "effect": {"status": {"code": 429, "headers": {"retry-after": "1"}}}, "after": 1, "times": 2}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[must_use = "a fault does nothing until it is added"]
pub struct Fault {
    pub(crate) on: Endpoint,
    #[serde(deserialize_with = "effect::read")]
    pub(crate) effect: Effect,
    #[serde(default)]
    pub(crate) after: u64,
    #[serde(default)]
    pub(crate) times: Option<u64>,
    /// What was asked of the builder and cannot be.
    #[serde(skip)]
    problem: Option<FaultError>,
}

/// A fault that has no effect yet: the beginning of a [`Fault`].
#[derive(Clone, Copy, Debug)]
#[must_use = "a fault needs an effect"]
pub struct FaultOn(Endpoint);

impl FaultOn {
    /// Answers with this status, and with [`header`](Fault::header)s and a [`body`](Fault::body), instead of what was
    /// asked for.
    pub fn status(self, code: u16) -> Fault {
        self.effect(Effect::Status { code, headers: BTreeMap::new(), body: Payload::default() })
    }

    /// Answers with a redirect, of status 307, say.
    pub fn redirect(self, code: u16, location: impl Into<String>) -> Fault {
        self.effect(Effect::Redirect { code, location: location.into() })
    }

    /// Waits before a request is answered as ever. The wait ends early with the fault, and with the service.
    pub fn delay(self, delay: Duration) -> Fault {
        self.effect(Effect::Delay { millis: delay })
    }

    /// Never answers. The connection stays until the client leaves, the fault is removed, or the service ends.
    pub fn hang(self) -> Fault {
        self.effect(Effect::Hang {})
    }

    /// Closes the connection without an answer, or within it: see [`after_bytes`](Fault::after_bytes).
    pub fn close(self) -> Fault {
        self.effect(Effect::Close { after_bytes: None })
    }

    /// Resets the connection (RST) without an answer, or within it: see [`after_bytes`](Fault::after_bytes).
    ///
    /// What was sent right before a reset may be lost on its way, as with every reset.
    pub fn reset(self) -> Fault {
        self.effect(Effect::Reset { after_bytes: None })
    }

    /// Stops in the middle of the answer without closing the connection: right after the head, or
    /// [`after_bytes`](Fault::after_bytes) of the body.
    ///
    /// Streams that are open when the fault is added are struck as well, the oldest first; of these the bytes are
    /// counted from then on. A connection that was struck stays silent until the client leaves; it is closed when the
    /// fault is removed or the service ends.
    pub fn half_open(self) -> Fault {
        self.effect(Effect::HalfOpen { after_bytes: 0 })
    }

    /// Sends the body of the answer in pieces of this many bytes, and waits after each. The waiting ends early with the
    /// fault, and with the service: then the rest comes at once.
    pub fn trickle(self, bytes: usize, every: Duration) -> Fault {
        self.effect(Effect::Trickle { bytes, every_millis: every })
    }

    /// Sends these bytes as the body of an answer of status 200, of the usual content type unless another
    /// [`content_type`](Fault::content_type) is given.
    ///
    /// A stream ends after them; [`Faults::inject`](crate::Faults::inject) sends bytes into open ones.
    pub fn garbage(self, body: impl Into<Vec<u8>>) -> Fault {
        self.effect(Effect::Garbage { body: Payload(Bytes::from(body.into())), content_type: None })
    }

    /// Sends the answer as ever under another content type.
    pub fn content_type(self, content_type: impl Into<String>) -> Fault {
        self.effect(Effect::ContentType(content_type.into()))
    }

    /// Sends no heartbeats on streams. Here each heartbeat that is left out is one that the fault strikes.
    pub fn no_heartbeats(self) -> Fault {
        self.effect(Effect::NoHeartbeats {})
    }

    fn effect(self, effect: Effect) -> Fault {
        Fault { on: self.0, effect, after: 0, times: None, problem: None }
    }
}

impl Fault {
    /// Begins a fault that strikes here.
    pub fn on(endpoint: Endpoint) -> FaultOn {
        FaultOn(endpoint)
    }

    /// Sets how many requests the fault strikes before it is over. Default: all, until it is removed.
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Sets how many requests the fault lets through before it strikes. Default: none.
    pub fn after(mut self, requests: u64) -> Self {
        self.after = requests;
        self
    }

    /// Sets a header of the answer of a [`status`](FaultOn::status), in the place of one of the same name.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        match &mut self.effect {
            Effect::Status { headers, .. } => {
                headers.insert(name.to_ascii_lowercase(), value.to_owned());
            }
            _ => self.misfit("headers", "are for a status"),
        }
        self
    }

    /// Sets the body of the answer of a [`status`](FaultOn::status). Default: empty.
    pub fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        match &mut self.effect {
            Effect::Status { body, .. } => *body = Payload(Bytes::from(bytes.into())),
            _ => self.misfit("body", "is for a status"),
        }
        self
    }

    /// Sets the content type of [`garbage`](FaultOn::garbage). Default: that of the endpoint.
    pub fn content_type(mut self, value: impl Into<String>) -> Self {
        match &mut self.effect {
            Effect::Garbage { content_type, .. } => *content_type = Some(value.into()),
            _ => self.misfit("contentType", "is for garbage"),
        }
        self
    }

    /// Lets this many bytes of the body pass before a [`close`](FaultOn::close), a [`reset`](FaultOn::reset) or a
    /// [`half_open`](FaultOn::half_open) strikes; it strikes at the end of a body that is not longer.
    ///
    /// The head of the answer is sent in any case. Default: a close and a reset come before the head, a half-open
    /// connection falls silent right after it.
    pub fn after_bytes(mut self, bytes: u64) -> Self {
        match &mut self.effect {
            Effect::Close { after_bytes } | Effect::Reset { after_bytes } => *after_bytes = Some(bytes),
            Effect::HalfOpen { after_bytes } => *after_bytes = bytes,
            _ => self.misfit("afterBytes", "is for close, reset and halfOpen"),
        }
        self
    }

    fn misfit(&mut self, field: &'static str, problem: &str) {
        self.problem.get_or_insert_with(|| FaultError::new(field, problem));
    }

    /// Looks for what cannot be.
    pub(crate) fn check(&self) -> Result<(), FaultError> {
        if let Some(problem) = &self.problem {
            return Err(problem.clone());
        }
        if self.times == Some(0) {
            return Err(FaultError::new("times", "a fault that strikes 0 times is none"));
        }
        self.effect.check()?;
        let fits = match self.on {
            Endpoint::Connections => matches!(
                self.effect,
                Effect::Hang {} | Effect::Close { after_bytes: None } | Effect::Reset { after_bytes: None }
            ),
            Endpoint::All | Endpoint::Stream => true,
            Endpoint::Bulk | Endpoint::Single => self.effect != Effect::NoHeartbeats {},
        };
        match (fits, self.on) {
            (true, _) => Ok(()),
            (false, Endpoint::Connections) => {
                Err(FaultError::new("effect", "for connections there are hang, and close and reset without afterBytes"))
            }
            (false, _) => Err(FaultError::new("on", "only a stream has heartbeats; say stream")),
        }
    }

    /// Whether the fault is about requests to this endpoint, which is one of the three.
    pub(crate) fn is_about(&self, endpoint: Endpoint) -> bool {
        let here = self.on == endpoint || self.on == Endpoint::All;
        here && self.effect != Effect::NoHeartbeats {}
    }

    /// Whether the fault is about streams that are open already.
    pub(crate) fn is_about_open_streams(&self) -> bool {
        matches!(self.effect, Effect::HalfOpen { .. }) && self.is_about(Endpoint::Stream)
    }
}
