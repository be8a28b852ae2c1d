//! How long to wait after failures.

use std::time::Duration;

/// The longest wait.
pub(crate) const LONGEST: Duration = Duration::from_secs(30);

/// What a service asks for in `Retry-After` is heeded up to here.
pub(crate) const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// The wait after this many failures in a row, at least one: `base`, doubled for each further one, and spread over its
/// second half, so that clients do not return together. `random` is from [0, 1).
pub(crate) fn backoff(base: Duration, failures: u32, random: f64) -> Duration {
    doubled(base, failures).min(LONGEST).mul_f64(0.5 + random / 2.0)
}

/// `base`, doubled for each failure after the first.
pub(crate) fn doubled(base: Duration, failures: u32) -> Duration {
    base.saturating_mul(1 << failures.saturating_sub(1).min(16))
}

/// What a service asked for: never shorter, up to a tenth longer, and not for ever.
pub(crate) fn asked(retry_after: Duration, random: f64) -> Duration {
    retry_after.min(LONGEST_ASKED).mul_f64(1.0 + random / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_up_to_the_longest_and_are_spread() {
        let ends = |failures| (backoff(SECOND, failures, 0.0), backoff(SECOND, failures, 1.0));
        let expected = [1, 2, 4, 8, 16, 30, 30];
        for (failures, seconds) in (1..).zip(expected) {
            assert_eq!(ends(failures), (SECOND * seconds / 2, SECOND * seconds));
        }
        assert_eq!(ends(u32::MAX), (SECOND * 15, SECOND * 30));
        assert_eq!(backoff(SECOND * 20, 2, 1.0), SECOND * 30);
    }

    #[test]
    fn what_was_asked_for_is_kept_and_bounded() {
        assert_eq!((asked(SECOND * 10, 0.0), asked(SECOND * 10, 1.0)), (SECOND * 10, SECOND * 11));
        assert_eq!(asked(Duration::MAX, 0.0), SECOND * 300);
    }
}
