//! The control endpoints, under `/local`: `curl` and the dashboard use them to change flags and faults.
//!
//! | request | effect |
//! |---|---|
//! | `GET /local/flags` | lists the flags |
//! | `PUT`, `DELETE /local/flags/{key}` | sets or removes a flag |
//! | `POST /local/evaluate` | evaluates all flags for a context: takes `{"context": {..}}`, returns `{"flags": [..]}` with OFREP's items |
//! | `GET /local/faults` | lists the faults: `{"faults": [{"id", "on", "when", "effect", "after", "times", "struck", "remaining"}]}`, `when` only if it is set |
//! | `POST /local/faults` | adds a fault: takes `{"on", "when", "effect", "after", "times"}`, of which `on` and `effect` are required; returns 201 and the fault as listed |
//! | `DELETE /local/faults`, `DELETE /local/faults/{id}` | removes all faults or one fault |
//! | `GET /local/streams` | returns `{"open": n}` |
//! | `POST /local/streams/finish`, `/drop`, `/reset` | ends the open streams; returns `{"streams": n}` |
//! | `POST /local/streams/inject` | sends the request body into the open streams; returns `{"streams": n}` |
//! | `GET /local/requests` | lists the latest requests from applications, newest first: `{"requests": [{"id", "at", "method", "path", "apiKey", "context", "status", "millis"}]}`. Without `millis` a request is pending; with `millis` and without `status` its connection ended without a response |
//! | `GET /local/activity` | returns an event stream that names the topics that change: `flags`, `streams`, `requests`, `faults`, `api-key`; at first all of them |
//! | `GET /local/api-key` | returns `{"key"}`, masked, or null if any key is accepted |
//! | `POST /local/api-key` | rotates the API key: takes `{"key", "validUntil"}`, both optional; returns `{"key", "validUntil"}` |
//!
//! Error responses have a 4xx status and the body `{"error": ".."}`, which names the field.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{FromRequestParts, Path, State},
    response::IntoResponse,
    routing::{delete, get, post, put},
};
use http::{Method, StatusCode, Uri, header, request::Parts};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    admin::{activity, error::AdminError},
    faults::{
        fault::Fault,
        faults::Faults,
        registry::{ActiveFault, FaultId},
    },
    flags::{definition::Definition, evaluate},
    keys::KeyRotation,
    state::AppState,
};

/// Limits how often a fault on connections applies. Such a fault also applies to connections for `/local`, so without a limit it
/// could not be removed again.
const MAX_CONNECTION_FAULTS: u64 = 100;

pub(crate) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/local/flags", get(flags))
        .route("/local/flags/{*key}", put(set_flag).delete(remove_flag))
        .route("/local/evaluate", post(evaluate_all))
        .route("/local/faults", get(faults).post(add_fault).delete(clear_faults))
        .route("/local/faults/{id}", delete(remove_fault))
        .route("/local/streams", get(streams))
        .route("/local/streams/{action}", post(act_on_streams))
        .route("/local/requests", get(requests))
        .route("/local/activity", get(activity))
        .route("/local/api-key", get(api_key).post(rotate_api_key))
}

/// Returns whether a path belongs to the control endpoints or the dashboard.
pub(crate) fn is_admin_path(path: &str) -> bool {
    path == "/" || ["/local/", "/dashboard/"].iter().any(|folder| path.starts_with(folder))
}

/// Responds to paths that do not exist.
pub(crate) async fn not_found(uri: Uri) -> AdminError {
    AdminError::not_found(format!("there is nothing at {:?}", uri.path()))
}

/// Responds to methods that a path does not support. The router adds the `Allow` header.
pub(crate) async fn method_not_allowed(method: Method, uri: Uri) -> AdminError {
    AdminError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{:?} does not support {method}", uri.path()))
}

