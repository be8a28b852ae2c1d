//! Decides whether the flag service as a whole works, based on the outcomes for more than one context.
//!
//! A service that fails for one context may work for all others, so a failure at first concerns only its own context
//! ([`Backoffs`](super::backoffs::Backoffs)). The breaker opens if no connection is possible, or if different contexts fail
//! and a round of requests is not answered either. A round requests at most three contexts, at least one of which is certain to
//! be valid, and no evaluation waits for it. While the breaker is open, only rounds are sent. A service that is down therefore
//! costs callers no time, and does not receive all their requests at once when it recovers. One answer closes the breaker. No
//! I/O; the time and random numbers are passed in.

use std::time::{Duration, Instant};

use http::StatusCode;

use crate::{
    context::canonical::CanonicalContext,
    error::{Error, Failure},
    wire::backoff::{MAX_BACKOFF, backoff, retry_after_wait},
};

/// Wait after the first failure.
pub(crate) const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Number of different contexts that must have failed before the breaker opens, unless no connection is possible.
const MIN_FAILED: usize = 3;

/// Time from a refusal of the API key to the round that confirms it. A firewall may have rejected a single request.
const CONFIRM_AFTER: Duration = Duration::from_secs(1);

/// A failure to connect opens the breaker immediately, unless a request that was sent within this time was answered.
const RECENT: Duration = Duration::from_secs(1);

/// Waits after confirmed refusals of the API key in a row. The last one repeats.
const REFUSED_WAITS: [Duration; 3] = [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(300)];

/// What a failure says about the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// The service works, and rejects this context, or the number of requests.
    Responsive,
    /// The API key may be refused.
    KeyRefused,
    /// No connection is possible.
    Unreachable,
    /// The service may have no flags. A round finds out.
    NoFlags,
    /// The service may be failing.
    Failing,
}

/// Counts different contexts that fail, and decides when to request which contexts.
#[derive(Debug, Default)]
pub(crate) struct CircuitBreaker {
    /// Different contexts that have failed since the last answer, up to [`MIN_FAILED`].
    failed: Vec<CanonicalContext>,
    /// When the next round is due: something failed, and nothing has been answered since.
    round_at: Option<Instant>,
    /// Whether the service itself named that time.
    is_named: bool,
    round: Option<Round>,
    /// Rounds in a row without an answer.
    rounds: u32,
    /// Rounds in a row in which every request was refused because of the API key.
    refused_rounds: usize,
    /// The last failure since the last answer.
    error: Option<Error>,
    /// When the breaker opened, if it is open.
    open_since: Option<Instant>,
    /// The context of the last answer with the API key in use.
    last_answered: Option<CanonicalContext>,
    /// When the latest answered request was sent.
    last_answer: Option<Instant>,
    /// Contexts that could not be requested since the last round: one with flags, and one without.
    wanted: [Option<CanonicalContext>; 2],
    /// Failures in a row of the start-up context.
    start_up_failures: u32,
    /// When the start-up context is requested again.
    start_up_at: Option<Instant>,
    /// Whether a task carries out rounds.
    has_task: bool,
    /// Outcomes of requests that were sent before this time are ignored.
    reset_at: Option<Instant>,
}

/// A round of requests in flight.
#[derive(Debug)]
struct Round {
    began: Instant,
    /// Contexts whose requests have no outcome yet.
    contexts: Vec<CanonicalContext>,
    /// Whether all failures were refusals of the API key.
    is_refused: bool,
    /// How many requests failed.
    failed: usize,
    /// The shortest time that the service named, if it named one for each failed request.
    retry_after: Option<Duration>,
}

impl CircuitBreaker {
    /// Returns the reason why no requests are sent, if the breaker is open.
    pub(crate) fn error(&self) -> Option<&Error> {
        self.open_since.and(self.error.as_ref())
    }

    /// Returns the error of a service that counts as failing: the breaker is open, or a round was not answered.
    pub(crate) fn failing(&self) -> Option<&Error> {
        self.error.as_ref().filter(|_| self.open_since.is_some() || self.rounds > 0)
    }

    /// Records that a context could not be requested.
    pub(crate) fn want(&mut self, context: &CanonicalContext, has_flags: bool) {
        if context.is_start_up() {
            // It is part of every round.
            return;
        }
        self.wanted[usize::from(!has_flags)].get_or_insert_with(|| context.clone());
    }

