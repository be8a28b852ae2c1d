//! What both quick starts share: the options, the flag service in a box, and the page. The shops start the same way.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program speaks to its user")]

mod follow;
pub mod testing;

use std::{
    error::Error,
    io::{self, IsTerminal},
    net::SocketAddr,
    path::Path,
    process::ExitCode,
};

use flipswitch::{FlipswitchProvider, open_feature::EvaluationContext};
use flipswitch_local::LocalServer;
use tracing_subscriber::EnvFilter;

pub use crate::follow::{Stop, follow, stop};

/// The page with two users side by side.
pub const PAGE: &str = include_str!("page.html");

/// Key for the service in a box; a real one comes from the environment.
const LOCAL_KEY: &str = "quickstart-key";

const HELP: &str = "\
An application, and a flag service in a box beside it.

  --app ADDRESS      Address of the application [default: 127.0.0.1:3000]
  --service ADDRESS  Address of the flag service in a box [default: 127.0.0.1:3001]
  --help             This text

With FLIPSWITCH_API_KEY set, flags come from the real service instead.
";

/// The options of an example.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where the application listens.
    pub app: SocketAddr,
    /// Where the flag service in a box listens.
    pub service: SocketAddr,
}

impl Options {
    /// Reads the command line; `None` if it only asked for help.
    ///
    /// # Errors
    ///
    /// An error naming the argument that cannot be read.
    pub fn from_args() -> Result<Option<Self>, lexopt::Error> {
        use lexopt::Arg::Long;

        let mut options = Self { app: ([127, 0, 0, 1], 3000).into(), service: ([127, 0, 0, 1], 3001).into() };
        let mut arguments = lexopt::Parser::from_env();
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("app") => options.app = address("--app", &mut arguments)?,
                Long("service") => options.service = address("--service", &mut arguments)?,
                Long("help") => {
                    print!("{HELP}");
                    return Ok(None);
                }
                other => return Err(other.unexpected()),
            }
        }
        Ok(Some(options))
    }

    /// Says that the application's address cannot be had.
    #[must_use]
    pub fn cannot_listen(&self, error: &io::Error) -> io::Error {
        named("--app", &io::Error::new(error.kind(), format!("cannot listen on {}: {error}", self.app)))
    }
}

fn address(option: &str, arguments: &mut lexopt::Parser) -> Result<SocketAddr, lexopt::Error> {
    use lexopt::ValueExt;

    let value = arguments.value()?.string()?;
    let refuse = |_| format!("{option}: {value:?} is no IP address with a port, like 127.0.0.1:3000");
    value.parse().map_err(|error| refuse(error).into())
}

/// Where an example's flags come from.
#[derive(Debug)]
pub struct FlagSource {
    /// The provider, not started yet.
    pub provider: FlipswitchProvider,
    /// The service in a box, unless the real one is used.
    pub service: Option<LocalServer>,
}

impl FlagSource {
    /// Takes the real service if `FLIPSWITCH_API_KEY` is set, or else starts one in this process, with the flags of
    /// `examples/flags.json`.
    ///
    /// # Errors
    ///
    /// An error naming the option, the variable or the file that cannot be used.
    pub async fn open(options: &Options) -> Result<Self, Box<dyn Error>> {
        Self::open_file(options, &Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("flags.json")).await
    }

    /// The same with the flags of another file.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub async fn open_file(options: &Options, flags: &Path) -> Result<Self, Box<dyn Error>> {
        if std::env::var_os("FLIPSWITCH_API_KEY").is_some() {
            return Ok(Self { provider: FlipswitchProvider::from_env()?, service: None });
        }
        let service =
            LocalServer::builder().flags_file(flags).listen(options.service).api_key(LOCAL_KEY).start().await.map_err(
                |error| match error.kind() {
                    // What is wrong with the file is said as it is.
                    io::ErrorKind::InvalidData | io::ErrorKind::NotFound => error,
                    _ => named("--service", &error),
                },
            )?;
        let provider = FlipswitchProvider::builder(LOCAL_KEY).base_url(service.url()).build()?;
        Ok(Self { provider, service: Some(service) })
    }

    /// Tells the user where everything is, and how to flip a flag; `app` is where the application listens.
    pub fn announce(&self, app: SocketAddr) {
        println!("Application    http://{app}/");
        println!("  for Alice    curl 'http://{app}/flags?user_id=alice&plan=premium'");
        println!("  one flag     curl 'http://{app}/feature?user_id=alice'");
        self.announce_service("examples/flags.json", "new-feature");
    }

    /// Tells the user where the flags come from, and how to flip one of them, on or off; `file` is where they are written
    /// down.
    pub fn announce_service(&self, file: &str, flag: &str) {
        match &self.service {
            Some(service) => {
                let url = service.url();
                println!("Flag service   {url} (or edit {file})");
                println!("  dashboard    {}", service.dashboard_url());
                println!("  flip a flag  curl -X PUT {url}/local/flags/{flag} -d '{{\"value\": true}}'");
            }
            None => println!("Flag service   {:?}", self.provider),
        }
    }

    /// Stops the service in a box.
    pub async fn close(self) {
        if let Some(service) = self.service {
            service.shutdown().await;
        }
    }
}

/// Says why an example ends.
#[must_use]
pub fn failed(error: &dyn Error) -> ExitCode {
    eprintln!("{error}\nTry --help.");
    ExitCode::FAILURE
}

/// An I/O error about the value of an option.
fn named(option: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{option}: {error}"))
}

/// The evaluation context of a user with a plan.
#[must_use]
pub fn context(user_id: &str, plan: Option<&str>) -> EvaluationContext {
    let context = EvaluationContext::default().with_targeting_key(user_id);
    match plan {
        Some(plan) => context.with_custom_field("plan", plan),
        None => context,
    }
}

/// Shows warnings and errors; `RUST_LOG` shows more.
pub fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,flipswitch=info"));
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(io::stderr).init();
}
