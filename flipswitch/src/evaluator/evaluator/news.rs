//! What is heard of the service, and what the application is told of it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use time::OffsetDateTime;

use super::{Heard, Service, lock};
use crate::{
    cache::entry::CacheEntry,
    events::bus::Wakers,
    events::events::{ConnectionStatus, FlagChangeEvent, ProviderEvent, ProviderEvents},
    events::health::{Health, Sign},
    updates::polling as refresh,
};

impl Service {
    /// The stream is open: from now on changes are heard of.
    pub(crate) fn stream_opened(&self) {
        self.epoch.stream_opened();
        if self.connected_before.swap(true, Ordering::Relaxed) {
            self.counters.reconnects.count();
        }
        self.pause().hasten(Instant::now() + refresh::delay());
        self.pause_over.notify_waiters();
    }

    /// The stream is away.
    pub(crate) fn stream_away(&self) {
        self.epoch.stream_closed();
        self.refresh.forget_told();
        self.sign(Sign::Away);
    }

    /// Shows how the connection to the stream is, and then what that means.
    pub(crate) fn show(&self, status: ConnectionStatus) {
        self.hub.connection(status);
        if status == ConnectionStatus::Connected {
            self.sign(Sign::Opened);
        }
    }

    pub(crate) fn heard_an_event(&self) {
        lock(&self.heard).last_event = Some(OffsetDateTime::now_utc());
    }

    /// The API key is to be replaced by then, or is not.
    pub(crate) fn key_rotated(&self, valid_until: Option<OffsetDateTime>) {
        match valid_until {
            Some(valid_until) => {
                tracing::warn!(target: "flipswitch", %valid_until, "the API key is being replaced; set the new one in time");
            }
            None => tracing::info!(target: "flipswitch", "the API key stays: its replacement was called off"),
        }
        lock(&self.heard).api_key_valid_until = valid_until;
        drop(self.hub.tell(ProviderEvent::ApiKeyRotated { valid_until }));
    }

    /// Tells the application of a change, everything known being out of date already. While requests fail it is told when
    /// they succeed again: before, nobody could see the new value.
    pub(crate) fn changed(&self, change: FlagChangeEvent) {
        self.refresh.told(&change);
        // Dropped after the lock is open.
        let mut wakers = Wakers::default();
        let condition = lock(&self.condition);
        if condition.is_failing() {
            lock(&self.untold).push(change);
        } else {
            wakers.extend(self.hub.tell(ProviderEvent::ConfigurationChanged(change)));
        }
    }

    /// Takes what bears on how the provider is, and tells the application what follows.
    pub(crate) fn sign(&self, sign: Sign<'_>) {
        // Told under the lock: so events come in the order of what happened.
        let mut wakers = Wakers::default();
        let mut condition = lock(&self.condition);
        let before = condition.deadline();
        for event in condition.take(sign, Instant::now()) {
            wakers.extend(self.hub.tell(event));
        }
        if condition.deadline() != before {
            self.condition_changed.notify_one();
        }
        if !condition.is_failing() {
            for change in lock(&self.untold).take() {
                wakers.extend(self.hub.tell(ProviderEvent::ConfigurationChanged(change)));
            }
        }
    }

    /// How the provider is.
    pub(crate) fn health(&self) -> Health {
        let mut health = lock(&self.condition).health(Instant::now());
        let Heard { last_event, api_key_valid_until } = *lock(&self.heard);
        (health.last_event, health.api_key_valid_until) = (last_event, api_key_valid_until);
        health
    }

    pub(crate) fn events(&self) -> ProviderEvents {
        let condition = lock(&self.condition);
        self.hub.events(condition.current())
    }

    /// Resolves when the condition is to be looked at again because time has passed.
    pub(crate) async fn condition_due(&self) {
        loop {
            let deadline = lock(&self.condition).deadline();
            let due = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => return,
                () = self.condition_changed.notified() => {}
            }
        }
    }

    /// Takes a new answer for the start-up context: tells the application what changed in it.
    pub(super) fn start_up_answered(&self, entry: &Arc<CacheEntry>) {
        let kept = self.cache.get(entry.context());
        if kept.is_some_and(|kept| !Arc::ptr_eq(&kept, entry)) {
            // It was overtaken.
            return;
        }
        let reading = self.epoch.read();
        if entry.epoch >= reading.epoch {
            self.commands.refetched();
        }
        let changed = self.refresh.answered(&entry.flag_set);
        if !changed.is_empty() && !reading.streaming {
            // Nobody has said so yet.
            self.epoch.invalidate_all();
        }
        for key in changed {
            drop(self.hub.tell(ProviderEvent::ConfigurationChanged(FlagChangeEvent::of(key))));
        }
    }
}
