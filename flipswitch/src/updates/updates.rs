//! The sources of updates, and how they affect the rest of the provider.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    config::Options,
    error::Error,
    evaluator::evaluator::Evaluator,
    events::{
        events::{ConnectionStatus, FlagChangeEvent},
        health::HealthSignal,
        notifier::Notifier,
    },
    runtime::ProviderRuntime,
    updates::{
        changes::Changes,
        polling::{Polling, refetch_delay},
        stream::{self, event::Notification, supervisor::StreamOptions},
    },
    wire::{event_streams::ConfigVersion, transport::StreamSource},
};

/// The sources of updates: the stream of changes, and polling.
pub(crate) struct Updates {
    pub(super) evaluator: Arc<Evaluator>,
    pub(super) notifier: Arc<Notifier>,
    pub(super) runtime: Arc<ProviderRuntime>,
    changes: Arc<Changes>,
    polling: Arc<Polling>,
    /// Options of the stream, if real-time updates are enabled.
    stream: Option<StreamOptions>,
    /// Interval between polls, if anything is requested in the background.
    polling_interval: Option<Duration>,
    was_connected: AtomicBool,
    follows_event_streams: bool,
}

impl Updates {
    pub(crate) fn new(
        options: &Options,
        runtime: Arc<ProviderRuntime>,
        evaluator: Arc<Evaluator>,
        notifier: Arc<Notifier>,
        changes: Arc<Changes>,
    ) -> Self {
        let stream = options.enable_realtime.then_some(StreamOptions {
            max_retries: options.max_sse_retries,
            polling_fallback: options.enable_polling_fallback,
            stream_idle_timeout: options.stream_idle_timeout,
        });
        let is_updated = options.enable_realtime || options.enable_polling_fallback;
        if options.has_own_stream() {
            changes.sources.follow(vec![StreamSource::Own]);
        }
        Self {
            evaluator,
            notifier,
            runtime,
            changes,
            polling: Arc::new(Polling::new()),
            stream,
            polling_interval: is_updated.then_some(options.polling_interval),
            was_connected: AtomicBool::new(false),
            follows_event_streams: options.follows_event_streams(),
        }
    }

    /// Starts the tasks.
    ///
    /// # Errors
    ///
    /// An [`Error`] if no task can be started.
    pub(crate) fn start(self: &Arc<Self>) -> Result<(), Error> {
        let Some(interval) = self.polling_interval else { return Ok(()) };
        // The service is polled if there is no stream, or until it advertises one.
        let polls = match self.stream {
            None => true,
            Some(options) => options.polling_fallback && self.stream_sources().borrow().is_empty(),
        };
        if polls {
            self.polling.start_active();
        }
        if let Some(options) = self.stream {
            drop(self.runtime.spawn(stream::run(Arc::clone(self), options))?);
        }
        let polling = Arc::clone(&self.polling);
        self.runtime.spawn(polling.run(Arc::clone(&self.evaluator), Arc::clone(&self.notifier), interval))?;
        Ok(())
    }

    /// Opens a new connection for the stream of changes.
    pub(crate) fn reconnect(&self) {
        self.changes.stream.reconnect();
    }

    /// Returns whether anything is requested in the background.
    pub(crate) fn are_enabled(&self) -> bool {
        self.polling_interval.is_some()
    }

    pub(crate) fn is_polling(&self) -> bool {
        self.polling.is_active()
    }

    /// Records that a new API key is in use. Reconnects, and finds out what changed.
    pub(crate) fn api_key_replaced(&self) {
        // The key may belong to a different environment, whose flags may differ for any context.
        self.notify(Notification::Changed(FlagChangeEvent::all()));
        self.changes.stream.forget_answers();
        if self.follows_event_streams {
            // The streams may belong to a different environment.
            self.changes.sources.reset(Instant::now());
        }
        self.reconnect();
        self.refetch();
    }

    /// Returns the time at which the service last responded to a request with the API key in use, if it has refused none since.
    pub(super) fn answered_at(&self) -> Option<Instant> {
        self.changes.stream.answered_at()
    }

    pub(super) async fn next_command(&self) -> stream::commands::Command {
        self.changes.stream.next().await
    }

    /// Returns a receiver of the streams to follow.
    pub(super) fn stream_sources(&self) -> watch::Receiver<Vec<StreamSource>> {
        self.changes.sources.receiver()
    }

    /// Records that all streams are open, and invalidates all flags. They count as open until `heard_until`, or longer if more
    /// bytes arrive.
    pub(super) fn stream_opened(&self, heard_until: Instant) {
        // A service with an open stream has probably recovered.
        self.evaluator.stream_opened(heard_until, Instant::now() + refetch_delay());
        self.notifier.invalidated();
        if self.was_connected.swap(true, Ordering::Relaxed) {
            self.evaluator.counters().reconnects.count();
        }
    }

    /// Returns whether the stream has been open before.
    pub(super) fn was_connected(&self) -> bool {
        self.was_connected.load(Ordering::Relaxed)
    }

    /// Records that bytes arrived. The streams count as open until this time, or longer if more bytes arrive.
    pub(super) fn heard(&self, until: Instant) {
        self.evaluator.epoch().heard(until);
    }

    /// Records that changes no longer arrive.
    pub(super) fn stream_closed(&self) {
        self.evaluator.epoch().stream_closed();
        self.changes.forget_notified();
        self.notifier.observe(HealthSignal::StreamClosed);
    }

    /// Records that the stream task panicked, which closed its connections.
    pub(super) fn stream_panicked(&self) {
        self.stream_closed();
        self.status(ConnectionStatus::Error);
        self.invalidate();
        tracing::error!(target: "flipswitch", "the task for the stream of changes panicked; reconnecting");
    }

    /// Marks all flags as out of date.
    pub(super) fn invalidate(&self) {
        self.evaluator.invalidate_all();
        self.notifier.invalidated();
    }

    /// Marks all flags as out of date because of an event, which may have an id and name the version of the flags.
    pub(super) fn change_announced(&self, id: Option<u64>, version: ConfigVersion) {
        self.evaluator.change_announced(id, version);
    }

    /// Requests the flags for the start-up context soon.
    pub(super) fn refetch(&self) {
        self.polling.refetch();
    }

    /// Requests the flags for the start-up context in full next time, because the response may advertise different streams.
    pub(super) fn renew_urls(&self) {
        self.evaluator.request_start_up_in_full();
    }

    /// Begins or ends polling. `polls_now` is true if the first poll is due soon.
    pub(super) fn set_polling(&self, is_active: bool, polls_now: bool) {
        self.polling.set_active(is_active, polls_now);
        self.notifier.observe(HealthSignal::Polling(is_active));
    }

    /// Publishes the status of the stream's connection.
    pub(super) fn status(&self, status: ConnectionStatus) {
        self.notifier.status(status);
    }

    /// Notifies the application. All flags must have been invalidated before a change.
    pub(super) fn notify(&self, notification: Notification) {
        match notification {
            Notification::Changed(change) => {
                self.changes.notified(&change);
                self.notifier.changed(change);
            }
            Notification::KeyRotated { valid_until } => self.notifier.api_key_rotated(valid_until),
        }
    }
}