    /// Returns whether the caller must begin to carry out rounds: some are due, and no other task does.
    pub(crate) fn needs_task(&mut self) -> bool {
        self.due().is_some() && !std::mem::replace(&mut self.has_task, true)
    }

    /// Returns when the task that carries out rounds must begin one. If there is none, the task must end.
    pub(crate) fn next_round(&mut self) -> Option<Instant> {
        let due = self.due();
        self.has_task = due.is_some();
        due
    }

    /// Records that the task that carried out rounds was dropped.
    pub(crate) fn task_dropped(&mut self) {
        (self.has_task, self.round) = (false, None);
        if let (Some(open_since), None) = (self.open_since, self.round_at) {
            // Otherwise nothing would ever close it.
            self.round_at = Some(open_since);
        }
    }

    /// Returns whether the requests of a round are in flight.
    pub(crate) fn has_round(&self) -> bool {
        self.round.is_some()
    }

    /// Returns when [`begin_round`](Self::begin_round) is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        // A round requests the start-up context as well.
        self.round_at.or(self.start_up_at)
    }

    /// Begins a round, and returns the contexts to request. Returns none if no round is due.
    pub(crate) fn begin_round(&mut self, now: Instant) -> Vec<CanonicalContext> {
        if self.due().is_none_or(|due| now < due) {
            return Vec::new();
        }
        let mut contexts = vec![CanonicalContext::start_up()];
        self.start_up_at = None;
        if self.round_at.take().is_some() {
            let [known, new] = std::mem::take(&mut self.wanted);
            for context in [known.or_else(|| self.last_answered.clone()), new].into_iter().flatten() {
                if !contexts.contains(&context) {
                    contexts.push(context);
                }
            }
            self.round =
                Some(Round { began: now, contexts: contexts.clone(), is_refused: true, failed: 0, retry_after: None });
        }
        contexts
    }

    /// Ends a round. If no request was answered, plans the next round and returns `true`. `random` is in [0, 1).
    pub(crate) fn end_round(&mut self, now: Instant, random: f64) -> bool {
        let Some(Round { began, contexts, is_refused, retry_after, .. }) = self.round.take() else { return false };
        self.rounds = self.rounds.saturating_add(1);
        if is_refused && contexts.is_empty() {
            self.refuse_key(began);
        } else {
            self.refused_rounds = 0;
            // Without an outcome, no request was answered in time.
            self.error.get_or_insert(Error::Timeout);
            if self.failed.len() >= MIN_FAILED {
                // Open since the beginning of the round, so that a late answer to it counts.
                self.open_since.get_or_insert(began);
            }
            let named = retry_after_wait(retry_after.unwrap_or_default().min(MAX_BACKOFF), random);
            self.is_named = retry_after.is_some();
            self.round_at = Some(now.max(began + backoff(FIRST_WAIT, self.rounds + 1, random)).max(now + named));
        }
        true
    }

    /// Closes the breaker and forgets all outcomes, because another API key is in use from `now` on.
    pub(crate) fn reset(&mut self, now: Instant) {
        *self = Self { reset_at: Some(now), has_task: self.has_task, ..Self::default() };
    }

    /// Returns whether a request was sent before the last [`reset`](Self::reset).
    pub(crate) fn predates_reset(&self, sent: Instant) -> bool {
        self.reset_at.is_some_and(|reset_at| sent < reset_at)
    }

    /// Brings the next round forward to `then`, because the service seems to be back. Does nothing if the service itself named a
    /// time.
    pub(crate) fn round_at_latest(&mut self, then: Instant) {
        if self.is_named {
            return;
        }
        self.round_at = self.round_at.map(|round_at| round_at.min(then));
        self.start_up_at = self.start_up_at.map(|start_up_at| start_up_at.min(then));
    }

    /// Records the answer to a request that was sent at `sent`.
    pub(crate) fn answered(&mut self, context: &CanonicalContext, sent: Instant) {
        if context.is_start_up() {
            (self.start_up_failures, self.start_up_at) = (0, None);
        }
        self.last_answered = Some(context.clone());
        self.responded(sent);
    }

    /// Records the failure of a request that was sent at `sent`. `is_key_expired` indicates whether the API key has expired, as
    /// the service announced. `random` is in [0, 1).
    pub(crate) fn failed(
        &mut self,
        context: &CanonicalContext,
        failure: &Failure,
        sent: Instant,
        now: Instant,
        is_key_expired: bool,
        random: f64,
    ) {
        if context.is_start_up() {
            self.start_up_failures = self.start_up_failures.saturating_add(1);
            let wait = backoff(FIRST_WAIT, self.start_up_failures, random);
            let at_least = named_wait(failure, random);
            self.start_up_at = Some(now + wait.max(at_least));
        }
        let meaning = meaning(failure);
        if meaning == Meaning::Responsive {
            if let Some(retry_after) = failure.retry_after {
                // Finds out whether the service accepts requests again.
                self.start_up_at.get_or_insert(now + retry_after_wait(retry_after, random));
            }
            // While the service is unavailable, a proxy may still reject contexts that a client has made up.
            if context.is_start_up() || self.last_answered.as_ref() == Some(context) {
                self.responded(sent);
            }
            return;
        }
        if self.last_answer.is_some_and(|answer| sent < answer) {
            // One slow request does not count against a service that has answered later ones.
            return;
        }
        // A refusal of the key takes precedence over other failures, and counts only once it is confirmed.
        if meaning != Meaning::KeyRefused && !matches!(self.error, Some(Error::Unauthorized)) {
            self.error = Some(failure.error.clone());
        }
        let was_answered = self.last_answer.is_some_and(|answer| now < answer + RECENT);
        if let Some(round) = &mut self.round {
            round.failed(context, failure.retry_after, meaning);
        }
        match meaning {
            Meaning::KeyRefused => {
                if self.round.is_none() && self.open_since.is_none() {
                    if is_key_expired {
                        self.refuse_key(now);
                    } else {
                        let round_at = self.round_at.get_or_insert(now + CONFIRM_AFTER);
                        *round_at = (*round_at).min(now + CONFIRM_AFTER);
                        self.is_named = false;
                    }
                }
                return;
            }
            // If something was answered just now, perhaps only one of several servers is down.
            Meaning::Unreachable if self.open_since.is_none() && !was_answered => {
                self.open_since = Some(now);
                self.round_at = None;
            }
            Meaning::Failing | Meaning::Unreachable
                if self.failed.len() < MIN_FAILED && !self.failed.contains(context) =>
            {
                self.failed.push(context.clone());
                if self.failed.len() == MIN_FAILED && self.open_since.is_none() && self.round.is_none() {
                    (self.round_at, self.is_named) = (Some(now), false);
                }
            }
            _ => {}
        }
        let is_named = failure.retry_after.is_some();
        if self.round.is_none() && (self.round_at.is_none() || self.is_named && !is_named) {
            let named = named_wait(failure, random);
            let round_at = now + backoff(FIRST_WAIT, self.rounds + 1, random).max(named);
            self.round_at = Some(self.round_at.map_or(round_at, |planned| planned.min(round_at)));
            self.is_named = is_named;
        }
    }

    /// Opens the breaker, or keeps it open, because the API key is refused.
    fn refuse_key(&mut self, now: Instant) {
        self.open_since.get_or_insert(now);
        self.error = Some(Error::Unauthorized);
        self.is_named = false;
        self.round_at = Some(now + REFUSED_WAITS[self.refused_rounds.min(REFUSED_WAITS.len() - 1)]);
        self.refused_rounds += 1;
    }

    /// Records that the service responded. A response to a request from before the breaker opened does not close it.
    fn responded(&mut self, sent: Instant) {
        self.last_answer = self.last_answer.max(Some(sent));
        if self.open_since.is_none_or(|open_since| sent >= open_since) {
            (self.open_since, self.error, self.round_at, self.round) = (None, None, None, None);
            (self.rounds, self.refused_rounds) = (0, 0);
            (self.failed, self.wanted) = (Vec::new(), [None, None]);
        }
    }
}

