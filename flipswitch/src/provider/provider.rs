//! The provider: the handle that an application holds.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderMap, header};
use open_feature::provider::ProviderMetadata;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use tracing::Instrument;

use crate::{
    cache::{entry::CacheEntry, epoch::EpochReading},
    clock::{COARSE_LAG, coarse_now},
    config::{BaseUrl, Config, ContextId, EvaluationEvents},
    context::{
        canonical::{self, Canonical, CanonicalContext},
        context::Context,
        into_context::{IntoContext, View},
        left_out::{LeftOut, LeftOutWarnings},
    },
    credential::{API_KEY, ApiKey, Auth, Credential},
    error::{Chain, ConfigError, Error, FlagError, ReadyError},
    evaluator::evaluator::{EvaluationOutcome, Evaluator, Startup},
    events::{
        bus::{EventBus, Subscription},
        events::{ConnectionStatus, FlagChangeEvent, ProviderEvent, ProviderEvents},
        health::{Health, HealthState},
        notifier::Notifier,
    },
    flags::{
        declare::DeclaredFlag,
        evaluation::FlagEvaluation,
        flag_set::object,
        usage::{Usage, UsageLog},
    },
    provider::{
        browsers::Browsers,
        builder::FlipswitchProviderBuilder,
        evaluation_events::{EventReporter, PROVIDER},
        flags::{Flags, ReadLog},
        in_memory::InMemory,
        inspection::Inspections,
        twins,
    },
    runtime::{ProviderRuntime, with_timeout},
    secret::{BrowserKeys, Secret, Secrets, TelemetryKey, VisitorKeys},
    stats::Stats,
    updates::{changes::Changes, updates::Updates},
    warn_once::WarnOnce,
};

/// The OpenFeature provider for Flipswitch, and for any other OFREP service. A clone is a handle to the same provider.
///
/// [`new`](Self::new), [`builder`](Self::builder), [`from_env`](Self::from_env) and [`ofrep`](Self::ofrep) build a provider,
/// which starts at its first use. [`ready`](Self::ready) starts it and waits for the service. Evaluation never fails: without
/// flags from the service, reads return the defaults passed to the calls. The provider stops when [`shutdown`](Self::shutdown) is
/// called, or when its last handle is dropped.
///
/// # OpenFeature clients
///
/// OpenFeature keeps its handle for the lifetime of the process, so the provider stops only when [`shutdown`](Self::shutdown) is
/// called. Do not call `OpenFeature::shutdown`: in open-feature 0.3.0, a later evaluation panics.
///
/// ```
/// use flipswitch::{EvaluationContext, FlipswitchProvider, open_feature::OpenFeature, serde_json::json};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let provider = FlipswitchProvider::in_memory(json!({"dark-mode": true}));
/// OpenFeature::singleton_mut().await.set_provider(provider.clone()).await;
/// let client = OpenFeature::singleton().await.create_client();
///
/// let user = EvaluationContext::default().with_targeting_key("user-123").with_custom_field("plan", "premium");
/// assert!(client.get_bool_value("dark-mode", Some(&user), None).await.unwrap_or(false));
/// # }
/// ```
#[derive(Clone)]
pub struct FlipswitchProvider {
    handle: Arc<Handle>,
}

/// What all handles of a provider share. Dropping it stops the provider; tasks do not hold it.
struct Handle {
    source: Source,
    runtime: Arc<ProviderRuntime>,
    bus: Arc<EventBus>,
    is_started: AtomicBool,
    has_layers: AtomicBool,
    warned: WarnOnce,
    left_out: LeftOutWarnings,
    name: Option<String>,
    visitor_keys: VisitorKeys,
    inspections: Arc<Inspections>,
    browsers: Arc<Browsers>,
    /// Whether reads are reported. Kept here, because each evaluation checks it.
    reports_reads: bool,
    event_reporter: Arc<EventReporter>,
    built_at: OffsetDateTime,
    metadata: ProviderMetadata,
}

/// Where flags come from.
enum Source {
    Service(Service),
    InMemory(Arc<InMemory>),
}

/// The parts of a provider that is connected to a flag service.
struct Service {
    evaluator: Arc<Evaluator>,
    notifier: Arc<Notifier>,
    updates: Arc<Updates>,
    target: Box<Target>,
}

/// What the provider sends, and where. Boxed, because `Source` is matched in each evaluation.
struct Target {
    base_url: BaseUrl,
    credential: Mutex<Credential>,
    /// Headers that the application adds to every request.
    headers: HeaderMap,
    is_realtime: bool,
    /// Whether the service is polled without a stream.
    is_polled: bool,
    /// Whether there is a secret, or a key to derive one from.
    has_secret: bool,
}

/// What an evaluation needs if memory has no fresh flags.
struct Miss<'a> {
    context: CanonicalContext,
    reading: EpochReading,
    evaluator: &'a Arc<Evaluator>,
}

/// A weak handle to a provider, for callbacks and tasks that must not keep it alive. Returned by
/// [`downgrade`](FlipswitchProvider::downgrade).
#[derive(Clone)]
pub struct WeakProvider(Weak<Handle>);

