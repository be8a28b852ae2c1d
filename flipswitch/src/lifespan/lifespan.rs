//! A provider's lifespan alongside a server: started before it, shut down after it.

use std::{
    fmt,
    future::{Future, IntoFuture, poll_fn},
    io,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    error::{Chain, ReadyError},
    flags::declare::DeclaredFlag,
    lifespan::signals::Signals,
    provider::{browsers::Browsers, provider::FlipswitchProvider},
    runtime::with_timeout,
};

/// Ties a provider to a server: starts the provider before the server, tells the server when the process is asked to stop, and
/// shuts the provider down when the server has drained.
///
/// ```no_run
/// use std::time::Duration;
///
/// use flipswitch::{FlipswitchProvider, Lifespan};
///
/// /// Stands in for a server, which drains and ends after the signal.
/// async fn serve(signal: impl Future<Output = ()>) -> std::io::Result<()> {
///     signal.await;
///     Ok(())
/// }
///
/// #[tokio::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let provider = FlipswitchProvider::from_env()?;
///     let lifespan = Lifespan::builder(provider).ready_timeout(Duration::from_secs(2)).start().await?;
///     lifespan.run(serve(lifespan.signal())).await?;
///     Ok(())
/// }
/// ```
pub struct Lifespan {
    providers: Vec<FlipswitchProvider>,
    drain_timeout: Duration,
    signalled: watch::Receiver<bool>,
}

/// Builder of a [`Lifespan`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `start` is called"]
pub struct LifespanBuilder {
    providers: Vec<FlipswitchProvider>,
    ready_timeout: Duration,
    require_ready: bool,
    /// The flags that the code declares, with the number of the provider that they belong to.
    declared: Vec<(usize, &'static [DeclaredFlag])>,
    require_declared: bool,
    drain_timeout: Duration,
}

impl Lifespan {
    /// Returns a builder for a provider.
    pub fn builder(provider: FlipswitchProvider) -> LifespanBuilder {
        LifespanBuilder {
            providers: vec![provider],
            ready_timeout: Duration::from_secs(5),
            require_ready: false,
            declared: Vec::new(),
            require_declared: false,
            drain_timeout: Duration::from_secs(30),
        }
    }

    /// Returns a future that resolves when the process is asked to stop, by SIGINT, SIGTERM or Ctrl-C. May be called any number
    /// of times, even after the signal.
    ///
    /// Also resolves when the provider, or the first of several, is shut down, because signals are no longer handled from then
    /// on. A second signal terminates the process immediately, and so does a signal after shutdown.
    pub fn signal(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut signalled = self.signalled.clone();
        async move {
            // An error means that the provider was shut down.
            let _ = signalled.wait_for(|signalled| *signalled).await;
        }
    }

    /// Runs a server that drains on [`signal`](Self::signal), then shuts all providers down.
    ///
    /// If the server has not drained within `drain_timeout` after the signal, it is dropped, and a warning is logged. Connections
    /// that run in separate tasks end when the runtime shuts down.
    ///
    /// # Errors
    ///
    /// The error of the server.
    pub async fn run(&self, server: impl IntoFuture<Output = io::Result<()>>) -> io::Result<()> {
        let mut server = pin!(server.into_future());
        let mut signal = pin!(self.signal());
        let ended = tokio::select! {
            served = &mut server => Some(served),
            () = &mut signal => None,
        };
        let served = match ended {
            Some(served) => served,
            None => with_timeout(server, self.drain_timeout).await.unwrap_or_else(|| {
                let seconds = self.drain_timeout.as_secs_f64();
                tracing::warn!(
                    target: "flipswitch", seconds,
                    "the server did not drain within {seconds} seconds; open connections are dropped"
                );
                Ok(())
            }),
        };
        shut_down(&self.providers).await;
        served
    }

    /// Shuts all providers down, for servers that [`run`](Self::run) cannot wait for.
    pub async fn shutdown(self) {
        shut_down(&self.providers).await;
    }

    /// Returns the provider, or the first of several.
    #[must_use]
    pub fn provider(&self) -> &FlipswitchProvider {
        // There is always the one that was passed to `builder`.
        &self.providers[0]
    }
}

impl fmt::Debug for Lifespan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lifespan")
            .field("providers", &self.providers)
            .field("drain_timeout", &self.drain_timeout)
            .field("signalled", &*self.signalled.borrow())
            .finish()
    }
}

impl LifespanBuilder {
    /// Adds another provider, for applications that use several environments. All providers start before the server, and are
    /// shut down after it.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), flipswitch::ConfigError> {
    /// use flipswitch::{FlipswitchProvider, Lifespan};
    ///
    /// let shop = FlipswitchProvider::builder("key-of-shop").name("shop").build()?;
    /// let billing = FlipswitchProvider::builder("key-of-billing").name("billing").build()?;
    /// let lifespan = Lifespan::builder(shop).and(billing);
    /// # Ok(())
    /// # }
    /// ```
    pub fn and(mut self, provider: FlipswitchProvider) -> Self {
        self.providers.push(provider);
        self
    }

    /// Sets how long [`start`](Self::start) waits for the flag service. The limit applies to all providers together. Defaults to
    /// 5 seconds.
    pub fn ready_timeout(mut self, ready_timeout: Duration) -> Self {
        self.ready_timeout = ready_timeout;
        self
    }

    /// Sets whether [`start`](Self::start) fails if the flag service has not responded in time. Defaults to `false`: the
    /// server starts with bootstrap values or defaults.
    pub fn require_ready(mut self, require_ready: bool) -> Self {
        self.require_ready = require_ready;
        self
    }

