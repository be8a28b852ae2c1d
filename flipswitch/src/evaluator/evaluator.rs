//! The service as a provider knows it: what it answered, and when it is asked again.

mod news;
mod request_task;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use quick_cache::sync::Cache as Entries;
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};

use self::request_task::{Probe, RequestTask};
use crate::{
    ConfigError, Error, Flags, Stats,
    cache::cache::Cache,
    cache::entry::{CacheEntry, Freshness},
    cache::epoch::{Epoch, EpochReading},
    config::{ApiKey, BaseUrl},
    context::canonical::CanonicalContext,
    evaluator::circuit_breaker::{self as pause, Pause},
    evaluator::in_flight::{self as in_flight, InFlightRequest, InFlightRequests, JoinOutcome},
    evaluator::limiter::Slots,
    events::bus::Hub,
    events::events::{FlagChangeEvent, Untold},
    events::health::{Condition, Sign},
    flags::flag_set::FlagSet,
    flags::override_file::Overrides,
    provider::builder::Settings,
    runtime::Home,
    stats::Counters,
    updates::polling::{self as refresh, Refresh},
    updates::stream::{self, Commands},
    wire::backoff::backoff,
    wire::transport::Transport,
};

/// Contexts that the service refused are remembered up to this number.
const REFUSALS: usize = 1_024;

/// Everything between an evaluation and the wire.
pub(crate) struct Service {
    transport: Transport,
    home: Arc<Home>,
    epoch: Epoch,
    cache: Cache,
    in_flight: InFlightRequests,
    refusals: Entries<CanonicalContext, Refusal>,
    pause: Mutex<Pause>,
    slots: Slots,
    startup: watch::Sender<Startup>,
    counters: Counters,
    bootstrap: Option<Arc<FlagSet>>,
    overrides: Option<Overrides>,
    request_timeout: Duration,
    max_wait: Duration,
    polling_interval: Duration,
    base_url: BaseUrl,
    api_key: Mutex<ApiKey>,
    realtime: bool,
    polling_fallback: bool,
    stream: stream::Options,
    commands: Commands,
    connected_before: AtomicBool,
    refresh: Refresh,
    hub: Arc<Hub>,
    condition: Mutex<Condition>,
    /// Changes that are told when requests succeed again.
    untold: Mutex<Untold>,
    /// The time at which the condition changes by itself is another than before.
    condition_changed: Notify,
    heard: Mutex<Heard>,
    /// The pause after a failure is over before its time.
    pause_over: Notify,
    /// Answers of an older epoch were had with another API key.
    key_epoch: AtomicU64,
}

/// What the stream said of itself.
#[derive(Debug, Default)]
struct Heard {
    last_event: Option<OffsetDateTime>,
    api_key_valid_until: Option<OffsetDateTime>,
}

/// What is known of the service since the start.
pub(crate) enum Startup {
    /// It never answered; with the last failure, if there was one.
    Waiting(Option<Error>),
    /// It answered once.
    Ready,
    /// It refused the API key, and never answered before.
    Unauthorized,
}

/// A context that the service refused while it was well.
#[derive(Clone)]
struct Refusal {
    error: Arc<Error>,
    epoch: u64,
    until: Instant,
    failures: u32,
}

