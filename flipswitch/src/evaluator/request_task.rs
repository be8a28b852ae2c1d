//! Tasks that send requests: one for each request in flight, and one that finds out whether a failing service has
//! recovered.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use crate::{
    cache::{entry::CacheEntry, epoch::NEVER_FRESH},
    context::canonical::CanonicalContext,
    error::{Chain, Error, Failure, FlagError},
    evaluator::{
        backoffs::SET_TARGETING_KEY,
        circuit_breaker::{CircuitBreaker, FIRST_WAIT, rejects_context},
        evaluator::{Evaluator, Startup},
        in_flight::InFlightRequest,
        limiter::{Limiter, Permit, Ticket},
        tags::{is_same_tag, may_reject_tag},
        variety::{CacheUse, Differing},
        warnings::Kind,
    },
    events::health::HealthSignal,
    flags::{failing::Failing, flag_set::FlagSet},
    sanitize::printable,
    stats::Stats,
    store::{
        fence::Fence,
        store::{Found, HeldLease, Look, Store, Turn},
    },
    wire::{backoff::backoff, event_streams::ConfigVersion, not_found::may_lack_flags, transport::Bulk},
};

/// A request that takes less time is not slow, even if evaluations wait for a shorter time.
const MIN_SLOW: Duration = Duration::from_secs(1);

/// How long a round waits for an answer while the circuit breaker is open. A round that decides whether the breaker opens waits
/// for the outcomes of all its requests, because contexts that fail immediately must not stop others while the service is only
/// slow.
const ROUND_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to wait before the store is asked again whether another instance has stored its answer. Doubles each time.
const FIRST_LOOK_WAIT: Duration = Duration::from_millis(20);
const MAX_LOOK_WAIT: Duration = Duration::from_millis(640);

/// Maximum time that a request for a context without flags waits while another instance requests them.
const MAX_WAIT_OF_NEW: Duration = Duration::from_millis(250);

/// Drives one in-flight request to completion. Dropping it fails all waiters with [`Error::ShutDown`], which also happens
/// if it panics, or if its runtime is gone.
pub(super) struct RequestTask {
    evaluator: Arc<Evaluator>,
    request: Option<InFlightRequest>,
}

impl RequestTask {
    pub(super) fn new(evaluator: Arc<Evaluator>, request: InFlightRequest) -> Self {
        Self { evaluator, request: Some(request) }
    }

    /// Sends the request, and those that follow it for the same context.
    pub(super) async fn run(mut self) {
        while let Some(request) = &self.request {
            let outcome = self.evaluator.send(request).await;
            self.request = self.evaluator.complete(request, outcome);
        }
    }
}

impl Drop for RequestTask {
    fn drop(&mut self) {
        while let Some(request) = self.request.take() {
            self.request = self.evaluator.complete(&request, Err(Error::ShutDown));
        }
    }
}

/// Sends rounds of requests, when the circuit breaker plans them, until the service responds. Dropping it allows another
/// task to start.
pub(super) struct RoundTask {
    evaluator: Arc<Evaluator>,
    has_ended: bool,
}

impl RoundTask {
    pub(super) fn new(evaluator: Arc<Evaluator>) -> Self {
        Self { evaluator, has_ended: false }
    }

    pub(super) async fn run(mut self) {
        let evaluator = Arc::clone(&self.evaluator);
        loop {
            // Registered before the check, so that no change between the check and the wait is missed.
            let mut changed = std::pin::pin!(evaluator.breaker_changed.notified());
            changed.as_mut().enable();
            let Some(due) = evaluator.breaker.lock().next_round() else { break };
            let due = due.max(evaluator.limiter.blocked_until(Instant::now()));
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {}
                () = changed => continue,
            }
            evaluator.send_round().await;
        }
        self.has_ended = true;
    }
}

impl Drop for RoundTask {
    fn drop(&mut self) {
        if !self.has_ended {
            self.evaluator.breaker.lock().task_dropped();
        }
    }
}

/// Hands out permits while the rate of requests is limited. Dropping it allows another task to start.
pub(super) struct PaceTask {
    limiter: Limiter,
    has_ended: bool,
}

