//! The control endpoints, under `/local`: flags and faults are read, set and removed with plain `curl`.
//!
//! | request | does |
//! |---|---|
//! | `GET /local/flags` | lists the flags |
//! | `PUT`, `DELETE /local/flags/{key}` | sets and removes one |
//! | `POST /local/evaluate` | evaluates all flags for a context: `{"context": {..}}`; `{"flags": [..]}`, OFREP's items |
//! | `GET /local/faults` | lists the faults: `{"faults": [{"id", "on", "effect", "after", "times", "struck", "remaining"}]}` |
//! | `POST /local/faults` | adds one: `{"on", "effect", "after", "times"}`, the last two as one likes; 201, and what is listed of it |
//! | `DELETE /local/faults`, `DELETE /local/faults/{id}` | removes all, or one |
//! | `GET /local/streams` | `{"open": n}` |
//! | `POST /local/streams/finish`, `/drop`, `/reset` | ends the open streams; `{"streams": n}` |
//! | `POST /local/streams/inject` | sends the bytes of the request's body into the open streams; `{"streams": n}` |
//! | `GET /local/requests` | lists the latest requests of applications, newest first: `{"requests": [{"id", "at", "method", "path", "apiKey", "context", "status", "millis"}]}`; without `millis` it is still being answered, with it and without `status` it was not |
//! | `GET /local/activity` | an event stream that names what has changed: `flags`, `streams`, `requests`, `faults`, `api-key`; first all of them |
//! | `GET /local/api-key` | `{"key"}`, masked; null if any key is taken |
//! | `POST /local/api-key` | rotates the key: `{"key", "validUntil"}`, each as one likes; `{"key", "validUntil"}` |
//!
//! Mistakes are answered with a status of 4xx and `{"error": ".."}`, which names the field.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{FromRequestParts, Path, State},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use http::{Method, StatusCode, Uri, header, request::Parts};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    admin::activity,
    faults::{
        fault::{Endpoint, Fault},
        faults::Faults,
        registry::FaultId,
    },
    flags::{definition::Definition, evaluate},
    keys::KeyRotation,
    state::AppState,
};

pub(crate) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/local/flags", get(all))
        .route("/local/evaluate", post(evaluate_all))
        .route("/local/flags/{*key}", put(set).delete(remove))
        .route("/local/faults", get(faults).post(add_fault).delete(clear_faults))
        .route("/local/faults/{id}", delete(remove_fault))
        .route("/local/streams", get(streams))
        .route("/local/streams/{action}", post(act_on_streams))
        .route("/local/requests", get(requests))
        .route("/local/activity", get(activity))
        .route("/local/api-key", get(api_key).post(rotate_api_key))
}

/// Whether a path is one of the controls' or the dashboard's, and no business of an application.
pub(crate) fn is_about(path: &str) -> bool {
    path == "/" || ["/local/", "/dashboard/"].iter().any(|folder| path.starts_with(folder))
}

/// Answers where there is nothing.
pub(crate) async fn nothing(uri: Uri) -> Response {
    unknown(&format!("there is nothing at {:?}", uri.path()))
}

/// Answers a method that a path does not have; which it has is in the header `Allow`.
pub(crate) async fn not_so(method: Method, uri: Uri) -> Response {
    let reason = format!("{:?} does not know {method}", uri.path());
    (StatusCode::METHOD_NOT_ALLOWED, Json(json!({ "error": reason }))).into_response()
}

/// Answers a body that is not read.
pub(crate) fn too_large(limit: usize) -> Response {
    let reason = format!("the body is too large, or did not arrive; bodies are read up to {limit} bytes");
    (StatusCode::PAYLOAD_TOO_LARGE, Json(json!({ "error": reason }))).into_response()
}

async fn all(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(state.flags.to_json())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    context: Value,
}

async fn evaluate_all(State(state): State<Arc<AppState>>, body: Bytes) -> Response {
    let question: Question = match read(&body) {
        Ok(question) => question,
        Err(error) => return refusal(&error),
    };
    match evaluate::context(question.context) {
        Ok(context) => Json(json!({"flags": state.flags.evaluate_all(&context)})).into_response(),
        Err(error) => refusal(&error.details),
    }
}

