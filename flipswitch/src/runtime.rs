//! The runtime of a provider, on which all its tasks run, and how it stops.
//!
//! All I/O happens on one runtime, regardless of the caller's runtime. A pooled connection is driven by the runtime that opened
//! it, and a caller's runtime may be busy, single-threaded, or about to end. Unless the application passes a runtime, the
//! provider runs its own on a thread. This thread starts at the first [`ProviderRuntime::spawn`], and ends with
//! [`ProviderRuntime::stop`].

use std::{
    cell::Cell,
    future::Future,
    io, thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    runtime::{Builder, Handle},
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use tracing::{Instrument, Span};

use crate::error::Error;

/// How long tasks may take to end once they are cancelled.
const TASKS_TIMEOUT: Duration = Duration::from_secs(3);

/// How long blocking calls, such as name resolution, may take to end after the tasks.
const BLOCKING_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the whole shutdown may take.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(4_800);

thread_local! {
    /// Whether this thread runs a callback of the application, for any provider.
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// The runtime of a provider, started at first use.
pub(crate) struct ProviderRuntime {
    /// The application's runtime, if it passed one.
    external: Option<Handle>,
    /// The name of the provider, which appears in its log lines.
    name: Option<String>,
    state: Mutex<State>,
    cancellation: CancellationToken,
    tasks: TaskTracker,
    /// Callbacks, which may block.
    callbacks: TaskTracker,
    /// Becomes true when the provider's own thread is about to end.
    ended: watch::Sender<bool>,
}

enum State {
    Idle,
    Running(Handle),
    Stopped,
}

impl ProviderRuntime {
    pub(crate) fn new(external: Option<Handle>, name: Option<String>) -> Self {
        Self {
            external,
            name,
            state: Mutex::new(State::Idle),
            cancellation: CancellationToken::new(),
            tasks: TaskTracker::new(),
            callbacks: TaskTracker::new(),
            ended: watch::Sender::new(false),
        }
    }

    /// Runs a future on the runtime, and waits for its output. Dropping the wait does not cancel the future.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`] if the runtime was stopped or an external one is gone, [`Error::Transport`] if the future
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

    /// Spawns a future. Its output is `None` if the runtime is stopped before the future completes.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`] if the runtime was stopped, [`Error::Transport`] if no thread could be started.
    pub(crate) fn spawn<F>(&self, future: F) -> Result<JoinHandle<Option<F::Output>>, Error>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let handle = self.handle()?;
        let cancellation = self.cancellation.clone();
        let future = async move { cancellation.run_until_cancelled(future).await }.instrument(self.task_span());
        Ok(self.tasks.spawn_on(future, &handle))
    }

    /// Spawns a short-running future on the current runtime, even while tasks are being dropped because the provider's runtime is
    /// stopping. Stopping does not cancel it.
    pub(crate) fn spawn_last(&self, future: impl Future<Output = ()> + Send + 'static) {
        if let Ok(handle) = Handle::try_current() {
            drop(self.tasks.spawn_on(future.instrument(self.task_span()), &handle));
        }
    }

    /// Waits on the provider's runtime, regardless of the caller's runtime. Returns `false` immediately if the runtime is
    /// stopped.
    pub(crate) async fn sleep(&self, duration: Duration) -> bool {
        match self.spawn(async move { tokio::time::sleep(duration).await }) {
            Ok(timer) => matches!(AbortOnDropHandle::new(timer).await, Ok(Some(()))),
            Err(_) => false,
        }
    }

    /// Runs a callback on a thread where it may block. Does nothing once the runtime is stopped.
    pub(crate) fn spawn_callback(&self, callback: impl FnOnce() + Send + 'static) {
        let Ok(handle) = self.handle() else { return };
        let span = self.task_span();
        let callback = move || {
            let _entered = span.entered();
            IN_CALLBACK.set(true);
            callback();
            IN_CALLBACK.set(false);
        };
        drop(self.callbacks.spawn_blocking_on(callback, &handle));
    }

    /// Cancels all tasks and ends the provider's own thread, without waiting.
    pub(crate) fn stop(&self) {
        let before = std::mem::replace(&mut *self.state.lock(), State::Stopped);
        self.tasks.close();
        self.callbacks.close();
        self.cancellation.cancel();
        if matches!(before, State::Idle) {
            self.ended.send_replace(true);
        }
    }

    /// Waits until everything has ended. Call [`stop`](Self::stop) first.
    pub(crate) async fn join(&self) -> bool {
        let ended = async {
            if self.external.is_some() {
                self.tasks.wait().await;
                // A callback that shuts the provider down cannot wait for itself.
                if !IN_CALLBACK.get() {
                    self.callbacks.wait().await;
                }
            } else {
                // Cannot fail: the sender is part of `self`.
                let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
            }
        };
        let has_ended = with_timeout(ended, SHUTDOWN_TIMEOUT).await.is_some();
        if !has_ended {
            let _entered = self.span().entered();
            tracing::warn!(
                target: "flipswitch",
                "the runtime of the provider did not stop in time; a task or listener is blocking it"
            );
        }
        has_ended
    }

    /// Resolves when the runtime is stopped. Needs no runtime itself.
    pub(crate) async fn cancelled(&self) {
        self.cancellation.cancelled().await;
    }

    /// Returns a span for log lines of the provider, inside the span of the caller. Disabled if the provider has no name.
    pub(crate) fn span(&self) -> Span {
        self.name.as_deref().map_or_else(Span::none, |provider| {
            // Has the highest level, so that it is enabled wherever one of its events is.
            tracing::error_span!(target: "flipswitch", "flipswitch", provider)
        })
    }

    /// Returns a span for a task. It has no parent, because the task may outlive the span in which it is started.
    fn task_span(&self) -> Span {
        self.name.as_deref().map_or_else(
            Span::none,
            |provider| tracing::error_span!(target: "flipswitch", parent: None, "flipswitch", provider),
        )
    }

    /// Returns a token that is cancelled when the runtime is stopped.
    pub(crate) fn cancellation_token(&self) -> CancellationToken {
        self.cancellation.clone()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.cancellation.is_cancelled()
    }

    fn handle(&self) -> Result<Handle, Error> {
        let mut state = self.state.lock();
        match &*state {
            State::Running(handle) => Ok(handle.clone()),
            State::Stopped => Err(Error::ShutDown),
            State::Idle => {
                let handle = match &self.external {
                    Some(handle) => handle.clone(),
                    None => self.start_thread().map_err(Error::transport)?,
                };
                *state = State::Running(handle.clone());
                Ok(handle)
            }
        }
    }

    fn start_thread(&self) -> io::Result<Handle> {
        let (cancellation, tasks, ended) = (self.cancellation.clone(), self.tasks.clone(), self.ended.clone());
        let span = self.task_span();
        let (started, is_started) = std::sync::mpsc::sync_channel(1);
        thread::Builder::new().name("flipswitch".to_owned()).spawn(move || {
            // Built on its own thread: dropping a runtime on the caller's thread, which may be async, would panic.
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(error))),
            };
            if started.send(Ok(runtime.handle().clone())).is_err() {
                return;
            }
            runtime.block_on(async {
                cancellation.cancelled().await;
                if tokio::time::timeout(TASKS_TIMEOUT, tasks.wait()).await.is_err() {
                    let log = || {
                        tracing::warn!(target: "flipswitch", "tasks of the provider did not finish in time and were dropped");
                    };
                    span.in_scope(log);
                }
            });
            runtime.shutdown_timeout(BLOCKING_TIMEOUT);
            ended.send_replace(true);
        })?;
        is_started.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended early")))
    }
}

