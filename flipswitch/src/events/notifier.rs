//! Publishes the events of the provider, in the order in which they happen.

use std::{sync::Arc, time::Instant};

use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::sync::Notify;

use crate::{
    config::Options,
    events::{
        bus::{EventBus, Wakers},
        events::{ConnectionStatus, FlagChangeEvent, MAX_WAITING, ProviderEvent, ProviderEvents},
        health::{Health, HealthMonitor, HealthSignal},
    },
    runtime::sleep_until,
};

/// Derives the health of the provider from signals, and publishes events.
pub(crate) struct Notifier {
    bus: Arc<EventBus>,
    monitor: Mutex<HealthMonitor>,
    deadline_changed: Notify,
    /// Changes that are published when requests succeed again.
    deferred: Mutex<DeferredChanges>,
    stream: Mutex<StreamTimes>,
    /// Whether keys are derived from a secret instead of the API key.
    has_secret: bool,
}

/// Times from the stream of changes.
#[derive(Debug, Default)]
struct StreamTimes {
    last_event: Option<OffsetDateTime>,
    api_key_valid_until: Option<OffsetDateTime>,
}

impl Notifier {
    pub(crate) fn new(options: &Options, bus: Arc<EventBus>, has_secret: bool) -> Self {
        let is_updated = options.enable_realtime || options.enable_polling_fallback;
        let interval = is_updated.then_some(options.polling_interval);
        // Event streams are not known until the service has responded.
        let polls_only = !options.has_own_stream();
        Self {
            bus,
            monitor: Mutex::new(HealthMonitor::new(interval, polls_only, Instant::now())),
            deadline_changed: Notify::new(),
            deferred: Mutex::default(),
            stream: Mutex::default(),
            has_secret,
        }
    }

    /// Receives a signal that affects the health of the provider, and publishes the events that result from it.
    pub(crate) fn observe(&self, signal: HealthSignal<'_>) {
        // Published under the lock, so that events are in the order of the signals. Tasks wake after the lock is released.
        let mut wakers = Wakers::default();
        let mut monitor = self.monitor.lock();
        let before = monitor.deadline();
        for event in monitor.observe(signal, Instant::now()) {
            wakers.extend(self.bus.publish(event));
        }
        if monitor.deadline() != before {
            self.deadline_changed.notify_one();
        }
        if !monitor.is_failing() {
            for change in self.deferred.lock().take() {
                wakers.extend(self.bus.publish(ProviderEvent::ConfigurationChanged(change)));
            }
        }
    }

    /// Publishes a change. All cached flags must already have been invalidated.
    ///
    /// While requests fail, the change is deferred until they succeed again, because a listener could not get the new value
    /// before then.
    pub(crate) fn changed(&self, change: FlagChangeEvent) {
        let mut wakers = Wakers::default();
        let monitor = self.monitor.lock();
        if monitor.is_failing() {
            self.deferred.lock().push(change);
        } else {
            wakers.extend(self.bus.publish(ProviderEvent::ConfigurationChanged(change)));
        }
    }

    /// Records that all flags were marked as out of date, which is not an event for the application.
    pub(crate) fn invalidated(&self) {
        self.bus.invalidated();
    }

    /// Publishes a change that was found in the response to a successful request.
    pub(crate) fn changed_in_response(&self, key: String) {
        drop(self.bus.publish(ProviderEvent::ConfigurationChanged(FlagChangeEvent::of(key))));
    }

    /// Publishes the status of the stream's connection.
    pub(crate) fn status(&self, status: ConnectionStatus) {
        // Before listeners run, so that they see the state of health that belongs to the status.
        if status == ConnectionStatus::Error {
            self.observe(HealthSignal::StreamFailed);
        }
        self.bus.publish_status(status);
        if status == ConnectionStatus::Connected {
            self.observe(HealthSignal::StreamOpened);
        }
    }

    /// Records that an event arrived on the stream.
    pub(crate) fn event_received(&self) {
        self.stream.lock().last_event = Some(OffsetDateTime::now_utc());
    }

