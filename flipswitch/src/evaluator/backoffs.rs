//! Contexts for which the flag service fails while it works for others. Each backs off on its own.

use std::{sync::Arc, time::Instant};

use http::StatusCode;
use quick_cache::sync::Cache as Entries;

use crate::{
    cache::epoch::{EpochReading, is_in_echo_window},
    context::canonical::CanonicalContext,
    error::{Chain, Error, Failure},
    evaluator::circuit_breaker::{FIRST_WAIT, rejects_context},
    warn_once::WarnOnce,
    wire::backoff::{MAX_BACKOFF, backoff, retry_after_wait},
};

/// How many contexts are remembered.
const MAX_CONTEXTS: usize = 1_024;

/// The contexts that back off. After a change, each of them may be requested once before its wait ends.
pub(crate) struct Backoffs {
    contexts: Entries<CanonicalContext, Backoff>,
    warned: WarnOnce,
}

#[derive(Clone)]
struct Backoff {
    error: Arc<Error>,
    epoch: u64,
    retry_at: Instant,
    failures: u32,
}

impl Backoffs {
    pub(crate) fn new() -> Self {
        Self { contexts: Entries::new(MAX_CONTEXTS), warned: WarnOnce::default() }
    }

    /// Returns the error of a context that must not be requested yet.
    pub(crate) fn error(&self, context: &CanonicalContext, reading: EpochReading, now: Instant) -> Option<Arc<Error>> {
        let backoff = self.contexts.get(context)?;
        (backoff.epoch >= reading.epoch && now < backoff.retry_at).then_some(backoff.error)
    }

    /// Adds the failure of a request that was certain to see `epoch`. `random` is in [0, 1).
    pub(crate) fn add(&self, context: &CanonicalContext, epoch: u64, failure: &Failure, now: Instant, random: f64) {
        let Failure { error, retry_after, .. } = failure;
        let failures = self.contexts.get(context).map_or(0, |backoff| backoff.failures).saturating_add(1);
        let named = retry_after_wait(retry_after.unwrap_or_default().min(MAX_BACKOFF), random);
        let retry_at = now + backoff(FIRST_WAIT, failures, random).max(named);
        let error_seen = Arc::new(error.clone());
        // The end of the echo window begins another epoch, but one event allows only one request.
        let epoch = epoch + u64::from(is_in_echo_window(epoch));
        self.contexts.insert(context.clone(), Backoff { error: error_seen, epoch, retry_at, failures });
        if !rejects_context(error) {
            return;
        }
        // Logged last, because the subscriber is application code and may panic.
        let (kind, remedy) = remedy(error);
        if self.warned.is_first(kind) {
            tracing::warn!(
                target: "flipswitch", error = %Chain(error), remedy,
                "the flag service rejects a context; its flags keep their last values, or get defaults"
            );
        }
    }

    /// Removes a context for which the service responded.
    pub(crate) fn remove(&self, context: &CanonicalContext) {
        self.contexts.remove(context);
    }

    /// Removes all contexts, because the service has recovered.
    pub(crate) fn clear(&self) {
        self.contexts.clear();
    }

    /// Returns how many contexts must not be requested yet.
    pub(crate) fn count(&self, now: Instant) -> u64 {
        self.contexts.iter().filter(|(_, backoff)| now < backoff.retry_at).count() as u64
    }
}

/// What to do if the service requires a targeting key.
pub(super) const SET_TARGETING_KEY: &str =
    "set a targeting key in every context; in a web application, visitors get one with `Anonymous::cookie()`";

/// Returns the kind of a rejection, and what to do about it. Each kind is logged once.
fn remedy(error: &Error) -> (u16, &'static str) {
    match error {
        Error::Evaluation { code, .. } if code == "TARGETING_KEY_MISSING" => (1, SET_TARGETING_KEY),
        Error::Evaluation { code, .. } if code == "INVALID_CONTEXT" => {
            (1 << 1, "check the names and types of the context's fields")
        }
        Error::Status(
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::URI_TOO_LONG | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        ) => (1 << 2, "send a smaller context: the service, or a proxy in front of it, limits the size of requests"),
        _ => (1 << 3, "see the log of the flag service, or of a proxy in front of it"),
    }
}
