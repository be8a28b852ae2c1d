//! When the flag service may be asked again after it failed.
//!
//! After a failure no request is sent for a while, then one at a time that nothing waits for, until one succeeds: a
//! service that is down costs callers no time, and does not get all their requests at once when it recovers. No I/O; the
//! time and random numbers are passed in.

use std::time::{Duration, Instant};

use http::StatusCode;

use crate::{
    error::{Error, Failure},
    wire::backoff::{MAX_RETRY_AFTER, backoff, doubled, retry_after_wait},
};

/// Wait after the first failure.
pub(crate) const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Wait after the service refused the API key.
const UNAUTHORIZED_WAIT: Duration = Duration::from_secs(300);

/// Counts failures in a row. While it is open, no requests are sent; while half open, one probe at a time is.
#[derive(Debug, Default)]
pub(crate) struct CircuitBreaker {
    failures: u32,
    open: Option<Open>,
    /// When the latest request was sent that succeeded.
    last_success: Option<Instant>,
    /// Whether a task sends probes.
    is_half_open: bool,
    /// Outcomes of requests that were sent before this time are ignored.
    reset_at: Option<Instant>,
}

/// The failure that keeps the breaker open.
#[derive(Debug)]
struct Open {
    error: Error,
    at: Instant,
    retry_at: Instant,
    /// Whether the service itself named the time.
    is_named: bool,
}

impl CircuitBreaker {
    /// Returns the error because of which no request is sent, if the breaker is open.
    pub(crate) fn error(&self) -> Option<Error> {
        self.open.as_ref().map(|open| open.error.clone())
    }

    /// Returns when the next probe is due, if the breaker is open.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.open.as_ref().map(|open| open.retry_at)
    }

    /// Returns whether the caller must begin to send probes: the breaker is open, and no other task does.
    pub(crate) fn try_half_open(&mut self) -> bool {
        self.open.is_some() && !std::mem::replace(&mut self.is_half_open, true)
    }

    /// Notes that the task that sent probes has ended.
    pub(crate) fn end_half_open(&mut self) {
        self.is_half_open = false;
    }

    /// Closes the breaker. Outcomes of requests that were sent before `now`, with another API key, are ignored.
    pub(crate) fn reset(&mut self, now: Instant) {
        (self.failures, self.open, self.reset_at) = (0, None, Some(now));
    }

    /// Returns whether a request was sent before the last [`reset`](Self::reset).
    pub(crate) fn predates_reset(&self, sent: Instant) -> bool {
        self.reset_at.is_some_and(|reset_at| sent < reset_at)
    }

    /// Brings the next probe forward to `then`, unless the service itself named a time: the service seems to be back.
    pub(crate) fn retry_at_latest(&mut self, then: Instant) {
        if let Some(open) = self.open.as_mut().filter(|open| !open.is_named) {
            open.retry_at = open.retry_at.min(then);
        }
    }

    /// Records the outcome of a request that was sent at `sent`, and returns the error as callers see it. `random` is from
    /// [0, 1).
    pub(crate) fn record<T>(
        &mut self,
        outcome: Result<T, Failure>,
        sent: Instant,
        now: Instant,
        random: f64,
    ) -> Result<T, Error> {
        if self.predates_reset(sent) {
            return outcome.map_err(|failure| failure.error);
        }
        let Failure { error, retry_after, .. } = match outcome {
            Ok(output) => {
                self.succeeded(sent);
                return Ok(output);
            }
            Err(failure) if concerns_one_context(&failure.error) => {
                self.succeeded(sent);
                return Err(failure.error);
            }
            Err(failure) => failure,
        };
        // Requests that were in flight together and fail together are one failure of the service, and a request that was
        // sent before a later one succeeded says nothing new. Only an explicit refusal counts in any case.
        let is_old = self.open.as_ref().is_some_and(|open| sent < open.at)
            || self.last_success.is_some_and(|last_success| sent < last_success);
        let is_named = retry_after.is_some() || matches!(error, Error::RateLimited { .. });
        let is_explicit = is_named || matches!(error, Error::Unauthorized);
        if is_old && !is_explicit {
            return Err(error);
        }
        if !is_old {
            self.failures = self.failures.saturating_add(1);
        }
        let (error, wait) = match error {
            Error::Unauthorized => (Error::Unauthorized, UNAUTHORIZED_WAIT),
            Error::RateLimited { .. } => {
                let retry_after = retry_after.unwrap_or(doubled(FIRST_WAIT, self.failures)).min(MAX_RETRY_AFTER);
                (Error::RateLimited { retry_after }, retry_after_wait(retry_after, random))
            }
            error => {
                let at_least = retry_after_wait(retry_after.unwrap_or_default(), random);
                (error, backoff(FIRST_WAIT, self.failures, random).max(at_least))
            }
        };
        let retry_at = now + wait;
        match &mut self.open {
            // Callers get the failure with the longer wait.
            Some(open) if open.retry_at >= retry_at => open.at = now,
            _ => self.open = Some(Open { error: error.clone(), at: now, retry_at, is_named }),
        }
        Err(error)
    }

    /// Notes that the service responded. A request from before the last failure does not close the breaker.
    fn succeeded(&mut self, sent: Instant) {
        self.last_success = self.last_success.max(Some(sent));
        if self.open.as_ref().is_some_and(|open| sent >= open.at) {
            (self.failures, self.open) = (0, None);
        }
    }
}

