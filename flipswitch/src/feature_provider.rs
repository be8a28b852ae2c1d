//! The OpenFeature provider, which evaluates flags in OpenFeature's terms.

use async_trait::async_trait;
use open_feature::{
    EvaluationContext, EvaluationReason, EvaluationResult, FlagMetadata, FlagMetadataValue, StructValue,
    Value as FeatureValue,
    provider::{FeatureProvider, ProviderMetadata, ProviderStatus, ResolutionDetails},
};
use serde_json::{Map, Number, Value};

use crate::{
    flag_type::FlagType,
    flags::evaluation::FlagEvaluation,
    provider::{flags::Flags, provider::FlipswitchProvider},
    request::{scope::RequestScope, warnings::SetupWarning},
};

/// Metadata field with the service's reason, if the reason of the resolution is `STALE`.
const REASON_FIELD: &str = "serverReason";

#[async_trait]
impl FeatureProvider for FlipswitchProvider {
    /// Starts the provider without waiting for the service, because OpenFeature holds a global lock during the call. Use
    /// [`ready`](FlipswitchProvider::ready) to wait.
    async fn initialize(&mut self, context: &EvaluationContext) {
        if context.targeting_key.is_some() {
            SetupWarning::GlobalTargetingKey.log(self);
        }
        self.start();
    }

    fn status(&self) -> ProviderStatus {
        self.health().state.status()
    }

    fn metadata(&self) -> &ProviderMetadata {
        self.metadata_ref()
    }

    async fn resolve_bool_value(
        &self,
        key: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<bool>> {
        resolve(self, key, context, FlagType::Boolean, FlagEvaluation::as_bool).await
    }

    async fn resolve_int_value(
        &self,
        key: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<i64>> {
        resolve(self, key, context, FlagType::Integer, FlagEvaluation::as_i64).await
    }

    async fn resolve_float_value(
        &self,
        key: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<f64>> {
        resolve(self, key, context, FlagType::Number, FlagEvaluation::as_f64).await
    }

    async fn resolve_string_value(
        &self,
        key: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<String>> {
        resolve(self, key, context, FlagType::String, |flag| flag.as_str().map(str::to_owned)).await
    }

    async fn resolve_struct_value(
        &self,
        key: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<StructValue>> {
        resolve(self, key, context, FlagType::Object, |flag| flag.value.as_object().map(structure)).await
    }
}

/// Evaluates the flags for a context that OpenFeature passes. If the caller runs in a request of this provider, the context of
/// that request fills in missing attributes.
async fn flags(provider: &FlipswitchProvider, context: &EvaluationContext) -> Flags {
    let current = RequestScope::current();
    if let Some(scope) = current.as_ref().and_then(|scope| scope.of(provider)) {
        return scope.flags_with(context).await;
    }
    if context.targeting_key.is_none() {
        if current.is_some() {
            SetupWarning::ClientOfOtherProvider.log(provider);
        } else if provider.has_layers() {
            SetupWarning::ClientOutsideOfRequest.log(provider);
        }
    }
    provider.flags(context).await
}

async fn resolve<T>(
    provider: &FlipswitchProvider,
    key: &str,
    context: &EvaluationContext,
    expected: FlagType,
    read: impl FnOnce(&FlagEvaluation) -> Option<T>,
) -> EvaluationResult<ResolutionDetails<T>> {
    let flags = flags(provider, context).await;
    match flags.read_with(key, None, read) {
        (Some(flag), Some(value)) => Ok(details(value, flag, flags.is_flag_stale(key))),
        _ => Err(flags.read_error(key, expected).to_evaluation_error(key)),
    }
}

/// Combines a value with the variant, reason and metadata of its evaluation.
fn details<T>(value: T, flag: &FlagEvaluation, stale: bool) -> ResolutionDetails<T> {
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

/// Converts metadata. OpenFeature's metadata is flat: a nested value becomes its JSON text.
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

/// Converts a JSON object to OpenFeature's structure.
fn structure(fields: &Map<String, Value>) -> StructValue {
    let fields = fields.iter().filter_map(|(name, value)| Some((name.clone(), feature_value(value)?)));
    StructValue { fields: fields.collect() }
}

/// Converts a JSON value. Returns `None` for null, which OpenFeature does not have: the field or element is left out.
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

/// Converts a number. A whole number within 64 bits remains a whole number.
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
    fn known_reasons_are_mapped_and_others_keep_their_name() {
        for text in ["STATIC", "DEFAULT", "TARGETING_MATCH", "SPLIT", "CACHED", "DISABLED", "UNKNOWN", "ERROR"] {
            let reason = reason(text);
            assert_eq!(reason.to_string(), text);
            assert!(!matches!(reason, EvaluationReason::Other(_)), "{text}");
        }
        assert_eq!(reason("HOLIDAY"), EvaluationReason::Other("HOLIDAY".into()));
    }

    #[test]
    fn nested_metadata_becomes_text() {
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
    fn a_stale_value_keeps_the_services_reason_in_its_metadata() {
        let details = details((), &flag("SPLIT", &json!({})), true);
        assert_eq!(details.reason, Some(EvaluationReason::Other("STALE".into())));
        let metadata = details.flag_metadata.unwrap();
        assert_eq!(metadata.values[REASON_FIELD], "SPLIT".into());
    }

    #[test]
    fn structures_keep_every_value_that_openfeature_has() {
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
