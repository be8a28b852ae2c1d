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
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::{
    ConfigError, Error, FlagEvaluation, FlagType, Flags, FlipswitchProviderBuilder, ReadyError, RequestScope, Stats,
    cache::entry::CacheEntry,
    cache::epoch::EpochReading,
    config::ApiKey,
    context::buffer::Buffer,
    context::canonical::{self as context, CanonicalContext},
    error::Chain,
    evaluator::evaluator::{Service, Startup},
    events::bus::{Hub, Subscription},
    events::events::{ConnectionStatus, FlagChangeEvent, ProviderEvent, ProviderEvents},
    events::health::{Health, HealthState},
    feature_provider as resolution,
    provider::builder::Settings,
    provider::in_memory::Memory,
    request::warnings::{Misuse, Told},
    runtime::{Home, until},
};

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

/// What the application's handles share. Dropping it ends the provider; tasks hold the [`Service`] only.
struct Handle {
    source: Source,
    home: Arc<Home>,
    hub: Arc<Hub>,
    started: AtomicBool,
    told: Told,
    made: OffsetDateTime,
    metadata: ProviderMetadata,
}

/// Where values come from.
enum Source {
    Service(Arc<Service>),
    Memory(Arc<Memory>),
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
    /// [`TestFlags`](crate::testing::TestFlags) is the same with values that change and differ.
    ///
    /// Anything but an object holds no flags, and is logged as an error.
    #[must_use]
    pub fn in_memory(flags: Value) -> Self {
        let values = match flags {
            Value::Object(values) => values,
            other => {
                let found = FlagType::of_value(&other);
                tracing::error!(target: "flipswitch", %found, "in_memory takes a JSON object of flags; there are none now");
                Map::new()
            }
        };
        Self::with_memory(Arc::new(Memory::new(values, None)))
    }

    pub(crate) fn with_memory(memory: Arc<Memory>) -> Self {
        let home = Arc::new(Home::new(None));
        let hub = Arc::new(Hub::new(Arc::clone(&home)));
        Self::with_source(Source::Memory(memory), home, hub)
    }

    /// Tells the application that a flag changed.
    pub(crate) fn tell_change(&self, key: String) {
        drop(self.handle.hub.tell(ProviderEvent::ConfigurationChanged(FlagChangeEvent::of(key))));
    }

    pub(crate) fn with_settings(settings: Settings) -> Result<Self, ConfigError> {
        let home = Arc::new(Home::new(settings.runtime.clone()));
        let hub = Arc::new(Hub::new(Arc::clone(&home)));
        let service = Service::new(settings, Arc::clone(&home), Arc::clone(&hub))?;
        Ok(Self::with_source(Source::Service(Arc::new(service)), home, hub))
    }

    fn with_source(source: Source, home: Arc<Home>, hub: Arc<Hub>) -> Self {
        let metadata = ProviderMetadata::new("flipswitch");
        Self {
            handle: Arc::new(Handle {
                source,
                home,
                hub,
                started: AtomicBool::new(false),
                told: Told::default(),
                made: OffsetDateTime::now_utc(),
                metadata,
            }),
        }
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
        let Handle { source, home, .. } = &*self.handle;
        if home.is_stopped() {
            return Err(ReadyError::ShutDown);
        }
        let Source::Service(service) = source else { return Ok(()) };
        self.handle.start();
        let mut startup = service.startup();
        let settled = startup.wait_for(|state| !matches!(state, Startup::Waiting(_)));
        // The caller's time, not the home's: that may stand still, if it was given.
        let stopped = until(
            async {
                tokio::select! {
                    biased;
                    () = home.stopping() => true,
                    _ = settled => false,
                }
            },
            timeout,
        );
        if stopped.await == Some(true) {
            return Err(ReadyError::ShutDown);
        }
        let state = service.startup();
        let state = state.borrow();
        match &*state {
            Startup::Ready => Ok(()),
            Startup::Unauthorized => Err(ReadyError::Unauthorized),
            Startup::Waiting(Some(error)) => Err(ReadyError::Unreachable(error.clone())),
            Startup::Waiting(None) => Err(ReadyError::Timeout),
        }
    }