/// Waits for a future up to a time limit. Works without a runtime, and on a blocked one: a thread measures the time.
pub(crate) async fn with_timeout<T>(future: impl Future<Output = T>, limit: Duration) -> Option<T> {
    let (expire, expired) = oneshot::channel();
    // Dropping `in_time` wakes the thread, so that it does not outlive the wait.
    let (in_time, is_in_time) = std::sync::mpsc::channel::<()>();
    let timer = thread::Builder::new().name("flipswitch-timer".to_owned()).spawn(move || {
        if is_in_time.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            // Fails if the wait has just ended, which needs no signal.
            let _ = expire.send(());
        }
    });
    if let Err(error) = timer {
        tracing::warn!(target: "flipswitch", %error, "the timer thread could not be started; not waiting");
    }
    let output = tokio::select! {
        biased;
        output = future => Some(output),
        _ = expired => None,
    };
    drop(in_time);
    output
}

/// Waits until an instant, or forever without one.
pub(crate) async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_end_when_the_runtime_stops() {
        let runtime = ProviderRuntime::new(None, None);
        let task = runtime.spawn(std::future::pending::<()>()).unwrap();
        runtime.stop();
        let caller = Builder::new_current_thread().build().unwrap();
        caller.block_on(async {
            assert!(task.await.unwrap().is_none());
            runtime.join().await;
            assert!(matches!(runtime.run(async {}).await, Err(Error::ShutDown)));
        });
    }

    #[test]
    fn join_waits_until_tasks_have_ended() {
        struct Ends(std::sync::Arc<std::sync::atomic::AtomicBool>);
        impl Drop for Ends {
            fn drop(&mut self) {
                // Long enough that a `join` that does not wait would return first.
                thread::sleep(Duration::from_millis(50));
                self.0.store(true, std::sync::atomic::Ordering::Release);
            }
        }
        let external = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        for runtime in [ProviderRuntime::new(None, None), ProviderRuntime::new(Some(external.handle().clone()), None)] {
            let ended = std::sync::Arc::default();
            let ends = Ends(std::sync::Arc::clone(&ended));
            let begun = runtime.run(async {});
            let caller = Builder::new_current_thread().build().unwrap();
            caller.block_on(begun).unwrap();
            drop(runtime.spawn(async move {
                let _ends = ends;
                std::future::pending::<()>().await;
            }));
            runtime.stop();
            caller.block_on(runtime.join());
            assert!(ended.load(std::sync::atomic::Ordering::Acquire));
        }
    }

    #[test]
    fn a_runtime_that_never_started_stops_immediately() {
        let runtime = ProviderRuntime::new(None, None);
        runtime.stop();
        Builder::new_current_thread().build().unwrap().block_on(runtime.join());
    }

    #[test]
    fn nothing_hangs_if_the_external_runtime_is_gone() {
        let gone = Builder::new_current_thread().enable_all().build().unwrap();
        let runtime = ProviderRuntime::new(Some(gone.handle().clone()), None);
        drop(gone);
        let caller = Builder::new_current_thread().build().unwrap();
        caller.block_on(async {
            assert!(matches!(runtime.run(async {}).await, Err(Error::ShutDown)));
            runtime.stop();
            runtime.join().await;
        });
    }

    #[test]
    fn a_wait_is_bounded_without_a_runtime() {
        let caller = Builder::new_current_thread().build().unwrap();
        assert_eq!(caller.block_on(with_timeout(std::future::pending::<()>(), Duration::from_millis(1))), None);
        assert_eq!(caller.block_on(with_timeout(std::future::ready(7), Duration::from_secs(600))), Some(7));
    }

    #[test]
    fn a_panic_becomes_an_error_of_the_caller() {
        let runtime = ProviderRuntime::new(None, None);
        let caller = Builder::new_current_thread().build().unwrap();
        caller.block_on(async {
            let outcome = runtime.run(async { panic!("on purpose") }).await;
            assert!(matches!(outcome, Err::<(), _>(Error::Transport(_))));
            assert!(runtime.run(async {}).await.is_ok());
        });
        runtime.stop();
        caller.block_on(runtime.join());
    }
}
