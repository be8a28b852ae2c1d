//! What is known about the clock of the store. No I/O.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How far the store's clock may differ from what was expected, beyond the time that reading it took.
const TOLERANCE: Duration = Duration::from_millis(50);

/// A reading of the store's clock that is older than this is not used.
const MAX_AGE: Duration = Duration::from_secs(10);

/// Maximum step back that matters. Nothing is stored for longer than this.
const MAX_STEP: Duration = Duration::from_secs(7 * 24 * 3_600);

/// What is known about the store's clock. The clock may be set, and after a failover it may be the clock of another server.
#[derive(Debug, Default)]
pub(super) struct StoreClock(Option<Known>);

#[derive(Clone, Copy, Debug)]
struct Known {
    /// The reading that later readings are compared with, so that small steps add up.
    first: Reading,
    last: Reading,
    /// The highest time that the clock may have shown before it was last set.
    highest: u64,
    steady_since: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    /// When the reading was requested.
    before: Instant,
    /// When the reading arrived.
    after: Instant,
    /// In microseconds since 1970.
    clock: u64,
}

impl StoreClock {
    /// Records a reading. Returns the time since which the clock has run as expected. Earlier times of the clock are not
    /// reliable.
    pub(super) fn read(&mut self, before: Instant, after: Instant, clock: u64) -> Instant {
        let last = Reading { before, after, clock };
        if self.0.is_none() && after.saturating_duration_since(before) > TOLERANCE {
            // The reading is too imprecise to compare later readings with.
            return after;
        }
        let known = match self.0 {
            Some(Known { first, highest, steady_since, .. }) => {
                let passed = |from: Instant, to: Instant| micros(to.saturating_duration_since(from));
                let least = (first.clock + passed(first.after, before)).saturating_sub(micros(TOLERANCE));
                let most = first.clock + passed(first.before, after) + micros(TOLERANCE);
                if (least..=most).contains(&clock) {
                    Known { first, last, highest, steady_since }
                } else {
                    // After a step back, times from before the step seem later than they were, until the clock shows a time
                    // that it has not shown before.
                    let highest = highest.max(most);
                    let back = if clock < least { highest.saturating_sub(clock) } else { 0 };
                    let back = Duration::from_micros(back).min(MAX_STEP);
                    Known { first: last, last, highest, steady_since: steady_since.max(after + back) }
                }
            }
            None => Known { first: last, last, highest: 0, steady_since: after },
        };
        self.0 = Some(known);
        known.steady_since
    }

    /// Returns the time of the store's clock at an instant, or a slightly earlier time, and whether the clock was read before and
    /// after the instant and ran as expected. Returns `None` if the clock has not been read recently.
    pub(super) fn at(&self, instant: Instant, now: Instant) -> Option<(u64, bool)> {
        let Known { last: Reading { before, after, clock }, steady_since, .. } = self.0?;
        if now.saturating_duration_since(after) > MAX_AGE {
            return None;
        }
        let later = micros(instant.saturating_duration_since(after));
        let earlier = micros(after.saturating_duration_since(instant));
        Some(((clock + later).saturating_sub(earlier), steady_since <= instant && instant <= before))
    }
}

/// Returns whole microseconds since 1970; zero for earlier times.
pub(super) fn since_1970(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, micros)
}

/// Returns the time that is this number of microseconds after 1970.
pub(super) fn time_of(micros: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_micros(micros)).unwrap_or(UNIX_EPOCH)
}

/// Returns whole microseconds, limited so that sums of a few of them cannot overflow.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).min(u64::MAX / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_detected() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut clock = StoreClock::default();
        assert_eq!(clock.at(start, start), None);
        assert_eq!((clock.read(start, at(51), 1_000), clock.at(at(51), at(51))), (at(51), None), "too inexact");
        for (before, after, reading, steady_since) in [
            (0, 10, 1_000_000, 10),
            (1_000, 1_001, 2_000_000, 10),
            (1_100, 1_101, 2_145_000, 10),
            (1_200, 1_201, 2_290_000, 1_201),
            (9_000, 9_050, 5_000_000, 14_240),
            (9_100, 9_101, 60_000_000, 14_240),
            (20_000, 20_001, 130_000_000, 20_001),
        ] {
            assert_eq!(clock.read(at(before), at(after), reading), at(steady_since), "{reading}");
        }
        clock.read(at(21_000), at(21_001), 131_000_000);
        assert_eq!(clock.at(at(20_500), at(21_100)), Some((130_499_000, true)));
        assert_eq!(clock.at(at(21_002), at(21_100)), Some((131_001_000, false)), "not read since");
        assert_eq!(clock.at(at(20_000), at(21_100)), Some((129_999_000, false)), "set since");
        assert_eq!(clock.at(at(32_000), at(32_000)), None, "too long ago");
    }

    #[test]
    fn times_from_before_several_steps_back_are_not_reliable() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut clock = StoreClock::default();
        // A time from the first millisecond seems 600 ms later after the first step, and 1 600 ms later after the second one.
        for (now, reading, steady_since) in [(0, 10_000_000, 0), (1, 9_401_000, 651), (2, 8_402_000, 1_651)] {
            assert_eq!(clock.read(at(now), at(now), reading), at(steady_since), "{now}");
        }
        // A step forward takes nothing back, because it is unknown which times are from before it.
        assert_eq!(clock.read(at(3), at(3), 11_000_000), at(1_651));
    }

    #[test]
    fn a_clock_that_alternates_is_unreliable_only_for_a_moment_after_the_last_step() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut clock = StoreClock::default();
        for millis in 0..100_000 {
            // Two servers, whose clocks differ by half a second, answer in turn.
            let reading = 10_000_000 + millis * 1_000 + millis % 2 * 500_000;
            let steady_since = clock.read(at(millis), at(millis), reading);
            assert!(
                steady_since <= at(millis) + Duration::from_millis(551),
                "{millis}: {:?}",
                steady_since - at(millis)
            );
        }
    }

    #[test]
    fn small_steps_of_the_clock_add_up() {
        let start = Instant::now();
        let mut clock = StoreClock::default();
        let mut read = |second: u64, behind: u64| {
            let at = start + Duration::from_secs(second);
            clock.read(at, at, 10_000_000 + second * 1_000_000 - behind * 1_000) == start
        };
        assert!(read(0, 0) && read(1, 20) && read(2, 40) && !read(3, 60));
    }
}
