//! The signals that ask a process to end: the first is told, the second ends it at once.

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

    /// What a signal does belongs to the process, and so does this: how many wait for one, and whether a signal has its
    /// own effect, which is to end the process. It has when nobody waits, and after the first one.
    static PROCESS: LazyLock<Process> = LazyLock::new(Process::default);

    #[derive(Default)]
    struct Process {
        waiting: Mutex<Waiting>,
        own_effect: Arc<AtomicBool>,
    }

    #[derive(Default)]
    struct Waiting {
        number: usize,
        registered: bool,
    }

    /// The signals, from now on.
    pub(crate) struct Signals {
        interrupt: Signal,
        terminate: Signal,
        _listener: Listener,
    }

    impl Signals {
        /// Catches the signals. Must be called within a runtime.
        pub(crate) fn catch() -> io::Result<Self> {
            let listener = Listener::new()?;
            let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            Ok(Self { interrupt, terminate, _listener: listener })
        }

        /// The number of the first signal.
        pub(crate) async fn first(&mut self) -> i32 {
            tokio::select! {
                _ = self.interrupt.recv() => SIGINT,
                _ = self.terminate.recv() => SIGTERM,
            }
        }

        /// Stays. The next signal ends the process within its handler, even if no task can run.
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
                    // In this order: the first signal finds the flag down and raises it, the second finds it up.
                    flag::register_conditional_default(number, Arc::clone(&PROCESS.own_effect))?;
                    flag::register(number, Arc::clone(&PROCESS.own_effect))?;
                }
                waiting.registered = true;
            }
            waiting.number += 1;
            if waiting.number == 1 {
                PROCESS.own_effect.store(false, Ordering::SeqCst);
            }
            Ok(Self)
        }
    }

    impl Drop for Listener {
        fn drop(&mut self) {
            let mut waiting = PROCESS.waiting.lock();
            waiting.number -= 1;
            if waiting.number == 0 {
                PROCESS.own_effect.store(true, Ordering::SeqCst);
            }
        }
    }
}

#[cfg(windows)]
mod windows {
    use std::io;

    use tokio::signal::windows::{CtrlC, CtrlClose, ctrl_c, ctrl_close};

    /// The signals, from now on.
    pub(crate) struct Signals {
        ctrl_c: CtrlC,
        ctrl_close: CtrlClose,
    }

    impl Signals {
        /// Catches the signals. Must be called within a runtime.
        pub(crate) fn catch() -> io::Result<Self> {
            Ok(Self { ctrl_c: ctrl_c()?, ctrl_close: ctrl_close()? })
        }

        /// The number that Unix gives to the first signal.
        pub(crate) async fn first(&mut self) -> i32 {
            tokio::select! {
                _ = self.ctrl_c.recv() => 2,
                _ = self.ctrl_close.recv() => 15,
            }
        }

        /// Stays, and ends the process at the next signal.
        pub(crate) async fn hold(mut self) {
            std::process::exit(128 + self.first().await)
        }
    }
}
