//! OFREP response bodies. No I/O.
//!
//! Source: the OpenFeature Remote Evaluation Protocol and, where it does not specify the behaviour, what its servers send. Items
//! may be wrapped, duplicated or without a key, and any field of an item may be absent, null or of a different type.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use crate::{
    context::redact::Redactor,
    error::Error,
    flag_type::FlagType,
    flags::{
        evaluation::FlagEvaluation,
        flag_set::{FlagSet, Item, Outcome},
        intern::Interner,
    },
    sanitize::printable,
};

/// The error codes of OpenFeature.
const CODES: [&str; 8] = [
    "FLAG_NOT_FOUND",
    "GENERAL",
    "INVALID_CONTEXT",
    "PARSE_ERROR",
    "PROVIDER_FATAL",
    "PROVIDER_NOT_READY",
    "TARGETING_KEY_MISSING",
    "TYPE_MISMATCH",
];

#[derive(Deserialize)]
struct Bulk<'a> {
    #[serde(borrow)]
    flags: Vec<&'a RawValue>,
}

/// The key of an item that could not be read completely.
#[derive(Deserialize)]
struct Unreadable {
    key: Option<String>,
    result: Option<Box<Unreadable>>,
}

/// Parses the body of a bulk response with status 200, for a context.
///
/// # Errors
///
/// [`Error::Decode`] if the body is not JSON or has no list of flags. An invalid item becomes an error of that flag only.
pub(crate) fn bulk(body: &[u8], context: &[u8], interner: &Interner) -> Result<Arc<FlagSet>, Error> {
    interner.response(body, || {
        let Bulk { flags } = serde_json::from_slice(body).map_err(|error| Error::json(&error))?;
        // Allocated at its final size: the items stay in memory for a long time, and shrinking later fragments the heap.
        let mut items = Vec::with_capacity(flags.len());
        let redactor = Redactor::new(context);
        items.extend(flags.into_iter().filter_map(|raw| shared_item(raw, &redactor, interner)));
        Ok(interner.flag_set(items))
    })
}

/// Returns an item, which may be shared with other contexts that received it.
fn shared_item(raw: &RawValue, redactor: &Redactor<'_>, interner: &Interner) -> Option<Arc<Item>> {
    let shared = interner.item(raw.get(), || item(raw, redactor))?;
    let Outcome::Failed { code, details } = &shared.outcome else { return Some(shared) };
    // A context whose values do not occur in the item may have received it first.
    if failure(code, details.clone().map(Value::String), redactor).2 {
        return item(raw, redactor).map(|(own, _)| Arc::new(own));
    }
    Some(shared)
}

/// Parses one item, and returns whether other contexts may share it. Returns `None` for an item without a key, which OFREP tells
/// clients to skip.
fn item(raw: &RawValue, redactor: &Redactor<'_>) -> Option<(Item, bool)> {
    let fields = match serde_json::from_str::<Map<String, Value>>(raw.get()) {
        Ok(fields) => fields,
        Err(error) => {
            let Unreadable { key, result } = serde_json::from_str(raw.get()).ok()?;
            let key = key.or_else(|| result?.key)?;
            let details = Some(printable(&error.to_string()));
            return Some((Item { key, outcome: Outcome::Failed { code: "PARSE_ERROR".to_owned(), details } }, true));
        }
    };
    evaluated(fields, redactor)
}

fn evaluated(mut fields: Map<String, Value>, redactor: &Redactor<'_>) -> Option<(Item, bool)> {
    let is_wrapped = !fields.contains_key("value") && !fields.contains_key("errorCode");
    if let (true, Some(Value::Object(mut inner))) = (is_wrapped, fields.remove("result")) {
        if let (false, Some(key)) = (inner.contains_key("key"), fields.remove("key")) {
            inner.insert("key".to_owned(), key);
        }
        fields = inner;
    }
    let key = text(fields.remove("key"))?;
    if let Some(code) = text(fields.remove("errorCode")) {
        let (code, details, is_redacted) = failure(&code, fields.remove("errorDetails"), redactor);
        return Some((Item { key, outcome: Outcome::Failed { code, details } }, !is_redacted));
    }
    let value = fields.remove("value").unwrap_or(Value::Null);
    let metadata = match fields.remove("metadata") {
        Some(Value::Object(metadata)) => metadata,
        _ => Map::new(),
    };
    let flag = FlagEvaluation {
        key: key.clone(),
        flag_type: FlagType::of(&value, &metadata),
        value,
        reason: text(fields.remove("reason")).unwrap_or_else(|| "UNKNOWN".to_owned()),
        variant: text(fields.remove("variant")),
        metadata,
    };
    Some((Item { key, outcome: Outcome::Evaluated(flag) }, true))
}

