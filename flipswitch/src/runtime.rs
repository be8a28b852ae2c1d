//! The home: where everything of a provider runs, and how it ends.
//!
//! All I/O happens on one runtime, whichever runtime the callers are on: a connection that one runtime opened is driven
//! by that runtime alone, and the caller's may be busy, single-threaded, or end tomorrow. Unless one is given, that is
//! a thread of the provider's own. It starts at the first [`Home::spawn`], is woken by what is spawned onto it, and ends
//! with [`Home::stop`].

use std::{future::Future, io, sync::Mutex, thread, time::Duration};

use tokio::{
    runtime::{Builder, Handle},
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::Error;

/// How long tasks may take to notice that they are to end, and blocking calls after them (a name being resolved).
const TASKS_END: Duration = Duration::from_secs(3);
const BLOCKING_END: Duration = Duration::from_secs(1);

/// The runtime of a provider, started at first use.
pub(crate) struct Home {
    given: Option<Handle>,
    state: Mutex<State>,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Becomes true when the provider's own thread is about to end.
    ended: watch::Sender<bool>,
}

enum State {
    Idle,
    Running(Handle),
    Stopped,
}

impl Home {
    pub(crate) fn new(given: Option<Handle>) -> Self {
        Self {
            given,
            state: Mutex::new(State::Idle),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            ended: watch::Sender::new(false),
        }
    }

    /// Runs a future at home and waits for it. The caller may stop waiting; the future goes on.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`] if the home was stopped or a given runtime is gone, [`Error::Transport`] if the future
    /// panicked or no thread could be started.
    pub(crate) async fn run<F>(&self, future: F) -> Result<F::Output, Error>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        match self.spawn(future)?.await {
            Ok(Some(output)) => Ok(output),
            Err(error) if error.is_panic() => Err(Error::transport(error)),
            Ok(None) | Err(_) => Err(Error::ShutDown),
        }
    }

    /// Starts a future at home; it ends early, with `None`, when the home is stopped.
    pub(crate) fn spawn<F>(&self, future: F) -> Result<JoinHandle<Option<F::Output>>, Error>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let handle = self.handle()?;
        let stop = self.stop.clone();
        Ok(self.tasks.spawn_on(async move { stop.run_until_cancelled(future).await }, &handle))
    }

    /// Ends all tasks and the provider's own thread, without waiting for it.
    pub(crate) fn stop(&self) {
        let before = std::mem::replace(&mut *self.lock(), State::Stopped);
        self.tasks.close();
        self.stop.cancel();
        if matches!(before, State::Idle) {
            self.ended.send_replace(true);
        }
    }

    /// Waits until everything has ended; call [`stop`](Self::stop) first.
    pub(crate) async fn stopped(&self) {
        if self.given.is_some() {
            // The given runtime may stand still, and the caller may be on none: only a thread can keep this time.
            until(self.tasks.wait(), TASKS_END + BLOCKING_END).await;
        } else {
            // Cannot fail: the sender lives in `self`.
            let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    fn handle(&self) -> Result<Handle, Error> {
        let mut state = self.lock();
        match &*state {
            State::Running(handle) => Ok(handle.clone()),
            State::Stopped => Err(Error::ShutDown),
            State::Idle => {
                let handle = match &self.given {
                    Some(handle) => handle.clone(),
                    None => self.start_thread().map_err(Error::transport)?,
                };
                *state = State::Running(handle.clone());
                Ok(handle)
            }
        }
    }

    fn start_thread(&self) -> io::Result<Handle> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, tasks, ended) = (self.stop.clone(), self.tasks.clone(), self.ended.clone());
        thread::Builder::new().name("flipswitch".to_owned()).spawn(move || {
            runtime.block_on(async {
                stop.cancelled().await;
                if tokio::time::timeout(TASKS_END, tasks.wait()).await.is_err() {
                    tracing::warn!(target: "flipswitch", "tasks did not end in time and are dropped");
                }
            });
            runtime.shutdown_timeout(BLOCKING_END);
            ended.send_replace(true);
        })?;
        Ok(handle)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing that runs under the lock can leave the state half-changed.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Waits for a future at most so long, wherever it is polled, runtime or none.
async fn until(future: impl Future<Output = ()>, limit: Duration) {
    let (late, is_late) = oneshot::channel();
    // Dropping `on_time` wakes the thread, so that it does not outlive the wait.
    let (on_time, was_on_time) = std::sync::mpsc::channel::<()>();
    let timer = thread::Builder::new().name("flipswitch-stop".to_owned()).spawn(move || {
        if was_on_time.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            // The other side may have just gone: then nobody needs to be told.
            let _ = late.send(());
        }
    });
    if timer.is_err() {
        tracing::warn!(target: "flipswitch", "no thread could be started to bound the wait for shutdown");
    }
    tokio::select! {
        () = future => {}
        _ = is_late => {}
    }
    drop(on_time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_end_when_the_home_stops() {
        let home = Home::new(None);
        let task = home.spawn(std::future::pending::<()>()).unwrap();
        home.stop();
        let runtime = Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            assert!(task.await.unwrap().is_none());
            home.stopped().await;
            assert!(matches!(home.run(async {}).await, Err(Error::ShutDown)));
        });
    }

    #[test]
    fn a_home_that_never_started_stops_at_once() {
        let home = Home::new(None);
        home.stop();
        Builder::new_current_thread().build().unwrap().block_on(home.stopped());
    }

    #[test]
    fn a_given_runtime_that_is_gone_does_not_hang() {
        let gone = Builder::new_current_thread().enable_all().build().unwrap();
        let home = Home::new(Some(gone.handle().clone()));
        drop(gone);
        let caller = Builder::new_current_thread().build().unwrap();
        caller.block_on(async {
            assert!(matches!(home.run(async {}).await, Err(Error::ShutDown)));
            home.stop();
            home.stopped().await;
        });
    }

    #[test]
    fn a_wait_is_bounded_without_any_runtime() {
        let caller = Builder::new_current_thread().build().unwrap();
        caller.block_on(until(std::future::pending(), Duration::from_millis(1)));
        caller.block_on(until(std::future::ready(()), Duration::from_secs(600)));
    }

    #[test]
    fn a_panic_at_home_is_the_callers_error() {
        let home = Home::new(None);
        let caller = Builder::new_current_thread().build().unwrap();
        caller.block_on(async {
            let outcome = home.run(async { panic!("on purpose") }).await;
            assert!(matches!(outcome, Err::<(), _>(Error::Transport(_))));
            assert!(home.run(async {}).await.is_ok());
        });
        home.stop();
        caller.block_on(home.stopped());
    }
}
