//! Whether the store works. No I/O; the time is passed in.

use std::time::{Duration, Instant};

use time::OffsetDateTime;

/// Number of failures in a row after which the store counts as unavailable, if the first of these operations began at least
/// [`FAILING_FOR`] ago. A short pause of the process or of the store fails all operations in flight, and must not be counted.
const FAILURES: u32 = 3;
const FAILING_FOR: Duration = Duration::from_millis(250);

/// Whether operations of one kind succeed.
#[derive(Debug, Default)]
pub(super) struct Availability {
    /// Failures since the last success.
    failures: u32,
    /// When the first operation that failed began.
    failing_since: Option<Instant>,
    away_since: Option<OffsetDateTime>,
}

/// What an outcome changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Away,
    Back,
}

impl Availability {
    /// Returns the time since which the store has been unavailable.
    pub(super) fn away_since(&self) -> Option<OffsetDateTime> {
        self.away_since
    }

    pub(super) fn succeeded(&mut self) -> Change {
        let was_away = std::mem::take(self).away_since.is_some();
        if was_away { Change::Back } else { Change::None }
    }

    /// Records that an operation that began at `began_at` failed.
    pub(super) fn failed(&mut self, began_at: Instant, now: Instant) -> Change {
        self.failures = self.failures.saturating_add(1);
        let since = *self.failing_since.get_or_insert(began_at);
        let is_away = self.failures >= FAILURES && now.saturating_duration_since(since) >= FAILING_FOR;
        if !is_away || self.away_since.is_some() {
            return Change::None;
        }
        self.away_since = Some(OffsetDateTime::now_utc());
        Change::Away
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_counts_as_unavailable_if_it_fails_for_a_while() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut store = Availability::default();
        let failures = [(); 100].map(|()| store.failed(at(0), at(50)));
        assert!(failures.iter().all(|change| *change == Change::None), "only for a moment");
        assert_eq!((store.succeeded(), store.failed(at(500), at(800))), (Change::None, Change::None), "one operation");
        let failed = [740, 750, 760].map(|millis| store.failed(at(millis), at(millis)));
        assert_eq!(failed, [Change::None, Change::Away, Change::None]);
        assert!(store.away_since().is_some());
        assert_eq!((store.succeeded(), store.succeeded()), (Change::Back, Change::None));
        assert!(store.away_since().is_none());
    }
}
