//! The program: `flipswitch-local --flags FILE --listen 127.0.0.1:3001 --api-key KEY`.
//! Its subcommand `override` mints flag overrides, `declare` prints source code that declares flags, and `check` compares a flag
//! manifest with a service.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program writes to its terminal")]

mod check_command;
mod declarations;
mod declare_command;
mod manifest;
mod override_command;
mod overrides;
mod service_flags;

use std::{ffi::OsStr, io::IsTerminal, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use flipswitch_local::LocalServer;
use tracing_subscriber::EnvFilter;

const HELP: &str = "\
A local feature-flag service for development and tests. It serves flags over OFREP with a stream of changes, and has a
web dashboard.

Usage: flipswitch-local [OPTIONS]
       flipswitch-local override [OPTIONS] FLAG=VALUE...
       flipswitch-local declare --manifest FILE | --service URL
       flipswitch-local check --manifest FILE --service URL

  --flags FILE           File of flags, in flagd's format or {\"key\": value}; reloaded on changes
  --listen ADDRESS       Address to listen on [default: 127.0.0.1:3001]
  --api-key KEY          API key that clients must send [default: any]
  --heartbeat SECONDS    Interval between heartbeats on streams [default: 15]
  --event-streams        Also announce changes on OFREP event streams, for other OFREP clients
  --allow-origin ORIGIN  Allow pages from this origin, such as http://localhost:5173, or * for any, to use the API;
                         can be repeated [default: none]
  --expose-control       Allow other machines to use the dashboard and change flags
  --help                 Print this help
  --version              Print the version

Subcommands (each has a --help, for example flipswitch-local override --help):
  override  Mint flag overrides for one browser
  declare   Print Rust source that declares flags
  check     Compare a flag manifest with a service

Example:
  echo '{\"dark-mode\": false, \"max-items\": 10}' > flags.json
  flipswitch-local --flags flags.json
";

struct Options {
    flags: Option<PathBuf>,
    listen: SocketAddr,
    api_key: Option<String>,
    heartbeat: Duration,
    expose_control: bool,
    event_streams: bool,
    allowed_origins: Vec<String>,
}

enum Command {
    Serve(Options),
    Print(String),
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == "override").is_some() {
        return override_command::run(arguments);
    }
    if arguments.next_if(|first| first == "declare").is_some() {
        return declare_command::run(arguments).await;
    }
    if arguments.next_if(|first| first == "check").is_some() {
        return check_command::run(arguments).await;
    }
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let options = match command() {
        Ok(Command::Serve(options)) => options,
        Ok(Command::Print(text)) => {
            println!("{}", text.trim_end());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("flipswitch-local: {error}\nTry --help.");
            return ExitCode::from(2);
        }
    };
    match serve(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flipswitch-local: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: Options) -> std::io::Result<()> {
    let mut builder = LocalServer::builder()
        .listen(options.listen)
        .heartbeat(options.heartbeat)
        .expose_control(options.expose_control)
        .event_streams(options.event_streams);
    for origin in options.allowed_origins {
        builder = builder.allow_origin(origin);
    }
    if let Some(flags) = options.flags {
        builder = builder.flags_file(flags);
    }
    if let Some(api_key) = options.api_key {
        builder = builder.api_key(api_key);
    }
    let server = builder.start().await.map_err(|error| match error.kind() {
        // Errors of these kinds are never about the flags file.
        std::io::ErrorKind::AddrInUse | std::io::ErrorKind::AddrNotAvailable => {
            std::io::Error::new(error.kind(), format!("--listen: {error}"))
        }
        _ => error,
    })?;
    let url = server.url();
    println!("Flags at {url}");
    let dashboard = server.dashboard_url();
    let control = dashboard.trim_end_matches('/');
    println!("  dashboard: {dashboard}");
    println!("  set:    curl -X PUT {control}/local/flags/my-flag -d '{{\"value\": true}}'");
    println!("  remove: curl -X DELETE {control}/local/flags/my-flag");
    println!("  list:   curl {control}/local/flags");
    termination_requested().await?;
    server.shutdown().await;
    Ok(())
}

#[cfg(unix)]
async fn termination_requested() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        outcome = tokio::signal::ctrl_c() => outcome,
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(not(unix))]
async fn termination_requested() -> std::io::Result<()> {
    tokio::signal::ctrl_c().await
}

fn command() -> Result<Command, lexopt::Error> {
    use lexopt::{Arg::Long, ValueExt};

    let mut options = Options {
        flags: None,
        listen: SocketAddr::from(([127, 0, 0, 1], 3001)),
        api_key: None,
        heartbeat: Duration::from_secs(15),
        expose_control: false,
        event_streams: false,
        allowed_origins: Vec::new(),
    };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("flags") => options.flags = Some(arguments.value()?.into()),
            Long("listen") => {
                options.listen = parse_value("--listen", &arguments.value()?, |text| {
                    text.parse().map_err(|_| "must be an IP address with a port, such as 127.0.0.1:3001".to_owned())
                })?;
            }
            Long("api-key") => options.api_key = Some(arguments.value()?.string()?),
            Long("heartbeat") => {
                options.heartbeat = parse_value("--heartbeat", &arguments.value()?, |text| {
                    let seconds = text.parse().map_err(|_| "must be a number of seconds, such as 15".to_owned())?;
                    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
                })?;
            }
            Long("event-streams") => options.event_streams = true,
            Long("allow-origin") => options.allowed_origins.push(arguments.value()?.string()?),
            Long("expose-control") => options.expose_control = true,
            Long("help") => return Ok(Command::Print(HELP.to_owned())),
            Long("version") => {
                return Ok(Command::Print(concat!("flipswitch-local ", env!("CARGO_PKG_VERSION")).to_owned()));
            }
            other => return Err(other.unexpected()),
        }
    }
    Ok(Command::Serve(options))
}

/// Parses the value of an option. An error names both.
fn parse_value<T>(
    option: &str,
    value: &OsStr,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, lexopt::Error> {
    let text = value.to_string_lossy();
    parse(&text).map_err(|problem| format!("{option} {text}: {problem}").into())
}