/// Responds to bodies that exceed the limit.
pub(crate) fn payload_too_large(limit: usize) -> AdminError {
    let message = format!("the body is incomplete or larger than {limit} bytes");
    AdminError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

async fn flags(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(state.flags.to_json())
}

/// Accepts any content type, since `curl -d` sends the content type of a form.
async fn set_flag(
    State(state): State<Arc<AppState>>,
    Segment(key): Segment,
    body: Bytes,
) -> Result<Json<Value>, AdminError> {
    let source = serde_json::from_slice(&body).map_err(|error| {
        AdminError::bad_request(format!("the body is not JSON: {error}; send, for example, {{\"value\": true}}"))
    })?;
    let definition = Definition::parse(&key, source)?;
    definition.validate_rule(&key)?;
    let set = json!({ &key: definition.to_json() });
    state.flags.set(&key, definition);
    Ok(Json(set))
}

async fn remove_flag(State(state): State<Arc<AppState>>, Segment(key): Segment) -> Result<StatusCode, AdminError> {
    if state.flags.remove(&key) {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(AdminError::not_found(format!("there is no flag {key:?}")))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EvaluateRequest {
    context: Value,
}

async fn evaluate_all(State(state): State<Arc<AppState>>, body: Bytes) -> Result<Json<Value>, AdminError> {
    let EvaluateRequest { context } = parse(&body)?;
    let context = evaluate::context(context)?;
    Ok(Json(json!({"flags": state.flags.evaluate_all(&context)})))
}

async fn faults(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(json!({"faults": state.faults.all()}))
}

async fn add_fault(
    State(state): State<Arc<AppState>>,
    body: Bytes,
) -> Result<(StatusCode, Json<ActiveFault>), AdminError> {
    let fault: Fault = parse(&body)?;
    if fault.ends_new_connections() {
        match fault.times {
            None => {
                let message = "times: is missing; without it, the fault would apply to the request that removes it";
                return Err(AdminError::bad_request(message));
            }
            Some(times) if times > MAX_CONNECTION_FAULTS => {
                let message = format!("times: must be at most {MAX_CONNECTION_FAULTS} for connections");
                return Err(AdminError::bad_request(message));
            }
            Some(_) => {}
        }
    }
    Ok((StatusCode::CREATED, Json(state.faults.add(fault)?)))
}

async fn clear_faults(State(state): State<Arc<AppState>>) -> StatusCode {
    state.faults.clear();
    StatusCode::NO_CONTENT
}

async fn remove_fault(State(state): State<Arc<AppState>>, Segment(id): Segment) -> Result<StatusCode, AdminError> {
    match id.parse() {
        Ok(number) if state.faults.remove(FaultId(number)) => Ok(StatusCode::NO_CONTENT),
        _ => Err(AdminError::not_found(format!("there is no fault {id:?}"))),
    }
}

async fn streams(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(json!({"open": state.broadcaster.stream_count()}))
}

async fn act_on_streams(
    State(state): State<Arc<AppState>>,
    Segment(action): Segment,
    body: Bytes,
) -> Result<Json<Value>, AdminError> {
    let faults = Faults(Arc::clone(&state.faults));
    let streams = match action.as_str() {
        "finish" => faults.finish_streams(),
        "drop" => faults.drop_streams(),
        "reset" => faults.reset_streams(),
        "inject" => faults.inject(body),
        _ => {
            let message = format!("there is no action {action:?}; streams support finish, drop, reset and inject");
            return Err(AdminError::not_found(message));
        }
    };
    Ok(Json(json!({"streams": streams})))
}

async fn requests(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(json!({"requests": activity::requests(&state.request_log)}))
}

async fn activity(State(state): State<Arc<AppState>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/event-stream")], activity::feed(&state))
}

async fn api_key(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(json!({"key": state.keys.masked()}))
}

async fn rotate_api_key(State(state): State<Arc<AppState>>, body: Bytes) -> Result<Json<Value>, AdminError> {
    let rotation = if body.is_empty() { KeyRotation::new() } else { parse(&body)? };
    rotation.validate().map_err(AdminError::bad_request)?;
    let (key, valid_until) = state.rotate_api_key(rotation);
    Ok(Json(json!({"key": key, "validUntil": valid_until})))
}

/// The segment of a path that names a flag, a fault, or an action.
struct Segment(String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, AdminError> {
        let path = Path::from_request_parts(parts, state).await;
        path.map(|Path(segment)| Self(segment))
            .map_err(|_| AdminError::bad_request(format!("the path {:?} is not UTF-8", parts.uri.path())))
    }
}

/// Parses JSON. An error names the field and the place.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, AdminError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value =
        serde_path_to_error::deserialize(&mut json).map_err(|error| AdminError::bad_request(error.to_string()))?;
    json.end().map_err(|error| AdminError::bad_request(error.to_string()))?;
    Ok(value)
}
