//! Commands for the streams of changes.

use std::{
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::supervisor::Input;

/// A command for all streams.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Command {
    Reconnect,
    Refetched,
    Unauthorized,
}

impl Command {
    pub(super) fn input(self) -> Input {
        match self {
            Self::Reconnect => Input::Reconnect,
            Self::Refetched => Input::Refetched,
            Self::Unauthorized => Input::Unauthorized,
        }
    }
}

/// Commands for the streams. A command that is sent several times before it is read has the same effect as one command.
#[derive(Debug)]
pub(crate) struct StreamCommands {
    pending: AtomicU8,
    notify: Notify,
    /// When the service last responded to a request with the API key in use, in nanoseconds since `origin`. Zero if it has
    /// responded to none since the last refusal.
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

    /// Reports that the application requests a new connection.
    pub(crate) fn reconnect(&self) {
        // An earlier refusal says nothing about the API key that is used from now on.
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

    /// Reports that the service responded to a request with the API key in use. Does not wake the stream, which reads this when
    /// needed.
    pub(crate) fn answered(&self) {
        let nanos = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.answered_at.store(nanos.max(1), Ordering::Relaxed);
    }

    /// Discards responses, because they say nothing about another API key, or about the key after a refusal.
    pub(crate) fn forget_answers(&self) {
        self.answered_at.store(0, Ordering::Relaxed);
    }

    pub(crate) fn answered_at(&self) -> Option<Instant> {
        let nanos = self.answered_at.load(Ordering::Relaxed);
        (nanos > 0).then(|| self.origin + Duration::from_nanos(nanos))
    }

    fn send(&self, command: u8) {
        self.pending.fetch_or(command, Ordering::AcqRel);
        self.notify.notify_one();
    }

    pub(crate) async fn next(&self) -> Command {
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
