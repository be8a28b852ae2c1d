//! What the application hears: changes of flags, and how the connection is.
//!
//! Listeners run one at a time, in the order of what happened, on a thread where they may block; never on the reader of
//! the stream, which waits for nobody.

use std::{
    any::Any,
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use time::OffsetDateTime;

use crate::runtime::Home;

/// Notices that wait for listeners; more of them become one of a change of everything.
const QUEUE: usize = 1_024;

/// A flag changed, or possibly all did.
///
/// It is told after everything known so far has become out of date: whoever evaluates on hearing of it gets the new
/// value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlagChangeEvent {
    /// Key of the flag; `None` if any flag may have changed.
    pub flag_key: Option<String>,
    /// When it changed, if the service says so.
    pub timestamp: Option<OffsetDateTime>,
}

impl FlagChangeEvent {
    pub(crate) fn all() -> Self {
        Self { flag_key: None, timestamp: None }
    }

    pub(crate) fn of(flag_key: String) -> Self {
        Self { flag_key: Some(flag_key), timestamp: None }
    }
}

/// How the connection to the stream of changes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectionStatus {
    /// A connection is being made.
    Connecting,
    /// Changes are heard of as they happen.
    Connected,
    /// There is no connection, and that is no failure: not started, switched off, between two connections, or not wanted
    /// by the service.
    Disconnected,
    /// Connecting failed, or the connection broke; it is tried on.
    Error,
}

/// In lower case, as the other Flipswitch SDKs name them.
impl fmt::Display for ConnectionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
            Self::Error => "error",
        })
    }
}

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

/// Something to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Notice {
    Change(FlagChangeEvent),
    Status(ConnectionStatus),
}

/// Knows who listens, and tells them.
pub(crate) struct Hub {
    home: Arc<Home>,
    state: Mutex<State>,
}

struct State {
    status: ConnectionStatus,
    listeners: Vec<Arc<Listener>>,
    queue: VecDeque<Notice>,
    /// Somebody empties the queue.
    telling: bool,
    closed: bool,
}

impl Hub {
    pub(crate) fn new(home: Arc<Home>) -> Self {
        let state = State {
            status: ConnectionStatus::Disconnected,
            listeners: Vec::new(),
            queue: VecDeque::new(),
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

    /// Tells of a change.
    pub(crate) fn changed(self: &Arc<Self>, change: FlagChangeEvent) {
        self.tell(self.lock(), Notice::Change(change));
    }

    /// Tells how the connection is, if that is news.
    pub(crate) fn connection(self: &Arc<Self>, status: ConnectionStatus) {
        let mut state = self.lock();
        if !state.closed && std::mem::replace(&mut state.status, status) != status {
            self.tell(state, Notice::Status(status));
        }
    }

    /// Nobody is told anything from now on.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        (state.closed, state.status) = (true, ConnectionStatus::Disconnected);
        let dropped = (std::mem::take(&mut state.listeners), std::mem::take(&mut state.queue));
        // What listeners own may do anything when it is dropped.
        drop(state);
        drop(dropped);
    }

    fn tell(self: &Arc<Self>, mut state: MutexGuard<'_, State>, notice: Notice) {
        if state.closed || state.listeners.is_empty() {
            return;
        }
        if state.queue.len() >= QUEUE {
            // Those who come late learn how things are now, and that anything may have changed.
            let status = state.queue.iter().rfind(|notice| matches!(notice, Notice::Status(_))).cloned();
            state.queue = status.into_iter().chain([Notice::Change(FlagChangeEvent::all())]).collect();
        }
        state.queue.push_back(notice);
        if !std::mem::replace(&mut state.telling, true) {
            drop(state);
            let hub = Arc::clone(self);
            // Where nothing can be started any more, nobody is to hear anything either.
            self.home.spawn_blocking(move || hub.empty_queue());
        }
    }

    fn empty_queue(&self) {
        while let Some((notice, listeners)) = self.next() {
            for listener in listeners {
                // Looked at before each call: one listener may have unsubscribed the next, or shut the provider down.
                if !listener.active.load(Ordering::Acquire) || self.lock().closed {
                    continue;
                }
                let told = catch_unwind(AssertUnwindSafe(|| listener.hear(&notice)));
                if let Err(panic) = told {
                    tracing::error!(target: "flipswitch", panic = text(&*panic), "a listener panicked");
                }
            }
        }
    }

    fn next(&self) -> Option<(Notice, Vec<Arc<Listener>>)> {
        let mut state = self.lock();
        match state.queue.pop_front() {
            Some(notice) => Some((notice, state.listeners.clone())),
            None => {
                state.telling = false;
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    fn hear(&self, notice: &Notice) {
        match (&self.hears, notice) {
            (Hears::Changes(None, listener), Notice::Change(change)) => listener(change),
            (Hears::Changes(Some(key), listener), Notice::Change(change))
                if change.flag_key.as_ref().is_none_or(|changed| changed == key) =>
            {
                listener(change);
            }
            (Hears::Statuses(listener), Notice::Status(status)) => listener(*status),
            _ => {}
        }
    }
}

/// What a panic says.
fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text")
}
