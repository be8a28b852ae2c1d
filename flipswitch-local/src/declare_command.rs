//! The subcommand `declare`: prints source code that declares flags.

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use lexopt::{Arg::Long, ValueExt};

use crate::{
    declarations,
    manifest::{self, Flags},
    service_flags,
};

const HELP: &str = "\
Print Rust source that declares flags with flags!, from an OpenFeature CLI manifest or from a service.

Usage: flipswitch-local declare --manifest FILE [--crate NAME]
       flipswitch-local declare --service URL [--api-key KEY] [--crate NAME]

  --manifest FILE  Manifest that lists the flags, such as manifest.json
  --service URL    URL of a flag service to read over OFREP. Its flags get empty defaults (false, 0, \"\", {}), since a
                   service does not know the defaults in the code
  --api-key KEY    API key of the service [default: the environment variable FLIPSWITCH_API_KEY]
  --crate NAME     Crate whose flags! is called: flipswitch, flipswitch_axum or flipswitch_actix [default: flipswitch]
  --help           Print this help

Example:
  flipswitch-local declare --manifest manifest.json > src/flags.rs
";

const CRATES: [&str; 3] = ["flipswitch", "flipswitch_axum", "flipswitch_actix"];

struct Options {
    source: Source,
    crate_name: String,
}

enum Source {
    Manifest(PathBuf),
    Service { url: String, api_key: Option<String> },
}

/// Runs the subcommand with the arguments after its name.
pub(crate) async fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Options { source, crate_name } = match parse(lexopt::Parser::from_args(arguments)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{}", HELP.trim_end());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("flipswitch-local declare: {error}\nTry flipswitch-local declare --help.");
            return ExitCode::from(2);
        }
    };
    match read(source).await {
        Ok(flags) => {
            let source = declarations::source(&flags, &crate_name);
            let printed = io::stdout().lock().write_all(source.as_bytes());
            if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(problem) => {
            eprintln!("flipswitch-local declare: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn read(source: Source) -> Result<Flags, String> {
    match source {
        Source::Manifest(file) => {
            let name = file.display().to_string();
            let text = std::fs::read_to_string(file).map_err(|error| format!("{name}: {error}"))?;
            manifest::parse(&text).map_err(|problem| format!("{name} {problem}"))
        }
        Source::Service { url, api_key } => {
            let types = service_flags::fetch(&url, api_key).await?;
            for (key, _) in types.iter().filter(|(_, flag_type)| flag_type.is_none()) {
                eprintln!("left out, because the service does not say its type: {}", key.escape_debug());
            }
            Ok(manifest::from_service(types))
        }
    }
}

/// Returns the options, or `None` if the help is requested.
fn parse(mut arguments: lexopt::Parser) -> Result<Option<Options>, lexopt::Error> {
    let (mut file, mut url, mut api_key, mut crate_name) = (None, None, None, "flipswitch".to_owned());
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("manifest") => file = Some(arguments.value()?.into()),
            Long("service") => url = Some(arguments.value()?.string()?),
            Long("api-key") => api_key = Some(arguments.value()?.string()?),
            Long("crate") => crate_name = arguments.value()?.string()?.replace('-', "_"),
            Long("help") => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    if !CRATES.contains(&crate_name.as_str()) {
        return Err(format!("--crate {crate_name}: must be one of {}", CRATES.join(", ")).into());
    }
    let source = match (file, url) {
        (Some(file), None) if api_key.is_none() => Source::Manifest(file),
        (None, Some(url)) => Source::Service { url, api_key },
        _ => return Err("pass either --manifest FILE, or --service URL".into()),
    };
    Ok(Some(Options { source, crate_name }))
}
