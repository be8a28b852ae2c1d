//! The streams of changes: the Flipswitch stream, `GET /api/v1/flags/events`, and the OFREP event stream, `GET
//! /ofrep/v1/sse/flags`.

use std::{convert::Infallible, pin::Pin, sync::Arc};

use axum::{
    Extension,
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
    broadcast::{self, StreamKind, Subscription},
    faults::{effect::NoReplay, fault::Endpoint, registry::FaultRegistry},
    mask,
    state::AppState,
};

/// Opens a Flipswitch stream.
pub(crate) async fn stream(State(state): State<Arc<AppState>>, request: HeaderMap) -> Response {
    respond(&request, |client| EventSource::new(&state, StreamKind::Flipswitch, client))
}

/// Opens an OFREP event stream. The first event asks the client to refetch the flags, unless it has received the newest change,
/// because browsers do not refetch by themselves when they reopen a stream.
pub(crate) async fn event_stream(
    State(state): State<Arc<AppState>>,
    no_replay: Option<Extension<NoReplay>>,
    request: HeaderMap,
) -> Response {
    respond(&request, |client| {
        let mut source = EventSource::new(&state, StreamKind::Ofrep, client);
        let version = source.subscription.version;
        let is_known = request.get("last-event-id").is_some_and(|id| *id == version.id());
        source.first = (!is_known && no_replay.is_none()).then(|| version.refetch());
        source
    })
}

fn respond(request: &HeaderMap, open: impl FnOnce(String) -> EventSource) -> Response {
    // SDKs of the service name themselves in the first of these headers, and other clients in the second.
    let client = request.get("x-flipswitch-sdk").or(request.get(header::USER_AGENT));
    let client = client.map_or_else(String::new, |client| mask::truncate(&String::from_utf8_lossy(client.as_bytes())));
    let headers = [
        (header::CONTENT_TYPE, Endpoint::Stream.content_type()),
        (header::CACHE_CONTROL, "no-cache"),
        // Asks nginx, and proxies that follow its convention, not to buffer events.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, open(client).into_body()).into_response()
}

/// The events and heartbeats of one stream.
struct EventSource {
    /// The event with which the stream begins.
    first: Option<Bytes>,
    subscription: Subscription,
    heartbeat: Interval,
    faults: Arc<FaultRegistry>,
    stop: CancellationToken,
}

impl EventSource {
    fn new(state: &AppState, kind: StreamKind, client: String) -> Self {
        let mut heartbeat = tokio::time::interval_at(Instant::now() + state.heartbeat, state.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let subscription = state.broadcaster.subscribe(kind, client);
        Self { first: None, subscription, heartbeat, faults: Arc::clone(&state.faults), stop: state.stop.clone() }
    }

    fn into_body(self) -> Body {
        let frames: Pin<Box<dyn Stream<Item = Result<Bytes, Infallible>> + Send>> =
            Box::pin(stream::unfold(self, async |mut source| Some((Ok(source.next().await?), source))));
        Body::from_stream(frames)
    }

    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            return tokio::select! {
                biased;
                () = self.stop.cancelled() => None,
                event = self.subscription.next() => event,
                _ = self.heartbeat.tick() => {
                    if self.faults.suppresses_heartbeat() {
                        continue;
                    }
                    Some(match self.subscription.kind {
                        StreamKind::Flipswitch => broadcast::frame("heartbeat", &json!({}), None),
                        StreamKind::Ofrep => Bytes::from_static(b":\n\n"),
                    })
                }
            };
        }
    }
}
