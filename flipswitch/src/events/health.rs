//! The health of a provider, and the events that follow from it. No I/O; instants are passed in.

use std::time::{Duration, Instant};

use open_feature::provider::ProviderStatus;
use serde::Serialize;
use time::OffsetDateTime;

use crate::{
    error::Error,
    events::events::{ConnectionStatus, ProviderEvent},
    stats::Throttling,
};

/// The health of a provider, for liveness and readiness probes. Serialises to JSON with times in RFC 3339.
///
/// [`FlipswitchProvider::health`](crate::FlipswitchProvider::health) shows an example of the JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Health {
    /// The current state.
    pub state: HealthState,
    /// Time at which the state last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Time of the last event on the stream of changes, heartbeats included.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_event: Option<OffsetDateTime>,
    /// Time of the last successful request for flags.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_success: Option<OffsetDateTime>,
    /// Time until which the API key is valid, if it is being replaced.
    #[serde(with = "time::serde::rfc3339::option")]
    pub api_key_valid_until: Option<OffsetDateTime>,
    /// Time since which the [`store`](crate::FlipswitchProviderBuilder::store) has been unavailable for reads or writes. The
    /// provider continues without it, so the rest of the health does not depend on it.
    #[serde(with = "time::serde::rfc3339::option")]
    pub store_away_since: Option<OffsetDateTime>,
    /// Status of the connection to the stream of changes.
    pub stream: ConnectionStatus,
    /// Whether the service is polled.
    pub polling: bool,
    /// What currently keeps requests for flags from being sent.
    pub throttling: Throttling,
    ready: bool,
}

/// The state of a provider, which shows how up to date its flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum HealthState {
    /// The service has not responded yet. Flags are [bootstrap](crate::FlipswitchProviderBuilder::bootstrap) values or
    /// defaults.
    Starting,
    /// The stream of changes is open, and changes arrive as they happen. Also the state of a provider
    /// [in memory](crate::FlipswitchProvider::in_memory).
    Streaming,
    /// The stream is not open, or real-time updates are disabled. The service is polled, and fresh flags are at most as old as
    /// the [polling interval](crate::FlipswitchProviderBuilder::polling_interval). While [`polling`](Health::polling) is false,
    /// older flags are requested again when they are read. If real-time updates and polling are both disabled, flags are fresh
    /// for [`cache_ttl`](crate::FlipswitchProviderBuilder::cache_ttl).
    Polling,
    /// Requests fail, or nothing has been received for longer than the polling interval. Flags are the last known ones.
    Stale,
    /// The service refuses the API key. Flags are the last known ones, or defaults.
    Unauthorized,
    /// The provider was shut down.
    ShutDown,
}

impl Health {
    pub(crate) fn new(state: HealthState, since: OffsetDateTime, ready: bool) -> Self {
        Self {
            state,
            since,
            last_event: None,
            last_success: None,
            api_key_valid_until: None,
            store_away_since: None,
            stream: ConnectionStatus::Disconnected,
            polling: false,
            throttling: Throttling::default(),
            ready,
        }
    }

    /// Returns whether the service has responded at least once. Always `true` without a service.
    ///
    /// Stays `true` in an outage, because known users keep their flags, and taking the process out of service would not help.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Returns whether the provider works, that is, whether it has not been [shut down](HealthState::ShutDown).
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.state != HealthState::ShutDown
    }
}

impl HealthState {
    /// Returns the state in OpenFeature's terms.
    pub(crate) fn status(self) -> ProviderStatus {
        match self {
            Self::Starting | Self::ShutDown => ProviderStatus::NotReady,
            Self::Streaming | Self::Polling => ProviderStatus::Ready,
            Self::Stale => ProviderStatus::STALE,
            Self::Unauthorized => ProviderStatus::Error,
        }
    }
}

/// Something that affects the health of the provider.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HealthSignal<'a> {
    /// A request for flags succeeded.
    Succeeded,
    /// The service responds again, although it rejected one context.
    Responsive,
    /// A request failed for a reason that does not concern its context alone.
    Failed(&'a Error),
    StreamOpened,
    StreamClosed,
    /// A connection to the stream failed, or the service has no stream. An orderly end of a connection is not a failure.
    StreamFailed,
    /// The service refused the API key for the stream.
    StreamUnauthorized,
    /// Polling began or ended.
    Polling(bool),
    /// The application set a new API key.
    ApiKeyReplaced,
    /// The time that [`HealthMonitor::deadline`] returned has been reached.
    DeadlineReached,
}

