//! Flag definitions, in flagd's format or as plain values.

use std::collections::{BTreeMap, HashMap};

use flagd_evaluation_engine::FlagParser;
use serde_json::{Map, Value, json};

use crate::{
    flags::{error::DefinitionError, rule},
    json,
};

/// Flags by key.
pub(crate) type Flags = BTreeMap<String, Definition>;

/// One flag.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Definition {
    /// One value for every context.
    Plain(Value),
    /// A flag in [flagd's format](https://flagd.dev/reference/flag-definitions/).
    Flagd(Box<Flagd>),
}

/// A flag in flagd's format.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Flagd {
    pub(crate) enabled: bool,
    pub(crate) variants: Map<String, Value>,
    /// The type of all variants, as `metadata.flagType` names it.
    pub(crate) flag_type: &'static str,
    /// Without a default variant, applications use the default value in their code.
    pub(crate) default_variant: Option<String>,
    /// The targeting rule as JSON, with references resolved.
    pub(crate) targeting: Option<String>,
    pub(crate) metadata: Map<String, Value>,
    /// The definition as written, except that references to its document are resolved, so that it is self-contained.
    source: Value,
}

/// The fields of a document in flagd's format.
const DOCUMENT_FIELDS: [&str; 5] = ["flags", "$schema", "$id", "$evaluators", "metadata"];

/// Parses a document. It is in flagd's format if it has an object `flags` and no field that is unknown to flagd.
/// Otherwise it is `{"key": value, ..}`.
///
/// # Errors
///
/// Returns an error that names the flag and the field. An unknown field next to flags that are clearly in flagd's format is also
/// an error, because parsing the document as plain values would silently lose these flags.
pub(crate) fn parse_document(document: Value) -> Result<Flags, DefinitionError> {
    let mut fields = json::object("flags", document)
        .map_err(|error| DefinitionError::from(error).with_hint("write {\"key\": value}, or flagd's format"))?;
    let unknown = fields.keys().find(|field| !DOCUMENT_FIELDS.contains(&field.as_str()));
    match (fields.get("flags"), unknown) {
        (Some(Value::Object(_)), None) => {}
        (Some(Value::Object(flags)), Some(unknown)) if flags.values().any(looks_like_flagd) => {
            let problem = format!("is not a field of flagd's format; the fields are {}", DOCUMENT_FIELDS.join(", "));
            return Err(DefinitionError::new(unknown.as_str(), problem));
        }
        _ => {
            return fields.into_iter().map(|(key, value)| Ok((validate_key(key)?, Definition::Plain(value)))).collect();
        }
    }
    let evaluators = fields.remove("$evaluators");
    let shared = match fields.remove("metadata") {
        Some(metadata) => json::object("metadata", metadata)?,
        None => Map::new(),
    };
    let flags = json::object("flags", fields.remove("flags").unwrap_or_default())?;
    let flag = |(key, source): (String, Value)| {
        let key = validate_key(key)?;
        let flag = parse_definition(&key, source, evaluators.as_ref(), &shared)?;
        Ok((key, flag))
    };
    flags.into_iter().map(flag).collect()
}

impl Definition {
    /// Parses one definition: `{"value": ..}`, or flagd's format.
    pub(crate) fn parse(key: &str, source: Value) -> Result<Self, DefinitionError> {
        validate_key(key.to_owned())?;
        parse_definition(key, source, None, &Map::new())
    }

    /// Returns the definition in a form that [`parse`](Self::parse) and [`parse_document`] accept.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Plain(value) => json!({ "value": value }),
            Self::Flagd(flag) => flag.source.clone(),
        }
    }
}

fn validate_key(key: String) -> Result<String, DefinitionError> {
    if key.is_empty() { Err(DefinitionError::new("", "the key of a flag must not be empty")) } else { Ok(key) }
}

fn looks_like_flagd(flag: &Value) -> bool {
    flag.get("state").is_some() || flag.get("variants").is_some()
}

/// Parses one definition, with the evaluators and the metadata of its document.
fn parse_definition(
    key: &str,
    source: Value,
    evaluators: Option<&Value>,
    shared: &Map<String, Value>,
) -> Result<Definition, DefinitionError> {
    match source {
        Value::Object(mut fields) if fields.len() == 1 && fields.contains_key("value") => {
            Ok(Definition::Plain(fields.remove("value").unwrap_or_default()))
        }
        source => parse_flagd(key, source, evaluators, shared)
            .map(|flag| Definition::Flagd(Box::new(flag)))
            .map_err(|error| error.with_flag(key)),
    }
}

