//! A store in [Redis](https://redis.io) or [Valkey](https://valkey.io) for the provider in the crate [`flipswitch`], which
//! evaluates feature flags from [Flipswitch](https://flipswitch.io) and from any other service that speaks OFREP.
//!
//! The instances of an application share the flags for their users in the store: after a change, one instance requests the flags
//! for a user, and the others read them from the store. If an instance restarts while the flag service is unavailable, users get
//! their last known flags.
//!
//! # Example
//!
//! ```no_run
//! use flipswitch_redis::{
//!     RedisStore,
//!     flipswitch::{Context, FlipswitchProvider},
//! };
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let provider = FlipswitchProvider::builder("an API key of the flag service")
//!         // The encryption key is derived from the secret, which must be the same in all instances.
//!         .secret(std::fs::read("/run/secrets/flipswitch")?)
//!         // With a secret and a namespace, the flags remain usable after the API key is replaced.
//!         .store_namespace("shop-production")
//!         // Does not wait for the server.
//!         .store(RedisStore::connect("rediss://user:password@cache.example.com:6379")?)
//!         .build()?;
//!
//!     let flags = provider.flags(Context::user("user-123")).await;
//!     println!("{}", flags.bool("new-checkout", false));
//!     provider.shutdown().await;
//!     Ok(())
//! }
//! ```
//!
//! Without a secret, the encryption key is derived from the API key, which must then be at least 16 bytes long.
//!
//! # Items by purpose
//!
//! | purpose | items |
//! |---|---|
//! | A server by its URL | [`RedisStore::connect`], which lists the forms of the URL |
//! | A server with certificates or TCP settings of your own | [`RedisStoreBuilder::client`] |
//! | A cluster (feature `cluster`) | [`RedisStore::builder`] and `RedisStoreBuilder::cluster` |
//! | A connection that you create yourself, such as one from Sentinel | [`RedisStore::from_connection`] |
//! | Errors of the configuration | [`RedisStoreError`] |
//! | The versions of the crates in these signatures | [`redis`], [`flipswitch`] |
//!
//! # Outages
//!
//! The first call opens the connection. After a failed attempt, calls fail immediately until the store is connected again. The
//! store retries indefinitely, with pauses of up to five seconds. It checks the connection if a call receives no response, and
//! every five seconds. It connects again if the server is silent for a second, or if a write fails because the server has become
//! a replica. While the server is unavailable, the provider works without the store, and each instance sends its own requests.
//!
//! # Data
//!
//! | key | value |
//! |---|---|
//! | `flipswitch:1:{environment}:context` | the time of the request (8 bytes, microseconds), and up to 1 MiB of encrypted flags |
//! | `flipswitch:1:{environment}:context:event:lease` | the token of the instance that requests the flags after an event |
//!
//! In a key, `{environment}` and `context` stand for authentication codes. All keys expire. A key that is missing or has
//! unexpected content is written again, so a server without persistence and policies such as `allkeys-lru` are safe to use. In a
//! cluster, all keys of one environment are on one node, because they share its clock. A cluster therefore adds availability, not
//! capacity.
//!
//! Each call runs one script in one round trip. The server must be Redis 5 or later, or Valkey. The Redis user needs the commands
//! `EVAL`, `EVALSHA`, `TIME`, `GET`, `GETRANGE`, `STRLEN`, `SET`, `DEL`, `PTTL` and `EXISTS`, and the keys `flipswitch:1:*`. A
//! missing permission is an error, and is never mistaken for missing data.
//!
//! # Features
//!
//! | feature | default | content |
//! |---|---|---|
//! | `rustls` | yes | TLS with rustls, aws-lc and the root certificates of the platform |
//! | `rustls-no-provider` | | TLS with rustls; the application installs the crypto provider before it creates the store |
//! | `native-tls` | | TLS with the library of the platform; needs `default-features = false` |
//! | `cluster` | | Redis Cluster |
//!
//! If a URL needs TLS, `rustls` installs aws-lc as the crypto provider of the process, unless one is already installed. If
//! `native-tls` and `rustls` are both enabled, such a URL is an error. With rustls, each attempt to connect loads the
//! certificates of the platform on the thread of the runtime, which takes a few milliseconds.
#![cfg_attr(docsrs, feature(doc_cfg))]

// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod connection;
mod error;
mod script;
mod server;
mod store;

pub use flipswitch;
pub use redis;

pub use crate::{
    error::RedisStoreError,
    store::{RedisStore, RedisStoreBuilder},
};
