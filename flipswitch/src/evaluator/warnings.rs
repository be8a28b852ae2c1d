//! Limits how often repeated failures are logged as warnings. No I/O; the time is passed in.

use std::time::{Duration, Instant};

/// Each kind of warning is logged at most once in this interval.
const INTERVAL: Duration = Duration::from_secs(60);

/// Number of evaluations without flags that cause a warning if they occur within [`SHORT`].
const MANY: u32 = 10;
const SHORT: Duration = Duration::from_secs(10);

/// A kind of failed request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// The service failed for a context.
    Failed,
    /// The service limits the rate of requests.
    Limited,
    /// The service refused the API key for a context.
    Refused,
}

/// When each kind of warning was last logged.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    requests: [Option<Instant>; 3],
    missed_at: Option<Instant>,
    /// Evaluations that have timed out without flags since `first_missed` or the last warning.
    missed: u32,
    /// When the first evaluation of the current [`SHORT`] interval timed out.
    first_missed: Option<Instant>,
}

impl Warnings {
    /// Returns whether to log a failed request as a warning.
    pub(crate) fn failed(&mut self, kind: Kind, now: Instant) -> bool {
        is_due(&mut self.requests[kind as usize], now)
    }

    /// Counts an evaluation that timed out without flags. Returns the number to report, if a warning is due.
    pub(crate) fn missed(&mut self, now: Instant) -> Option<u32> {
        let is_short = self.first_missed.is_some_and(|first| now < first + SHORT);
        if !is_short {
            (self.first_missed, self.missed) = (Some(now), 0);
        }
        self.missed = self.missed.saturating_add(1);
        (self.missed >= MANY && is_due(&mut self.missed_at, now)).then(|| std::mem::take(&mut self.missed))
    }
}

fn is_due(last: &mut Option<Instant>, now: Instant) -> bool {
    let is_due = last.is_none_or(|last| now >= last + INTERVAL);
    if is_due {
        *last = Some(now);
    }
    is_due
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_logged_once_a_minute() {
        let (mut warnings, now) = (Warnings::default(), Instant::now());
        for kind in [Kind::Failed, Kind::Limited, Kind::Refused] {
            assert!(warnings.failed(kind, now), "{kind:?}");
            assert!(!warnings.failed(kind, now + INTERVAL / 2), "{kind:?}");
            assert!(warnings.failed(kind, now + INTERVAL), "{kind:?}");
        }
    }

    #[test]
    fn many_evaluations_without_flags_are_logged_with_their_number() {
        let (mut warnings, now) = (Warnings::default(), Instant::now());
        for number in 1..MANY {
            assert_eq!(warnings.missed(now), None, "{number}");
        }
        assert_eq!(warnings.missed(now), Some(MANY));
        for _ in 0..100 {
            assert_eq!(warnings.missed(now + Duration::from_secs(1)), None);
        }
        // Occasional ones are not reported.
        for minutes in 2..20 {
            assert_eq!(warnings.missed(now + INTERVAL * minutes), None);
        }
    }
}
