//! The evaluator: answers an evaluation from the cache, or with the help of the flag service.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};

use crate::{
    cache::{
        cache::Cache,
        entry::{CacheEntry, Freshness},
        epoch::{Epoch, EpochReading, is_of_event},
        memo::Memo,
    },
    config::{Config, ServiceKind},
    context::{
        canonical::{Canonical, CanonicalContext},
        into_context::View,
    },
    credential::{ApiKey, Credential},
    error::{ConfigError, Error},
    evaluator::{
        backoffs::Backoffs,
        circuit_breaker::CircuitBreaker,
        failing_flags::FailingFlags,
        in_flight::{InFlightRequest, InFlightRequests, JoinOutcome, WaitOutcome, Waiter},
        limiter::Limiter,
        request_task::{PaceTask, RequestTask, RoundTask},
        tags::Tags,
        variety::Variety,
        warnings::Warnings,
    },
    events::notifier::Notifier,
    flags::{failing::Failing, flag_set::FlagSet, override_file::OverrideFile},
    runtime::ProviderRuntime,
    secret::{Secret, StoreKeys},
    stats::{Counters, Stats, Throttling},
    store::{
        fence::{KnownEvents, Requirement},
        store::{Identity, Store},
    },
    wire::{
        event_streams::{Advertised, ConfigVersion},
        transport::Transport,
    },
};

/// Answers evaluations. The fields are shared with the tasks of `request_task.rs`.
pub(crate) struct Evaluator {
    pub(super) transport: Transport,
    pub(super) runtime: Arc<ProviderRuntime>,
    pub(super) epoch: Epoch,
    announced: RwLock<Announced>,
    pub(super) store: Option<Arc<Store>>,
    pub(super) cache: Cache,
    pub(super) in_flight: InFlightRequests,
    pub(super) backoffs: Backoffs,
    pub(super) breaker: Mutex<CircuitBreaker>,
    /// Wakes the task that runs the rounds when the time of the next round changes, or when a round is answered.
    pub(super) breaker_changed: Notify,
    pub(super) limiter: Limiter,
    pub(super) tags: Mutex<Tags>,
    pub(super) failing_flags: Mutex<FailingFlags>,
    /// Limits how often failures are logged as warnings.
    pub(super) warnings: Mutex<Warnings>,
    pub(super) variety: Mutex<Variety>,
    pub(super) startup: watch::Sender<Startup>,
    pub(super) counters: Counters,
    bootstrap: Option<Arc<FlagSet>>,
    pub(super) override_file: Option<OverrideFile>,
    pub(super) service: ServiceKind,
    pub(super) is_realtime: bool,
    /// Whether the next request for the start-up context is sent without a tag.
    pub(super) is_start_up_in_full: AtomicBool,
    pub(super) request_timeout: Duration,
    stale_wait: Duration,
    pub(super) miss_wait: Duration,
    /// Entries from before this epoch were requested with a different API key.
    pub(super) key_epoch: AtomicU64,
    pub(super) notifier: Arc<Notifier>,
    pub(super) observer: Arc<dyn Observer>,
}

/// What is known about changes. Locked whenever the epoch changes.
struct Announced {
    /// The epoch of the last event that announced a change.
    epoch: u64,
    /// The version of the flags that this event names.
    version: ConfigVersion,
    /// The events that were received, in terms that other instances understand.
    events: KnownEvents,
}

/// Receives the reports of the evaluator. The sources of updates implement it, because the evaluator does not depend on them.
pub(crate) trait Observer: Send + Sync {
    /// Takes the flags for the start-up context. `is_current` indicates whether nothing has been invalidated since they were
    /// requested. Returns the keys of flags that changed although no event announced it.
    fn start_up_answered(&self, flag_set: &Arc<FlagSet>, is_current: bool) -> Vec<String>;

    /// Records that the service refused the API key.
    fn key_refused(&self);

    /// Records that the service accepts the API key again after it refused it.
    fn key_accepted(&self);

    /// Records that a request was answered with the API key in use.
    fn answered(&self);

    /// Records which event streams a response advertises. `sent_at` is when its request was sent.
    fn streams_advertised(&self, advertised: Advertised, sent_at: Instant);
}

/// Startup progress.
pub(crate) enum Startup {
    /// No request has succeeded yet. Holds the last error, if there was one.
    Waiting(Option<Error>),
    /// A request has succeeded.
    Ready,
    /// The service refused the API key before any request succeeded.
    Unauthorized,
}

