//! Which requests a fault applies to, beyond their endpoint.

use std::cell::OnceCell;

use axum::body::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::{
    faults::{error::FaultError, fault::Endpoint},
    flags::evaluate,
};

/// Limits each list of a filter.
const MAX_ENTRIES: usize = 100;

/// Limits the requests that a fault applies to. Every part that is set must match. Its fields are the fields of the JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RequestFilter {
    /// One of these targeting keys. Empty for any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) targeting_keys: Vec<String>,
    /// None of these targeting keys.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) except_targeting_keys: Vec<String>,
    /// All of these attributes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) attributes: Vec<Attribute>,
    /// Whether the request has an `If-None-Match` header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) if_none_match: Option<bool>,
}

/// An attribute that the context must have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Attribute {
    pub(crate) name: String,
    /// `None` for any value.
    #[serde(default, deserialize_with = "some_value", skip_serializing_if = "Option::is_none")]
    pub(crate) value: Option<Value>,
}

/// Deserialises a value that is present, even if it is null.
fn some_value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl RequestFilter {
    /// Returns whether the filter matches every request.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn validate(&self) -> Result<(), FaultError> {
        let lengths = [
            ("when.targetingKeys", self.targeting_keys.len()),
            ("when.exceptTargetingKeys", self.except_targeting_keys.len()),
            ("when.attributes", self.attributes.len()),
        ];
        for (field, length) in lengths {
            if length > MAX_ENTRIES {
                return Err(FaultError::new(
                    field,
                    format!("has {length} entries, but at most {MAX_ENTRIES} are allowed"),
                ));
            }
        }
        if let Some(Attribute { name, .. }) =
            self.attributes.iter().find(|attribute| attribute.value == Some(Value::Null))
        {
            let problem = format!("the value of {name:?} is null, which is the same as no attribute; leave it out");
            return Err(FaultError::new("when.attributes", problem));
        }
        Ok(())
    }

    pub(crate) fn matches(&self, request: &IncomingRequest) -> bool {
        if request.endpoint == Endpoint::Stream {
            return self.is_empty();
        }
        if self.if_none_match.is_some_and(|expected| expected != request.has_tag) {
            return false;
        }
        self.matches_every_context() || request.context().is_some_and(|context| self.matches_context(context))
    }

    fn matches_every_context(&self) -> bool {
        self.targeting_keys.is_empty() && self.except_targeting_keys.is_empty() && self.attributes.is_empty()
    }

    fn matches_context(&self, context: &Map<String, Value>) -> bool {
        let key = context.get("targetingKey").and_then(Value::as_str);
        let is_key = |listed: &String| key == Some(listed);
        let has = |attribute: &Attribute| match (context.get(&attribute.name), &attribute.value) {
            (None | Some(Value::Null), _) => false,
            (Some(_), None) => true,
            (Some(found), Some(expected)) => is_same(found, expected),
        };
        (self.targeting_keys.is_empty() || self.targeting_keys.iter().any(is_key))
            && !self.except_targeting_keys.iter().any(is_key)
            && self.attributes.iter().all(has)
    }
}

/// Returns whether values are the same. For the service, `1` and `1.0` are the same number.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) if one.is_f64() || other.is_f64() => one.as_f64() == other.as_f64(),
        _ => one == other,
    }
}

/// The parts of a request that faults depend on.
pub(crate) struct IncomingRequest {
    /// One of the three endpoints of the API.
    pub(crate) endpoint: Endpoint,
    /// Whether it has an `If-None-Match` header.
    pub(crate) has_tag: bool,
    body: Bytes,
    context: OnceCell<Option<Map<String, Value>>>,
}

impl IncomingRequest {
    pub(crate) fn new(endpoint: Endpoint, has_tag: bool, body: Bytes) -> Self {
        Self { endpoint, has_tag, body, context: OnceCell::new() }
    }

