//! The control endpoints, under `/local`: flags are read, set and removed with plain `curl`.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use http::StatusCode;
use serde_json::{Value, json};

use crate::{definition::Definition, server::Shared};

pub(crate) fn routes() -> Router<Arc<Shared>> {
    Router::new().route("/local/flags", get(all)).route("/local/flags/{*key}", put(set).delete(remove))
}

async fn all(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(shared.store.to_json())
}

/// Takes any content type: `curl -d` says that its body is a form.
async fn set(State(shared): State<Arc<Shared>>, Path(key): Path<String>, body: Bytes) -> Response {
    let source: Value = match serde_json::from_slice(&body) {
        Ok(source) => source,
        Err(error) => return refusal(&format!("the body is not JSON: {error}; send {{\"value\": true}}, say")),
    };
    match Definition::parse(&key, source) {
        Ok(definition) => {
            let shown = Json(json!({ &key: definition.to_json() }));
            shared.store.set(&key, definition);
            shown.into_response()
        }
        Err(error) => refusal(&error.to_string()),
    }
}

async fn remove(State(shared): State<Arc<Shared>>, Path(key): Path<String>) -> Response {
    if shared.store.remove(&key) {
        StatusCode::NO_CONTENT.into_response()
    } else {
        (StatusCode::NOT_FOUND, Json(json!({"error": format!("there is no flag {key:?}")}))).into_response()
    }
}

fn refusal(reason: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({ "error": reason }))).into_response()
}