impl PaceTask {
    pub(super) fn new(limiter: Limiter) -> Self {
        Self { limiter, has_ended: false }
    }

    pub(super) async fn run(mut self) {
        while let Some(next) = self.limiter.pace(Instant::now()) {
            tokio::time::sleep_until(next.into()).await;
        }
        self.has_ended = true;
    }
}

impl Drop for PaceTask {
    fn drop(&mut self) {
        if !self.has_ended {
            self.limiter.pacing_dropped();
        }
    }
}

impl Evaluator {
    /// Sends the requests of a round, and records what their outcomes say about the service.
    async fn send_round(self: &Arc<Self>) {
        let contexts = self.breaker.lock().begin_round(Instant::now());
        let mut requests = Vec::new();
        for context in contexts {
            requests.extend(self.runtime.spawn(Arc::clone(self).probe(context)));
        }
        let all = async {
            for request in requests {
                // Its outcome has already been recorded.
                let _ = request.await;
            }
        };
        // One answer ends the round. Its other requests continue.
        let answered = async {
            loop {
                let mut changed = std::pin::pin!(self.breaker_changed.notified());
                changed.as_mut().enable();
                if !self.breaker.lock().has_round() {
                    break;
                }
                changed.await;
            }
        };
        let timeout = async {
            tokio::time::sleep(ROUND_TIMEOUT).await;
            while self.breaker.lock().error().is_none() {
                tokio::time::sleep(ROUND_TIMEOUT).await;
            }
        };
        tokio::select! {
            () = all => {}
            () = answered => {}
            () = timeout => {}
        }
        let now = Instant::now();
        let mut is_unanswered = false;
        self.judge(|breaker| is_unanswered = breaker.end_round(now, fastrand::f64()));
        if is_unanswered {
            self.limiter.halve(now);
        }
    }

    /// Requests the flags for a context without a permit, or waits for the request in flight.
    async fn probe(self: Arc<Self>, context: CanonicalContext) {
        match self.in_flight.probe(&context, self.epoch.current(Instant::now())) {
            Ok(request) => RequestTask::new(self, request).run().await,
            Err(waiter) => drop(waiter.wait().await),
        }
    }

    /// Answers a request, from the store or with the help of the service.
    async fn send(self: &Arc<Self>, request: &InFlightRequest) -> Result<Arc<CacheEntry>, Error> {
        if request.is_probe {
            // A probe needs no permit, and does not wait for the store.
            return self.send_now(request, None, None).await;
        }
        match &self.store {
            // Boxed, because most providers have no store, and the future is large.
            Some(store) if self.may_be_stored(&request.context, Instant::now()) && !self.is_confirmation(request) => {
                Box::pin(self.send_in_turn(store, request)).await
            }
            _ => {
                let permit = self.permit(request).await?;
                self.send_now(request, Some(permit), None).await
            }
        }
    }

    /// Returns whether the flags for a context are requested although those in memory are fresh.
    fn is_confirmation(&self, request: &InFlightRequest) -> bool {
        let now = Instant::now();
        let reading = self.epoch.read(now);
        let is_fresh = |base: &Arc<CacheEntry>| base.is_fresh(reading, now, self.cache.freshness());
        !request.is_next && request.base.as_ref().is_some_and(is_fresh)
    }

