//! What can be seen to be wrong with a targeting rule, without a context.

use flagd_evaluation_engine::Operator;
use open_feature::EvaluationContext;
use serde_json::{Map, Value, json};

use crate::flags::error::DefinitionError;

/// Checks a flag's rule: its operators, and the variants that it names.
pub(crate) fn check(rule: &Value, variants: &Map<String, Value>) -> Result<(), DefinitionError> {
    known_operators(&Operator::default(), rule, "targeting")?;
    known_variants(variants, rule, "targeting")
}

/// Checks that a rule has only operators that there are. In rules each object of one field is an operator with its arguments.
fn known_operators(operator: &Operator, rule: &Value, place: &str) -> Result<(), DefinitionError> {
    match rule {
        Value::Object(fields) => fields.iter().try_for_each(|(name, arguments)| {
            let place = format!("{place}.{name}");
            // The engine has no list of them. It finds an unknown one before it looks at the arguments.
            let outcome = operator.apply("", &json!({name: []}).to_string(), &EvaluationContext::default());
            if fields.len() == 1 && outcome.is_err_and(|error| error.to_string().contains("InvalidOperator")) {
                return Err(DefinitionError::new(place, "is no operator of targeting rules"));
            }
            known_operators(operator, arguments, &place)
        }),
        Value::Array(items) => (0..)
            .zip(items)
            .try_for_each(|(index, item): (usize, _)| known_operators(operator, item, &format!("{place}[{index}]"))),
        _ => Ok(()),
    }
}

/// Checks that what a rule chooses by name is a variant, as far as it is written there: in `if` and in `fractional`.
fn known_variants(variants: &Map<String, Value>, rule: &Value, place: &str) -> Result<(), DefinitionError> {
    let check = |chosen: &Value, place: String| match chosen {
        Value::String(name) if !variants.contains_key(name) => {
            let names: Vec<_> = variants.keys().map(String::as_str).collect();
            Err(DefinitionError::new(place, format!("{chosen} is none of the variants {}", names.join(", "))))
        }
        Value::Object(_) => known_variants(variants, chosen, &place),
        _ => Ok(()),
    };
    if let Some(Value::Array(arms)) = rule.get("if") {
        for (index, arm) in arms.iter().enumerate() {
            // Conditions and outcomes in turn, and at the end perhaps the outcome for all others.
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
    fn a_variant_that_there_is_not_is_found_where_it_is_written() {
        let variants = Map::from_iter([("on".to_owned(), json!(true)), ("off".to_owned(), json!(false))]);
        let cases = [
            (
                json!({"if": [true, "on", {"if": [true, "of"]}]}),
                "targeting.if[2].if[1]: \"of\" is none of the variants off, on",
            ),
            (json!({"if": [true, "on", "none"]}), "targeting.if[2]: \"none\""),
            (json!({"fractional": [["on", 50], ["no", 50]]}), "targeting.fractional[1]: \"no\""),
        ];
        for (rule, expected) in cases {
            let text = known_variants(&variants, &rule, "targeting").unwrap_err().to_string();
            assert!(text.contains(expected), "{text:?} lacks {expected:?}");
        }
        for rule in [
            json!({"if": [{"==": [{"var": "plan"}, "premium"]}, "on", null]}),
            json!({"if": ["on"]}),
            json!({"fractional": [{"var": "email"}, ["on", 1], ["off"]]}),
            json!({"cat": ["o", "n"]}),
        ] {
            assert_eq!(known_variants(&variants, &rule, "targeting"), Ok(()), "{rule}");
        }
    }
}
