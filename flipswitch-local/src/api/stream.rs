//! The stream of changes, `GET /api/v1/flags/events`.

use std::{convert::Infallible, pin::Pin, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::State,
    response::{IntoResponse, Response},
};
use futures_util::{Stream, stream};
use http::{HeaderMap, HeaderName, header};
use serde_json::json;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    broadcast::{self, Subscription},
    faults::{fault::Endpoint, registry::FaultRegistry},
    mask,
    state::AppState,
};

/// Opens a stream.
pub(crate) async fn stream(State(state): State<Arc<AppState>>, request: HeaderMap) -> Response {
    // SDKs of the service name themselves in the first of these headers, other clients in the second.
    let client = request.get("x-flipswitch-sdk").or(request.get(header::USER_AGENT));
    let client = client.map_or_else(String::new, |client| mask::truncate(&String::from_utf8_lossy(client.as_bytes())));
    let headers = [
        (header::CONTENT_TYPE, Endpoint::Stream.content_type()),
        (header::CACHE_CONTROL, "no-cache"),
        // Asks nginx, and proxies that follow it, not to buffer events.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, EventSource::new(&state, client).into_body()).into_response()
}

/// The events and heartbeats of one stream.
struct EventSource {
    subscription: Subscription,
    heartbeat: Interval,
    faults: Arc<FaultRegistry>,
    stop: CancellationToken,
}

impl EventSource {
    fn new(state: &AppState, client: String) -> Self {
        let mut heartbeat = tokio::time::interval_at(Instant::now() + state.heartbeat, state.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let subscription = state.broadcaster.subscribe(client);
        Self { subscription, heartbeat, faults: Arc::clone(&state.faults), stop: state.stop.clone() }
    }

    fn into_body(self) -> Body {
        let frames: Pin<Box<dyn Stream<Item = Result<Bytes, Infallible>> + Send>> =
            Box::pin(stream::unfold(self, async |mut source| Some((Ok(source.next().await?), source))));
        Body::from_stream(frames)
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            return tokio::select! {
                biased;
                () = self.stop.cancelled() => None,
                event = self.subscription.next() => event,
                _ = self.heartbeat.tick() => {
                    if self.faults.suppresses_heartbeat() {
                        continue;
                    }
                    Some(broadcast::frame("heartbeat", &json!({}), None))
                }
            };
        }
    }
}
