//! Source code that declares flags with `flags!`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::manifest::{Flag, FlagType, Flags};

/// Returns the source that declares flags. `crate_name` is the crate whose macro it calls.
pub(crate) fn source(flags: &Flags, crate_name: &str) -> String {
    let mut taken = BTreeSet::from(["FLAGS".to_owned()]);
    let declarations = flags.iter().map(|(key, flag)| declaration(&type_name(key, &mut taken), key, flag, crate_name));
    let declarations: String = declarations.collect();
    format!("{crate_name}::flags! {{\n    pub static FLAGS;\n{declarations}}}\n")
}

fn declaration(name: &str, key: &str, flag: &Flag, crate_name: &str) -> String {
    let documentation = documentation(&flag.description);
    let (rust_type, default) = match flag.flag_type {
        FlagType::Boolean => ("bool".to_owned(), flag.default.to_string()),
        FlagType::String => ("String".to_owned(), format!("{:?}", flag.default.as_str().unwrap_or_default())),
        FlagType::Integer if flag.default.is_i64() => ("i64".to_owned(), flag.default.to_string()),
        FlagType::Integer => ("u64".to_owned(), flag.default.to_string()),
        FlagType::Float => ("f64".to_owned(), float(&flag.default)),
        FlagType::Object => {
            let path =
                if crate_name == "flipswitch" { crate_name.to_owned() } else { format!("{crate_name}::flipswitch") };
            let value = if is_simple(&flag.default, MAX_DEPTH) {
                format!("{path}::serde_json::json!({})", json_source(&flag.default))
            } else {
                // The macro does not accept large values.
                let json = format!("{:?}", flag.default.to_string());
                format!("{path}::serde_json::from_str::<{path}::serde_json::Value>({json}).unwrap_or_default()")
            };
            (format!("{path}::serde_json::Value"), value)
        }
    };
    format!("{documentation}    pub {name}: {rust_type} = {key:?}, default {default};\n")
}

/// Limits the lines of documentation. Longer text becomes one attribute, because the macro is called for each line.
const MAX_LINES: usize = 32;

/// Returns the documentation of a flag.
fn documentation(description: &str) -> String {
    let lines: Vec<_> = description.lines().map(plain).collect();
    if lines.len() > MAX_LINES {
        return format!("    #[doc = {:?}]\n", lines.join("\n"));
    }
    lines.iter().map(|line| format!("    /// {line}").trim_end().to_owned() + "\n").collect()
}

/// Escapes a line of a description. Indented lines and fenced lines would be code that doctests run.
fn plain(line: &str) -> String {
    let line = printable(line);
    let line = line.trim();
    let is_fence = line.starts_with("```") || line.starts_with("~~~");
    if is_fence { format!("\\{line}") } else { line.to_owned() }
}

/// Limits the depth of JSON that is written as Rust, and the values of each array or object.
const MAX_DEPTH: usize = 4;
const MAX_VALUES: usize = 16;

/// Returns whether JSON can be written as Rust that compiles anywhere.
fn is_simple(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(values) => {
            depth > 0 && values.len() <= MAX_VALUES && values.iter().all(|value| is_simple(value, depth - 1))
        }
        Value::Object(fields) => {
            depth > 0 && fields.len() <= MAX_VALUES && fields.values().all(|value| is_simple(value, depth - 1))
        }
        // Inside `json!`, integer literals are 32-bit numbers.
        Value::Number(number) => number.is_f64() || number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
        _ => true,
    }
}

/// Returns a line without characters that would end or hide it in source code.
fn printable(line: &str) -> String {
    line.chars()
        .map(|character| if character.is_control() || is_directional(character) { ' ' } else { character })
        .collect()
}

/// Returns whether a character changes the direction of text, which the compiler rejects in comments.
fn is_directional(character: char) -> bool {
    matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn float(value: &Value) -> String {
    let text = value.to_string();
    if text.contains(['.', 'e', 'E']) { text } else { format!("{text}.0") }
}

/// Formats JSON as an argument of the macro `json!`. Strings become Rust literals.
fn json_source(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Array(values) => {
            let values: Vec<_> = values.iter().map(json_source).collect();
            format!("[{}]", values.join(", "))
        }
        Value::Object(fields) => {
            let fields: Vec<_> = fields.iter().map(|(key, value)| format!("{key:?}: {}", json_source(value))).collect();
            format!("{{{}}}", fields.join(", "))
        }
        other => other.to_string(),
    }
}