    /// Ends the provider: its thread, its tasks and its connections. Takes at most 5 s, may be called again, and also
    /// while evaluations are under way, which then give their defaults.
    ///
    /// Handles stay usable: an evaluation gives the last known values, stale, or else defaults.
    pub async fn shutdown(&self) {
        let Handle { home, .. } = &*self.handle;
        if !home.is_stopped() {
            tracing::info!(target: "flipswitch", "shutting down");
        }
        self.handle.end();
        home.stopped().await;
    }

    /// Returns all flags for a context. Never fails: without an answer of the service the flags hold the
    /// [bootstrap](FlipswitchProviderBuilder::bootstrap) values, or none, and [`Flags::error`] tells why.
    pub async fn flags(&self, context: &EvaluationContext) -> Flags {
        match self.known(context) {
            Ok(flags) => flags,
            // In a box, since this is seldom needed, and its future is large.
            Err((context, reading, service)) => {
                self.handle.start();
                Box::pin(service.flags(context, reading)).await
            }
        }
    }

    /// Returns the flags for a context if nobody has to be asked for them, or can be.
    pub(crate) fn flags_now(&self, context: &EvaluationContext) -> Option<Flags> {
        match self.known(context) {
            Ok(flags) => Some(flags),
            Err((context, reading, service)) => service.at_once(&context, reading),
        }
    }

    /// Returns the last known flags for a context, if there are any, and asks for new ones that nobody waits for.
    pub(crate) fn last_known(&self, context: &EvaluationContext) -> Option<Flags> {
        match self.known(context) {
            Ok(flags) => Some(flags),
            Err((context, reading, service)) => service.last_known(&context, reading),
        }
    }

    /// Which mistakes of the application were told.
    pub(crate) fn told(&self) -> &Told {
        &self.handle.told
    }

