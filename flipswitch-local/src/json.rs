//! The check that a JSON value is an object.

use std::fmt;

use serde_json::{Map, Value};

/// A JSON value that must be an object and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotAnObject {
    /// The name of the value. Empty for a value that the rest of the error names.
    pub(crate) place: &'static str,
    found: &'static str,
}

/// Returns the fields of an object.
///
/// # Errors
///
/// Returns an error that names `place` if the value is not an object.
pub(crate) fn object(place: &'static str, value: Value) -> Result<Map<String, Value>, NotAnObject> {
    match value {
        Value::Object(fields) => Ok(fields),
        Value::Null => Err(NotAnObject { place, found: "null" }),
        Value::Bool(_) => Err(NotAnObject { place, found: "a boolean" }),
        Value::Number(_) => Err(NotAnObject { place, found: "a number" }),
        Value::String(_) => Err(NotAnObject { place, found: "a string" }),
        Value::Array(_) => Err(NotAnObject { place, found: "an array" }),
    }
}

impl NotAnObject {
    /// Returns the problem, without the place.
    pub(crate) fn problem(&self) -> String {
        format!("must be a JSON object, not {}", self.found)
    }
}

impl fmt::Display for NotAnObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        f.write_str(&self.problem())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_names_the_place_and_what_was_found() {
        let cases = [
            (json!(null), "null"),
            (json!(true), "a boolean"),
            (json!(1), "a number"),
            (json!("{}"), "a string"),
            (json!([{}]), "an array"),
        ];
        for (value, found) in cases {
            let error = object("metadata", value).unwrap_err();
            assert_eq!(error.to_string(), format!("metadata: must be a JSON object, not {found}"));
        }
        assert_eq!(object("metadata", json!({"a": 1})).unwrap(), *json!({"a": 1}).as_object().unwrap());
    }
}
