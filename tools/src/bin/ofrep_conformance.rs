//! Checks whether a service conforms to OFREP; see `--help`, and the module `conformance`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the program prints its report")]

use std::{env, ffi::OsString, process::ExitCode, time::Duration};

use flipswitch_tools::conformance::{Service, check};

const HELP: &str = "\
Checks whether a flag service conforms to OFREP, including its event streams (ADR-0008).

Usage: ofrep-conformance URL [OPTIONS]

Sends about a hundred evaluations and changes nothing on the service. For each requirement, the report says whether the
service meets it. If not, the report says what the service did instead, or why the requirement does not apply. The report
contains neither credentials nor URLs of streams.

Options:
  --api-key KEY           Send the header X-API-Key
  --bearer TOKEN          Send the header Authorization: Bearer
  --header NAME=VALUE     Send this header; can be repeated
  --flag KEY              Key of an existing flag [default: the first flag with a value]
  --stream-wait SECONDS   Time that a stream may be silent [default: 35]
  --json                  Print the report as JSON
  -h, --help              Print this help

Exit codes: 0 if the service meets all MUST requirements that apply, 1 if it does not, 2 if it cannot be checked or if the
options are invalid.";

/// The exit code for invalid options, and for a service that cannot be checked.
const CANNOT_CHECK: u8 = 2;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(env::args_os()).await {
        Ok((text, code)) => {
            print!("{text}");
            ExitCode::from(code)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(CANNOT_CHECK)
        }
    }
}

/// Returns the text to print, and the exit code.
async fn run(arguments: impl IntoIterator<Item = OsString, IntoIter: 'static>) -> Outcome<(String, u8)> {
    let Some((service, as_json)) = options(arguments)? else {
        return Ok((format!("{HELP}\n"), 0));
    };
    let report = check(&service).await?;
    let text = if as_json { format!("{:#}\n", report.to_json()) } else { report.to_string() };
    Ok((text, u8::from(!report.conforms())))
}

/// Returns the service, and whether to print the report as JSON. Returns `None` for `--help`.
fn options(arguments: impl IntoIterator<Item = OsString, IntoIter: 'static>) -> Outcome<Option<(Service, bool)>> {
    use lexopt::{
        Arg::{Long, Short, Value},
        ValueExt,
    };

    let (mut url, mut headers, mut flag, mut wait, mut as_json) = (None, Vec::new(), None, None, false);
    let mut parser = lexopt::Parser::from_iter(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("api-key") => headers.push(("x-api-key".to_owned(), parser.value()?.string()?)),
            Long("bearer") => {
                headers.push(("authorization".to_owned(), format!("Bearer {}", parser.value()?.string()?)));
            }
            Long("header") => {
                let header = parser.value()?.string()?;
                let (name, value) = header.split_once('=').ok_or("--header needs NAME=VALUE")?;
                headers.push((name.trim().to_owned(), value.to_owned()));
            }
            Long("flag") => flag = Some(parser.value()?.string()?),
            Long("stream-wait") => wait = Some(Duration::try_from_secs_f64(parser.value()?.parse()?)?),
            Long("json") => as_json = true,
            Long("help") | Short('h') => return Ok(None),
            Value(text) if url.is_none() => url = Some(text.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let url = url.ok_or("pass the URL of a service; see --help")?;
    let mut service = Service::new(&url)?;
    for (name, value) in headers {
        service = service.header(&name, &value)?;
    }
    if let Some(flag) = flag {
        service = service.flag(flag);
    }
    if let Some(wait) = wait {
        service = service.stream_wait(wait);
    }
    Ok(Some((service, as_json)))
}
