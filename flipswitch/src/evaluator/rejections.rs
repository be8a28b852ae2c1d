//! Contexts that the flag service rejected while it accepted others.

use std::{sync::Arc, time::Instant};

use http::StatusCode;
use quick_cache::sync::Cache as Entries;

use crate::{
    cache::epoch::EpochReading,
    context::canonical::CanonicalContext,
    error::{Chain, Error},
    evaluator::circuit_breaker::FIRST_WAIT,
    warn_once::WarnOnce,
    wire::backoff::backoff,
};

/// How many rejected contexts are remembered.
const MAX_CONTEXTS: usize = 1_024;

/// The rejected contexts. Each backs off by itself; an invalidation ends its wait.
pub(crate) struct Rejections {
    contexts: Entries<CanonicalContext, Rejection>,
    warned: WarnOnce,
}

#[derive(Clone)]
struct Rejection {
    error: Arc<Error>,
    epoch: u64,
    retry_at: Instant,
    failures: u32,
}

impl Rejections {
    pub(crate) fn new() -> Self {
        Self { contexts: Entries::new(MAX_CONTEXTS), warned: WarnOnce::default() }
    }

    /// Returns the error of a rejected context that is not to be requested yet.
    pub(crate) fn error(&self, context: &CanonicalContext, reading: EpochReading, now: Instant) -> Option<Arc<Error>> {
        let rejection = self.contexts.get(context)?;
        (rejection.epoch >= reading.epoch && now < rejection.retry_at).then_some(rejection.error)
    }

    /// Adds a rejection by a request that was certain to see `epoch`. `random` is from [0, 1).
    pub(crate) fn add(&self, context: &CanonicalContext, epoch: u64, error: &Error, now: Instant, random: f64) {
        let failures = self.contexts.get(context).map_or(0, |rejection| rejection.failures).saturating_add(1);
        let retry_at = now + backoff(FIRST_WAIT, failures, random);
        self.contexts.insert(context.clone(), Rejection { error: Arc::new(error.clone()), epoch, retry_at, failures });
        // Last, because the subscriber is code of the application and may panic.
        let (kind, remedy) = remedy(error);
        if self.warned.is_first(kind) {
            tracing::warn!(
                target: "flipswitch", error = %Chain(error), remedy,
                "the flag service rejects a context; its flags have their last values or defaults"
            );
        }
    }

    /// Removes a context that was accepted.
    pub(crate) fn remove(&self, context: &CanonicalContext) {
        self.contexts.remove(context);
    }
}

/// Returns a kind of rejection, of which one is logged, and what to do about it.
fn remedy(error: &Error) -> (u8, &'static str) {
    match error {
        Error::Evaluation { code, .. } if code == "TARGETING_KEY_MISSING" => (
            1,
            "set a targeting key in every context; in a web application, visitors get one with `Anonymous::cookie()`",
        ),
        Error::Evaluation { code, .. } if code == "INVALID_CONTEXT" => {
            (1 << 1, "check the names and types of the context's fields")
        }
        Error::Status(
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::URI_TOO_LONG | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        ) => (1 << 2, "send less in the context: the service, or a proxy before it, limits requests"),
        _ => (1 << 3, "see the log of the flag service, or of a proxy before it"),
    }
}
