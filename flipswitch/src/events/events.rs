//! The events of a provider, and the stream that delivers them.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use parking_lot::Mutex;
use serde::Serialize;
use time::OffsetDateTime;

use crate::error::{Chain, Error};

/// Maximum number of events that wait to be received. If there are more, changes are merged into one event about any flag.
pub(crate) const MAX_WAITING: usize = 1_024;

/// A change to one flag, or possibly to all flags.
///
/// It is published after all cached flags have been invalidated, so a listener that evaluates flags gets the new value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlagChangeEvent {
    /// Key of the flag. `None` if any flag may have changed.
    pub flag_key: Option<String>,
    /// Time of the change, if the service sent it.
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

/// The status of the connection to the stream of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum ConnectionStatus {
    /// The provider is connecting.
    Connecting,
    /// The stream is open, and changes arrive as they happen.
    Connected,
    /// There is no connection, which is not a failure: the provider has not started, real-time updates are disabled, the provider
    /// is about to reconnect, or the service declines connections.
    Disconnected,
    /// Connecting failed, or the connection broke. The provider retries.
    Error,
}

/// Shows the status in lower case, with the names that the other Flipswitch SDKs use.
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

/// An event of a provider.
///
/// Two [`Error`](Self::Error) events are equal if the texts of their errors are equal.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ProviderEvent {
    /// Flags are up to date: after the first response, and again after [`Stale`](Self::Stale) or
    /// [`Error`](Self::Error).
    Ready,
    /// Flags may be out of date: requests fail, or nothing has been received for longer than the polling interval.
    Stale,
    /// The service has a problem, or refuses the API key. Published once per problem, however long it lasts.
    Error {
        /// The problem.
        error: Error,
        /// Whether the problem lasts until a new API key is set. If `false`, the provider retries.
        fatal: bool,
    },
    /// A flag changed, or possibly all flags. All cached flags have already been invalidated.
    ConfigurationChanged(FlagChangeEvent),
    /// The API key is being replaced; see [`set_api_key`](crate::FlipswitchProvider::set_api_key).
    ApiKeyRotated {
        /// When the current key expires. `None` if the replacement was cancelled.
        valid_until: Option<OffsetDateTime>,
    },
    /// The status of the connection to the stream of changes has changed.
    Status(ConnectionStatus),
}

impl PartialEq for ProviderEvent {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ready, Self::Ready) | (Self::Stale, Self::Stale) => true,
            (Self::Error { error, fatal }, Self::Error { error: other, fatal: other_fatal }) => {
                fatal == other_fatal && Chain(error).to_string() == Chain(other).to_string()
            }
            (Self::ConfigurationChanged(change), Self::ConfigurationChanged(other)) => change == other,
            (Self::ApiKeyRotated { valid_until }, Self::ApiKeyRotated { valid_until: other }) => valid_until == other,
            (Self::Status(status), Self::Status(other)) => status == other,
            _ => false,
        }
    }
}

impl Eq for ProviderEvent {}

/// Events that wait to be received. Their number is limited.
#[derive(Debug, Default)]
pub(crate) struct Backlog(VecDeque<ProviderEvent>);

impl Backlog {
    pub(crate) fn pop(&mut self) -> Option<ProviderEvent> {
        self.0.pop_front()
    }

    /// Adds an event. A full backlog is reduced to the last event of each kind, and one event that says that any flag may have
    /// changed.
    pub(crate) fn push(&mut self, event: ProviderEvent) {
        if self.0.len() >= MAX_WAITING {
            let is_health = |event: &ProviderEvent| {
                matches!(event, ProviderEvent::Ready | ProviderEvent::Stale | ProviderEvent::Error { .. })
            };
            let last = |kind: &dyn Fn(&ProviderEvent) -> bool| self.0.iter().rfind(|event| kind(event)).cloned();
            let rotated = last(&|event| matches!(event, ProviderEvent::ApiKeyRotated { .. }));
            let status = last(&|event| matches!(event, ProviderEvent::Status(_)));
            let change = ProviderEvent::ConfigurationChanged(FlagChangeEvent::all());
            let kept = [rotated, status, last(&is_health), Some(change)];
            self.0 = kept.into_iter().flatten().collect();
        }
        self.0.push_back(event);
    }
}

/// The events of a provider as a [`Stream`], beginning with the current state. Ends when the provider is shut down.
///
/// [`recv`](Self::recv) receives events without a stream library. A receiver that falls more than 1 024 events behind
/// gets the last event of each kind, and one event that says that any flag may have changed.
///
/// ```
/// use flipswitch::{ConnectionStatus, FlipswitchProvider, ProviderEvent, serde_json::json};
/// use futures_util::StreamExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let provider = FlipswitchProvider::in_memory(json!({}));
/// let mut changes = std::pin::pin!(provider.events().filter_map(async |event| match event {
///     ProviderEvent::ConfigurationChanged(change) => Some(change),
///     _ => None,
/// }));
/// # provider.shutdown().await;
/// while let Some(change) = changes.next().await {
///     println!("changed: {:?}", change.flag_key);
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct ProviderEvents(Arc<EventQueue>);

/// The queue behind one [`ProviderEvents`].
#[derive(Debug, Default)]
pub(crate) struct EventQueue(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    backlog: Backlog,
    waker: Option<Waker>,
    closed: bool,
}

impl EventQueue {
    /// Adds an event, and returns the task to wake.
    pub(crate) fn push(&self, event: ProviderEvent) -> Option<Waker> {
        let mut queue = self.0.lock();
        queue.backlog.push(event);
        queue.waker.take()
    }

    pub(crate) fn close(&self) {
        let waker = {
            let mut queue = self.0.lock();
            queue.closed = true;
            queue.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

impl ProviderEvents {
    pub(crate) fn new(queue: Arc<EventQueue>) -> Self {
        Self(queue)
    }

    /// Waits for the next event. Returns `None` once the provider has been shut down and all events have been received.
    ///
    /// Cancel safe: dropping the future loses no event.
    pub async fn recv(&mut self) -> Option<ProviderEvent> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<ProviderEvent>> {
        let mut queue = self.0.0.lock();
        match queue.backlog.pop() {
            Some(event) => Poll::Ready(Some(event)),
            None if queue.closed => Poll::Ready(None),
            None => {
                queue.waker = Some(context.waker().clone());
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