    /// Answers a request from the store. If that is not possible, sends the request, unless another instance does so for
    /// all instances.
    async fn send_in_turn(
        self: &Arc<Self>,
        store: &Arc<Store>,
        request: &InFlightRequest,
    ) -> Result<Arc<CacheEntry>, Error> {
        let (context, began) = (&request.context, Instant::now());
        let mut wait = FIRST_LOOK_WAIT;
        loop {
            // The second lookup, with a permit, does not wait for its turn.
            if let Some(entry) =
                self.look(store.look_in_turn(context.as_bytes(), self.transport.interner()), context).await
            {
                return Ok(entry);
            }
            if wait == FIRST_LOOK_WAIT {
                self.counters.store_misses.count();
            }
            let now = Instant::now();
            if let Some(error) = self.unavailability(context, self.epoch.read(now), now) {
                return Err(Arc::unwrap_or_clone(error));
            }
            let permit = self.permit(request).await?;
            let Some(requirement) = self.position(Instant::now()).1 else {
                return self.send_now(request, Some(permit), None).await;
            };
            match store.try_lease(context.as_bytes(), &requirement, self.request_timeout).await {
                Turn::Granted(lease) => {
                    // Another instance may have released the lease since the first lookup.
                    if let Some(entry) =
                        self.look(store.look(context.as_bytes(), self.transport.interner()), context).await
                    {
                        permit.unused(Instant::now());
                        return Ok(entry);
                    }
                    self.counters.store_leases.count();
                    return self.send_now(request, Some(permit), Some(lease)).await;
                }
                Turn::Taken if began.elapsed() + wait < self.patience_for_others(context) => {
                    permit.unused(Instant::now());
                    self.counters.store_waits.count();
                    tokio::time::sleep(wait).await;
                    wait = (2 * wait).min(MAX_LOOK_WAIT);
                }
                Turn::Taken | Turn::Away => return self.send_now(request, Some(permit), None).await,
            }
        }
    }

    /// Returns how long a request waits for another instance, which may have stopped. The wait is shorter if no flags are known.
    fn patience_for_others(&self, context: &CanonicalContext) -> Duration {
        match self.servable(context) {
            Some(_) => self.request_timeout,
            None => (self.miss_wait / 4).min(MAX_WAIT_OF_NEW),
        }
    }

    /// Looks up flags in the store. Returns them if they are fresh. Otherwise keeps them as the last known flags, if there
    /// are none in memory.
    async fn look(&self, look: impl Future<Output = Look>, context: &CanonicalContext) -> Option<Arc<CacheEntry>> {
        let freshness = *self.cache.freshness();
        let fresh_in_memory = || {
            let (now, known) = (Instant::now(), self.cache.get(context.as_bytes()));
            known.filter(|known| known.is_fresh(self.epoch.read(now), now, &freshness))
        };
        // Another request may have received fresh flags in the meantime.
        if let Some(known) = fresh_in_memory() {
            return Some(known);
        }
        let requirement = self.position(Instant::now()).1;
        let Look::Found(found) = look.await else { return None };
        let Found { flag_set, etag, fence, sent_at, is_dated } = found;
        if let Some(known) = fresh_in_memory() {
            return Some(known);
        }
        let now = Instant::now();
        let known = self.cache.get(context.as_bytes()).filter(|known| known.may_be_served(now, &freshness));
        let known_at = known.as_ref().map(|known| known.sent_at);
        let is_usable = is_dated && now.saturating_duration_since(sent_at) <= freshness.streaming;
        let epoch = requirement.and_then(|it| it.epoch_of(fence, sent_at, known_at)).filter(|_| is_usable);
        // Values that were requested with another API key are not mixed with values that were requested with the current one.
        let key_epoch = self.key_epoch.load(Ordering::Acquire);
        let last = known.as_ref().filter(|known| known.epoch >= key_epoch);
        let last = last.map(|known| (&*known.flag_set, known.sent_at));
        let wait = |failures| backoff(FIRST_WAIT, failures, fastrand::f64());
        let (flag_set, etag) = match Failing::keep(&flag_set, last, freshness.max_stale, now, wait) {
            Some(kept) => (Arc::new(kept), None),
            None => (flag_set, etag),
        };
        let etag = etag.as_deref();
        let entry = CacheEntry::new(context, flag_set, etag, None, epoch.unwrap_or(NEVER_FRESH), sent_at);
        let (entry, is_new) = (Arc::new(entry), known.is_none());
        if is_new && (epoch.is_some() || entry.may_be_served(now, &freshness)) {
            self.count_new_context(context);
        }
        if epoch.is_some() {
            self.counters.store_hits.count();
            return Some(entry);
        }
        if is_new && entry.may_be_served(now, &freshness) {
            self.counters.store_restored.count();
            self.in_flight.store(|| self.cache.restore(&entry, now));
        }
        None
    }