/// Derives the health of the provider from signals.
#[derive(Debug)]
pub(crate) struct HealthMonitor {
    /// The polling interval, if anything is requested in the background.
    interval: Option<Duration>,
    is_streaming: bool,
    /// Whether the stream has failed, or the service had none, since it was last open.
    has_stream_failed: bool,
    is_polling: bool,
    /// Whether a request has ever succeeded.
    is_ready: bool,
    /// Last time at which flags were known to be up to date: when the stream was last open, or the last successful request since.
    up_to_date_at: Instant,
    failing: Option<Failing>,
    /// The state that was last published.
    published: Option<HealthState>,
    published_unauthorized: bool,
    state: HealthState,
    since: OffsetDateTime,
    last_success: Option<OffsetDateTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failing {
    Unauthorized,
    /// The service responds, but its responses cannot be read.
    Unreadable,
    Otherwise,
}

impl HealthMonitor {
    /// `interval` is the polling interval, if anything is requested in the background. `polls_only` is true if there is no
    /// stream of changes.
    pub(crate) fn new(interval: Option<Duration>, polls_only: bool, now: Instant) -> Self {
        Self {
            interval,
            is_streaming: false,
            has_stream_failed: false,
            is_polling: polls_only,
            is_ready: false,
            up_to_date_at: now,
            failing: None,
            published: None,
            published_unauthorized: false,
            state: HealthState::Starting,
            since: OffsetDateTime::now_utc(),
            last_success: None,
        }
    }

    /// Returns the current state.
    pub(crate) fn state(&self, now: Instant) -> HealthState {
        match self.failing {
            Some(Failing::Unauthorized) => HealthState::Unauthorized,
            _ if !self.is_ready => HealthState::Starting,
            Some(Failing::Otherwise | Failing::Unreadable) => HealthState::Stale,
            None if self.deadline().is_some_and(|deadline| now >= deadline) => HealthState::Stale,
            None if !self.is_streaming && (self.is_polling || self.has_stream_failed) => HealthState::Polling,
            // Also for the moment between two connections, and before the first one.
            None => HealthState::Streaming,
        }
    }

    /// Returns whether requests are failing.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// Returns the health, without the times of the stream.
    pub(crate) fn health(&self, now: Instant) -> Health {
        let mut health = Health::new(self.state(now), self.since, self.is_ready);
        health.last_success = self.last_success;
        health
    }

    /// Returns the time at which [`HealthSignal::DeadlineReached`] is due, unless another signal comes first. Without any signal,
    /// flags become stale at that time.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let is_waiting = !self.is_streaming && self.is_ready && self.failing.is_none();
        // A poll may be up to a tenth of the interval late, and takes some time itself.
        let interval = self.interval.filter(|_| is_waiting)?;
        Some(self.up_to_date_at + interval.mul_f64(1.25) + Duration::from_secs(1))
    }

    /// Takes a signal, and returns the events to publish.
    pub(crate) fn observe(&mut self, signal: HealthSignal<'_>, now: Instant) -> Vec<ProviderEvent> {
        let mut events = Vec::new();
        match signal {
            HealthSignal::Succeeded => {
                // A later refusal of the key is published again.
                self.published_unauthorized &= self.failing != Some(Failing::Unauthorized);
                (self.is_ready, self.failing) = (true, None);
                self.last_success = Some(OffsetDateTime::now_utc());
                if !self.is_streaming {
                    self.up_to_date_at = now;
                }
            }
            HealthSignal::Responsive if self.is_ready => self.failing = None,
            HealthSignal::Responsive => {}
            HealthSignal::Failed(error) => self.failed(error, &mut events),
            HealthSignal::StreamOpened => {
                (self.is_streaming, self.has_stream_failed, self.up_to_date_at) = (true, false, now);
                self.published_unauthorized = false;
            }
            HealthSignal::StreamClosed => {
                if std::mem::take(&mut self.is_streaming) {
                    self.up_to_date_at = now;
                }
            }
            HealthSignal::StreamFailed => self.has_stream_failed = true,
            HealthSignal::StreamUnauthorized => self.unauthorized(&mut events),
            HealthSignal::Polling(is_polling) => self.is_polling = is_polling,
            HealthSignal::ApiKeyReplaced => {
                self.published_unauthorized = false;
                // Whether the service works is unknown until it responds.
                self.failing = self.failing.filter(|_| self.is_ready).map(|_| Failing::Otherwise);
            }
            HealthSignal::DeadlineReached => {}
        }
        let state = self.state(now);
        if state != self.state {
            (self.state, self.since) = (state, OffsetDateTime::now_utc());
        }
        // To a reader of flags, polling is as good as streaming.
        let published = if state == HealthState::Polling { HealthState::Streaming } else { state };
        if self.published != Some(published) && state != HealthState::Starting {
            self.published = Some(published);
            match published {
                HealthState::Streaming => events.push(ProviderEvent::Ready),
                HealthState::Stale => events.push(ProviderEvent::Stale),
                _ => {}
            }
        }
        events
    }

