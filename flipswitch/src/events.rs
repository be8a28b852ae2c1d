//! What the application hears: changes of flags, and how the connection is.
//!
//! Listeners run one at a time, in the order of what happened, on a thread where they may block; never on the reader of
//! the stream, which waits for nobody.

use std::{
    any::Any,
    collections::VecDeque,
    fmt,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use time::OffsetDateTime;

use crate::runtime::Home;

/// Events that wait to be heard; more of them become one of a change of everything.
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

/// Changes that are to be told later: each flag once.
#[derive(Debug, Default)]
pub(crate) struct Untold(Vec<FlagChangeEvent>);

impl Untold {
    pub(crate) fn push(&mut self, change: FlagChangeEvent) {
        let is_everything = |known: &FlagChangeEvent| known.flag_key.is_none();
        if self.0.iter().any(is_everything) {
            return;
        }
        if is_everything(&change) || self.0.len() >= QUEUE {
            self.0.clear();
            self.0.push(FlagChangeEvent { flag_key: None, ..change });
        } else if let Some(known) = self.0.iter_mut().find(|known| known.flag_key == change.flag_key) {
            *known = change;
        } else {
            self.0.push(change);
        }
    }

    pub(crate) fn take(&mut self) -> Vec<FlagChangeEvent> {
        std::mem::take(&mut self.0)
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

/// Something that happened to a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProviderEvent {
    /// Values are as good as they can be: after the first answer, and again after [`Stale`](Self::Stale) or
    /// [`Error`](Self::Error).
    Ready,
    /// Values may be out of date: the service fails, or was not heard of for longer than the polling interval.
    Stale,
    /// Something is wrong that the service or the operator must mend; told once for as long as it lasts.
    Error {
        /// Only another API key will help. Otherwise it is tried on.
        fatal: bool,
        /// What is wrong.
        message: String,
    },
    /// A flag changed, or possibly all did. Everything that was known has become out of date before this is told.
    ConfigurationChanged(FlagChangeEvent),
    /// The API key is being replaced: see [`set_api_key`](crate::FlipswitchProvider::set_api_key).
    ApiKeyRotated {
        /// Until when the present key can be used; `None` if the replacement was called off.
        valid_until: Option<OffsetDateTime>,
    },
    /// The connection to the stream of changes is in another state.
    Status(ConnectionStatus),
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

/// What waits to be heard.
#[derive(Debug, Default)]
struct Queue(VecDeque<ProviderEvent>);

impl Queue {
    /// Adds an event. Whoever is too slow for all of them learns how things are now, and that anything may have changed.
    fn push(&mut self, event: ProviderEvent) {
        if self.0.len() >= QUEUE {
            let is_condition = |event: &ProviderEvent| {
                matches!(event, ProviderEvent::Ready | ProviderEvent::Stale | ProviderEvent::Error { .. })
            };
            let last = |kind: &dyn Fn(&ProviderEvent) -> bool| self.0.iter().rfind(|event| kind(event)).cloned();
            let rotated = last(&|event| matches!(event, ProviderEvent::ApiKeyRotated { .. }));
            let status = last(&|event| matches!(event, ProviderEvent::Status(_)));
            let everything = ProviderEvent::ConfigurationChanged(FlagChangeEvent::all());
            let kept = [rotated, status, last(&is_condition), Some(everything)];
            self.0 = kept.into_iter().flatten().collect();
        }
        self.0.push_back(event);
    }
}

/// The events of a provider, from how things are when it is made: a [`Stream`], and [`recv`](Self::recv) for those who
/// have no use for one. It ends when the provider is shut down.
///
/// Whoever does not keep up misses nothing that matters: more than 1 024 events that were not taken become the last of
/// each kind, and one that any flag may have changed.
#[derive(Debug)]
pub struct ProviderEvents(Arc<Mailbox>);

/// The events of one [`ProviderEvents`].
#[derive(Debug, Default)]
struct Mailbox(Mutex<Mail>);

#[derive(Debug, Default)]
struct Mail {
    queue: Queue,
    waker: Option<Waker>,
    closed: bool,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event, and returns whom to wake.
    fn push(&self, event: ProviderEvent) -> Option<Waker> {
        let mut mail = self.lock();
        mail.queue.push(event);
        mail.waker.take()
    }

    fn close(&self) {
        let waker = {
            let mut mail = self.lock();
            mail.closed = true;
            mail.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

impl ProviderEvents {
    /// Waits for the next event; `None` once the provider was shut down and all events were taken. May be dropped while it
    /// waits: no event is lost.
    pub async fn recv(&mut self) -> Option<ProviderEvent> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<ProviderEvent>> {
        let mut mail = self.0.lock();
        match mail.queue.0.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None if mail.closed => Poll::Ready(None),
            None => {
                mail.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Stream for ProviderEvents {
    type Item = ProviderEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ProviderEvent>> {
        self.poll_recv(context)
    }
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
        ProviderEvents(mailbox)
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
        match state.queue.0.pop_front() {
            Some(event) => Some((event, state.listeners.clone())),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_that_wait_are_each_told_once_and_bounded() {
        let mut untold = Untold::default();
        for key in ["a", "b", "a"] {
            untold.push(FlagChangeEvent::of(key.to_owned()));
        }
        assert_eq!(untold.take(), [FlagChangeEvent::of("a".into()), FlagChangeEvent::of("b".into())]);
        for change in [FlagChangeEvent::of("a".into()), FlagChangeEvent::all(), FlagChangeEvent::of("b".into())] {
            untold.push(change);
        }
        assert_eq!(untold.take(), [FlagChangeEvent::all()]);
        (0..=QUEUE).for_each(|number| untold.push(FlagChangeEvent::of(number.to_string())));
        assert_eq!(untold.take(), [FlagChangeEvent::all()]);
        assert!(untold.take().is_empty());
    }
}
