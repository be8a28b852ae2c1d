//! The stream of changes: its connection, and the actions that the supervisor decides on.

#[cfg(test)]
mod conformance;
mod connections;
mod decoder;
pub(crate) mod event;
pub(crate) mod supervisor;
mod suspend;

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use tokio::{sync::Notify, time::MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;

use self::{
    connections::ConnectionNumber,
    decoder::{Decoder, Message},
    event::{Cause, StreamEvent},
    supervisor::{Action, ConnectionInput, Input, StreamOptions, Supervisor},
    suspend::{SuspendDetector, TICK},
};
use crate::{
    error::Error,
    events::health::HealthSignal,
    runtime::sleep_until,
    updates::updates::Updates,
    wire::transport::{EventStream, StreamRefused},
};

/// Commands for the stream. A command that is given several times before it is read counts once.
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

    pub(super) async fn next(&self) -> Input {
        loop {
            for (bit, input) in [
                (Self::RECONNECT, Input::Reconnect),
                (Self::REFETCHED, Input::Refetched),
                (Self::UNAUTHORIZED, Input::Unauthorized),
            ] {
                if self.pending.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
                    return input;
                }
            }
            self.notify.notified().await;
        }
    }
}

/// Wait before the task is started again after a panic.
const RESTART_WAIT: Duration = Duration::from_secs(1);

/// Reads the stream for the lifetime of the provider.
///
/// The task runs code of the application, the subscriber of its logs, which may panic. Without the task nothing would
/// invalidate flags, so it is started again.
pub(super) async fn run(updates: Arc<Updates>, options: StreamOptions) {
    loop {
        let url = updates.evaluator.transport().events_url().as_str().into();
        let task = StreamTask {
            updates: Arc::clone(&updates),
            supervisor: Supervisor::new(options, url, updates.was_connected()),
            connections: [Numbered::NONE, Numbered::NONE],
            suspend: SuspendDetector::default(),
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

/// Carries out what the supervisor decides.
struct StreamTask {
    updates: Arc<Updates>,
    supervisor: Supervisor,
    /// The connection, and the one beside it while one replaces the other.
    connections: [Numbered; 2],
    suspend: SuspendDetector,
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
        self.input(Input::Start);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadline = self.supervisor.deadline();
            let is_open = self.supervisor.is_open();
            if !is_open {
                self.suspend.reset();
            }
            tokio::select! {
                biased;
                command = self.updates.next_command() => self.input(command),
                (number, event) = next_event(&mut self.connections) => self.connection_event(number, event),
                () = sleep_until(deadline) => {
                    self.look_for_answers();
                    self.input(Input::DeadlineReached);
                }
                _ = tick.tick(), if is_open => {
                    if self.suspend.tick(Instant::now(), SystemTime::now()) {
                        self.input(Input::Resumed);
                    }
                }
            }
        }
    }

    fn connection_event(&mut self, number: ConnectionNumber, event: ConnectionEvent) {
        let input = match event {
            ConnectionEvent::Opened(open) => {
                self.replace(number, Connection::Open(open));
                ConnectionInput::Opened
            }
            ConnectionEvent::Refused(StreamRefused { status, failure }) => {
                self.replace(number, Connection::None);
                self.look_for_answers();
                ConnectionInput::Refused(status, failure)
            }
            ConnectionEvent::Bytes(bytes) => {
                self.updates.heard();
                self.input(Input::Connection(number, ConnectionInput::Bytes));
                return self.decode(number, bytes);
            }
            ConnectionEvent::Ended => ConnectionInput::Ended,
            ConnectionEvent::Broken(error) => ConnectionInput::Broken(error),
        };
        self.input(Input::Connection(number, input));
    }

    fn decode(&mut self, number: ConnectionNumber, mut bytes: Bytes) {
        // A message may end the connection that it came on.
        while let Some(Connection::Open(open)) = self.connection(number) {
            let message = open.decoder.next(&mut bytes);
            // After an error, the id may be one that exceeds the limit.
            if !matches!(message, Some(Err(_))) && open.last_id.as_ref() != open.decoder.last_id() {
                // Only when it changes: two connections may be open, and the other one may have continued it.
                open.last_id = open.decoder.last_id().cloned();
                let last_id = open.last_id.clone();
                self.input(Input::Connection(number, ConnectionInput::LastId(last_id)));
            }
            let input = match message {
                Some(Ok(Message::Event { event, data })) => {
                    self.updates.notifier.event_received();
                    ConnectionInput::Event(StreamEvent::parse(&event, &data))
                }
                Some(Ok(Message::Retry(wait))) => ConnectionInput::Retry(wait),
                Some(Err(error)) => ConnectionInput::Broken(Error::decode(error)),
                None => break,
            };
            self.input(Input::Connection(number, input));
        }
    }

    fn look_for_answers(&mut self) {
        let answered_at = self.updates.answered_at();
        self.input(Input::Answered(answered_at));
    }

    fn input(&mut self, input: Input) {
        for action in self.supervisor.input(input, Instant::now(), fastrand::f64()) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        let updates = &self.updates;
        match action {
            Action::Connect { number, last_id } => {
                let connection = connect(updates, last_id);
                self.connections = [Numbered { number, connection }, Numbered::NONE];
            }
            Action::ConnectBeside { number, last_id } => {
                let connection = connect(updates, last_id);
                let is_free = |slot: &&mut Numbered| matches!(slot.connection, Connection::None);
                if let Some(free) = self.connections.iter_mut().find(is_free) {
                    *free = Numbered { number, connection };
                }
            }
            Action::Close(number) => self.replace(number, Connection::None),
            Action::Disconnect => self.connections = [Numbered::NONE, Numbered::NONE],
            Action::StreamOpened => updates.stream_opened(),
            Action::StreamClosed => updates.stream_closed(),
            Action::Invalidate(Cause::Announced) => updates.change_announced(),
            Action::Invalidate(Cause::Missed) => updates.invalidate(),
            Action::Notify(notification) => updates.notify(notification),
            Action::Status(status) => updates.status(status),
            Action::Refetch => updates.refetch(),
            Action::Polling(is_active) => updates.set_polling(is_active),
            Action::Unauthorized => updates.notifier.observe(HealthSignal::StreamUnauthorized),
        }
    }

    fn connection(&mut self, number: ConnectionNumber) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|slot| slot.number == number).map(|slot| &mut slot.connection)
    }

    fn replace(&mut self, number: ConnectionNumber, by: Connection) {
        if let Some(connection) = self.connection(number) {
            *connection = by;
        }
    }
}

/// Returns the next event of any connection.
async fn next_event([first, second]: &mut [Numbered; 2]) -> (ConnectionNumber, ConnectionEvent) {
    // In a random order, so that one connection cannot hold up the other.
    tokio::select! {
        event = first.connection.next() => (first.number, event),
        event = second.connection.next() => (second.number, event),
    }
}

fn connect(updates: &Updates, last_id: Option<Arc<str>>) -> Connection {
    let evaluator = Arc::clone(&updates.evaluator);
    let connecting = updates.runtime.spawn(async move {
        let events = evaluator.transport().events(last_id.as_deref()).await?;
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