    /// Returns the event that describes the current state, for new event streams.
    pub(crate) fn current(&self) -> Option<ProviderEvent> {
        match self.published? {
            HealthState::Streaming => Some(ProviderEvent::Ready),
            HealthState::Stale => Some(ProviderEvent::Stale),
            HealthState::Unauthorized => Some(unauthorized()),
            _ => None,
        }
    }

    fn failed(&mut self, error: &Error, events: &mut Vec<ProviderEvent>) {
        let failing = match error {
            Error::Unauthorized => Failing::Unauthorized,
            Error::Decode(_) | Error::TooLarge => Failing::Unreadable,
            _ => Failing::Otherwise,
        };
        if self.failing == Some(Failing::Unauthorized) && failing != Failing::Unauthorized {
            // The refused key matters more, and the request may have been sent before the key was refused.
            return;
        }
        let before = self.failing.replace(failing);
        if failing == Failing::Unauthorized {
            self.unauthorized(events);
        } else if before.is_none() && !self.is_ready || failing == Failing::Unreadable && before != Some(failing) {
            events.push(ProviderEvent::Error { error: error.clone(), fatal: false });
        }
    }

    fn unauthorized(&mut self, events: &mut Vec<ProviderEvent>) {
        if !std::mem::replace(&mut self.published_unauthorized, true) {
            events.push(unauthorized());
        }
    }
}

