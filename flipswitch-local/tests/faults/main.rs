//! Faults as a client sees them on its socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod api_key;
mod control;
mod effects;
mod filters;
mod streams;
mod support;
