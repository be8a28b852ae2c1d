//! Estimates how many requests per second the flag service accepts, once it has limited their rate. No I/O; the time is passed
//! in.

use std::time::{Duration, Instant};

use crate::wire::backoff::MAX_RETRY_AFTER;

const SECOND: Duration = Duration::from_secs(1);

/// Number of seconds over which responses are counted, not including pauses.
const SECONDS: usize = 10;

/// Fraction of the counted rate at which requests are sent after a limit.
const CUT: f64 = 0.9;

/// Fraction of the highest rate that is added in each second without a further limit. At twice the highest rate, the limit is
/// dropped.
const RAISE: f64 = 0.01;

/// Seconds without a further limit after which the rate is raised faster: the service accepts more than was counted.
const FASTER_AFTER: i32 = 15;

/// Factor by which the rate is raised each second after that.
const RAISE_FASTER: f64 = 1.25;

/// How much earlier than its evenly spaced time a request may be sent, because timers are not more precise than this.
const BURST: Duration = Duration::from_millis(20);

/// The rate at which requests are sent. It is unlimited until the service limits it.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    /// Responses in each of the last seconds, not including pauses.
    answers: [u32; SECONDS],
    /// Number of the last of these seconds, counted from `first_answer`.
    second: u64,
    first_answer: Option<Instant>,
    /// Total of the pauses that the service has asked for since then, up to the end of the last one. They say nothing about
    /// the rate that it accepts.
    paused: Duration,
    limit: Option<Limit>,
}

#[derive(Debug)]
struct Limit {
    /// Requests per second after the last cut.
    rate: f64,
    /// The highest of these rates so far.
    highest_rate: f64,
    cut_at: Instant,
    /// When the service last limited a request. The rate is raised from then on.
    since: Instant,
    /// No further cut is made before this time.
    next_cut: Instant,
    /// When the next request would be sent if all were evenly spaced.
    next: Instant,
    /// The service asked that no requests be sent before this time.
    not_before: Instant,
}

impl Pacer {
    /// Counts a response.
    pub(crate) fn answered(&mut self, now: Instant) {
        self.first_answer.get_or_insert(now);
        self.advance(now);
        let count = &mut self.answers[(self.second % SECONDS as u64) as usize];
        *count = count.saturating_add(1);
    }

    /// Records that the service rate-limited a request that was sent at `sent`. Returns when the next one may be sent.
    pub(crate) fn limited(&mut self, sent: Instant, now: Instant, retry_after: Option<Duration>) -> Duration {
        self.forget_old_limit(now);
        let retry_after = retry_after.unwrap_or_default().min(MAX_RETRY_AFTER);
        let not_before = now + retry_after;
        let rate = self.rate(now);
        if self.first_answer.is_some() {
            self.paused += not_before.saturating_duration_since(self.blocked_until(now));
        }
        match &mut self.limit {
            Some(limit) => {
                if sent > limit.cut_at && now >= limit.next_cut {
                    (limit.rate, limit.cut_at, limit.next_cut) = (rate, now, now + retry_after.max(SECOND));
                    limit.highest_rate = limit.highest_rate.max(rate);
                } else {
                    limit.rate = limit.at(now);
                }
                limit.since = now;
                limit.not_before = limit.not_before.max(not_before);
            }
            None => {
                let next_cut = now + retry_after.max(SECOND);
                self.limit =
                    Some(Limit { rate, highest_rate: rate, cut_at: now, since: now, next_cut, next: now, not_before });
            }
        }
        self.next(now).saturating_duration_since(now)
    }

    /// Returns when the service allows the next request. Returns `now` if it already allows one.
    pub(crate) fn blocked_until(&self, now: Instant) -> Instant {
        self.limit.as_ref().map_or(now, |limit| limit.not_before.max(now))
    }

    /// Returns when the next request may be sent. Returns `now` if a request may already be sent.
    pub(crate) fn next(&mut self, now: Instant) -> Instant {
        self.forget_old_limit(now);
        let next = self.limit.as_ref().map_or(now, |limit| limit.not_before.max(limit.next - BURST));
        next.max(now)
    }

