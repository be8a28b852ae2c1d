//! The routes of the API, and the API key that they require.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderValue, StatusCode};
use serde_json::json;

use crate::{
    api::{ofrep, stream},
    faults::fault::{BULK_PATH, STREAM_PATH},
    state::AppState,
};

pub(crate) fn routes(state: &Arc<AppState>) -> Router<Arc<AppState>> {
    Router::new()
        .route(BULK_PATH, post(ofrep::bulk))
        .route(&format!("{BULK_PATH}/{{*key}}"), post(ofrep::single))
        .route(STREAM_PATH, get(stream::stream))
        .route_layer(middleware::from_fn_with_state(Arc::clone(state), require_api_key))
}

async fn require_api_key(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let key = request.headers().get("x-api-key").map(HeaderValue::as_bytes);
    if state.keys.accepts(key) {
        next.run(request).await
    } else {
        (StatusCode::UNAUTHORIZED, Json(json!({"errorDetails": "unknown API key"}))).into_response()
    }
}
