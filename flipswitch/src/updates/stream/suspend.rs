//! Detects that the machine was asleep. No I/O; both clocks are passed in.

use std::time::{Duration, Instant, SystemTime};

/// Time between two ticks.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// How far the clocks drift apart in one tick if the machine was asleep, or its wall clock was set.
const MIN_DRIFT: Duration = Duration::from_secs(5);

/// Compares the wall clock with the monotonic clock, which stops on most systems while the machine is asleep.
#[derive(Debug, Default)]
pub(super) struct SuspendDetector {
    last: Option<(Instant, SystemTime)>,
}

impl SuspendDetector {
    /// Records the time of both clocks. Returns whether they have drifted apart by 5 seconds or more since the last tick.
    pub(super) fn tick(&mut self, monotonic: Instant, wall: SystemTime) -> bool {
        let Some((last_monotonic, last_wall)) = self.last.replace((monotonic, wall)) else { return false };
        let elapsed = monotonic.saturating_duration_since(last_monotonic);
        let drift = match wall.duration_since(last_wall) {
            Ok(wall) => wall.abs_diff(elapsed),
            // The wall clock was set back.
            Err(error) => error.duration() + elapsed,
        };
        drift >= MIN_DRIFT
    }

    /// Discards the last tick.
    pub(super) fn reset(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Returns whether the machine counts as having been asleep after ticks that are this far apart on both clocks, in
    /// seconds.
    fn asleep(ticks: &[(f64, f64)]) -> bool {
        let (mut monotonic, mut wall) = (Instant::now(), SystemTime::UNIX_EPOCH + SECOND * 1_000_000);
        let mut detector = SuspendDetector::default();
        assert!(!detector.tick(monotonic, wall), "there is nothing to compare with");
        let mut asleep = false;
        for &(by_monotonic, by_wall) in ticks {
            monotonic += Duration::from_secs_f64(by_monotonic);
            match by_wall < 0.0 {
                true => wall -= Duration::from_secs_f64(-by_wall),
                false => wall += Duration::from_secs_f64(by_wall),
            }
            asleep = detector.tick(monotonic, wall);
        }
        asleep
    }

    #[test]
    fn clocks_that_drift_apart_within_a_tick_are_detected() {
        // The machine was asleep for 5 seconds or a day, or the wall clock was set back.
        for tick in [(1.0, 6.0), (0.0, 5.0), (1.0, 86_400.0), (1.0, -4.0), (1.0, -3_600.0)] {
            assert!(asleep(&[tick]), "{tick:?}");
            assert!(asleep(&[(1.0, 1.0), tick]), "{tick:?}");
            assert!(!asleep(&[tick, (1.0, 1.0)]), "{tick:?}: once");
        }
    }

    #[test]
    fn a_late_tick_or_a_slow_drift_does_not_count_as_sleep() {
        // A blocked runtime: both clocks run.
        for tick in [(1.0, 1.0), (600.0, 600.0), (1.0, 5.9), (1.0, -3.9)] {
            assert!(!asleep(&[tick]), "{tick:?}");
        }
        assert!(!asleep(&[(1.0, 1.5); 100]));
    }

    #[test]
    fn a_reset_detector_has_nothing_to_compare_with() {
        let (monotonic, wall) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let mut detector = SuspendDetector::default();
        assert!(!detector.tick(monotonic, wall));
        detector.reset();
        assert!(!detector.tick(monotonic, wall + 60 * SECOND));
        assert!(detector.tick(monotonic, wall + 120 * SECOND));
    }
}
