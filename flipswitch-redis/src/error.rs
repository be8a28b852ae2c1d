//! Errors of the configuration, and of single calls.

use std::sync::Arc;

use redis::RedisError;

/// An error in the configuration of a [`RedisStore`](crate::RedisStore). URLs in it have no user, password or query.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisStoreError {
    /// The URL is not the URL of a Redis server.
    #[error("{url} is not a URL of a Redis server: {reason}")]
    InvalidUrl {
        /// The URL.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The URL needs TLS, and no TLS feature is enabled.
    #[error("{url} needs TLS: enable the feature `rustls`, `rustls-no-provider` or `native-tls` of flipswitch-redis")]
    NoTls {
        /// The URL.
        url: String,
    },
    /// The URL needs TLS, and the features `rustls` and `native-tls` are both enabled, in which case `redis` trusts no
    /// certificate.
    #[error(
        "{url} needs TLS: enable one of the features `rustls` and `native-tls` of flipswitch-redis, not both; `rustls` \
         is a default feature"
    )]
    TwoTlsLibraries {
        /// The URL.
        url: String,
    },
    /// The URL needs TLS, the feature `rustls-no-provider` is enabled, and the application has installed no crypto provider.
    #[error("{url} needs TLS: no rustls crypto provider is installed in this process")]
    NoCryptoProvider {
        /// The URL.
        url: String,
    },
    /// The builder has no server, or the list of a cluster's nodes is empty.
    #[error("a Redis store needs a URL or a client")]
    NoServer,
}

/// The reason why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Redis(#[from] RedisError),
    #[error("{0}")]
    Down(Arc<str>),
    #[error("no tokio runtime is running")]
    NoRuntime,
    #[error("the entry is {0} bytes, but the store keeps at most {max}", max = crate::store::MAX_ENTRY_BYTES)]
    TooLarge(usize),
    #[error("could not get random numbers: {0}")]
    Random(getrandom::Error),
}

/// The error of a failed call, with the name of the server.
#[derive(Debug, thiserror::Error)]
#[error("{server}: {error}")]
pub(crate) struct Failure {
    pub(crate) server: Arc<str>,
    pub(crate) error: CallError,
}