    /// Returns what memory has for a context, or the service that is to be asked. Apart, since the context is written on
    /// the stack, which a future would take along.
    fn known(&self, context: &EvaluationContext) -> Result<Flags, (CanonicalContext, EpochReading, &Arc<Service>)> {
        let mut canonical = Buffer::new();
        if let Err(error) = context::write(context, &mut canonical) {
            return Ok(Flags::refused(error, context.clone()));
        }
        match &self.handle.source {
            Source::Service(service) => {
                let reading = service.epoch().read();
                service
                    .known(&canonical, reading)
                    .ok_or_else(|| (CanonicalContext::from_bytes(&canonical), reading, service))
            }
            Source::Memory(memory) => {
                let canonical = CanonicalContext::from_bytes(&canonical);
                let entry = Arc::new(CacheEntry::timeless(&canonical, memory.flag_set(context)));
                Ok(match &memory.log {
                    None => Flags::fresh(entry),
                    Some(log) => Flags::recorded(entry, context.clone(), Arc::clone(log)),
                })
            }
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

    /// Returns how the connection to the stream of changes is. Always disconnected before the start, after the end, with
    /// [realtime](FlipswitchProviderBuilder::enable_realtime) switched off, and [in memory](Self::in_memory).
    #[must_use]
    pub fn sse_status(&self) -> ConnectionStatus {
        self.handle.hub.status()
    }

    /// Makes a new connection to the stream of changes: at once, whatever wait was under way, and also in place of one
    /// that is open. Starts the provider if it is not started. Does nothing where there is no stream.
    pub fn reconnect_sse(&self) {
        if let Source::Service(service) = &self.handle.source {
            self.handle.start();
            service.commands().reconnect();
        }
    }

    /// Returns whether the service is polled at present: because the stream of changes is away, or not followed.
    #[must_use]
    pub fn is_polling_active(&self) -> bool {
        match &self.handle.source {
            Source::Service(service) => service.refresh().is_polling() && !self.handle.home.is_stopped(),
            Source::Memory(_) => false,
        }
    }

    /// Calls a function at every change of a flag, until the subscription is dropped.
    ///
    /// Listeners run one at a time, in the order of what happened, on a thread of the provider where they may block, and
    /// after everything that was known has become out of date: a listener that evaluates gets the new value. One that
    /// panics is logged, and heard of again at the next change. More than 1 024 notices that nobody has taken yet become
    /// one that any flag may have changed.
    ///
    /// While the stream of changes is away, what polling finds out about the context of the start-up check is told; and
    /// when the stream is back after a failure, that any flag may have changed.
    ///
    /// ```
    /// # use flipswitch::{FlipswitchProvider, serde_json::json};
    /// # let provider = FlipswitchProvider::in_memory(json!({}));
    /// let subscription = provider.add_flag_change_listener(|change| match &change.flag_key {
    ///     Some(key) => println!("{key} changed"),
    ///     None => println!("any flag may have changed"),
    /// });
    /// // Dropping it unsubscribes; `detach` keeps the listener for as long as the provider lives.
    /// subscription.detach();
    /// ```
    pub fn add_flag_change_listener(
        &self,
        listener: impl Fn(&FlagChangeEvent) + Send + Sync + 'static,
    ) -> Subscription {
        self.handle.hub.on_change(None, listener)
    }

    /// Calls a function at every change that may concern one flag: changes of it, and those that may concern any. As
    /// [`add_flag_change_listener`](Self::add_flag_change_listener) else.
    pub fn add_flag_change_listener_for(
        &self,
        key: impl Into<String>,
        listener: impl Fn(&FlagChangeEvent) + Send + Sync + 'static,
    ) -> Subscription {
        self.handle.hub.on_change(Some(key.into()), listener)
    }

    /// Calls a function whenever the connection to the stream of changes is in another state than before, until the
    /// subscription is dropped. Runs as [`add_flag_change_listener`](Self::add_flag_change_listener) says.
    pub fn add_connection_status_listener(
        &self,
        listener: impl Fn(ConnectionStatus) + Send + Sync + 'static,
    ) -> Subscription {
        self.handle.hub.on_status(listener)
    }

    /// Returns the events of the provider, beginning with how things are: a stream, for those who would rather wait than be
    /// called back. Any number of them may be had.
    ///
    /// ```
    /// # use flipswitch::{FlipswitchProvider, ProviderEvent, serde_json::json};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let provider = FlipswitchProvider::in_memory(json!({}));
    /// # let stopper = provider.clone();
    /// let mut events = provider.events();
    /// # stopper.shutdown().await;
    /// while let Some(event) = events.recv().await {
    ///     match event {
    ///         ProviderEvent::ConfigurationChanged(change) => println!("changed: {:?}", change.flag_key),
    ///         ProviderEvent::Stale => println!("flags may be out of date"),
    ///         other => println!("{other:?}"),
    ///     }
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn events(&self) -> ProviderEvents {
        match &self.handle.source {
            Source::Service(service) => service.events(),
            Source::Memory(_) => self.handle.hub.events(Some(ProviderEvent::Ready)),
        }
    }

    /// Returns how the provider is: for health checks.
    #[must_use]
    pub fn health(&self) -> Health {
        let Handle { source, home, made, .. } = &*self.handle;
        let mut health = match source {
            Source::Service(service) => service.health(),
            Source::Memory(_) => Health::new(HealthState::Live, *made, true),
        };
        if home.is_stopped() {
            health.state = HealthState::ShutDown;
        }
        health
    }

    /// Sets the API key that is used from now on: after [`ApiKeyRotated`](ProviderEvent::ApiKeyRotated), or to mend a wrong
    /// one. A connection to the stream of changes is made with it, and a pause because of the other key ends.
    ///
    /// The key may be another environment's. So everything known counts as out of date; it is served, as stale, only
    /// where the service cannot be asked. Requests that are under way with the other key still end, and are no news to
    /// evaluations that begin from now on. Does nothing [in memory](Self::in_memory).
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] if the key cannot be sent; the one before stays.
    pub fn set_api_key(&self, api_key: impl Into<String>) -> Result<(), ConfigError> {
        let api_key = ApiKey::new(&api_key.into())?;
        if let Source::Service(service) = &self.handle.source {
            service.set_api_key(api_key);
            if self.handle.started.load(Ordering::Relaxed) {
                service.ask_again();
            }
        }
        Ok(())
    }

    /// Returns what the provider did since it was made, and what it keeps. All zero for one [in memory](Self::in_memory).
    #[must_use]
    pub fn stats(&self) -> Stats {
        match &self.handle.source {
            Source::Service(service) => service.stats(),
            Source::Memory(_) => Stats::default(),
        }
    }

    /// The runtime that the provider's work is done on.
    pub(crate) fn home(&self) -> &Home {
        &self.handle.home
    }

    /// Returns the flags for a context that OpenFeature gives: below it comes that of the request in which the caller runs,
    /// if it is a request of this provider.
    async fn flags_in_request(&self, context: &EvaluationContext) -> Flags {
        let scope = RequestScope::current().filter(|scope| Arc::ptr_eq(&scope.provider().handle, &self.handle));
        match scope {
            Some(scope) => scope.flags_with(context).await,
            None => self.flags(context).await,
        }
    }

    async fn resolve<T>(
        &self,
        key: &str,
        context: &EvaluationContext,
        expected: FlagType,
        read: impl FnOnce(&FlagEvaluation) -> Option<T>,
    ) -> EvaluationResult<ResolutionDetails<T>> {
        let flags = self.flags_in_request(context).await;
        match flags.find(key).and_then(|flag| Some((flag, read(flag)?))) {
            Some((flag, value)) => Ok(resolution::details(value, flag, flags.is_stale())),
            None => Err(flags.why_not(key, expected).to_evaluation_error(key)),
        }
    }
}

impl Handle {
    /// Starts what runs in the background, once.
    fn start(&self) {
        if self.home.is_stopped() || self.started.load(Ordering::Relaxed) || self.started.swap(true, Ordering::Relaxed)
        {
            return;
        }
        let Source::Service(service) = &self.source else { return };
        if let Err(error) = service.start() {
            tracing::error!(target: "flipswitch", error = %Chain(&error), "could not start; trying again at the next use");
            self.started.store(false, Ordering::Relaxed);
        }
    }

