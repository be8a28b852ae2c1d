//! What goes wrong on purpose, as a client meets it on its socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod control;
mod effects;
mod key;
mod socket;
mod streams;
