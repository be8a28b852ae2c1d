//! The provider: the handle that an application holds.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use open_feature::{
    EvaluationContext, EvaluationResult, StructValue,
    provider::{FeatureProvider, ProviderMetadata, ProviderStatus, ResolutionDetails},
};
use serde_json::Value;
use tokio::sync::watch;

use crate::{
    ConfigError, Error, FlagEvaluation, FlagType, Flags, FlipswitchProviderBuilder, ReadyError,
    answer::Answer,
    builder::Settings,
    context::CanonicalContext,
    error::Chain,
    resolution,
    runtime::Home,
    transport::{ApiKey, BaseUrl, Transport},
};

/// After a failure the start-up check waits this long, doubling up to the maximum; a refused key waits longer.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);
const UNAUTHORIZED_RETRY: Duration = Duration::from_secs(300);

/// The OpenFeature provider for Flipswitch. A handle: a clone is the same provider.
///
/// Made by [`new`](Self::new), [`builder`](Self::builder) or [`from_env`](Self::from_env), it does nothing until it is
/// used; [`ready`](Self::ready) starts it and waits for the service. Evaluation never fails: what the service cannot
/// tell is the caller's default. It ends with [`shutdown`](Self::shutdown), or when its last handle is dropped;
/// OpenFeature keeps the handle it was given for ever.
#[derive(Clone)]
pub struct FlipswitchProvider {
    handle: Arc<Handle>,
}

/// What the application's handles share. Dropping it ends the provider; tasks hold [`Shared`] only.
struct Handle {
    shared: Arc<Shared>,
    metadata: ProviderMetadata,
}

struct Shared {
    source: Source,
    home: Home,
    started: AtomicBool,
}

/// Where values come from.
enum Source {
    Service(Box<Service>),
    Memory(Arc<Answer>),
}

struct Service {
    transport: Transport,
    bootstrap: Option<Arc<Answer>>,
    startup: watch::Sender<Startup>,
    base_url: BaseUrl,
    api_key: ApiKey,
    realtime: bool,
}

/// What is known of the service since the start.
enum Startup {
    /// It never answered; with the last failure, if there was one.
    Waiting(Option<Error>),
    /// It answered once.
    Ready,
    /// It refused the API key, and never answered before.
    Unauthorized,
}