/// Outcome of an evaluation.
pub(crate) enum EvaluationOutcome {
    /// Fresh flags.
    Fresh(Arc<CacheEntry>),
    /// Flags that may be out of date, and the error of the request for newer ones, if it failed.
    Stale(Arc<CacheEntry>, Option<Arc<Error>>),
    /// No flags from the service. Holds the bootstrap values, if there are any.
    Unavailable(Arc<Error>, Option<Arc<FlagSet>>),
}

impl Evaluator {
    pub(crate) fn new(
        config: Config,
        runtime: Arc<ProviderRuntime>,
        notifier: Arc<Notifier>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, ConfigError> {
        let transport = Transport::new(&config)?;
        let store = store(&config, &runtime);
        let Config { bootstrap, override_file, options, .. } = config;
        let bootstrap = match (bootstrap, &override_file) {
            (bootstrap, None) => bootstrap.map(Arc::new),
            (bootstrap, Some(file)) => Some(Arc::new(FlagSet::new(file.apply_to(&bootstrap.unwrap_or_default())))),
        };
        // Without any updates, the application accepts flags as old as `cache_ttl`.
        let is_updated = options.enable_realtime || options.enable_polling_fallback;
        let polling = if is_updated { options.polling_interval } else { options.cache_ttl };
        let freshness = Freshness { streaming: options.cache_ttl, polling, max_stale: options.max_stale };
        Ok(Self {
            transport,
            runtime,
            epoch: Epoch::default(),
            announced: RwLock::new(Announced {
                epoch: 0,
                version: ConfigVersion::default(),
                events: KnownEvents::new(Instant::now()),
            }),
            store,
            cache: Cache::new(options.cache_capacity, options.cache_bytes, freshness),
            in_flight: InFlightRequests::default(),
            backoffs: Backoffs::new(),
            breaker: Mutex::default(),
            breaker_changed: Notify::new(),
            limiter: Limiter::new(options.max_concurrent_requests, options.max_queued_requests),
            tags: Mutex::default(),
            failing_flags: Mutex::default(),
            warnings: Mutex::default(),
            variety: Mutex::default(),
            startup: watch::Sender::new(Startup::Waiting(None)),
            counters: Counters::default(),
            bootstrap,
            override_file,
            service: options.service,
            is_realtime: options.enable_realtime,
            is_start_up_in_full: AtomicBool::new(false),
            request_timeout: options.request_timeout,
            stale_wait: options.stale_wait,
            miss_wait: options.miss_wait,
            key_epoch: AtomicU64::new(0),
            notifier,
            observer,
        })
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    pub(crate) fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn startup(&self) -> watch::Receiver<Startup> {
        self.startup.subscribe()
    }

    pub(crate) fn stats(&self) -> Stats {
        self.counters.stats(self.cache.size(), self.throttling())
    }

    /// Returns what keeps requests from being sent.
    pub(crate) fn throttling(&self) -> Throttling {
        let now = Instant::now();
        let is_circuit_open = self.breaker.lock().error().is_some();
        Throttling {
            is_circuit_open,
            backed_off_contexts: self.backoffs.count(now),
            queued_requests: self.limiter.queued() as u64,
            // At least one request per second is sent.
            requests_per_second: self.limiter.per_second(now).map(|rate| rate as u64),
            failing_flags: self.failing_flags.lock().len() as u64,
            are_tags_off: !self.tags.lock().are_sent(now),
        }
    }

    /// Returns the time since which the store has been unavailable, if it is.
    pub(crate) fn store_away_since(&self) -> Option<OffsetDateTime> {
        self.store.as_ref()?.away_since()
    }

    /// Starts the request that checks the API key.
    ///
    /// # Errors
    ///
    /// An [`Error`] if no task can be started.
    pub(crate) fn start(self: &Arc<Self>) -> Result<(), Error> {
        let check = Arc::clone(self);
        // If it fails, rounds follow.
        self.runtime.spawn(async move {
            drop(check.evaluate(&CanonicalContext::start_up(), check.epoch.read(Instant::now())).await);
        })?;
        Ok(())
    }

    /// Logs a warning that names the flags of an override file.
    pub(crate) fn announce_overrides(&self) {
        if let Some(file) = &self.override_file {
            file.announce();
        }
    }

    /// Marks all flags as out of date, because nothing keeps them up to date any longer.
    pub(crate) fn end(&self) {
        self.epoch.stream_closed();
        self.invalidate_all();
    }

    /// Marks all flags as out of date, although no event has announced a change.
    pub(crate) fn invalidate_all(&self) {
        let mut announced = self.announced.write();
        announced.events.missed(Instant::now());
        self.epoch.invalidate_all();
    }

    /// Records that the stream of changes is open. It counts as open until `heard_until` if nothing is received. A pending round
    /// begins at `round_at` at the latest.
    pub(crate) fn stream_opened(&self, heard_until: Instant, round_at: Instant) {
        {
            let mut announced = self.announced.write();
            announced.events.missed(Instant::now());
            self.epoch.stream_opened(heard_until);
        }
        if let Some(store) = self.store.clone() {
            // Stored flags are fresh only if the store's clock has been read since the stream opened.
            drop(self.runtime.spawn(async move { store.read_clock().await }));
        }
        self.breaker.lock().round_at_latest(round_at);
        self.breaker_changed.notify_waiters();
    }

    /// Marks all flags as out of date because of an event, which may have an id and name the version of the flags.
    pub(crate) fn change_announced(&self, id: Option<u64>, version: ConfigVersion) {
        // Locked before the epoch changes, so that a request of the new epoch finds the version.
        let (mut announced, now) = (self.announced.write(), Instant::now());
        announced.events.event(id, self.epoch.current(now), now);
        (announced.epoch, announced.version) = (self.epoch.change_announced(now), version);
    }

    /// Returns the epoch, and what flags from the store must contain to be fresh in it. The requirement is `None` if the
    /// stream of changes cannot tell.
    pub(super) fn position(&self, now: Instant) -> (EpochReading, Option<Requirement>) {
        let announced = self.announced.read();
        let reading = self.epoch.read(now);
        // The ids of several streams cannot be compared.
        let has_ids = self.service == ServiceKind::Flipswitch;
        (reading, announced.events.requirement(reading).filter(|_| has_ids))
    }

    /// Returns whether the store may have flags for a context that are better than those in memory.
    pub(super) fn may_be_stored(&self, context: &CanonicalContext, now: Instant) -> bool {
        let is_usable = self.store.as_ref().is_some_and(|store| !context.is_start_up() && store.is_available());
        is_usable && (self.position(now).1.is_some() || self.servable(context).is_none())
    }

    /// Returns the version that a request must send back because an event demanded it. `known` is the epoch of the cached
    /// flags. A request for a context without cached flags sends no version.
    pub(super) fn demanded_version(&self, known: Option<u64>, epoch: u64) -> ConfigVersion {
        let announced = self.announced.read();
        let is_due = known.is_some_and(|known| known <= announced.epoch) && is_of_event(announced.epoch, epoch);
        if is_due { announced.version.clone() } else { ConfigVersion::default() }
    }

    /// Sends the next request for the start-up context without a tag, so that the response has a body.
    pub(crate) fn request_start_up_in_full(&self) {
        self.is_start_up_in_full.store(true, Ordering::Relaxed);
    }

    /// Sends another API key or token from now on, and marks all flags as out of date, because they may belong to another
    /// environment.
    pub(crate) fn set_credential(&self, credential: &Credential) {
        let set = || self.transport.set_credential(credential);
        match &self.store {
            Some(store) => store.set_credential(credential, set),
            None => set(),
        }
        self.key_epoch.store(self.epoch.after_next_invalidation(), Ordering::Release);
        // Invalidated after the key has been set, so that a request that sees the new epoch is sent with the new key.
        self.invalidate_all();
        self.breaker.lock().reset(Instant::now());
        self.backoffs.clear();
        self.limiter.key_replaced();
        self.breaker_changed.notify_waiters();
        self.startup.send_if_modified(|state| {
            let was_refused = matches!(state, Startup::Unauthorized);
            if was_refused {
                *state = Startup::Waiting(None);
            }
            was_refused
        });
    }

    /// Requests the flags for the start-up context in the background.
    pub(crate) fn spawn_refetch(self: &Arc<Self>) {
        let evaluator = Arc::clone(self);
        drop(self.runtime.spawn(async move { evaluator.refetch_start_up().await }));
    }

    /// Requests the flags for the start-up context, even if they are cached. Returns whether a request was possible.
    pub(crate) async fn refetch_start_up(self: &Arc<Self>) -> bool {
        let context = CanonicalContext::start_up();
        if let Some(error) = self.breaker_error(&context) {
            if matches!(*error, Error::Unauthorized) {
                // Reported again, because the stream may not have waited for it when the request was refused.
                self.observer.key_refused();
            }
            return false;
        }
        let now = Instant::now();
        if self.backoffs.error(&context, self.epoch.read(now), now).is_some() {
            // It is requested again when its backoff ends.
            return false;
        }
        let cached = || self.cache.get(context.as_bytes());
        let joined = self.in_flight.join(&context, self.epoch.current(now), cached, |_| false);
        if let JoinOutcome::Wait(waiter, request) = joined {
            if let Some(request) = request {
                self.spawn_request(request);
            }
            // A request waits for its permit for at most `request_timeout`, and then takes at most that long.
            let _ = tokio::time::timeout(2 * self.request_timeout, waiter.wait()).await;
        }
        true
    }

    /// Returns the flags for the context if this thread remembers them and they are fresh. `now` is when the epoch was read.
    #[inline]
    pub(crate) fn remembered(&self, context: View<'_>, reading: EpochReading, now: Instant) -> Option<Arc<CacheEntry>> {
        let entry = Memo::of_this_thread(|memo| memo.find(&self.cache, context, reading, now)).flatten()?;
        self.counters.hits.count();
        Some(entry)
    }

    /// Returns flags from the cache if they are fresh. `now` is when the epoch was read. `context` is the context as the caller
    /// passed it.
    pub(crate) fn fresh(
        self: &Arc<Self>,
        context: View<'_>,
        canonical: Canonical<'_>,
        reading: EpochReading,
        now: Instant,
    ) -> Option<Arc<CacheEntry>> {
        let (puts, entry) = self.cache.fresh(&canonical.key(), reading, now)?;
        self.counters.hits.count();
        if canonical.left_out.is_none() {
            Memo::of_this_thread(|memo| memo.found(&self.cache, puts, context, &entry));
        }
        if let Some(failing) = entry.failing() {
            self.refetch_failing(&entry, failing, reading, now);
        }
        Some(entry)
    }

    /// Requests the flags for a context again because some of them failed, if a retry is due. Nothing waits for the request.
    #[cold]
    fn refetch_failing(self: &Arc<Self>, entry: &CacheEntry, failing: &Failing, reading: EpochReading, now: Instant) {
        if !failing.is_look_due(now) || !self.failing_flags.lock().is_due(failing.keys(), now) {
            return;
        }
        let context = CanonicalContext::from_bytes(entry.context());
        if self.runtime.is_stopped() || self.unavailability(&context, reading, now).is_some() {
            return;
        }
        let cached = || self.cache.get(context.as_bytes());
        let is_newer = |cached: &Arc<CacheEntry>| cached.sent_at > entry.sent_at;
        if let JoinOutcome::Wait(_, Some(request)) = self.in_flight.join(&context, reading.epoch, cached, is_newer) {
            self.spawn_request(request);
        }
    }

    /// Answers an evaluation for which [`fresh`](Self::fresh) found nothing, if no request is currently possible.
    pub(crate) fn try_evaluate(
        self: &Arc<Self>,
        context: &CanonicalContext,
        reading: EpochReading,
    ) -> Option<EvaluationOutcome> {
        let outcome = self.fallback_at_once(context, reading, Instant::now())?;
        self.counters.misses.count();
        Some(outcome)
    }

    /// Answers an evaluation for which [`fresh`](Self::fresh) found nothing. Uses the last known flags, if there are any, and
    /// requests new ones in the background.
    pub(crate) fn last_known(
        self: &Arc<Self>,
        context: &CanonicalContext,
        reading: EpochReading,
    ) -> Option<EvaluationOutcome> {
        let Some(entry) = self.servable(context) else {
            // The store may have flags for the next evaluation.
            let outcome = self.fallback_if_unavailable(context, reading, Instant::now())?;
            self.counters.misses.count();
            self.request_in_background(context, reading);
            return Some(outcome);
        };
        self.counters.misses.count();
        self.counters.stale_served.count();
        self.request_in_background(context, reading);
        Some(EvaluationOutcome::Stale(entry, None))
    }

    /// Requests the flags for a context. Nothing waits for them.
    fn request_in_background(self: &Arc<Self>, context: &CanonicalContext, reading: EpochReading) {
        let cached = || self.cache.get(context.as_bytes());
        if let JoinOutcome::Wait(_, Some(request)) = self.in_flight.join(context, reading.epoch, cached, |_| false) {
            self.spawn_request(request);
        }
    }

    /// Answers an evaluation for which [`fresh`](Self::fresh) found nothing, with the help of the service.
    pub(crate) async fn evaluate(
        self: &Arc<Self>,
        context: &CanonicalContext,
        reading: EpochReading,
    ) -> EvaluationOutcome {
        self.evaluate_since(context, reading, None).await
    }

    /// Answers an evaluation. If `since` is set, the answer must belong to a request that was sent then or later.
    pub(crate) async fn evaluate_since(
        self: &Arc<Self>,
        context: &CanonicalContext,
        reading: EpochReading,
        since: Option<Instant>,
    ) -> EvaluationOutcome {
        self.counters.misses.count();
        let now = Instant::now();
        if let Some(outcome) = self.fallback_at_once(context, reading, now) {
            return outcome;
        }
        let stale = self.servable(context);
        // When the wait ends, the request continues for later evaluations. If the runtime ends, the request is lost.
        let may_be_restored = stale.is_none() && self.may_be_stored(context, now);
        let mut over = std::pin::pin!(self.wait(context, stale.is_some(), may_be_restored));
        let mut joins = 0;
        let (outcome, request) = loop {
            let waiter = match self.join(context, reading, now, since) {
                Ok(waiter) => waiter,
                Err(entry) => return EvaluationOutcome::Fresh(entry),
            };
            let request = waiter.joined();
            let outcome = tokio::select! {
                biased;
                outcome = waiter.wait() => outcome,
                is_over = &mut over => if is_over { WaitOutcome::Slow } else { WaitOutcome::Lost },
                // Tasks on an external runtime that is blocked never end, and never complete their requests.
                () = self.runtime.cancelled() => WaitOutcome::Lost,
            };
            joins += 1;
            match outcome {
                // The evaluation joined a request that was sent too early, and joins the next one.
                WaitOutcome::Answered(entry) if joins == 1 && since.is_some_and(|since| entry.sent_at < since) => {}
                outcome => break (outcome, request),
            }
        };
        match outcome {
            WaitOutcome::Answered(entry) => EvaluationOutcome::Fresh(entry),
            WaitOutcome::Failed(error) => self.fallback(context, error),
            WaitOutcome::Slow => {
                // The service may have become unavailable in the meantime, or the request may still be queued.
                let mut error = self.unavailability(context, reading, Instant::now());
                if request.is_some_and(|request| self.limiter.is_queued(request)) {
                    error = error.or_else(|| Some(Arc::new(Error::QueueFull)));
                }
                // The request may have found flags in the store.
                match stale.or_else(|| self.servable(context)) {
                    Some(stale) => {
                        self.counters.stale_served.count();
                        EvaluationOutcome::Stale(stale, error)
                    }
                    None => {
                        self.report_miss();
                        self.fallback(context, error.unwrap_or_else(|| Arc::new(Error::Timeout)))
                    }
                }
            }
            WaitOutcome::Lost => self.fallback(context, Arc::new(Error::ShutDown)),
        }
    }

    /// Joins a request for a context, or starts one. Returns the entry if one was cached in the meantime.
    fn join(
        self: &Arc<Self>,
        context: &CanonicalContext,
        reading: EpochReading,
        now: Instant,
        since: Option<Instant>,
    ) -> Result<Waiter, Arc<CacheEntry>> {
        let cached = || self.cache.get(context.as_bytes());
        let is_usable = |entry: &Arc<CacheEntry>| {
            entry.is_fresh(reading, now, self.cache.freshness()) && since.is_none_or(|since| entry.sent_at >= since)
        };
        match self.in_flight.join(context, reading.epoch, cached, is_usable) {
            JoinOutcome::Cached(entry) => Err(entry),
            JoinOutcome::Wait(waiter, None) => {
                self.counters.coalesced.count();
                if let Some(request) = waiter.joined() {
                    self.limiter.renew(request);
                }
                Ok(waiter)
            }
            JoinOutcome::Wait(waiter, Some(request)) => {
                self.spawn_request(request);
                Ok(waiter)
            }
        }
    }

    /// Returns when the cached flags for a context were requested.
    pub(crate) fn known_since(&self, context: &[u8]) -> Option<Instant> {
        Some(self.cache.get(context)?.sent_at)
    }

    /// Returns the age at which flags become out of date, if no stream of changes is open.
    pub(crate) fn polling_age(&self) -> Option<Duration> {
        let is_streaming = self.epoch.read(Instant::now()).streaming;
        (!is_streaming).then_some(self.cache.freshness().polling)
    }

    /// Waits as long as an evaluation may wait. The wait is shorter if flags arrive from the store in the meantime. Returns
    /// `false` immediately if the runtime ends.
    async fn wait(&self, context: &CanonicalContext, has_flags: bool, may_be_restored: bool) -> bool {
        let (patience, first) = (self.patience(has_flags), self.patience(true));
        if !may_be_restored || first >= patience {
            return self.runtime.sleep(patience).await;
        }
        self.runtime.sleep(first).await
            && (self.servable(context).is_some() || self.runtime.sleep(patience - first).await)
    }

    /// Returns how long an evaluation waits.
    fn patience(&self, has_flags: bool) -> Duration {
        if has_flags { self.stale_wait } else { self.miss_wait }
    }

    /// Answers without the service if no request is possible, unless the context has no flags in memory and the store may have
    /// some. If the store may have better flags than those in memory, they are requested for later evaluations.
    fn fallback_at_once(
        self: &Arc<Self>,
        context: &CanonicalContext,
        reading: EpochReading,
        now: Instant,
    ) -> Option<EvaluationOutcome> {
        if self.runtime.is_stopped() || !self.may_be_stored(context, now) {
            return self.fallback_if_unavailable(context, reading, now);
        }
        self.servable(context)?;
        let outcome = self.fallback_if_unavailable(context, reading, now)?;
        self.request_in_background(context, reading);
        Some(outcome)
    }

    /// Answers without the service if no request is possible: after shutdown, while the context backs off or the
    /// breaker is open, and if the service accepts no requests for longer than the evaluation waits.
    fn fallback_if_unavailable(
        self: &Arc<Self>,
        context: &CanonicalContext,
        reading: EpochReading,
        now: Instant,
    ) -> Option<EvaluationOutcome> {
        let error = if self.runtime.is_stopped() {
            Arc::new(Error::ShutDown)
        } else {
            self.unavailability(context, reading, now)?
        };
        Some(self.fallback(context, error))
    }

    /// Returns the reason why a context cannot currently be requested, if there is one.
    pub(super) fn unavailability(
        self: &Arc<Self>,
        context: &CanonicalContext,
        reading: EpochReading,
        now: Instant,
    ) -> Option<Arc<Error>> {
        let breaker_error = self.breaker_error(context);
        let error = self.backoffs.error(context, reading, now).or(breaker_error);
        error.or_else(|| self.limit_error(context, now))
    }

    /// Answers without the service: with the last known flags, with the bootstrap values, or with none.
    fn fallback(&self, context: &CanonicalContext, error: Arc<Error>) -> EvaluationOutcome {
        if let Some(entry) = self.servable(context) {
            self.counters.stale_served.count();
            return EvaluationOutcome::Stale(entry, Some(error));
        }
        self.counters.unavailable.count();
        if self.bootstrap.is_some() {
            self.counters.stale_served.count();
        }
        EvaluationOutcome::Unavailable(error, self.bootstrap.clone())
    }

    /// Reports that an evaluation without any flags timed out.
    fn report_miss(&self) {
        let now = Instant::now();
        let Some(evaluations) = self.warnings.lock().missed(now) else { return };
        let Throttling { queued_requests, requests_per_second, .. } = self.throttling();
        let miss_wait = self.miss_wait;
        tracing::warn!(
            target: "flipswitch", evaluations, ?miss_wait, queued_requests, requests_per_second,
            "new users get defaults because their flags take longer than `miss_wait`. The flag service is slow, or there are \
             more new users than it can handle"
        );
    }

    /// Returns the last flags for a context, if they may still be served.
    pub(super) fn servable(&self, context: &CanonicalContext) -> Option<Arc<CacheEntry>> {
        let entry = self.cache.get(context.as_bytes())?;
        entry.may_be_served(Instant::now(), self.cache.freshness()).then_some(entry)
    }

    /// If the breaker is open, returns its error, and notes that the context could not be requested.
    fn breaker_error(self: &Arc<Self>, context: &CanonicalContext) -> Option<Arc<Error>> {
        let (error, needs_task) = {
            let mut breaker = self.breaker.lock();
            let error = breaker.error()?.clone();
            breaker.want(context, self.cache.get(context.as_bytes()).is_some());
            (error, breaker.needs_task())
        };
        if needs_task {
            self.spawn_rounds();
        }
        Some(Arc::new(error))
    }

    /// Returns an error if the service accepts no requests for longer than an evaluation waits.
    fn limit_error(&self, context: &CanonicalContext, now: Instant) -> Option<Arc<Error>> {
        let wait = self.limiter.blocked_until(now).saturating_duration_since(now);
        let is_longer = !wait.is_zero() && wait > self.patience(self.cache.get(context.as_bytes()).is_some());
        is_longer.then(|| Arc::new(Error::RateLimited { retry_after: wait }))
    }

    /// Starts the task that runs the rounds, if a round is due and the task is not running.
    pub(super) fn plan_rounds(self: &Arc<Self>) {
        let is_needed = self.breaker.lock().needs_task();
        if is_needed {
            self.spawn_rounds();
        }
    }

    /// Spawns the task that runs the rounds. Must not be called while the breaker is locked: a task that cannot be spawned is
    /// dropped, and dropping it locks the breaker.
    fn spawn_rounds(self: &Arc<Self>) {
        drop(self.runtime.spawn(RoundTask::new(Arc::clone(self)).run()));
    }

    /// Starts the task that hands out permits while the rate is limited, if requests are waiting and the task is not running.
    pub(super) fn pace(self: &Arc<Self>) {
        if self.limiter.needs_pacing(Instant::now()) {
            drop(self.runtime.spawn(PaceTask::new(self.limiter.clone()).run()));
        }
    }

    /// Sends a request on the provider's runtime, where dropping a waiter does not cancel it.
    fn spawn_request(self: &Arc<Self>, request: InFlightRequest) {
        let task = RequestTask::new(Arc::clone(self), request);
        // If the task cannot be spawned, it is dropped, which fails the request.
        drop(self.runtime.spawn(task.run()));
    }

    /// Completes a request, and returns the next one to send for its context, if there is one.
    pub(super) fn complete(
        &self,
        request: &InFlightRequest,
        outcome: Result<Arc<CacheEntry>, Error>,
    ) -> Option<InFlightRequest> {
        let answered = outcome.as_ref().ok().filter(|_| request.context.is_start_up()).map(Arc::clone);
        let next = self.in_flight.complete(
            request,
            outcome,
            |entry| self.cache.put(entry),
            || self.epoch.current(Instant::now()),
        );
        if let Some(entry) = answered {
            self.start_up_answered(&entry);
        }
        next
    }

    /// Publishes what changed in the flags for the start-up context.
    fn start_up_answered(&self, entry: &Arc<CacheEntry>) {
        let cached = self.cache.get(entry.context());
        if cached.is_some_and(|cached| !Arc::ptr_eq(&cached, entry)) {
            // A newer one is already cached.
            return;
        }
        let reading = self.epoch.read(Instant::now());
        let changed = self.observer.start_up_answered(&entry.flag_set, entry.epoch >= reading.epoch);
        if !changed.is_empty() {
            // No event has invalidated the flags for other contexts. A stream that has just opened, or is silent, may have
            // missed it.
            self.invalidate_all();
        }
        for key in changed {
            self.notifier.changed_in_response(key);
        }
    }
}

/// Returns the store of a provider, if it has one.
fn store(config: &Config, runtime: &Arc<ProviderRuntime>) -> Option<Arc<Store>> {
    let store = config.store.clone()?;
    if config.override_file.is_some() {
        // The file's values must not be shared, and cannot later be distinguished from the service's values.
        tracing::warn!(target: "flipswitch", "the store is not used, because `override_file` is set");
        return None;
    }
    let secret = config.secret.clone().or_else(|| config.credential.key().map(ApiKey::secret));
    let mut headers: Vec<_> = config.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    headers.sort_unstable();
    let target = [("", config.base_url.to_string().as_bytes())]
        .into_iter()
        .chain(headers)
        .flat_map(|(name, value)| [name.as_bytes(), b"\0", value, b"\0"].concat())
        .collect();
    let keys = StoreKeys::new(&secret.unwrap_or_else(Secret::of_this_process));
    let identity = Identity { keys, target, namespace: config.store_namespace.clone() };
    let ttls = [config.options.cache_ttl, config.options.max_stale];
    Some(Store::new(store, identity, &config.credential, ttls, Arc::clone(runtime)))
}