    /// Sends a request, and records what its outcome says about the service.
    async fn send_now(
        self: &Arc<Self>,
        request: &InFlightRequest,
        mut permit: Option<Permit>,
        lease: Option<HeldLease>,
    ) -> Result<Arc<CacheEntry>, Error> {
        let failing = if permit.is_some() { self.breaker.lock().error().cloned() } else { None };
        if let Some(error) = failing {
            // The service began to fail while the request waited.
            return Err(error);
        }
        // Both are read before the request is sent: its answer contains every change that was announced up to now.
        let environment =
            self.store.as_ref().filter(|_| !request.context.is_start_up()).and_then(|store| store.environment());
        let requirement = if environment.is_some() { self.position(Instant::now()).1 } else { None };
        let is_known = self.is_known(request);
        let sent_at = Instant::now();
        // Boxed, because many requests may wait for a permit, and the future is large.
        let exchange = Box::pin(self.exchange(request, sent_at));
        let mut exchange = std::pin::pin!(tokio::time::timeout(self.request_timeout, exchange));
        let timed_out = |_| Err(Error::Timeout.into());
        let outcome = tokio::select! {
            biased;
            outcome = &mut exchange => outcome.unwrap_or_else(timed_out),
            () = tokio::time::sleep(self.miss_wait.max(MIN_SLOW)), if permit.is_some() => {
                match permit.as_mut().and_then(|permit| permit.release_slow(Instant::now())) {
                    Some(cancelled) => tokio::select! {
                        biased;
                        outcome = &mut exchange => outcome.unwrap_or_else(timed_out),
                        _ = cancelled => Err(Error::Timeout.into()),
                    },
                    None => exchange.await.unwrap_or_else(timed_out),
                }
            }
        };
        let outcome = self.record(request, sent_at, outcome);
        if let (Some(store), Some(environment), Ok(entry)) = (self.store.clone(), environment, &outcome) {
            let fence = requirement.map(|requirement| requirement.fence);
            let fence = if entry.is_settled() { fence.map(Fence::after_echo) } else { fence };
            let entry = Arc::clone(entry);
            if entry.failing().is_none_or(|failing| !failing.has_no_flags()) {
                // Written even if the provider shuts down now.
                self.runtime.spawn_last(async move {
                    store.put(&environment, &entry, fence, is_known).await;
                    // Released only now, so that the next holder of the lease finds the answer.
                    drop(lease);
                });
            }
        }
        outcome
    }

    /// Returns whether the context already has flags.
    fn is_known(&self, request: &InFlightRequest) -> bool {
        request.base.is_some() || self.cache.get(request.context.as_bytes()).is_some()
    }

    /// Waits for a permit for at most `request_timeout`.
    async fn permit(self: &Arc<Self>, request: &InFlightRequest) -> Result<Permit, Error> {
        let ticket = Ticket {
            id: request.id,
            is_known: self.is_known(request),
            bytes: request.context.as_bytes().len(),
            is_waited_for: request.is_waited_for(),
        };
        let mut wait = match self.limiter.acquire(ticket, Instant::now()) {
            Ok(permit) => return Ok(permit),
            Err(wait) => wait,
        };
        self.pace();
        let granted = tokio::time::timeout(self.request_timeout, wait.granted()).await;
        granted.ok().and_then(Result::ok).ok_or(Error::QueueFull)
    }

