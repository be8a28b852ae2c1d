//! The middleware that applies faults to requests.

use std::{future, sync::Arc, time::Duration};

use axum::{
    body::{self, Body, BodyDataStream, Bytes},
    extract::{ConnectInfo, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio_util::sync::CancellationToken;

use crate::faults::{
    connection::Peer,
    effect::{Effect, NoReplay},
    fault::Endpoint,
    filter::IncomingRequest,
    handle::ConnectionAction,
    registry::{AppliedFault, FaultRegistry},
    response::{self, ResponseCutter},
};

/// The pause between the pieces of a split event, during which clients read the first one.
const SPLIT_PAUSE: Duration = Duration::from_millis(50);

/// Applies a matching fault to each request, before the endpoint handles it.
pub(crate) async fn apply_faults(
    State(faults): State<Arc<FaultRegistry>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let Some(endpoint) = Endpoint::of_path(request.uri().path()) else { return next.run(request).await };
    let cutter = Arc::new(ResponseCutter::new(peer.handle));
    let (parts, body) = request.into_parts();
    // The body has already been read and limited.
    let Ok(body) = body::to_bytes(body, usize::MAX).await else { return StatusCode::BAD_REQUEST.into_response() };
    let has_tag = parts.headers.contains_key(header::IF_NONE_MATCH);
    let applied = faults.apply_to_request(&IncomingRequest::new(endpoint, has_tag, body.clone()), &cutter);
    let request = Request::from_parts(parts, Body::from(body));
    match applied {
        Some(fault) => respond_with_fault(fault, endpoint, cutter, &faults.stop, request, next).await,
        None => respond(endpoint, cutter, request, next).await,
    }
}

/// Responds without a fault. Faults that are added later can cut off open streams. Other responses are too short for that.
async fn respond(endpoint: Endpoint, cutter: Arc<ResponseCutter>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if endpoint == Endpoint::Stream { response::cuttable(response, cutter) } else { response }
}

async fn respond_with_fault(
    fault: AppliedFault,
    endpoint: Endpoint,
    cutter: Arc<ResponseCutter>,
    stop: &CancellationToken,
    mut request: Request,
    next: Next,
) -> Response {
    if fault.effect.changes_body() {
        request.headers_mut().remove(header::IF_NONE_MATCH);
    }
    let end = FaultEnd { removed: fault.removed, stop: stop.clone() };
    match fault.effect {
        Effect::Status { code, headers, body } => response(code, &headers, body.0),
        Effect::RateLimit { headers, body, .. } => response(429, &headers, body.0),
        Effect::Redirect { code, location } => response(code, [(&"location".to_owned(), &location)], Bytes::new()),
        Effect::Garbage { body, content_type } => {
            let content_type = content_type.unwrap_or_else(|| endpoint.content_type().to_owned());
            response(200, [(&"content-type".to_owned(), &content_type)], body.0)
        }
        Effect::Hang {} => {
            end.wait().await;
            end_connection(&cutter, ConnectionAction::Close).await
        }
        Effect::Close { after_bytes: None, after_millis: None } => {
            end_connection(&cutter, ConnectionAction::Close).await
        }
        Effect::Reset { after_bytes: None, after_millis: None } => {
            end_connection(&cutter, ConnectionAction::Reset).await
        }
        Effect::Delay { millis, .. } => {
            // When the fault ends, requests with a slot get a response immediately, followed by the requests that are waiting.
            let _slot = match fault.slots {
                Some(slots) => slots.acquire_owned().await.ok(),
                None => None,
            };
            end.wait_at_most(millis).await;
            respond(endpoint, cutter, request, next).await
        }
        Effect::ContentType(content_type) => {
            let mut response = response::cuttable(next.run(request).await, cutter);
            if let Ok(content_type) = HeaderValue::from_str(&content_type) {
                response.headers_mut().insert(header::CONTENT_TYPE, content_type);
            }
            response
        }
        Effect::Trickle { bytes, every_millis } => {
            let response = response::set_content_length(next.run(request).await);
            let pieces = Pieces { size: PieceSize::Bytes(bytes), every: every_millis };
            response::cuttable(response.map(|body| trickle(body, pieces, end)), cutter)
        }
        Effect::SplitEvents {} => {
            let pieces = Pieces { size: PieceSize::HalfOfChunk, every: SPLIT_PAUSE };
            response::cuttable(next.run(request).await.map(|body| trickle(body, pieces, end)), cutter)
        }
        Effect::NotModified {} => {
            // The fault applies only to requests with the header.
            let held = request.headers_mut().remove(header::IF_NONE_MATCH);
            let tag: HeaderMap = held.map(|held| (header::ETAG, held)).into_iter().collect();
            (StatusCode::NOT_MODIFIED, tag).into_response()
        }
        Effect::NoReplay {} => {
            request.extensions_mut().insert(NoReplay);
            respond(endpoint, cutter, request, next).await
        }
        Effect::FlagError(error) => {
            request.extensions_mut().insert(error);
            respond(endpoint, cutter, request, next).await
        }
        // The registry has already set up the cut or the end. `NoHeartbeats` applies to no requests.
        Effect::Close { .. }
        | Effect::Reset { .. }
        | Effect::Finish { .. }
        | Effect::HalfOpen { .. }
        | Effect::NoHeartbeats {} => response::cuttable(next.run(request).await, cutter),
    }
}

/// The end of a fault: its removal, or the shutdown of the server.
struct FaultEnd {
    removed: CancellationToken,
    stop: CancellationToken,
}

impl FaultEnd {
    async fn wait(&self) {
        tokio::select! {
            () = self.removed.cancelled() => {}
            () = self.stop.cancelled() => {}
        }
    }

    async fn wait_at_most(&self, timeout: Duration) {
        // The outcome does not matter, because the wait has ended.
        let _ = tokio::time::timeout(timeout, self.wait()).await;
    }
}

/// Ends the connection instead of responding.
async fn end_connection(cutter: &ResponseCutter, action: ConnectionAction) -> Response {
    cutter.connection.act_now(action);
    future::pending().await
}

/// Builds a response. Its headers were validated when the fault was added.
fn response<'a>(code: u16, headers: impl IntoIterator<Item = (&'a String, &'a String)>, body: Bytes) -> Response {
    let headers: HeaderMap = headers
        .into_iter()
        .filter_map(|(name, value)| Some((name.parse::<HeaderName>().ok()?, HeaderValue::from_str(value).ok()?)))
        .collect();
    (StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), headers, Body::from(body)).into_response()
}

