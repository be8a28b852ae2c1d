//! All errors of the crate, and their mapping to OpenFeature's error codes.

use std::{error::Error as StdError, fmt, path::PathBuf, sync::Arc, time::Duration};

use open_feature::{EvaluationError, EvaluationErrorCode};
use serde_json::error::Category;

use crate::flag_type::FlagType;

/// A cause that several waiters share.
pub(crate) type SharedError = Arc<dyn StdError + Send + Sync + 'static>;

/// The reason why the flag service returned no flags.
///
/// An evaluation never fails because of such an error: [`Flags`](crate::Flags) returns the last known values or the defaults
/// passed to the calls, and [`Flags::error`](crate::Flags::error) returns the error.
///
/// Most applications only log the error. These variants are worth handling:
///
/// | variant | what to do |
/// |---|---|
/// | [`Unauthorized`](Self::Unauthorized) | Set a valid API key with [`set_api_key`](crate::FlipswitchProvider::set_api_key) |
/// | [`InvalidContext`](Self::InvalidContext) | Pass a shorter targeting key |
/// | [`Evaluation`](Self::Evaluation) | Correct the context, for example if it lacks a targeting key that the service needs |
/// | [`ShutDown`](Self::ShutDown) | Evaluate before the provider is shut down |
///
/// All other variants describe a service that is slow, unreachable, overloaded or faulty. The provider retries by itself.
///
/// ```
/// use flipswitch::{Context, Error, FlipswitchProvider, Flags, serde_json::json};
///
/// fn report(flags: &Flags) {
///     match flags.error() {
///         None => {}
///         Some(Error::Unauthorized) => eprintln!("the API key must be replaced"),
///         Some(error @ (Error::InvalidContext(_) | Error::Evaluation { .. })) => eprintln!("fix the context: {error}"),
///         // The provider retries.
///         Some(error) => eprintln!("flags may be out of date: {error}"),
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let provider = FlipswitchProvider::in_memory(json!({}));
/// let flags = provider.flags(Context::user("x".repeat(100_000))).await;
/// assert!(matches!(flags.error(), Some(Error::InvalidContext(_))));
/// report(&flags);
/// # }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The flag service refused the API key or token (401 or 403), or requires one.
    #[error("the flag service refused the API key or token")]
    Unauthorized,
    /// The flag service limits the rate of requests (429). No request is sent until `retry_after` has elapsed.
    #[error("the flag service limits the rate of requests; retrying after {}", WholeSeconds(*.retry_after))]
    RateLimited {
        /// The wait that the service asked for.
        retry_after: Duration,
    },
    /// The flag service responded with a status that OFREP does not define.
    #[error("the flag service responded with {0}{hint}", hint = hint(.0))]
    Status(http::StatusCode),
    /// The flag service rejected this evaluation with an OFREP error code, such as `TARGETING_KEY_MISSING`.
    #[error("the flag service rejected the evaluation with {code}{}", Details(.details.as_deref()))]
    Evaluation {
        /// The OFREP error code as sent.
        code: String,
        /// Details from the service, if it sent any.
        details: Option<String>,
    },
    /// The request failed: name resolution, connection, TLS, an incomplete body, or a refused redirect.
    #[error("the request to the flag service failed")]
    Transport(#[source] SharedError),
    /// The flag service did not respond in time: within the request timeout, or before the evaluation stopped waiting
    /// ([`miss_wait`](crate::FlipswitchProviderBuilder::miss_wait)).
    #[error("the flag service did not respond in time")]
    Timeout,
    /// The response is not valid OFREP.
    #[error("the response from the flag service could not be read")]
    Decode(#[source] SharedError),
    /// The response is larger than 16 MiB.
    #[error("the response from the flag service is larger than 16 MiB")]
    TooLarge,
    /// The targeting key of the context is too large to be sent: a context can be at most 64 KiB. Attributes that cannot be sent
    /// are left out instead; see [`Context`](crate::Context).
    #[error("invalid evaluation context: {0}")]
    InvalidContext(String),
    /// The queue of waiting requests is full, or the request waited in it for too long.
    #[error("too many requests to the flag service are waiting")]
    QueueFull,
    /// The provider was shut down.
    #[error("the provider was shut down")]
    ShutDown,
}

/// The reason why a flag has no value.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlagError {
    /// The flag service does not have the flag.
    #[error("no such flag")]
    NotFound,
    /// The flag does not have the requested type.
    #[error("expected a flag of type {expected}, found {found}")]
    TypeMismatch {
        /// The requested type.
        expected: FlagType,
        /// The type of the flag.
        found: FlagType,
    },
    /// The flag service defers to the default in the code: the flag is disabled, or has no default variant.
    #[error("the flag service gave no value (reason {reason})")]
    NoValue {
        /// The reason that the service gives.
        reason: String,
    },
    /// The flag service could not evaluate the flag.
    #[error("the flag service responded with {code}{}", Details(.details.as_deref()))]
    Evaluation {
        /// The OFREP error code as sent.
        code: String,
        /// Details from the service, if it sent any.
        details: Option<String>,
    },
    /// There are no flags for this context.
    #[error("no flags from the flag service")]
    Unavailable(#[source] Error),
}

/// The reason why a provider cannot be built. The text names the option, its value (never the API key) and a remedy.
///
/// `Debug` shows the same text, because Rust prints it if `main` returns the error.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The API key or the token is empty or blank.
    #[error("{what} is empty; take it from the dashboard of the flag service")]
    EmptyApiKey {
        /// `api_key`, or the bearer token.
        what: &'static str,
    },
    /// The API key or the token cannot be sent in a header.
    #[error(
        "{what} has a character at position {position} that an HTTP header cannot contain; look for a line break, a typographic \
         quote or a stray byte"
    )]
    IllegalApiKey {
        /// `api_key`, or the bearer token.
        what: &'static str,
        /// Position of the first invalid character, counted from 1.
        position: usize,
    },
    /// The API key or the token is wrapped in something else, such as quotes.
    #[error("{what} {problem}; pass only the key or token itself")]
    WrappedApiKey {
        /// `api_key`, or the bearer token.
        what: &'static str,
        /// What the key is wrapped in. Does not contain the key.
        problem: &'static str,
    },
    /// The API key or the token is longer than 4 096 bytes.
    #[error("{what} is {length} bytes long, but at most 4096 are accepted; check that it is a key")]
    LongApiKey {
        /// `api_key`, or the bearer token.
        what: &'static str,
        /// Length of the key in bytes.
        length: usize,
    },
    /// An environment variable that [`from_env`](crate::FlipswitchProvider::from_env) or
    /// [`from_ofrep_env`](crate::FlipswitchProviderBuilder::from_ofrep_env) reads is missing.
    #[error("the environment variable {variable} is not set; set it, or pass the value in code")]
    MissingVariable {
        /// Name of the variable.
        variable: &'static str,
    },
    /// There is no API key or token to replace.
    #[error("there is no API key or token to replace; set one with auth when the provider is built")]
    NoAuth,
    /// A header cannot be added to requests. Its value is not shown.
    #[error("header {name:?}: {problem}")]
    Header {
        /// Name of the header as passed.
        name: String,
        /// The problem with it.
        problem: &'static str,
    },
    /// The base URL cannot be used. Credentials in it are not shown.
    #[error("{option} is {value:?}: {problem}; use a URL such as \"https://flags.example.com\"")]
    BaseUrl {
        /// Name of the option or of the environment variable.
        option: &'static str,
        /// The URL as given, without credentials, query and fragment.
        value: String,
        /// The problem with it.
        problem: String,
    },
    /// A duration is outside its range.
    #[error("{option} is {value:?}; pass a duration from {min:?} to {max:?}")]
    Duration {
        /// Name of the option.
        option: &'static str,
        /// The value given.
        value: Duration,
        /// The smallest accepted value.
        min: Duration,
        /// The largest accepted value.
        max: Duration,
    },
    /// A number is outside its range.
    #[error("{option} is {value}; pass a number from {min} to {max}")]
    Number {
        /// Name of the option.
        option: &'static str,
        /// The value given.
        value: u64,
        /// The smallest accepted value.
        min: u64,
        /// The largest accepted value.
        max: u64,
    },
    /// A [`store`](crate::FlipswitchProviderBuilder::store) is set, but there is no secret to encrypt its entries with.
    #[error(
        "store needs a secret: {}; set one with `secret`, and use the same one in all instances",
        if *has_key { "the API key or token is shorter than 16 bytes and could be guessed" } else { "there is no API key" }
    )]
    StoreSecret {
        /// Whether there is an API key or token.
        has_key: bool,
    },
    /// The bootstrap values are not a JSON object.
    #[error("bootstrap is a JSON {found}; pass a JSON object of flag keys and values, like {{\"dark-mode\": true}}")]
    Bootstrap {
        /// The type that was passed instead.
        found: FlagType,
    },
    /// The override file cannot be used.
    #[error(
        "override_file {}: {problem}; write a JSON object of flag keys and values, like {{\"dark-mode\": true}}",
        path.display()
    )]
    OverrideFile {
        /// Path of the file.
        path: PathBuf,
        /// The problem with it, and its position.
        problem: String,
    },
    /// An override file is set in a release build.
    #[error(
        "override_file {}: override files are for development, and this is a release build; leave it out, or allow it \
         with override_in_release(true)",
        path.display()
    )]
    OverrideInRelease {
        /// Path of the file.
        path: PathBuf,
    },
    /// No header can have this name.
    #[error("{name:?} is not a header name; pass a name like \"x-device-id\"")]
    HeaderName {
        /// The name as passed.
        name: String,
    },
    /// The visitor cookie is invalid.
    #[error("the visitor cookie has the {attribute} {value:?}: {problem}")]
    Cookie {
        /// Name of the attribute.
        attribute: &'static str,
        /// The value given.
        value: String,
        /// The problem with it.
        problem: &'static str,
    },
    /// A secret is too short.
    #[error("{option} is {length} bytes long, but must be at least {min}; use 32 random bytes")]
    ShortSecret {
        /// Name of the option.
        option: &'static str,
        /// Length in bytes.
        length: usize,
        /// The smallest accepted length.
        min: usize,
    },
    /// Overrides cannot be minted.
    #[error("overrides: {problem}")]
    Overrides {
        /// The problem with them.
        problem: String,
    },
    /// The name of the provider is invalid.
    #[error("name is {value:?}; use 1 to 32 letters, digits, `-` and `_`, as in \"billing\"")]
    Name {
        /// The name given.
        value: String,
    },
    /// The base URL needs TLS, but the crate was built without it.
    #[error(
        "base_url is {value:?}, but flipswitch was built without TLS; enable its feature `rustls` (the default), \
         `native-tls` or `rustls-no-provider`, or set an http_client that supports TLS"
    )]
    NoTls {
        /// The base URL.
        value: String,
    },
    /// The HTTP client cannot be built.
    #[error(
        "http_client: no client could be built ({cause}). If no custom client is set, TLS has no certificates or no \
         crypto provider: install the system's CA certificates or, with the feature `rustls-no-provider`, install a crypto \
         provider first; the features `rustls` and `native-tls` select a different TLS library"
    )]
    HttpClient {
        /// The reason that the HTTP client gives.
        cause: String,
    },
}

impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The reason why a provider is not ready. Evaluation still works, with bootstrap values or defaults.
///
/// `Debug` shows the text and all causes, because Rust prints it if `main` returns the error.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadyError {
    /// The flag service refused the API key. Waiting longer does not help.
    #[error("the flag service refused the API key or token; check it in the dashboard of the flag service")]
    Unauthorized,
    /// All requests before the timeout failed. The provider keeps trying.
    #[error("no request to the flag service succeeded in time")]
    Unreachable(#[source] Error),
    /// Handlers for the signals that terminate the process could not be installed.
    #[error("signal handlers could not be installed")]
    Signals(#[source] Arc<std::io::Error>),
    /// The flag service did not respond before the timeout. The provider keeps trying.
    #[error("the flag service did not respond in time")]
    Timeout,
    /// Some flags that the code declares do not exist in the flag service, or have different types there. The text names them.
    #[error("the declared flags do not match the flags of the flag service: {0}")]
    Undeclared(String),
    /// The provider was shut down.
    #[error("the provider was shut down")]
    ShutDown,
}

impl fmt::Debug for ReadyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Chain(self))
    }
}

impl Error {
    /// Wraps a failed request.
    pub(crate) fn transport(source: impl StdError + Send + Sync + 'static) -> Self {
        Self::Transport(Arc::new(source))
    }