fn unauthorized() -> ProviderEvent {
    ProviderEvent::Error { error: Error::Unauthorized, fatal: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    struct Provider {
        monitor: HealthMonitor,
        now: Instant,
    }

    impl Provider {
        fn new(polls_only: bool) -> Self {
            let now = Instant::now();
            Self { monitor: HealthMonitor::new(Some(INTERVAL), polls_only, now), now }
        }

        fn observes(&mut self, signal: HealthSignal<'_>, expected: &[ProviderEvent], state: HealthState) {
            let case = format!("{signal:?}");
            assert_eq!(self.monitor.observe(signal, self.now), expected, "{case}");
            assert_eq!(self.monitor.state(self.now), state, "{case}");
        }
    }

    fn error(error: &Error) -> ProviderEvent {
        ProviderEvent::Error { error: error.clone(), fatal: false }
    }

    const READY: &[ProviderEvent] = &[ProviderEvent::Ready];
    const STALE: &[ProviderEvent] = &[ProviderEvent::Stale];

    #[test]
    fn a_service_that_is_down_at_the_start_is_published_once() {
        let mut provider = Provider::new(false);
        provider.observes(HealthSignal::Failed(&Error::Timeout), &[error(&Error::Timeout)], HealthState::Starting);
        provider.observes(HealthSignal::Failed(&Error::Timeout), &[], HealthState::Starting);
        assert!(!provider.monitor.health(provider.now).is_ready());
        provider.observes(HealthSignal::Succeeded, READY, HealthState::Streaming);
        provider.observes(HealthSignal::StreamOpened, &[], HealthState::Streaming);
        assert!(provider.monitor.health(provider.now).is_ready());
    }

    #[test]
    fn later_failures_are_published_as_stale_and_their_end_as_ready() {
        let mut provider = Provider::new(false);
        provider.observes(HealthSignal::Succeeded, READY, HealthState::Streaming);
        provider.observes(HealthSignal::StreamOpened, &[], HealthState::Streaming);
        for _ in 0..2 {
            provider.observes(HealthSignal::Failed(&Error::Timeout), STALE, HealthState::Stale);
            provider.observes(HealthSignal::Failed(&Error::Timeout), &[], HealthState::Stale);
            assert!(provider.monitor.health(provider.now).is_ready(), "flags are served nevertheless");
            provider.observes(HealthSignal::Succeeded, READY, HealthState::Streaming);
            provider.observes(HealthSignal::Succeeded, &[], HealthState::Streaming);
        }
        // An unreadable response is published as well.
        let events = [error(&Error::TooLarge), ProviderEvent::Stale];
        provider.observes(HealthSignal::Failed(&Error::TooLarge), &events, HealthState::Stale);
        provider.observes(HealthSignal::Failed(&Error::TooLarge), &[], HealthState::Stale);
    }

    #[test]
    fn a_refused_key_is_published_once_by_whichever_request_notices_it() {
        let mut provider = Provider::new(false);
        provider.observes(HealthSignal::Failed(&Error::Unauthorized), &[unauthorized()], HealthState::Unauthorized);
        provider.observes(HealthSignal::StreamUnauthorized, &[], HealthState::Unauthorized);
        provider.observes(HealthSignal::Failed(&Error::Unauthorized), &[], HealthState::Unauthorized);
        assert_eq!(provider.monitor.current(), Some(unauthorized()));
        provider.observes(HealthSignal::ApiKeyReplaced, &[], HealthState::Starting);
        provider.observes(HealthSignal::Succeeded, READY, HealthState::Streaming);
        // For the stream only: flags are up to date as long as polls succeed.
        provider.observes(HealthSignal::StreamUnauthorized, &[unauthorized()], HealthState::Streaming);
        provider.observes(HealthSignal::Polling(true), &[], HealthState::Polling);
        provider.observes(HealthSignal::StreamUnauthorized, &[], HealthState::Polling);
    }

    #[test]
    fn a_key_that_is_refused_again_is_published_again() {
        let mut provider = Provider::new(true);
        provider.observes(HealthSignal::Succeeded, READY, HealthState::Polling);
        for _ in 0..2 {
            provider.observes(HealthSignal::Failed(&Error::Unauthorized), &[unauthorized()], HealthState::Unauthorized);
            // A request that was in flight before does not hide it.
            provider.observes(HealthSignal::Failed(&Error::Timeout), &[], HealthState::Unauthorized);
            provider.observes(HealthSignal::Succeeded, READY, HealthState::Polling);
        }
    }

    #[test]
    fn another_key_does_not_prove_that_the_service_works() {
        let mut provider = Provider::new(false);
        provider.observes(HealthSignal::Succeeded, READY, HealthState::Streaming);
        provider.observes(HealthSignal::Failed(&Error::Timeout), STALE, HealthState::Stale);
        provider.observes(HealthSignal::ApiKeyReplaced, &[], HealthState::Stale);
        provider.observes(HealthSignal::Responsive, READY, HealthState::Streaming);
    }

    #[test]
    fn flags_become_stale_when_the_stream_is_closed_for_long_and_no_request_succeeds() {
        let mut provider = Provider::new(false);
        provider.observes(HealthSignal::Succeeded, READY, HealthState::Streaming);
        provider.observes(HealthSignal::StreamOpened, &[], HealthState::Streaming);
        assert_eq!(provider.monitor.deadline(), None);
        provider.now += 10 * INTERVAL;
        // A rotation is not published.
        provider.observes(HealthSignal::StreamClosed, &[], HealthState::Streaming);
        provider.now += INTERVAL;
        provider.observes(HealthSignal::StreamOpened, &[], HealthState::Streaming);
        provider.observes(HealthSignal::StreamClosed, &[], HealthState::Streaming);
        provider.now = provider.monitor.deadline().unwrap();
        provider.observes(HealthSignal::DeadlineReached, STALE, HealthState::Stale);
        provider.observes(HealthSignal::Polling(true), &[], HealthState::Stale);
        provider.observes(HealthSignal::Succeeded, READY, HealthState::Polling);
        for _ in 0..10 {
            provider.now += INTERVAL.mul_f64(1.1);
            provider.observes(HealthSignal::DeadlineReached, &[], HealthState::Polling);
            provider.observes(HealthSignal::Succeeded, &[], HealthState::Polling);
        }
        provider.observes(HealthSignal::StreamOpened, &[], HealthState::Streaming);
        provider.now += 10 * INTERVAL;
        provider.observes(HealthSignal::DeadlineReached, &[], HealthState::Streaming);
    }

    #[test]
    fn a_failed_stream_is_not_reported_as_streaming_even_without_polling() {
        let mut provider = Provider::new(false);
        provider.observes(HealthSignal::Succeeded, READY, HealthState::Streaming);
        provider.observes(HealthSignal::StreamFailed, &[], HealthState::Polling);
        provider.observes(HealthSignal::Succeeded, &[], HealthState::Polling);
        provider.observes(HealthSignal::StreamOpened, &[], HealthState::Streaming);
        // An orderly end of a connection.
        provider.observes(HealthSignal::StreamClosed, &[], HealthState::Streaming);
        provider.observes(HealthSignal::StreamFailed, &[], HealthState::Polling);
    }

    #[test]
    fn without_a_stream_flags_become_stale_when_polls_stop() {
        let mut provider = Provider::new(true);
        provider.observes(HealthSignal::Succeeded, READY, HealthState::Polling);
        provider.now = provider.monitor.deadline().unwrap();
        provider.observes(HealthSignal::DeadlineReached, STALE, HealthState::Stale);
    }
}
