//! The streams of changes: their connections, and the actions that their supervisors decide on.
//!
//! Flipswitch has one stream. An OFREP service advertises any number, and changes arrive only while all of them are open.

mod combined;
pub(crate) mod commands;
#[cfg(test)]
mod conformance;
mod connections;
mod decoder;
pub(crate) mod event;
pub(crate) mod supervisor;
mod suspend;

use std::{
    future::{Future, pending, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

use self::{
    combined::{Refetches, StreamState, open_until, opens_at, polls, status},
    connections::ConnectionNumber,
    decoder::{Decoder, Message},
    event::{Cause, StreamEvent},
    supervisor::{Action, ConnectionInput, Input, StreamOptions, Supervisor},
    suspend::{SuspendDetector, TICK},
};
use crate::{
    config::ServiceKind,
    error::Error,
    events::{events::ConnectionStatus, health::HealthSignal},
    runtime::sleep_until,
    updates::updates::Updates,
    wire::transport::{EventStream, StreamRefused, StreamSource},
};

/// Wait before the task is started again after a panic.
const RESTART_WAIT: Duration = Duration::from_secs(1);

/// Reads the streams for the lifetime of the provider.
///
/// The task calls the application's tracing subscriber, which may panic. Without the task, nothing would invalidate flags, so
/// it is started again.
pub(super) async fn run(updates: Arc<Updates>, options: StreamOptions) {
    let mut published = Published { status: ConnectionStatus::Disconnected, polls: Some(updates.is_polling()) };
    loop {
        let task = StreamTask {
            published,
            updates: Arc::clone(&updates),
            options,
            streams: Vec::new(),
            suspend: SuspendDetector::default(),
            opened_at: None,
            refetches: Refetches::default(),
            event_id: None,
        };
        match updates.runtime.spawn(task.run()) {
            Ok(running) => match running.await {
                Err(error) if error.is_panic() => {
                    updates.stream_panicked();
                    published = Published { status: ConnectionStatus::Error, polls: None };
                }
                _ => return,
            },
            Err(_) => return,
        }
        tokio::time::sleep(RESTART_WAIT).await;
    }
}

/// Carries out what the supervisors decide.
struct StreamTask {
    updates: Arc<Updates>,
    options: StreamOptions,
    streams: Vec<Stream>,
    suspend: SuspendDetector,
    published: Published,
    /// When streams that a response had added or moved were last opened.
    opened_at: Option<Instant>,
    refetches: Refetches,
    /// The id of the event whose effect is being carried out, if it is a number.
    event_id: Option<u64>,
}

/// The status of all streams together, as it was last published.
#[derive(Clone, Copy)]
struct Published {
    status: ConnectionStatus,
    /// `None` if it is not known what was published.
    polls: Option<bool>,
}

struct Stream {
    source: StreamSource,
    supervisor: Supervisor,
    /// The connection, and a second one while one of them replaces the other.
    connections: [Numbered; 2],
    state: StreamState,
}

/// A connection with its number.
struct Numbered {
    number: ConnectionNumber,
    connection: Connection,
}

impl Numbered {
    const NONE: Self = Self { number: 0, connection: Connection::None };
}

enum Connection {
    None,
    /// Runs in its own task, because it calls code of the application (a resolver, a connector) that may panic.
    Connecting(AbortOnDropHandle<Option<Result<Open, StreamRefused>>>),
    Open(Box<Open>),
}

struct Open {
    events: EventStream,
    decoder: Decoder,
    /// The id of the decoder after the last message.
    last_id: Option<Arc<str>>,
}

/// Something that happened to the connection.
enum ConnectionEvent {
    Opened(Box<Open>),
    Refused(StreamRefused),
    Bytes(Bytes),
    Ended,
    Broken(Error),
}

impl StreamTask {
    async fn run(mut self) {
        let mut sources = self.updates.stream_sources();
        let first = sources.borrow_and_update().clone();
        self.follow(&first);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadlines = self.streams.iter().filter_map(|stream| stream.supervisor.deadline());
            let deadline = deadlines.chain(self.refetches.deadline()).min();
            let is_open = self.streams.iter().any(|stream| stream.supervisor.is_open());
            if !is_open {
                self.suspend.reset();
            }
            tokio::select! {
                biased;
                command = self.updates.next_command() => self.input_to_all(|| command.input()),
                // Cannot fail: the sender is part of `updates`.
                _ = sources.changed() => {
                    let sources = sources.borrow_and_update().clone();
                    self.follow(&sources);
                }
                (at, number, event) = next_event(&mut self.streams) => self.connection_event(at, number, event),
                () = sleep_until(deadline) => {
                    self.look_for_answers();
                    self.input_to_all(|| Input::DeadlineReached);
                    if self.refetches.take_due(Instant::now()) {
                        self.updates.refetch();
                    }
                }
                _ = tick.tick(), if is_open => {
                    if self.suspend.tick(Instant::now(), SystemTime::now()) {
                        self.input_to_all(|| Input::Resumed);
                    }
                }
            }
        }
    }

    /// Follows these streams from now on. If one stream disappears while another appears, the first has moved to the URL of the
    /// other.
    fn follow(&mut self, sources: &[StreamSource]) {
        let opens_at = opens_at(self.opened_at, Instant::now());
        let mut new: Vec<_> =
            sources.iter().filter(|&source| self.streams.iter().all(|it| it.source != *source)).collect();
        for at in (0..self.streams.len()).rev() {
            if sources.contains(&self.streams[at].source) {
                continue;
            }
            if let Some(source) = new.pop() {
                self.streams[at].source = source.clone();
                let shown = self.updates.evaluator.transport().shown(source).into();
                self.opened_at = Some(opens_at);
                self.input(at, Input::Moved(shown, opens_at));
            } else {
                // An event that has not been read yet is lost.
                self.updates.invalidate();
                self.change(|streams| drop(streams.remove(at)));
            }
        }
        for source in new {
            let url = self.updates.evaluator.transport().shown(source).into();
            let service = match source {
                StreamSource::Own => ServiceKind::Flipswitch,
                StreamSource::Advertised(_) => ServiceKind::Ofrep,
            };
            let stream = Stream {
                source: source.clone(),
                supervisor: Supervisor::new(self.options, service, url, self.updates.was_connected()),
                connections: [Numbered::NONE, Numbered::NONE],
                state: StreamState {
                    is_open: false,
                    heard_until: Instant::now(),
                    status: ConnectionStatus::Disconnected,
                    polls: false,
                },
            };
            self.change(|streams| streams.push(stream));
            self.opened_at = Some(opens_at);
            self.input(self.streams.len() - 1, Input::Start(opens_at));
        }
        self.publish();
    }

    fn connection_event(&mut self, at: usize, number: ConnectionNumber, event: ConnectionEvent) {
        let input = match event {
            ConnectionEvent::Opened(open) => {
                self.streams[at].replace(number, Connection::Open(open));
                ConnectionInput::Opened
            }
            ConnectionEvent::Refused(StreamRefused { status, failure }) => {
                self.streams[at].replace(number, Connection::None);
                self.look_for_answers();
                ConnectionInput::Refused(status, failure)
            }
            ConnectionEvent::Bytes(bytes) => {
                self.streams[at].state.heard_until = Instant::now() + self.options.stream_idle_timeout;
                if let Some(until) = open_until(self.states()) {
                    self.updates.heard(until);
                }
                self.input(at, Input::Connection(number, ConnectionInput::Bytes));
                return self.decode(at, number, bytes);
            }
            ConnectionEvent::Ended => ConnectionInput::Ended,
            ConnectionEvent::Broken(error) => ConnectionInput::Broken(error),
        };
        self.input(at, Input::Connection(number, input));
    }

    fn decode(&mut self, at: usize, number: ConnectionNumber, mut bytes: Bytes) {
        // A message may end the connection on which it arrived.
        while let Some(Connection::Open(open)) = self.streams[at].connection(number) {
            let before = open.decoder.last_id().cloned();
            let message = open.decoder.next(&mut bytes);
            // An id that the previous event already had is not an id of this event.
            let id = open.decoder.last_id().filter(|id| before.as_ref() != Some(id)).and_then(|id| id.parse().ok());
            // After an error, the id may be one that exceeds the limit.
            if !matches!(message, Some(Err(_))) && open.last_id.as_ref() != open.decoder.last_id() {
                // Reported only when it changes: two connections may be open, and the other one may have received a later id.
                open.last_id = open.decoder.last_id().cloned();
                let last_id = open.last_id.clone();
                self.input(at, Input::Connection(number, ConnectionInput::LastId(last_id)));
            }
            let input = match message {
                Some(Ok(Message::Event { event, data })) => {
                    self.updates.notifier.event_received();
                    self.event_id = id;
                    ConnectionInput::Event(StreamEvent::parse(&self.streams[at].source, &event, &data))
                }
                Some(Ok(Message::Retry(wait))) => ConnectionInput::Retry(wait),
                Some(Err(error)) => ConnectionInput::Broken(Error::decode(error)),
                None => break,
            };
            self.input(at, Input::Connection(number, input));
        }
    }

    fn look_for_answers(&mut self) {
        let answered_at = self.updates.answered_at();
        self.input_to_all(|| Input::Answered(answered_at));
    }

    fn input_to_all(&mut self, input: impl Fn() -> Input) {
        for at in 0..self.streams.len() {
            self.input(at, input());
        }
    }

    fn input(&mut self, at: usize, input: Input) {
        for action in self.streams[at].supervisor.input(input, Instant::now(), fastrand::f64()) {
            self.act(at, action);
        }
    }

    fn act(&mut self, at: usize, action: Action) {
        let updates = &self.updates;
        let stream = &mut self.streams[at];
        match action {
            Action::Connect { number, last_id } => {
                let connection = connect(updates, &stream.source, last_id);
                stream.connections = [Numbered { number, connection }, Numbered::NONE];
            }
            Action::ConnectBeside { number, last_id } => {
                let connection = connect(updates, &stream.source, last_id);
                let is_free = |slot: &&mut Numbered| matches!(slot.connection, Connection::None);
                if let Some(free) = stream.connections.iter_mut().find(is_free) {
                    *free = Numbered { number, connection };
                }
            }
            Action::Close(number) => stream.replace(number, Connection::None),
            Action::Disconnect => stream.connections = [Numbered::NONE, Numbered::NONE],
            Action::StreamOpened => {
                let heard_until = Instant::now() + self.options.stream_idle_timeout;
                self.change(|streams| {
                    let state = &mut streams[at].state;
                    (state.is_open, state.heard_until) = (true, heard_until);
                });
            }
            Action::StreamClosed => self.change(|streams| streams[at].state.is_open = false),
            Action::Invalidate(Cause::Announced(version)) => updates.change_announced(self.event_id, version),
            Action::Invalidate(Cause::Missed) => updates.invalidate(),
            Action::Notify(notification) => updates.notify(notification),
            Action::Status(status) => {
                stream.state.status = status;
                self.publish();
            }
            Action::Refetch => updates.refetch(),
            Action::RefetchForNewStream => {
                if self.refetches.ask(Instant::now()) {
                    updates.refetch();
                }
            }
            Action::RenewUrl => {
                updates.renew_urls();
                if self.refetches.ask(Instant::now()) {
                    updates.refetch();
                }
            }
            Action::Polling(polls) => {
                stream.state.polls = polls;
                self.publish();
            }
            Action::Unauthorized => updates.notifier.observe(HealthSignal::StreamUnauthorized),
            Action::NoStream => updates.notifier.observe(HealthSignal::StreamFailed),
        }
    }

    fn states(&self) -> impl Iterator<Item = StreamState> {
        self.streams.iter().map(|stream| stream.state)
    }

    /// Changes the streams, and reports when all of them become open, or no longer are.
    fn change(&mut self, change: impl FnOnce(&mut Vec<Stream>)) {
        let before = open_until(self.states());
        change(&mut self.streams);
        match (before, open_until(self.states())) {
            (None, Some(heard_until)) => self.updates.stream_opened(heard_until),
            (Some(_), None) => self.updates.stream_closed(),
            _ => {}
        }
    }

    /// Publishes the status of all streams together, if it has changed.
    fn publish(&mut self) {
        let now = Published {
            status: status(self.states()),
            polls: Some(self.options.polling_fallback && polls(self.states())),
        };
        let before = std::mem::replace(&mut self.published, now);
        if let (true, Some(polls)) = (before.polls != self.published.polls, self.published.polls) {
            // A response that ends the streams replaces the first poll.
            self.updates.set_polling(polls, !self.streams.is_empty());
        }
        if before.status != self.published.status {
            self.updates.status(self.published.status);
        }
    }
}

impl Stream {
    fn connection(&mut self, number: ConnectionNumber) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|slot| slot.number == number).map(|slot| &mut slot.connection)
    }

    fn replace(&mut self, number: ConnectionNumber, by: Connection) {
        if let Some(connection) = self.connection(number) {
            *connection = by;
        }
    }
}

