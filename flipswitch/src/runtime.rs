//! The home: where everything of a provider runs, and how it ends.
//!
//! All I/O happens on one runtime, whichever runtime the callers are on: a connection that one runtime opened is driven
//! by that runtime alone, and the caller's may be busy, single-threaded, or end tomorrow. Unless one is given, that is
//! a thread of the provider's own. It starts at the first [`Home::spawn`], is woken by what is spawned onto it, and ends
//! with [`Home::stop`].

use std::{cell::Cell, future::Future, io, thread, time::Duration};

use parking_lot::{Mutex, MutexGuard};

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

/// How long shutdown may take as a whole, whatever stands still.
const SHUTDOWN: Duration = Duration::from_millis(4_800);

thread_local! {
    /// Whether this thread runs what may block, for some home.
    static CALLING_BACK: Cell<bool> = const { Cell::new(false) };
}

/// The runtime of a provider, started at first use.
pub(crate) struct Home {
    given: Option<Handle>,
    state: Mutex<State>,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// What may block.
    callbacks: TaskTracker,
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
            callbacks: TaskTracker::new(),
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

    /// Runs what may block, at home, on a thread where it may. Does nothing where nothing can be started any more.
    pub(crate) fn spawn_blocking(&self, run: impl FnOnce() + Send + 'static) {
        let Ok(handle) = self.handle() else { return };
        let run = move || {
            CALLING_BACK.set(true);
            run();
            CALLING_BACK.set(false);
        };
        drop(self.callbacks.spawn_blocking_on(run, &handle));
    }

    /// Ends all tasks and the provider's own thread, without waiting for it.
    pub(crate) fn stop(&self) {
        let before = std::mem::replace(&mut *self.lock(), State::Stopped);
        self.tasks.close();
        self.callbacks.close();
        self.stop.cancel();
        if matches!(before, State::Idle) {
            self.ended.send_replace(true);
        }
    }

    /// Waits until everything has ended; call [`stop`](Self::stop) first.
    pub(crate) async fn stopped(&self) {
        let ended = async {
            if self.given.is_some() {
                self.tasks.wait().await;
                // Who ends the provider from a callback cannot wait for that.
                if !CALLING_BACK.get() {
                    self.callbacks.wait().await;
                }
            } else {
                // Cannot fail: the sender lives in `self`.
                let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
            }
        };
        if until(ended, SHUTDOWN).await.is_none() {
            tracing::warn!(target: "flipswitch", "the provider's runtime does not end: something in it blocks");
        }
    }

    /// Resolves when the home is stopped; needs no runtime.
    pub(crate) async fn stopping(&self) {
        self.stop.cancelled().await;
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
        let (stop, tasks, ended) = (self.stop.clone(), self.tasks.clone(), self.ended.clone());
        let (started, is_started) = std::sync::mpsc::sync_channel(1);
        thread::Builder::new().name("flipswitch".to_owned()).spawn(move || {
            // Made on its thread: a runtime that had to be dropped on the caller's, which may be async, would panic.
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(error))),
            };
            if started.send(Ok(runtime.handle().clone())).is_err() {
                return;
            }
            runtime.block_on(async {
                stop.cancelled().await;
                if tokio::time::timeout(TASKS_END, tasks.wait()).await.is_err() {
                    tracing::warn!(target: "flipswitch", "tasks did not end in time and are dropped");
                }
            });
            runtime.shutdown_timeout(BLOCKING_END);
            ended.send_replace(true);
        })?;
        is_started.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended at once")))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under the lock can leave the state half-changed.
        self.state.lock()
    }
}

/// Waits for a future at most so long, wherever it is polled, runtime or none, busy or not: a thread keeps the time.
pub(crate) async fn until<T>(future: impl Future<Output = T>, limit: Duration) -> Option<T> {
    let (late, is_late) = oneshot::channel();
    // Dropping `on_time` wakes the thread, so that it does not outlive the wait.
    let (on_time, was_on_time) = std::sync::mpsc::channel::<()>();
    let timer = thread::Builder::new().name("flipswitch-timer".to_owned()).spawn(move || {
        if was_on_time.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            // The other side may have just gone: then nobody needs to be told.
            let _ = late.send(());
        }
    });
    if let Err(error) = timer {
        tracing::warn!(target: "flipswitch", %error, "no thread could be started to keep the time; not waiting");
    }
    let output = tokio::select! {
        biased;
        output = future => Some(output),
        _ = is_late => None,
    };
    drop(on_time);
    output
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
    fn to_have_stopped_is_to_have_ended() {
        struct Ends(std::sync::Arc<std::sync::atomic::AtomicBool>);
        impl Drop for Ends {
            fn drop(&mut self) {
                // Long enough for a wait that does not wait to be over first.
                thread::sleep(Duration::from_millis(50));
                self.0.store(true, std::sync::atomic::Ordering::Release);
            }
        }
        let given = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        for home in [Home::new(None), Home::new(Some(given.handle().clone()))] {
            let ended = std::sync::Arc::default();
            let ends = Ends(std::sync::Arc::clone(&ended));
            let begun = home.run(async {});
            let caller = Builder::new_current_thread().build().unwrap();
            caller.block_on(begun).unwrap();
            drop(home.spawn(async move {
                let _ends = ends;
                std::future::pending::<()>().await;
            }));
            home.stop();
            caller.block_on(home.stopped());
            assert!(ended.load(std::sync::atomic::Ordering::Acquire));
        }
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
        assert_eq!(caller.block_on(until(std::future::pending::<()>(), Duration::from_millis(1))), None);
        assert_eq!(caller.block_on(until(std::future::ready(7), Duration::from_secs(600))), Some(7));
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
