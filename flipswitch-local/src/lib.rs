//! A feature-flag service on your own machine, for development and tests.
//!
//! The service implements the protocol of the real one, OFREP and a stream of changes, without an account or a network.
//! This crate is a library for tests. It is also a program with a dashboard; see the
//! [README](https://crates.io/crates/flipswitch-local) for its options, the format of its flags file, and the endpoints
//! under `/local`, through which `curl` can change flags and faults.
//!
//! # Example
//!
//! ```
//! use flipswitch_local::{Endpoint, Fault, LocalServer};
//! use serde_json::json;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let service = LocalServer::start(json!({"new-checkout": false})).await?;
//!
//! // Start the application with this URL and this key.
//! let (base_url, api_key) = (service.url(), service.api_key());
//!
//! // Change a flag. The application receives the change on its stream.
//! service.set_flag("new-checkout", true);
//!
//! // Make the next two evaluations fail.
//! service.faults().add(Fault::on(Endpoint::Bulk).status(503).times(2))?;
//!
//! // Check the requests of the application.
//! assert!(service.requests().is_empty());
//!
//! service.shutdown().await;
//! # Ok(())
//! # }
//! ```

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
