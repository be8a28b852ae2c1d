//! Evaluation with the flag service: which requests are sent, when, and what waits for them.

pub(crate) mod backoffs;
pub(crate) mod circuit_breaker;
pub(crate) mod evaluator;
pub(crate) mod failing_flags;
pub(crate) mod in_flight;
#[cfg(test)]
mod interleavings;
pub(crate) mod limiter;
#[cfg(test)]
mod outages;
pub(crate) mod pacer;
pub(crate) mod queue;
pub(crate) mod request_task;
pub(crate) mod tags;
pub(crate) mod variety;
pub(crate) mod warnings;
