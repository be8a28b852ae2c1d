//! Contexts that the flag service rejected while it accepted others.

use std::{sync::Arc, time::Instant};

use quick_cache::sync::Cache as Entries;

use crate::{
    cache::epoch::EpochReading, context::canonical::CanonicalContext, error::Error,
    evaluator::circuit_breaker::FIRST_WAIT, wire::backoff::backoff,
};

/// How many rejected contexts are remembered.
const MAX_CONTEXTS: usize = 1_024;

/// The rejected contexts. Each backs off by itself; an invalidation ends its wait.
pub(crate) struct Rejections(Entries<CanonicalContext, Rejection>);

#[derive(Clone)]
struct Rejection {
    error: Arc<Error>,
    epoch: u64,
    retry_at: Instant,
    failures: u32,
}

impl Rejections {
    pub(crate) fn new() -> Self {
        Self(Entries::new(MAX_CONTEXTS))
    }

    /// Returns the error of a rejected context that is not to be requested yet.
    pub(crate) fn error(&self, context: &CanonicalContext, reading: EpochReading, now: Instant) -> Option<Arc<Error>> {
        let rejection = self.0.get(context)?;
        (rejection.epoch >= reading.epoch && now < rejection.retry_at).then_some(rejection.error)
    }

    /// Adds a rejection by a request that was certain to see `epoch`. `random` is from [0, 1).
    pub(crate) fn add(&self, context: &CanonicalContext, epoch: u64, error: &Error, now: Instant, random: f64) {
        let failures = self.0.get(context).map_or(0, |rejection| rejection.failures).saturating_add(1);
        let retry_at = now + backoff(FIRST_WAIT, failures, random);
        self.0.insert(context.clone(), Rejection { error: Arc::new(error.clone()), epoch, retry_at, failures });
    }

    /// Removes a context that was accepted.
    pub(crate) fn remove(&self, context: &CanonicalContext) {
        self.0.remove(context);
    }
}