impl Round {
    /// Records the failure of a request, if it belongs to the round.
    fn failed(&mut self, context: &CanonicalContext, retry_after: Option<Duration>, meaning: Meaning) {
        let Some(position) = self.contexts.iter().position(|requested| requested == context) else { return };
        self.contexts.swap_remove(position);
        self.retry_after = if self.failed == 0 { retry_after } else { self.retry_after.min(retry_after) };
        self.failed += 1;
        self.is_refused &= meaning == Meaning::KeyRefused;
    }
}

/// Returns the wait that the service named. It may be longer than [`MAX_BACKOFF`] only after a 429, because error pages from
/// proxies also name long times.
fn named_wait(failure: &Failure, random: f64) -> Duration {
    let named = failure.retry_after.unwrap_or_default();
    let is_limit = matches!(failure.error, Error::RateLimited { .. });
    retry_after_wait(if is_limit { named } else { named.min(MAX_BACKOFF) }, random)
}

fn meaning(failure: &Failure) -> Meaning {
    match &failure.error {
        error if rejects_context(error) => Meaning::Responsive,
        Error::RateLimited { .. } => Meaning::Responsive,
        Error::Unauthorized => Meaning::KeyRefused,
        _ if failure.is_connect => Meaning::Unreachable,
        Error::Status(StatusCode::NOT_FOUND) => Meaning::NoFlags,
        _ => Meaning::Failing,
    }
}

