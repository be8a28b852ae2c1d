//! How often what happens again and again is logged as a warning. No I/O; the time is passed in.

use std::time::{Duration, Instant};

/// A kind of warning is logged once in this time.
const INTERVAL: Duration = Duration::from_secs(60);

/// Evaluations without flags that are worth a warning, if they come within [`SHORT`].
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
    /// Evaluations that waited in vain since the last warning, and the first of those within a short time.
    missed: u32,
    first_missed: Option<Instant>,
}

impl Warnings {
    /// Returns whether to log a failed request as a warning.
    pub(crate) fn failed(&mut self, kind: Kind, now: Instant) -> bool {
        is_due(&mut self.requests[kind as usize], now)
    }

    /// Counts an evaluation without flags that waited in vain. Returns the number to report, if it is time.
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
        // One now and then is none of many.
        for minutes in 2..20 {
            assert_eq!(warnings.missed(now + INTERVAL * minutes), None);
        }
    }
}
