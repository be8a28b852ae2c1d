//! The streams of changes: their connections, and the actions that their supervisors decide on.
//!
//! Flipswitch has one stream. An OFREP service advertises any number, and changes arrive only while all of them are open.

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
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use tokio::{sync::Notify, time::MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;

use self::{
    connections::ConnectionNumber,
    decoder::{Decoder, Message},
    event::{Cause, StreamEvent},
    supervisor::{Action, ConnectionInput, Input, StreamKind, StreamOptions, Supervisor},
    suspend::{SuspendDetector, TICK},
};
use crate::{
    cache::epoch::ECHO_WINDOW,
    error::Error,
    events::{events::ConnectionStatus, health::HealthSignal},
    runtime::sleep_until,
    updates::updates::Updates,
    wire::{
        event_streams::ConfigVersion,
        transport::{EventStream, StreamRefused, StreamSource},
    },
};

/// Something that all streams must know.
#[derive(Clone, Copy, Debug)]
pub(super) enum Command {
    Reconnect,
    Refetched,
    Unauthorized,
}

impl Command {
    fn input(self) -> Input {
        match self {
            Self::Reconnect => Input::Reconnect,
            Self::Refetched => Input::Refetched,
            Self::Unauthorized => Input::Unauthorized,
        }
    }
}

/// Commands for the streams. A command that is given several times before it is read counts once.
#[derive(Debug)]
pub(crate) struct StreamCommands {
    pending: AtomicU8,
    notify: Notify,
    /// When a request was last answered with the API key in use, in nanoseconds since `origin`; zero if none was since the
    /// last refusal.
    answered_at: AtomicU64,
    origin: Instant,
}

impl Default for StreamCommands {
    fn default() -> Self {
        let (pending, notify, answered_at) = (AtomicU8::new(0), Notify::new(), AtomicU64::new(0));
        Self { pending, notify, answered_at, origin: Instant::now() }
    }
}

impl StreamCommands {
    const RECONNECT: u8 = 1;
    const REFETCHED: u8 = 2;
    const UNAUTHORIZED: u8 = 4;

    /// Reports that the application asks for a new connection.
    pub(crate) fn reconnect(&self) {
        // A refusal from before says nothing about the API key that is used from now on.
        self.pending.fetch_and(!Self::UNAUTHORIZED, Ordering::AcqRel);
        self.send(Self::RECONNECT);
    }

    /// Reports that a request for the start-up context has succeeded.
    pub(crate) fn refetched(&self) {
        self.send(Self::REFETCHED);
    }

    /// Reports that a request for flags was refused because of the API key.
    pub(crate) fn unauthorized(&self) {
        self.forget_answers();
        self.send(Self::UNAUTHORIZED);
    }

    /// Reports that a request was answered with the API key in use. Wakes nothing: the stream looks when it matters.
    pub(crate) fn answered(&self) {
        let nanos = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.answered_at.store(nanos.max(1), Ordering::Relaxed);
    }

    /// Forgets answers: they do not count for another API key, or after a refusal.
    pub(crate) fn forget_answers(&self) {
        self.answered_at.store(0, Ordering::Relaxed);
    }

    pub(super) fn answered_at(&self) -> Option<Instant> {
        let nanos = self.answered_at.load(Ordering::Relaxed);
        (nanos > 0).then(|| self.origin + Duration::from_nanos(nanos))
    }

    fn send(&self, command: u8) {
        self.pending.fetch_or(command, Ordering::AcqRel);
        self.notify.notify_one();
    }

    pub(super) async fn next(&self) -> Command {
        loop {
            for (bit, command) in [
                (Self::RECONNECT, Command::Reconnect),
                (Self::REFETCHED, Command::Refetched),
                (Self::UNAUTHORIZED, Command::Unauthorized),
            ] {
                if self.pending.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
                    return command;
                }
            }
            self.notify.notified().await;
        }
    }
}

/// Wait before the task is started again after a panic.
const RESTART_WAIT: Duration = Duration::from_secs(1);

