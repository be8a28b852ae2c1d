//! The state that the endpoints share.

use std::{sync::Arc, time::Duration};

use http::HeaderValue;
use tokio_util::sync::CancellationToken;

use crate::{
    broadcast::Broadcaster,
    faults::registry::FaultRegistry,
    flags::store::FlagStore,
    keys::{KeyRotation, Keys},
    request_log::RequestLog,
    time,
};

/// The state of one server.
pub(crate) struct AppState {
    pub(crate) flags: Arc<FlagStore>,
    pub(crate) keys: Keys,
    pub(crate) faults: Arc<FaultRegistry>,
    pub(crate) broadcaster: Arc<Broadcaster>,
    pub(crate) request_log: RequestLog,
    pub(crate) heartbeat: Duration,
    /// Whether other machines may use the dashboard and the endpoints under `/local`.
    pub(crate) expose_control: bool,
    /// Whether the server has OFREP event streams.
    pub(crate) event_streams: bool,
    /// The origins whose pages may use the API, or `*`.
    pub(crate) allowed_origins: Vec<HeaderValue>,
    /// Cancelled when the server shuts down.
    pub(crate) stop: CancellationToken,
}

impl AppState {
    /// Rotates the API key and announces it. Returns the new key, and the time until which the old one is accepted.
    pub(crate) fn rotate_api_key(&self, rotation: KeyRotation) -> (String, String) {
        let (key, valid_until) = self.keys.rotate(rotation);
        let valid_until = time::timestamp(valid_until);
        self.broadcaster.api_key_rotated(&valid_until);
        (key, valid_until)
    }
}
