//! Validation of targeting rules without a context.

use flagd_evaluation_engine::Operator;
use open_feature::EvaluationContext;
use serde_json::{Map, Value, json};

use crate::flags::error::DefinitionError;

/// Validates the operators of a rule, and the variants that it names.
pub(crate) fn validate(rule: &Value, variants: &Map<String, Value>) -> Result<(), DefinitionError> {
    validate_operators(&Operator::default(), rule, "targeting")?;
    validate_variants(variants, rule, "targeting")
}

/// Validates that each operator exists. In a rule, an object with one field is an operator with its arguments.
fn validate_operators(operator: &Operator, rule: &Value, place: &str) -> Result<(), DefinitionError> {
    match rule {
        Value::Object(fields) => fields.iter().try_for_each(|(name, arguments)| {
            let place = format!("{place}.{name}");
            // The engine has no list of its operators. It rejects an unknown operator before it checks the arguments.
            let outcome = operator.apply("", &json!({name: []}).to_string(), &EvaluationContext::default());
            if fields.len() == 1 && outcome.is_err_and(|error| error.to_string().contains("InvalidOperator")) {
                return Err(DefinitionError::new(place, "is not an operator of targeting rules"));
            }
            validate_operators(operator, arguments, &place)
        }),
        Value::Array(items) => (0..)
            .zip(items)
            .try_for_each(|(index, item): (usize, _)| validate_operators(operator, item, &format!("{place}[{index}]"))),
        _ => Ok(()),
    }
}

/// Validates that the outcomes of `if` and `fractional` are variants, if they are literals.
fn validate_variants(variants: &Map<String, Value>, rule: &Value, place: &str) -> Result<(), DefinitionError> {
    let check = |chosen: &Value, place: String| match chosen {
        Value::String(name) if !variants.contains_key(name) => {
            let names: Vec<_> = variants.keys().map(String::as_str).collect();
            Err(DefinitionError::new(place, format!("{chosen} is not one of the variants {}", names.join(", "))))
        }
        Value::Object(_) => validate_variants(variants, chosen, &place),
        _ => Ok(()),
    };
    if let Some(Value::Array(arms)) = rule.get("if") {
        for (index, arm) in arms.iter().enumerate() {
            // Conditions and outcomes alternate. The last item can be the outcome if no condition holds.
            if index % 2 == 1 || (index + 1 == arms.len() && index > 0) {
                check(arm, format!("{place}.if[{index}]"))?;
            }
        }
    }
    if let Some(Value::Array(buckets)) = rule.get("fractional") {
        for (index, bucket) in buckets.iter().enumerate() {
            if let Some(chosen) = bucket.get(0) {
                check(chosen, format!("{place}.fractional[{index}]"))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_place_of_an_unknown_variant() {
        let variants = Map::from_iter([("on".to_owned(), json!(true)), ("off".to_owned(), json!(false))]);
        let cases = [
            (
                json!({"if": [true, "on", {"if": [true, "of"]}]}),
                "targeting.if[2].if[1]: \"of\" is not one of the variants off, on",
            ),
            (json!({"if": [true, "on", "none"]}), "targeting.if[2]: \"none\""),
            (json!({"fractional": [["on", 50], ["no", 50]]}), "targeting.fractional[1]: \"no\""),
        ];
        for (rule, expected) in cases {
            let text = validate_variants(&variants, &rule, "targeting").unwrap_err().to_string();
            assert!(text.contains(expected), "{text:?} lacks {expected:?}");
        }
        for rule in [
            json!({"if": [{"==": [{"var": "plan"}, "premium"]}, "on", null]}),
            json!({"if": ["on"]}),
            json!({"fractional": [{"var": "email"}, ["on", 1], ["off"]]}),
            json!({"cat": ["o", "n"]}),
        ] {
            assert_eq!(validate_variants(&variants, &rule, "targeting"), Ok(()), "{rule}");
        }
    }
}