impl WeakProvider {
    /// Returns the provider, or `None` if its last handle has been dropped.
    #[must_use]
    pub fn upgrade(&self) -> Option<FlipswitchProvider> {
        self.0.upgrade().map(|handle| FlipswitchProvider { handle })
    }
}

impl fmt::Debug for WeakProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakProvider")
    }
}

impl FlipswitchProvider {
    /// Builds a provider for the service at `https://api.flipswitch.io`.
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] if the API key cannot be sent, or if TLS cannot be set up.
    pub fn new(api_key: impl Into<String>) -> Result<Self, ConfigError> {
        Self::builder(api_key).build()
    }

    /// Returns a builder for a provider with settings other than the defaults.
    pub fn builder(api_key: impl Into<String>) -> FlipswitchProviderBuilder {
        FlipswitchProviderBuilder::flipswitch(api_key.into())
    }

    /// Returns a builder for any service that speaks the OpenFeature Remote Evaluation Protocol (OFREP), such as flagd,
    /// GO Feature Flag or Flipt.
    ///
    /// Requests have no API key unless [`auth`](FlipswitchProviderBuilder::auth) sets one;
    /// [`header`](FlipswitchProviderBuilder::header) adds headers. To configure the service with environment variables, use
    /// [`from_ofrep_env`](FlipswitchProviderBuilder::from_ofrep_env). Changes arrive over event streams if the service advertises
    /// any, and otherwise by polling.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), flipswitch::ConfigError> {
    /// use flipswitch::{Auth, FlipswitchProvider};
    ///
    /// let flagd = FlipswitchProvider::ofrep("http://flagd:8016").build()?;
    /// let go_feature_flag = FlipswitchProvider::ofrep("https://goff.example")
    ///     .auth(Auth::ApiKey("my-key".to_owned()))
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn ofrep(base_url: impl Into<String>) -> FlipswitchProviderBuilder {
        FlipswitchProviderBuilder::ofrep(base_url.into())
    }

    /// Builds a provider from the environment: `FLIPSWITCH_API_KEY`, and `FLIPSWITCH_BASE_URL` if it is set.
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] if there is no key, or if a value is invalid.
    pub fn from_env() -> Result<Self, ConfigError> {
        FlipswitchProviderBuilder::from_env()?.build()
    }

    /// Creates a provider with flag values in memory, for tests and demonstrations. It needs no service, network or thread.
    ///
    /// The values are a JSON object of flag keys and values, and apply to every context. For values that change or differ by
    /// context, use [`TestFlags`](crate::testing::TestFlags). If the JSON value is not an object, an error is logged, and the
    /// provider has no flags.
    #[must_use]
    pub fn in_memory(flags: Value) -> Self {
        let values = object(flags).unwrap_or_else(|error| {
            tracing::error!(target: "flipswitch", %error, "invalid values for in_memory; the provider has no flags");
            Map::new()
        });
        Self::with_in_memory(Arc::new(InMemory::new(values, None)))
    }

    pub(crate) fn with_in_memory(in_memory: Arc<InMemory>) -> Self {
        let runtime = Arc::new(ProviderRuntime::new(None, None));
        let bus = Arc::new(EventBus::new(Arc::clone(&runtime)));
        let secrets = Secrets::of_this_process();
        Self::with_source(Source::InMemory(in_memory), runtime, bus, None, &secrets, Default::default())
    }

    /// Publishes a change to a flag in memory.
    pub(crate) fn publish_change(&self, key: String) {
        drop(self.handle.bus.publish(ProviderEvent::ConfigurationChanged(FlagChangeEvent::of(key))));
    }

    pub(crate) fn with_config(config: Config) -> Result<Self, ConfigError> {
        let options = config.options.clone();
        let (base_url, credential) = (config.base_url.clone(), Mutex::new(config.credential.clone()));
        let headers = config.headers.clone();
        let name = config.name.clone();
        let runtime = Arc::new(ProviderRuntime::new(options.runtime.clone(), name.clone()));
        let secret = config.secret.clone().or_else(|| config.credential.key().map(ApiKey::secret));
        let has_secret = secret.is_some();
        let is_guessable = config.secret.is_none() && config.credential.key().is_none_or(ApiKey::is_short);
        let secrets = Secrets {
            current: secret.unwrap_or_else(Secret::of_this_process),
            before: config.secret_before.clone(),
            is_guessable,
        };
        let events = (options.evaluation_events, options.evaluation_context_id);
        let bus = Arc::new(EventBus::new(Arc::clone(&runtime)));
        let notifier = Arc::new(Notifier::new(&options, Arc::clone(&bus), config.secret.is_some()));
        let changes = Arc::new(Changes::default());
        let evaluator =
            Evaluator::new(config, Arc::clone(&runtime), Arc::clone(&notifier), Arc::<Changes>::clone(&changes))?;
        let evaluator = Arc::new(evaluator);
        let updates = Arc::new(Updates::new(
            &options,
            Arc::clone(&runtime),
            Arc::clone(&evaluator),
            Arc::clone(&notifier),
            changes,
        ));
        let (is_realtime, is_polled) = (options.enable_realtime, options.enable_polling_fallback);
        let target = Box::new(Target { base_url, credential, headers, is_realtime, is_polled, has_secret });
        let service = Service { evaluator, notifier, updates, target };
        Ok(Self::with_source(Source::Service(service), runtime, bus, name, &secrets, events))
    }

    fn with_source(
        source: Source,
        runtime: Arc<ProviderRuntime>,
        bus: Arc<EventBus>,
        name: Option<String>,
        secrets: &Secrets,
        (events, context_id): (EvaluationEvents, ContextId),
    ) -> Self {
        let for_others = secrets.for_published_codes();
        let event_reporter = EventReporter::new(events, context_id, TelemetryKey::new(&for_others));
        let draining = runtime.cancellation_token().child_token();
        let keys = BrowserKeys::new(&for_others);
        let browsers = Arc::new(Browsers::new(keys, secrets.is_guessable, bus.changes(), draining));
        Self {
            handle: Arc::new(Handle {
                source,
                runtime,
                bus,
                is_started: AtomicBool::new(false),
                has_layers: AtomicBool::new(false),
                warned: WarnOnce::default(),
                left_out: LeftOutWarnings::default(),
                name,
                visitor_keys: VisitorKeys::new(&secrets.current, secrets.before.as_ref()),
                inspections: Arc::default(),
                browsers,
                reports_reads: events != EvaluationEvents::Off,
                event_reporter: Arc::new(event_reporter),
                built_at: OffsetDateTime::now_utc(),
                metadata: ProviderMetadata::new(PROVIDER),
            }),
        }
    }

    /// Returns the [name](FlipswitchProviderBuilder::name) of the provider, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.handle.name.as_deref()
    }

    /// Starts the provider if it has not been started, and waits until the service has responded once.
    ///
    /// Calling it is optional, because an evaluation starts the provider as well. It may be called several times, even
    /// concurrently.
    ///
    /// # Errors
    ///
    /// - [`ReadyError::Unauthorized`] as soon as the service refuses the key
    /// - [`ReadyError::Unreachable`] after `timeout` if requests failed, with the last error
    /// - [`ReadyError::Timeout`] after `timeout` if there was no response at all
    /// - [`ReadyError::ShutDown`] if the provider is shut down
    ///
    /// After the first three errors, the provider keeps trying.
    pub async fn ready(&self, timeout: Duration) -> Result<(), ReadyError> {
        let Handle { source, runtime, .. } = &*self.handle;
        if runtime.is_stopped() {
            return Err(ReadyError::ShutDown);
        }
        let Source::Service(service) = source else { return Ok(()) };
        self.start();
        let mut startup = service.evaluator.startup();
        let settled = startup.wait_for(|state| !matches!(state, Startup::Waiting(_)));
        // The time is not measured on the provider's runtime, which may be external and blocked.
        let stopped = with_timeout(
            async {
                tokio::select! {
                    biased;
                    () = runtime.cancelled() => true,
                    _ = settled => false,
                }
            },
            timeout,
        );
        if stopped.await == Some(true) {
            return Err(ReadyError::ShutDown);
        }
        let state = service.evaluator.startup();
        let state = state.borrow();
        match &*state {
            Startup::Ready => Ok(()),
            Startup::Unauthorized => Err(ReadyError::Unauthorized),
            Startup::Waiting(Some(error)) => Err(ReadyError::Unreachable(error.clone())),
            Startup::Waiting(None) => Err(ReadyError::Timeout),
        }
    }

    /// Shuts the provider down, and stops its thread, tasks and connections. Takes at most 5 seconds. May be called several
    /// times.
    ///
    /// Evaluations in progress return their fallbacks. Handles stay usable: an evaluation returns the last known flags as stale.
    /// If none are known, reads return the defaults passed to the calls.
    pub async fn shutdown(&self) {
        let Handle { runtime, .. } = &*self.handle;
        let was_running = !runtime.is_stopped();
        self.handle.end();
        // Last, because the subscriber is code of the application and may panic.
        if was_running {
            runtime.span().in_scope(|| tracing::info!(target: "flipswitch", "shutting down"));
        }
        let has_ended = runtime.join().await;
        if was_running && has_ended {
            runtime.span().in_scope(|| tracing::info!(target: "flipswitch", "shut down"));
        }
    }

    /// Evaluates all flags for a context: a [`Context`](crate::Context), a [`PreparedContext`](crate::PreparedContext), an
    /// [`EvaluationContext`](crate::EvaluationContext), a reference to one, or an `Option` of one; see [`IntoContext`]. `None`
    /// is anonymous.
    ///
    /// Never fails: without flags from the service, the result contains the [bootstrap](FlipswitchProviderBuilder::bootstrap)
    /// values or no flags, and [`Flags::error`] returns the reason.
    ///
    /// ```
    /// use flipswitch::{Context, FlipswitchProvider, serde_json::json};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let provider = FlipswitchProvider::in_memory(json!({"dark-mode": true}));
    /// let flags = provider.flags(Context::user("user-123").with("plan", "premium")).await;
    /// assert!(flags.bool("dark-mode", false));
    /// # }
    /// ```
    pub async fn flags(&self, context: impl IntoContext) -> Flags {
        match self.fresh(context) {
            Ok(flags) => flags,
            // Boxed, because it is rarely needed and its future is large.
            Err(miss) => {
                self.start();
                let evaluate = async move {
                    let Miss { context, reading, evaluator } = *miss;
                    self.flags_of(evaluator.evaluate(&context, reading).await, context)
                };
                Box::pin(evaluate.instrument(self.handle.runtime.span())).await
            }
        }
    }

    /// Returns the flags for a context from a request that was sent at `since` or later. If none arrive in time, falls back
    /// like [`flags`](Self::flags).
    pub(crate) async fn flags_since(&self, context: &Context, since: Instant) -> Flags {
        let Source::Service(Service { evaluator, .. }) = &self.handle.source else { return self.flags(context).await };
        self.start();
        let reading = evaluator.epoch().read(Instant::now());
        let canonical = context.with_canonical(|canonical| match self.report_left_out(canonical) {
            Some(invalid) => Err(invalid),
            None => Ok(CanonicalContext::from_bytes(canonical.bytes)),
        });
        let context = match canonical {
            Ok(context) => context,
            Err(invalid) => return invalid,
        };
        let evaluate =
            async move { self.flags_of(evaluator.evaluate_since(&context, reading, Some(since)).await, context) };
        Box::pin(evaluate.instrument(self.handle.runtime.span())).await
    }

    /// Returns the time at which the cached flags for a context were requested.
    pub(crate) fn known_since(&self, context: &Context) -> Option<Instant> {
        match &self.handle.source {
            Source::Service(service) => context.with_canonical(|context| service.evaluator.known_since(context.bytes)),
            Source::InMemory(_) => None,
        }
    }

    /// Returns whether the flags for a context are in memory and fresh.
    pub(crate) fn has_fresh(&self, context: &Context) -> bool {
        self.fresh(context).is_ok()
    }

    /// Returns the time after which flags become out of date while no stream of changes is open.
    pub(crate) fn polling_age(&self) -> Option<Duration> {
        match &self.handle.source {
            Source::Service(service) => service.evaluator.polling_age(),
            Source::InMemory(_) => None,
        }
    }

    /// Returns the flags for a context if that needs no request, or if no request is possible.
    pub(crate) fn try_flags(&self, context: &Context) -> Option<Flags> {
        let try_evaluate = |miss: Box<Miss<'_>>| {
            let Miss { context, reading, evaluator } = *miss;
            evaluator.try_evaluate(&context, reading).map(|outcome| self.flags_of(outcome, context))
        };
        self.fresh(context).map_or_else(try_evaluate, Some)
    }

    /// Returns the last known flags for a context, if there are any, and requests new ones in the background.
    pub(crate) fn last_known_flags(&self, context: &Context) -> Option<Flags> {
        let last_known = |miss: Box<Miss<'_>>| {
            let Miss { context, reading, evaluator } = *miss;
            evaluator.last_known(&context, reading).map(|outcome| self.flags_of(outcome, context))
        };
        self.fresh(context).map_or_else(last_known, Some)
    }

    /// Returns fresh flags from memory, or what an evaluation needs.
    #[inline]
    fn fresh(&self, context: impl IntoContext) -> Result<Flags, Box<Miss<'_>>> {
        context.view(|context| match &self.handle.source {
            Source::Service(Service { evaluator, .. }) => {
                let now = coarse_now();
                let reading = evaluator.epoch().read(now);
                // An entry that may be too old is left to the exact clock.
                let now = now + COARSE_LAG;
                match evaluator.remembered(context, reading, now) {
                    Some(entry) => Ok(self.with_reporting(Flags::fresh(entry))),
                    None => self.cached(evaluator, context, reading, now),
                }
            }
            Source::InMemory(in_memory) => Ok(self.in_memory_flags(in_memory, context)),
        })
    }

    /// Returns fresh flags from the cache, or what an evaluation needs.
    fn cached<'a>(
        &self,
        evaluator: &'a Arc<Evaluator>,
        context: View<'_>,
        reading: EpochReading,
        now: Instant,
    ) -> Result<Flags, Box<Miss<'a>>> {
        context.with_canonical(|canonical| {
            if let Some(invalid) = self.report_left_out(canonical) {
                return Ok(invalid);
            }
            match evaluator.fresh(context, canonical, reading, now) {
                Some(entry) => Ok(self.with_reporting(Flags::fresh(entry))),
                None => {
                    let context = CanonicalContext::from_bytes(canonical.bytes);
                    Err(Box::new(Miss { context, reading, evaluator }))
                }
            }
        })
    }

    fn flags_of(&self, outcome: EvaluationOutcome, context: CanonicalContext) -> Flags {
        self.with_reporting(Flags::new(outcome, context, self.usage_log()))
    }

    /// Returns flags whose reads are reported, if the provider reports reads.
    #[inline]
    fn with_reporting(&self, flags: Flags) -> Flags {
        if self.handle.reports_reads { self.with_reporter(flags) } else { flags }
    }

    #[cold]
    fn with_reporter(&self, flags: Flags) -> Flags {
        match self.handle.event_reporter.recorder() {
            Some(recorder) => flags.recorded(recorder),
            None => flags,
        }
    }

    fn in_memory_flags(&self, in_memory: &InMemory, context: View<'_>) -> Flags {
        context.with_canonical(|canonical| {
            if let Some(invalid) = self.report_left_out(canonical) {
                return invalid;
            }
            let context = CanonicalContext::from_bytes(canonical.bytes);
            let entry = Arc::new(CacheEntry::timeless(&context, in_memory.flag_set(&context)));
            match &in_memory.reads {
                None => Flags::fresh(entry),
                Some(reads) => Flags::fresh(entry).recorded(Arc::<ReadLog>::clone(reads)),
            }
        })
    }

    /// Counts and logs the attributes that are left out of a context. If the targeting key is left out, returns flags with an
    /// error.
    #[inline]
    pub(crate) fn report_left_out(&self, context: Canonical<'_>) -> Option<Flags> {
        let error = self.left_out_error(context.left_out?)?;
        let context = CanonicalContext::from_bytes(context.bytes);
        Some(self.with_reporting(Flags::invalid(error, context, self.usage_log())))
    }

    #[cold]
    fn left_out_error(&self, left_out: &LeftOut) -> Option<Error> {
        let reported = self.handle.runtime.span().in_scope(|| self.handle.left_out.log(left_out));
        if let Source::Service(service) = &self.handle.source {
            service.evaluator.counters().attributes_left_out.add(reported);
        }
        left_out.targeting_key_error()
    }

    /// Evaluates all flags for a context, and returns them sorted by key. Takes the same contexts as [`flags`](Self::flags).
    ///
    /// # Errors
    ///
    /// An [`Error`] if there are no flags for the context.
    pub async fn evaluate_all_flags(&self, context: impl IntoContext) -> Result<Vec<FlagEvaluation>, Error> {
        let flags = self.flags(context).await;
        flags.available()?;
        Ok(flags.iter().cloned().collect())
    }

    /// Returns a weak handle, which does not keep the provider alive.
    #[must_use]
    pub fn downgrade(&self) -> WeakProvider {
        WeakProvider(Arc::downgrade(&self.handle))
    }

    /// Records the flags that the code declares, and logs a warning about those that the service does not have: now, or after
    /// its first response. Returns the text of the warning if it was logged now.
    pub(crate) async fn declare(&self, flags: &'static [DeclaredFlag]) -> Option<String> {
        self.usage_log().declare(flags);
        let Source::Service(Service { evaluator, .. }) = &self.handle.source else {
            return self.declared_problems(flags).await;
        };
        let mut startup = evaluator.startup();
        if matches!(*startup.borrow(), Startup::Ready) {
            return self.declared_problems(flags).await;
        }
        let provider = self.downgrade();
        let check = async move {
            let is_ready = startup.wait_for(|state| matches!(state, Startup::Ready)).await.is_ok();
            if let Some(provider) = provider.upgrade().filter(|_| is_ready) {
                provider.declared_problems(flags).await;
            }
        };
        // Fails only after shutdown.
        let _ = self.handle.runtime.spawn(check);
        None
    }

    /// Compares declared flags with the flags for the start-up context, and logs a warning about the flags that differ. Returns
    /// its text.
    async fn declared_problems(&self, declared: &[DeclaredFlag]) -> Option<String> {
        let start_up = CanonicalContext::start_up();
        let flags = self.flags(&canonical::decode(start_up.as_bytes())).await;
        // Without flags, it is not known which flags the service has.
        if flags.error().is_some() {
            return None;
        }
        let problems = declared.iter().filter_map(|flag| {
            let key = flag.key();
            match flags.look_up(key) {
                Ok(known) if flag.accepts(&known.value) => None,
                Ok(known) => Some(format!("{key:?} has the type {}", known.flag_type)),
                Err(FlagError::NotFound) => {
                    let suggestion = flags.why(key).suggestion;
                    let suggestion = suggestion.map(|other| format!(" (did you mean {other:?}?)")).unwrap_or_default();
                    Some(format!("{key:?} is missing{suggestion}"))
                }
                // The service has the flag, but currently cannot evaluate it.
                Err(_) => None,
            }
        });
        let problems: Vec<_> = problems.collect();
        let text = problems.join(", ");
        (!text.is_empty()).then(|| {
            self.handle.runtime.span().in_scope(|| {
                tracing::warn!(
                    target: "flipswitch", flags = text,
                    "declared flags are missing from the flag service, or have a different type there; their defaults are used"
                );
            });
            text
        })
    }

    /// Evaluates one flag for a context. Takes the same contexts as [`flags`](Self::flags). Returns `None` if the service does
    /// not have the flag.
    ///
    /// # Errors
    ///
    /// An [`Error`] if there are no flags for the context; [`Error::Evaluation`] if the service could not evaluate the
    /// flag.
    pub async fn evaluate_flag(&self, key: &str, context: impl IntoContext) -> Result<Option<FlagEvaluation>, Error> {
        self.flags(context).await.evaluation_if_known(key)
    }

    /// Returns the status of the connection to the stream of changes.
    ///
    /// The status is always [`Disconnected`](ConnectionStatus::Disconnected) before the provider starts, after shutdown, without
    /// [real-time updates](FlipswitchProviderBuilder::enable_realtime), and [in memory](Self::in_memory).
    #[must_use]
    pub fn sse_status(&self) -> ConnectionStatus {
        self.handle.bus.status()
    }

    /// Opens a new connection to the stream of changes immediately, and replaces the current connection, if there is one. Starts
    /// the provider if it has not been started. Does nothing without a stream.
    pub fn reconnect_sse(&self) {
        if let Source::Service(service) = &self.handle.source {
            self.start();
            service.updates.reconnect();
        }
    }

    /// Returns whether the service is being polled, because the stream of changes is closed or disabled.
    #[must_use]
    pub fn is_polling_active(&self) -> bool {
        match &self.handle.source {
            Source::Service(service) => service.updates.is_polling() && !self.handle.runtime.is_stopped(),
            Source::InMemory(_) => false,
        }
    }

    /// Subscribes a listener to all flag changes. Dropping the subscription unsubscribes it.
    ///
    /// Listeners run one at a time, in the order of the events, on a thread of the provider, where they may block. All cached
    /// flags are invalidated first, so a listener that evaluates flags gets the new values. If a listener panics, the panic is
    /// logged, and the listener stays subscribed. If more than 1 024 events have not been delivered yet, they are merged into one
    /// event that says that any flag may have changed.
    ///
    /// While the stream of changes is closed, the changes that polling finds for the start-up context are published. When
    /// the stream opens again after a failure, an event says that any flag may have changed.
    ///
    /// ```
    /// use flipswitch::{FlipswitchProvider, serde_json::json};
    ///
    /// let provider = FlipswitchProvider::in_memory(json!({}));
    /// let subscription = provider.add_flag_change_listener(|change| match &change.flag_key {
    ///     Some(key) => println!("{key} changed"),
    ///     None => println!("any flag may have changed"),
    /// });
    /// // Dropping it unsubscribes; `detach` keeps the listener for the lifetime of the provider.
    /// subscription.detach();
    /// ```
    pub fn add_flag_change_listener(
        &self,
        listener: impl Fn(&FlagChangeEvent) + Send + Sync + 'static,
    ) -> Subscription {
        self.handle.bus.on_change(None, listener)
    }

    /// Subscribes a listener to changes to one flag, and to changes that may concern any flag. Otherwise behaves like
    /// [`add_flag_change_listener`](Self::add_flag_change_listener).
    pub fn add_flag_change_listener_for(
        &self,
        key: impl Into<String>,
        listener: impl Fn(&FlagChangeEvent) + Send + Sync + 'static,
    ) -> Subscription {
        self.handle.bus.on_change(Some(key.into()), listener)
    }

    /// Subscribes a listener to the status of the connection to the stream of changes. Runs like
    /// [`add_flag_change_listener`](Self::add_flag_change_listener).
    pub fn add_connection_status_listener(
        &self,
        listener: impl Fn(ConnectionStatus) + Send + Sync + 'static,
    ) -> Subscription {
        self.handle.bus.on_status(listener)
    }

    /// Returns the events of the provider as a stream, beginning with the current state. May be called any number of
    /// times.
    ///
    /// ```
    /// use flipswitch::{FlipswitchProvider, ProviderEvent, serde_json::json};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let provider = FlipswitchProvider::in_memory(json!({}));
    /// let mut events = provider.events();
    /// # provider.shutdown().await;
    /// // Ends when the provider is shut down.
    /// while let Some(event) = events.recv().await {
    ///     match event {
    ///         ProviderEvent::ConfigurationChanged(change) => println!("changed: {:?}", change.flag_key),
    ///         ProviderEvent::Ready => println!("flags are up to date"),
    ///         ProviderEvent::Stale => println!("flags may be out of date"),
    ///         ProviderEvent::Error { error, .. } => eprintln!("{error}"),
    ///         _ => {}
    ///     }
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn events(&self) -> ProviderEvents {
        match &self.handle.source {
            Source::Service(service) => service.notifier.events(),
            Source::InMemory(_) => self.handle.bus.events(Some(ProviderEvent::Ready)),
        }
    }

    /// Returns the provider's health, for liveness and readiness probes.
    ///
    /// ```
    /// use flipswitch::{FlipswitchProvider, HealthState, serde_json::{self, json}};
    ///
    /// # fn main() -> Result<(), serde_json::Error> {
    /// let provider = FlipswitchProvider::in_memory(json!({"dark-mode": true}));
    /// let health = provider.health();
    /// assert!(health.is_live() && health.is_ready());
    /// assert_eq!(health.state, HealthState::Streaming);
    ///
    /// // The body of the response to a probe. Times are in RFC 3339.
    /// let body = serde_json::to_value(&health)?;
    /// # let mut body = body;
    /// # body["since"] = "2026-01-21T10:30:00Z".into();
    /// assert_eq!(body, json!({
    ///     "state": "streaming",
    ///     "since": "2026-01-21T10:30:00Z",
    ///     "lastEvent": null,
    ///     "lastSuccess": null,
    ///     "apiKeyValidUntil": null,
    ///     "storeAwaySince": null,
    ///     "stream": "disconnected",
    ///     "polling": false,
    ///     "throttling": {
    ///         "circuitOpen": false,
    ///         "backedOffContexts": 0,
    ///         "queuedRequests": 0,
    ///         "requestsPerSecond": null,
    ///         "failingFlags": 0,
    ///         "tagsOff": false,
    ///     },
    ///     "ready": true,
    /// }));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn health(&self) -> Health {
        let Handle { source, runtime, built_at, .. } = &*self.handle;
        let mut health = match source {
            Source::Service(service) => {
                let mut health = service.notifier.health();
                health.throttling = service.evaluator.throttling();
                health.store_away_since = service.evaluator.store_away_since();
                (health.stream, health.polling) = (self.sse_status(), self.is_polling_active());
                health
            }
            Source::InMemory(_) => Health::new(HealthState::Streaming, *built_at, true),
        };
        if runtime.is_stopped() {
            health.state = HealthState::ShutDown;
        }
        health
    }

    /// Replaces the API key, either after [`ApiKeyRotated`](ProviderEvent::ApiKeyRotated) or to correct a wrong key. Replaces the
    /// token of [`Auth::Bearer`](crate::Auth::Bearer) as well.
    ///
    /// The provider reconnects to the stream of changes with the new key. If it is waiting because the old key was refused, it
    /// stops waiting.
    ///
    /// The new key may belong to a different environment. All cached flags therefore count as out of date, and are served as
    /// stale only while the service does not respond. Requests in flight with the old key complete, but evaluations that begin
    /// later do not use their responses. Does nothing [in memory](Self::in_memory).
    ///
    /// ```no_run
    /// use flipswitch::{ConfigError, FlipswitchProvider, ProviderEvent};
    ///
    /// // Stands in for code that reads the new key.
    /// fn key_from_vault() -> String {
    ///     "the new API key".to_owned()
    /// }
    ///
    /// async fn follow_rotations(provider: FlipswitchProvider) -> Result<(), ConfigError> {
    ///     let mut events = provider.events();
    ///     while let Some(event) = events.recv().await {
    ///         // Without `valid_until`, the service has cancelled the replacement.
    ///         if let ProviderEvent::ApiKeyRotated { valid_until: Some(_) } = event {
    ///             provider.set_api_key(key_from_vault())?;
    ///         }
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] if the key cannot be sent, or if there is none to replace. The old key stays in use.
    pub fn set_api_key(&self, api_key: impl Into<String>) -> Result<(), ConfigError> {
        let api_key = api_key.into();
        let Source::Service(service) = &self.handle.source else {
            return Credential::new(&Auth::ApiKey(api_key)).map(drop);
        };
        let _entered = self.handle.runtime.span().entered();
        let credential = {
            // Locked, so that concurrent calls leave the same key everywhere.
            let mut current = service.target.credential.lock();
            *current = current.replaced_by(&api_key)?;
            service.evaluator.set_credential(&current);
            current.clone()
        };
        service.notifier.api_key_replaced();
        service.updates.api_key_replaced();
        tracing::info!(target: "flipswitch", api_key = %credential, "the API key or token was replaced");
        if self.handle.is_started.load(Ordering::Relaxed) && !service.updates.are_enabled() {
            // No other background task would try the new key.
            service.evaluator.spawn_refetch();
        }
        Ok(())
    }

    /// Returns counters since the provider was built. All are zero [in memory](Self::in_memory).
    #[must_use]
    pub fn stats(&self) -> Stats {
        match &self.handle.source {
            Source::Service(service) => service.evaluator.stats(),
            Source::InMemory(_) => Stats::default(),
        }
    }

    /// Returns the time at which each flag was last read. Use it to find flags that can be removed.
    ///
    /// Includes reads of individual flags through [`Flags`], gates and OpenFeature clients, even if the value is overridden or
    /// the default is used. Leaves out reads of all flags together, as in [`Flags::to_json`], and reads by routes for browsers.
    /// Recording adds almost no cost to a read: times are precise to the minute, and the number of reads is not recorded. [In
    /// memory](Self::in_memory) and after shutdown, the time of a read is the time of the next call to this method.
    ///
    /// ```
    /// use flipswitch::{Context, FlipswitchProvider, serde_json::json};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let provider = FlipswitchProvider::in_memory(json!({"new-checkout": true, "old-banner": false}));
    /// assert!(provider.flags(Context::user("alice")).await.bool("new-checkout", false));
    ///
    /// let usage = provider.usage();
    /// let unread = usage.flags.iter().filter(|flag| flag.last_read.is_none());
    /// assert_eq!(unread.map(|flag| &flag.key).collect::<Vec<_>>(), ["old-banner"]);
    /// # }
    /// ```
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage_log().usage(OffsetDateTime::now_utc())
    }

    /// Returns the log in which reads of flags are recorded.
    pub(crate) fn usage_log(&self) -> &Arc<UsageLog> {
        match &self.handle.source {
            Source::Service(service) => service.evaluator.transport().usage(),
            Source::InMemory(in_memory) => &in_memory.usage,
        }
    }

    /// Returns the reporter of evaluations.
    pub(crate) fn event_reporter(&self) -> &EventReporter {
        &self.handle.event_reporter
    }

    /// Starts the background tasks, unless they have been started.
    pub(crate) fn start(&self) {
        let Handle { source, runtime, is_started, .. } = &*self.handle;
        if runtime.is_stopped() || is_started.load(Ordering::Relaxed) || is_started.swap(true, Ordering::Relaxed) {
            return;
        }
        let Source::Service(service) = source else { return };
        let _entered = runtime.span().entered();
        if let Err(error) = service.start(runtime) {
            tracing::error!(target: "flipswitch", error = %Chain(&error), "could not start; retrying at the next use");
            is_started.store(false, Ordering::Relaxed);
            return;
        }
        // Clones the credential first: the subscriber is code of the application, and must not run while the credential is
        // locked.
        let Target { base_url, credential, headers, .. } = &*service.target;
        let credential = credential.lock().clone();
        twins::started(base_url, &credential, headers, runtime);
    }

    /// Returns whether keys are derived from random numbers because there is neither a secret nor an API key.
    pub(crate) fn lacks_secret(&self) -> bool {
        matches!(&self.handle.source, Source::Service(service) if !service.target.has_secret)
    }

    /// Returns the keys for visitor cookies.
    pub(crate) fn visitor_keys(&self) -> &VisitorKeys {
        &self.handle.visitor_keys
    }

    /// Records that a layer gives requests a scope.
    pub(crate) fn layer_added(&self) {
        self.handle.has_layers.store(true, Ordering::Relaxed);
    }

    /// Returns whether a layer gives requests a scope.
    pub(crate) fn has_layers(&self) -> bool {
        self.handle.has_layers.load(Ordering::Relaxed)
    }

    /// Returns the latest inspected requests.
    pub(crate) fn inspections(&self) -> &Arc<Inspections> {
        &self.handle.inspections
    }

    /// Returns what the routes for browsers share.
    pub(crate) fn browsers(&self) -> &Arc<Browsers> {
        &self.handle.browsers
    }

    /// Returns the runtime of the provider's tasks.
    pub(crate) fn runtime(&self) -> &ProviderRuntime {
        &self.handle.runtime
    }

    /// Returns the warnings that have been logged.
    pub(crate) fn warned(&self) -> &WarnOnce {
        &self.handle.warned
    }

    pub(crate) fn metadata_ref(&self) -> &ProviderMetadata {
        &self.handle.metadata
    }

    /// Returns whether two handles are for the same provider.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.handle, &other.handle)
    }
}