/// Reads the streams for the lifetime of the provider.
///
/// The task runs code of the application, the subscriber of its logs, which may panic. Without the task nothing would
/// invalidate flags, so it is started again.
pub(super) async fn run(updates: Arc<Updates>, options: StreamOptions) {
    loop {
        let task = StreamTask {
            published: Combined { status: ConnectionStatus::Disconnected, polls: updates.is_polling() },
            updates: Arc::clone(&updates),
            options,
            streams: Vec::new(),
            suspend: SuspendDetector::default(),
            last_version: None,
        };
        match updates.runtime.spawn(task.run()) {
            Ok(running) => match running.await {
                Err(error) if error.is_panic() => updates.stream_panicked(),
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
    published: Combined,
    last_version: Option<LastVersion>,
}

/// The last version of the configuration that an event named.
struct LastVersion {
    version: ConfigVersion,
    stream: usize,
    at: Instant,
}

/// What all streams are together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Combined {
    status: ConnectionStatus,
    polls: bool,
}

struct Stream {
    source: StreamSource,
    supervisor: Supervisor,
    /// The connection, and the one beside it while one replaces the other.
    connections: [Numbered; 2],
    is_open: bool,
    /// Until when an open stream counts, unless more is received.
    heard_until: Instant,
    status: ConnectionStatus,
    polls: bool,
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
    /// A task of its own, because it runs code of the application (a resolver, a connector) that may panic.
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
            let deadline = self.streams.iter().filter_map(|stream| stream.supervisor.deadline()).min();
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
                }
                _ = tick.tick(), if is_open => {
                    if self.suspend.tick(Instant::now(), SystemTime::now()) {
                        self.input_to_all(|| Input::Resumed);
                    }
                }
            }
        }
    }

    /// Follows these streams from now on. A stream that takes the place of another one is that stream at another URL.
    fn follow(&mut self, sources: &[StreamSource]) {
        let mut new: Vec<_> =
            sources.iter().filter(|&source| self.streams.iter().all(|it| it.source != *source)).collect();
        for at in (0..self.streams.len()).rev() {
            if sources.contains(&self.streams[at].source) {
                continue;
            }
            if let Some(source) = new.pop() {
                self.streams[at].source = source.clone();
                let shown = self.updates.evaluator.transport().shown(source).into();
                self.input(at, Input::Moved(shown));
            } else {
                self.change(|streams| drop(streams.remove(at)));
            }
        }
        for source in new {
            let url = self.updates.evaluator.transport().shown(source).into();
            let kind = match source {
                StreamSource::Own => StreamKind::Heartbeats,
                StreamSource::Advertised(_) => StreamKind::Anything,
            };
            let stream = Stream {
                source: source.clone(),
                supervisor: Supervisor::new(self.options, kind, url, self.updates.was_connected()),
                connections: [Numbered::NONE, Numbered::NONE],
                is_open: false,
                heard_until: Instant::now(),
                status: ConnectionStatus::Disconnected,
                polls: false,
            };
            self.change(|streams| streams.push(stream));
            self.input(self.streams.len() - 1, Input::Start);
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
                self.streams[at].heard_until = Instant::now() + self.options.stream_idle_timeout;
                self.updates.heard(heard_until(&self.streams));
                self.input(at, Input::Connection(number, ConnectionInput::Bytes));
                return self.decode(at, number, bytes);
            }
            ConnectionEvent::Ended => ConnectionInput::Ended,
            ConnectionEvent::Broken(error) => ConnectionInput::Broken(error),
        };
        self.input(at, Input::Connection(number, input));
    }

    fn decode(&mut self, at: usize, number: ConnectionNumber, mut bytes: Bytes) {
        // A message may end the connection that it came on.
        while let Some(Connection::Open(open)) = self.streams[at].connection(number) {
            let message = open.decoder.next(&mut bytes);
            // After an error, the id may be one that exceeds the limit.
            if !matches!(message, Some(Err(_))) && open.last_id.as_ref() != open.decoder.last_id() {
                // Only when it changes: two connections may be open, and the other one may have continued it.
                open.last_id = open.decoder.last_id().cloned();
                let last_id = open.last_id.clone();
                self.input(at, Input::Connection(number, ConnectionInput::LastId(last_id)));
            }
            let input = match message {
                Some(Ok(Message::Event { event, data })) => {
                    self.updates.notifier.event_received();
                    let event = StreamEvent::parse(&self.streams[at].source, &event, &data);
                    // Still an event of the service.
                    ConnectionInput::Event(if self.is_repeated(at, &event) { StreamEvent::Unknown } else { event })
                }
                Some(Ok(Message::Retry(wait))) => ConnectionInput::Retry(wait),
                Some(Err(error)) => ConnectionInput::Broken(Error::decode(error)),
                None => break,
            };
            self.input(at, Input::Connection(number, input));
        }
    }

    /// Returns whether an event repeats on another stream what was announced a moment ago.
    fn is_repeated(&mut self, at: usize, event: &StreamEvent) -> bool {
        let StreamEvent::Reconfigured(_, version) = event else { return false };
        let (stream, now) = (at, Instant::now());
        let is_repeated = |last: &LastVersion| {
            last.stream != stream && last.version == *version && now.duration_since(last.at) < ECHO_WINDOW
        };
        if version.is_known() && self.last_version.as_ref().is_some_and(is_repeated) {
            return true;
        }
        self.last_version = Some(LastVersion { version: version.clone(), stream, at: now });
        false
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
                self.change(|streams| (streams[at].is_open, streams[at].heard_until) = (true, heard_until));
            }
            Action::StreamClosed => self.change(|streams| streams[at].is_open = false),
            Action::Invalidate(Cause::Announced(version)) => updates.change_announced(version),
            Action::Invalidate(Cause::Missed) => updates.invalidate(),
            Action::Notify(notification) => updates.notify(notification),
            Action::Status(status) => {
                stream.status = status;
                self.publish();
            }
            Action::Refetch => updates.refetch(),
            Action::Polling(polls) => {
                stream.polls = polls;
                self.publish();
            }
            Action::Unauthorized => updates.notifier.observe(HealthSignal::StreamUnauthorized),
        }
    }

    /// Changes the streams, and notes if changes arrive from now on, or do not arrive any more.
    fn change(&mut self, change: impl FnOnce(&mut Vec<Stream>)) {
        let are_open = |streams: &[Stream]| !streams.is_empty() && streams.iter().all(|stream| stream.is_open);
        let before = are_open(&self.streams);
        change(&mut self.streams);
        match (before, are_open(&self.streams)) {
            (false, true) => self.updates.stream_opened(heard_until(&self.streams)),
            (true, false) => self.updates.stream_closed(),
            _ => {}
        }
    }

    /// Publishes what all streams are together, if it has changed.
    fn publish(&mut self) {
        let is = |status| move |stream: &Stream| stream.status == status;
        let status = if self.streams.iter().any(is(ConnectionStatus::Error)) {
            ConnectionStatus::Error
        } else if self.streams.iter().any(is(ConnectionStatus::Connecting)) {
            ConnectionStatus::Connecting
        } else if self.streams.is_empty() || self.streams.iter().any(is(ConnectionStatus::Disconnected)) {
            ConnectionStatus::Disconnected
        } else {
            ConnectionStatus::Connected
        };
        let may_poll = self.options.polling_fallback;
        let polls = may_poll && (self.streams.is_empty() || self.streams.iter().any(|stream| stream.polls));
        let before = std::mem::replace(&mut self.published, Combined { status, polls });
        if before.polls != polls {
            self.updates.set_polling(polls);
        }
        if before.status != status {
            self.updates.status(status);
        }
    }
}

/// Returns until when all streams count, unless more is received.
fn heard_until(streams: &[Stream]) -> Instant {
    let open = streams.iter().filter(|stream| stream.is_open);
    open.map(|stream| stream.heard_until).min().unwrap_or_else(Instant::now)
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
    // In a random order, so that one connection cannot hold up the others.
    fastrand::shuffle(&mut next);
    poll_fn(|context| {
        let ready = next.iter_mut().map(|next| next.as_mut().poll(context));
        ready.into_iter().find(Poll::is_ready).unwrap_or(Poll::Pending)
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
