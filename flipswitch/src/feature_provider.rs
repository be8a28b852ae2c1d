//! Our evaluations in OpenFeature's terms.

use open_feature::{
    EvaluationReason, FlagMetadata, FlagMetadataValue, StructValue, Value as FeatureValue, provider::ResolutionDetails,
};
use serde_json::{Map, Number, Value};

use crate::FlagEvaluation;

/// Metadata field that keeps the service's reason where the reason itself says that the value is stale.
const REASON_FIELD: &str = "serverReason";

/// Puts a value together with what the service says about it.
pub(crate) fn details<T>(value: T, flag: &FlagEvaluation, stale: bool) -> ResolutionDetails<T> {
    let mut metadata = FlagMetadata::default();
    for (name, value) in &flag.metadata {
        if let Some(value) = metadata_value(value) {
            metadata.add_value(name, value);
        }
    }
    let reason = if stale {
        metadata.add_value(REASON_FIELD, flag.reason.clone());
        EvaluationReason::Other("STALE".to_owned())
    } else {
        reason(&flag.reason)
    };
    ResolutionDetails { value, variant: flag.variant.clone(), reason: Some(reason), flag_metadata: Some(metadata) }
}

fn reason(text: &str) -> EvaluationReason {
    match text {
        "STATIC" => EvaluationReason::Static,
        "DEFAULT" => EvaluationReason::Default,
        "TARGETING_MATCH" => EvaluationReason::TargetingMatch,
        "SPLIT" => EvaluationReason::Split,
        "CACHED" => EvaluationReason::Cached,
        "DISABLED" => EvaluationReason::Disabled,
        "UNKNOWN" => EvaluationReason::Unknown,
        "ERROR" => EvaluationReason::Error,
        other => EvaluationReason::Other(other.to_owned()),
    }
}

/// OpenFeature's metadata is flat: anything nested is kept as its JSON text.
fn metadata_value(value: &Value) -> Option<FlagMetadataValue> {
    match value {
        Value::Null => None,
        Value::Bool(value) => Some((*value).into()),
        Value::String(value) => Some(value.as_str().into()),
        Value::Number(number) => Some(match number.as_i64() {
            Some(integer) => integer.into(),
            None => number.as_f64().unwrap_or(f64::NAN).into(),
        }),
        nested => Some(nested.to_string().into()),
    }
}

/// A JSON object as OpenFeature's structure.
pub(crate) fn structure(fields: &Map<String, Value>) -> StructValue {
    let fields = fields.iter().filter_map(|(name, value)| Some((name.clone(), feature_value(value)?)));
    StructValue { fields: fields.collect() }
}

/// `None` for null, which OpenFeature's values do not have: the field or element is left out.
fn feature_value(value: &Value) -> Option<FeatureValue> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) => FeatureValue::Bool(*value),
        Value::String(value) => FeatureValue::String(value.clone()),
        Value::Number(number) => self::number(number),
        Value::Array(values) => FeatureValue::Array(values.iter().filter_map(feature_value).collect()),
        Value::Object(fields) => FeatureValue::Struct(structure(fields)),
    })
}

/// A whole number stays one if 64 bits with a sign can hold it.
fn number(number: &Number) -> FeatureValue {
    match number.as_i64() {
        Some(integer) => FeatureValue::Int(integer),
        None => FeatureValue::Float(number.as_f64().unwrap_or(f64::NAN)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::FlagType;

    fn flag(reason: &str, metadata: &Value) -> FlagEvaluation {
        FlagEvaluation {
            key: "f".into(),
            value: json!(true),
            flag_type: FlagType::Boolean,
            reason: reason.into(),
            variant: Some("on".into()),
            metadata: metadata.as_object().unwrap().clone(),
        }
    }

    #[test]
    fn reasons_keep_their_meaning_and_unknown_ones_their_name() {
        for text in ["STATIC", "DEFAULT", "TARGETING_MATCH", "SPLIT", "CACHED", "DISABLED", "UNKNOWN", "ERROR"] {
            let reason = reason(text);
            assert_eq!(reason.to_string(), text);
            assert!(!matches!(reason, EvaluationReason::Other(_)), "{text}");
        }
        assert_eq!(reason("HOLIDAY"), EvaluationReason::Other("HOLIDAY".into()));
    }

    #[test]
    fn metadata_is_kept_whatever_its_shape() {
        let metadata = json!({"s": "x", "b": true, "i": 7, "f": 0.5, "l": [1, {"a": 2}], "n": null});
        let details = details((), &flag("SPLIT", &metadata), false);
        assert_eq!(details.reason, Some(EvaluationReason::Split));
        assert_eq!(details.variant.as_deref(), Some("on"));
        let expected = FlagMetadata::default()
            .with_value("s", "x")
            .with_value("b", true)
            .with_value("i", 7_i64)
            .with_value("f", 0.5)
            .with_value("l", r#"[1,{"a":2}]"#);
        assert_eq!(details.flag_metadata, Some(expected));
    }

    #[test]
    fn a_stale_value_says_so_and_keeps_the_services_reason() {
        let details = details((), &flag("SPLIT", &json!({})), true);
        assert_eq!(details.reason, Some(EvaluationReason::Other("STALE".into())));
        let metadata = details.flag_metadata.unwrap();
        assert_eq!(metadata.values[REASON_FIELD], "SPLIT".into());
    }

    #[test]
    fn structures_keep_every_value_that_openfeature_can_hold() {
        let json = json!({
            "b": true, "i": 9_007_199_254_740_993_i64, "f": 1.5, "u": u64::MAX, "s": "x", "n": null, "l": [1, null, [2]],
            "o": {"k": {}},
        });
        let expected = StructValue::default()
            .with_field("b", true)
            .with_field("i", 9_007_199_254_740_993_i64)
            .with_field("f", 1.5)
            .with_field("u", 18_446_744_073_709_551_615.0)
            .with_field("s", "x")
            .with_field("l", FeatureValue::Array(vec![1.into(), FeatureValue::Array(vec![2.into()])]))
            .with_field("o", StructValue::default().with_field("k", StructValue::default()));
        assert_eq!(structure(json.as_object().unwrap()), expected);
    }
}