impl Service {
    fn start(&self, runtime: &ProviderRuntime) -> Result<(), Error> {
        self.evaluator.start()?;
        self.updates.start()?;
        let usage = Arc::clone(self.evaluator.transport().usage());
        drop(runtime.spawn(usage.sweep_each_minute())?);
        let Target { base_url, is_realtime, is_polled, credential, headers, .. } = &*self.target;
        let api_key = credential.lock().clone();
        let proxy = self.evaluator.transport().proxy();
        tracing::info!(
            target: "flipswitch", %base_url, proxy, %api_key, realtime = is_realtime, polling_fallback = is_polled, "starting"
        );
        self.evaluator.announce_overrides();
        let has_credentials = headers.contains_key(header::AUTHORIZATION) || headers.contains_key(API_KEY);
        if base_url.is_plain_and_remote() && (has_credentials || api_key.key().is_some()) {
            tracing::warn!(target: "flipswitch", %base_url, "the API key or token is sent unencrypted; use https");
        }
        if api_key.key().is_some_and(ApiKey::is_placeholder) {
            tracing::warn!(
                target: "flipswitch",
                "the API key or token looks like a placeholder; use one from the dashboard of the flag service"
            );
        }
        Ok(())
    }
}

impl Handle {
    fn end(&self) {
        let _entered = self.runtime.span().entered();
        self.bus.close();
        self.runtime.stop();
        if let Source::Service(service) = &self.source {
            service.evaluator.end();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.end();
    }
}

/// Shows where flags come from, and at most the end of the API key.
impl fmt::Debug for FlipswitchProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("FlipswitchProvider");
        if let Some(name) = self.name() {
            shown.field("name", &name);
        }
        match &self.handle.source {
            Source::Service(service) => shown
                .field("base_url", &format_args!("{}", service.target.base_url))
                .field("api_key", &format_args!("{}", service.target.credential.lock())),
            Source::InMemory(in_memory) => shown.field("flags", &in_memory.len()),
        }
        .finish_non_exhaustive()
    }
}
