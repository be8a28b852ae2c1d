//! A provider's life beside a server's: started before it, and ended after it.

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

use crate::{FlipswitchProvider, ReadyError, error::Chain, lifespan::signals::Signals, runtime::until};

/// Ties a provider to a server: starts it before the server, tells the server when the process is asked to end, and
/// shuts the provider down when the server has drained.
///
/// ```no_run
/// use std::{future::IntoFuture, time::Duration};
///
/// use flipswitch::{FlipswitchProvider, Lifespan};
/// # async fn serve_until(_: impl Future<Output = ()>) -> std::io::Result<()> { Ok(()) }
///
/// # async fn main_() -> Result<(), Box<dyn std::error::Error>> {
/// let provider = FlipswitchProvider::from_env()?;
/// let lifespan = Lifespan::builder(provider.clone()).ready_timeout(Duration::from_secs(2)).start().await?;
/// let server = serve_until(lifespan.signal());
/// match lifespan.run(server).await {
///     Some(served) => served?,
///     None => eprintln!("requests were still running when the time to drain was over"),
/// }
/// # Ok(())
/// # }
/// ```
pub struct Lifespan {
    provider: FlipswitchProvider,
    drain_timeout: Duration,
    signalled: watch::Receiver<bool>,
}

/// Settings of a [`Lifespan`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `start`"]
pub struct LifespanBuilder {
    provider: FlipswitchProvider,
    ready_timeout: Duration,
    require_ready: bool,
    drain_timeout: Duration,
}

impl Lifespan {
    /// Begins a life for a provider.
    pub fn builder(provider: FlipswitchProvider) -> LifespanBuilder {
        LifespanBuilder {
            provider,
            ready_timeout: Duration::from_secs(5),
            require_ready: false,
            drain_timeout: Duration::from_secs(30),
        }
    }

    /// Returns a future that resolves when the process is asked to end: by SIGINT, SIGTERM or ctrl-c. May be called any
    /// number of times, also after the signal. It resolves as well when the provider is shut down, since nothing listens
    /// for signals from then on.
    ///
    /// A second signal ends the process at once, as it does where nobody listens; so does a signal after the provider
    /// was shut down.
    pub fn signal(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut signalled = self.signalled.clone();
        async move {
            // An error means that the listener has ended with the provider.
            let _ = signalled.wait_for(|signalled| *signalled).await;
        }
    }

    /// Waits for a server that drains on [`signal`](Self::signal), and then shuts the provider down.
    ///
    /// Returns what the server returned, or `None` if it was still draining `drain_timeout` after the signal.
    pub async fn run<T>(&self, server: impl IntoFuture<Output = T>) -> Option<T> {
        let mut server = pin!(server.into_future());
        let mut signal = pin!(self.signal());
        let before = tokio::select! {
            output = &mut server => Some(output),
            () = &mut signal => None,
        };
        let output = match before {
            Some(output) => Some(output),
            None => until(server, self.drain_timeout).await,
        };
        self.provider.shutdown().await;
        output
    }

    /// Shuts the provider down, for servers that [`run`](Self::run) cannot wait for.
    pub async fn shutdown(self) {
        self.provider.shutdown().await;
    }

    /// Returns the provider.
    #[must_use]
    pub fn provider(&self) -> &FlipswitchProvider {
        &self.provider
    }
}

impl fmt::Debug for Lifespan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lifespan")
            .field("provider", &self.provider)
            .field("drain_timeout", &self.drain_timeout)
            .field("signalled", &*self.signalled.borrow())
            .finish()
    }
}

impl LifespanBuilder {
    /// Sets how long [`start`](Self::start) waits for the flag service. Default: 5 s.
    pub fn ready_timeout(mut self, ready_timeout: Duration) -> Self {
        self.ready_timeout = ready_timeout;
        self
    }

    /// Sets whether [`start`](Self::start) fails if the flag service has not answered in time. Default: false, so that
    /// the server comes up with bootstrap values or defaults.
    pub fn require_ready(mut self, require_ready: bool) -> Self {
        self.require_ready = require_ready;
        self
    }

    /// Sets how long the server may drain after the signal. Default: 30 s.
    ///
    /// A server may have a limit of its own, as actix-web has with `shutdown_timeout`: the shorter one counts.
    pub fn drain_timeout(mut self, drain_timeout: Duration) -> Self {
        self.drain_timeout = drain_timeout;
        self
    }

    /// Starts the provider, waits for the flag service, and begins to listen for signals.
    ///
    /// # Errors
    ///
    /// A [`ReadyError`] if [`require_ready`](Self::require_ready) is set and the service did not answer, if signals cannot
    /// be listened for, or if the provider was shut down before; it is shut down then.
    pub async fn start(self) -> Result<Lifespan, ReadyError> {
        let Self { provider, ready_timeout, require_ready, drain_timeout } = self;
        let (sender, signalled) = watch::channel(false);
        // Before the wait for the service, so that a signal is heard during it as well.
        let signals = match provider.home().run(async { Signals::catch() }).await {
            Ok(Ok(signals)) => signals,
            Ok(Err(error)) => {
                provider.shutdown().await;
                return Err(ReadyError::Signals(Arc::new(error)));
            }
            Err(error) => {
                tracing::error!(target: "flipswitch", error = %Chain(&error), "signals are not listened for");
                provider.shutdown().await;
                return Err(ReadyError::ShutDown);
            }
        };
        if provider.home().spawn(listen(signals, sender)).is_err() {
            return Err(ReadyError::ShutDown);
        }
        let mut asked_to_end = signalled.clone();
        let ready = tokio::select! {
            ready = provider.ready(ready_timeout) => ready,
            Ok(_) = asked_to_end.wait_for(|signalled| *signalled) => Ok(()),
        };
        match ready {
            Err(error) if require_ready || matches!(error, ReadyError::ShutDown) => {
                provider.shutdown().await;
                Err(error)
            }
            Err(error) => {
                tracing::warn!(target: "flipswitch", error = %Chain(&error), "starting without the flag service");
                Ok(Lifespan { provider, drain_timeout, signalled })
            }
            Ok(()) => Ok(Lifespan { provider, drain_timeout, signalled }),
        }
    }
}

/// Waits for the first signal and tells it. Holds on to the signals until the provider ends, so that the process is not
/// deaf to them meanwhile.
async fn listen(mut signals: Signals, signalled: watch::Sender<bool>) {
    let signal = signals.first().await;
    tracing::info!(target: "flipswitch", signal, "asked to end; draining");
    signalled.send_replace(true);
    signals.hold().await;
}