    /// Records that a request is sent.
    pub(crate) fn sent(&mut self, now: Instant) {
        if let Some(limit) = &mut self.limit {
            limit.next = limit.next.max(now) + SECOND.div_f64(limit.at(now));
        }
    }

    /// Reverts [`sent`](Self::sent), because the request was not sent after all.
    pub(crate) fn unsent(&mut self, now: Instant) {
        if let Some(limit) = &mut self.limit {
            limit.next = limit.next.checked_sub(SECOND.div_f64(limit.at(now))).unwrap_or(limit.next);
        }
    }

    /// Returns the maximum number of requests that are sent per second.
    pub(crate) fn per_second(&self, now: Instant) -> Option<f64> {
        self.limit.as_ref().filter(|limit| !limit.is_old(now)).map(|limit| limit.at(now))
    }

    fn forget_old_limit(&mut self, now: Instant) {
        self.limit.take_if(|limit| limit.is_old(now));
    }

    /// Returns the rate after a cut.
    fn rate(&mut self, now: Instant) -> f64 {
        if self.first_answer.is_none() {
            return 1.0;
        }
        self.advance(now);
        let counted = self.unpaused(now).clamp(SECOND, SECOND * SECONDS as u32);
        let answers: u32 = self.answers.iter().sum();
        (CUT * f64::from(answers) / counted.as_secs_f64()).max(1.0)
    }

    /// Discards the responses of earlier seconds.
    fn advance(&mut self, now: Instant) {
        let second = self.unpaused(now).as_secs();
        for passed in self.second + 1..=second.min(self.second + SECONDS as u64) {
            self.answers[(passed % SECONDS as u64) as usize] = 0;
        }
        self.second = self.second.max(second);
    }

    /// Returns the time since the first response, without pauses.
    fn unpaused(&self, now: Instant) -> Duration {
        let since_first = self.first_answer.map_or(Duration::ZERO, |first| now.saturating_duration_since(first));
        let ahead = self.blocked_until(now).saturating_duration_since(now);
        since_first.saturating_sub(self.paused.saturating_sub(ahead))
    }
}

impl Limit {
    /// Returns whether the limit has ended.
    fn is_old(&self, now: Instant) -> bool {
        self.at(now) >= 2.0 * self.highest_rate
    }