async fn requests(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(json!({"requests": activity::requests(&state.request_log)}))
}

async fn activity(State(state): State<Arc<AppState>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/event-stream")], activity::feed(&state))
}

/// Takes any content type: `curl -d` says that its body is a form.
async fn set(State(state): State<Arc<AppState>>, Name(key): Name, body: Bytes) -> Response {
    let source: Value = match serde_json::from_slice(&body) {
        Ok(source) => source,
        Err(error) => return refusal(&format!("the body is not JSON: {error}; send {{\"value\": true}}, say")),
    };
    match Definition::parse(&key, source) {
        Ok(definition) => {
            if let Err(error) = definition.validate_rule(&key) {
                return refusal(&error.to_string());
            }
            let shown = Json(json!({ &key: definition.to_json() }));
            state.flags.set(&key, definition);
            shown.into_response()
        }
        Err(error) => refusal(&error.to_string()),
    }
}

async fn remove(State(state): State<Arc<AppState>>, Name(key): Name) -> Response {
    if state.flags.remove(&key) {
        StatusCode::NO_CONTENT.into_response()
    } else {
        unknown(&format!("there is no flag {key:?}"))
    }
}

async fn faults(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(json!({"faults": state.faults.all()}))
}

/// Faults on connections strike those of the controls as well. More than this many, and nobody gets to remove them.
const CONNECTIONS: u64 = 100;

async fn add_fault(State(state): State<Arc<AppState>>, body: Bytes) -> Response {
    let fault: Fault = match read(&body) {
        Ok(fault) => fault,
        Err(error) => return refusal(&error),
    };
    if fault.on == Endpoint::Connections && fault.times.is_none() {
        return refusal("times: is missing; without it no connection is left to remove the fault by");
    }
    if fault.on == Endpoint::Connections && fault.times.is_some_and(|times| times > CONNECTIONS) {
        return refusal(&format!("times: at most {CONNECTIONS} for connections, since the fault is removed by one"));
    }
    match state.faults.add(fault) {
        Ok(active) => (StatusCode::CREATED, Json(active)).into_response(),
        Err(error) => refusal(&error.to_string()),
    }
}

async fn clear_faults(State(state): State<Arc<AppState>>) -> StatusCode {
    state.faults.clear();
    StatusCode::NO_CONTENT
}

async fn remove_fault(State(state): State<Arc<AppState>>, Name(id): Name) -> Response {
    match id.parse() {
        Ok(known) if state.faults.remove(FaultId(known)) => StatusCode::NO_CONTENT.into_response(),
        _ => unknown(&format!("there is no fault {id:?}")),
    }
}

async fn streams(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(json!({"open": state.broadcaster.stream_count()}))
}

async fn act_on_streams(State(state): State<Arc<AppState>>, Name(action): Name, body: Bytes) -> Response {
    let faults = Faults(Arc::clone(&state.faults));
    let streams = match action.as_str() {
        "finish" => faults.finish_streams(),
        "drop" => faults.drop_streams(),
        "reset" => faults.reset_streams(),
        "inject" => faults.inject(body),
        _ => return unknown(&format!("streams know finish, drop, reset and inject, and not {action:?}")),
    };
    Json(json!({"streams": streams})).into_response()
}

async fn api_key(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(json!({"key": state.keys.shown()}))
}

async fn rotate_api_key(State(state): State<Arc<AppState>>, body: Bytes) -> Response {
    let rotation: KeyRotation = match if body.is_empty() { Ok(KeyRotation::default()) } else { read(&body) } {
        Ok(rotation) => rotation,
        Err(error) => return refusal(&error),
    };
    if let Some(mistake) = rotation.mistake() {
        return refusal(mistake);
    }
    let (key, valid_until) = state.rotate_api_key(rotation);
    Json(json!({"key": key, "validUntil": valid_until})).into_response()
}

/// The part of a path that names something.
struct Name(String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let path = Path::from_request_parts(parts, state).await;
        path.map(|Path(name)| Self(name)).map_err(|_| refusal(&format!("the path {:?} is not UTF-8", parts.uri.path())))
    }
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
