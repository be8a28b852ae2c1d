//! The stream of changes: the connection, and what its supervisor decides.

#[cfg(test)]
mod conformance;
mod event;
mod reader;
mod supervisor;

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard};

use tokio::sync::Notify;

pub(crate) use self::supervisor::Options;
use self::{
    event::Event,
    reader::{Message, Reader},
    supervisor::{Action, Input, Supervisor},
};
use crate::{
    Error,
    evaluator::evaluator::Service,
    events::health::Sign,
    wire::transport::{Events, Refused},
};

/// What others have to say to the supervisor. However often it is said before it is heard, it is heard once.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    said: AtomicU8,
    notify: Notify,
}

impl Commands {
    const RECONNECT: u8 = 1;
    const REFETCHED: u8 = 2;
    const UNAUTHORIZED: u8 = 4;

    /// The application wants a new connection.
    pub(crate) fn reconnect(&self) {
        self.say(Self::RECONNECT);
    }

    /// The start-up context was asked for again, and answered.
    pub(crate) fn refetched(&self) {
        self.say(Self::REFETCHED);
    }

    /// A request for flags was refused because of the API key.
    pub(crate) fn unauthorized(&self) {
        self.say(Self::UNAUTHORIZED);
    }

    fn say(&self, what: u8) {
        self.said.fetch_or(what, Ordering::AcqRel);
        self.notify.notify_one();
    }

    async fn next(&self) -> Input {
        loop {
            for (bit, input) in [
                (Self::RECONNECT, Input::Reconnect),
                (Self::REFETCHED, Input::Refetched),
                (Self::UNAUTHORIZED, Input::Unauthorized),
            ] {
                if self.said.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
                    return input;
                }
            }
            self.notify.notified().await;
        }
    }
}

/// Follows the stream for as long as the provider lives, also if what does so panics.
pub(crate) async fn follow(service: Arc<Service>, options: Options) {
    let supervisor = Arc::new(Mutex::new(Supervisor::new(options)));
    let mut input = Input::Start;
    loop {
        let follower =
            Follower { service: Arc::clone(&service), supervisor: Arc::clone(&supervisor), link: Link::None };
        let following = service.home().spawn(follower.run(input));
        match following {
            Ok(following) => match following.await {
                Err(error) if error.is_panic() => input = Input::Panicked,
                _ => break,
            },
            Err(_) => break,
        }
    }
}

/// Carries out what the supervisor decides.
struct Follower {
    service: Arc<Service>,
    supervisor: Arc<Mutex<Supervisor>>,
    link: Link,
}

/// The connection.
enum Link {
    None,
    Connecting(Pin<Box<dyn Future<Output = Result<Connection, Refused>> + Send>>),
    Open(Box<Connection>),
}

struct Connection {
    events: Events,
    reader: Reader,
}

impl Follower {
    async fn run(mut self, first: Input) {
        self.input(first);
        loop {
            let deadline = self.supervisor().deadline();
            tokio::select! {
                biased;
                command = next_command(&self.service) => self.input(command),
                said = self.link.next() => self.said(said),
                () = sleep_until(deadline) => self.input(Input::Timer),
            }
        }
    }

    /// Takes what the connection has to say.
    fn said(&mut self, said: Said) {
        match said {
            Said::Opened(connection) => {
                self.link = Link::Open(connection);
                self.input(Input::Opened);
            }
            Said::Refused(Refused { status, failure }) => {
                self.link = Link::None;
                self.input(Input::Refused(status, failure));
            }
            Said::Bytes(bytes) => {
                self.input(Input::Bytes);
                self.read(bytes);
            }
            Said::Ended => self.input(Input::Ended),
            Said::Broken(error) => self.input(Input::Broken(error)),
        }
    }

    fn read(&mut self, mut bytes: bytes::Bytes) {
        // An event may end the connection that it came by.
        while let Link::Open(connection) = &mut self.link {
            let message = connection.reader.next(&mut bytes);
            // An id that is too long is none to go on after.
            if !matches!(message, Some(Err(_))) {
                let last_id = connection.reader.last_id().cloned();
                self.input(Input::LastId(last_id));
            }
            match message {
                Some(Ok(Message::Event { event, data })) => {
                    self.service.heard_an_event();
                    self.input(Input::Event(Event::read(&event, &data)));
                }
                Some(Ok(Message::Retry(wait))) => self.input(Input::Retry(wait)),
                Some(Err(error)) => self.input(Input::Broken(Error::decode(error))),
                None => break,
            }
        }
    }

    fn input(&mut self, input: Input) {
        let actions = self.supervisor().input(input, Instant::now(), fastrand::f64());
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        let service = &self.service;
        match action {
            Action::Connect { last_id } => {
                let service = Arc::clone(service);
                self.link = Link::Connecting(Box::pin(async move {
                    let events = service.transport().events(last_id.as_deref()).await?;
                    Ok(Connection { events, reader: Reader::new(last_id) })
                }));
            }
            Action::Disconnect => self.link = Link::None,
            Action::Open => service.stream_opened(),
            Action::Away => service.stream_away(),
            Action::Raise => service.epoch().invalidate_all(),
            Action::Changed(change) => service.changed(change),
            Action::KeyRotated { valid_until } => service.key_rotated(valid_until),
            Action::Status(status) => service.show(status),
            Action::Refetch => service.refresh().soon(),
            Action::Polling(on) => {
                service.refresh().poll(on);
                service.sign(Sign::Polling(on));
            }
            Action::KeyRefused => service.sign(Sign::KeyRefused),
        }
    }

    fn supervisor(&self) -> MutexGuard<'_, Supervisor> {
        self.supervisor.lock()
    }
}

/// What a connection has to say.
enum Said {
    Opened(Box<Connection>),
    Refused(Refused),
    Bytes(bytes::Bytes),
    Ended,
    Broken(Error),
}

impl Link {
    async fn next(&mut self) -> Said {
        match self {
            Self::None => pending().await,
            Self::Connecting(connecting) => match connecting.await {
                Ok(connection) => Said::Opened(Box::new(connection)),
                Err(refused) => Said::Refused(refused),
            },
            Self::Open(connection) => match connection.events.chunk().await {
                Ok(Some(bytes)) => Said::Bytes(bytes),
                Ok(None) => Said::Ended,
                Err(error) => Said::Broken(error),
            },
        }
    }
}

async fn next_command(service: &Service) -> Input {
    service.commands().next().await
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => pending().await,
    }
}