/// Returns whether an error concerns one context only: the service works, but rejects this context.
pub(crate) fn rejects_context(error: &Error) -> bool {
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
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn context(number: usize) -> CanonicalContext {
        CanonicalContext::from_bytes(format!("context {number}").as_bytes())
    }

    fn unavailable() -> Failure {
        Error::Status(StatusCode::SERVICE_UNAVAILABLE).into()
    }

    fn unreachable() -> Failure {
        Failure { is_connect: true, ..Error::Timeout.into() }
    }

    fn refused() -> Failure {
        Error::Unauthorized.into()
    }

    /// A breaker and the time. Random numbers are 1, so that waits are as long as possible.
    struct Service {
        breaker: CircuitBreaker,
        now: Instant,
    }

    impl Service {
        fn new() -> Self {
            Self { breaker: CircuitBreaker::default(), now: Instant::now() }
        }

        fn fails(&mut self, context: &CanonicalContext, failure: &Failure) {
            self.breaker.failed(context, failure, self.now, self.now, false, 1.0);
        }

        fn answers(&mut self, context: &CanonicalContext) {
            self.breaker.answered(context, self.now);
        }

        fn is_open(&self) -> bool {
            self.breaker.error().is_some()
        }

        /// Waits for the next round, and lets all its requests fail. Returns the wait and the number of requests.
        fn unanswered_round(&mut self, failure: impl Fn() -> Failure) -> (Duration, usize) {
            let began = self.now;
            self.now = self.breaker.due().unwrap();
            let contexts = self.breaker.begin_round(self.now);
            contexts.iter().for_each(|context| self.fails(context, &failure()));
            self.breaker.end_round(self.now, 1.0);
            (self.now - began, contexts.len())
        }
    }

    #[test]
    fn one_context_that_fails_does_not_open_the_breaker() {
        let mut service = Service::new();
        service.answers(&context(1));
        for _ in 0..10 {
            service.fails(&context(0), &unavailable());
            assert!(!service.is_open());
        }
        // The round requests the start-up context, and the context that was answered last.
        let due = service.breaker.due().unwrap();
        assert_eq!(due - service.now, SECOND);
        assert!(service.breaker.begin_round(service.now).is_empty(), "not yet");
        service.now = due;
        assert_eq!(service.breaker.begin_round(due), [CanonicalContext::start_up(), context(1)]);
        service.answers(&context(1));
        assert!(!service.breaker.end_round(service.now, 1.0) && service.breaker.failing().is_none());
        assert_eq!(service.breaker.due(), None);
    }

    #[test]
    fn three_contexts_and_an_unanswered_round_open_the_breaker() {
        let mut service = Service::new();
        service.answers(&context(9));
        for number in [0, 1, 1, 0] {
            service.fails(&context(number), &unavailable());
        }
        assert_eq!(service.breaker.due().unwrap() - service.now, SECOND);
        service.fails(&context(2), &unavailable());
        assert_eq!(service.breaker.due(), Some(service.now), "requested immediately");
        assert!(!service.is_open(), "not before the round");
        service.unanswered_round(unavailable);
        assert!(service.is_open());
        // One answer closes it.
        service.now += SECOND;
        service.answers(&CanonicalContext::start_up());
        assert!(!service.is_open() && service.breaker.failing().is_none() && service.breaker.due().is_none());
    }

    #[test]
    fn an_answer_in_between_resets_the_count() {
        let mut service = Service::new();
        for number in 0..10 {
            service.fails(&context(number), &unavailable());
            service.answers(&context(9));
            assert!(service.breaker.due().is_none());
        }
    }

    #[test]
    fn a_service_that_cannot_be_reached_opens_the_breaker_at_once() {
        let mut service = Service::new();
        service.fails(&context(0), &unreachable());
        assert!(service.is_open());
        assert_eq!(service.breaker.due().unwrap() - service.now, SECOND);
    }

    #[test]
    fn one_unreachable_server_of_several_does_not_open_the_breaker() {
        let mut service = Service::new();
        for number in 0..10 {
            service.answers(&context(number));
            service.fails(&context(100), &unreachable());
            assert!(!service.is_open());
        }
    }

    #[test]
    fn a_late_answer_to_the_round_closes_the_breaker() {
        let mut service = Service::new();
        for number in 0..3 {
            service.fails(&context(number), &unavailable());
        }
        let began = service.now;
        assert_eq!(service.breaker.begin_round(began).len(), 1);
        service.now += 2 * SECOND;
        assert!(service.breaker.end_round(service.now, 1.0) && service.is_open());
        service.breaker.answered(&CanonicalContext::start_up(), began);
        assert!(!service.is_open());
    }

    #[test]
    fn an_open_breaker_plans_a_round_even_if_its_task_is_dropped() {
        let mut service = Service::new();
        service.fails(&context(0), &unreachable());
        assert!(service.breaker.needs_task() && !service.breaker.needs_task());
        service.now = service.breaker.due().unwrap();
        service.breaker.begin_round(service.now);
        service.breaker.task_dropped();
        assert!(service.breaker.due().is_some() && service.breaker.needs_task());
    }

    #[test]
    fn a_few_failing_contexts_make_the_service_count_as_failing_but_do_not_open_the_breaker() {
        let mut service = Service::new();
        service.answers(&context(0));
        service.now += SECOND;
        service.fails(&context(0), &unavailable());
        assert!(service.breaker.failing().is_none(), "not before the round");
        service.unanswered_round(unavailable);
        assert!(service.breaker.failing().is_some() && !service.is_open());
    }

    #[test]
    fn rounds_back_off_and_request_three_contexts_at_most() {
        let mut service = Service::new();
        service.answers(&context(0));
        service.now += SECOND;
        service.fails(&context(1), &unreachable());
        for (number, expected) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 30), (7, 30)] {
            for wanted in 10 * number..10 * number + 5 {
                service.breaker.want(&context(wanted), wanted % 2 == 0);
            }
            let (waited, requests) = service.unanswered_round(unreachable);
            assert_eq!((waited, requests), (expected * SECOND, 3));
        }
        service.breaker.want(&context(7), false);
        service.now = service.breaker.due().unwrap();
        let contexts = service.breaker.begin_round(service.now);
        assert_eq!(contexts, [CanonicalContext::start_up(), context(0), context(7)], "context 0 was answered before");
    }

    #[test]
    fn an_open_stream_brings_the_next_round_forward_unless_the_service_named_a_time() {
        let mut service = Service::new();
        service.fails(&context(0), &unreachable());
        service.breaker.round_at_latest(service.now);
        assert_eq!(service.breaker.due(), Some(service.now));
        service.unanswered_round(|| Failure { retry_after: Some(60 * SECOND), ..unavailable() });
        service.breaker.round_at_latest(service.now);
        let wait = service.breaker.due().unwrap() - service.now;
        assert!((30 * SECOND..=33 * SECOND).contains(&wait), "named, and no longer than any other wait: {wait:?}");
    }

    #[test]
    fn a_refusal_of_the_key_counts_only_once_it_is_confirmed() {
        let mut service = Service::new();
        service.answers(&context(1));
        service.now += SECOND;
        service.fails(&context(0), &refused());
        assert!(!service.is_open() && service.breaker.failing().is_none());
        service.now = service.breaker.due().unwrap();
        let contexts = service.breaker.begin_round(service.now);
        assert_eq!(contexts, [CanonicalContext::start_up(), context(1)]);
        service.fails(&CanonicalContext::start_up(), &refused());
        service.answers(&context(1));
        service.breaker.end_round(service.now, 1.0);
        assert!(service.breaker.failing().is_none(), "the key is accepted for one context");

        service.now += SECOND;
        service.fails(&context(0), &refused());
        for expected in [1, 5, 30, 300, 300] {
            let (waited, requests) = service.unanswered_round(refused);
            assert_eq!((waited, requests), (expected * SECOND, 2));
            assert!(matches!(service.breaker.error(), Some(Error::Unauthorized)));
        }
        service.now += SECOND;
        service.answers(&context(0));
        assert!(!service.is_open());
    }

    #[test]
    fn a_refusal_of_the_key_counts_at_once_after_its_announced_expiry() {
        let mut service = Service::new();
        service.breaker.failed(&context(0), &refused(), service.now, service.now, true, 1.0);
        assert!(matches!(service.breaker.error(), Some(Error::Unauthorized)));
    }

    #[test]
    fn a_round_that_fails_with_another_error_does_not_confirm_a_refusal() {
        let mut service = Service::new();
        service.fails(&context(0), &refused());
        service.unanswered_round(unavailable);
        assert!(!service.is_open());
    }

    #[test]
    fn a_single_refusal_by_a_failing_service_does_not_count() {
        let mut service = Service::new();
        service.fails(&context(0), &unavailable());
        service.unanswered_round(unavailable);
        service.fails(&context(1), &refused());
        assert!(matches!(service.breaker.failing(), Some(Error::Status(_))));
    }

    #[test]
    fn after_a_rate_limit_the_start_up_context_is_requested_once_the_wait_is_over() {
        let mut service = Service::new();
        let limited = Failure::from(Error::RateLimited { retry_after: SECOND });
        service.fails(&context(0), &Failure { retry_after: Some(60 * SECOND), ..limited });
        assert!(service.breaker.due().unwrap() >= service.now + 60 * SECOND);
    }

    #[test]
    fn the_start_up_context_takes_the_place_of_no_other_context_in_a_round() {
        let mut service = Service::new();
        service.fails(&context(0), &unreachable());
        service.breaker.want(&CanonicalContext::start_up(), true);
        service.breaker.want(&context(1), true);
        service.breaker.want(&context(2), false);
        let (_, requests) = service.unanswered_round(unreachable);
        assert_eq!(requests, 3);
    }

    #[test]
    fn rejections_and_limits_are_responses() {
        let limited = Failure::from(Error::RateLimited { retry_after: SECOND });
        let rejected =
            [StatusCode::BAD_REQUEST, StatusCode::PAYLOAD_TOO_LARGE].map(|status| Error::Status(status).into());
        let odd = Failure::from(Error::Evaluation { code: "ODD".into(), details: None });
        for failure in rejected.into_iter().chain([odd, limited]) {
            let mut service = Service::new();
            for number in 0..10 {
                service.fails(&context(number), &failure);
            }
            assert!(service.breaker.due().is_none() && !service.is_open(), "{failure:?}");
            service.answers(&context(9));
            for (number, closes) in [(0, false), (9, true)] {
                service.now += 2 * SECOND;
                service.fails(&context(1), &unreachable());
                service.now += SECOND;
                service.fails(&context(number), &failure);
                assert_eq!(service.is_open(), !closes, "for a context that any client may make up: {failure:?}");
            }
            service.now += 2 * SECOND;
            service.fails(&context(1), &unreachable());
            service.fails(&CanonicalContext::start_up(), &failure);
            assert!(!service.is_open(), "{failure:?}");
        }
    }

    #[test]
    fn missing_flags_are_requested_again_and_never_open_the_breaker() {
        let mut service = Service::new();
        let not_found = || Failure::from(Error::Status(StatusCode::NOT_FOUND));
        for number in 0..10 {
            service.fails(&context(number), &not_found());
        }
        for _ in 0..10 {
            service.unanswered_round(not_found);
            assert!(!service.is_open() && service.breaker.failing().is_some());
        }
    }

    #[test]
    fn outcomes_of_old_requests_do_not_change_the_breaker() {
        let mut service = Service::new();
        let sent = service.now;
        service.now += SECOND;
        service.answers(&context(0));
        service.breaker.failed(&context(1), &unreachable(), sent, service.now, false, 1.0);
        assert!(!service.is_open(), "a later one was answered");
        service.now += SECOND;
        service.fails(&context(1), &unreachable());
        service.breaker.answered(&context(0), sent);
        assert!(service.is_open(), "sent before the failure");
    }

    #[test]
    fn the_start_up_context_is_requested_again_while_others_are_answered() {
        let mut service = Service::new();
        for expected in [1, 2, 4] {
            service.fails(&CanonicalContext::start_up(), &unavailable());
            service.answers(&context(0));
            let due = service.breaker.due().unwrap();
            assert_eq!(due - service.now, expected * SECOND);
            service.now = due;
            assert_eq!(service.breaker.begin_round(due), [CanonicalContext::start_up()]);
        }
        service.answers(&CanonicalContext::start_up());
        assert!(service.breaker.due().is_none());
    }

    /// How a service behaves towards a context for some time.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Behaviour {
        Answers,
        Rejects,
        Fails,
        Refuses,
        Unreachable,
    }

    fn behaviour() -> impl Strategy<Value = Behaviour> {
        use Behaviour::{Answers, Fails, Refuses, Rejects, Unreachable};
        prop_oneof![3 => Just(Answers), 1 => Just(Rejects), 3 => Just(Fails), 1 => Just(Refuses), 1 => Just(Unreachable)]
    }

    /// Sends a request now, and records its outcome.
    fn request(service: &mut Service, context: &CanonicalContext, behaviour: Behaviour, random: f64) {
        let (sent, now) = (service.now, service.now);
        let failure = match behaviour {
            Behaviour::Answers => return service.breaker.answered(context, sent),
            Behaviour::Rejects => Error::Status(StatusCode::BAD_REQUEST).into(),
            Behaviour::Fails => unavailable(),
            Behaviour::Refuses => refused(),
            Behaviour::Unreachable => unreachable(),
        };
        service.breaker.failed(context, &failure, sent, now, false, random);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Requests contexts at random times, while the service treats each context differently.
        #[test]
        fn one_answered_context_closes_the_breaker(
            of_start_up in behaviour(),
            of_known in behaviour(),
            of_others in vec(behaviour(), 6),
            requests in vec((0..6_usize, 0..700_u64, 0.0..1.0_f64), 1..200),
        ) {
            let mut service = Service::new();
            let known = context(100);
            service.answers(&known);
            let of = |context: &CanonicalContext| {
                let other = (0..6).find(|number| *context == self::context(*number));
                other.map_or(if *context == known { of_known } else { of_start_up }, |number| of_others[number])
            };
            let has_outage = [of_start_up, of_known].iter().chain(&of_others).any(|of| *of == Behaviour::Unreachable);
            let responds = |of: Behaviour| matches!(of, Behaviour::Answers | Behaviour::Rejects);
            let mut rounds = Vec::new();
            for (number, millis, random) in requests {
                service.now += Duration::from_millis(millis);
                if service.breaker.due().is_some_and(|due| due <= service.now) {
                    let contexts = service.breaker.begin_round(service.now);
                    prop_assert!((1..=3).contains(&contexts.len()), "{contexts:?}");
                    for context in &contexts {
                        request(&mut service, context, of(context), random);
                    }
                    service.breaker.end_round(service.now, random);
                    let is_trusted = |context: &CanonicalContext| {
                        of(context) == Behaviour::Answers || of(context) == Behaviour::Rejects && context.is_start_up()
                    };
                    if contexts.iter().any(is_trusted) {
                        prop_assert!(!service.is_open(), "one answer closes the breaker");
                    }
                    rounds.push(service.now);
                }
                let next = context(number);
                if service.is_open() {
                    // Only rounds send requests.
                    service.breaker.want(&next, false);
                    prop_assert!(service.breaker.due().is_some(), "an open breaker plans a round");
                } else {
                    request(&mut service, &next, of(&next), random);
                }
                if (responds(of_start_up) || of_known == Behaviour::Answers) && !has_outage {
                    prop_assert!(!service.is_open(), "contexts that fail do not stop others");
                }
                let limit = if matches!(service.breaker.error(), Some(Error::Unauthorized)) { 300 } else { 30 };
                if let Some(due) = service.breaker.due() {
                    prop_assert!(due <= service.now + limit * SECOND, "a round is planned in time");
                }
            }
            // There is at most one immediate round for three failed contexts. All others follow the backoff.
            prop_assert!(rounds.len() <= 200);
        }
    }
}
