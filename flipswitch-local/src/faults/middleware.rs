//! What faults do to requests.

use std::{future, sync::Arc, time::Duration};

use axum::{
    body::{Body, BodyDataStream, Bytes},
    extract::{ConnectInfo, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio_util::sync::CancellationToken;

use crate::faults::{
    connection::Peer,
    effect::Effect,
    fault::Endpoint,
    handle::ConnectionAction,
    registry::{Book, Struck},
    response::{self, ResponseCutter},
};

/// Lets the faults have each request before its endpoint sees it.
pub(crate) async fn strike(
    State(faults): State<Arc<Book>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let Some(endpoint) = Endpoint::of_path(request.uri().path()) else { return next.run(request).await };
    let cutter = Arc::new(ResponseCutter::new(peer.handle));
    match faults.request(endpoint, &cutter) {
        Some(struck) => struck.carry_out(endpoint, cutter, &faults.stop, request, next).await,
        None => as_ever(endpoint, cutter, request, next).await,
    }
}

/// Answers as if nothing were wrong. Faults to come may cut off a stream that is open; other answers are short.
async fn as_ever(endpoint: Endpoint, cutter: Arc<ResponseCutter>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if endpoint == Endpoint::Stream { response::cuttable(response, cutter) } else { response }
}

impl Struck {
    async fn carry_out(
        self,
        endpoint: Endpoint,
        cutter: Arc<ResponseCutter>,
        stop: &CancellationToken,
        mut request: Request,
        next: Next,
    ) -> Response {
        if self.effect.needs_a_body() {
            request.headers_mut().remove(header::IF_NONE_MATCH);
        }
        let over = Over { removed: self.removed, stop: stop.clone() };
        match self.effect {
            Effect::Status { code, headers, body } => answer(code, &headers, body.0),
            Effect::Redirect { code, location } => answer(code, [(&"location".to_owned(), &location)], Bytes::new()),
            Effect::Garbage { body, content_type } => {
                let content_type = content_type.unwrap_or_else(|| endpoint.content_type().to_owned());
                answer(200, [(&"content-type".to_owned(), &content_type)], body.0)
            }
            Effect::Hang {} => {
                over.wait().await;
                end(&cutter, ConnectionAction::Close).await
            }
            Effect::Close { after_bytes: None } => end(&cutter, ConnectionAction::Close).await,
            Effect::Reset { after_bytes: None } => end(&cutter, ConnectionAction::Reset).await,
            Effect::Delay { millis } => {
                over.wait_at_most(millis).await;
                as_ever(endpoint, cutter, request, next).await
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
                response::cuttable(response.map(|body| trickle(body, bytes, every_millis, over)), cutter)
            }
            // Those that cut the answer off: the cutter knows where. Heartbeats are no requests.
            Effect::Close { .. } | Effect::Reset { .. } | Effect::HalfOpen { .. } | Effect::NoHeartbeats {} => {
                response::cuttable(next.run(request).await, cutter)
            }
        }
    }
}

/// The end of a fault, or of the service.
struct Over {
    removed: CancellationToken,
    stop: CancellationToken,
}

impl Over {
    async fn wait(&self) {
        tokio::select! {
            () = self.removed.cancelled() => {}
            () = self.stop.cancelled() => {}
        }
    }

    async fn wait_at_most(&self, time: Duration) {
        // Either will do.
        let _ = tokio::time::timeout(time, self.wait()).await;
    }
}

/// Ends the connection in the place of an answer.
async fn end(cutter: &ResponseCutter, action: ConnectionAction) -> Response {
    cutter.connection.act_now(action);
    future::pending().await
}

/// The headers have been checked when the fault was added.
fn answer<'a>(code: u16, headers: impl IntoIterator<Item = (&'a String, &'a String)>, body: Bytes) -> Response {
    let headers: HeaderMap = headers
        .into_iter()
        .filter_map(|(name, value)| Some((name.parse::<HeaderName>().ok()?, HeaderValue::from_str(value).ok()?)))
        .collect();
    (StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), headers, Body::from(body)).into_response()
}

/// Sends a body in pieces of so many bytes, and waits after each.
fn trickle(body: Body, bytes: usize, every: Duration, over: Over) -> Body {
    let source = Trickle { body: body.into_data_stream(), rest: Bytes::new(), begun: false, bytes, every, over };
    Body::from_stream(stream::unfold(source, async |mut source| Some((source.next().await?, source))))
}

struct Trickle {
    body: BodyDataStream,
    /// What came of the body and has not been sent.
    rest: Bytes,
    begun: bool,
    bytes: usize,
    every: Duration,
    over: Over,
}

impl Trickle {
    async fn next(&mut self) -> Option<Result<Bytes, axum::Error>> {
        while self.rest.is_empty() {
            match self.body.next().await? {
                Ok(bytes) => self.rest = bytes,
                Err(error) => return Some(Err(error)),
            }
        }
        if self.begun {
            self.over.wait_at_most(self.every).await;
        }
        self.begun = true;
        Some(Ok(self.rest.split_to(self.bytes.min(self.rest.len()))))
    }
}