/// Parses the body of a response that rejects the evaluation of a context. Returns `None` if it does not have the form that OFREP
/// defines.
pub(crate) fn rejection(body: &[u8], context: &[u8]) -> Option<Error> {
    let mut fields: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let code = text(fields.remove("errorCode"))?;
    let (code, details, _) = failure(&code, fields.remove("errorDetails"), &Redactor::new(context));
    Some(Error::Evaluation { code, details })
}

fn text(value: Option<Value>) -> Option<String> {
    match value {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

/// Returns the code and the details of a failure, and whether values of the context were removed from them.
fn failure(code: &str, details: Option<Value>, redactor: &Redactor<'_>) -> (String, Option<String>, bool) {
    let (code, is_code_redacted) = match code {
        // Part of the protocol, regardless of the context.
        _ if CODES.contains(&code) => (code.to_owned(), false),
        _ => match redactor.redact(code) {
            (_, true) => ("GENERAL".to_owned(), true),
            unredacted => unredacted,
        },
    };
    let details = match details {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(redactor.redact(&text)),
        Some(other) => Some(redactor.redact(&other.to_string())),
    };
    let (details, are_redacted) = details.unzip();
    (code, details, is_code_redacted || are_redacted.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::{Chain, FlagError};

    /// A context whose values occur in an error gets its own item, and shares the other items.
    #[test]
    fn an_item_that_is_redacted_for_one_context_is_not_shared_with_others() {
        let interner = Interner::default();
        let flags = [
            json!({"key": "a", "errorCode": "FLAG_NOT_FOUND"}),
            json!({"key": "b", "errorCode": "GENERAL", "errorDetails": "no FLAG"}),
            json!({"key": "c", "errorCode": "ODD_FLAG"}),
        ];
        let body = json!({"flags": flags}).to_string();
        let of = |context: &str| {
            let set =
                bulk(body.as_bytes(), json!({"context": {"plan": context}}).to_string().as_bytes(), &interner).unwrap();
            ["a", "b", "c"].map(|key| match set.get(key) {
                Err(FlagError::Evaluation { code, details }) => (code, details),
                other => panic!("{other:?}"),
            })
        };
        let failed = |code: &str, details: Option<&str>| (code.to_owned(), details.map(str::to_owned));
        for _ in 0..2 {
            let redacted = [failed("FLAG_NOT_FOUND", None), failed("GENERAL", Some("no …")), failed("GENERAL", None)];
            assert_eq!(of("FLAG"), redacted);
            let plain = [failed("FLAG_NOT_FOUND", None), failed("GENERAL", Some("no FLAG")), failed("ODD_FLAG", None)];
            assert_eq!(of("other"), plain);
        }
    }

    fn read(body: &[u8]) -> Result<Arc<FlagSet>, Error> {
        bulk(body, b"", &Interner::default())
    }

    fn flag_set(items: &Value) -> Arc<FlagSet> {
        read(json!({"flags": items}).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_full_item_keeps_everything() {
        let flag_set = flag_set(&json!([{
            "key": "dark-mode", "value": true, "variant": "enabled", "reason": "TARGETING_MATCH",
            "metadata": {"flagType": "boolean", "owner": "web"}, "future": {"field": 1}
        }]));
        let flag = flag_set.get("dark-mode").unwrap();
        assert_eq!(flag.value, json!(true));
        assert_eq!(flag.flag_type, FlagType::Boolean);
        assert_eq!(flag.variant.as_deref(), Some("enabled"));
        assert_eq!(flag.reason, "TARGETING_MATCH");
        assert_eq!(flag.metadata["owner"], "web");
    }

    #[test]
    fn absent_fields_and_fields_of_other_types_are_accepted() {
        let flag_set = flag_set(&json!([
            {"key": "bare", "value": 1},
            {"key": "nulls", "value": "x", "variant": null, "reason": null, "metadata": null},
            {"key": "odd", "value": 2, "variant": 7, "reason": [], "metadata": "none"},
            {"key": "code-default", "reason": "DISABLED"},
        ]));
        for key in ["bare", "nulls", "odd"] {
            let flag = flag_set.get(key).unwrap();
            assert_eq!((flag.variant.as_deref(), flag.reason.as_str()), (None, "UNKNOWN"), "{key}");
            assert!(flag.metadata.is_empty(), "{key}");
        }
        let flag = flag_set.get("code-default").unwrap();
        assert_eq!((&flag.value, flag.reason.as_str()), (&Value::Null, "DISABLED"));
    }

    #[test]
    fn items_may_be_wrapped_duplicated_without_a_key_or_not_objects() {
        let flag_set = flag_set(&json!([
            {"key": "twice", "value": 1},
            {"result": {"key": "inside", "value": 2}},
            {"key": "outside", "result": {"value": 3}},
            {"key": "own", "value": 5, "result": {"value": 6}},
            {"value": 4}, {"key": null, "value": 4}, {"key": 5, "value": 4}, 6, null, [],
            {"key": "twice", "value": 7},
        ]));
        let values: Vec<_> = flag_set.iter().map(|flag| (flag.key.as_str(), flag.as_i64().unwrap())).collect();
        assert_eq!(values, [("inside", 2), ("outside", 3), ("own", 5), ("twice", 7)]);
    }

    #[test]
    fn an_item_with_an_error_is_an_error_of_its_flag_only() {
        let flag_set = flag_set(&json!([
            {"key": "good", "value": 1},
            {"key": "bad", "errorCode": "PARSE_ERROR", "errorDetails": "line 3\r\n\u{7}of targeting"},
        ]));
        assert!(flag_set.get("good").is_ok());
        let Err(FlagError::Evaluation { code, details }) = flag_set.get("bad") else { panic!("an error") };
        assert_eq!((code.as_str(), details.as_deref()), ("PARSE_ERROR", Some("line 3of targeting")));
        assert!(matches!(flag_set.get("other"), Err(FlagError::NotFound)));
        assert_eq!(flag_set.iter().count(), 1);
    }

    #[test]
    fn a_number_out_of_range_fails_only_its_own_flag() {
        let huge = br#"{"flags":[{"key":"huge","value":1e999},{"result":{"key":"in","value":1e999}},{"key":"good","value":1}]}"#;
        let flag_set = read(huge).unwrap();
        assert!(matches!(flag_set.get("in"), Err(FlagError::Evaluation { .. })));
        assert!(matches!(flag_set.get("huge"), Err(FlagError::Evaluation { code, .. }) if code == "PARSE_ERROR"));
        assert_eq!(flag_set.get("good").unwrap().as_i64(), Some(1));
    }

    #[test]
    fn a_body_that_is_not_a_bulk_response_is_an_error() {
        for body in ["", "null", "[]", "{}", "<html></html>", r#"{"flags":{}}"#, r#"{"flags":[}"#, "\u{0}"] {
            assert!(matches!(read(body.as_bytes()), Err(Error::Decode(_))), "{body:?}");
        }
    }

    #[test]
    fn errors_do_not_quote_the_body() {
        let long = "A".repeat(100_000);
        for body in [format!("\"{long}\""), format!(r#"{{"flags":"{long}"}}"#), format!(r#"{{"flags":[{{"{long}":1"#)] {
            let text = Chain(&read(body.as_bytes()).unwrap_err()).to_string();
            assert!(!text.contains("AAA") && text.contains("line 1"), "{}", printable(&text));
        }
    }

    #[test]
    fn a_rejection_is_recognised_by_its_code() {
        let body = br#"{"key":"f","errorCode":"TARGETING_KEY_MISSING","errorDetails":"say who"}"#;
        let Some(Error::Evaluation { code, details }) = rejection(body, b"") else { panic!("a rejection") };
        assert_eq!((code.as_str(), details.as_deref()), ("TARGETING_KEY_MISSING", Some("say who")));
        for body in ["", "{}", "no", r#"{"errorCode":7}"#] {
            assert!(rejection(body.as_bytes(), b"").is_none(), "{body:?}");
        }
    }
}