impl FlipswitchProvider {
    /// Makes a provider for the service at `https://api.flipswitch.io`.
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] if the API key cannot be sent, or if TLS cannot be set up.
    pub fn new(api_key: impl Into<String>) -> Result<Self, ConfigError> {
        Self::builder(api_key).build()
    }

    /// Begins a provider with other settings than the defaults.
    pub fn builder(api_key: impl Into<String>) -> FlipswitchProviderBuilder {
        FlipswitchProviderBuilder::new(api_key.into())
    }

    /// Makes a provider from the environment: `FLIPSWITCH_API_KEY`, and `FLIPSWITCH_BASE_URL` if it is set.
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] if there is no key, or if a value cannot work.
    pub fn from_env() -> Result<Self, ConfigError> {
        FlipswitchProviderBuilder::from_env()?.build()
    }

    /// Makes a provider that answers from the given values, an object `{"dark-mode": true, ..}`, the same for every
    /// context; for tests and demonstrations. There is no service, no network and no thread behind it.
    ///
    /// Anything but an object holds no flags, and is logged as an error.
    #[must_use]
    pub fn in_memory(flags: Value) -> Self {
        let answer = match flags {
            Value::Object(values) => Answer::of_values(values, "STATIC"),
            other => {
                let found = FlagType::of_value(&other);
                tracing::error!(target: "flipswitch", %found, "in_memory takes a JSON object of flags; there are none now");
                Answer::default()
            }
        };
        Self::with_source(Source::Memory(Arc::new(answer)), Home::new(None))
    }

    pub(crate) fn with_settings(settings: Settings) -> Result<Self, ConfigError> {
        let transport = Transport::new(&settings)?;
        let Settings { api_key, base_url, bootstrap, runtime, enable_realtime: realtime, .. } = settings;
        let service = Service {
            transport,
            bootstrap: bootstrap.map(Arc::new),
            startup: watch::Sender::new(Startup::Waiting(None)),
            base_url,
            api_key,
            realtime,
        };
        Ok(Self::with_source(Source::Service(Box::new(service)), Home::new(runtime)))
    }

    fn with_source(source: Source, home: Home) -> Self {
        let shared = Shared { source, home, started: AtomicBool::new(false) };
        let metadata = ProviderMetadata::new("flipswitch");
        Self { handle: Arc::new(Handle { shared: Arc::new(shared), metadata }) }
    }

    /// Starts the provider if it is not started, and waits until the service has answered once.
    ///
    /// Not needed for evaluation, which starts the provider as well; it tells whether values will be real ones. May be
    /// called again, and from several places.
    ///
    /// # Errors
    ///
    /// [`ReadyError::Unauthorized`] as soon as the key is refused; after `timeout` [`ReadyError::Unreachable`] with the
    /// last failure, or [`ReadyError::Timeout`] if nothing was heard at all; [`ReadyError::ShutDown`]. The first three
    /// leave the provider trying.
    pub async fn ready(&self, timeout: Duration) -> Result<(), ReadyError> {
        let shared = &self.handle.shared;
        if shared.home.is_stopped() {
            return Err(ReadyError::ShutDown);
        }
        let Source::Service(service) = &shared.source else { return Ok(()) };
        shared.start();
        let mut startup = service.startup.subscribe();
        let waiting = async move {
            let settled = |state: &Startup| !matches!(state, Startup::Waiting(_));
            let _ = tokio::time::timeout(timeout, startup.wait_for(settled)).await;
            let state = startup.borrow();
            match &*state {
                Startup::Ready => Ok(()),
                Startup::Unauthorized => Err(ReadyError::Unauthorized),
                Startup::Waiting(Some(error)) => Err(ReadyError::Unreachable(error.clone())),
                Startup::Waiting(None) => Err(ReadyError::Timeout),
            }
        };
        match shared.home.run(waiting).await {
            Ok(outcome) => outcome,
            Err(Error::ShutDown) => Err(ReadyError::ShutDown),
            Err(error) => Err(ReadyError::Unreachable(error)),
        }
    }

    /// Ends the provider: its thread, its tasks and its connections. Takes at most 5 s, may be called again, and also
    /// while evaluations are under way, which then give their defaults.
    ///
    /// Handles stay usable: an evaluation gives defaults, and a provider [in memory](Self::in_memory) its values.
    pub async fn shutdown(&self) {
        let home = &self.handle.shared.home;
        if !home.is_stopped() {
            tracing::info!(target: "flipswitch", "shutting down");
        }
        home.stop();
        home.stopped().await;
    }

    /// Returns all flags for a context. Never fails: without an answer of the service the flags hold the
    /// [bootstrap](FlipswitchProviderBuilder::bootstrap) values, or none, and [`Flags::error`] tells why.
    pub async fn flags(&self, context: &EvaluationContext) -> Flags {
        let canonical = match CanonicalContext::new(context) {
            Ok(canonical) => canonical,
            Err(error) => return Flags::refused(error, context.clone()),
        };
        let shared = &self.handle.shared;
        let service = match &shared.source {
            Source::Memory(answer) => return Flags::fresh(Arc::clone(answer), canonical),
            Source::Service(service) => service,
        };
        shared.start();
        let request = {
            let (shared, canonical) = (Arc::clone(shared), canonical.clone());
            async move { shared.evaluate(&canonical).await }
        };
        match shared.home.run(request).await.and_then(|outcome| outcome) {
            Ok(answer) => Flags::fresh(answer, canonical),
            Err(error) => match &service.bootstrap {
                Some(bootstrap) => Flags::bootstrapped(Arc::clone(bootstrap), error, canonical),
                None => Flags::unavailable(error, canonical),
            },
        }
    }

    /// Returns all evaluated flags for a context, sorted by key.
    ///
    /// # Errors
    ///
    /// An [`Error`] if there is no answer for the context.
    pub async fn evaluate_all_flags(&self, context: &EvaluationContext) -> Result<Vec<FlagEvaluation>, Error> {
        let flags = self.flags(context).await;
        flags.known()?;
        Ok(flags.iter().cloned().collect())
    }

    /// Returns everything that is known about one flag, or `None` if the service does not have it.
    ///
    /// # Errors
    ///
    /// An [`Error`] if there is no answer for the context; [`Error::Evaluation`] if the service could not evaluate the
    /// flag.
    pub async fn evaluate_flag(&self, key: &str, context: &EvaluationContext) -> Result<Option<FlagEvaluation>, Error> {
        self.flags(context).await.evaluation_if_any(key)
    }

    /// The runtime that the provider's work is done on.
    pub(crate) fn home(&self) -> &Home {
        &self.handle.shared.home
    }

    async fn resolve<T>(
        &self,
        key: &str,
        context: &EvaluationContext,
        expected: FlagType,
        read: impl FnOnce(&FlagEvaluation) -> Option<T>,
    ) -> EvaluationResult<ResolutionDetails<T>> {
        let flags = self.flags(context).await;
        let stale = flags.is_stale();
        flags
            .read(key, expected, |flag| read(flag).map(|value| resolution::details(value, flag, stale)))
            .map_err(|error| error.to_evaluation_error(key))
    }
}

