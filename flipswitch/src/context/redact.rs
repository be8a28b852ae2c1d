//! Text of the service without the values of the context that it was sent.

use std::cmp::Reverse;

use serde_json::Value;

use crate::sanitize::printable;

/// Longer text is not kept, in bytes: it would be searched for each value.
const MAX_TEXT: usize = 4_096;

/// Shorter values, in bytes, are not replaced, because they occur in ordinary text.
const MIN_VALUE: usize = 3;

/// Returns text of the service that can be logged: printable, of limited length, and with `…` in place of the targeting key and
/// the attributes of the context, which some services repeat in their errors.
pub(crate) fn redacted(text: &str, context: &[u8]) -> String {
    if text.len() > MAX_TEXT {
        return format!("({} bytes)", text.len());
    }
    let mut values = Vec::new();
    collect(&serde_json::from_slice(context).unwrap_or_default(), &mut values);
    values.retain(|value| value.len() >= MIN_VALUE && text.contains(value.as_str()));
    // A longer value may contain a shorter one.
    values.sort_unstable_by_key(|value| Reverse(value.len()));
    printable(&values.iter().fold(text.to_owned(), |text, value| text.replace(value.as_str(), "…")))
}

/// Collects the values, as they are and as JSON writes them.
fn collect(value: &Value, values: &mut Vec<String>) {
    match value {
        Value::Null | Value::Bool(_) => {}
        Value::Number(number) => values.push(number.to_string()),
        Value::String(text) => {
            let json = value.to_string();
            values.extend(json.get(1..json.len() - 1).filter(|json| json != text).map(str::to_owned));
            values.push(text.clone());
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, values)),
        Value::Object(fields) => fields.values().for_each(|field| collect(field, values)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_context_are_not_kept() {
        let context = br#"{"context":{"targetingKey":"alice","age":4711,"name":"alice \"x\" smith","ok":true,"tags":["vip","de"]}}"#;
        let cases = [
            ("alice has no plan", "… has no plan"),
            ("no rule for alice \"x\" smith (4711)", "no rule for … (…)"),
            (r#"{"name":"alice \"x\" smith"}"#, r#"{"name":"…"}"#),
            ("vip in de is true", "… in de is true"),
            ("the targetingKey is missing\n", "the targetingKey is missing"),
        ];
        for (text, expected) in cases {
            assert_eq!(redacted(text, context), expected);
        }
        assert_eq!(redacted(&"alice".repeat(1_000), context), "(5000 bytes)");
        assert_eq!(redacted("text", b"no context"), "text");
    }
}
