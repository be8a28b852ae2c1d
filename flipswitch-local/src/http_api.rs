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

use crate::{evaluate, server::Shared};

pub(crate) fn routes(shared: &Arc<Shared>) -> Router<Arc<Shared>> {
    Router::new()
        .route("/ofrep/v1/evaluate/flags", post(bulk))
        .route("/ofrep/v1/evaluate/flags/{*key}", post(single))
        .route("/api/v1/flags/events", get(events))
        .route_layer(middleware::from_fn_with_state(Arc::clone(shared), authorize))
}

async fn authorize(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let key = request.headers().get("x-api-key").map(HeaderValue::as_bytes);
    match &shared.api_key {
        Some(expected) if key != Some(expected.as_bytes()) => {
            (StatusCode::UNAUTHORIZED, Json(json!({"errorDetails": "unknown API key"}))).into_response()
        }
        _ => next.run(request).await,
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
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json")), (header::ETAG, tag)];
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

async fn events(State(shared): State<Arc<Shared>>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        // Asks nginx, and proxies that follow it, not to hold events back.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, shared.store.events.stream(shared.stop.clone())).into_response()
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
