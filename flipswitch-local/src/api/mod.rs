//! The endpoints that applications use: OFREP, and the streams of changes.

pub(crate) mod cors;
mod etag;
pub(crate) mod ofrep;
pub(crate) mod routes;
pub(crate) mod stream;
