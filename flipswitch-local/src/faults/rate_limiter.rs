//! A limit on the number of requests within any second.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

const WINDOW: Duration = Duration::from_secs(1);

/// Admits a number of requests within any second.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    per_second: usize,
    /// When the requests of the last second were admitted, oldest first.
    admitted: VecDeque<Instant>,
}

impl RateLimiter {
    pub(crate) fn new(per_second: usize) -> Self {
        Self { per_second, admitted: VecDeque::new() }
    }

    /// Returns whether a request is within the limit. Rejected requests are not counted.
    pub(crate) fn admits(&mut self, now: Instant) -> bool {
        while self.admitted.front().is_some_and(|oldest| now.saturating_duration_since(*oldest) >= WINDOW) {
            self.admitted.pop_front();
        }
        let is_within = self.admitted.len() < self.per_second;
        if is_within {
            self.admitted.push_back(now);
        }
        is_within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_has_more_requests_than_the_limit() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(2);
        let mut admits = |millis| limiter.admits(start + Duration::from_millis(millis));
        let times = [0, 900, 950, 999, 1000, 1001, 1899, 1900, 1901, 5000, 5000, 5000];
        let expected = [true, true, false, false, true, false, false, true, false, true, true, false];
        assert_eq!(times.map(&mut admits), expected);
    }

    #[test]
    fn time_that_does_not_advance_is_no_problem() {
        let start = Instant::now() + Duration::from_secs(1);
        let mut limiter = RateLimiter::new(1);
        assert!(limiter.admits(start));
        assert!(!limiter.admits(start - Duration::from_millis(1)));
    }
}
