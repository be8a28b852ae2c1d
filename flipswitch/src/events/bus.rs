//! The event bus: delivers events to listeners and event streams.
//!
//! Listeners run one at a time, in the order of the events, on a thread where they may block. They never run on the task that
//! reads the stream of changes.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
};

use parking_lot::{Mutex, MutexGuard};
use time::OffsetDateTime;
use tokio::{sync::watch, time::Instant};

use crate::{
    events::events::{Backlog, ConnectionStatus, EventQueue, FlagChangeEvent, ProviderEvent, ProviderEvents},
    runtime::ProviderRuntime,
};

/// Subscription of a listener. Dropping it unsubscribes the listener.
#[must_use = "dropping it unsubscribes the listener; keep it, or call `detach()`"]
pub struct Subscription {
    listener: Option<Arc<Listener>>,
    bus: Weak<EventBus>,
}

impl Subscription {
    /// Keeps the listener subscribed for the lifetime of the provider.
    pub fn detach(mut self) {
        self.listener = None;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let Some(listener) = self.listener.take() else { return };
        listener.is_active.store(false, Ordering::Release);
        if let Some(bus) = self.bus.upgrade() {
            bus.state.lock().listeners.retain(|other| !Arc::ptr_eq(other, &listener));
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

struct Listener {
    /// False once the listener is unsubscribed. Events that are still being delivered no longer reach it.
    is_active: AtomicBool,
    callback: Callback,
}

enum Callback {
    /// Called with all changes, or with the changes that may concern one flag.
    Changes(Option<String>, Box<dyn Fn(&FlagChangeEvent) + Send + Sync>),
    Status(Box<dyn Fn(ConnectionStatus) + Send + Sync>),
}

/// How far the time of a change may be ahead of our clock. A time that is further ahead is ignored.
pub(crate) const MAX_AHEAD: time::Duration = time::Duration::minutes(1);

/// The last change to flags, or the last possible change. The first one represents all changes before the provider was built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastChange {
    pub(crate) number: u64,
    /// The latest time of a change that the service has sent.
    pub(crate) at: Option<OffsetDateTime>,
    pub(crate) heard_at: Instant,
}

impl LastChange {
    /// Returns whether flags may have changed since the provider was built.
    pub(crate) fn is_known(&self) -> bool {
        self.number > 1
    }

    /// Counts a change. `at` is its time, if the service has sent one.
    pub(crate) fn advance(&mut self, at: Option<OffsetDateTime>) {
        let latest = OffsetDateTime::now_utc() + MAX_AHEAD;
        let at = self.at.max(at.filter(|at| *at <= latest));
        *self = Self { number: self.number + 1, at, heard_at: Instant::now() };
    }
}

impl Default for LastChange {
    fn default() -> Self {
        Self { number: 1, at: None, heard_at: Instant::now() }
    }
}

/// Delivers events to listeners and event streams.
pub(crate) struct EventBus {
    runtime: Arc<ProviderRuntime>,
    state: Mutex<State>,
    /// For receivers that only need to know that flags may have changed. Unlike listeners, they do not wait for code of the
    /// application.
    changes: watch::Sender<LastChange>,
}

struct State {
    status: ConnectionStatus,
    listeners: Vec<Arc<Listener>>,
    queues: Vec<Weak<EventQueue>>,
    /// Events for the listeners.
    backlog: Backlog,
    /// Whether a thread delivers the backlog.
    is_delivering: bool,
    closed: bool,
}

impl EventBus {
    pub(crate) fn new(runtime: Arc<ProviderRuntime>) -> Self {
        let state = State {
            status: ConnectionStatus::Disconnected,
            listeners: Vec::new(),
            queues: Vec::new(),
            backlog: Backlog::default(),
            is_delivering: false,
            closed: false,
        };
        Self { runtime, state: Mutex::new(state), changes: watch::Sender::default() }
    }

    /// Returns a receiver of the last change and of later ones.
    pub(crate) fn changes(&self) -> watch::Receiver<LastChange> {
        self.changes.subscribe()
    }

    /// Records that all flags were marked as out of date, which is not an event for the application.
    pub(crate) fn invalidated(&self) {
        catch_panic(|| self.changes.send_modify(|change| change.number += 1));
    }

    /// Returns the last published status of the connection.
    pub(crate) fn status(&self) -> ConnectionStatus {
        self.state.lock().status
    }

    pub(crate) fn on_change(
        self: &Arc<Self>,
        key: Option<String>,
        listener: impl Fn(&FlagChangeEvent) + Send + Sync + 'static,
    ) -> Subscription {
        self.subscribe(Callback::Changes(key, Box::new(listener)))
    }

    pub(crate) fn on_status(
        self: &Arc<Self>,
        listener: impl Fn(ConnectionStatus) + Send + Sync + 'static,
    ) -> Subscription {
        self.subscribe(Callback::Status(Box::new(listener)))
    }

    fn subscribe(self: &Arc<Self>, callback: Callback) -> Subscription {
        let listener = Arc::new(Listener { is_active: AtomicBool::new(true), callback });
        self.state.lock().listeners.push(Arc::clone(&listener));
        Subscription { listener: Some(listener), bus: Arc::downgrade(self) }
    }

    /// Returns the connection status, `current`, and all later events.
    pub(crate) fn events(&self, current: Option<ProviderEvent>) -> ProviderEvents {
        let queue = Arc::new(EventQueue::default());
        let mut state = self.state.lock();
        if state.closed {
            queue.close();
        } else {
            let first = [Some(ProviderEvent::Status(state.status)), current];
            first.into_iter().flatten().for_each(|event| drop(queue.push(event)));
            state.queues.retain(|queue| queue.strong_count() > 0);
            state.queues.push(Arc::downgrade(&queue));
        }
        ProviderEvents::new(queue)
    }

    /// Publishes the status of the connection, if it differs from the last one.
    pub(crate) fn publish_status(self: &Arc<Self>, status: ConnectionStatus) {
        let mut state = self.state.lock();
        if !state.closed && std::mem::replace(&mut state.status, status) != status {
            drop(self.publish_locked(state, ProviderEvent::Status(status)));
        }
    }

    /// Publishes an event.
    pub(crate) fn publish(self: &Arc<Self>, event: ProviderEvent) -> Wakers {
        self.publish_locked(self.state.lock(), event)
    }

    fn publish_locked(self: &Arc<Self>, mut state: MutexGuard<'_, State>, event: ProviderEvent) -> Wakers {
        if state.closed {
            return Wakers::default();
        }
        let queues = state.queues.iter().filter_map(Weak::upgrade);
        let mut wakers =
            Wakers { wakers: queues.filter_map(|queue| queue.push(event.clone())).collect(), changes: None };
        if let ProviderEvent::ConfigurationChanged(change) = &event {
            self.changes.send_if_modified(|last| {
                last.advance(change.timestamp);
                // The receivers are woken once the locks are released.
                false
            });
            wakers.changes = Some(self.changes.clone());
        }
        if state.listeners.is_empty() {
            return wakers;
        }
        state.backlog.push(event);
        if !std::mem::replace(&mut state.is_delivering, true) {
            drop(state);
            let bus = Arc::clone(self);
            // Does nothing if the provider is shut down, because listeners are not called after that.
            self.runtime.spawn_callback(move || bus.deliver());
        }
        wakers
    }

    /// Ends the delivery. From now on, no listener and no event stream receives anything.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        (state.closed, state.status) = (true, ConnectionStatus::Disconnected);
        let queues = std::mem::take(&mut state.queues);
        let (listeners, backlog) = (std::mem::take(&mut state.listeners), std::mem::take(&mut state.backlog));
        // The lock is released first, because dropping a listener runs code of the application.
        drop(state);
        drop(backlog);
        listeners.into_iter().for_each(|listener| catch_panic(|| drop(listener)));
        queues.iter().filter_map(Weak::upgrade).for_each(|queue| queue.close());
    }

    fn deliver(&self) {
        while let Some((event, listeners)) = self.next() {
            for listener in listeners {
                // Checked before each call: a listener may unsubscribe the next one, or shut the provider down.
                if listener.is_active.load(Ordering::Acquire) && !self.state.lock().closed {
                    catch_panic(|| listener.call(&event));
                }
                // This may be the last reference, and dropping the data of the listener may panic as well.
                catch_panic(|| drop(listener));
            }
        }
    }

    fn next(&self) -> Option<(ProviderEvent, Vec<Arc<Listener>>)> {
        let mut state = self.state.lock();
        match state.backlog.pop() {
            Some(event) => Some((event, state.listeners.clone())),
            None => {
                state.is_delivering = false;
                None
            }
        }
    }
}

impl Listener {
    fn call(&self, event: &ProviderEvent) {
        match (&self.callback, event) {
            (Callback::Changes(None, listener), ProviderEvent::ConfigurationChanged(change)) => listener(change),
            (Callback::Changes(Some(key), listener), ProviderEvent::ConfigurationChanged(change))
                if change.flag_key.as_ref().is_none_or(|changed| changed == key) =>
            {
                listener(change);
            }
            (Callback::Status(listener), ProviderEvent::Status(status)) => listener(*status),
            _ => {}
        }
    }
}

/// Runs code of the application, and logs a panic.
fn catch_panic(run: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        tracing::error!(target: "flipswitch", panic = text(&*panic), "a listener or a waker of the application panicked");
        // Dropping the value of the panic also runs code of the application.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(panic);
        }
    }
}

/// Tasks that wait for events. Wakes them when dropped, which must happen after all locks are released.
#[must_use]
#[derive(Default)]
pub(crate) struct Wakers {
    wakers: Vec<Waker>,
    /// The sender whose receivers are woken.
    changes: Option<watch::Sender<LastChange>>,
}

impl Wakers {
    pub(crate) fn extend(&mut self, mut other: Self) {
        self.wakers.append(&mut other.wakers);
        self.changes = self.changes.take().or(other.changes.take());
    }
}

impl Drop for Wakers {
    fn drop(&mut self) {
        self.wakers.drain(..).for_each(|waker| catch_panic(|| waker.wake()));
        if let Some(changes) = self.changes.take() {
            catch_panic(|| changes.send_modify(|_| {}));
        }
    }
}

/// Returns the message of a panic.
fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text")
}