    fn end(&self) {
        self.hub.close();
        self.home.stop();
        if let Source::Service(service) = &self.source {
            service.end();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.end();
    }
}

/// Shows where values come from; of the API key at most its end.
impl fmt::Debug for FlipswitchProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("FlipswitchProvider");
        match &self.handle.source {
            Source::Service(service) => shown
                .field("base_url", &format_args!("{}", service.base_url()))
                .field("api_key", &format_args!("{}", service.api_key())),
            Source::Memory(memory) => shown.field("flags", &memory.flags()),
        }
        .finish_non_exhaustive()
    }
}

#[async_trait]
impl FeatureProvider for FlipswitchProvider {
    /// Starts the provider and returns at once: OpenFeature holds its global lock meanwhile. Use
    /// [`ready`](FlipswitchProvider::ready) to wait.
    async fn initialize(&mut self, context: &EvaluationContext) {
        if context.targeting_key.is_some() {
            Misuse::GlobalTargetingKey.warn(self);
        }
        self.handle.start();
    }

    fn status(&self) -> ProviderStatus {
        let Handle { source, home, .. } = &*self.handle;
        if home.is_stopped() {
            return ProviderStatus::NotReady;
        }
        match source {
            Source::Memory(_) => ProviderStatus::Ready,
            Source::Service(service) => service.health().state.status(),
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
