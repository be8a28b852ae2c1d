//! Flags, contexts and requests of all clients.

use std::sync::LazyLock;

use flipswitch_local::{LocalServer, RecordedRequest};
use serde_json::{Value, json};

/// Type, key, plan, value, variant and reason.
type Expectation = (&'static str, &'static str, &'static str, Value, &'static str, &'static str);

/// What a client in Python reads.
pub(super) static TYPED: LazyLock<[Expectation; 9]> = LazyLock::new(|| {
    let page = json!({"title": "Hi", "steps": [1, 2.5, "x"], "size": {"wide": true}});
    [
        ("boolean", "bool", "free", json!(true), "on", "STATIC"),
        ("string", "string", "free", json!("Grüße 👋"), "hello", "STATIC"),
        ("integer", "int", "free", json!(42), "many", "STATIC"),
        ("integer", "large-int", "free", json!(9_007_199_254_740_993_i64), "large", "STATIC"),
        ("float", "float", "free", json!(0.1), "tenth", "STATIC"),
        ("float", "whole-float", "free", json!(42.0), "whole", "STATIC"),
        ("object", "object", "free", page, "page", "STATIC"),
        ("string", "targeted", "premium", json!("5 %"), "reduced", "TARGETING_MATCH"),
        ("string", "targeted", "free", json!("10 %"), "standard", "DEFAULT"),
    ]
});

/// What a client in Python cannot read as a boolean: key, error code, and a part of the message.
pub(super) const FAILURES: [(&str, &str, &str); 5] = [
    ("unknown", "FLAG_NOT_FOUND", "unknown"),
    ("string", "TYPE_MISMATCH", "str"),
    ("misdirected", "GENERAL", "nowhere"),
    // OFREP allows the variant to be absent, as in these flags. The clients require a variant, and name it in their errors.
    ("disabled", "GENERAL", "variant"),
    ("code-default", "GENERAL", "variant"),
];

/// A default value of each type, which no flag has.
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

/// Returns the requests to a path, with any query.
pub(super) fn requests_to(service: &LocalServer, path: &str) -> Vec<RecordedRequest> {
    let mut requests = service.requests();
    requests.retain(|request| request.path.split('?').next() == Some(path));
    requests
}
