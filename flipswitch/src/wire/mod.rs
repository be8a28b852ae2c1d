//! The protocol: HTTP requests, OFREP bodies, and how long to wait after failures.

pub(crate) mod backoff;
pub(crate) mod event_streams;
pub(crate) mod not_found;
pub(crate) mod ofrep;
pub(crate) mod proxy;
pub(crate) mod transport;
