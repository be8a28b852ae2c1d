//! A clock that is cheap to read.

use std::time::Instant;

/// Returns the time of the system's last timer tick, which was at most 10 milliseconds ago, or the present where the system
/// has no such clock. For ages and deadlines of seconds.
#[cfg(target_os = "linux")]
#[inline]
pub(crate) fn coarse_now() -> Instant {
    use std::{sync::OnceLock, time::Duration};

    use rustix::time::{ClockId, clock_gettime};

    fn tick() -> Duration {
        // Cannot fail: the clock counts from the start of the system.
        Duration::try_from(clock_gettime(ClockId::MonotonicCoarse)).unwrap_or_default()
    }

    static ORIGIN: OnceLock<(Instant, Duration)> = OnceLock::new();
    let (instant, origin) = *ORIGIN.get_or_init(|| {
        let tick = tick();
        (Instant::now(), tick)
    });
    instant.checked_add(tick().saturating_sub(origin)).unwrap_or(instant)
}

/// Returns the present.
#[cfg(not(target_os = "linux"))]
pub(crate) fn coarse_now() -> Instant {
    Instant::now()
}
