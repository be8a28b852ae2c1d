//! How the provider is as a whole, and when the application hears of that. No I/O, time passed in.

use std::time::{Duration, Instant};

use open_feature::provider::ProviderStatus;
use serde::Serialize;
use time::OffsetDateTime;

use crate::{Error, FlipswitchProvider, error::Chain, events::events::ProviderEvent};

/// How a provider is. Made for health checks: it serialises to JSON, dates as RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Health {
    /// How it is now.
    pub state: HealthState,
    /// Since when it has been so.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// When the last event came over the stream of changes, heartbeats included.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_event: Option<OffsetDateTime>,
    /// When the service last answered a request for flags.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_success: Option<OffsetDateTime>,
    /// Until when the API key can be used, if it is being rotated.
    #[serde(with = "time::serde::rfc3339::option")]
    pub api_key_valid_until: Option<OffsetDateTime>,
    ready: bool,
}

/// What a provider's values are worth at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum HealthState {
    /// The service has not answered yet: values are [bootstrap](crate::FlipswitchProviderBuilder::bootstrap) values or
    /// defaults.
    Starting,
    /// Changes are heard of as they happen.
    Live,
    /// Changes are asked for: values are as old as the polling interval at most. Where nothing is polled either, answers are
    /// asked for anew when they are read and older than [`cache_ttl`](crate::FlipswitchProviderBuilder::cache_ttl).
    Polling,
    /// The service fails, or has not been heard of for longer than the polling interval: values are the last known ones.
    Stale,
    /// The service refuses the API key: values are the last known ones, or defaults.
    Unauthorized,
    /// The provider was shut down.
    ShutDown,
}

impl Health {
    pub(crate) fn new(state: HealthState, since: OffsetDateTime, ready: bool) -> Self {
        Self { state, since, last_event: None, last_success: None, api_key_valid_until: None, ready }
    }

    /// Returns whether the service answered once, or there is none to answer. It stays so in an outage: known users keep
    /// their values then, and a process that is taken out of service helps nobody.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Returns whether the provider works: anything but [shut down](HealthState::ShutDown).
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.state != HealthState::ShutDown
    }
}

/// A provider's health as a probe over HTTP asks for it, in the query: `ready`, or `live`, or nothing, which is the same
/// as `live`.
#[derive(Clone, Debug)]
pub struct HealthProbe {
    health: Health,
    ready: bool,
}

impl HealthProbe {
    /// Takes the health of a provider, for a request with this query.
    #[must_use]
    pub fn new(provider: &FlipswitchProvider, query: Option<&str>) -> Self {
        let mut names = query.into_iter().flat_map(|query| query.split('&')).filter_map(|pair| pair.split('=').next());
        Self { health: provider.health(), ready: names.any(|name| name == "ready") }
    }

    /// Returns whether the answer is good: 200, and else 503.
    #[must_use]
    pub fn is_passed(&self) -> bool {
        self.health.is_live() && (self.health.is_ready() || !self.ready)
    }

    /// Returns the body of the answer.
    #[must_use]
    pub fn json(&self) -> String {
        // A plain structure of strings and booleans, which JSON can hold; nothing is worth a panic in a probe.
        serde_json::to_string(&self.health).unwrap_or_default()
    }
}

impl HealthState {
    /// The same in OpenFeature's terms.
    pub(crate) fn status(self) -> ProviderStatus {
        match self {
            Self::Starting | Self::ShutDown => ProviderStatus::NotReady,
            Self::Live | Self::Polling => ProviderStatus::Ready,
            Self::Stale => ProviderStatus::STALE,
            Self::Unauthorized => ProviderStatus::Error,
        }
    }
}

/// What bears on how the provider is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sign<'a> {
    /// The service answered a request for flags.
    Answered,
    /// It answers again, if only that it refuses one context.
    Alive,
    /// It failed, as a whole and not for one context.
    Failed(&'a Error),
    /// The stream of changes is open.
    Opened,
    /// It is away.
    Away,
    /// The key was refused for the stream.
    KeyRefused,
    /// Polling began or ended.
    Polling(bool),
    /// There is another key.
    NewKey,
    /// The time of [`Condition::deadline`] has come.
    Timer,
}

