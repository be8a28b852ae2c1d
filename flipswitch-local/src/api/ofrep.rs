//! The service's own endpoints: OFREP, and the stream of changes.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::{faults::fault::Endpoint, faults::middleware::strike, flags::evaluate, mask, server::Shared};

const BULK: &str = "/ofrep/v1/evaluate/flags";
const EVENTS: &str = "/api/v1/flags/events";
const JSON: &str = "application/json";
const EVENT_STREAM: &str = "text/event-stream";

pub(crate) fn routes(shared: &Arc<Shared>) -> Router<Arc<Shared>> {
    Router::new()
        .route(BULK, post(bulk))
        .route(&format!("{BULK}/{{*key}}"), post(single))
        .route(EVENTS, get(events))
        .route_layer(middleware::from_fn_with_state(Arc::clone(shared), authorize))
        // Around the other: what goes wrong does so whoever asks.
        .route_layer(middleware::from_fn_with_state(Arc::clone(shared), strike))
}

/// Which of the endpoints a path is about.
pub(crate) fn endpoint(path: &str) -> Option<Endpoint> {
    match path.strip_prefix(BULK) {
        Some("") => Some(Endpoint::Bulk),
        Some(key) if key.starts_with('/') => Some(Endpoint::Single),
        _ => (path == EVENTS).then_some(Endpoint::Stream),
    }
}

/// What an endpoint says of its answers.
pub(crate) fn content_type(endpoint: Endpoint) -> &'static str {
    if endpoint == Endpoint::Stream { EVENT_STREAM } else { JSON }
}

async fn authorize(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let key = request.headers().get("x-api-key").map(HeaderValue::as_bytes);
    if shared.keys.accept(key) {
        next.run(request).await
    } else {
        (StatusCode::UNAUTHORIZED, Json(json!({"errorDetails": "unknown API key"}))).into_response()
    }
}

async fn bulk(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let context = match evaluate::context(&body) {
        Ok(context) => context,
        Err((code, details)) => return refusal(&json!({"errorCode": code, "errorDetails": details})),
    };
    let answer = json!({"flags": shared.store.evaluate_all(&context), "metadata": {}}).to_string();
    let tag = tag(&answer);
    if headers.get(header::IF_NONE_MATCH).is_some_and(|held| held == tag) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response();
    }
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static(JSON)), (header::ETAG, tag)];
    (headers, answer).into_response()
}

async fn single(State(shared): State<Arc<Shared>>, Path(key): Path<String>, body: Bytes) -> Response {
    let context = match evaluate::context(&body) {
        Ok(context) => context,
        Err((code, details)) => return refusal(&json!({"key": key, "errorCode": code, "errorDetails": details})),
    };
    match shared.store.evaluate(&key, &context) {
        Some(item) if item.get("errorCode").is_some() => refusal(&item),
        Some(item) => Json(item).into_response(),
        None => {
            let details = format!("there is no flag {key:?}");
            let body = json!({"key": key, "errorCode": "FLAG_NOT_FOUND", "errorDetails": details});
            (StatusCode::NOT_FOUND, Json(body)).into_response()
        }
    }
}

async fn events(State(shared): State<Arc<Shared>>, asked: HeaderMap) -> Response {
    // Clients of the service say who they are in the first of these, other ones in the second.
    let client = asked.get("x-flipswitch-sdk").or(asked.get(header::USER_AGENT));
    let client = client.map_or_else(String::new, |client| mask::truncate(&String::from_utf8_lossy(client.as_bytes())));
    let headers = [
        (header::CONTENT_TYPE, EVENT_STREAM),
        (header::CACHE_CONTROL, "no-cache"),
        // Asks nginx, and proxies that follow it, not to hold events back.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, shared.store.events.stream(client, shared.stop.clone(), Arc::clone(&shared.faults))).into_response()
}

fn refusal(body: &Value) -> Response {
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}

/// A tag that changes with the answer, whoever asked and whatever changed.
fn tag(answer: &str) -> HeaderValue {
    let mut hasher = DefaultHasher::new();
    answer.hash(&mut hasher);
    HeaderValue::from_str(&format!("\"{:016x}\"", hasher.finish())).unwrap_or(HeaderValue::from_static("\"\""))
}
