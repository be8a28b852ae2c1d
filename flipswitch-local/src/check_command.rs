//! The subcommand `check`: compares a manifest with a service.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use lexopt::{Arg::Long, ValueExt};
use serde_json::json;

use crate::{
    manifest::{self, FlagType, Flags},
    service_flags,
};

const HELP: &str = "\
Compare the flags that the code declares, listed in a manifest, with the flags of a service.

Usage: flipswitch-local check --manifest FILE --service URL [--api-key KEY] [--json]

  --manifest FILE  Manifest, written by flipswitch::manifest or for the OpenFeature CLI
  --service URL    URL of the flag service to read over OFREP
  --api-key KEY    API key of the service [default: the environment variable FLIPSWITCH_API_KEY]
  --json           Print JSON: {\"missing\": [KEY..], \"types\": [{\"key\", \"manifest\", \"service\"}..], \"undeclared\": [KEY..]}
  --help           Print this help

The exit code is 0 if the service has every flag of the manifest with its type, 1 if it does not, and 2 if they cannot
be compared. Flags that only the service has are printed as undeclared, and do not change the exit code.

Example:
  flipswitch-local check --manifest manifest.json --service https://api.flipswitch.io
";

struct Options {
    manifest: PathBuf,
    url: String,
    api_key: Option<String>,
    json: bool,
}

/// How a service differs from a manifest.
#[derive(Debug, Default, PartialEq)]
struct Differences {
    /// Keys of flags that the service does not have.
    missing: Vec<String>,
    /// Keys of flags whose types differ, with the type in the manifest and the type in the service.
    types: Vec<(String, FlagType, FlagType)>,
    /// Keys of flags that only the service has.
    undeclared: Vec<String>,
}

impl Differences {
    fn between(manifest: &Flags, service: &BTreeMap<String, Option<FlagType>>) -> Self {
        let mut differences = Self::default();
        for (key, flag) in manifest {
            match service.get(key) {
                None => differences.missing.push(key.clone()),
                Some(Some(found)) if !flag.fits(*found) => {
                    differences.types.push((key.clone(), flag.flag_type, *found));
                }
                Some(_) => {}
            }
        }
        differences.undeclared = service.keys().filter(|key| !manifest.contains_key(*key)).cloned().collect();
        differences
    }

    fn has_mistakes(&self) -> bool {
        !self.missing.is_empty() || !self.types.is_empty()
    }

    fn text(&self) -> String {
        // Keys of a service may contain control characters.
        let shown = |key: &str| key.escape_debug().to_string();
        let missing = self.missing.iter().map(|key| format!("missing: {}\n", shown(key)));
        let types = self
            .types
            .iter()
            .map(|(key, declared, found)| format!("type: {} is declared as {declared}, but is {found}\n", shown(key)));
        let undeclared = self.undeclared.iter().map(|key| format!("undeclared: {}\n", shown(key)));
        let result = if self.has_mistakes() {
            "the service does not match the manifest\n"
        } else {
            "the service matches the manifest\n"
        };
        missing.chain(types).chain(undeclared).chain([result.to_owned()]).collect()
    }

    fn json(&self) -> String {
        let types = self.types.iter().map(|(key, declared, found)| {
            json!({"key": key, "manifest": declared.to_string(), "service": found.to_string()})
        });
        let types: Vec<_> = types.collect();
        json!({"missing": self.missing, "types": types, "undeclared": self.undeclared}).to_string() + "\n"
    }
}

/// Runs the subcommand with the arguments after its name.
pub(crate) async fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let options = match parse(lexopt::Parser::from_args(arguments)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{}", HELP.trim_end());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("flipswitch-local check: {error}\nTry flipswitch-local check --help.");
            return ExitCode::from(2);
        }
    };
    match compare(&options).await {
        Ok(differences) => {
            let text = if options.json { differences.json() } else { differences.text() };
            match io::stdout().lock().write_all(text.as_bytes()) {
                Ok(()) if differences.has_mistakes() => ExitCode::FAILURE,
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::from(2),
            }
        }
        Err(problem) => {
            eprintln!("flipswitch-local check: {problem}");
            ExitCode::from(2)
        }
    }
}

async fn compare(options: &Options) -> Result<Differences, String> {
    let name = options.manifest.display();
    let text = std::fs::read_to_string(&options.manifest).map_err(|error| format!("{name}: {error}"))?;
    let manifest = manifest::parse(&text).map_err(|problem| format!("{name} {problem}"))?;
    let service = service_flags::fetch(&options.url, options.api_key.clone()).await?;
    Ok(Differences::between(&manifest, &service))
}

/// Returns the options, or `None` if the help is requested.
fn parse(mut arguments: lexopt::Parser) -> Result<Option<Options>, lexopt::Error> {
    let (mut manifest, mut url, mut api_key, mut json) = (None, None, None, false);
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("manifest") => manifest = Some(arguments.value()?.into()),
            Long("service") => url = Some(arguments.value()?.string()?),
            Long("api-key") => api_key = Some(arguments.value()?.string()?),
            Long("json") => json = true,
            Long("help") => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    match (manifest, url) {
        (Some(manifest), Some(url)) => Ok(Some(Options { manifest, url, api_key, json })),
        _ => Err("pass --manifest FILE and --service URL".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_flags_and_other_types_are_mistakes() {
        let manifest = json!({"flags": {
            "a": {"flagType": "boolean", "defaultValue": true}, "b": {"flagType": "float", "defaultValue": 1.5},
            "c": {"flagType": "string", "defaultValue": ""}, "d": {"flagType": "integer", "defaultValue": 1},
            "o": {"flagType": "object", "defaultValue": null},
        }});
        let manifest = manifest::parse(&manifest.to_string()).unwrap();
        let service = |flags: &[(&str, Option<FlagType>)]| {
            flags.iter().map(|(key, flag_type)| ((*key).to_owned(), *flag_type)).collect::<BTreeMap<_, _>>()
        };
        let fits = service(&[
            ("a", Some(FlagType::Boolean)),
            // A whole number can be read as one with a fraction, and the type of `c` is not known.
            ("b", Some(FlagType::Integer)),
            ("c", None),
            ("d", Some(FlagType::Integer)),
            ("e\x1b[2J", Some(FlagType::Object)),
            // An optional flag.
            ("o", Some(FlagType::Boolean)),
        ]);
        let differences = Differences::between(&manifest, &fits);
        assert_eq!(differences.text(), "undeclared: e\\u{1b}[2J\nthe service matches the manifest\n");
        let differs = service(&[("a", Some(FlagType::String)), ("d", Some(FlagType::Float)), ("c", None), ("o", None)]);
        let differences = Differences::between(&manifest, &differs);
        assert_eq!(
            differences.text(),
            "missing: b\ntype: a is declared as boolean, but is string\ntype: d is declared as integer, but is float\nthe \
             service does not match the manifest\n"
        );
        let types = r#"[{"key":"a","manifest":"boolean","service":"string"},{"key":"d","manifest":"integer","service":"float"}]"#;
        assert_eq!(differences.json(), format!("{{\"missing\":[\"b\"],\"types\":{types},\"undeclared\":[]}}\n"));
    }
}
