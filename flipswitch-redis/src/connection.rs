//! A connection that is checked, and replaced when it is lost.
//!
//! The connection manager of `redis` is not used, for three reasons. It gives up for good after an error other than an I/O error,
//! such as too many clients or a wrong password. It keeps a connection to a server that became a replica. It does not notice a
//! silent server, because callers drop their futures before its time limit.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use flipswitch::async_trait;
use parking_lot::Mutex;
use redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value, aio::ConnectionLike};
use tokio::{
    runtime::Handle,
    select,
    sync::{Notify, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    error::CallError,
    server::{Server, TIMEOUT},
};

/// How long connecting may take. Connecting to a cluster whose nodes do not respond takes long, because `redis` waits for each
/// step in turn, such as for the listed nodes and then for the nodes of the slot map.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection is used before it is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The limits of the pause before the first attempt to connect again, and before any attempt.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(5)];
/// How long a connection must last to count as a success.
const STABLE: Duration = Duration::from_secs(1);

/// A connection that several tasks can use at the same time.
#[async_trait]
pub(crate) trait Connection: Send + Sync {
    async fn send(&self, command: &Cmd) -> RedisResult<Value>;
}

#[async_trait]
impl<C: ConnectionLike + Clone + Send + Sync + 'static> Connection for C {
    async fn send(&self, command: &Cmd) -> RedisResult<Value> {
        command.query_async(&mut self.clone()).await
    }
}

#[derive(Clone)]
enum State {
    /// Callers wait for the outcome of the attempt.
    Connecting,
    Connected(Arc<dyn Connection>),
    /// The reason why the last attempt failed. Callers get it as an error while further attempts are made.
    Down(Arc<str>),
}

struct Inner {
    server: Server,
    state: watch::Sender<State>,
    /// Wakes the task that checks the connection.
    suspected: Notify,
    /// The first key that was used, or a key whose command received no response. In a cluster, the node with this key is checked.
    suspect: Mutex<String>,
}

/// A connection to a server that a task keeps open. The first command starts the task, on the tokio runtime of its caller. A
/// later command starts it again if that runtime has ended.
pub(crate) struct Supervised {
    inner: Arc<Inner>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Supervised {
    pub(crate) fn new(server: Server) -> Self {
        let inner = Inner {
            server,
            state: watch::Sender::new(State::Connecting),
            suspected: Notify::new(),
            suspect: Mutex::default(),
        };
        Self { inner: Arc::new(inner), task: Mutex::new(None) }
    }

    /// Starts the task unless it is running.
    fn start(&self, key: &str) -> Result<(), CallError> {
        let mut task = self.task.lock();
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            let runtime = Handle::try_current().map_err(|_| CallError::NoRuntime)?;
            self.inner.state.send_replace(State::Connecting);
            key.clone_into(&mut self.inner.suspect.lock());
            *task = Some(runtime.spawn(supervise(self.inner.clone())));
        }
        Ok(())
    }

    /// Sends a command for a key. If the future is dropped, the connection is checked, and nothing else happens.
    pub(crate) async fn send(&self, command: &Cmd, key: &str) -> Result<Value, CallError> {
        self.start(key)?;
        let connection = self.connection().await?;
        let mut pending = Pending { inner: &self.inner, key, answered: false };
        let result = connection.send(command).await;
        match &result {
            Err(error) if is_lost(error) => {
                pending.answered = true;
                self.inner.lose(&connection);
            }
            // The time limit was exceeded.
            Err(error) if error.is_io_error() => {}
            _ => pending.answered = true,
        }
        Ok(result?)
    }

