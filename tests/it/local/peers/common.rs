//! Flags, contexts and requests of all clients.

use flipswitch_local::{LocalServer, RecordedRequest};
use serde_json::{Value, json};

/// The flags of all peers, in flagd's format.
pub(super) const FLAGS: &str = include_str!("../../../peers/flags.json");

/// The path of all flags.
pub(super) const BULK: &str = "/ofrep/v1/evaluate/flags";

/// The path of the event stream of OFREP.
pub(super) const EVENT_STREAM: &str = "/ofrep/v1/sse/flags";

/// A value of a type that no flag of that type has.
pub(super) fn default(flag_type: &str) -> Value {
    match flag_type {
        "boolean" => json!(false),
        "integer" => json!(-1),
        "float" => json!(-0.5),
        "string" => json!("default"),
        _ => json!({"default": true}),
    }
}

pub(super) fn context(plan: &str) -> Value {
    json!({"targetingKey": "user-123", "plan": plan})
}

pub(super) fn header<'a>(request: &'a RecordedRequest, name: &str) -> &'a str {
    request.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

/// Returns the requests to a path, with whatever query.
pub(super) fn requests_to(service: &LocalServer, path: &str) -> Vec<RecordedRequest> {
    let mut requests = service.requests();
    requests.retain(|request| request.path.split('?').next() == Some(path));
    requests
}
