//! The types of flags.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

/// The type of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FlagType {
    /// True or false.
    Boolean,
    /// Text.
    String,
    /// A whole number within 64 bits.
    Integer,
    /// A number with a fraction, or a whole number outside 64 bits.
    Number,
    /// A JSON object.
    Object,
    /// A JSON array.
    Array,
    /// No value.
    Null,
}

impl FlagType {
    /// Returns the type that the service declares in `metadata.flagType`, or otherwise the type of the value.
    pub(crate) fn of(value: &Value, metadata: &Map<String, Value>) -> Self {
        match metadata.get("flagType").and_then(Value::as_str) {
            Some("boolean") => Self::Boolean,
            Some("string") => Self::String,
            Some("integer") => Self::Integer,
            Some("decimal") => Self::Number,
            _ => Self::of_value(value),
        }
    }

    /// Returns whether a value of this type can replace a value of the type `other`.
    pub(crate) fn fits(self, other: Self) -> bool {
        let is_number = |kind| matches!(kind, Self::Integer | Self::Number);
        self == other || other == Self::Null || is_number(self) && is_number(other)
    }

    /// Returns the type of a JSON value.
    pub(crate) fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Boolean,
            Value::String(_) => Self::String,
            Value::Array(_) => Self::Array,
            Value::Object(_) => Self::Object,
            Value::Number(number) if number.is_i64() => Self::Integer,
            Value::Number(_) => Self::Number,
        }
    }
}

impl fmt::Display for FlagType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boolean => "boolean",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Object => "object",
            Self::Array => "array",
            Self::Null => "null",
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_declared_type_wins_over_the_inferred_one() {
        let cases = [
            (json!(true), json!({}), FlagType::Boolean),
            (json!("a"), json!({"flagType": "string"}), FlagType::String),
            (json!(1), json!({}), FlagType::Integer),
            (json!(1.0), json!({}), FlagType::Number),
            (json!(u64::MAX), json!({}), FlagType::Number),
            (json!(1.0), json!({"flagType": "integer"}), FlagType::Integer),
            (json!(1), json!({"flagType": "decimal"}), FlagType::Number),
            (json!({"a": 1}), json!({"flagType": "json"}), FlagType::Object),
            (json!([1]), json!({"flagType": 7}), FlagType::Array),
            (json!(null), json!({}), FlagType::Null),
            (json!(null), json!({"flagType": "boolean"}), FlagType::Boolean),
        ];
        for (value, metadata, expected) in cases {
            assert_eq!(FlagType::of(&value, metadata.as_object().unwrap()), expected, "{value} {metadata}");
        }
    }
}
