//! Checks whether a service conforms to OFREP, including its event streams (ADR-0008).
//!
//! [`check`] sends a bounded number of requests, and reports on each requirement of a fixed table: whether the service meets
//! it, what the service did instead, or why the requirement does not apply. Requirements of a specification are `MUST`;
//! recommendations, and the practice of clients and proxies, are `SHOULD`. A service that is merely strict does not fail.
//!
//! The check only evaluates flags and never changes them. A report contains neither credentials nor the URLs of streams,
//! which may contain tokens.

mod client;
mod conformance;
mod evaluation;
mod report;
mod streams;
mod table;
mod tags;

pub use self::{
    conformance::{Error, Service, check},
    report::{Outcome, Report, Row},
    table::{Level, Rule},
};
