//! A store in [Redis](https://redis.io) or [Valkey](https://valkey.io) for the provider of [Flipswitch](https://flipswitch.io)
//! feature flags, and of every other service that speaks OFREP.
//!
//! The instances of an application share the flags of their users in the store: after a change, one instance requests the flags
//! of a user, and the others find them. After a restart without the flag service, users get their last known flags.
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
//!         // The key of the encryption is derived from it. Must be the same in all instances.
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
//! Without a secret, the key is derived from the API key, which must then have 16 bytes or more.
//!
//! # Items by purpose
//!
//! | purpose | items |
//! |---|---|
//! | A server by its URL | [`RedisStore::connect`], which lists the forms of the URL |
//! | A server with certificates or TCP settings of your own | [`RedisStoreBuilder::client`] |
//! | A cluster (feature `cluster`) | [`RedisStore::builder`] and `RedisStoreBuilder::cluster` |
//! | A connection of the application, such as one from Sentinel | [`RedisStore::from_connection`] |
//! | Errors of the configuration | [`RedisStoreError`] |
//! | The versions of the crates in these signatures | [`redis`], [`flipswitch`] |
//!
//! # Outages
//!
//! The first call opens the connection. After a failed attempt, calls fail at once until the store is connected again. The store
//! retries indefinitely, with pauses of up to five seconds. It checks the connection if a call is not answered, and every five
//! seconds. It connects again if the server is silent for a second, or if a write fails because the server has become a replica.
//! While the server is unavailable, the provider works without the store, and each instance sends its own requests.
//!
//! # Data
//!
//! | key | value |
//! |---|---|
//! | `flipswitch:1:{environment}:context` | the time of the request (8 bytes, microseconds), and up to 1 MiB of encrypted flags |
//! | `flipswitch:1:{environment}:context:event:lease` | the token of the instance that requests the flags after an event |
//!
//! Environment and context are authentication codes. All keys expire. A key that is missing or has other content is written
//! again, so a server without persistence and policies such as `allkeys-lru` are suitable. All keys of one environment are on one
//! node of a cluster, whose clock they share: a cluster adds availability, not capacity.
//!
//! Each call is one script and one round trip. The server must be Redis 5 or later, or Valkey. The Redis user needs the commands
//! `EVAL`, `EVALSHA`, `TIME`, `GET`, `GETRANGE`, `STRLEN`, `SET`, `DEL`, `PTTL` and `EXISTS`, and the keys `flipswitch:1:*`. A
//! missing right is an error, and is never mistaken for missing data.
//!
//! # Features
//!
//! | feature | default | content |
//! |---|---|---|
//! | `rustls` | yes | TLS by rustls with aws-lc and the certificate roots of the platform |
//! | `rustls-no-provider` | | TLS by rustls, with the crypto provider that the application installs before it creates the store |
//! | `native-tls` | | TLS by the library of the platform. Needs `default-features = false` |
//! | `cluster` | | Redis Cluster |
//!
//! If a URL needs TLS, `rustls` installs aws-lc as the crypto provider of the process, unless there is one. If `native-tls` and
//! `rustls` are both enabled, such a URL is an error. With rustls, each attempt to connect loads the certificates of the platform
//! on the thread of the runtime, which takes some milliseconds.
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