/// Returns whether an error concerns one context only: the service works, and rejects this one.
pub(crate) fn concerns_one_context(error: &Error) -> bool {
    match error {
        Error::Evaluation { .. } | Error::InvalidContext(_) => true,
        Error::Status(status) => matches!(
            *status,
            StatusCode::BAD_REQUEST
                | StatusCode::PAYLOAD_TOO_LARGE
                | StatusCode::URI_TOO_LONG
                | StatusCode::UNPROCESSABLE_ENTITY
                | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn failure(error: Error, retry_after: Option<Duration>) -> Result<(), Failure> {
        Err(Failure { error, status: None, retry_after })
    }

    #[test]
    fn waits_double_up_to_half_a_minute() {
        let mut breaker = CircuitBreaker::default();
        let mut now = Instant::now();
        assert!(breaker.error().is_none() && !breaker.try_half_open());
        for (random, expected) in
            [(0.0, 0.5), (0.0, 1.0), (0.0, 2.0), (0.0, 4.0), (0.5, 12.0), (0.0, 15.0), (1.0, 30.0)]
        {
            breaker.record(failure(Error::Timeout, None), now, now, random).unwrap_err();
            assert_eq!(breaker.retry_at().unwrap() - now, Duration::from_secs_f64(expected));
            now = breaker.retry_at().unwrap();
        }
        assert!(breaker.try_half_open() && !breaker.try_half_open(), "one task sends probes");
        breaker.record(Ok::<_, Failure>(()), now, now, 0.0).unwrap();
        assert!(breaker.error().is_none() && breaker.retry_at().is_none());
        breaker.record(failure(Error::Timeout, None), now, now, 0.0).unwrap_err();
        assert_eq!(breaker.retry_at().unwrap() - now, Duration::from_millis(500), "starts over");
    }

    #[test]
    fn the_kind_of_failure_sets_the_wait() {
        let unavailable = || Error::Status(StatusCode::SERVICE_UNAVAILABLE);
        let limited = || Error::RateLimited { retry_after: Duration::ZERO };
        let cases = [
            (Error::Unauthorized, None, 300.0),
            (limited(), Some(7 * SECOND), 7.0),
            (limited(), None, 1.0),
            (limited(), Some(3_600 * SECOND), 300.0),
            (limited(), Some(290 * SECOND), 290.0),
            (unavailable(), None, 0.5),
            (unavailable(), Some(9 * SECOND), 9.0),
            (unavailable(), Some(3_600 * SECOND), 300.0),
            (Error::TooLarge, None, 0.5),
        ];
        for (error, retry_after, expected) in cases {
            let (mut breaker, now) = (CircuitBreaker::default(), Instant::now());
            let case = format!("{error:?} {retry_after:?}");
            breaker.record(failure(error, retry_after), now, now, 0.0).unwrap_err();
            assert_eq!(breaker.retry_at().unwrap() - now, Duration::from_secs_f64(expected), "{case}");
        }
    }

    #[test]
    fn a_limit_without_a_time_doubles() {
        let (mut breaker, mut now) = (CircuitBreaker::default(), Instant::now());
        for expected in [1, 2, 4, 8] {
            let limited = failure(Error::RateLimited { retry_after: Duration::ZERO }, None);
            let Err(Error::RateLimited { retry_after }) = breaker.record(limited, now, now, 0.0) else {
                panic!("limited")
            };
            assert_eq!(retry_after, expected * SECOND);
            now = breaker.retry_at().unwrap();
        }
    }

    #[test]
    fn a_wait_is_shortened_unless_the_service_named_it() {
        let named = Some(60 * SECOND);
        let limited = Error::RateLimited { retry_after: Duration::ZERO };
        for (error, retry_after, ends) in [
            (Error::Timeout, None, true),
            (Error::Unauthorized, None, true),
            (Error::Status(StatusCode::SERVICE_UNAVAILABLE), named, false),
            (limited, named, false),
        ] {
            let (mut breaker, now) = (CircuitBreaker::default(), Instant::now());
            breaker.record(failure(error.clone(), retry_after), now, now, 1.0).unwrap_err();
            breaker.retry_at_latest(now);
            assert_eq!(breaker.retry_at() == Some(now), ends, "{error}");
        }
    }

    #[test]
    fn no_wait_is_much_longer_than_five_minutes() {
        let (mut breaker, now) = (CircuitBreaker::default(), Instant::now());
        let limited = Error::RateLimited { retry_after: Duration::ZERO };
        breaker.record(failure(limited, Some(9_999 * SECOND)), now, now, 0.99).unwrap_err();
        assert!(breaker.retry_at().unwrap() - now <= MAX_RETRY_AFTER.mul_f64(1.1));
    }

    #[test]
    fn requests_that_fail_together_are_one_failure() {
        let (mut breaker, sent) = (CircuitBreaker::default(), Instant::now());
        let mut until = None;
        for number in 1..=64 {
            let now = sent + number * Duration::from_millis(1);
            breaker.record(failure(Error::Timeout, None), sent, now, 0.0).unwrap_err();
            assert_eq!(
                *until.get_or_insert(breaker.retry_at()),
                breaker.retry_at(),
                "later ones do not prolong the wait"
            );
        }
        assert_eq!(breaker.failures, 1);
    }

    #[test]
    fn a_failure_from_before_a_success_is_ignored() {
        let (mut breaker, sent) = (CircuitBreaker::default(), Instant::now());
        breaker.record(Ok::<_, Failure>(()), sent + SECOND, sent + SECOND, 0.0).unwrap();
        breaker.record(failure(Error::Timeout, None), sent, sent + 2 * SECOND, 0.0).unwrap_err();
        assert!(breaker.error().is_none(), "one slow request does not count against a service that answers others");
        breaker.record(failure(Error::Unauthorized, None), sent, sent + 2 * SECOND, 0.0).unwrap_err();
        assert!(breaker.error().is_some(), "an explicit refusal counts");
    }

    #[test]
    fn a_success_from_before_the_failure_does_not_close() {
        let (mut breaker, sent) = (CircuitBreaker::default(), Instant::now());
        let later = sent + SECOND;
        let limited = Error::RateLimited { retry_after: Duration::ZERO };
        breaker.record(failure(limited, Some(60 * SECOND)), sent, later, 0.0).unwrap_err();
        breaker.record(Ok::<_, Failure>(()), sent, later, 0.0).unwrap();
        assert_eq!(breaker.retry_at(), Some(later + 60 * SECOND), "no request before its time");
    }

    #[test]
    fn a_rejected_context_does_not_open_the_breaker() {
        let (mut breaker, now) = (CircuitBreaker::default(), Instant::now());
        for error in [
            Error::Evaluation { code: "TARGETING_KEY_MISSING".into(), details: None },
            Error::Status(StatusCode::BAD_REQUEST),
            Error::Status(StatusCode::PAYLOAD_TOO_LARGE),
        ] {
            breaker.record(failure(error, None), now, now, 0.0).unwrap_err();
            assert!(breaker.error().is_none());
        }
    }

    #[test]
    fn a_later_failure_neither_shortens_the_wait_nor_hides_its_cause() {
        let (mut breaker, now) = (CircuitBreaker::default(), Instant::now());
        breaker.record(failure(Error::Unauthorized, None), now, now, 0.0).unwrap_err();
        breaker.record(failure(Error::Timeout, None), now, now + SECOND, 0.0).unwrap_err();
        assert_eq!(breaker.retry_at(), Some(now + UNAUTHORIZED_WAIT));
        assert!(matches!(breaker.error(), Some(Error::Unauthorized)));
    }
}