    /// Sends a request, and reads the response.
    async fn exchange(self: &Arc<Self>, request: &InFlightRequest, now: Instant) -> Result<Arc<CacheEntry>, Failure> {
        let epoch = self.epoch.current(now);
        let key_epoch = self.key_epoch.load(Ordering::Acquire);
        let base = request.base_since(key_epoch);
        self.counters.requests.count();
        let is_in_full = request.context.is_start_up() && self.is_start_up_in_full.swap(false, Ordering::Relaxed);
        let etag = base.and_then(|base| base.etag()).filter(|_| !is_in_full && self.tags.lock().are_sent(now));
        let version = self.demanded_version(base.map(|base| base.epoch), epoch);
        let (flag_set, etag) = match (self.send_with_tag(&request.context, etag, &version).await?, base) {
            (Bulk::Flags { flag_set, etag, streams }, _) => {
                if let Some(streams) = streams {
                    self.observer.streams_advertised(streams, now);
                }
                match &self.override_file {
                    Some(file) => (self.transport.flag_set(file.apply_to(&flag_set)), etag),
                    None => (flag_set, etag),
                }
            }
            (Bulk::NoFlags, _) => {
                let items = self.override_file.as_ref().map(|file| file.apply_to(&FlagSet::default()));
                let none = self.transport.flag_set(items.unwrap_or_default());
                let flag_set = Arc::new(none.with_failing(&[], Failing::no_flags(now)));
                return Ok(Arc::new(CacheEntry::new(&request.context, flag_set, None, base, epoch, now)));
            }
            (Bulk::NotModified { etag }, Some(base)) if base.etag().is_some() => {
                self.counters.not_modified.count();
                (Arc::clone(&base.flag_set), etag.or_else(|| base.etag().map(Box::from)))
            }
            // The request was not conditional.
            (Bulk::NotModified { .. }, _) => return Err(Error::Status(http::StatusCode::NOT_MODIFIED).into()),
        };
        // Read from the cache, because a probe has no base, and flags may have come from the store in the meantime.
        let known = self.cache.get(request.context.as_bytes());
        if request.base.is_none() && known.is_none() && !request.is_probe {
            self.count_new_context(&request.context);
        }
        let known = known.filter(|known| known.epoch >= key_epoch);
        self.report_failing_flags(&request.context, &flag_set, now);
        let freshness = self.cache.freshness();
        let last = known.as_ref().map(|known| (&*known.flag_set, known.sent_at));
        let wait = |failures| backoff(FIRST_WAIT, failures, fastrand::f64());
        // Kept without a tag: with one, the service might only confirm a response in which flags failed.
        let (flag_set, etag) = match Failing::keep(&flag_set, last, freshness.max_stale, now, wait) {
            Some(kept) => (Arc::new(kept), None),
            None => (flag_set, etag),
        };
        let epoch = known.map_or(epoch, |known| known.epoch_of_next(&flag_set, epoch, freshness, now));
        Ok(Arc::new(CacheEntry::new(&request.context, flag_set, etag.as_deref(), base, epoch, now)))
    }

    /// Records the flags that failed, and reports new ones.
    fn report_failing_flags(&self, context: &CanonicalContext, flag_set: &FlagSet, now: Instant) {
        let new = self.failing_flags.lock().received(context, flag_set, now, fastrand::f64());
        for item in new {
            if let Err(error) = flag_set.get(&item.key) {
                let needs_key = matches!(&error, FlagError::Evaluation { code, .. } if code == "TARGETING_KEY_MISSING");
                let remedy = if needs_key { SET_TARGETING_KEY } else { "see the log of the flag service" };
                tracing::warn!(
                    target: "flipswitch", flag = printable(&item.key), %error, remedy,
                    "the flag service cannot evaluate a flag; users keep its last value, or get the default"
                );
            }
        }
    }

    /// Sends a request, and repeats it without its tag if the tag may be the reason for a rejection.
    async fn send_with_tag(
        &self,
        context: &CanonicalContext,
        etag: Option<&[u8]>,
        version: &ConfigVersion,
    ) -> Result<Bulk, Failure> {
        let may_lack_flags = may_lack_flags(self.service, self.is_realtime, self.epoch.read(Instant::now()).streaming);
        let is_rejected = |failure: &Failure| failure.status.is_some_and(may_reject_tag);
        let mut outcome = self.transport.bulk(context, etag, version, may_lack_flags).await;
        if version.is_known() && outcome.as_ref().err().is_some_and(is_rejected) {
            // A firewall may reject the query.
            self.counters.requests.count();
            outcome = self.transport.bulk(context, etag, &ConfigVersion::default(), may_lack_flags).await;
        }
        let version = &ConfigVersion::default();
        match (&outcome, etag) {
            // The tag belongs to another answer, which a cache in between may have stored.
            (Ok(Bulk::NotModified { etag: Some(other) }), Some(sent)) if !is_same_tag(other, sent) => {
                self.counters.requests.count();
                return self.transport.bulk(context, None, version, may_lack_flags).await;
            }
            (Ok(_), Some(_)) => self.tags.lock().accepted(),
            (Err(failure), Some(_)) if is_rejected(failure) => {
                self.counters.requests.count();
                let repeated = self.transport.bulk(context, None, version, may_lack_flags).await?;
                if self.tags.lock().rejected(context, Instant::now()) {
                    tracing::warn!(
                        target: "flipswitch", error = %Chain(&failure.error),
                        "requests with `If-None-Match` are rejected; omitting the header for 5 minutes. Look for a proxy \
                         between the application and the flag service"
                    );
                }
                return Ok(repeated);
            }
            _ => {}
        }
        outcome
    }