    /// Wraps a JSON error. Keeps only its kind and position, because the parser's text quotes the input.
    pub(crate) fn json(error: &serde_json::Error) -> Self {
        Self::decode(JsonError { category: error.classify(), line: error.line(), column: error.column() })
    }

    /// Wraps an unreadable response.
    pub(crate) fn decode(source: impl StdError + Send + Sync + 'static) -> Self {
        Self::Decode(Arc::new(source))
    }
}

/// A failed request, with the status of the response and its `Retry-After`, if there were any.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Whether there was no connection.
    pub(crate) is_connect: bool,
    pub(crate) status: Option<http::StatusCode>,
    pub(crate) retry_after: Option<Duration>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, is_connect: false, status: None, retry_after: None }
    }
}

impl FlagError {
    /// Maps the error to OpenFeature's codes. The message names the flag and the causes.
    pub(crate) fn to_evaluation_error(&self, key: &str) -> EvaluationError {
        let message = format!("flag {key:?}: {}", Chain(self));
        let code = match self {
            Self::NotFound => EvaluationErrorCode::FlagNotFound,
            Self::TypeMismatch { .. } => EvaluationErrorCode::TypeMismatch,
            Self::NoValue { .. } => EvaluationErrorCode::General(message.clone()),
            Self::Evaluation { code, .. } => from_ofrep(code),
            Self::Unavailable(error) => match error {
                Error::ShutDown => EvaluationErrorCode::ProviderNotReady,
                Error::InvalidContext(_) => EvaluationErrorCode::InvalidContext,
                Error::Decode(_) => EvaluationErrorCode::ParseError,
                Error::Evaluation { code, .. } => from_ofrep(code),
                _ => EvaluationErrorCode::General(message.clone()),
            },
        };
        EvaluationError { code, message: Some(message) }
    }
}