impl Service {
    pub(crate) fn new(settings: Settings, home: Arc<Home>, hub: Arc<Hub>) -> Result<Self, ConfigError> {
        let transport = Transport::new(&settings)?;
        let bootstrap = match (settings.bootstrap, &settings.overrides) {
            (bootstrap, None) => bootstrap.map(Arc::new),
            (bootstrap, Some(overrides)) => Some(overrides.over(&bootstrap.unwrap_or_default())),
        };
        let (realtime, polling_fallback) = (settings.enable_realtime, settings.enable_polling_fallback);
        // Where nothing at all looks for changes, it was the application's choice that answers live so long.
        let closed = if realtime || polling_fallback { settings.polling_interval } else { settings.cache_ttl };
        let freshness = Freshness { streaming: settings.cache_ttl, polling: closed, max_stale: settings.max_stale };
        Ok(Self {
            transport,
            home,
            epoch: Epoch::default(),
            cache: Cache::new(settings.cache_capacity, settings.cache_bytes, freshness),
            in_flight: InFlightRequests::default(),
            refusals: Entries::new(REFUSALS),
            pause: Mutex::default(),
            slots: Slots::new(settings.max_concurrent_requests),
            startup: watch::Sender::new(Startup::Waiting(None)),
            counters: Counters::default(),
            bootstrap,
            overrides: settings.overrides,
            request_timeout: settings.request_timeout,
            max_wait: settings.max_wait,
            polling_interval: settings.polling_interval,
            base_url: settings.base_url,
            api_key: Mutex::new(settings.api_key),
            realtime,
            polling_fallback,
            stream: stream::Options {
                max_retries: settings.max_sse_retries,
                polling_fallback,
                idle_timeout: settings.idle_timeout,
            },
            commands: Commands::default(),
            connected_before: AtomicBool::new(false),
            refresh: Refresh::new(),
            hub,
            condition: Mutex::new(Condition::new(
                (realtime || polling_fallback).then_some(settings.polling_interval),
                !realtime,
                Instant::now(),
            )),
            untold: Mutex::default(),
            condition_changed: Notify::new(),
            heard: Mutex::default(),
            pause_over: Notify::new(),
            key_epoch: AtomicU64::new(0),
        })
    }

    pub(crate) fn base_url(&self) -> &BaseUrl {
        &self.base_url
    }

