//! Who listens, and how they are told.
//!
//! Listeners run one at a time, in the order of what happened, on a thread where they may block; never on the reader of
//! the stream, which waits for nobody.

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

use crate::{
    events::events::{ConnectionStatus, FlagChangeEvent, Mailbox, ProviderEvent, ProviderEvents, Queue},
    runtime::Home,
};

/// A listener's place. Dropping it ends the listening; [`detach`](Self::detach) keeps it for as long as the provider
/// lives.
#[must_use = "dropping it unsubscribes the listener at once"]
pub struct Subscription {
    listener: Option<Arc<Listener>>,
    hub: Weak<Hub>,
}

impl Subscription {
    /// Keeps the listener for as long as the provider lives.
    pub fn detach(mut self) {
        self.listener = None;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let Some(listener) = self.listener.take() else { return };
        listener.active.store(false, Ordering::Release);
        if let Some(hub) = self.hub.upgrade() {
            hub.lock().listeners.retain(|other| !Arc::ptr_eq(other, &listener));
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

struct Listener {
    /// Becomes false when it is unsubscribed: what is on its way does not reach it any more.
    active: AtomicBool,
    hears: Hears,
}

enum Hears {
    /// Changes: all, or those that may concern one flag.
    Changes(Option<String>, Box<dyn Fn(&FlagChangeEvent) + Send + Sync>),
    Statuses(Box<dyn Fn(ConnectionStatus) + Send + Sync>),
}

/// Knows who listens, and tells them.
pub(crate) struct Hub {
    home: Arc<Home>,
    state: Mutex<State>,
}

struct State {
    status: ConnectionStatus,
    listeners: Vec<Arc<Listener>>,
    mailboxes: Vec<Weak<Mailbox>>,
    queue: Queue,
    /// Somebody empties the queue.
    telling: bool,
    closed: bool,
}

impl Hub {
    pub(crate) fn new(home: Arc<Home>) -> Self {
        let state = State {
            status: ConnectionStatus::Disconnected,
            listeners: Vec::new(),
            mailboxes: Vec::new(),
            queue: Queue::default(),
            telling: false,
            closed: false,
        };
        Self { home, state: Mutex::new(state) }
    }

    /// How the connection is.
    pub(crate) fn status(&self) -> ConnectionStatus {
        self.lock().status
    }

    pub(crate) fn on_change(
        self: &Arc<Self>,
        key: Option<String>,
        listener: impl Fn(&FlagChangeEvent) + Send + Sync + 'static,
    ) -> Subscription {
        self.subscribe(Hears::Changes(key, Box::new(listener)))
    }

    pub(crate) fn on_status(
        self: &Arc<Self>,
        listener: impl Fn(ConnectionStatus) + Send + Sync + 'static,
    ) -> Subscription {
        self.subscribe(Hears::Statuses(Box::new(listener)))
    }

    fn subscribe(self: &Arc<Self>, hears: Hears) -> Subscription {
        let listener = Arc::new(Listener { active: AtomicBool::new(true), hears });
        self.lock().listeners.push(Arc::clone(&listener));
        Subscription { listener: Some(listener), hub: Arc::downgrade(self) }
    }

    /// The events from now on, after how the connection is and `current`.
    pub(crate) fn events(&self, current: Option<ProviderEvent>) -> ProviderEvents {
        let mailbox = Arc::new(Mailbox::default());
        let mut state = self.lock();
        if state.closed {
            mailbox.close();
        } else {
            let now = [Some(ProviderEvent::Status(state.status)), current];
            now.into_iter().flatten().for_each(|event| drop(mailbox.push(event)));
            state.mailboxes.retain(|mailbox| mailbox.strong_count() > 0);
            state.mailboxes.push(Arc::downgrade(&mailbox));
        }
        ProviderEvents::new(mailbox)
    }

    /// Tells how the connection is, if that is news.
    pub(crate) fn connection(self: &Arc<Self>, status: ConnectionStatus) {
        let mut state = self.lock();
        if !state.closed && std::mem::replace(&mut state.status, status) != status {
            drop(self.tell_all(state, ProviderEvent::Status(status)));
        }
    }

    /// Nobody is told anything from now on.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        (state.closed, state.status) = (true, ConnectionStatus::Disconnected);
        let mailboxes = std::mem::take(&mut state.mailboxes);
        let (listeners, queue) = (std::mem::take(&mut state.listeners), std::mem::take(&mut state.queue));
        // What listeners own may do anything when it is dropped.
        drop(state);
        drop(queue);
        listeners.into_iter().for_each(|listener| contained(|| drop(listener)));
        mailboxes.iter().filter_map(Weak::upgrade).for_each(|mailbox| mailbox.close());
    }

    /// Tells of something that happened.
    pub(crate) fn tell(self: &Arc<Self>, event: ProviderEvent) -> Wakers {
        self.tell_all(self.lock(), event)
    }

    fn tell_all(self: &Arc<Self>, mut state: MutexGuard<'_, State>, event: ProviderEvent) -> Wakers {
        if state.closed {
            return Wakers::default();
        }
        let mailboxes = state.mailboxes.iter().filter_map(Weak::upgrade);
        let wakers = Wakers(mailboxes.filter_map(|mailbox| mailbox.push(event.clone())).collect());
        if state.listeners.is_empty() {
            return wakers;
        }
        state.queue.push(event);
        if !std::mem::replace(&mut state.telling, true) {
            drop(state);
            let hub = Arc::clone(self);
            // Where nothing can be started any more, nobody is to hear anything either.
            self.home.spawn_blocking(move || hub.empty_queue());
        }
        wakers
    }

    fn empty_queue(&self) {
        while let Some((event, listeners)) = self.next() {
            for listener in listeners {
                // Looked at before each call: one listener may have unsubscribed the next, or shut the provider down.
                if listener.active.load(Ordering::Acquire) && !self.lock().closed {
                    contained(|| listener.hear(&event));
                }
                // Perhaps the last of it: what it owns may panic as well.
                contained(|| drop(listener));
            }
        }
    }

    fn next(&self) -> Option<(ProviderEvent, Vec<Arc<Listener>>)> {
        let mut state = self.lock();
        match state.queue.pop() {
            Some(event) => Some((event, state.listeners.clone())),
            None => {
                state.telling = false;
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl Listener {
    fn hear(&self, event: &ProviderEvent) {
        match (&self.hears, event) {
            (Hears::Changes(None, listener), ProviderEvent::ConfigurationChanged(change)) => listener(change),
            (Hears::Changes(Some(key), listener), ProviderEvent::ConfigurationChanged(change))
                if change.flag_key.as_ref().is_none_or(|changed| changed == key) =>
            {
                listener(change);
            }
            (Hears::Statuses(listener), ProviderEvent::Status(status)) => listener(*status),
            _ => {}
        }
    }
}

/// Runs what belongs to the application.
fn contained(run: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        tracing::error!(target: "flipswitch", panic = text(&*panic), "a listener panicked");
        // Also the panic's own value is the application's.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(panic);
        }
    }
}

/// Those who wait for events: woken when this is dropped, which is to be after all locks are open.
#[must_use]
#[derive(Default)]
pub(crate) struct Wakers(Vec<Waker>);

impl Wakers {
    pub(crate) fn extend(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }
}

impl Drop for Wakers {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}

/// What a panic says.
fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text")
}
