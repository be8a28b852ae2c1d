//! The stream of changes: its connection, and the actions that the supervisor decides on.

#[cfg(test)]
mod conformance;
mod decoder;
pub(crate) mod event;
pub(crate) mod supervisor;

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use self::{
    decoder::{Decoder, Message},
    event::{Cause, StreamEvent},
    supervisor::{Action, Input, StreamOptions, Supervisor},
};
use crate::{
    error::Error,
    events::health::HealthSignal,
    runtime::sleep_until,
    updates::updates::Updates,
    wire::transport::{EventStream, StreamRefused},
};

/// Commands for the stream. A command that is given several times before it is read counts once.
#[derive(Debug, Default)]
pub(crate) struct StreamCommands {
    pending: AtomicU8,
    notify: Notify,
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
        self.send(Self::UNAUTHORIZED);
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
        let (supervisor, connection) = (Supervisor::new(options, url, updates.was_connected()), Connection::None);
        let task = StreamTask { updates: Arc::clone(&updates), supervisor, connection };
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
    connection: Connection,
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
        loop {
            let deadline = self.supervisor.deadline();
            tokio::select! {
                biased;
                command = self.updates.next_command() => self.input(command),
                event = self.connection.next() => self.connection_event(event),
                () = sleep_until(deadline) => self.input(Input::DeadlineReached),
            }
        }
    }

    fn connection_event(&mut self, event: ConnectionEvent) {
        match event {
            ConnectionEvent::Opened(open) => {
                self.connection = Connection::Open(open);
                self.input(Input::Opened);
            }
            ConnectionEvent::Refused(StreamRefused { status, failure }) => {
                self.connection = Connection::None;
                self.input(Input::Refused(status, failure));
            }
            ConnectionEvent::Bytes(bytes) => {
                self.updates.heard();
                self.input(Input::Bytes);
                self.decode(bytes);
            }
            ConnectionEvent::Ended => self.input(Input::Ended),
            ConnectionEvent::Broken(error) => self.input(Input::Broken(error)),
        }
    }

    fn decode(&mut self, mut bytes: Bytes) {
        // A message may end the connection that it came on.
        while let Connection::Open(open) = &mut self.connection {
            let message = open.decoder.next(&mut bytes);
            // After an error, the id may be one that exceeds the limit.
            if !matches!(message, Some(Err(_))) {
                let last_id = open.decoder.last_id().cloned();
                self.input(Input::LastId(last_id));
            }
            match message {
                Some(Ok(Message::Event { event, data })) => {
                    self.updates.notifier.event_received();
                    self.input(Input::Event(StreamEvent::parse(&event, &data)));
                }
                Some(Ok(Message::Retry(wait))) => self.input(Input::Retry(wait)),
                Some(Err(error)) => self.input(Input::Broken(Error::decode(error))),
                None => break,
            }
        }
    }

    fn input(&mut self, input: Input) {
        for action in self.supervisor.input(input, Instant::now(), fastrand::f64()) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        let updates = &self.updates;
        match action {
            Action::Connect { last_id } => self.connection = connect(updates, last_id),
            Action::Disconnect => self.connection = Connection::None,
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
}

fn connect(updates: &Updates, last_id: Option<Arc<str>>) -> Connection {
    let evaluator = Arc::clone(&updates.evaluator);
    let connecting = updates.runtime.spawn(async move {
        let events = evaluator.transport().events(last_id.as_deref()).await?;
        Ok(Open { events, decoder: Decoder::new(last_id) })
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
