//! Values that a developer sets over the service's, in a file.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value};

use crate::{ConfigError, FlagType, flags::flag_set::FlagSet};

/// The reason of a value that comes from the file.
const REASON: &str = "OVERRIDE";

/// The values of an override file.
#[derive(Debug)]
pub(crate) struct Overrides {
    path: PathBuf,
    values: FlagSet,
}

impl Overrides {
    /// Reads a file, where that is allowed.
    pub(crate) fn read(path: &Path, is_allowed: bool) -> Result<Self, ConfigError> {
        if !is_allowed {
            return Err(ConfigError::OverrideInRelease { path: path.to_owned() });
        }
        let unusable = |problem: String| ConfigError::OverrideFile { path: path.to_owned(), problem };
        let text = fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
        let values: Value = serde_json::from_str(&text).map_err(|error| unusable(error.to_string()))?;
        let values: Map<String, Value> = match values {
            Value::Object(values) if is_flagd(&values) => {
                return Err(unusable(
                    "it is in flagd's format, which has variants and rules; plain values are needed".to_owned(),
                ));
            }
            Value::Object(values) => values,
            other => {
                return Err(unusable(format!("it holds no object, but this type: {}", FlagType::of_value(&other))));
            }
        };
        Ok(Self { path: path.to_owned(), values: FlagSet::of_values(values, REASON) })
    }

    /// Puts the values over an flag_set.
    pub(crate) fn over(&self, flag_set: &FlagSet) -> Arc<FlagSet> {
        // Of two with the same key the later wins.
        Arc::new(FlagSet::new(flag_set.items().iter().chain(self.values.items()).cloned().collect()))
    }

    /// Says so, loudly: whoever wonders about a value finds out here.
    pub(crate) fn announce(&self) {
        let flags: Vec<_> = self.values.iter().map(|flag| flag.key.as_str()).collect();
        tracing::warn!(
            target: "flipswitch", file = %self.path.display(), ?flags,
            "OVERRIDDEN: these flags have the values of the file, for everybody, whatever the service says"
        );
    }
}

/// Whether the values are a whole document of another kind, as the local service has it.
fn is_flagd(values: &Map<String, Value>) -> bool {
    let is_definition = |flag: &Value| flag.get("state").is_some() || flag.get("value").is_some();
    values
        .get("flags")
        .and_then(Value::as_object)
        .is_some_and(|flags| !flags.is_empty() && flags.values().all(is_definition))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, text).unwrap();
        file
    }

    #[test]
    fn the_files_values_win_and_others_stay() {
        let file = file(r#"{"theme": "dark", "new": true}"#);
        let overrides = Overrides::read(file.path(), true).unwrap();
        let Value::Object(service) = json!({"theme": "light", "limit": 10}) else { unreachable!() };
        let flag_set = overrides.over(&FlagSet::of_values(service, "STATIC"));
        let values: Vec<_> =
            flag_set.iter().map(|flag| (flag.key.as_str(), flag.value.clone(), flag.reason.as_str())).collect();
        let expected =
            [("limit", json!(10), "STATIC"), ("new", json!(true), "OVERRIDE"), ("theme", json!("dark"), "OVERRIDE")];
        assert_eq!(values, expected);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_told_with_its_name_and_its_mistake() {
        for (text, problem) in [
            (r#"{"flags": {"a": {"state": "ENABLED"}}}"#, "flagd's format"),
            ("{\"a\": tru}", "line 1 column 10"),
            ("[1]", "this type: array"),
            ("", "EOF"),
        ] {
            let file = file(text);
            let error = Overrides::read(file.path(), true).unwrap_err().to_string();
            let name = file.path().file_name().unwrap().to_str().unwrap();
            assert!(error.contains("override_file") && error.contains(name) && error.contains(problem), "{error}");
        }
        let error = Overrides::read(Path::new("no/such/file.json"), true).unwrap_err().to_string();
        assert!(error.contains("no/such/file.json"), "{error}");
    }

    #[test]
    fn where_it_is_not_allowed_the_file_is_refused() {
        let file = file("{}");
        let error = Overrides::read(file.path(), false).unwrap_err().to_string();
        assert!(error.contains("override_file") && error.contains("override_in_release"), "{error}");
    }
}
