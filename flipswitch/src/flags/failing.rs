//! Flags for one context that the service could not evaluate, although it evaluated others. No I/O; the time is passed in.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::flags::flag_set::{FlagSet, Item, Outcome};

/// How often to check whether to request the context again, once such a check is due.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How long to wait before flags are requested again from a service that has no flags.
const NO_FLAGS_WAIT: Duration = Duration::from_secs(30);

/// The flags that failed. If there are none, the service has no flags.
#[derive(Debug)]
pub(crate) struct Failing {
    /// The flags as received, in the order of their keys, and when the value that they keep was current, if they keep one.
    flags: Vec<(Arc<Item>, Option<Instant>)>,
    /// Failures in a row of the same context.
    failures: u32,
    /// When to check whether to request the context again because of them.
    look_at: Mutex<Instant>,
}

impl Failing {
    /// Creates the state of a context for which the service has no flags.
    pub(crate) fn no_flags(now: Instant) -> Box<Self> {
        Box::new(Self { flags: Vec::new(), failures: 0, look_at: Mutex::new(now + NO_FLAGS_WAIT) })
    }

    /// Returns the flags of a response in which some flags failed, with their last values from `known`, which was current at the
    /// given time. Values that are older than `max_stale` are not kept. `wait` returns the wait after a number of failures in a
    /// row.
    pub(crate) fn keep(
        received: &FlagSet,
        known: Option<(&FlagSet, Instant)>,
        max_stale: Duration,
        now: Instant,
        wait: impl FnOnce(u32) -> Duration,
    ) -> Option<FlagSet> {
        let mut kept = Vec::new();
        let flags = received.failed().map(|item| {
            let last = known.and_then(|(known, current_at)| {
                let item = known.item(&item.key)?;
                let since = known.kept_since(&item.key).unwrap_or(current_at);
                let is_value = matches!(item.outcome, Outcome::Evaluated(_));
                (is_value && now.saturating_duration_since(since) <= max_stale).then_some((item, since))
            });
            kept.extend(last.map(|(item, _)| Arc::clone(item)));
            (Arc::clone(item), last.map(|(_, since)| since))
        });
        let flags: Vec<_> = flags.collect();
        if flags.is_empty() {
            return None;
        }
        let before = known.and_then(|(known, _)| known.failing()).map_or(0, |failing| failing.failures);
        let failures = before.saturating_add(1);
        let look_at = Mutex::new(now + wait(failures));
        Some(received.with_failing(&kept, Box::new(Self { flags, failures, look_at })))
    }

    /// Returns whether it is time to check whether to request the context again. Returns `true` to one caller in each
    /// [`LOOK_INTERVAL`].
    pub(crate) fn is_look_due(&self, now: Instant) -> bool {
        self.look_at.try_lock().is_some_and(|mut look_at| {
            let is_due = now >= *look_at;
            if is_due {
                *look_at = now + LOOK_INTERVAL;
            }
            is_due
        })
    }

    /// Returns the keys of the flags.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.flags.iter().map(|(item, _)| item.key.as_str())
    }

    /// Returns whether the service has flags, and failed only for flags that do not concern the caller.
    pub(crate) fn is_for_others(&self, concerns: impl Fn(&str) -> bool) -> bool {
        !self.flags.is_empty() && !self.keys().any(concerns)
    }

    /// Returns whether the service has no flags at all.
    pub(crate) fn has_no_flags(&self) -> bool {
        self.flags.is_empty()
    }

    /// Returns the item of a flag that failed.
    pub(crate) fn received(&self, key: &str) -> Option<&Item> {
        self.find(key).map(|(item, _)| &**item)
    }

    /// Returns when the value that a flag keeps was current.
    pub(crate) fn kept_since(&self, key: &str) -> Option<Instant> {
        self.find(key)?.1
    }

    fn find(&self, key: &str) -> Option<&(Arc<Item>, Option<Instant>)> {
        let position = self.flags.binary_search_by(|(item, _)| item.key.as_str().cmp(key)).ok()?;
        self.flags.get(position)
    }

    /// Returns the approximate memory.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.flags.len() * size_of::<(Arc<Item>, Option<Instant>)>()
    }
}
