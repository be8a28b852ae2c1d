//! A feature-flag service on your own machine, for development and tests.
//!
//! The service implements the protocol of the real service (OFREP and a stream of changes) and needs no account and no network.
//! This crate is a library for tests. It is also a program with a dashboard. The guide, `docs/local.md` in the repository,
//! describes the options of the program, the format of its flags file, and the endpoints under `/local`, through which `curl` can
//! change flags and faults.
//!
//! # Example
//!
//! A test starts the service, and then starts the application with the URL and the API key of the service. Here the application
//! is a provider from the crate `flipswitch`. Every OFREP client works.
//!
//! ```
//! use flipswitch::{Context, FlipswitchProvider};
//! use flipswitch_local::{Endpoint, Fault, LocalServer};
//! use serde_json::json;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let service = LocalServer::start(json!({"new-checkout": true})).await?;
//!     let provider = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).build()?;
//!     assert!(provider.flags(Context::user("alice")).await.bool("new-checkout", false));
//!
//!     // One request evaluated the flags for this user.
//!     let requests = service.requests();
//!     let is_for_alice = |body: &[u8]| String::from_utf8_lossy(body).contains("alice");
//!     assert_eq!(requests.iter().filter(|request| is_for_alice(&request.body)).count(), 1);
//!
//!     // During an outage, the application keeps the flags for this user, and uses its defaults for a new one.
//!     let outage = service.faults().add(Fault::on(Endpoint::Bulk).status(503))?;
//!     assert!(provider.flags(Context::user("alice")).await.bool("new-checkout", false));
//!     assert!(!provider.flags(Context::user("bob")).await.bool("new-checkout", false));
//!     assert!(service.faults().applied(outage) > 0);
//!
//!     provider.shutdown().await;
//!     service.shutdown().await;
//!     Ok(())
//! }
//! ```
//!
//! # Overview
//!
//! | to | use |
//! |---|---|
//! | start a service | [`LocalServer::start`] with flags, or [`LocalServer::builder`] with a flags file, an API key and other options |
//! | connect an application | [`LocalServer::url`] and [`LocalServer::api_key`] |
//! | change flags | [`LocalServer::set_flag`], [`set_definition`](LocalServer::set_definition) with variants and targeting, [`remove_flag`](LocalServer::remove_flag) |
//! | see what an application sent | [`LocalServer::requests`], which returns [`RecordedRequest`]s, and [`LocalServer::streams`] |
//! | simulate failures | [`LocalServer::faults`]; a [`Fault`] applies to an [`Endpoint`], and a method of [`FaultOn`] sets its effect |
//! | end streams, or send broken events | [`Faults`] and [`LocalServer::send_event`] |
//! | replace the API key | [`LocalServer::rotate_api_key`] with a [`KeyRotation`] |
//! | serve OFREP clients and pages | [`LocalServerBuilder::event_streams`] and [`allow_origin`](LocalServerBuilder::allow_origin) |
//!
//! A change reaches an application within milliseconds, but not instantly. A test must wait for its effect. The page
//! `docs/testing.md` in the repository shows how.
//!
//! # Cargo features
//!
//! `service` is on by default. It concerns only the program, whose subcommands `declare` and `check` can read the flags of a
//! service over HTTPS. Tests can depend on this crate with `default-features = false`, which builds fewer dependencies.

mod admin;
mod api;
mod broadcast;
mod faults;
mod flags;
mod json;
mod keys;
mod mask;
mod request_log;
mod serve;
mod server;
mod state;
mod time;

pub use crate::{
    faults::{
        error::FaultError,
        fault::{Endpoint, Fault, FaultOn},
        faults::Faults,
        registry::{ActiveFault, FaultId},
    },
    flags::error::DefinitionError,
    keys::KeyRotation,
    request_log::RecordedRequest,
    server::{LocalServer, LocalServerBuilder},
};

/// Compiles the code in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
