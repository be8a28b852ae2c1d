//! Checks whether a service conforms to OFREP, with its event streams (ADR-0008).
//!
//! [`check`] sends a bounded number of requests, and reports on each row of a fixed table: whether what it demands holds,
//! what was seen if not, or why it does not apply. Rows are demands of a specification (`MUST`), or recommendations and
//! the practice of clients and proxies (`SHOULD`). A service that is merely strict does not fail.
//!
//! Flags are only evaluated, never changed. Neither credentials nor the URLs of streams, which may contain tokens, are
//! part of a report.

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
