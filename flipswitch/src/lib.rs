//! The [OpenFeature](https://openfeature.dev) provider for [Flipswitch](https://flipswitch.io), a hosted feature-flag service,
//! and for any other service that speaks OFREP, the OpenFeature Remote Evaluation Protocol. It requests all flags for a user
//! together, keeps them in memory, and receives changes over a stream.
//!
//! The crates `flipswitch-axum` and `flipswitch-actix` integrate the provider into axum and actix-web. `docs/README.md` in the
//! repository lists the guides.
//!
//! # Example
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use flipswitch::{Context, FlipswitchProvider};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // Reads FLIPSWITCH_API_KEY and, if it is set, FLIPSWITCH_BASE_URL.
//!     let provider = FlipswitchProvider::from_env()?;
//!     // Optional: waits until the service has responded. Otherwise the first evaluation starts the provider.
//!     provider.ready(Duration::from_secs(5)).await?;
//!
//!     // Evaluates all flags for the user. Reading one of them is a lookup in memory.
//!     let flags = provider.flags(Context::user("user-123").with("plan", "premium")).await;
//!     if flags.bool("new-checkout", false) {
//!         println!("theme {}", flags.string("theme", "light"));
//!     }
//!     provider.shutdown().await;
//!     Ok(())
//! }
//! ```
//!
//! [`FlipswitchProvider::in_memory`] creates a provider that needs no service, for tests and demonstrations.
//!
//! # Outages
//!
//! An evaluation never fails. If the service is slow or unavailable, or sends invalid responses, the evaluation returns the last
//! known flags for the context, which may be up to [`max_stale`](FlipswitchProviderBuilder::max_stale) old. If there are none, it
//! returns the [`bootstrap`](FlipswitchProviderBuilder::bootstrap) values or the defaults in the code. [`Flags::is_stale`] and
//! [`Flags::error`] report these cases.
//!
//! An evaluation waits at most [`stale_wait`](FlipswitchProviderBuilder::stale_wait) for a context with stale flags, and at most
//! [`miss_wait`](FlipswitchProviderBuilder::miss_wait) for one without flags. While the service counts as down, the evaluation
//! does not wait.
//!
//! # Overview
//!
//! | purpose | items |
//! |---|---|
//! | Create a provider | [`FlipswitchProvider`], [`FlipswitchProviderBuilder`], [`Auth`] |
//! | Describe the user | [`Context`], [`PreparedContext`], [`IntoContext`] |
//! | Read flags | [`Flags`], [`FlagEvaluation`], [`Flags::why`], [`Error`] |
//! | Declare flags with key, type and default | [`flags!`], [`manifest()`] |
//! | Follow changes | [listeners](FlipswitchProvider::add_flag_change_listener), [`events`](FlipswitchProvider::events), [`ProviderEvent`] |
//! | Monitor the provider | [`health`](FlipswitchProvider::health), [`stats`](FlipswitchProvider::stats), [`usage`](FlipswitchProvider::usage), [`EvaluationEvents`] |
//! | Share flags between instances, or keep them across restarts | [`store`](FlipswitchProviderBuilder::store), [`CacheStore`] |
//! | Start and stop the provider with a server | [`Lifespan`] |
//! | Test an application | [`testing`] |
//! | Use an OpenFeature client | [`FlipswitchProvider`](FlipswitchProvider#openfeature-clients), [`open_feature`] |
//! | Connect flags to the requests of a web application | [`RequestScope`], [`InRequest`], [`integration`] |
//! | Override flags in individual browsers | [`SignedOverrides`] |
//!
//! [`open_feature`]: https://docs.rs/open-feature
//!
//! # Features
//!
//! | feature | effect |
//! |---|---|
//! | `rustls` (default) | TLS with rustls, aws-lc and the root certificates of the platform |
//! | `rustls-no-provider` | TLS with rustls; the application installs the crypto provider |
//! | `native-tls` | TLS with the library of the platform |
//! | `gzip` | compressed responses from the flag service; also enables them in other reqwest clients of the application |
//!
//! Without a TLS feature, only `http` URLs can be used, unless `http_client` sets a client that supports TLS.
//!
//! # Runtime
//!
//! The provider sends all requests on its own thread. It can therefore be used from several runtimes at the same time, including
//! single-threaded ones, and without a runtime. [`runtime`](FlipswitchProviderBuilder::runtime) sets a different runtime.
//!
//! Forking after the provider has started is not supported, and neither is WebAssembly.

mod cache;
mod cache_store;
mod clock;
mod config;
mod context;
mod credential;
mod error;
mod evaluator;
mod events;
mod feature_provider;
mod flag_type;
mod flags;
mod lifespan;
mod provider;
mod request;
mod runtime;
mod sanitize;
mod secret;
mod stats;
mod store;
pub mod testing;
mod updates;
mod warn_once;
mod wire;

pub use async_trait::async_trait;
pub use http;
pub use open_feature::{self, EvaluationContext};
pub use reqwest;
pub use serde_json;
pub use time;

pub use crate::{
    cache_store::{CacheStore, Lease, Leased, Lookup, StoreError, StoredEntry},
    config::{ContextId, EvaluationEvents},
    context::{
        attribute::AttributeValue,
        context::{Context, PreparedContext},
        into_context::IntoContext,
    },
    credential::Auth,
    error::{ConfigError, Error, FlagError, ReadyError},
    events::{
        bus::Subscription,
        events::{ConnectionStatus, FlagChangeEvent, ProviderEvent, ProviderEvents},
        health::{Health, HealthState},
    },
    flag_type::FlagType,
    flags::{
        declare::{DeclaredFlag, FlagDef, FlagDefault, manifest},
        evaluation::FlagEvaluation,
        usage::{FlagUsage, Usage},
    },
    lifespan::lifespan::{Lifespan, LifespanBuilder},
    provider::{
        builder::FlipswitchProviderBuilder,
        explanation::Explanation,
        flags::{FlagSource, Flags},
        provider::{FlipswitchProvider, WeakProvider},
    },
    request::{
        integration,
        overrides::{OverrideToken, SignedOverrides},
        scope::RequestScope,
        task_local::{Carried, InRequest, Scoped},
    },
    stats::{Stats, Throttling},
};

/// Compiles the example in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