    /// Publishes that the API key is being replaced, or that the replacement was cancelled.
    pub(crate) fn api_key_rotated(&self, valid_until: Option<OffsetDateTime>) {
        match valid_until {
            Some(valid_until) if self.has_secret => tracing::warn!(
                target: "flipswitch", %valid_until, "the API key is being replaced; set the new key before the old one expires"
            ),
            Some(valid_until) => tracing::warn!(
                target: "flipswitch", %valid_until,
                "the API key is being replaced; set the new key before the old one expires. After the next restart, visitor \
                 cookies are no longer valid, because no `secret` is set. Set a `secret`, and set `secret_before` to the old API key"
            ),
            None => tracing::info!(target: "flipswitch", "the replacement of the API key was cancelled"),
        }
        self.stream.lock().api_key_valid_until = valid_until;
        drop(self.bus.publish(ProviderEvent::ApiKeyRotated { valid_until }));
    }

    /// Returns whether the API key is no longer valid, according to the service's announcement.
    pub(crate) fn is_key_expired(&self) -> bool {
        self.stream.lock().api_key_valid_until.is_some_and(|valid_until| OffsetDateTime::now_utc() >= valid_until)
    }

    /// Records that the application set a new API key.
    pub(crate) fn api_key_replaced(&self) {
        self.stream.lock().api_key_valid_until = None;
        self.observe(HealthSignal::ApiKeyReplaced);
    }

    /// Returns the health of the provider.
    pub(crate) fn health(&self) -> Health {
        let mut health = self.monitor.lock().health(Instant::now());
        let StreamTimes { last_event, api_key_valid_until } = *self.stream.lock();
        (health.last_event, health.api_key_valid_until) = (last_event, api_key_valid_until);
        health
    }

    /// Returns the current state and all later events.
    pub(crate) fn events(&self) -> ProviderEvents {
        let monitor = self.monitor.lock();
        self.bus.events(monitor.current())
    }

    /// Resolves when the health must be checked because time has passed.
    pub(crate) async fn deadline_reached(&self) {
        loop {
            let deadline = self.monitor.lock().deadline();
            tokio::select! {
                () = sleep_until(deadline) => return,
                () = self.deadline_changed.notified() => {}
            }
        }
    }
}

/// Changes that are published later, at most one for each flag.
#[derive(Debug, Default)]
struct DeferredChanges(Vec<FlagChangeEvent>);

impl DeferredChanges {
    fn push(&mut self, change: FlagChangeEvent) {
        let is_any = |known: &FlagChangeEvent| known.flag_key.is_none();
        if self.0.iter().any(is_any) {
            return;
        }
        if is_any(&change) || self.0.len() >= MAX_WAITING {
            self.0.clear();
            self.0.push(FlagChangeEvent { flag_key: None, ..change });
        } else if let Some(known) = self.0.iter_mut().find(|known| known.flag_key == change.flag_key) {
            *known = change;
        } else {
            self.0.push(change);
        }
    }

    fn take(&mut self) -> Vec<FlagChangeEvent> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deferred_changes_are_bounded_and_each_flag_is_published_once() {
        let mut deferred = DeferredChanges::default();
        for key in ["a", "b", "a"] {
            deferred.push(FlagChangeEvent::of(key.to_owned()));
        }
        assert_eq!(deferred.take(), [FlagChangeEvent::of("a".into()), FlagChangeEvent::of("b".into())]);
        for change in [FlagChangeEvent::of("a".into()), FlagChangeEvent::all(), FlagChangeEvent::of("b".into())] {
            deferred.push(change);
        }
        assert_eq!(deferred.take(), [FlagChangeEvent::all()]);
        (0..=MAX_WAITING).for_each(|number| deferred.push(FlagChangeEvent::of(number.to_string())));
        assert_eq!(deferred.take(), [FlagChangeEvent::all()]);
        assert!(deferred.take().is_empty());
    }
}
