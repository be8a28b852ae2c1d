//! Code that both quick starts share, apart from the applications themselves: options, the local flag service, the page, and test
//! helpers.
#![expect(clippy::print_stdout, reason = "the programs print to the terminal")]

mod follow;
pub mod testing;

use std::{
    error::Error,
    fmt,
    io::{self, IsTerminal},
    net::SocketAddr,
    path::Path,
};

use flipswitch::{ConfigError, FlipswitchProvider};
use flipswitch_local::LocalServer;
use tracing_subscriber::EnvFilter;

pub use crate::follow::{Stop, follow, stop};

/// The page of the quick start, which shows the flags of two users.
pub const PAGE: &str = include_str!("page.html");

/// API key of the local flag service.
const LOCAL_KEY: &str = "quickstart-key";

const HELP: &str = "\
Starts an application and a local flag service.

  --app ADDRESS      Address of the application [default: 127.0.0.1:3000]
  --service ADDRESS  Address of the local flag service [default: 127.0.0.1:3001]
  --help             Prints this text

If FLIPSWITCH_API_KEY is set, flags come from the hosted service instead. This needs TLS, which
`cargo run --features tls` includes.
";

/// Options of a quick start.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Address of the application.
    pub app: SocketAddr,
    /// Address of the local flag service.
    pub service: SocketAddr,
}

impl Options {
    /// Parses the command line. For `--help`, prints the text and returns `None`.
    ///
    /// # Errors
    ///
    /// An error that names the invalid argument.
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

    /// Creates the error for an application that cannot listen on its address.
    #[must_use]
    pub fn cannot_listen(&self, error: &io::Error) -> io::Error {
        named("--app", &io::Error::new(error.kind(), format!("cannot listen on {}: {error}", self.app)))
    }
}

fn address(option: &str, arguments: &mut lexopt::Parser) -> Result<SocketAddr, lexopt::Error> {
    use lexopt::ValueExt;

    let value = arguments.value()?.string()?;
    let invalid = |_| format!("{option}: {value:?} is not an IP address with a port, such as 127.0.0.1:3000");
    value.parse().map_err(|error| invalid(error).into())
}

/// The provider of a quick start, and its local flag service.
#[derive(Debug)]
pub struct FlagSource {
    /// The provider, which has not been started.
    pub provider: FlipswitchProvider,
    /// The local flag service, which stops when it is dropped. `None` if the hosted service is used.
    pub service: Option<LocalServer>,
}

impl FlagSource {
    /// Starts a local flag service with the flags of `examples/flags.json`. If `FLIPSWITCH_API_KEY` is set, uses the hosted
    /// service instead.
    ///
    /// # Errors
    ///
    /// An error that names the invalid option, variable or file.
    pub async fn open(options: &Options) -> Result<Self, Box<dyn Error>> {
        if std::env::var_os("FLIPSWITCH_API_KEY").is_some() {
            let provider = FlipswitchProvider::from_env().map_err(|error| match error {
                ConfigError::NoTls { .. } => format!("{error}. Here: `cargo run --features tls`").into(),
                error => Box::<dyn Error>::from(error),
            })?;
            return Ok(Self { provider, service: None });
        }
        let flags = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("flags.json");
        let service = LocalServer::builder().flags_file(flags).listen(options.service).api_key(LOCAL_KEY).start();
        let service = service.await.map_err(|error| match error.kind() {
            // Errors about the file already name it.
            io::ErrorKind::InvalidData | io::ErrorKind::NotFound => error,
            _ => named("--service", &error),
        })?;
        let provider = FlipswitchProvider::builder(LOCAL_KEY).base_url(service.url()).build()?;
        Ok(Self { provider, service: Some(service) })
    }

    /// Prints the URLs of the application and of the flag service, and how to flip a flag.
    pub fn announce(&self, app: SocketAddr) {
        println!("Application    http://{app}/");
        println!("  for Alice    curl 'http://{app}/flags?user_id=alice&plan=premium'");
        println!("  one flag     curl 'http://{app}/feature?user_id=alice'");
        match &self.service {
            Some(service) => {
                let url = service.url();
                println!("Flag service   {url} (or edit examples/flags.json)");
                println!("  dashboard    {}", service.dashboard_url());
                println!("  flip a flag  curl -X PUT {url}/local/flags/new-feature -d '{{\"value\": true}}'");
            }
            None => println!("Flag service   {:?}", self.provider),
        }
    }
}

/// Error of the `main` function of a quick start, which prints it in its `Debug` form.
pub struct Failure(Box<dyn Error>);

impl<E: Into<Box<dyn Error>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nTry --help.", self.0)
    }
}

/// Adds the name of an option to an error.
fn named(option: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{option}: {error}"))
}

/// Logs warnings and errors, and what the provider does. `RUST_LOG` sets a different filter.
pub fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,flipswitch=info"));
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(io::stderr).init();
}