/// Follows how a provider is.
#[derive(Debug)]
pub(crate) struct Condition {
    /// The time between polls, if anything is asked for in the background at all.
    interval: Option<Duration>,
    open: bool,
    polling: bool,
    answered: bool,
    /// When something was last heard that proves that values are as good as they can be: the stream until it was away, an
    /// answer since.
    well_at: Instant,
    failing: Option<Failing>,
    /// The state of which the application was last told.
    told: Option<HealthState>,
    told_refused: bool,
    state: HealthState,
    since: OffsetDateTime,
    last_success: Option<OffsetDateTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failing {
    Refused,
    Otherwise,
    /// It answers, and what it says makes no sense.
    Unreadable,
}

impl Condition {
    /// `interval` is the time between polls, if anything is asked for in the background at all; `polls` says that no stream
    /// is followed.
    pub(crate) fn new(interval: Option<Duration>, polls: bool, now: Instant) -> Self {
        Self {
            interval,
            open: false,
            polling: polls,
            answered: false,
            well_at: now,
            failing: None,
            told: None,
            told_refused: false,
            state: HealthState::Starting,
            since: OffsetDateTime::now_utc(),
            last_success: None,
        }
    }

    /// How the provider is.
    pub(crate) fn state(&self, now: Instant) -> HealthState {
        match self.failing {
            Some(Failing::Refused) => HealthState::Unauthorized,
            _ if !self.answered => HealthState::Starting,
            Some(Failing::Otherwise | Failing::Unreadable) => HealthState::Stale,
            None if self.deadline().is_some_and(|deadline| now >= deadline) => HealthState::Stale,
            None if self.polling && !self.open => HealthState::Polling,
            // Also for the moment between two connections.
            None => HealthState::Live,
        }
    }

    /// Whether requests fail.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// How the provider is, since when, when it was last answered, and whether it ever was.
    pub(crate) fn health(&self, now: Instant) -> Health {
        let mut health = Health::new(self.state(now), self.since, self.answered);
        health.last_success = self.last_success;
        health
    }

    /// When [`Sign::Timer`] is due, unless something happens before: values are not called good for ever after the
    /// service was last heard of.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let is_waiting = !self.open && self.answered && self.failing.is_none();
        // Polls come a tenth later than the interval at most, and take their time.
        let interval = self.interval.filter(|_| is_waiting)?;
        Some(self.well_at + interval.mul_f64(1.25) + Duration::from_secs(1))
    }

    /// Takes a sign, and returns what the application is to be told.
    pub(crate) fn take(&mut self, sign: Sign<'_>, now: Instant) -> Vec<ProviderEvent> {
        let mut events = Vec::new();
        match sign {
            Sign::Answered => {
                // Should the key be refused again, that is news.
                self.told_refused &= self.failing != Some(Failing::Refused);
                (self.answered, self.failing) = (true, None);
                self.last_success = Some(OffsetDateTime::now_utc());
                if !self.open {
                    self.well_at = now;
                }
            }
            Sign::Alive if self.answered => self.failing = None,
            Sign::Alive => {}
            Sign::Failed(error) => self.failed(error, &mut events),
            Sign::Opened => {
                (self.open, self.well_at) = (true, now);
                self.told_refused = false;
            }
            Sign::Away => {
                if std::mem::take(&mut self.open) {
                    self.well_at = now;
                }
            }
            Sign::KeyRefused => self.refused(&mut events),
            Sign::Polling(polling) => self.polling = polling,
            Sign::NewKey => {
                self.told_refused = false;
                // That it is well is not known before it answers.
                self.failing = self.failing.filter(|_| self.answered).map(|_| Failing::Otherwise);
            }
            Sign::Timer => {}
        }
        let state = self.state(now);
        if state != self.state {
            (self.state, self.since) = (state, OffsetDateTime::now_utc());
        }
        // What a reader of values would call good is told as one.
        let told = if state == HealthState::Polling { HealthState::Live } else { state };
        if self.told != Some(told) && state != HealthState::Starting {
            self.told = Some(told);
            match told {
                HealthState::Live => events.push(ProviderEvent::Ready),
                HealthState::Stale => events.push(ProviderEvent::Stale),
                _ => {}
            }
        }
        events
    }

