//! How long to wait after failures.

use std::time::Duration;

/// Maximum wait between retries.
pub(crate) const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Maximum `Retry-After` that is respected.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Returns the wait after one or more failures in a row: `base`, doubled for each further failure, up to [`MAX_BACKOFF`].
/// `random`, in [0, 1), places the wait in the second half of that time, so that clients do not all return at the same time.
pub(crate) fn backoff(base: Duration, failures: u32, random: f64) -> Duration {
    doubled(base, failures).min(MAX_BACKOFF).mul_f64(0.5 + random / 2.0)
}

/// Returns `base`, doubled for each failure after the first.
pub(crate) fn doubled(base: Duration, failures: u32) -> Duration {
    base.saturating_mul(1 << failures.saturating_sub(1).min(16))
}

/// Returns the wait for a `Retry-After`: never shorter, up to a tenth longer, but at most about [`MAX_RETRY_AFTER`].
pub(crate) fn retry_after_wait(retry_after: Duration, random: f64) -> Duration {
    retry_after.min(MAX_RETRY_AFTER).mul_f64(1.0 + random / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_with_jitter_up_to_the_maximum() {
        let ends = |failures| (backoff(SECOND, failures, 0.0), backoff(SECOND, failures, 1.0));
        let expected = [1, 2, 4, 8, 16, 30, 30];
        for (failures, seconds) in (1..).zip(expected) {
            assert_eq!(ends(failures), (SECOND * seconds / 2, SECOND * seconds));
        }
        assert_eq!(ends(u32::MAX), (SECOND * 15, SECOND * 30));
        assert_eq!(backoff(SECOND * 20, 2, 1.0), SECOND * 30);
    }

    #[test]
    fn retry_after_is_respected_and_bounded() {
        assert_eq!(
            (retry_after_wait(SECOND * 10, 0.0), retry_after_wait(SECOND * 10, 1.0)),
            (SECOND * 10, SECOND * 11)
        );
        assert_eq!(retry_after_wait(Duration::MAX, 0.0), SECOND * 300);
    }
}
