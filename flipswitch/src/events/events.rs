//! What the application hears: changes of flags, how the connection is, and what that means; and those events as a stream.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::{Mutex, MutexGuard};

use futures_core::Stream;
use time::OffsetDateTime;

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

/// What waits to be heard.
#[derive(Debug, Default)]
pub(crate) struct Queue(VecDeque<ProviderEvent>);

impl Queue {
    pub(crate) fn pop(&mut self) -> Option<ProviderEvent> {
        self.0.pop_front()
    }

    /// Adds an event. Whoever is too slow for all of them learns how things are now, and that anything may have changed.
    pub(crate) fn push(&mut self, event: ProviderEvent) {
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
pub(crate) struct Mailbox(Mutex<Mail>);

#[derive(Debug, Default)]
struct Mail {
    queue: Queue,
    waker: Option<Waker>,
    closed: bool,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.0.lock()
    }

    /// Adds an event, and returns whom to wake.
    pub(crate) fn push(&self, event: ProviderEvent) -> Option<Waker> {
        let mut mail = self.lock();
        mail.queue.push(event);
        mail.waker.take()
    }

    pub(crate) fn close(&self) {
        let waker = {
            let mut mail = self.lock();
            mail.closed = true;
            mail.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

impl ProviderEvents {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self(mailbox)
    }

    /// Waits for the next event; `None` once the provider was shut down and all events were taken. May be dropped while it
    /// waits: no event is lost.
    pub async fn recv(&mut self) -> Option<ProviderEvent> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<ProviderEvent>> {
        let mut mail = self.0.lock();
        match mail.queue.pop() {
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