    /// Returns how many requests per second may be sent at this time.
    fn at(&self, now: Instant) -> f64 {
        let seconds = now.saturating_duration_since(self.since.max(self.not_before)).as_secs();
        let seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
        let raised = self.rate + f64::from(seconds) * RAISE * self.highest_rate;
        raised * RAISE_FASTER.powi((seconds - FASTER_AFTER).max(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends as fast as the pacer allows, to a service that responds to `allowed` requests in each second.
    fn run(pacer: &mut Pacer, start: Instant, seconds: u64, allowed: u32, retry_after: Option<Duration>) -> (u32, u32) {
        let (mut answered, mut limited) = (0, 0);
        let mut window = (0, 0);
        let mut blocked = start;
        // 300 requests per second are wanted.
        for step in 0..seconds * 300 {
            let now = start + Duration::from_micros(step * 1_000_000 / 300);
            if pacer.next(now) > now {
                continue;
            }
            assert!(now >= blocked, "sent before Retry-After");
            pacer.sent(now);
            let second = step / 300;
            if window.0 != second {
                window = (second, 0);
            }
            if window.1 < allowed {
                window.1 += 1;
                answered += 1;
                pacer.answered(now);
            } else {
                limited += 1;
                pacer.limited(now, now, retry_after);
                blocked = now + retry_after.unwrap_or_default();
            }
        }
        (answered, limited)
    }

    #[test]
    fn most_of_the_rate_of_a_limited_service_is_used() {
        for retry_after in [None, Some(SECOND)] {
            let (answered, limited) = run(&mut Pacer::default(), Instant::now(), 60, 100, retry_after);
            assert!(answered >= 80 * 60, "{retry_after:?}: {answered}");
            assert!(limited * 20 <= answered + limited, "{retry_after:?}: {limited} of {answered}");
        }
    }

    #[test]
    fn nothing_is_sent_before_the_time_that_the_service_named() {
        let (mut pacer, now) = (Pacer::default(), Instant::now());
        assert_eq!(pacer.limited(now, now, Some(7 * SECOND)), 7 * SECOND);
        assert_eq!(pacer.next(now), now + 7 * SECOND);
        // A request that was in flight does not shorten it.
        pacer.limited(now, now + SECOND, Some(SECOND));
        assert_eq!(pacer.next(now + SECOND), now + 7 * SECOND);
        assert_eq!(Pacer::default().limited(now, now, Some(Duration::from_secs(3_600))), MAX_RETRY_AFTER);
    }

    #[test]
    fn pauses_do_not_lower_the_rate() {
        let (mut pacer, mut now) = (Pacer::default(), Instant::now());
        for _ in 0..3 {
            // 200 responses in two seconds, followed by two limits and a pause.
            for _ in 0..200 {
                now += SECOND / 100;
                pacer.answered(now);
            }
            pacer.limited(now, now, Some(7 * SECOND));
            pacer.limited(now, now + SECOND, Some(9 * SECOND));
            now += 10 * SECOND;
        }
        let rate = pacer.per_second(now).unwrap();
        assert!((80.0..=91.0).contains(&rate), "{rate}");
    }

    #[test]
    fn a_limit_outlasts_a_cut_to_a_higher_rate() {
        let (mut pacer, start) = (Pacer::default(), Instant::now());
        pacer.answered(start);
        pacer.limited(start, start, None);
        // Requests that were in flight.
        (0..100).for_each(|_| pacer.answered(start));
        let later = start + 2 * SECOND;
        assert_eq!(pacer.limited(later, later, Some(7 * SECOND)), 7 * SECOND);
        assert_eq!(pacer.per_second(later), Some(CUT * 101.0 / 2.0));
        pacer.next(later + 8 * SECOND);
        assert!(pacer.per_second(later + 8 * SECOND).is_some());
    }

    #[test]
    fn requests_that_are_limited_together_cut_the_rate_once() {
        let (mut pacer, start) = (Pacer::default(), Instant::now());
        (0..100).for_each(|_| pacer.answered(start));
        for _ in 0..50 {
            pacer.limited(start, start, None);
        }
        assert_eq!(pacer.per_second(start), Some(90.0));
        let later = start + 2 * SECOND;
        pacer.limited(start, later, None);
        assert_eq!(
            pacer.per_second(later + 10 * SECOND),
            Some(100.8),
            "sent before the cut, and raised for 2 + 10 seconds"
        );
        pacer.limited(later, later, None);
        assert_eq!(
            pacer.per_second(later),
            Some(45.0),
            "100 answers in two seconds; the rate is not raised immediately"
        );
    }

    #[test]
    fn the_limit_ends_when_its_rate_has_doubled() {
        let (mut pacer, start) = (Pacer::default(), Instant::now());
        (0..100).for_each(|_| pacer.answered(start));
        pacer.limited(start, start, None);
        assert_eq!(pacer.per_second(start + 10 * SECOND), Some(99.0));
        assert_eq!(pacer.per_second(start + 15 * SECOND), Some(103.5));
        assert!(pacer.per_second(start + 17 * SECOND).is_some());
        assert!(pacer.per_second(start + 18 * SECOND).is_none());
    }

    #[test]
    fn a_service_that_never_answered_gets_one_request_a_second() {
        let (mut pacer, start) = (Pacer::default(), Instant::now());
        pacer.limited(start, start, None);
        assert_eq!(pacer.per_second(start), Some(1.0));
        pacer.sent(start);
        assert_eq!(pacer.next(start), start + SECOND - BURST);
    }
}