fn parse_flagd(
    key: &str,
    source: Value,
    evaluators: Option<&Value>,
    shared: &Map<String, Value>,
) -> Result<Flagd, DefinitionError> {
    let mut fields = json::object("", source).map_err(|error| {
        DefinitionError::from(error).with_hint("write {\"value\": true}, or state, variants and defaultVariant")
    })?;
    let enabled = match fields.get("state") {
        Some(Value::String(state)) if state == "ENABLED" => true,
        Some(Value::String(state)) if state == "DISABLED" => false,
        Some(other) => {
            return Err(DefinitionError::new("state", format!("must be \"ENABLED\" or \"DISABLED\", not {other}")));
        }
        None => return Err(DefinitionError::new("state", "is missing; write \"ENABLED\" or \"DISABLED\"")),
    };
    let variants = match fields.get("variants") {
        Some(variants) => json::object("variants", variants.clone())?,
        None => {
            return Err(DefinitionError::new(
                "variants",
                "are missing; write, for example, {\"on\": true, \"off\": false}",
            ));
        }
    };
    let flag_type = flag_type(&variants)?;
    let default_variant = match fields.get("defaultVariant") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) if variants.contains_key(name) => Some(name.clone()),
        Some(other) => {
            let names: Vec<_> = variants.keys().map(String::as_str).collect();
            return Err(DefinitionError::new(
                "defaultVariant",
                format!("{other} is not one of the variants {}", names.join(", ")),
            ));
        }
    };
    let targeting = match fields.get("targeting") {
        None | Some(Value::Null) => None,
        Some(Value::Object(rule)) if rule.is_empty() => None,
        Some(rule) => Some(Value::Object(json::object("targeting", resolve_references(key, rule, evaluators)?)?)),
    };
    let mut metadata = match fields.get("metadata") {
        None | Some(Value::Null) => Map::new(),
        Some(metadata) => json::object("metadata", metadata.clone())?,
    };
    for (field, value) in shared {
        metadata.entry(field.clone()).or_insert_with(|| value.clone());
    }
    if !shared.is_empty() {
        fields.insert("metadata".to_owned(), Value::Object(metadata.clone()));
    }
    let text = targeting.as_ref().map(Value::to_string);
    if let Some(rule) = targeting {
        fields.insert("targeting".to_owned(), rule);
    }
    let source = Value::Object(fields);
    Ok(Flagd { enabled, variants, flag_type, default_variant, targeting: text, metadata, source })
}

impl Definition {
    /// Checks the targeting rule to the extent that is possible without a context.
    ///
    /// Like flagd, the server loads a file with invalid rules, and evaluations that reach one return an error. Requests
    /// to set a flag with an invalid rule are rejected.
    pub(crate) fn validate_rule(&self, key: &str) -> Result<(), DefinitionError> {
        let Self::Flagd(flag) = self else { return Ok(()) };
        let Some(Ok(rule)) = flag.targeting.as_deref().map(serde_json::from_str) else { return Ok(()) };
        rule::validate(&rule, &flag.variants).map_err(|error| error.with_flag(key))
    }
}

/// Replaces references to the `$evaluators` of the document.
fn resolve_references(key: &str, rule: &Value, evaluators: Option<&Value>) -> Result<Value, DefinitionError> {
    // flagd's parser only resolves references within a document.
    let flag = json!({"state": "ENABLED", "defaultVariant": "", "variants": {}, "targeting": rule});
    let document = json!({"$evaluators": evaluators, "flags": {key: flag}});
    let mut parsed = FlagParser::parse_string(&document.to_string())
        .map_err(|error| DefinitionError::new("targeting", error.to_string()))?;
    Ok(parsed.flags.remove(key).and_then(|flag| flag.targeting).unwrap_or_default())
}

/// Returns the type of all variants, as `metadata.flagType` names it.
fn flag_type(variants: &Map<String, Value>) -> Result<&'static str, DefinitionError> {
    let mut found: HashMap<&'static str, &str> = HashMap::new();
    for (name, value) in variants {
        let kind =
            value_type(value).ok_or_else(|| DefinitionError::new(format!("variants.{name}"), "must not be null"))?;
        found.entry(kind).or_insert(name);
    }
    let mut kinds: Vec<_> = found.into_iter().collect();
    kinds.sort_unstable();
    match kinds[..] {
        [(kind, _)] => Ok(kind),
        [("decimal", _), ("integer", _)] => Ok("decimal"),
        [(one, first), (other, second), ..] => Err(DefinitionError::new(
            "variants",
            format!("must all have the same type, but {first} has type {one} and {second} has type {other}"),
        )),
        [] => Err(DefinitionError::new("variants", "must have at least one variant")),
    }
}