    /// Returns the fields of the context, including the targeting key, or `None` if the request has no valid context.
    fn context(&self) -> Option<&Map<String, Value>> {
        self.context.get_or_init(|| evaluate::fields_of_body(&self.body).ok()).as_ref()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(filter: &Value, context: &Value) -> bool {
        let filter: RequestFilter = serde_json::from_value(filter.clone()).unwrap();
        filter.validate().unwrap();
        let body = json!({ "context": context }).to_string();
        filter.matches(&IncomingRequest::new(Endpoint::Bulk, false, body.into()))
    }

    #[test]
    fn targeting_keys_are_listed_or_excluded() {
        let poison = json!({"targetingKey": "poison"});
        let cases = [
            (json!({}), [true, true, true]),
            (json!({"targetingKeys": ["poison"]}), [true, false, false]),
            (json!({"targetingKeys": ["poison", "other"]}), [true, true, false]),
            (json!({"exceptTargetingKeys": ["other"]}), [true, false, true]),
            (json!({"targetingKeys": ["poison", "other"], "exceptTargetingKeys": ["poison"]}), [false, true, false]),
        ];
        for (filter, expected) in cases {
            let contexts = [&poison, &json!({"targetingKey": "other"}), &json!({})];
            assert_eq!(contexts.map(|context| matches(&filter, context)), expected, "{filter}");
        }
    }

    #[test]
    fn attributes_match_by_name_or_by_value() {
        let context = json!({
            "plan": "premium", "age": 18, "score": 2.0, "none": null, "roles": ["a"], "big": 9_007_199_254_740_993_u64,
        });
        let cases = [
            (json!([{"name": "plan"}]), true),
            (json!([{"name": "plan", "value": "premium"}]), true),
            (json!([{"name": "plan", "value": "free"}]), false),
            (json!([{"name": "plan"}, {"name": "age", "value": 18}]), true),
            (json!([{"name": "plan"}, {"name": "age", "value": 17}]), false),
            (json!([{"name": "age", "value": 18.0}]), true),
            (json!([{"name": "age", "value": "18"}]), false),
            (json!([{"name": "score", "value": 2}]), true),
            (json!([{"name": "big", "value": 9_007_199_254_740_992_u64}]), false),
            (json!([{"name": "roles", "value": ["a"]}]), true),
            (json!([{"name": "none"}]), false),
            (json!([{"name": "missing"}]), false),
        ];
        for (attributes, expected) in cases {
            assert_eq!(matches(&json!({ "attributes": attributes }), &context), expected, "{attributes}");
        }
    }

    #[test]
    fn a_request_without_a_valid_context_matches_no_filter_of_contexts() {
        let except = RequestFilter { except_targeting_keys: vec!["a".to_owned()], ..RequestFilter::default() };
        let cases =
            [("", false), ("[]", false), (r#"{"context": 1}"#, false), ("{}", true), (r#"{"context": null}"#, true)];
        for (body, expected) in cases {
            let request = |endpoint| IncomingRequest::new(endpoint, true, Bytes::from(body));
            assert_eq!(except.matches(&request(Endpoint::Bulk)), expected, "{body:?}");
            assert!(!except.matches(&request(Endpoint::Stream)), "{body:?}");
            assert!(RequestFilter::default().matches(&request(Endpoint::Bulk)), "{body:?}");
        }
    }

    #[test]
    fn the_tag_is_required_or_excluded() {
        for (expected, has_tag, matches) in
            [(None, true, true), (Some(true), true, true), (Some(true), false, false), (Some(false), true, false)]
        {
            let filter = RequestFilter { if_none_match: expected, ..RequestFilter::default() };
            assert_eq!(filter.matches(&IncomingRequest::new(Endpoint::Bulk, has_tag, Bytes::new())), matches);
            let stream = IncomingRequest::new(Endpoint::Stream, has_tag, Bytes::new());
            assert_eq!(filter.matches(&stream), expected.is_none(), "streams are not evaluations");
        }
    }
}