    /// Records what an outcome says about its context, and about the service.
    fn record(
        self: &Arc<Self>,
        request: &InFlightRequest,
        sent_at: Instant,
        outcome: Result<Arc<CacheEntry>, Failure>,
    ) -> Result<Arc<CacheEntry>, Error> {
        let now = Instant::now();
        if self.breaker.lock().predates_reset(sent_at) {
            return outcome.map_err(|failure| failure.error);
        }
        let context = &request.context;
        let outcome = match outcome {
            Ok(entry) => {
                self.limiter.answered(now);
                if !request.is_probe {
                    self.limiter.answered_sent(request.base.is_some(), sent_at);
                }
                self.backoffs.remove(context);
                self.judge(|breaker| breaker.answered(context, sent_at));
                self.observer.answered();
                // An answer to a request from before the service began to fail does not show that it works.
                if self.breaker.lock().failing().is_none() {
                    self.notifier.observe(HealthSignal::Succeeded);
                }
                Ok(entry)
            }
            Err(mut failure) => {
                if matches!(failure.error, Error::RateLimited { .. }) {
                    let retry_after = self.limiter.limited(sent_at, now, failure.retry_after);
                    failure.error = Error::RateLimited { retry_after };
                    self.pace();
                } else {
                    self.backoffs.add(context, request.epoch, &failure, now, fastrand::f64());
                }
                let is_key_expired = self.notifier.is_key_expired();
                let is_reported = self
                    .judge(|breaker| breaker.failed(context, &failure, sent_at, now, is_key_expired, fastrand::f64()));
                if !is_reported && !rejects_context(&failure.error) {
                    self.report_failure(&failure.error);
                }
                Err(failure.error)
            }
        };
        self.advance_startup(&outcome);
        self.plan_rounds();
        outcome
    }

    /// Changes the circuit breaker, and reports if the service begins to fail or has recovered. Returns whether it begins
    /// to fail.
    fn judge(&self, change: impl FnOnce(&mut CircuitBreaker)) -> bool {
        let is_refused = |error: Option<&Error>| matches!(error, Some(Error::Unauthorized));
        let (before, was_open, was_refused, failing, is_open, is_replanned) = {
            let mut breaker = self.breaker.lock();
            let before = (breaker.failing().is_some(), breaker.error().is_some(), is_refused(breaker.failing()));
            let plan = (breaker.due(), breaker.has_round());
            change(&mut breaker);
            let is_replanned = plan != (breaker.due(), breaker.has_round());
            (before.0, before.1, before.2, breaker.failing().cloned(), breaker.error().is_some(), is_replanned)
        };
        if is_replanned {
            self.breaker_changed.notify_waiters();
        }
        if was_open && !is_open {
            self.limiter.recover();
            self.backoffs.clear();
        }
        match failing {
            Some(error) if !before || !was_refused && is_refused(Some(&error)) => {
                // Unless another thread has recorded an answer in the meantime.
                let is_failing = self.breaker.lock().failing().is_some();
                if is_failing {
                    self.report_failing(&error);
                }
                is_failing
            }
            None if before => {
                if was_refused {
                    self.observer.key_accepted();
                }
                self.notifier.observe(HealthSignal::Responsive);
                tracing::info!(target: "flipswitch", "the flag service responds again");
                false
            }
            _ => false,
        }
    }