    /// Adds the flags that the code declares with [`flags!`](crate::flags), for the provider that was added last. May be called
    /// several times.
    ///
    /// Once the service has responded, a warning lists the flags that the service does not have, and those whose values have a
    /// different type. It is logged by [`start`](Self::start), or later if the service does not respond in time. The flags are
    /// also listed in the [usage](FlipswitchProvider::usage).
    ///
    /// ```no_run
    /// # async fn main_(provider: flipswitch::FlipswitchProvider) -> Result<(), flipswitch::ReadyError> {
    /// flipswitch::flags! {
    ///     static FLAGS;
    ///     NewCheckout: bool = "new-checkout", default false;
    /// }
    ///
    /// let lifespan = flipswitch::Lifespan::builder(provider).declared(FLAGS).start().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn declared(mut self, flags: &'static [DeclaredFlag]) -> Self {
        self.declared.push((self.providers.len() - 1, flags));
        self
    }

    /// Sets whether [`start`](Self::start) fails if the service does not have a [declared](Self::declared) flag, or if the flag
    /// has a different type. Defaults to `false`. If the service does not respond in time, there is nothing to compare. To fail
    /// in this case as well, set [`require_ready`](Self::require_ready).
    pub fn require_declared(mut self, require_declared: bool) -> Self {
        self.require_declared = require_declared;
        self
    }

    /// Sets how long the server may drain after the signal. Defaults to 30 seconds.
    ///
    /// If the server has its own limit, such as `shutdown_timeout` of actix-web, the shorter one applies.
    pub fn drain_timeout(mut self, drain_timeout: Duration) -> Self {
        self.drain_timeout = drain_timeout;
        self
    }

    /// Starts all providers, waits for the flag service, and begins to handle signals.
    ///
    /// # Errors
    ///
    /// A [`ReadyError`] if [`require_ready`](Self::require_ready) is set and the service did not respond, if signals cannot be
    /// handled, if [`require_declared`](Self::require_declared) is set and a declared flag does not match, or if a provider has
    /// already been shut down. After an error, all providers are shut down.
    pub async fn start(self) -> Result<Lifespan, ReadyError> {
        let Self { providers, ready_timeout, require_ready, declared, require_declared, drain_timeout } = self;
        let lifespan = |signalled| Lifespan { providers: providers.clone(), drain_timeout, signalled };
        let mut started = start(&providers, ready_timeout, require_ready).await.map(lifespan);
        for (number, flags) in declared.iter().filter(|_| started.is_ok()) {
            // There is a provider for each number.
            let problems = providers[*number].declare(flags).await;
            if let Some(problems) = problems.filter(|_| require_declared) {
                started = Err(ReadyError::Undeclared(problems));
                break;
            }
        }
        if started.is_err() {
            shut_down(&providers).await;
        }
        started
    }
}

/// Starts providers. Returns a receiver that tells whether the process was asked to stop.
async fn start(
    providers: &[FlipswitchProvider],
    ready_timeout: Duration,
    require_ready: bool,
) -> Result<watch::Receiver<bool>, ReadyError> {
    let (sender, signalled) = watch::channel(false);
    let runtime = providers[0].runtime();
    // Before waiting for the service, so that a signal during the wait is handled as well.
    let signals = match runtime.run(async { Signals::catch() }).await {
        Ok(Ok(signals)) => signals,
        Ok(Err(error)) => return Err(ReadyError::Signals(Arc::new(error))),
        Err(error) => {
            tracing::error!(target: "flipswitch", error = %Chain(&error), "signals are not handled");
            return Err(ReadyError::ShutDown);
        }
    };
    let browsers = providers.iter().map(|provider| Arc::clone(provider.browsers())).collect();
    if runtime.spawn(wait_for_signal(signals, sender, browsers)).is_err() {
        return Err(ReadyError::ShutDown);
    }
    let began = Instant::now();
    for provider in providers {
        provider.start();
    }
    for provider in providers {
        let mut asked_to_end = signalled.clone();
        let ready = tokio::select! {
            ready = provider.ready(ready_timeout.saturating_sub(began.elapsed())) => ready,
            asked = asked_to_end.wait_for(|signalled| *signalled) => {
                // An error means that the provider was shut down.
                return if asked.is_ok() { Ok(signalled) } else { Err(ReadyError::ShutDown) };
            }
        };
        match ready {
            Err(error) if require_ready || matches!(error, ReadyError::ShutDown) => return Err(error),
            Err(error) => provider.runtime().span().in_scope(
                || tracing::warn!(target: "flipswitch", error = %Chain(&error), "starting without the flag service"),
            ),
            Ok(()) => {}
        }
    }
    Ok(signalled)
}

/// Shuts providers down, all at the same time.
async fn shut_down(providers: &[FlipswitchProvider]) {
    let mut shutdowns: Vec<_> = providers.iter().map(|provider| Box::pin(provider.shutdown())).collect();
    poll_fn(|cx| {
        shutdowns.retain_mut(|shutdown| shutdown.as_mut().poll(cx).is_pending());
        if shutdowns.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Waits for the first signal, and reports it. Holds the handlers until the provider is shut down, so that a second signal
/// is handled as well.
async fn wait_for_signal(mut signals: Signals, signalled: watch::Sender<bool>, browsers: Vec<Arc<Browsers>>) {
    let signal = signals.first().await;
    // Without a parent span: the signal is for the whole process, and not only for the provider that runs this task.
    tracing::info!(target: "flipswitch", parent: None, signal, "asked to stop; draining");
    signalled.send_replace(true);
    // Otherwise the server would wait for the streams of browsers.
    browsers.iter().for_each(|browsers| browsers.drain());
    signals.hold().await;
}
