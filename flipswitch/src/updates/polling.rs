//! Keeps the start-up context's flag_set up to date: what is asked for in the background, and nothing else is.
//!
//! It is how changes are noticed while the stream is away, and how they are named that happened meanwhile.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    evaluator::evaluator::Service, events::events::FlagChangeEvent, events::health::Sign, flags::flag_set::FlagSet,
    wire::backoff,
};

/// Requests that come within this time of each other become one.
const TOGETHER: Duration = Duration::from_millis(50);

/// They are spread over this time, so that clients do not all ask at once when a service is back.
const SPREAD: Duration = Duration::from_millis(500);

/// Names of flags whose change was told, up to this number; more count as all.
const NAMES: usize = 1_024;

/// What is to be asked for, and what is known of the flag_set.
#[derive(Debug)]
pub(crate) struct Refresh {
    soon: Notify,
    polling: watch::Sender<bool>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    flag_set: Option<Arc<FlagSet>>,
    /// What the application was told of since that flag_set.
    told: Told,
}

#[derive(Debug)]
enum Told {
    Flags(BTreeSet<String>),
    Everything,
}

impl Default for Told {
    fn default() -> Self {
        Self::Flags(BTreeSet::new())
    }
}

impl Refresh {
    pub(crate) fn new() -> Self {
        Self { soon: Notify::new(), polling: watch::Sender::new(false), known: Mutex::default() }
    }

    /// Asks soon.
    pub(crate) fn soon(&self) {
        self.soon.notify_one();
    }

    /// Begins to poll, or ends it. Where the stream failed, the first poll is due at once.
    pub(crate) fn poll(&self, on: bool) {
        if self.polling.send_replace(on) != on {
            tracing::info!(target: "flipswitch", "{}", if on { "polling begins" } else { "polling ends" });
            if on {
                self.soon();
            }
        }
    }

    /// Polls from the start, there being no stream.
    pub(crate) fn poll_only(&self) {
        self.polling.send_replace(true);
    }

    pub(crate) fn is_polling(&self) -> bool {
        *self.polling.borrow()
    }

    /// Remembers what the application is told, so that it is not told the same again.
    pub(crate) fn told(&self, change: &FlagChangeEvent) {
        let told = &mut self.lock().told;
        match (&change.flag_key, &mut *told) {
            (Some(key), Told::Flags(keys)) if keys.len() < NAMES => drop(keys.insert(key.clone())),
            _ => *told = Told::Everything,
        }
    }

    /// Forgets what the application was told: a flag that it knows to have changed may change once more without a word.
    pub(crate) fn forget_told(&self) {
        self.lock().told = Told::default();
    }

    /// Takes a new flag_set, and returns the keys of flags that changed and that the application was not told of.
    pub(crate) fn answered(&self, flag_set: &Arc<FlagSet>) -> Vec<String> {
        let (before, told) = {
            let mut known = self.lock();
            (known.flag_set.replace(Arc::clone(flag_set)), std::mem::take(&mut known.told))
        };
        match (before, told) {
            (Some(before), Told::Flags(told)) => {
                let mut changed = before.changed_keys(flag_set);
                changed.retain(|key| !told.contains(key));
                changed
            }
            _ => Vec::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }
}

/// Asks in the background for as long as the provider lives, also if what does so panics.
pub(crate) async fn keep(service: Arc<Service>, interval: Duration) {
    while let Ok(asking) = service.home().spawn(ask(Arc::clone(&service), interval)) {
        match asking.await {
            Err(error) if error.is_panic() => {
                tracing::error!(target: "flipswitch", "what asks for flags in the background panicked; it begins again");
                tokio::time::sleep(interval.min(backoff::LONGEST)).await;
            }
            _ => break,
        }
    }
}

async fn ask(service: Arc<Service>, interval: Duration) {
    let refresh = service.refresh();
    let mut polling = refresh.polling.subscribe();
    let mut next_poll = None;
    loop {
        if !*polling.borrow_and_update() {
            next_poll = None;
        } else if next_poll.is_none() {
            next_poll = Some(Instant::now() + about(interval));
        }
        let mut is_poll = false;
        tokio::select! {
            biased;
            // Cannot fail: the sender lives in the service.
            _ = polling.changed() => continue,
            () = refresh.soon.notified() => {
                tokio::time::sleep(delay()).await;
                // Whatever asked meanwhile is served by this as well.
                let _ = tokio::time::timeout(Duration::ZERO, refresh.soon.notified()).await;
            }
            () = sleep_until(next_poll) => {
                is_poll = true;
                next_poll = Some(Instant::now() + about(interval));
            }
            () = service.condition_due() => {
                service.sign(Sign::Timer);
                continue;
            }
        }
        if service.ask_start_up().await && is_poll {
            service.counters().polls.count();
        }
    }
}

/// How long to wait before asking because of something that other clients heard of, too.
pub(crate) fn delay() -> Duration {
    TOGETHER + (SPREAD - TOGETHER).mul_f64(fastrand::f64())
}

/// The interval, give or take a tenth: clients that were started together drift apart.
fn about(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * fastrand::f64())
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn flag_set(values: &Value) -> Arc<FlagSet> {
        Arc::new(FlagSet::of_values(values.as_object().unwrap().clone(), "STATIC"))
    }

    #[test]
    fn changes_are_named_unless_they_were_told() {
        let refresh = Refresh::new();
        let first = flag_set(&json!({"a": 1, "b": 1, "c": 1}));
        assert!(refresh.answered(&first).is_empty(), "there was nothing before");
        assert!(refresh.answered(&first).is_empty());
        let second = flag_set(&json!({"a": 2, "c": 1, "d": 1}));
        let mut changed = refresh.answered(&second);
        changed.sort();
        // Other allocations of an equal flag are equal as well.
        assert_eq!(changed, ["a", "b", "d"]);
        refresh.told(&FlagChangeEvent::of("a".into()));
        let third = flag_set(&json!({"a": 3, "c": 2, "d": 1}));
        assert_eq!(refresh.answered(&third), ["c"]);
        refresh.told(&FlagChangeEvent::all());
        assert!(refresh.answered(&first).is_empty());
        assert_eq!(refresh.answered(&second).len(), 3);
        refresh.told(&FlagChangeEvent::of("a".into()));
        refresh.forget_told();
        let mut changed = refresh.answered(&third);
        changed.sort();
        assert_eq!(changed, ["a", "c"], "told twice rather than never");
    }

    #[test]
    fn names_are_bounded() {
        let refresh = Refresh::new();
        for number in 0..=NAMES {
            refresh.told(&FlagChangeEvent::of(number.to_string()));
        }
        assert!(matches!(refresh.lock().told, Told::Everything));
    }
}
