//! Removes the values of a context from text that the service sends.

use std::{cell::OnceCell, cmp::Reverse};

use serde_json::Value;

use crate::sanitize::printable;

/// Maximum length of the text that is kept, in bytes. It is limited because the text is searched for each value.
const MAX_TEXT: usize = 1_024;

/// Minimum length of a value that is replaced, in bytes. Shorter values occur in ordinary text.
const MIN_VALUE: usize = 3;

/// Maximum number of values of a context that are searched for. Text about a context with more values is not kept.
const MAX_VALUES: usize = 256;

/// Replaces the values of a context in text from the service.
#[derive(Debug)]
pub(crate) struct Redactor<'a> {
    context: &'a [u8],
    /// The values, longest first, because a longer value may contain a shorter one. Collected when they are first needed.
    values: OnceCell<Vec<String>>,
}

impl<'a> Redactor<'a> {
    pub(crate) fn new(context: &'a [u8]) -> Self {
        Self { context, values: OnceCell::new() }
    }

    /// Returns text that can be logged: printable, of limited length, and with `…` instead of the targeting key and the
    /// attributes, which some services repeat in their errors. Also returns whether anything was replaced.
    pub(crate) fn redact(&self, text: &str) -> (String, bool) {
        let values = self.values.get_or_init(|| {
            let mut values = Vec::new();
            collect(&serde_json::from_slice(self.context).unwrap_or_default(), &mut values);
            values.retain(|value| value.len() >= MIN_VALUE);
            values.sort_unstable_by_key(|value| Reverse(value.len()));
            values
        });
        if text.len() > MAX_TEXT || values.len() > MAX_VALUES {
            return (format!("({} bytes)", text.len()), false);
        }
        let mut redacted = text.to_owned();
        for value in values.iter().filter(|value| text.contains(value.as_str())) {
            redacted = redacted.replace(value.as_str(), "…");
        }
        (printable(&redacted), redacted != text)
    }
}

/// Collects the values, both as they are and as they are written in JSON.
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
    use serde_json::json;

    use super::*;

    #[test]
    fn values_of_the_context_are_not_kept() {
        let context = br#"{"context":{"targetingKey":"alice","age":4711,"name":"alice \"x\" smith","ok":true,"tags":["vip","de"]}}"#;
        let redactor = Redactor::new(context);
        let cases = [
            ("alice has no plan", "… has no plan"),
            ("no rule for alice \"x\" smith (4711)", "no rule for … (…)"),
            (r#"{"name":"alice \"x\" smith"}"#, r#"{"name":"…"}"#),
            ("vip in de is true", "… in de is true"),
            ("the targetingKey is missing\n", "the targetingKey is missing"),
        ];
        for (text, expected) in cases {
            assert_eq!(redactor.redact(text), (expected.to_owned(), expected.contains('…')));
        }
        assert_eq!(redactor.redact(&"alice".repeat(1_000)).0, "(5000 bytes)");
        assert_eq!(Redactor::new(b"no context").redact("text"), ("text".to_owned(), false));
        let many: Vec<_> = (0..300).map(|number| format!("value {number}")).collect();
        assert_eq!(Redactor::new(json!(many).to_string().as_bytes()).redact("text").0, "(4 bytes)");
    }
}
