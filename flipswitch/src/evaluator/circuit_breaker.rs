//! When the service may be asked again after it failed. One for each provider.
//!
//! After a failure nothing is sent for a while, and then one request at a time, for which nobody waits, until one
//! succeeds: a service that is away costs callers nothing, and is not met by all of them when it comes back.

use std::time::{Duration, Instant};

use http::StatusCode;

use crate::{
    Error,
    wire::backoff::{LONGEST_ASKED, asked, backoff, doubled},
    wire::transport::Failure,
};

/// The wait after the first failure.
pub(crate) const FIRST: Duration = Duration::from_secs(1);
/// A refused key is tried again this much later.
const UNAUTHORIZED: Duration = Duration::from_secs(300);

/// Failures in a row, and until when nothing is sent.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    failures: u32,
    last: Option<Last>,
    /// When the latest request was sent that was answered.
    well_since: Option<Instant>,
    /// Somebody tries on.
    probing: bool,
    /// What was sent earlier says nothing.
    since: Option<Instant>,
}

#[derive(Debug)]
struct Last {
    error: Error,
    at: Instant,
    until: Instant,
    /// The service itself named the time.
    is_named: bool,
}

impl Pause {
    /// The failure because of which nothing is to be sent, if there is one.
    pub(crate) fn refusal(&self) -> Option<Error> {
        self.last.as_ref().map(|last| last.error.clone())
    }

    /// Until when nothing is sent, if so.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.last.as_ref().map(|last| last.until)
    }

    /// Whether somebody must begin to try on; that is then the caller.
    pub(crate) fn begin_probing(&mut self) -> bool {
        self.last.is_some() && !std::mem::replace(&mut self.probing, true)
    }

    /// Whoever tried on does so no more.
    pub(crate) fn end_probing(&mut self) {
        self.probing = false;
    }

    /// Forgets all failures: what went out before `now` went out with another key.
    pub(crate) fn forget(&mut self, now: Instant) {
        (self.failures, self.last, self.since) = (0, None, Some(now));
    }

    /// Whether what was sent then went out with another key.
    pub(crate) fn is_of_another_key(&self, sent: Instant) -> bool {
        self.since.is_some_and(|since| sent < since)
    }

    /// There are signs of life: it is tried on at `then`, if not sooner, unless the service itself named a time.
    pub(crate) fn hasten(&mut self, then: Instant) {
        if let Some(last) = self.last.as_mut().filter(|last| !last.is_named) {
            last.until = last.until.min(then);
        }
    }

    /// Takes what a request sent at `sent` tells about the service, and returns the error as callers are to see it.
    /// `random` is from [0, 1).
    pub(crate) fn outcome<T>(
        &mut self,
        outcome: Result<T, Failure>,
        sent: Instant,
        now: Instant,
        random: f64,
    ) -> Result<T, Error> {
        if self.since.is_some_and(|since| sent < since) {
            return outcome.map_err(|failure| failure.error);
        }
        let Failure { error, retry_after } = match outcome {
            Ok(answer) => {
                self.alive(sent);
                return Ok(answer);
            }
            Err(failure) if concerns_one(&failure.error) => {
                self.alive(sent);
                return Err(failure.error);
            }
            Err(failure) => failure,
        };
        // Requests that were under way together fail together, which is one failure of the service. And one that was
        // sent before another that was answered is old news. Only the service's own word counts in any case.
        let is_old = self.last.as_ref().is_some_and(|last| sent < last.at)
            || self.well_since.is_some_and(|well_since| sent < well_since);
        let is_named = retry_after.is_some() || matches!(error, Error::RateLimited { .. });
        let is_word = is_named || matches!(error, Error::Unauthorized);
        if is_old && !is_word {
            return Err(error);
        }
        if !is_old {
            self.failures = self.failures.saturating_add(1);
        }
        let (error, wait) = match error {
            Error::Unauthorized => (Error::Unauthorized, UNAUTHORIZED),
            Error::RateLimited { .. } => {
                let retry_after = retry_after.unwrap_or(doubled(FIRST, self.failures)).min(LONGEST_ASKED);
                (Error::RateLimited { retry_after }, asked(retry_after, random))
            }
            error => (error, backoff(FIRST, self.failures, random).max(asked(retry_after.unwrap_or_default(), random))),
        };
        let until = now + wait;
        match &mut self.last {
            // What holds longer is what callers are told.
            Some(last) if last.until >= until => last.at = now,
            _ => self.last = Some(Last { error: error.clone(), at: now, until, is_named }),
        }
        Err(error)
    }

    /// The service answers; a request from before the last failure is no proof of it.
    fn alive(&mut self, sent: Instant) {
        self.well_since = self.well_since.max(Some(sent));
        if self.last.as_ref().is_some_and(|last| sent >= last.at) {
            (self.failures, self.last) = (0, None);
        }
    }
}

