//! A clock that is cheap to read.

use std::time::{Duration, Instant};

/// Maximum time by which [`coarse_now`] lags behind.
pub(crate) const COARSE_LAG: Duration = Duration::from_millis(if cfg!(target_os = "linux") { 20 } else { 0 });

/// Returns the time of the system's last timer tick, which was at most [`COARSE_LAG`] ago, or the current time on systems
/// without such a clock.
#[cfg(target_os = "linux")]
#[inline]
pub(crate) fn coarse_now() -> Instant {
    use std::sync::OnceLock;

    use rustix::time::{ClockId, clock_gettime};

    fn read(clock: ClockId) -> Duration {
        // Cannot fail: both clocks count from system boot.
        Duration::try_from(clock_gettime(clock)).unwrap_or_default()
    }

    static ORIGIN: OnceLock<(Instant, Duration)> = OnceLock::new();
    let (instant, origin) = *ORIGIN.get_or_init(|| {
        // The thread may be paused between two readings, so the closest one of several pairs is used.
        let pairs = (0..8).map(|_| {
            let before = read(ClockId::Monotonic);
            // The instant is read first, because this clock must never run ahead.
            let (instant, origin) = (Instant::now(), read(ClockId::Monotonic));
            (origin.saturating_sub(before), instant, origin)
        });
        let closest = pairs.min_by_key(|(pause, ..)| *pause);
        closest.map_or_else(|| (Instant::now(), read(ClockId::Monotonic)), |(_, instant, origin)| (instant, origin))
    });
    instant.checked_add(read(ClockId::MonotonicCoarse).saturating_sub(origin)).unwrap_or(instant)
}

/// Returns the current time.
#[cfg(not(target_os = "linux"))]
pub(crate) fn coarse_now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_never_ahead_and_never_goes_back() {
        let (start, mut last) = (Instant::now(), coarse_now());
        while start.elapsed() < Duration::from_millis(50) {
            let (now, after) = (coarse_now(), Instant::now());
            assert!(last <= now && now <= after);
            last = now;
        }
        assert!(last > start, "it advances within 50 ms");
    }
}
