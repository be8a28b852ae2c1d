//! Faults: failures that the server simulates in requests, responses and connections.

pub(crate) mod connection;
pub(crate) mod effect;
pub(crate) mod error;
pub(crate) mod fault;
pub(crate) mod faults;
pub(crate) mod filter;
pub(crate) mod handle;
pub(crate) mod middleware;
pub(crate) mod payload;
pub(crate) mod rate_limiter;
pub(crate) mod registry;
pub(crate) mod response;
