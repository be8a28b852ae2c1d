//! The signals that ask a process to stop: the first one is reported, and the second one terminates the process immediately.

#[cfg(unix)]
pub(crate) use self::unix::Signals;
#[cfg(windows)]
pub(crate) use self::windows::Signals;

#[cfg(unix)]
mod unix {
    use std::{
        io,
        sync::{
            Arc, LazyLock,
            atomic::{AtomicBool, Ordering},
        },
    };

    use parking_lot::Mutex;
    use signal_hook::{
        consts::{SIGINT, SIGTERM},
        flag,
    };
    use tokio::signal::unix::{Signal, SignalKind, signal};

    /// How many listeners wait for a signal, and whether signals have their default effect, which is to terminate the process.
    /// They have this effect while there is no listener, and after the first signal. The state is global, because signals concern
    /// the whole process.
    static PROCESS: LazyLock<Process> = LazyLock::new(Process::default);

    #[derive(Default)]
    struct Process {
        waiting: Mutex<Waiting>,
        default_effect: Arc<AtomicBool>,
    }

    #[derive(Default)]
    struct Waiting {
        number: usize,
        registered: bool,
    }

    /// The handlers of the signals.
    pub(crate) struct Signals {
        interrupt: Signal,
        terminate: Signal,
        _listener: Listener,
    }

    impl Signals {
        /// Installs the handlers. Must be called within a runtime.
        pub(crate) fn catch() -> io::Result<Self> {
            let listener = Listener::new()?;
            let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            Ok(Self { interrupt, terminate, _listener: listener })
        }

        /// Waits for the first signal, and returns its name.
        pub(crate) async fn first(&mut self) -> &'static str {
            tokio::select! {
                _ = self.interrupt.recv() => "SIGINT",
                _ = self.terminate.recv() => "SIGTERM",
            }
        }

        /// Keeps the handlers. The next signal terminates the process in its handler, even if no task can run.
        pub(crate) async fn hold(self) {
            std::future::pending::<()>().await;
        }
    }

    struct Listener;

    impl Listener {
        fn new() -> io::Result<Self> {
            let mut waiting = PROCESS.waiting.lock();
            if !waiting.registered {
                for number in [SIGINT, SIGTERM] {
                    // In this order: the first signal finds the flag unset and sets it, and the second one finds it set.
                    flag::register_conditional_default(number, Arc::clone(&PROCESS.default_effect))?;
                    flag::register(number, Arc::clone(&PROCESS.default_effect))?;
                }
                waiting.registered = true;
            }
            waiting.number += 1;
            if waiting.number == 1 {
                PROCESS.default_effect.store(false, Ordering::SeqCst);
            }
            Ok(Self)
        }
    }

    impl Drop for Listener {
        fn drop(&mut self) {
            let mut waiting = PROCESS.waiting.lock();
            waiting.number -= 1;
            if waiting.number == 0 {
                PROCESS.default_effect.store(true, Ordering::SeqCst);
            }
        }
    }
}

#[cfg(windows)]
mod windows {
    use std::io;

    use tokio::signal::windows::{CtrlC, CtrlClose, ctrl_c, ctrl_close};

    /// The handlers of the signals.
    pub(crate) struct Signals {
        ctrl_c: CtrlC,
        ctrl_close: CtrlClose,
    }

    impl Signals {
        /// Installs the handlers. Must be called within a runtime.
        pub(crate) fn catch() -> io::Result<Self> {
            Ok(Self { ctrl_c: ctrl_c()?, ctrl_close: ctrl_close()? })
        }

        /// Waits for the first signal, and returns its name.
        pub(crate) async fn first(&mut self) -> &'static str {
            tokio::select! {
                _ = self.ctrl_c.recv() => "Ctrl-C",
                _ = self.ctrl_close.recv() => "close",
            }
        }

        /// Terminates the process at the next signal.
        pub(crate) async fn hold(mut self) {
            // The status that a shell gives to a process that was terminated by SIGINT or SIGTERM.
            std::process::exit(if self.first().await == "Ctrl-C" { 130 } else { 143 })
        }
    }
}
