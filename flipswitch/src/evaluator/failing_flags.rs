//! Flags that the service fails to evaluate, although it evaluates others in the same response. No I/O; the time and random
//! numbers are passed in.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    context::canonical::CanonicalContext,
    flags::flag_set::{FlagSet, Item},
    wire::backoff::doubled,
};

/// Number of different contexts after which a flag counts as failing for all.
const MIN_CONTEXTS: usize = 3;

/// Maximum wait between requests that are sent because a flag fails for all contexts.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// Maximum number of flags that are remembered.
const MAX_FLAGS: usize = 1_024;

/// Flags that have failed since they were last evaluated.
#[derive(Debug, Default)]
pub(crate) struct FailingFlags(HashMap<String, FailingFlag>);

#[derive(Debug, Default)]
struct FailingFlag {
    /// Different contexts, up to [`MIN_CONTEXTS`].
    contexts: Vec<CanonicalContext>,
    /// Failures since the flag began to count as failing for all contexts.
    failures: u32,
    /// When contexts are requested again because of the flag.
    retry_at: Option<Instant>,
}

impl FailingFlags {
    /// Records the flags of a response, and returns those that have failed for the first time since they were last evaluated.
    /// `random` is in [0, 1).
    pub(crate) fn received(
        &mut self,
        context: &CanonicalContext,
        flag_set: &FlagSet,
        now: Instant,
        random: f64,
    ) -> Vec<Arc<Item>> {
        let mut new = Vec::new();
        self.0.retain(|key, _| flag_set.evaluated(key).is_none());
        for item in flag_set.failed() {
            if self.0.len() >= MAX_FLAGS && !self.0.contains_key(&item.key) {
                break;
            }
            let failing = self.0.entry(item.key.clone()).or_default();
            if failing.contexts.is_empty() {
                new.push(Arc::clone(item));
            }
            if failing.contexts.len() < MIN_CONTEXTS && !failing.contexts.contains(context) {
                failing.contexts.push(context.clone());
            }
            let is_due = failing.retry_at.is_none_or(|retry_at| now >= retry_at);
            if failing.contexts.len() == MIN_CONTEXTS && is_due {
                failing.failures = failing.failures.saturating_add(1);
                let wait = doubled(Duration::from_secs(1), failing.failures).min(MAX_WAIT);
                failing.retry_at = Some(now + wait.mul_f64(0.5 + random / 2.0));
            }
        }
        new
    }

    /// Returns how many flags have failed since they were last evaluated.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether to request flags again because the flags with `keys` failed. Returns `false` while each of these flags
    /// waits because it fails for all contexts.
    pub(crate) fn is_due<'a>(&self, keys: impl Iterator<Item = &'a str>, now: Instant) -> bool {
        let mut keys = keys.peekable();
        let waits = |key: &str| self.0.get(key).and_then(|failing| failing.retry_at).is_some_and(|at| now < at);
        keys.peek().is_none() || keys.any(|key| !waits(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::flag_set::Outcome;

    fn context(number: usize) -> CanonicalContext {
        CanonicalContext::from_bytes(number.to_string().as_bytes())
    }

    fn failed(key: &str) -> FlagSet {
        let outcome = Outcome::Failed { code: "GENERAL".to_owned(), details: None };
        FlagSet::new(vec![Arc::new(Item { key: key.to_owned(), outcome })])
    }

    #[test]
    fn a_flag_that_fails_for_three_contexts_backs_off_for_all_contexts() {
        let (mut flags, mut now) = (FailingFlags::default(), Instant::now());
        let is_due = |flags: &FailingFlags, now| flags.is_due(["f"].into_iter(), now);
        for number in [0, 1, 1, 0] {
            flags.received(&context(number), &failed("f"), now, 1.0);
            assert!(is_due(&flags, now), "each context backs off on its own");
        }
        for expected in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            // Requests that were in flight together count as one failure.
            for number in 2..10 {
                flags.received(&context(number), &failed("f"), now, 1.0);
            }
            assert!(!is_due(&flags, now));
            assert!(flags.is_due(["f", "other"].into_iter(), now), "another flag does not wait");
            now += Duration::from_secs(expected) - Duration::from_millis(1);
            assert!(!is_due(&flags, now), "{expected}");
            now += Duration::from_millis(1);
            assert!(is_due(&flags, now), "{expected}");
        }
        let evaluated = FlagSet::of_values([("f".to_owned(), true.into())].into_iter().collect(), "STATIC");
        flags.received(&context(0), &evaluated, now, 1.0);
        assert!(flags.0.is_empty());
    }

    #[test]
    fn the_number_of_flags_is_bounded() {
        let mut flags = FailingFlags::default();
        for number in 0..2 * MAX_FLAGS {
            flags.received(&context(0), &failed(&number.to_string()), Instant::now(), 1.0);
        }
        assert_eq!(flags.0.len(), MAX_FLAGS);
    }
}
