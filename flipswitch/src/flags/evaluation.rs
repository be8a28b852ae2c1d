//! One evaluated flag, and the rules for reading its value as a type.

use std::fmt;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{error::FlagError, flag_type::FlagType, sanitize::printable};

/// The result of evaluating one flag for one context, as the service sent it.
///
/// [`Flags::evaluation`](crate::Flags::evaluation) returns it for one flag, and [`Flags::iter`](crate::Flags::iter) for all
/// flags.
///
/// ```
/// use flipswitch::{Context, FlagError, FlipswitchProvider, serde_json::json};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), FlagError> {
/// let provider = FlipswitchProvider::in_memory(json!({"max-items": 10}));
/// let flags = provider.flags(Context::user("user-123")).await;
/// let evaluation = flags.evaluation("max-items")?;
/// assert_eq!(evaluation.as_i64(), Some(10));
/// assert_eq!(evaluation.to_string(), "max-items (integer): 10 [reason=STATIC]");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct FlagEvaluation {
    /// Key of the flag.
    pub key: String,
    /// Value of the flag. Null if the service defers to the default in the code: the flag is disabled, or has no default variant.
    pub value: Value,
    /// Type of the flag as declared by the service, or otherwise the type of the value.
    pub flag_type: FlagType,
    /// Reason for this value as the service gives it (`STATIC`, `TARGETING_MATCH`, …), or `UNKNOWN` if it gives none.
    pub reason: String,
    /// Name of the chosen variant, if the service gave one.
    pub variant: Option<String>,
    /// Further metadata of the flag.
    pub metadata: Map<String, Value>,
}

impl FlagEvaluation {
    /// Returns the value if it is a boolean.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        self.value.as_bool()
    }

    /// Returns the value if it is a whole number within 64 bits. `42.0` and `4.2e1` are read as the whole number 42.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        as_i64(&self.value)
    }

    /// Returns the value if it is a number. For a whole number beyond 2⁵³, returns the nearest double.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        self.value.as_f64()
    }

    /// Returns the value if it is a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        self.value.as_str()
    }

    /// Returns the value as compact JSON. A whole number of an integer flag is written without a fraction, even if it was
    /// sent with one.
    #[must_use]
    pub fn value_as_string(&self) -> String {
        match (self.flag_type, self.as_i64()) {
            (FlagType::Integer, Some(number)) => number.to_string(),
            _ => self.value.to_string(),
        }
    }

    /// Deserialises the value. A float without a fraction is accepted as a whole number, as in
    /// [`as_i64`](Self::as_i64).
    pub(crate) fn read_as<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        read_as(&self.value)
    }

    /// Returns the error for a value that cannot be read as `expected`: it is null, or has a different type.
    pub(crate) fn mismatch(&self, expected: FlagType) -> FlagError {
        if self.value.is_null() {
            FlagError::NoValue { reason: printable(&self.reason) }
        } else {
            FlagError::TypeMismatch { expected, found: FlagType::of_value(&self.value) }
        }
    }
}

/// Shows the key, the type, the value, the reason and, if there is one, the variant:
/// `color (string): "blue" [reason=TARGETING_MATCH, variant=v2]`.
impl fmt::Display for FlagEvaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, flag_type, reason, .. } = self;
        write!(f, "{key} ({flag_type}): {} [reason={reason}", self.value_as_string())?;
        if let Some(variant) = &self.variant {
            write!(f, ", variant={variant}")?;
        }
        f.write_str("]")
    }
}

/// Deserialises a value like [`FlagEvaluation::read_as`].
pub(crate) fn read_as<T: DeserializeOwned>(value: &Value) -> serde_json::Result<T> {
    T::deserialize(value).or_else(|error| match as_i64(value) {
        Some(whole) if value.is_f64() => T::deserialize(Value::from(whole)),
        _ => Err(error),
    })
}

/// Returns a value like [`FlagEvaluation::as_i64`].
fn as_i64(value: &Value) -> Option<i64> {
    let Value::Number(number) = value else { return None };
    number.as_i64().or_else(|| number.as_f64().filter(|_| number.is_f64()).and_then(whole))
}

/// Converts a float without a fraction to an integer, if it is within 64 bits.
#[expect(clippy::cast_possible_truncation, reason = "the range is checked, and the fraction is zero")]
fn whole(number: f64) -> Option<i64> {
    // 2⁶³ itself is the first double that is too large; the least i64 is a double.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    (number.fract() == 0.0 && (-LIMIT..LIMIT).contains(&number)).then_some(number as i64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn flag(value: Value, metadata: Value) -> FlagEvaluation {
        let Value::Object(metadata) = metadata else { panic!("metadata is an object") };
        FlagEvaluation {
            key: "f".into(),
            flag_type: FlagType::of(&value, &metadata),
            value,
            reason: "STATIC".into(),
            variant: None,
            metadata,
        }
    }

    #[test]
    fn numbers_are_read_as_integers_and_floats_by_their_value() {
        let cases = [
            ("42", Some(42), Some(42.0)),
            ("42.0", Some(42), Some(42.0)),
            ("4.2e1", Some(42), Some(42.0)),
            ("-0.0", Some(0), Some(-0.0)),
            ("3.25", None, Some(3.25)),
            ("9007199254740993", Some(9_007_199_254_740_993), Some(9_007_199_254_740_992.0)),
            ("9223372036854775807", Some(i64::MAX), Some(9_223_372_036_854_775_807.0)),
            ("-9223372036854775808", Some(i64::MIN), Some(-9_223_372_036_854_775_808.0)),
            ("9223372036854775808", None, Some(9_223_372_036_854_775_808.0)),
            ("9223372036854775808.0", None, Some(9_223_372_036_854_775_808.0)),
            ("1e300", None, Some(1e300)),
            ("3.4028234663852886e+38", None, Some(f64::from(f32::MAX))),
            ("\"42\"", None, None),
            ("true", None, None),
        ];
        for (text, integer, float) in cases {
            let flag = flag(serde_json::from_str(text).unwrap(), json!({}));
            assert_eq!(flag.as_i64(), integer, "{text} as integer");
            assert_eq!(flag.as_f64(), float, "{text} as float");
        }
    }

    #[test]
    fn values_are_shown_as_the_service_documents() {
        let cases = [
            (json!("hello"), json!({}), r#""hello""#),
            (json!(null), json!({}), "null"),
            (json!(true), json!({}), "true"),
            (json!(42.0), json!({"flagType": "integer"}), "42"),
            (json!(42.0), json!({}), "42.0"),
            (json!(42), json!({}), "42"),
            (json!({"a": [1, 2]}), json!({}), r#"{"a":[1,2]}"#),
        ];
        for (value, metadata, expected) in cases {
            assert_eq!(flag(value, metadata).value_as_string(), expected);
        }
        let mut shown = flag(json!(true), json!({}));
        shown.key = "dark-mode".into();
        shown.reason = "DEFAULT".into();
        assert_eq!(shown.to_string(), "dark-mode (boolean): true [reason=DEFAULT]");
        shown.variant = Some("v2".into());
        assert_eq!(shown.to_string(), "dark-mode (boolean): true [reason=DEFAULT, variant=v2]");
    }
}