/// Splits a body into pieces, with a pause between them.
fn trickle(body: Body, pieces: Pieces, end: FaultEnd) -> Body {
    let source = Trickle { body: body.into_data_stream(), rest: Bytes::new(), next: 0, started: false, pieces, end };
    Body::from_stream(stream::unfold(source, async |mut source| Some((source.next().await?, source))))
}

/// The pieces of a body, and the pause between them.
struct Pieces {
    size: PieceSize,
    every: Duration,
}

#[derive(Clone, Copy)]
enum PieceSize {
    Bytes(usize),
    /// Two pieces of each chunk. The chunks of a stream are its events.
    HalfOfChunk,
}

struct Trickle {
    body: BodyDataStream,
    /// What has been read from the body but has not been sent yet.
    rest: Bytes,
    /// The size of the next piece.
    next: usize,
    started: bool,
    pieces: Pieces,
    end: FaultEnd,
}

impl Trickle {
    async fn next(&mut self) -> Option<Result<Bytes, axum::Error>> {
        while self.rest.is_empty() {
            match self.body.next().await? {
                Ok(bytes) => self.rest = bytes,
                Err(error) => return Some(Err(error)),
            }
            self.next = match self.pieces.size {
                PieceSize::Bytes(bytes) => bytes,
                PieceSize::HalfOfChunk => self.rest.len().div_ceil(2),
            };
        }
        if self.started {
            self.end.wait_at_most(self.pieces.every).await;
        }
        self.started = true;
        Some(Ok(self.rest.split_to(self.next.min(self.rest.len()))))
    }
}