/// Returns the type of a value, as `metadata.flagType` names it. Null has no type.
pub(crate) fn value_type(value: &Value) -> Option<&'static str> {
    match value {
        Value::Null => None,
        Value::Bool(_) => Some("boolean"),
        Value::String(_) => Some("string"),
        Value::Number(number) if number.is_f64() => Some("decimal"),
        Value::Number(_) => Some("integer"),
        Value::Object(_) => Some("object"),
        Value::Array(_) => Some("array"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(source: Value) -> String {
        parse_document(source).unwrap_err().to_string()
    }

    #[test]
    fn both_formats_are_parsed() {
        let plain = parse_document(json!({"a": true, "b": {"flags": 1}, "flags": 7})).unwrap();
        assert_eq!(plain["b"], Definition::Plain(json!({"flags": 1})));
        assert_eq!(plain.len(), 3);
        let flagd = parse_document(json!({
            "$schema": "https://flagd.dev/schema/v0/flags.json",
            "$evaluators": {"premium": {"==": [{"var": "plan"}, "premium"]}},
            "metadata": {"owner": "web", "flagSetId": "f"},
            "flags": {
                "x": {
                    "state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
                    "targeting": {"if": [{"$ref": "premium"}, "on"]}, "metadata": {"owner": "mail"},
                },
                "y": {"state": "DISABLED", "variants": {"a": 1, "b": 1.5}, "targeting": {}},
            },
        }))
        .unwrap();
        let Definition::Flagd(x) = &flagd["x"] else { panic!("flagd's format") };
        assert_eq!(x.targeting.as_deref(), Some(r#"{"if":[{"==":[{"var":"plan"},"premium"]},"on"]}"#));
        assert_eq!((&x.metadata["owner"], &x.metadata["flagSetId"]), (&json!("mail"), &json!("f")));
        let Definition::Flagd(y) = &flagd["y"] else { panic!("flagd's format") };
        assert_eq!((y.enabled, &y.default_variant, &y.targeting), (false, &None, &None));
        assert_eq!(y.flag_type, "decimal");
    }

    #[test]
    fn errors_name_the_flag_and_the_place() {
        let flag = |changes: Value| {
            let mut flag = json!({"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "on"});
            for (field, value) in changes.as_object().unwrap() {
                flag[field] = value.clone();
            }
            json!({"flags": {"x": flag}})
        };
        let cases = [
            (json!([]), "flags: must be a JSON object, not an array; write {\"key\": value}"),
            (json!({"": 1}), "must not be empty"),
            (
                json!({"flags": {"x": true}}),
                "flag \"x\": must be a JSON object, not a boolean; write {\"value\": true}, or state",
            ),
            (json!({"flags": {}, "metadata": 1}), "metadata: must be a JSON object, not a number"),
            (
                json!({"flags": {"x": {"state": "ENABLED"}}, "flagSets": {}}),
                "flagSets: is not a field of flagd's format",
            ),
            (json!({"flags": {"y": 1, "x": {"variants": {}}}, "$scheme": ""}), "$scheme: is not a field"),
            (flag(json!({"state": "on"})), "flag \"x\": state: must be \"ENABLED\" or \"DISABLED\", not \"on\""),
            (flag(json!({"state": null})), "flag \"x\": state: must be \"ENABLED\" or \"DISABLED\", not null"),
            (flag(json!({"variants": {}})), "flag \"x\": variants: must have at least one variant"),
            (flag(json!({"variants": []})), "flag \"x\": variants: must be a JSON object, not an array"),
            (
                flag(json!({"variants": {"on": true, "off": "no"}})),
                "variants: must all have the same type, but on has type boolean",
            ),
            (flag(json!({"variants": {"on": null}})), "variants.on: must not be null"),
            (
                flag(json!({"defaultVariant": "of"})),
                "flag \"x\": defaultVariant: \"of\" is not one of the variants off, on",
            ),
            (flag(json!({"targeting": "on"})), "flag \"x\": targeting: must be a JSON object, not a string"),
            (
                flag(json!({"targeting": {"$ref": "who"}})),
                "flag \"x\": targeting: Parse error: Evaluator reference 'who'",
            ),
            (
                json!({"$evaluators": {"all": "on"}, "flags": {"x": {
                    "state": "ENABLED", "variants": {"on": true}, "targeting": {"$ref": "all"},
                }}}),
                "flag \"x\": targeting: must be a JSON object, not a string",
            ),
            (flag(json!({"metadata": 1})), "flag \"x\": metadata: must be a JSON object, not a number"),
        ];
        for (source, expected) in cases {
            let text = error(source);
            assert!(text.contains(expected), "{text:?} lacks {expected:?}");
        }
    }

    #[test]
    fn errors_of_rules_name_the_flag_and_the_place() {
        let validate = |rule: Value| {
            let variants = json!({"on": true, "off": false});
            let flag = json!({"state": "ENABLED", "variants": variants, "targeting": rule});
            Definition::parse("x", flag).unwrap().validate_rule("x").map_err(|error| error.to_string())
        };
        let cases = [
            (json!({"iff": [true, "on"]}), "flag \"x\": targeting.iff: is not an operator"),
            (
                json!({"if": [{"and": [true, {"equals": [1, 1]}]}, "on"]}),
                "flag \"x\": targeting.if[0].and[1].equals: is not an operator",
            ),
            (json!({"if": [true, "of"]}), "flag \"x\": targeting.if[1]: \"of\" is not one of the variants"),
        ];
        for (rule, expected) in cases {
            let text = validate(rule).unwrap_err();
            assert!(text.contains(expected), "{text:?} lacks {expected:?}");
        }
        for rule in [
            json!({"if": [{"in": [{"var": "plan"}, ["a", "b"]]}, "on", "off"]}),
            json!({"fractional": [{"cat": [{"var": "$flagd.flagKey"}, {"var": "email"}]}, ["on", 50], ["off", 50]]}),
            json!({"if": [{"sem_ver": [{"var": "v"}, ">=", "1.0.0"]}, "on", {"if": [{"starts_with": [{"var": "e"}, "a"]}, "off"]}]}),
            json!({"if": [{"ends_with": [{"var": "e"}, "a"]}, "on"]}),
            json!({"if": [{"!": [{"missing": ["plan"]}]}, "on", "off"]}),
        ] {
            assert_eq!(validate(rule.clone()), Ok(()), "{rule}");
        }
    }

    #[test]
    fn a_plain_value_may_have_the_key_flags() {
        let plain = parse_document(json!({"flags": {"state-of-mind": {"mood": 1}}, "other": true})).unwrap();
        assert_eq!(plain["flags"], Definition::Plain(json!({"state-of-mind": {"mood": 1}})));
        assert_eq!(plain["other"], Definition::Plain(json!(true)));
    }

    #[test]
    fn references_to_the_document_are_resolved() {
        let flags = parse_document(json!({
            "$evaluators": {"premium": {"==": [{"var": "plan"}, "premium"]}},
            "metadata": {"owner": "web"},
            "flags": {
                "rule": {
                    "state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
                    "targeting": {"if": [{"$ref": "premium"}, "on"]},
                },
                "plain": {"value": {"a": [null]}},
            },
        }))
        .unwrap();
        assert_eq!(flags["plain"], Definition::Plain(json!({"a": [null]})));
        let written: Map<_, _> = flags.iter().map(|(key, flag)| (key.clone(), flag.to_json())).collect();
        assert_eq!(written["rule"]["targeting"], json!({"if": [{"==": [{"var": "plan"}, "premium"]}, "on"]}));
        for (key, source) in &written {
            assert_eq!(Definition::parse(key, source.clone()).as_ref(), Ok(&flags[key]));
        }
        assert_eq!(parse_document(json!({ "flags": written })), Ok(flags));
    }

    #[test]
    fn a_definition_survives_a_round_trip() {
        let sources = [
            json!({"value": null}),
            json!({"value": {"a": 1}}),
            json!({"state": "ENABLED", "variants": {"on": true}, "defaultVariant": "on"}),
        ];
        for source in sources {
            assert_eq!(Definition::parse("x", source.clone()).unwrap().to_json(), source);
        }
        assert!(Definition::parse("x", json!({"value": 1, "also": 2})).is_err());
        assert!(Definition::parse("", json!({"value": 1})).is_err());
    }
}
