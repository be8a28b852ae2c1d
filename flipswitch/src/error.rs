//! Every error of the crate, and the one place where they become OpenFeature's.

use std::{error::Error as StdError, fmt, path::PathBuf, sync::Arc, time::Duration};

use open_feature::{EvaluationError, EvaluationErrorCode};
use serde_json::error::Category;

use crate::FlagType;

/// A cause that several waiters can hold at once.
pub(crate) type SharedError = Arc<dyn StdError + Send + Sync + 'static>;

/// Why no answer could be had from the flag service.
///
/// An evaluation never fails because of it: [`Flags`](crate::Flags) hands out the last known values or the caller's
/// defaults and keeps the error in [`Flags::error`](crate::Flags::error).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The service refused the API key (401 or 403).
    #[error("the flag service refused the API key")]
    Unauthorized,
    /// The service asked for a pause (429). No request is made before it is over.
    #[error("the flag service limits the rate of requests and asked for a pause of {retry_after:?}")]
    RateLimited {
        /// How long the service asked us to wait.
        retry_after: Duration,
    },
    /// The service answered with a status that OFREP gives no meaning to.
    #[error("the flag service answered {0}")]
    Status(http::StatusCode),
    /// The service refused this evaluation with an OFREP error code, for instance `TARGETING_KEY_MISSING`.
    #[error("the flag service refused the evaluation with {code}{}", Details(.details.as_deref()))]
    Evaluation {
        /// The OFREP error code as sent.
        code: String,
        /// The service's own words, if it had any.
        details: Option<String>,
    },
    /// The request failed on its way: name resolution, connection, TLS, a broken body, a refused redirect.
    #[error("the request to the flag service failed")]
    Transport(#[source] SharedError),
    /// No answer came within the request timeout.
    #[error("the flag service did not answer in time")]
    Timeout,
    /// The answer is not what OFREP describes.
    #[error("the answer of the flag service could not be read")]
    Decode(#[source] SharedError),
    /// The answer is larger than 16 MiB.
    #[error("the answer of the flag service is larger than 16 MiB")]
    TooLarge,
    /// The evaluation context cannot be sent; the text names the field.
    #[error("invalid evaluation context: {0}")]
    InvalidContext(String),
    /// So many requests wait for their turn already that this one was not even made to.
    #[error("too many requests to the flag service wait already")]
    Crowded,
    /// The provider was shut down.
    #[error("the provider was shut down")]
    ShutDown,
}

/// Why a flag has no value in an answer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlagError {
    /// The answer does not have the flag.
    #[error("no such flag")]
    NotFound,
    /// The flag has another type than the one asked for.
    #[error("expected a flag of type {expected}, found {found}")]
    TypeMismatch {
        /// The type asked for.
        expected: FlagType,
        /// The type of the flag.
        found: FlagType,
    },
    /// The service leaves the value to the code: the flag is disabled or has no default variant.
    #[error("the flag service gave no value (reason {reason})")]
    NoValue {
        /// The service's reason.
        reason: String,
    },
    /// The service could not evaluate the flag.
    #[error("the flag service answered {code}{}", Details(.details.as_deref()))]
    Evaluation {
        /// The OFREP error code as sent.
        code: String,
        /// The service's own words, if it had any.
        details: Option<String>,
    },
    /// There is no answer for this context.
    #[error("no answer from the flag service")]
    Unavailable(#[source] Error),
}

/// Why a provider cannot be built. Each text names the option, its value (never the API key) and the remedy.
///
/// `Debug` shows the same text, since that is what `main` prints of the error that it returns.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The API key is empty or blank.
    #[error("api_key is empty; pass the key of an environment, from its page in the Flipswitch dashboard")]
    EmptyApiKey,
    /// The API key cannot be sent in a header.
    #[error(
        "api_key has a character at position {position} that no HTTP header can carry; \
         look for a line break, a quote from an editor or a stray byte"
    )]
    IllegalApiKey {
        /// Position of the first offending character, counted from 1.
        position: usize,
    },
    /// The API key is longer than 4 096 bytes.
    #[error("api_key has {length} bytes; at most 4096 are sent in a header, so this is hardly a key")]
    LongApiKey {
        /// Length of the key in bytes.
        length: usize,
    },
    /// An environment variable that [`from_env`](crate::FlipswitchProvider::from_env) reads is missing.
    #[error("the environment variable {variable} is not set; set it, or pass the value in code")]
    MissingVariable {
        /// Name of the variable.
        variable: &'static str,
    },
    /// The base URL cannot be used. Credentials in it are not shown.
    #[error("base_url is {value:?}: {problem}; write it like \"https://api.flipswitch.io\"")]
    BaseUrl {
        /// The URL as given, without credentials, query and fragment.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A duration is outside its range.
    #[error("{option} is {value:?}; give it a duration from {min:?} to {max:?}")]
    Duration {
        /// Name of the option.
        option: &'static str,
        /// The value given.
        value: Duration,
        /// The least value taken.
        min: Duration,
        /// The greatest value taken.
        max: Duration,
    },
    /// A number is outside its range.
    #[error("{option} is {value}; give it a number from {min} to {max}")]
    Number {
        /// Name of the option.
        option: &'static str,
        /// The value given.
        value: u64,
        /// The least value taken.
        min: u64,
        /// The greatest value taken.
        max: u64,
    },
    /// The bootstrap values are not a JSON object.
    #[error("bootstrap is {found}; give it a JSON object of flag keys and values, like {{\"dark-mode\": true}}")]
    Bootstrap {
        /// What was given instead of an object.
        found: &'static str,
    },
    /// The override file cannot be used.
    #[error(
        "override_file {}: {problem}; it holds a JSON object of flag keys and values, like {{\"dark-mode\": true}}",
        path.display()
    )]
    OverrideFile {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong with it, and where.
        problem: String,
    },
    /// An override file in a release build.
    #[error(
        "override_file {}: files are for development, and this is a release build; leave it out, or allow it by \
         override_in_release(true)",
        path.display()
    )]
    OverrideInRelease {
        /// Path of the file.
        path: PathBuf,
    },
    /// The base URL needs TLS, and the crate was built without it.
    #[error(
        "base_url is {value:?}, and flipswitch was built without TLS; enable its feature `rustls` (the default), \
         `native-tls` or `rustls-no-provider`, or give it an http_client that speaks TLS"
    )]
    NoTls {
        /// The base URL.
        value: String,
    },
    /// The HTTP client cannot be built.
    #[error(
        "http_client: no client could be built ({cause}). Without a custom client this means that TLS has nothing to \
         trust or to work with: install the system's CA certificates, or, with the feature `rustls-no-provider`, \
         install a crypto provider first; the features `rustls` and `native-tls` choose another TLS library"
    )]
    HttpClient {
        /// The HTTP library's reason.
        cause: String,
    },
}

impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why a provider is not ready yet. Evaluation works all the same, with bootstrap values or defaults.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadyError {
    /// The service refused the API key; waiting longer does not help.
    #[error("the flag service refused the API key; check it on the environment's page in the Flipswitch dashboard")]
    Unauthorized,
    /// Requests failed until the time was over. The provider keeps trying.
    #[error("the flag service could not be reached in time")]
    Unreachable(#[source] Error),
    /// The signals that ask the process to end cannot be listened for.
    #[error("signals cannot be listened for")]
    Signals(#[source] Arc<std::io::Error>),
    /// Nothing was heard until the time was over. The provider keeps trying.
    #[error("the flag service did not answer in time")]
    Timeout,
    /// The provider was shut down.
    #[error("the provider was shut down")]
    ShutDown,
}

impl Error {
    /// Wraps a failure on the way to the service.
    pub(crate) fn transport(source: impl StdError + Send + Sync + 'static) -> Self {
        Self::Transport(Arc::new(source))
    }

    /// Wraps a failure to read JSON. Of the parser's words only the place is kept: they quote the text.
    pub(crate) fn json(error: &serde_json::Error) -> Self {
        Self::decode(NotAsExpected { category: error.classify(), line: error.line(), column: error.column() })
    }

    /// Wraps a failure to read an answer.
    pub(crate) fn decode(source: impl StdError + Send + Sync + 'static) -> Self {
        Self::Decode(Arc::new(source))
    }
}

impl FlagError {
    /// Maps the error to OpenFeature's codes. The message names the flag and, where there is one, the cause.
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

/// OFREP's error codes are OpenFeature's; one that is unknown is kept as it is.
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

/// Where and how a text is not the JSON that was expected.
#[derive(Debug, thiserror::Error)]
#[error("{} at line {line} column {column}", match .category {
    Category::Io => "unreadable",
    Category::Syntax => "no JSON",
    Category::Data => "other JSON than expected",
    Category::Eof => "JSON that ends too early",
})]
struct NotAsExpected {
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

/// Optional words of the service behind a code.
struct Details<'a>(Option<&'a str>);

impl fmt::Display for Details<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(details) => write!(f, ": {details}"),
            None => Ok(()),
        }
    }
}