/// Maps OFREP error codes, which are the same as OpenFeature's. An unknown code is kept.
fn from_ofrep(code: &str) -> EvaluationErrorCode {
    match code {
        "FLAG_NOT_FOUND" => EvaluationErrorCode::FlagNotFound,
        "INVALID_CONTEXT" => EvaluationErrorCode::InvalidContext,
        "PARSE_ERROR" => EvaluationErrorCode::ParseError,
        "PROVIDER_NOT_READY" => EvaluationErrorCode::ProviderNotReady,
        "TARGETING_KEY_MISSING" => EvaluationErrorCode::TargetingKeyMissing,
        "TYPE_MISMATCH" => EvaluationErrorCode::TypeMismatch,
        other => EvaluationErrorCode::General(other.to_owned()),
    }
}

/// Kind and position of an error in JSON.
#[derive(Debug, thiserror::Error)]
#[error("{} at line {line} column {column}", match .category {
    Category::Io => "unreadable",
    Category::Syntax => "invalid JSON",
    Category::Data => "unexpected JSON",
    Category::Eof => "incomplete JSON",
})]
struct JsonError {
    category: Category,
    line: usize,
    column: usize,
}

/// An error with all its causes on one line, for logs and for messages that carry no source.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn StdError);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// Returns a hint about the cause of a status.
fn hint(status: &http::StatusCode) -> &'static str {
    match *status {
        http::StatusCode::NOT_FOUND => ": it has no flags yet, or the base URL is wrong",
        http::StatusCode::METHOD_NOT_ALLOWED | http::StatusCode::NOT_IMPLEMENTED => ": the base URL may be wrong",
        _ => "",
    }
}

/// A duration, rounded up to whole seconds.
struct WholeSeconds(Duration);

impl fmt::Display for WholeSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0.as_millis().div_ceil(1_000))
    }
}

/// Details that accompany an error code.
struct Details<'a>(Option<&'a str>);

impl fmt::Display for Details<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(details) => write!(f, ": {details}"),
            None => Ok(()),
        }
    }
}
