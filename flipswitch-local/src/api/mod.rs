//! The endpoints that applications use: OFREP, and the stream of changes.

pub(crate) mod ofrep;
pub(crate) mod routes;
pub(crate) mod stream;