/// Returns the name of the type for a flag: its key in `UpperCamelCase`. If the name is taken, a number is appended.
fn type_name(key: &str, taken: &mut BTreeSet<String>) -> String {
    let mut name = String::new();
    let mut is_start = true;
    for character in key.chars() {
        if !character.is_ascii_alphanumeric() {
            is_start = true;
        } else if is_start {
            name.extend(character.to_uppercase());
            is_start = false;
        } else {
            name.push(character);
        }
    }
    // A digit cannot begin a name, and `Self` is the only keyword that begins with an upper-case letter.
    if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) || name == "Self" {
        name.insert_str(0, "Flag");
    }
    // Names of the prelude, which the type would shadow in the code around it.
    if matches!(name.as_str(), "Option" | "Some" | "None" | "Ok" | "Err" | "Result" | "String" | "Vec" | "Box") {
        name.push_str("Flag");
    }
    let mut unique = name.clone();
    let mut number = 2;
    while !taken.insert(unique.clone()) {
        unique = format!("{name}{number}");
        number += 1;
    }
    unique
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::manifest;

    #[test]
    fn names_are_identifiers_and_differ() {
        let mut taken = BTreeSet::from(["FLAGS".to_owned()]);
        let cases = [
            ("new-checkout", "NewCheckout"),
            ("newCheckout", "NewCheckout2"),
            ("new_checkout", "NewCheckout3"),
            ("2fa", "Flag2fa"),
            ("self", "FlagSelf"),
            ("type", "Type"),
            ("string", "StringFlag"),
            ("ääh", "H"),
            ("旗", "Flag"),
            ("!!", "Flag2"),
            ("FLAGS", "FLAGS2"),
            ("a.b/c d", "ABCD"),
        ];
        for (key, expected) in cases {
            assert_eq!(type_name(key, &mut taken), expected, "{key}");
        }
    }

    #[test]
    fn flags_become_declarations() {
        let manifest = json!({"flags": {
            "new-checkout": {"flagType": "boolean", "defaultValue": false, "description": "The checkout.\n\nOn one page."},
            "max-items": {"flagType": "integer", "defaultValue": 10},
            "rate": {"flagType": "float", "defaultValue": 1},
            "theme": {"flagType": "string", "defaultValue": "a \"b\" \\ \n"},
            "limits": {"flagType": "object", "defaultValue": {"items": [1, "x", null, 0.5]}},
        }});
        let source = source(&manifest::parse(&manifest.to_string()).unwrap(), "flipswitch_axum");
        let expected = r#"flipswitch_axum::flags! {
    pub static FLAGS;
    pub Limits: flipswitch_axum::flipswitch::serde_json::Value = "limits", default flipswitch_axum::flipswitch::serde_json::json!({"items": [1, "x", null, 0.5]});
    pub MaxItems: i64 = "max-items", default 10;
    /// The checkout.
    ///
    /// On one page.
    pub NewCheckout: bool = "new-checkout", default false;
    pub Rate: f64 = "rate", default 1.0;
    pub Theme: String = "theme", default "a \"b\" \\ \n";
}
"#;
        assert_eq!(source, expected);
    }

    #[test]
    fn descriptions_are_text_and_not_code() {
        let description = "How to:\n```\nstd::process::exit(1)\n```\n~~~\n    indented()\n  * a list";
        let expected = "    /// How to:\n    /// \\```\n    /// std::process::exit(1)\n    /// \\```\n    /// \\~~~\n    /// indented()\n    /// * a list\n";
        assert_eq!(documentation(description), expected);
        assert_eq!(documentation(&"line\n".repeat(200)).matches('\n').count(), 1);
    }

    #[test]
    fn large_values_are_written_as_json() {
        let of = |default: Value| {
            let manifest = json!({"flags": {"f": {"flagType": "object", "defaultValue": default}}});
            source(&manifest::parse(&manifest.to_string()).unwrap(), "flipswitch")
        };
        assert!(of(json!({"a": [1]})).contains("json!({\"a\": [1]})"));
        let deep = (0..60).fold(json!(1), |value, _| json!([value]));
        for large in [json!({"expires": 1_700_000_000_000_i64}), json!(vec![0; 200]), deep] {
            assert!(of(large.clone()).contains("serde_json::from_str::<flipswitch::serde_json::Value>(\""), "{large}");
        }
    }
}
