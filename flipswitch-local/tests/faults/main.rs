//! Faults as a client sees them on its socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod api_key;
mod connections;
mod control;
mod effects;
mod filters;
mod limits;
mod streams;
mod support;
