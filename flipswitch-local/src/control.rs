//! The control endpoints, under `/local`: flags and faults are read, set and removed with plain `curl`.
//!
//! | request | does |
//! |---|---|
//! | `GET /local/flags` | lists the flags |
//! | `PUT`, `DELETE /local/flags/{key}` | sets and removes one |
//! | `GET /local/faults` | lists the faults: `{"faults": [{"id", "on", "effect", "after", "times", "struck", "remaining"}]}` |
//! | `POST /local/faults` | adds one: `{"on", "effect", "after", "times"}`, the last two as one likes; 201, and what is listed of it |
//! | `DELETE /local/faults`, `DELETE /local/faults/{id}` | removes all, or one |
//! | `GET /local/streams` | `{"open": n}` |
//! | `POST /local/streams/finish`, `/drop`, `/reset` | ends the open streams; `{"streams": n}` |
//! | `POST /local/streams/inject` | sends the bytes of the request's body into the open streams; `{"streams": n}` |
//! | `POST /local/api-key` | rotates the key: `{"key", "validUntil"}`, each as one likes; `{"key", "validUntil"}` |
//!
//! Mistakes are answered with 400 and `{"error": ".."}`, which names the field.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    definition::Definition,
    fault::{Endpoint, Fault},
    faults::{FaultId, Faults},
    keys::KeyRotation,
    server::Shared,
};

pub(crate) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/local/flags", get(all))
        .route("/local/flags/{*key}", put(set).delete(remove))
        .route("/local/faults", get(faults).post(add_fault).delete(clear_faults))
        .route("/local/faults/{id}", delete(remove_fault))
        .route("/local/streams", get(streams))
        .route("/local/streams/{action}", post(act_on_streams))
        .route("/local/api-key", post(rotate_api_key))
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
        unknown(&format!("there is no flag {key:?}"))
    }
}

async fn faults(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"faults": shared.faults.all()}))
}

async fn add_fault(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let fault: Fault = match read(&body) {
        Ok(fault) => fault,
        Err(error) => return refusal(&error),
    };
    if fault.on == Endpoint::Connections && fault.times.is_none() {
        return refusal("times: is missing; without it no connection is left to remove the fault by");
    }
    match shared.faults.add(fault) {
        Ok(active) => (StatusCode::CREATED, Json(active)).into_response(),
        Err(error) => refusal(&error.to_string()),
    }
}

async fn clear_faults(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.faults.clear();
    StatusCode::NO_CONTENT
}

async fn remove_fault(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    match id.parse() {
        Ok(known) if shared.faults.remove(FaultId(known)) => StatusCode::NO_CONTENT.into_response(),
        _ => unknown(&format!("there is no fault {id:?}")),
    }
}

async fn streams(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"open": shared.store.events.open()}))
}

async fn act_on_streams(State(shared): State<Arc<Shared>>, Path(action): Path<String>, body: Bytes) -> Response {
    let faults = Faults(shared);
    let streams = match action.as_str() {
        "finish" => faults.finish_streams(),
        "drop" => faults.drop_streams(),
        "reset" => faults.reset_streams(),
        "inject" => faults.inject(body),
        _ => return unknown(&format!("streams know finish, drop, reset and inject, and not {action:?}")),
    };
    Json(json!({"streams": streams})).into_response()
}

async fn rotate_api_key(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let rotation: KeyRotation = match if body.is_empty() { Ok(KeyRotation::default()) } else { read(&body) } {
        Ok(rotation) => rotation,
        Err(error) => return refusal(&error),
    };
    let (key, valid_until) = shared.rotate_api_key(rotation);
    Json(json!({"key": key, "validUntil": valid_until})).into_response()
}

/// Reads JSON; a mistake is told with its field and its place.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| error.to_string())?;
    json.end().map_err(|error| error.to_string())?;
    Ok(value)
}

fn unknown(reason: &str) -> Response {
    (StatusCode::NOT_FOUND, Json(json!({ "error": reason }))).into_response()
}

fn refusal(reason: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({ "error": reason }))).into_response()
}
