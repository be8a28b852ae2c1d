//! Flag values in a file, with which a developer overrides the values from the service.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value};

use crate::{
    error::ConfigError,
    flags::flag_set::{FlagSet, Item, object},
};

/// Reason of a value that replaces the value from the service.
pub(crate) const OVERRIDE: &str = "OVERRIDE";

/// The values of an override file.
#[derive(Debug)]
pub(crate) struct OverrideFile {
    path: PathBuf,
    flag_set: FlagSet,
}

impl OverrideFile {
    /// Reads a file, if that is allowed.
    pub(crate) fn read(path: &Path, is_allowed: bool) -> Result<Self, ConfigError> {
        if !is_allowed {
            return Err(ConfigError::OverrideInRelease { path: path.to_owned() });
        }
        let unusable = |problem: String| ConfigError::OverrideFile { path: path.to_owned(), problem };
        let text = fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
        let values: Value = serde_json::from_str(&text).map_err(|error| unusable(error.to_string()))?;
        let values = object(values).map_err(|error| unusable(error.to_string()))?;
        if is_flagd(&values) {
            return Err(unusable("flagd's format with variants and rules is not supported".to_owned()));
        }
        Ok(Self { path: path.to_owned(), flag_set: FlagSet::of_values(values, OVERRIDE) })
    }

    /// Overrides the values of a flag set. Returns the items in any order. If two items have the same key, the later one takes
    /// precedence.
    pub(crate) fn apply_to(&self, flag_set: &FlagSet) -> Vec<Arc<Item>> {
        flag_set.items().iter().chain(self.flag_set.items()).cloned().collect()
    }

    /// Logs a warning that names the overridden flags.
    pub(crate) fn announce(&self) {
        let flags: Vec<_> = self.flag_set.iter().map(|flag| flag.key.as_str()).collect();
        tracing::warn!(
            target: "flipswitch", file = %self.path.display(), ?flags,
            "flags are OVERRIDDEN: the values in the file replace the values from the flag service for every context"
        );
    }
}

/// Returns whether the values are a whole document in flagd's format.
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
    fn values_in_the_file_replace_those_of_the_service() {
        let file = file(r#"{"theme": "dark", "new": true}"#);
        let overrides = OverrideFile::read(file.path(), true).unwrap();
        let Value::Object(service) = json!({"theme": "light", "limit": 10}) else { unreachable!() };
        let flag_set = FlagSet::new(overrides.apply_to(&FlagSet::of_values(service, "STATIC")));
        let values: Vec<_> =
            flag_set.iter().map(|flag| (flag.key.as_str(), flag.value.clone(), flag.reason.as_str())).collect();
        let expected =
            [("limit", json!(10), "STATIC"), ("new", json!(true), "OVERRIDE"), ("theme", json!("dark"), "OVERRIDE")];
        assert_eq!(values, expected);
    }

    #[test]
    fn an_unusable_file_is_rejected_with_its_path_and_the_problem() {
        for (text, problem) in [
            (r#"{"flags": {"a": {"state": "ENABLED"}}}"#, "flagd's format"),
            ("{\"a\": tru}", "line 1 column 10"),
            ("[1]", "a JSON array"),
            ("", "EOF"),
        ] {
            let file = file(text);
            let error = OverrideFile::read(file.path(), true).unwrap_err().to_string();
            let name = file.path().file_name().unwrap().to_str().unwrap();
            assert!(error.contains("override_file") && error.contains(name) && error.contains(problem), "{error}");
        }
        let error = OverrideFile::read(Path::new("no/such/file.json"), true).unwrap_err().to_string();
        assert!(error.contains("no/such/file.json"), "{error}");
    }

    #[test]
    fn a_file_is_rejected_in_a_release_build() {
        let file = file("{}");
        let error = OverrideFile::read(file.path(), false).unwrap_err().to_string();
        assert!(error.contains("override_file") && error.contains("override_in_release"), "{error}");
    }
}
