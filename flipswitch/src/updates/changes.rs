//! Which flag changes the application was notified of, and which changes a response reveals.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use parking_lot::Mutex;

use crate::{
    evaluator::evaluator::Observer,
    events::events::FlagChangeEvent,
    flags::flag_set::FlagSet,
    updates::{sources::Sources, stream::commands::StreamCommands},
    wire::event_streams::Advertised,
};

/// Maximum number of changed flags whose names are remembered. If there are more, all flags count as changed.
const MAX_NAMES: usize = 1_024;

/// The known flags for the start-up context, and the changes since they were received.
///
/// The evaluator uses this type to report to the sources of updates.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    known: Mutex<Known>,
    pub(crate) stream: StreamCommands,
    pub(super) sources: Sources,
}

#[derive(Debug, Default)]
struct Known {
    flag_set: Option<Arc<FlagSet>>,
    /// What the application has been notified of since then.
    notified: Notified,
}

#[derive(Debug)]
enum Notified {
    Flags(BTreeSet<String>),
    All,
}

impl Default for Notified {
    fn default() -> Self {
        Self::Flags(BTreeSet::new())
    }
}

impl Changes {
    /// Remembers that the application has been notified of a change, so that it is not notified again.
    pub(crate) fn notified(&self, change: &FlagChangeEvent) {
        let notified = &mut self.known.lock().notified;
        match (&change.flag_key, &mut *notified) {
            (Some(key), Notified::Flags(keys)) if keys.len() < MAX_NAMES => drop(keys.insert(key.clone())),
            _ => *notified = Notified::All,
        }
    }

    /// Discards what the application was notified of, because from now on a flag may change again without an event.
    pub(crate) fn forget_notified(&self) {
        self.known.lock().notified = Notified::default();
    }

    /// Receives the flags for the start-up context, and returns the keys of flags that changed without a notification.
    fn compare(&self, flag_set: &Arc<FlagSet>) -> Vec<String> {
        let (before, notified) = {
            let mut known = self.known.lock();
            (known.flag_set.replace(Arc::clone(flag_set)), std::mem::take(&mut known.notified))
        };
        match (before, notified) {
            (Some(before), Notified::Flags(notified)) => {
                let mut changed = before.changed_keys(flag_set);
                changed.retain(|key| !notified.contains(key));
                changed
            }
            _ => Vec::new(),
        }
    }
}

impl Observer for Changes {
    fn start_up_answered(&self, flag_set: &Arc<FlagSet>, is_current: bool) -> Vec<String> {
        if is_current {
            self.stream.refetched();
        }
        self.compare(flag_set)
    }

    fn key_refused(&self) {
        self.stream.unauthorized();
    }

    fn key_accepted(&self) {
        self.stream.reconnect();
    }

    fn answered(&self) {
        self.stream.answered();
    }

    fn streams_advertised(&self, advertised: Advertised, sent_at: Instant) {
        self.sources.advertised(advertised, sent_at);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::{Value, json};

    use super::*;

    fn flag_set(values: &Value) -> Arc<FlagSet> {
        Arc::new(FlagSet::of_values(values.as_object().unwrap().clone(), "STATIC"))
    }

    #[test]
    fn changed_flags_are_named_unless_the_application_was_notified() {
        let changes = Changes::default();
        let first = flag_set(&json!({"a": 1, "b": 1, "c": 1}));
        assert!(changes.compare(&first).is_empty(), "there was nothing before");
        assert!(changes.compare(&first).is_empty());
        let second = flag_set(&json!({"a": 2, "c": 1, "d": 1}));
        let mut changed = changes.compare(&second);
        changed.sort();
        // Equal flags in different allocations count as equal.
        assert_eq!(changed, ["a", "b", "d"]);
        changes.notified(&FlagChangeEvent::of("a".into()));
        let third = flag_set(&json!({"a": 3, "c": 2, "d": 1}));
        assert_eq!(changes.compare(&third), ["c"]);
        changes.notified(&FlagChangeEvent::all());
        assert!(changes.compare(&first).is_empty());
        assert_eq!(changes.compare(&second).len(), 3);
        changes.notified(&FlagChangeEvent::of("a".into()));
        changes.forget_notified();
        let mut changed = changes.compare(&third);
        changed.sort();
        assert_eq!(changed, ["a", "c"], "notified twice rather than never");
    }

    #[test]
    fn answers_count_until_a_request_is_refused() {
        let changes = Changes::default();
        let forget: [fn(&Changes); 2] = [Changes::key_refused, |changes| changes.stream.forget_answers()];
        for forget in forget {
            assert_eq!(changes.stream.answered_at(), None);
            let before = Instant::now();
            changes.answered();
            let answered_at = changes.stream.answered_at().unwrap();
            assert!((before..=Instant::now()).contains(&answered_at));
            forget(&changes);
        }
        assert_eq!(changes.stream.answered_at(), None);
    }

    #[test]
    fn the_number_of_remembered_names_is_bounded() {
        let changes = Changes::default();
        for number in 0..=MAX_NAMES {
            changes.notified(&FlagChangeEvent::of(number.to_string()));
        }
        assert!(matches!(changes.known.lock().notified, Notified::All));
    }
}
