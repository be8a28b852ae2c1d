//! [Flipswitch](https://flipswitch.io) feature flags for [actix-web](https://docs.rs/actix-web).
//!
//! A middleware finds the user of each request, extractors give handlers the flags of that user, and gates and guards restrict
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
//!             // Stands for your authentication. Registered after the flags, and therefore runs before them.
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
//! A request that reads no flag causes no request to the flag service, and one that reads many flags causes one; for a known
//! user, it causes none until a flag changes. No request fails because of flags.
//!
//! # Items by purpose
//!
//! | purpose | items |
//! |---|---|
//! | Users and visitors | [`FlipswitchMiddleware`], [`Context`], [`PreparedContext`], [`Anonymous`] |
//! | Flags in handlers | [`Flags`], [`Flag`], [`flags!`] |
//! | Flags in middleware, and of a request | [`FlagsExt`], [`RequestScope`] |
//! | Routes for some users only | [`FlagGate`], [`GateRule`], [`Unknown`] |
//! | Another route for some users | [`flag_on`], [`FlipswitchMiddleware::prefetch`] |
//! | Spawned tasks and streamed bodies | [`InRequest`], [`RequestScope::latest_flags`] |
//! | Pages with the OpenFeature web SDK | [`browser`](fn@browser) |
//! | Start, shutdown and probes | [`FlipswitchProvider`], [`Lifespan`], [`health`](fn@health) |
//! | Other values for one browser, and what a request has read | [`SignedOverrides`], [`inspection`](fn@inspection) |
//! | Tests | [`testing`], [`FlipswitchProvider::in_memory`], [`flipswitch::testing`] |
//!
//! # Features
//!
//! | feature | default | content |
//! |---|---|---|
//! | `rustls` | yes | TLS by rustls with aws-lc and the certificate roots of the platform |
//! | `rustls-no-provider` | | TLS by rustls, with the crypto provider that the application installs |
//! | `native-tls` | | TLS by the library of the platform |
//! | `gzip` | | Compressed responses of the flag service. Enables them in every reqwest client of the application |
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