    /// The event that says how the provider is, for those who come later.
    pub(crate) fn current(&self) -> Option<ProviderEvent> {
        match self.told? {
            HealthState::Live => Some(ProviderEvent::Ready),
            HealthState::Stale => Some(ProviderEvent::Stale),
            HealthState::Unauthorized => Some(refused()),
            _ => None,
        }
    }

    fn failed(&mut self, error: &Error, events: &mut Vec<ProviderEvent>) {
        let failing = match error {
            Error::Unauthorized => Failing::Refused,
            Error::Decode(_) | Error::TooLarge => Failing::Unreadable,
            _ => Failing::Otherwise,
        };
        if self.failing == Some(Failing::Refused) && failing != Failing::Refused {
            // It was under way already, or says nothing that would matter as much.
            return;
        }
        let before = self.failing.replace(failing);
        if failing == Failing::Refused {
            self.refused(events);
        } else if before.is_none() && !self.answered || failing == Failing::Unreadable && before != Some(failing) {
            events.push(ProviderEvent::Error { fatal: false, message: Chain(error).to_string() });
        }
    }

    fn refused(&mut self, events: &mut Vec<ProviderEvent>) {
        if !std::mem::replace(&mut self.told_refused, true) {
            events.push(refused());
        }
    }
}

fn refused() -> ProviderEvent {
    ProviderEvent::Error { fatal: true, message: Error::Unauthorized.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    struct Watched {
        condition: Condition,
        now: Instant,
    }

    impl Watched {
        fn new(polls: bool) -> Self {
            let now = Instant::now();
            Self { condition: Condition::new(Some(INTERVAL), polls, now), now }
        }

        fn takes(&mut self, sign: Sign<'_>, expected: &[ProviderEvent], state: HealthState) {
            let told = format!("{sign:?}");
            assert_eq!(self.condition.take(sign, self.now), expected, "{told}");
            assert_eq!(self.condition.state(self.now), state, "{told}");
        }
    }

    fn error(error: &Error) -> ProviderEvent {
        ProviderEvent::Error { fatal: false, message: Chain(error).to_string() }
    }

    const READY: &[ProviderEvent] = &[ProviderEvent::Ready];
    const STALE: &[ProviderEvent] = &[ProviderEvent::Stale];

    #[test]
    fn a_service_that_is_down_at_the_start_is_told_of_once() {
        let mut watched = Watched::new(false);
        watched.takes(Sign::Failed(&Error::Timeout), &[error(&Error::Timeout)], HealthState::Starting);
        watched.takes(Sign::Failed(&Error::Timeout), &[], HealthState::Starting);
        assert!(!watched.condition.health(watched.now).is_ready());
        watched.takes(Sign::Answered, READY, HealthState::Live);
        watched.takes(Sign::Opened, &[], HealthState::Live);
        assert!(watched.condition.health(watched.now).is_ready());
    }

    #[test]
    fn failures_later_are_told_as_stale_and_their_end_as_ready() {
        let mut watched = Watched::new(false);
        watched.takes(Sign::Answered, READY, HealthState::Live);
        watched.takes(Sign::Opened, &[], HealthState::Live);
        for _ in 0..2 {
            watched.takes(Sign::Failed(&Error::Timeout), STALE, HealthState::Stale);
            watched.takes(Sign::Failed(&Error::Timeout), &[], HealthState::Stale);
            assert!(watched.condition.health(watched.now).is_ready(), "values are served nevertheless");
            watched.takes(Sign::Answered, READY, HealthState::Live);
            watched.takes(Sign::Answered, &[], HealthState::Live);
        }
        // An answer that cannot be read is worth a word of its own.
        let events = [error(&Error::TooLarge), ProviderEvent::Stale];
        watched.takes(Sign::Failed(&Error::TooLarge), &events, HealthState::Stale);
        watched.takes(Sign::Failed(&Error::TooLarge), &[], HealthState::Stale);
    }

    #[test]
    fn a_refused_key_is_told_once_whoever_notices_it() {
        let mut watched = Watched::new(false);
        watched.takes(Sign::Failed(&Error::Unauthorized), &[refused()], HealthState::Unauthorized);
        watched.takes(Sign::KeyRefused, &[], HealthState::Unauthorized);
        watched.takes(Sign::Failed(&Error::Unauthorized), &[], HealthState::Unauthorized);
        assert_eq!(watched.condition.current(), Some(refused()));
        watched.takes(Sign::NewKey, &[], HealthState::Starting);
        watched.takes(Sign::Answered, READY, HealthState::Live);
        // For the stream only: values are good, as long as polling brings them.
        watched.takes(Sign::KeyRefused, &[refused()], HealthState::Live);
        watched.takes(Sign::Polling(true), &[], HealthState::Polling);
        watched.takes(Sign::KeyRefused, &[], HealthState::Polling);
    }

    #[test]
    fn a_key_that_is_refused_again_is_told_again() {
        let mut watched = Watched::new(true);
        watched.takes(Sign::Answered, READY, HealthState::Polling);
        for _ in 0..2 {
            watched.takes(Sign::Failed(&Error::Unauthorized), &[refused()], HealthState::Unauthorized);
            // One that was under way before does not hide it.
            watched.takes(Sign::Failed(&Error::Timeout), &[], HealthState::Unauthorized);
            watched.takes(Sign::Answered, READY, HealthState::Polling);
        }
    }

    #[test]
    fn another_key_is_no_proof_that_the_service_is_well() {
        let mut watched = Watched::new(false);
        watched.takes(Sign::Answered, READY, HealthState::Live);
        watched.takes(Sign::Failed(&Error::Timeout), STALE, HealthState::Stale);
        watched.takes(Sign::NewKey, &[], HealthState::Stale);
        watched.takes(Sign::Alive, READY, HealthState::Live);
    }

    #[test]
    fn a_stream_that_is_away_for_long_is_stale_unless_something_is_heard_otherwise() {
        let mut watched = Watched::new(false);
        watched.takes(Sign::Answered, READY, HealthState::Live);
        watched.takes(Sign::Opened, &[], HealthState::Live);
        assert_eq!(watched.condition.deadline(), None);
        watched.now += 10 * INTERVAL;
        // A mere rotation is no news.
        watched.takes(Sign::Away, &[], HealthState::Live);
        watched.now += INTERVAL;
        watched.takes(Sign::Opened, &[], HealthState::Live);
        watched.takes(Sign::Away, &[], HealthState::Live);
        watched.now = watched.condition.deadline().unwrap();
        watched.takes(Sign::Timer, STALE, HealthState::Stale);
        watched.takes(Sign::Polling(true), &[], HealthState::Stale);
        watched.takes(Sign::Answered, READY, HealthState::Polling);
        for _ in 0..10 {
            watched.now += INTERVAL.mul_f64(1.1);
            watched.takes(Sign::Timer, &[], HealthState::Polling);
            watched.takes(Sign::Answered, &[], HealthState::Polling);
        }
        watched.takes(Sign::Opened, &[], HealthState::Live);
        watched.now += 10 * INTERVAL;
        watched.takes(Sign::Timer, &[], HealthState::Live);
    }

    #[test]
    fn without_a_stream_polls_are_all_there_is() {
        let mut watched = Watched::new(true);
        watched.takes(Sign::Answered, READY, HealthState::Polling);
        watched.now = watched.condition.deadline().unwrap();
        watched.takes(Sign::Timer, STALE, HealthState::Stale);
    }
}