    pub(crate) fn api_key(&self) -> ApiKey {
        lock(&self.api_key).clone()
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

    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    pub(crate) fn commands(&self) -> &Commands {
        &self.commands
    }

    pub(crate) fn refresh(&self) -> &Refresh {
        &self.refresh
    }

    pub(crate) fn startup(&self) -> watch::Receiver<Startup> {
        self.startup.subscribe()
    }

    pub(crate) fn stats(&self) -> Stats {
        self.counters.stats(self.cache.size())
    }

    /// Starts what runs in the background: the start-up check, and the stream of changes.
    ///
    /// # Errors
    ///
    /// An [`Error`] if nothing can be started now.
    pub(crate) fn start(self: &Arc<Self>) -> Result<(), Error> {
        let check = Arc::clone(self);
        // If it fails, it is tried on from then.
        self.home.spawn(async move { check.flags(CanonicalContext::start_up(), check.epoch.read()).await })?;
        if self.realtime {
            self.home.spawn(stream::follow(Arc::clone(self), self.stream))?;
        } else if self.polling_fallback {
            self.refresh.poll_only();
        }
        if self.realtime || self.polling_fallback {
            self.home.spawn(refresh::keep(Arc::clone(self), self.polling_interval))?;
        }
        let (Self { base_url, realtime, .. }, api_key) = (&**self, self.api_key());
        tracing::info!(target: "flipswitch", %base_url, %api_key, realtime, "starting");
        if let Some(overrides) = &self.overrides {
            overrides.announce();
        }
        if base_url.is_plain_and_remote() {
            tracing::warn!(target: "flipswitch", %base_url, "the API key goes over the network unencrypted; use https");
        }
        if api_key.is_placeholder() {
            tracing::warn!(target: "flipswitch", "the API key looks like a placeholder; use one from the dashboard");
        }
        Ok(())
    }

    /// Whatever was known counts as old from now on: nothing will keep it up to date any more.
    pub(crate) fn end(&self) {
        self.epoch.stream_closed();
        self.epoch.invalidate_all();
    }

    /// Takes another key. Whatever was had with the one before may be another environment's.
    pub(crate) fn set_api_key(&self, key: ApiKey) {
        self.transport.set_api_key(&key);
        *lock(&self.api_key) = key;
        self.key_epoch.store(self.epoch.read().epoch + 1, Ordering::Release);
        // After the key: a request that sees the new epoch goes out with the new key.
        self.epoch.invalidate_all();
        self.pause().forget(Instant::now());
        self.pause_over.notify_waiters();
        lock(&self.heard).api_key_valid_until = None;
        self.startup.send_if_modified(|state| {
            let was_refused = matches!(state, Startup::Unauthorized);
            if was_refused {
                *state = Startup::Waiting(None);
            }
            was_refused
        });
        self.sign(Sign::NewKey);
        // It may be another environment's, of which the start-up context need not show anything.
        self.changed(FlagChangeEvent::all());
        self.commands.reconnect();
        self.refresh.soon();
        tracing::info!(target: "flipswitch", api_key = %self.api_key(), "there is another API key");
    }

    /// Asks with another key where nothing else in the background does.
    pub(crate) fn ask_again(self: &Arc<Self>) {
        if !self.realtime && !self.polling_fallback {
            let service = Arc::clone(self);
            drop(self.home.spawn(async move { service.ask_start_up().await }));
        }
    }

    /// Asks for the start-up context again, whatever is known of it, unless the service is not to be asked now; returns
    /// whether it was.
    pub(crate) async fn ask_start_up(self: &Arc<Self>) -> bool {
        if let Some(error) = self.paused() {
            if matches!(*error, Error::Unauthorized) {
                // The stream may not have been waiting for that yet when the request was refused.
                self.commands.unauthorized();
            }
            return false;
        }
        let context = CanonicalContext::start_up();
        let base = || self.cache.get(context.as_bytes());
        if let JoinOutcome::Wait(waiter, request) =
            self.in_flight.join(&context, self.epoch.read().epoch, base, |_| false)
        {
            if let Some(request) = request {
                self.spawn(request);
            }
            waiter.wait(false).await;
        }
        true
    }

    /// Answers from memory if what is there is as good as new.
    pub(crate) fn known(&self, context: &[u8], reading: EpochReading) -> Option<Flags> {
        let entry = self.cache.fresh(context, reading, Instant::now())?;
        self.counters.hits.count();
        Some(Flags::fresh(entry))
    }

    /// Answers what [`known`](Self::known) does not know, where the service is not to be asked at present.
    pub(crate) fn at_once(self: &Arc<Self>, context: &CanonicalContext, reading: EpochReading) -> Option<Flags> {
        let flags = self.without_asking(context, reading, Instant::now())?;
        self.counters.misses.count();
        Some(flags)
    }

    /// Answers what [`known`](Self::known) does not know from what memory has nevertheless, and has it asked for anew.
    pub(crate) fn last_known(self: &Arc<Self>, context: &CanonicalContext, reading: EpochReading) -> Option<Flags> {
        let entry = self.servable(context)?;
        self.counters.misses.count();
        self.counters.stale_served.count();
        let base = || Some(Arc::clone(&entry));
        if let JoinOutcome::Wait(_, Some(request)) = self.in_flight.join(context, reading.epoch, base, |_| false) {
            self.spawn(request);
        }
        Some(Flags::stale(entry, None))
    }

    /// Answers with the help of the service; for what [`known`](Self::known) does not know.
    pub(crate) async fn flags(self: &Arc<Self>, context: CanonicalContext, reading: EpochReading) -> Flags {
        self.counters.misses.count();
        let now = Instant::now();
        if let Some(flags) = self.without_asking(&context, reading, now) {
            return flags;
        }
        let base = || self.cache.get(context.as_bytes());
        let joined = self
            .in_flight
            .join(&context, reading.epoch, base, |known| known.is_fresh(reading, now, self.cache.freshness()));
        let waiter = match joined {
            JoinOutcome::Cached(entry) => return Flags::fresh(entry),
            JoinOutcome::Wait(waiter, None) => {
                self.counters.coalesced.count();
                if let Some(request) = waiter.queued() {
                    self.time(context.clone(), request);
                }
                waiter
            }
            JoinOutcome::Wait(waiter, Some(request)) => {
                self.spawn(request);
                waiter
            }
        };
        let old = self.servable(&context);
        let heard = tokio::select! {
            biased;
            heard = waiter.wait(old.is_some()) => heard,
            // Tasks on a given runtime that stands still never end, and never tell.
            () = self.home.stopping() => in_flight::WaitOutcome::Lost,
        };
        match heard {
            in_flight::WaitOutcome::Answered(entry) => Flags::fresh(entry),
            in_flight::WaitOutcome::Failed(error) => self.without(&context, Some(error)),
            in_flight::WaitOutcome::Slow => match old {
                Some(old) => {
                    self.counters.stale_served.count();
                    Flags::stale(old, None)
                }
                None => self.without(&context, None),
            },
            in_flight::WaitOutcome::Lost => self.without(&context, Some(Arc::new(Error::ShutDown))),
        }
    }

    /// The answer where the service is not asked: after the end, after a refusal, and after a failure.
    fn without_asking(
        self: &Arc<Self>,
        context: &CanonicalContext,
        reading: EpochReading,
        now: Instant,
    ) -> Option<Flags> {
        let error = if self.home.is_stopped() {
            Arc::new(Error::ShutDown)
        } else {
            self.refused(context, reading, now).or_else(|| self.paused())?
        };
        Some(self.without(context, Some(error)))
    }

    /// The error of a context that the service refused a moment ago, unless something changed since.
    fn refused(&self, context: &CanonicalContext, reading: EpochReading, now: Instant) -> Option<Arc<Error>> {
        let refusal = self.refusals.get(context)?;
        (refusal.epoch >= reading.epoch && now < refusal.until).then_some(refusal.error)
    }

    /// The failure because of which the service is not asked.
    fn paused(self: &Arc<Self>) -> Option<Arc<Error>> {
        let (error, begin) = {
            let mut pause = self.pause();
            (pause.refusal()?, pause.begin_probing())
        };
        if begin {
            // Without the lock: where nothing can be spawned, the probe ends here and takes it.
            drop(self.home.spawn(Probe(Arc::clone(self)).run()));
        }
        Some(Arc::new(error))
    }

    /// Keeps the time for a reader whose request has not even started.
    fn time(self: &Arc<Self>, context: CanonicalContext, request: u64) {
        let service = Arc::clone(self);
        drop(self.home.spawn(async move {
            tokio::time::sleep(service.max_wait).await;
            service.in_flight.mark_slow(&context, request);
        }));
    }

    /// The last answer of a context, if it may still be served.
    fn servable(&self, context: &CanonicalContext) -> Option<Arc<CacheEntry>> {
        let entry = self.cache.get(context.as_bytes())?;
        entry.may_be_served(Instant::now(), self.cache.freshness()).then_some(entry)
    }

    /// Answers without the service: with what was known last, what the operator wrote down, or nothing.
    fn without(&self, context: &CanonicalContext, error: Option<Arc<Error>>) -> Flags {
        if let Some(entry) = self.servable(context) {
            self.counters.stale_served.count();
            return Flags::stale(entry, error);
        }
        // An old answer that was at hand a moment ago may have just been dropped or grown too old.
        let error = error.unwrap_or_else(|| Arc::new(Error::Timeout));
        match &self.bootstrap {
            Some(bootstrap) => {
                self.counters.stale_served.count();
                Flags::bootstrapped(Arc::clone(bootstrap), error, context.clone())
            }
            None => Flags::absent(error, context.clone()),
        }
    }

    /// Starts a request at home. Nobody's leaving harms it: not the caller's, and not the waiters'.
    fn spawn(self: &Arc<Self>, request: InFlightRequest) {
        let request_task = RequestTask::new(Arc::clone(self), request);
        // Where nothing can be spawned any more, the request_task is dropped, which ends the request.
        drop(self.home.spawn(request_task.run()));
    }

    fn complete(&self, request: &InFlightRequest, outcome: Result<Arc<CacheEntry>, Error>) -> Option<InFlightRequest> {
        match &outcome {
            Ok(_) => drop(self.refusals.remove(&request.context)),
            Err(error) if pause::concerns_one(error) => self.remember_refusal(request, error),
            Err(_) => {}
        }
        let answered = outcome.as_ref().ok().filter(|_| request.context.is_start_up()).map(Arc::clone);
        let next = self.in_flight.complete(request, outcome, |entry| self.cache.put(entry), || self.epoch.read().epoch);
        if let Some(entry) = answered {
            self.start_up_answered(&entry);
        }
        next
    }

    fn remember_refusal(&self, request: &InFlightRequest, error: &Error) {
        let failures = self.refusals.get(&request.context).map_or(0, |refusal| refusal.failures).saturating_add(1);
        let refusal = Refusal {
            error: Arc::new(error.clone()),
            epoch: request.epoch,
            until: Instant::now() + backoff(pause::FIRST, failures, fastrand::f64()),
            failures,
        };
        self.refusals.insert(request.context.clone(), refusal);
    }

    fn pause(&self) -> MutexGuard<'_, Pause> {
        lock(&self.pause)
    }
}

/// Nothing that runs under these locks leaves what they guard half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}
