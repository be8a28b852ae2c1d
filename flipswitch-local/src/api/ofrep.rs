//! Evaluation over OFREP: of all flags, and of one.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    faults::{effect::FlagError, fault::Endpoint},
    flags::evaluate,
    state::AppState,
};

/// Evaluates all flags.
pub(crate) async fn bulk(
    State(state): State<Arc<AppState>>,
    simulated: Option<Extension<FlagError>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let context = match evaluate::context_of_body(&body) {
        Ok(context) => context,
        Err(error) => return bad_request(&json!({"errorCode": error.code, "errorDetails": error.details})),
    };
    let mut items = state.flags.evaluate_all(&context);
    if let Some(Extension(FlagError { key, code, details })) = simulated {
        items.retain(|item| item["key"] != key);
        items.push(json!({"key": key, "errorCode": code, "errorDetails": details}));
    }
    let body = json!({"flags": items, "metadata": {}}).to_string();
    let tag = entity_tag(&body);
    if headers.get(header::IF_NONE_MATCH).is_some_and(|held| held == tag) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response();
    }
    let content_type = HeaderValue::from_static(Endpoint::Bulk.content_type());
    ([(header::CONTENT_TYPE, content_type), (header::ETAG, tag)], body).into_response()
}

/// Evaluates one flag.
pub(crate) async fn single(State(state): State<Arc<AppState>>, Path(key): Path<String>, body: Bytes) -> Response {
    let context = match evaluate::context_of_body(&body) {
        Ok(context) => context,
        Err(error) => {
            return bad_request(&json!({"key": key, "errorCode": error.code, "errorDetails": error.details}));
        }
    };
    match state.flags.evaluate(&key, &context) {
        Some(item) if item.get("errorCode").is_some() => bad_request(&item),
        Some(item) => Json(item).into_response(),
        None => {
            let details = format!("there is no flag {key:?}");
            let body = json!({"key": key, "errorCode": "FLAG_NOT_FOUND", "errorDetails": details});
            (StatusCode::NOT_FOUND, Json(body)).into_response()
        }
    }
}

fn bad_request(body: &Value) -> Response {
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}

/// Returns a tag that depends on nothing but the body.
fn entity_tag(body: &str) -> HeaderValue {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    HeaderValue::from_str(&format!("\"{:016x}\"", hasher.finish())).unwrap_or(HeaderValue::from_static("\"\""))
}
