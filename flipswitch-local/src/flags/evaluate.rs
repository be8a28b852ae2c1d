//! Evaluates flags for a context, and returns OFREP items.

use flagd_evaluation_engine::Operator;
use open_feature::{EvaluationContext, EvaluationContextFieldValue};
use serde_json::{Map, Value, json};

use crate::{
    flags::definition::{self, Definition, Flagd},
    json,
};

/// Evaluates flags with the operators of targeting rules.
#[derive(Default)]
pub(crate) struct Evaluator {
    operator: Operator,
}

impl Evaluator {
    /// Evaluates one flag to an OFREP item: `{"key", "value", ..}` or `{"key", "errorCode", ..}`.
    pub(crate) fn item(&self, key: &str, definition: &Definition, context: &EvaluationContext) -> Value {
        match definition {
            Definition::Plain(value) => {
                let flag_type = definition::value_type(value);
                let mut item = json!({"key": key, "reason": "STATIC", "metadata": metadata(&Map::new(), flag_type)});
                if !value.is_null() {
                    item["value"] = value.clone();
                }
                item
            }
            Definition::Flagd(flag) => match self.choose(key, flag, context) {
                Ok(choice) => item(key, flag, choice),
                Err((code, details)) => json!({"key": key, "errorCode": code, "errorDetails": details}),
            },
        }
    }

    fn choose<'a>(
        &self,
        key: &str,
        flag: &'a Flagd,
        context: &EvaluationContext,
    ) -> Result<Choice<'a>, (&'static str, String)> {
        let default = flag.default_variant.as_deref();
        if !flag.enabled {
            return Ok(Choice { variant: None, reason: "DISABLED" });
        }
        let Some(rule) = &flag.targeting else {
            let reason = if default.is_some() { "STATIC" } else { "DEFAULT" };
            return Ok(Choice { variant: default, reason });
        };
        match self.operator.apply(key, rule, context) {
            Ok(None) => Ok(Choice { variant: default, reason: "DEFAULT" }),
            Ok(Some(name)) => match flag.variants.get_key_value(&name) {
                Some((name, _)) => Ok(Choice { variant: Some(name), reason: "TARGETING_MATCH" }),
                None => Err(("GENERAL", format!("targeting chose {name:?}, which is not one of the variants"))),
            },
            Err(error) => Err(("PARSE_ERROR", format!("targeting: {error}"))),
        }
    }
}

/// The variant that was chosen, if any, and the reason.
struct Choice<'a> {
    variant: Option<&'a str>,
    reason: &'static str,
}

fn item(key: &str, flag: &Flagd, Choice { variant, reason }: Choice<'_>) -> Value {
    let metadata = metadata(&flag.metadata, Some(flag.flag_type));
    let mut item = json!({"key": key, "reason": reason, "metadata": metadata});
    if let Some((variant, value)) = variant.and_then(|variant| flag.variants.get_key_value(variant)) {
        item["variant"] = json!(variant);
        item["value"] = value.clone();
    }
    item
}

fn metadata(own: &Map<String, Value>, flag_type: Option<&'static str>) -> Value {
    let mut metadata = own.clone();
    if let Some(flag_type) = flag_type {
        metadata.entry("flagType").or_insert_with(|| json!(flag_type));
    }
    Value::Object(metadata)
}

/// The error of an invalid evaluation request, as OFREP expresses it.
#[derive(Debug, PartialEq)]
pub(crate) struct ContextError {
    pub(crate) code: &'static str,
    pub(crate) details: String,
}

impl ContextError {
    fn parse(details: String) -> Self {
        Self { code: "PARSE_ERROR", details }
    }

    fn invalid(details: String) -> Self {
        Self { code: "INVALID_CONTEXT", details }
    }
}

/// Reads the context from the body of an OFREP request. A missing context is empty.
pub(crate) fn context_of_body(body: &[u8]) -> Result<EvaluationContext, ContextError> {
    context_of_fields(fields_of_body(body)?)
}

/// Reads the fields of the context, including the targeting key, from the body of an OFREP request.
pub(crate) fn fields_of_body(body: &[u8]) -> Result<Map<String, Value>, ContextError> {
    let body = serde_json::from_slice(body).map_err(|error| ContextError::parse(error.to_string()))?;
    let mut body = json::object("body", body).map_err(|error| ContextError::parse(error.to_string()))?;
    match body.remove("context") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(value) => fields(value),
    }
}