impl Shared {
    /// Starts the start-up check, once.
    fn start(self: &Arc<Self>) {
        let Source::Service(service) = &self.source else { return };
        if self.started.load(Ordering::Relaxed) || self.started.swap(true, Ordering::Relaxed) {
            return;
        }
        let Service { base_url, api_key, realtime, .. } = &**service;
        tracing::info!(target: "flipswitch", %base_url, %api_key, realtime, "starting");
        if base_url.is_plain_and_remote() {
            tracing::warn!(target: "flipswitch", %base_url, "the API key goes over the network unencrypted; use https");
        }
        let shared = Arc::clone(self);
        if let Err(error) = self.home.spawn(async move { shared.check_at_start().await }) {
            tracing::error!(target: "flipswitch", error = %Chain(&error), "could not start");
        }
    }

    /// Asks until the service has answered once, whoever was answered.
    async fn check_at_start(&self) {
        let Source::Service(service) = &self.source else { return };
        let mut startup = service.startup.subscribe();
        let mut retry = FIRST_RETRY;
        while let Err(error) = self.evaluate(&CanonicalContext::start_up()).await {
            let pause = match &error {
                Error::Unauthorized => UNAUTHORIZED_RETRY,
                Error::RateLimited { retry_after } => retry.max(*retry_after),
                _ => retry.mul_f64(0.5 + fastrand::f64() / 2.0),
            };
            retry = LAST_RETRY.min(retry * 2);
            tracing::warn!(target: "flipswitch", error = %Chain(&error), ?pause, "the flag service did not answer; trying on");
            let ready = startup.wait_for(|state| matches!(state, Startup::Ready));
            if tokio::time::timeout(pause, ready).await.is_ok() {
                return;
            }
        }
    }

    /// Makes one request, and draws from it what it says about the service.
    async fn evaluate(&self, context: &CanonicalContext) -> Result<Arc<Answer>, Error> {
        let Source::Service(service) = &self.source else { return Err(Error::ShutDown) };
        let outcome = service.transport.bulk(context).await;
        service.startup.send_if_modified(|state| {
            let next = match (&*state, &outcome) {
                (Startup::Ready, _) => return false,
                (_, Ok(_)) => Startup::Ready,
                (Startup::Unauthorized, Err(Error::Unauthorized)) => return false,
                (_, Err(Error::Unauthorized)) => Startup::Unauthorized,
                (_, Err(error)) => Startup::Waiting(Some(error.clone())),
            };
            match &next {
                Startup::Ready => tracing::info!(target: "flipswitch", "ready"),
                Startup::Unauthorized => {
                    tracing::error!(target: "flipswitch", "the flag service refused the API key; defaults are served");
                }
                Startup::Waiting(_) => {}
            }
            *state = next;
            true
        });
        outcome.map(Arc::new)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.home.stop();
    }
}

/// Shows where values come from; of the API key at most its end.
impl fmt::Debug for FlipswitchProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("FlipswitchProvider");
        match &self.handle.shared.source {
            Source::Service(service) => shown
                .field("base_url", &format_args!("{}", service.base_url))
                .field("api_key", &format_args!("{}", service.api_key)),
            Source::Memory(answer) => shown.field("flags", &answer.iter().count()),
        }
        .finish_non_exhaustive()
    }
}

#[async_trait]
impl FeatureProvider for FlipswitchProvider {
    /// Starts the provider and returns at once: OpenFeature holds its global lock meanwhile. Use
    /// [`ready`](FlipswitchProvider::ready) to wait.
    async fn initialize(&mut self, _context: &EvaluationContext) {
        self.handle.shared.start();
    }

    fn status(&self) -> ProviderStatus {
        let shared = &self.handle.shared;
        if shared.home.is_stopped() {
            return ProviderStatus::NotReady;
        }
        match &shared.source {
            Source::Memory(_) => ProviderStatus::Ready,
            Source::Service(service) => match &*service.startup.borrow() {
                Startup::Waiting(_) => ProviderStatus::NotReady,
                Startup::Ready => ProviderStatus::Ready,
                Startup::Unauthorized => ProviderStatus::Error,
            },
        }
    }

    fn metadata(&self) -> &ProviderMetadata {
        &self.handle.metadata
    }

    async fn resolve_bool_value(
        &self,
        key: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<bool>> {
        self.resolve(key, context, FlagType::Boolean, FlagEvaluation::as_bool).await
    }

    async fn resolve_int_value(
        &self,
        key: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<i64>> {
        self.resolve(key, context, FlagType::Integer, FlagEvaluation::as_i64).await
    }

    async fn resolve_float_value(
        &self,
        key: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<f64>> {
        self.resolve(key, context, FlagType::Number, FlagEvaluation::as_f64).await
    }

    async fn resolve_string_value(
        &self,
        key: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<String>> {
        self.resolve(key, context, FlagType::String, |flag| flag.as_str().map(str::to_owned)).await
    }

    async fn resolve_struct_value(
        &self,
        key: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<StructValue>> {
        self.resolve(key, context, FlagType::Object, |flag| flag.value.as_object().map(resolution::structure)).await
    }
}