/// Returns the next event of any connection, with the position of its stream.
async fn next_event(streams: &mut [Stream]) -> (usize, ConnectionNumber, ConnectionEvent) {
    type Next<'a> = Pin<Box<dyn Future<Output = (usize, ConnectionNumber, ConnectionEvent)> + Send + 'a>>;
    let mut next: Vec<Next<'_>> = Vec::new();
    for (at, stream) in streams.iter_mut().enumerate() {
        for Numbered { number, connection } in &mut stream.connections {
            if !matches!(connection, Connection::None) {
                next.push(Box::pin(async move { (at, *number, connection.next().await) }));
            }
        }
    }
    // Polled in random order, so that one connection cannot hold up the others.
    fastrand::shuffle(&mut next);
    poll_fn(|context| {
        next.iter_mut().map(|next| next.as_mut().poll(context)).find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
}

fn connect(updates: &Updates, source: &StreamSource, last_id: Option<Arc<str>>) -> Connection {
    let (evaluator, source) = (Arc::clone(&updates.evaluator), source.clone());
    let connecting = updates.runtime.spawn(async move {
        let events = evaluator.transport().events(&source, last_id.as_deref()).await?;
        let decoder = Decoder::new(last_id);
        Ok(Open { events, last_id: decoder.last_id().cloned(), decoder })
    });
    match connecting {
        Ok(task) => Connection::Connecting(AbortOnDropHandle::new(task)),
        // The provider is shut down, and this task is about to be cancelled.
        Err(_) => Connection::None,
    }
}

impl Connection {
    async fn next(&mut self) -> ConnectionEvent {
        match self {
            Self::None => pending().await,
            Self::Connecting(task) => match task.await {
                Ok(Some(Ok(open))) => ConnectionEvent::Opened(Box::new(open)),
                Ok(Some(Err(refused))) => ConnectionEvent::Refused(refused),
                Err(error) if error.is_panic() => {
                    let failure = Error::transport(error).into();
                    ConnectionEvent::Refused(StreamRefused { status: None, failure })
                }
                // Cancelled by the shutdown of the provider, or of an external runtime. The task must not be polled again.
                Ok(None) | Err(_) => {
                    *self = Self::None;
                    pending().await
                }
            },
            Self::Open(open) => match open.events.chunk().await {
                Ok(Some(bytes)) => ConnectionEvent::Bytes(bytes),
                Ok(None) => ConnectionEvent::Ended,
                Err(error) => ConnectionEvent::Broken(error),
            },
        }
    }
}
