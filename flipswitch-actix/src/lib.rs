//! [Flipswitch](https://flipswitch.io) feature flags for [actix-web](https://docs.rs/actix-web).
//!
//! A middleware finds the user of each request, extractors give handlers the flags for that user, and gates and guards restrict
//! routes by flags. The flags come from Flipswitch, or from any other service that speaks OFREP, such as flagd, GO Feature Flag
//! or Flipt ([`FlipswitchProvider::ofrep`]).
//!
//! ```no_run
//! use actix_web::{App, HttpMessage, HttpServer, dev::Service, web};
//! use flipswitch_actix::{Context, FlagGate, Flags, FlipswitchMiddleware, FlipswitchProvider, Lifespan};
//!
//! struct User {
//!     id: String,
//!     plan: String,
//! }
//!
//! async fn checkout(flags: Flags) -> &'static str {
//!     if flags.bool("new-checkout", false) { "new" } else { "old" }
//! }
//!
//! #[actix_web::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // Reads FLIPSWITCH_API_KEY and, if it is set, FLIPSWITCH_BASE_URL. All workers share the provider.
//!     let provider = FlipswitchProvider::from_env()?;
//!     // Starts the provider before the server, and shuts it down after the server has drained.
//!     let lifespan = Lifespan::builder(provider.clone()).start().await?;
//!     let server = HttpServer::new(move || {
//!         let flags = FlipswitchMiddleware::new(provider.clone())
//!             .with_user(|user: &User| Context::user(&user.id).with("plan", &user.plan));
//!         App::new()
//!             .route("/checkout", web::get().to(checkout))
//!             .service(web::resource("/beta").get(async || "Welcome").wrap(FlagGate::enabled("beta")))
//!             .wrap(flags)
//!             // Stands in for your authentication. Registered after the flags, so it runs before them.
//!             .wrap_fn(|request, inner| {
//!                 request.extensions_mut().insert(User { id: "user-123".into(), plan: "premium".into() });
//!                 inner.call(request)
//!             })
//!     })
//!     .shutdown_signal(lifespan.signal())
//!     .bind("127.0.0.1:3000")?
//!     .run();
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
//! | Users and visitors | [`FlipswitchMiddleware`], [`Context`], [`PreparedContext`], [`Anonymous`] |
//! | Flags in handlers | [`Flags`], [`Flag`], [`flags!`] |
//! | Flags outside handlers, such as in middleware | [`FlagsExt`], [`RequestScope`] |
//! | Routes for some users only | [`FlagGate`], [`GateRule`], [`Unknown`] |
//! | Another route for some users | [`flag_on`], [`FlipswitchMiddleware::prefetch`] |
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
//! | `rustls` | yes | TLS with rustls, aws-lc and the root certificates of the platform |
//! | `rustls-no-provider` | | TLS with rustls and the crypto provider that the application installs |
//! | `native-tls` | | TLS with the library of the platform |
//! | `gzip` | | Compressed responses from the flag service. Enables them in every reqwest client of the application |
//!
//! # Guide
//!
//! The guide, `docs/actix-web.md` in the repository, shows each task with a complete example: actix-identity
//! and sessions, visitors, gates and guards, flags in a page, OpenFeature clients, WebSockets, and tests.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod browser;
mod extract;
mod gate;
mod guard;
mod health;
mod inspection;
mod middleware;
pub mod testing;

pub use flipswitch::{
    self, Auth, Context, ContextId, EvaluationContext, EvaluationEvents, FlipswitchProvider, FlipswitchProviderBuilder,
    InRequest, IntoContext, Lifespan, PreparedContext, RequestScope, SignedOverrides, flags, http,
    integration::{Anonymous, AnonymousCookie, FlagKey, GateFlag, GateRule, SameSite, Unknown},
    time,
};

pub use crate::{
    browser::{BrowserRoutes, browser},
    extract::{ExtractFuture, Flag, Flags, FlagsExt, MissingMiddleware},
    gate::{Fallback, FlagGate, GateFuture, GateService},
    guard::flag_on,
    health::health,
    inspection::inspection,
    middleware::{FlipswitchMiddleware, FlipswitchService, ResponseFuture},
};

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
