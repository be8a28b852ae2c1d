//! Requests the flags for the start-up context, and no others, in the background.
//!
//! While the stream is closed, these requests reveal that flags have changed, and which ones.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    evaluator::evaluator::Evaluator,
    events::{health::HealthSignal, notifier::Notifier},
    runtime::sleep_until,
};

/// Refetches that are requested within this time are combined into one.
const REFETCH_DEBOUNCE: Duration = Duration::from_millis(50);

/// Refetches are spread over this time, so that clients do not all return at the same time when a service recovers.
const REFETCH_JITTER: Duration = Duration::from_millis(450);

/// Fraction of the polling interval by which a poll may be earlier or later, so that clients do not poll in step.
const POLL_JITTER: f64 = 0.1;

/// Whether to poll, and whether a refetch is pending.
#[derive(Debug)]
pub(crate) struct Polling {
    refetch: Notify,
    is_active: watch::Sender<bool>,
    /// Whether the log says that polling is active.
    is_logged: AtomicBool,
}

impl Polling {
    pub(crate) fn new() -> Self {
        Self { refetch: Notify::new(), is_active: watch::Sender::new(false), is_logged: AtomicBool::new(false) }
    }

    /// Requests the flags soon, once.
    pub(crate) fn refetch(&self) {
        self.refetch.notify_one();
    }

    /// Begins polling when the provider starts. The start-up check replaces the first poll.
    pub(crate) fn start_active(&self) {
        self.is_active.send_replace(true);
    }

    /// Begins or ends polling. `polls_now` is true if the first poll is due soon.
    pub(crate) fn set_active(&self, is_active: bool, polls_now: bool) {
        if self.is_active.send_replace(is_active) != is_active {
            // Polling that begins when the provider starts is not logged. In that case, its end is not logged either.
            if self.is_logged.swap(is_active, Ordering::Relaxed) || is_active {
                tracing::info!(target: "flipswitch", "{}", if is_active { "polling begins" } else { "polling ends" });
            }
            if is_active && polls_now {
                self.refetch();
            }
        }
    }

    pub(crate) fn is_active(&self) -> bool {
        *self.is_active.borrow()
    }

    /// Sends the requests, for the lifetime of the provider. Also informs the notifier when its deadline is reached.
    pub(crate) async fn run(self: Arc<Self>, evaluator: Arc<Evaluator>, notifier: Arc<Notifier>, interval: Duration) {
        let mut is_active = self.is_active.subscribe();
        let mut next_poll = None;
        loop {
            if !*is_active.borrow_and_update() {
                next_poll = None;
            } else if next_poll.is_none() {
                next_poll = Some(Instant::now() + with_jitter(interval));
            }
            let mut is_poll = false;
            tokio::select! {
                biased;
                // Cannot fail: the sender is part of `self`.
                _ = is_active.changed() => continue,
                () = self.refetch.notified() => {
                    tokio::time::sleep(refetch_delay()).await;
                    // This request also covers refetches that were requested in the meantime.
                    let _ = tokio::time::timeout(Duration::ZERO, self.refetch.notified()).await;
                }
                () = sleep_until(next_poll.map(Instant::into_std)) => {
                    is_poll = true;
                    next_poll = Some(Instant::now() + with_jitter(interval));
                }
                () = notifier.deadline_reached() => {
                    notifier.observe(HealthSignal::DeadlineReached);
                    continue;
                }
            }
            if evaluator.refetch_start_up().await && is_poll {
                evaluator.counters().polls.count();
            }
        }
    }
}

/// Returns how long to wait before a request that other clients may make at the same time for the same reason.
pub(crate) fn refetch_delay() -> Duration {
    REFETCH_DEBOUNCE + REFETCH_JITTER.mul_f64(fastrand::f64())
}

fn with_jitter(interval: Duration) -> Duration {
    interval.mul_f64(1.0 - POLL_JITTER + 2.0 * POLL_JITTER * fastrand::f64())
}
