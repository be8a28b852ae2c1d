//! The routes of the API, and the API key that they require.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::StatusCode;
use serde_json::json;

use crate::{
    api::{ofrep, stream},
    faults::fault::{BULK_PATH, EVENT_STREAM_PATH, STREAM_PATH},
    keys,
    state::AppState,
};

pub(crate) fn routes(state: &Arc<AppState>) -> Router<Arc<AppState>> {
    let api = Router::new()
        .route(BULK_PATH, post(ofrep::bulk))
        .route(&format!("{BULK_PATH}/{{*key}}"), post(ofrep::single))
        .route(STREAM_PATH, get(stream::stream))
        .route_layer(middleware::from_fn_with_state(Arc::clone(state), require_api_key));
    // A page cannot add headers to the request that opens an event stream, so the endpoint requires no key.
    if state.event_streams { api.route(EVENT_STREAM_PATH, get(stream::event_stream)) } else { api }
}

async fn require_api_key(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    if state.keys.accepts(keys::sent_key(request.headers())) {
        next.run(request).await
    } else {
        (StatusCode::UNAUTHORIZED, Json(json!({"errorDetails": "unknown API key"}))).into_response()
    }
}