/// Whether a failure says something about one context only: the service is well and refuses this one.
pub(crate) fn concerns_one(error: &Error) -> bool {
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
        Err(Failure { error, retry_after })
    }

    #[test]
    fn waits_double_up_to_half_a_minute() {
        let mut pause = Pause::default();
        let mut now = Instant::now();
        assert!(pause.refusal().is_none() && !pause.begin_probing());
        for (random, expected) in
            [(0.0, 0.5), (0.0, 1.0), (0.0, 2.0), (0.0, 4.0), (0.5, 12.0), (0.0, 15.0), (1.0, 30.0)]
        {
            pause.outcome(failure(Error::Timeout, None), now, now, random).unwrap_err();
            assert_eq!(pause.until().unwrap() - now, Duration::from_secs_f64(expected));
            now = pause.until().unwrap();
        }
        assert!(pause.begin_probing() && !pause.begin_probing(), "one tries on");
        pause.outcome(Ok::<_, Failure>(()), now, now, 0.0).unwrap();
        assert!(pause.refusal().is_none() && pause.until().is_none());
        pause.outcome(failure(Error::Timeout, None), now, now, 0.0).unwrap_err();
        assert_eq!(pause.until().unwrap() - now, Duration::from_millis(500), "begun anew");
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
            let (mut pause, now) = (Pause::default(), Instant::now());
            let told = format!("{error:?} {retry_after:?}");
            pause.outcome(failure(error, retry_after), now, now, 0.0).unwrap_err();
            assert_eq!(pause.until().unwrap() - now, Duration::from_secs_f64(expected), "{told}");
        }
    }

    #[test]
    fn a_limit_without_a_time_doubles() {
        let (mut pause, mut now) = (Pause::default(), Instant::now());
        for expected in [1, 2, 4, 8] {
            let limited = failure(Error::RateLimited { retry_after: Duration::ZERO }, None);
            let Err(Error::RateLimited { retry_after }) = pause.outcome(limited, now, now, 0.0) else {
                panic!("limited")
            };
            assert_eq!(retry_after, expected * SECOND);
            now = pause.until().unwrap();
        }
    }

    #[test]
    fn signs_of_life_end_a_wait_unless_the_service_named_it() {
        let named = Some(60 * SECOND);
        let limited = Error::RateLimited { retry_after: Duration::ZERO };
        for (error, retry_after, ends) in [
            (Error::Timeout, None, true),
            (Error::Unauthorized, None, true),
            (Error::Status(StatusCode::SERVICE_UNAVAILABLE), named, false),
            (limited, named, false),
        ] {
            let (mut pause, now) = (Pause::default(), Instant::now());
            pause.outcome(failure(error.clone(), retry_after), now, now, 1.0).unwrap_err();
            pause.hasten(now);
            assert_eq!(pause.until() == Some(now), ends, "{error}");
        }
    }

    #[test]
    fn no_wait_is_much_longer_than_five_minutes() {
        let (mut pause, now) = (Pause::default(), Instant::now());
        let limited = Error::RateLimited { retry_after: Duration::ZERO };
        pause.outcome(failure(limited, Some(9_999 * SECOND)), now, now, 0.99).unwrap_err();
        assert!(pause.until().unwrap() - now <= LONGEST_ASKED.mul_f64(1.1));
    }

    #[test]
    fn requests_that_fail_together_are_one_failure() {
        let (mut pause, sent) = (Pause::default(), Instant::now());
        let mut until = None;
        for number in 1..=64 {
            let now = sent + number * Duration::from_millis(1);
            pause.outcome(failure(Error::Timeout, None), sent, now, 0.0).unwrap_err();
            assert_eq!(*until.get_or_insert(pause.until()), pause.until(), "stragglers do not prolong the wait");
        }
        assert_eq!(pause.failures, 1);
    }

    #[test]
    fn a_failure_from_before_an_answer_is_no_news() {
        let (mut pause, sent) = (Pause::default(), Instant::now());
        pause.outcome(Ok::<_, Failure>(()), sent + SECOND, sent + SECOND, 0.0).unwrap();
        pause.outcome(failure(Error::Timeout, None), sent, sent + 2 * SECOND, 0.0).unwrap_err();
        assert!(pause.refusal().is_none(), "one slow request says nothing about a service that answers others");
        pause.outcome(failure(Error::Unauthorized, None), sent, sent + 2 * SECOND, 0.0).unwrap_err();
        assert!(pause.refusal().is_some(), "its own word counts");
    }

    #[test]
    fn an_answer_from_before_the_failure_proves_nothing() {
        let (mut pause, sent) = (Pause::default(), Instant::now());
        let later = sent + SECOND;
        let limited = Error::RateLimited { retry_after: Duration::ZERO };
        pause.outcome(failure(limited, Some(60 * SECOND)), sent, later, 0.0).unwrap_err();
        pause.outcome(Ok::<_, Failure>(()), sent, later, 0.0).unwrap();
        assert_eq!(pause.until(), Some(later + 60 * SECOND), "no request before its time");
    }

    #[test]
    fn a_context_that_is_refused_pauses_nobody() {
        let (mut pause, now) = (Pause::default(), Instant::now());
        for error in [
            Error::Evaluation { code: "TARGETING_KEY_MISSING".into(), details: None },
            Error::Status(StatusCode::BAD_REQUEST),
            Error::Status(StatusCode::PAYLOAD_TOO_LARGE),
        ] {
            pause.outcome(failure(error, None), now, now, 0.0).unwrap_err();
            assert!(pause.refusal().is_none());
        }
    }

    #[test]
    fn a_later_failure_neither_shortens_the_wait_nor_hides_its_cause() {
        let (mut pause, now) = (Pause::default(), Instant::now());
        pause.outcome(failure(Error::Unauthorized, None), now, now, 0.0).unwrap_err();
        pause.outcome(failure(Error::Timeout, None), now, now + SECOND, 0.0).unwrap_err();
        assert_eq!(pause.until(), Some(now + UNAUTHORIZED));
        assert!(matches!(pause.refusal(), Some(Error::Unauthorized)));
    }
}
