//! Flag manifests in the format of the OpenFeature CLI, and the flags of a service in the same form.

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Number, Value};

/// The type of a flag in a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlagType {
    Boolean,
    String,
    Integer,
    Float,
    Object,
}

impl FlagType {
    /// Parses a type. Accepts the same names as the CLI.
    fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "boolean" | "bool" => Self::Boolean,
            "string" => Self::String,
            "integer" | "int" => Self::Integer,
            "float" | "number" | "double" => Self::Float,
            "object" | "json" => Self::Object,
            _ => return None,
        })
    }

    /// Returns the type of a value, or `None` for null.
    fn of_value(value: &Value) -> Option<Self> {
        Some(match value {
            Value::Null => return None,
            Value::Bool(_) => Self::Boolean,
            Value::String(_) => Self::String,
            Value::Number(number) if number.is_i64() || number.is_u64() || is_whole(number) => Self::Integer,
            Value::Number(_) => Self::Float,
            Value::Array(_) | Value::Object(_) => Self::Object,
        })
    }

    /// Returns whether a flag of this type can be read from values of the type `other`.
    pub(crate) fn reads(self, other: Self) -> bool {
        self == other || self == Self::Float && other == Self::Integer
    }

    /// Returns the empty value of the type.
    fn empty(self) -> Value {
        match self {
            Self::Boolean => false.into(),
            Self::String => "".into(),
            Self::Integer => 0.into(),
            Self::Float => 0.0.into(),
            Self::Object => Map::new().into(),
        }
    }
}

/// Returns whether a number with a fraction of zero can be read as a 64-bit whole number.
fn is_whole(number: &Number) -> bool {
    let is_exact = |number: f64| number.fract() == 0.0 && number.abs() < 9_223_372_036_854_775_808.0;
    number.as_f64().is_some_and(is_exact)
}

impl fmt::Display for FlagType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boolean => "boolean",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Float => "float",
            Self::Object => "object",
        })
    }
}

/// A flag of a manifest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Flag {
    pub(crate) flag_type: FlagType,
    pub(crate) default: Value,
    pub(crate) description: String,
}

impl Flag {
    /// Returns whether values of this type fit. A flag with the default null is optional, and its type is not known.
    pub(crate) fn fits(&self, found: FlagType) -> bool {
        self.flag_type.reads(found) || self.flag_type == FlagType::Object && self.default.is_null()
    }
}

/// Flags by their keys.
pub(crate) type Flags = BTreeMap<String, Flag>;

/// Reads a manifest.
pub(crate) fn parse(text: &str) -> Result<Flags, String> {
    let manifest: Value = serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
    let Some(Value::Object(flags)) = manifest.get("flags") else {
        return Err("has no \"flags\" object, so it is not an OpenFeature CLI manifest".to_owned());
    };
    flags.iter().map(|(key, flag)| Ok((key.clone(), read(key, flag)?))).collect()
}

fn read(key: &str, flag: &Value) -> Result<Flag, String> {
    if key.is_empty() {
        return Err("has a flag without a key".to_owned());
    }
    let flag_type =
        flag.get("flagType").and_then(Value::as_str).ok_or_else(|| format!("flag {key:?} has no flagType"))?;
    let flag_type = FlagType::parse(flag_type).ok_or_else(|| {
        format!(
            "flag {key:?} has the flagType {flag_type:?}, which is not one of boolean, string, integer, float, object"
        )
    })?;
    let default = flag.get("defaultValue").ok_or_else(|| format!("flag {key:?} has no defaultValue"))?;
    let fits = flag_type == FlagType::Object || FlagType::of_value(default).is_some_and(|found| flag_type.reads(found));
    if !fits {
        return Err(format!("flag {key:?} has a defaultValue that is not of type {flag_type}: {default}"));
    }
    let description = flag.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(Flag { flag_type, default: default.clone(), description })
}

/// Reads the flags of a service from the body of its bulk response. A flag whose type is not known has `None`.
#[cfg(any(feature = "service", test))]
pub(crate) fn of_service(body: &Value) -> Result<BTreeMap<String, Option<FlagType>>, String> {
    let items = body
        .get("flags")
        .and_then(Value::as_array)
        .ok_or("the response has no list of flags, so it is not an OFREP response")?;
    let types = items.iter().filter_map(|item| {
        // Some services wrap the evaluation.
        let field = |name: &str| item.get(name).or_else(|| item.get("result")?.get(name));
        let key = field("key")?.as_str()?.to_owned();
        let declared = match field("metadata").and_then(|metadata| metadata.get("flagType")).and_then(Value::as_str) {
            Some("decimal") => Some(FlagType::Float),
            Some(other) => FlagType::parse(other),
            None => None,
        };
        Some((key, declared.or_else(|| field("value").and_then(FlagType::of_value))))
    });
    Ok(types.collect())
}

/// Converts the flags of a service. A service does not say which defaults the code should have, so they are empty.
pub(crate) fn from_service(types: BTreeMap<String, Option<FlagType>>) -> Flags {
    let known = types.into_iter().filter_map(|(key, flag_type)| {
        let flag_type = flag_type?;
        Some((key, Flag { flag_type, default: flag_type.empty(), description: String::new() }))
    });
    known.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mistakes_in_a_manifest_are_named() {
        let flag = |flag: Value| json!({"flags": {"f": flag}}).to_string();
        let cases = [
            ("{".to_owned(), "is not JSON"),
            ("{}".to_owned(), "no \"flags\" object"),
            (flag(json!({"defaultValue": 1})), "\"f\" has no flagType"),
            (flag(json!({"flagType": "date", "defaultValue": 1})), "\"date\""),
            (flag(json!({"flagType": "integer"})), "no defaultValue"),
            (flag(json!({"flagType": "integer", "defaultValue": 1.5})), "not of type integer: 1.5"),
            (flag(json!({"flagType": "boolean", "defaultValue": null})), "not of type boolean: null"),
            (json!({"flags": {"": {"flagType": "boolean", "defaultValue": true}}}).to_string(), "without a key"),
        ];
        for (text, expected) in cases {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn types_have_the_names_that_the_cli_accepts() {
        for (name, expected) in [("bool", FlagType::Boolean), ("Number", FlagType::Float), ("JSON", FlagType::Object)] {
            let default = expected.empty();
            let text =
                json!({"$schema": "any", "flags": {"f": {"flagType": name, "defaultValue": default}}}).to_string();
            assert_eq!(parse(&text).unwrap()["f"].flag_type, expected);
        }
    }

    #[test]
    fn the_type_of_a_service_s_flag_is_declared_or_that_of_its_value() {
        let body = json!({"flags": [
            {"key": "a", "value": 1.0, "metadata": {"flagType": "integer"}}, {"key": "b", "value": "x"}, {"key": "c"},
            {"key": "d", "metadata": {"flagType": "boolean"}}, {"key": "e", "errorCode": "GENERAL"}, {"value": 1},
            {"key": "f", "result": {"value": 10.0}}, {"result": {"key": "g", "value": 0.5}},
        ]});
        let types = of_service(&body).unwrap();
        let expected = [
            ("a", Some(FlagType::Integer)),
            ("b", Some(FlagType::String)),
            ("c", None),
            ("d", Some(FlagType::Boolean)),
            ("e", None),
            ("f", Some(FlagType::Integer)),
            ("g", Some(FlagType::Float)),
        ];
        assert_eq!(types, expected.map(|(key, flag_type)| (key.to_owned(), flag_type)).into());
        assert_eq!(from_service(types).len(), 5);
        assert!(of_service(&json!([])).is_err());
    }
}