fn fields(context: Value) -> Result<Map<String, Value>, ContextError> {
    json::object("context", context).map_err(|error| ContextError::invalid(error.to_string()))
}

/// Reads a context.
pub(crate) fn context(value: Value) -> Result<EvaluationContext, ContextError> {
    context_of_fields(fields(value)?)
}

fn context_of_fields(fields: Map<String, Value>) -> Result<EvaluationContext, ContextError> {
    let mut context = EvaluationContext::default();
    for (name, value) in fields {
        match value {
            Value::String(key) if name == "targetingKey" => context.targeting_key = Some(key),
            _ if name == "targetingKey" => {
                return Err(ContextError::invalid("context.targetingKey: must be a string".to_owned()));
            }
            // To rules, a field that is null is the same as a missing one.
            Value::Null => {}
            value => context.add_custom_field(name, field(&value)),
        }
    }
    Ok(context)
}

fn field(value: &Value) -> EvaluationContextFieldValue {
    match value {
        Value::Bool(value) => (*value).into(),
        Value::String(value) => value.as_str().into(),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => integer.into(),
            None => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Value::Null | Value::Array(_) | Value::Object(_) => EvaluationContextFieldValue::new_struct(structure(value)),
    }
}

/// Converts a nested value for the evaluation engine.
///
/// OpenFeature's values, and thus the engine's contexts, have no null. Since the engine converts a context to JSON for
/// its rules, NaN stands for null: JSON has no NaN, so it becomes null there.
fn structure(value: &Value) -> open_feature::Value {
    use open_feature::{StructValue, Value as FeatureValue};
    match value {
        Value::Null => FeatureValue::Float(f64::NAN),
        Value::Bool(value) => FeatureValue::Bool(*value),
        Value::String(value) => FeatureValue::String(value.clone()),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => FeatureValue::Int(integer),
            None => FeatureValue::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::Array(values) => FeatureValue::Array(values.iter().map(structure).collect()),
        Value::Object(fields) => FeatureValue::Struct(StructValue {
            fields: fields.iter().map(|(name, value)| (name.clone(), structure(value))).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluate(flag: &Value, context: &Value) -> Value {
        let definition = Definition::parse("x", flag.clone()).unwrap();
        let body = json!({ "context": context }).to_string();
        Evaluator::default().item("x", &definition, &context_of_body(body.as_bytes()).unwrap())
    }

    fn flag(targeting: &Value) -> Value {
        json!({
            "state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off", "targeting": targeting,
        })
    }

    #[test]
    fn rules_match_every_type_of_field() {
        let cases = [
            (json!({"==": [{"var": "plan"}, "premium"]}), json!({"plan": "premium"})),
            (json!({"==": [{"var": "targetingKey"}, "u1"]}), json!({"targetingKey": "u1"})),
            (json!({">": [{"var": "age"}, 17]}), json!({"age": 18})),
            (json!({"in": ["admin", {"var": "roles"}]}), json!({"roles": ["user", "admin"]})),
            (json!({"==": [{"var": "address.country"}, "DE"]}), json!({"address": {"country": "DE", "zip": null}})),
            (json!({"starts_with": [{"var": "email"}, "a@"]}), json!({"email": "a@b.c"})),
            (json!({"sem_ver": [{"var": "version"}, ">=", "2.0.0"]}), json!({"version": "2.1.0"})),
            (json!({"!": [{"var": "missing"}]}), json!({"missing": null})),
        ];
        for (condition, context) in cases {
            let flag = flag(&json!({"if": [condition, "on", null]}));
            let hit = evaluate(&flag, &context);
            assert_eq!((&hit["value"], &hit["reason"]), (&json!(true), &json!("TARGETING_MATCH")), "{condition}");
            if condition["!"].is_null() {
                let miss = evaluate(&flag, &json!({}));
                assert_eq!((&miss["value"], &miss["reason"]), (&json!(false), &json!("DEFAULT")), "{condition}");
            }
        }
    }

    #[test]
    fn null_within_a_field_stays_null() {
        let has_empty_role = flag(&json!({"if": [{"in": ["", {"var": "roles"}]}, "on", null]}));
        assert_eq!(evaluate(&has_empty_role, &json!({"roles": [""]}))["value"], true);
        assert_eq!(evaluate(&has_empty_role, &json!({"roles": [null]}))["value"], false);
        // A split by a whole structure includes the null as well.
        let variants: Map<_, _> = (0..17).map(|number| (format!("v{number}"), json!(number))).collect();
        let shares = variants.keys().map(|variant| json!([variant, 1]));
        let shares: Vec<_> = std::iter::once(json!({"var": "address"})).chain(shares).collect();
        let split = json!({"state": "ENABLED", "variants": variants, "targeting": {"fractional": shares}});
        let value = |zip: &Value| evaluate(&split, &json!({"address": zip}))["value"].clone();
        assert_ne!(value(&json!({"city": "Ulm", "zip": null})), value(&json!({"city": "Ulm"})));
    }

    #[test]
    fn a_split_is_stable_and_uses_every_variant() {
        let flag = flag(&json!({"fractional": [["on", 50], ["off", 50]]}));
        let value = |user: usize| evaluate(&flag, &json!({"targetingKey": format!("user-{user}")}))["value"].clone();
        let values: Vec<_> = (0..50).map(value).collect();
        assert!(values.contains(&json!(true)) && values.contains(&json!(false)));
        assert_eq!(values, (0..50).map(value).collect::<Vec<_>>());
    }

    #[test]
    fn items_have_the_value_the_variant_and_the_reason() {
        let static_flag = json!({"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": "a"});
        let disabled = json!({"state": "DISABLED", "variants": {"a": "s"}, "defaultVariant": "a"});
        let code_default = json!({"state": "ENABLED", "variants": {"a": 0.5}, "defaultVariant": null});
        let cases = [
            (
                static_flag,
                json!({"key": "x", "value": 1, "variant": "a", "reason": "STATIC", "metadata": {"flagType": "integer"}}),
            ),
            (disabled, json!({"key": "x", "reason": "DISABLED", "metadata": {"flagType": "string"}})),
            (code_default, json!({"key": "x", "reason": "DEFAULT", "metadata": {"flagType": "decimal"}})),
            (
                json!({"value": {"a": 1}}),
                json!({"key": "x", "value": {"a": 1}, "reason": "STATIC", "metadata": {"flagType": "object"}}),
            ),
            (json!({"value": null}), json!({"key": "x", "reason": "STATIC", "metadata": {}})),
            (
                flag(&json!({"if": [true, {"cat": ["oo", "ps"]}]})),
                json!({
                    "key": "x", "errorCode": "GENERAL",
                    "errorDetails": "targeting chose \"oops\", which is not one of the variants",
                }),
            ),
        ];
        for (flag, expected) in cases {
            assert_eq!(evaluate(&flag, &json!({})), expected);
        }
        let broken = evaluate(&flag(&json!({"no_such_operator": [1]})), &json!({}));
        assert_eq!(broken["errorCode"], "PARSE_ERROR", "{broken}");
    }

    #[test]
    fn a_boolean_outcome_is_the_name_of_a_variant() {
        let flag = json!({
            "state": "ENABLED", "variants": {"true": 1, "false": 0}, "defaultVariant": "false",
            "targeting": {"==": [1, 1]},
        });
        assert_eq!(evaluate(&flag, &json!({}))["variant"], "true");
    }

    #[test]
    fn floats_keep_their_precision() {
        let context = context_of_body(br#"{"context":{"amount":3.4028234663852886e+38}}"#).unwrap();
        assert_eq!(context.custom_fields["amount"], f64::from(f32::MAX).into());
    }

    #[test]
    fn invalid_contexts_are_rejected() {
        let cases = [
            ("", "PARSE_ERROR", "EOF"),
            ("[]", "PARSE_ERROR", "body: must be a JSON object, not an array"),
            (r#"{"context":1}"#, "INVALID_CONTEXT", "context: must be a JSON object, not a number"),
            (r#"{"context":{"targetingKey":1}}"#, "INVALID_CONTEXT", "context.targetingKey: must be a string"),
        ];
        for (body, code, details) in cases {
            let error = context_of_body(body.as_bytes()).unwrap_err();
            assert_eq!(error.code, code, "{body}");
            assert!(error.details.contains(details), "{body}: {}", error.details);
        }
        for body in ["{}", r#"{"context":null}"#] {
            assert_eq!(context_of_body(body.as_bytes()).unwrap(), EvaluationContext::default());
        }
    }
}
