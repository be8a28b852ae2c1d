//! [Flipswitch](https://flipswitch.io) feature flags for [axum](https://docs.rs/axum) and any other tower service that handles
//! HTTP requests.
//!
//! A layer finds the user of each request, extractors give handlers the flags for that user, and gates restrict routes by
//! flags. The flags come from Flipswitch, or from any other service that speaks OFREP, such as flagd, GO Feature Flag or Flipt
//! ([`FlipswitchProvider::ofrep`]).
//!
//! ```no_run
//! use axum::{Extension, Router, routing::get};
//! use flipswitch_axum::{Context, FlagGate, Flags, FlipswitchLayer, FlipswitchProvider, Lifespan};
//!
//! #[derive(Clone)]
//! struct User {
//!     id: String,
//!     plan: String,
//! }
//!
//! async fn checkout(flags: Flags) -> &'static str {
//!     if flags.bool("new-checkout", false) { "new" } else { "old" }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // Reads FLIPSWITCH_API_KEY and, if it is set, FLIPSWITCH_BASE_URL.
//!     let provider = FlipswitchProvider::from_env()?;
//!     let flags = FlipswitchLayer::new(provider.clone())
//!         .with_user(|user: &User| Context::user(&user.id).with("plan", &user.plan));
//!     // Stands in for your authentication, which puts the user into the request's extensions.
//!     let authentication = Extension(User { id: "user-123".into(), plan: "premium".into() });
//!     let app: Router = Router::new()
//!         .route("/checkout", get(checkout))
//!         .route("/beta", get(async || "Welcome").layer(FlagGate::enabled("beta")))
//!         .layer(flags)
//!         // The layer that is added last runs first: authentication runs before the flags.
//!         .layer(authentication);
//!
//!     // Starts the provider before the server, and shuts it down after the server has drained.
//!     let lifespan = Lifespan::builder(provider).start().await?;
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//!     let server = axum::serve(listener, app).with_graceful_shutdown(lifespan.signal());
//!     lifespan.run(server).await?;
//!     Ok(())
//! }
//! ```
//!
//! A request that reads no flags sends no request to the flag service. A request that reads flags sends at most one, however many
//! flags it reads, and none if the user's flags are in memory and no flag has changed. No request fails because of flags.
//!
//! # Items by purpose
//!
//! | purpose | items |
//! |---|---|
//! | Users and visitors | [`FlipswitchLayer`], [`Context`], [`PreparedContext`], [`Anonymous`] |
//! | Flags in handlers | [`Flags`], [`Flag`], [`flags!`] |
//! | Flags in middleware, tonic and hyper | [`FlagsExt`], [`RequestScope`] |
//! | Routes for some users only | [`FlagGate`], [`GateRule`], [`Unknown`] |
//! | Spawned tasks and streamed bodies | [`InRequest`], [`RequestScope::latest_flags`] |
//! | Pages with the OpenFeature web SDK | [`browser`](fn@browser) |
//! | Startup, shutdown and probes | [`FlipswitchProvider`], [`Lifespan`], [`health`](fn@health) |
//! | Flag overrides in one browser, and what a request has read | [`SignedOverrides`], [`inspection`](fn@inspection) |
//! | Tests | [`testing`], [`FlipswitchProvider::in_memory`], [`flipswitch::testing`] |
//!
//! # Features
//!
//! | feature | default | content |
//! |---|---|---|
//! | `browser` | yes | [`browser`](fn@browser): routes that serve flags to browsers |
//! | `rustls` | yes | TLS with rustls, aws-lc and the root certificates of the platform |
//! | `rustls-no-provider` | | TLS with rustls and the crypto provider that the application installs |
//! | `native-tls` | | TLS with the library of the platform |
//! | `gzip` | | Compressed responses from the flag service. Enables them in every reqwest client of the application |
//!
//! # Guide
//!
//! The guide, `docs/axum.md` in the repository, shows each task with a complete example: axum-login and
//! sessions, visitors, gates, flags in a page, OpenFeature clients, WebSockets, and tests.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "browser")]
mod browser;
mod extract;
mod gate;
mod health;
mod inspection;
mod layer;
pub mod testing;

pub use flipswitch::{
    self, Auth, Context, ContextId, EvaluationContext, EvaluationEvents, FlipswitchProvider, FlipswitchProviderBuilder,
    InRequest, IntoContext, Lifespan, PreparedContext, RequestScope, SignedOverrides, flags, http,
    integration::{Anonymous, AnonymousCookie, FlagKey, GateFlag, GateRule, SameSite, Unknown},
    time,
};

#[cfg(feature = "browser")]
#[cfg_attr(docsrs, doc(cfg(feature = "browser")))]
pub use crate::browser::{BrowserRoutes, browser};
pub use crate::{
    extract::{Flag, Flags, FlagsExt, MissingLayer},
    gate::{FlagGate, GateFuture, GateService},
    health::{HealthService, health},
    inspection::{InspectionService, inspection},
    layer::{FlipswitchLayer, FlipswitchService, RequestExtension, ResponseFuture},
};

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