    async fn connection(&self) -> Result<Arc<dyn Connection>, CallError> {
        let mut states = self.inner.state.subscribe();
        let state = states.wait_for(|state| !matches!(state, State::Connecting)).await;
        match state.as_deref() {
            Ok(State::Connected(connection)) => Ok(connection.clone()),
            Ok(State::Down(reason)) => Err(CallError::Down(reason.clone())),
            Ok(State::Connecting) | Err(_) => Err(CallError::Down("not connected".into())),
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut() {
            task.abort();
        }
    }
}

/// A command that has received no response yet.
struct Pending<'a> {
    inner: &'a Inner,
    key: &'a str,
    answered: bool,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.key.clone_into(&mut self.inner.suspect.lock());
            self.inner.suspected.notify_one();
        }
    }
}

impl Inner {
    /// Ends the use of a connection, unless another connection has replaced it.
    fn lose(&self, connection: &Arc<dyn Connection>) {
        self.state.send_if_modified(|state| {
            let is_current = is_connected(state, connection);
            if is_current {
                *state = State::Connecting;
            }
            is_current
        });
    }

    /// Returns the next state once a connection is lost or does not respond. Callers wait for a new connection only in the first
    /// case.
    async fn until_lost(&self, connection: &Arc<dyn Connection>) -> State {
        let silent = || State::Down("no response".into());
        let checks = async {
            loop {
                // The connection is checked even if nothing suggests that it is lost, because an idle connection can end
                // unnoticed.
                let _ = timeout(CHECK_INTERVAL, self.suspected.notified()).await;
                let check = redis::cmd("EXISTS").arg(self.suspect.lock().as_str()).to_owned();
                match timeout(TIMEOUT, connection.send(&check)).await {
                    Ok(Err(error)) if is_lost(&error) => break State::Connecting,
                    Err(_) => break silent(),
                    Ok(Err(error)) if error.is_io_error() => break silent(),
                    Ok(_) => {}
                }
            }
        };
        let mut states = self.state.subscribe();
        select! {
            lost = checks => lost,
            () = async { drop(states.wait_for(|state| !is_connected(state, connection)).await) } => State::Connecting,
        }
    }
}

fn is_connected(state: &State, connection: &Arc<dyn Connection>) -> bool {
    matches!(state, State::Connected(current) if Arc::ptr_eq(current, connection))
}

/// Returns whether an error ends the connection. This includes the error of a server that became a replica, because a new
/// connection looks up the name of the server again.
fn is_lost(error: &RedisError) -> bool {
    error.is_unrecoverable_error()
        || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
        || error.detail().is_some_and(|detail| detail.contains("-READONLY"))
}

async fn supervise(inner: Arc<Inner>) {
    let mut failures = 0;
    loop {
        let next = match timeout(CONNECT_TIMEOUT, inner.server.connect()).await {
            Ok(Ok(connection)) => {
                let opened = Instant::now();
                inner.state.send_replace(State::Connected(connection.clone()));
                let next = inner.until_lost(&connection).await;
                if opened.elapsed() >= STABLE {
                    failures = 0;
                    next
                } else {
                    State::Down("the connection was lost".into())
                }
            }
            Ok(Err(error)) => State::Down(error.to_string().into()),
            Err(_) => State::Down("connecting took too long".into()),
        };
        inner.state.send_replace(next);
        sleep(pause(failures)).await;
        failures += 1;
    }
}

/// Returns the pause after a number of failures. It is random, so that the instances of a fleet do not all connect at the same
/// time.
fn pause(failures: u32) -> Duration {
    let longest = PAUSES[0].saturating_mul(2_u32.saturating_pow(failures)).min(PAUSES[1]);
    longest.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_random_and_grow_up_to_five_seconds() {
        for (failures, longest) in [(0, 50), (1, 100), (6, 3200), (7, 5000), (31, 5000), (u32::MAX, 5000)] {
            let pauses: Vec<_> = (0..100).map(|_| pause(failures).as_millis()).collect();
            assert!(pauses.iter().all(|pause| *pause <= longest), "{failures}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause < longest / 2), "{failures}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause > longest / 2), "{failures}: {pauses:?}");
        }
    }
}