    /// Counts a context that was not in the cache, and reports contexts that make the cache useless.
    fn count_new_context(&self, context: &CanonicalContext) {
        self.counters.new_contexts.count();
        let cache_use = || {
            let counters = &self.counters;
            CacheUse { contexts: self.cache.contexts(), evaluations: counters.hits.total() + counters.misses.total() }
        };
        let (differing, wastes_cache) = {
            let mut variety = self.variety.lock();
            (variety.observe(context.as_bytes(), Instant::now()), variety.wastes_cache(cache_use))
        };
        for Differing { attribute, count, within } in differing {
            tracing::warn!(
                target: "flipswitch", attribute, count, ?within,
                "an attribute differs between requests from the same user, and each value costs a request to the flag service. \
                 Leave it out of the context, or send a value that changes less often"
            );
        }
        if wastes_cache {
            let Stats { evaluations, hits, contexts, .. } = self.stats();
            tracing::warn!(
                target: "flipswitch", evaluations, hits, contexts,
                "most evaluations have a context that is not in the cache, and the cache drops contexts before they are used \
                 again. Does the targeting key or an attribute differ between requests? Otherwise, raise `cache_capacity` or \
                 `cache_bytes`"
            );
        }
    }

    /// Reports that no request is being answered.
    fn report_failing(&self, error: &Error) {
        self.notifier.observe(HealthSignal::Failed(error));
        if matches!(error, Error::Unauthorized) {
            self.observer.key_refused();
            self.startup.send_if_modified(|state| {
                let is_new = matches!(state, Startup::Waiting(_));
                if is_new {
                    *state = Startup::Unauthorized;
                }
                is_new
            });
            tracing::error!(
                target: "flipswitch",
                "the flag service refuses the API key or token, or requires one; serving the last known flags and defaults. \
                 Replace the key with `set_api_key` or, if none is set, set one with `auth`. Requests are retried after 5 s, \
                 after 30 s, and then every 5 minutes"
            );
        } else {
            tracing::warn!(
                target: "flipswitch", error = %Chain(error),
                "requests to the flag service fail; serving the last known flags and defaults, and retrying"
            );
        }
    }

    /// Reports a failed request to a service that may work for other contexts.
    fn report_failure(&self, error: &Error) {
        let now = Instant::now();
        let is_ready = matches!(*self.startup.borrow(), Startup::Ready);
        let is_blocked = matches!(error, Error::RateLimited { retry_after } if *retry_after > self.miss_wait);
        if is_blocked || !is_ready && !matches!(error, Error::Unauthorized) {
            self.notifier.observe(HealthSignal::Failed(error));
        }
        let kind = match error {
            Error::RateLimited { .. } => Kind::Limited,
            Error::Unauthorized => Kind::Refused,
            _ => Kind::Failed,
        };
        // An outage of the whole service has already been logged.
        let is_failing = self.breaker.lock().failing().is_some();
        let (contexts, error) = (self.backoffs.count(now), Chain(error));
        if is_failing || !self.warnings.lock().failed(kind, now) {
            tracing::debug!(target: "flipswitch", %error, contexts, "flag service request failed");
            return;
        }
        match kind {
            Kind::Failed if !is_ready => tracing::warn!(
                target: "flipswitch", %error,
                "a request to the flag service failed, and none has succeeded yet; retrying"
            ),
            Kind::Failed => tracing::warn!(
                target: "flipswitch", %error, contexts,
                "a request for one user failed; retrying. Others are not affected, unless another warning follows"
            ),
            Kind::Limited => tracing::warn!(
                target: "flipswitch", %error, requests_per_second = self.throttling().requests_per_second,
                "the flag service limits the rate of requests (429); known users keep their last flags, and some new users \
                 get defaults"
            ),
            Kind::Refused => tracing::warn!(
                target: "flipswitch", contexts,
                "the flag service refused the API key for one user; checking whether it accepts the key for others. If it \
                 does, look for a rule in the service or in a proxy"
            ),
        }
    }

    fn advance_startup(&self, outcome: &Result<Arc<CacheEntry>, Error>) {
        let mut is_ready = false;
        self.startup.send_if_modified(|state| {
            let next = match (&*state, outcome) {
                (Startup::Ready, _) | (Startup::Unauthorized, Err(_)) => return false,
                (_, Ok(_)) => Startup::Ready,
                (_, Err(error)) => Startup::Waiting(Some(error.clone())),
            };
            is_ready = matches!(next, Startup::Ready);
            *state = next;
            true
        });
        // Logged without holding the lock of the channel, because the subscriber is application code.
        if is_ready {
            tracing::info!(target: "flipswitch", "ready");
        }
    }
}
