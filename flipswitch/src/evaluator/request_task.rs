//! Tasks that send requests: one for each request in flight, and one that probes a failing service.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use crate::{
    cache::entry::CacheEntry,
    context::canonical::CanonicalContext,
    error::{Chain, Error, Failure},
    evaluator::{
        circuit_breaker::concerns_one_context,
        evaluator::{Evaluator, Startup},
        in_flight::InFlightRequest,
        tags::may_reject_tag,
    },
    events::health::HealthSignal,
    wire::transport::Bulk,
};

/// Wait of the probe task if a request for the start-up context is in flight already.
const PROBE_RETRY: Duration = Duration::from_millis(500);

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

/// Sends probes until the service responds: one request at a time, when the circuit breaker allows it. Dropping it lets
/// another task begin.
pub(super) struct ProbeTask(pub(super) Arc<Evaluator>);

impl ProbeTask {
    pub(super) async fn run(self) {
        let evaluator = &self.0;
        loop {
            // Registered before the check, so that no change between check and wait is missed.
            let mut changed = std::pin::pin!(evaluator.breaker_changed.notified());
            changed.as_mut().enable();
            let Some(retry_at) = evaluator.breaker.lock().retry_at() else { break };
            tokio::select! {
                () = tokio::time::sleep_until(retry_at.into()) => {}
                () = changed => continue,
            }
            let context = CanonicalContext::start_up();
            let base = evaluator.cache.get(context.as_bytes());
            match evaluator.in_flight.probe(&context, evaluator.epoch.current(), base) {
                Some(request) => RequestTask::new(Arc::clone(evaluator), request).run().await,
                // A request from before the failure is still in flight; its outcome will tell.
                None => tokio::time::sleep(PROBE_RETRY).await,
            }
        }
    }
}

impl Drop for ProbeTask {
    fn drop(&mut self) {
        self.0.breaker.lock().end_half_open();
    }
}

impl Evaluator {
    /// Sends a request within `request_timeout`, and records what its outcome says about the service.
    async fn send(self: &Arc<Self>, request: &InFlightRequest) -> Result<Arc<CacheEntry>, Error> {
        let mut sent_at = None;
        let outcome = match tokio::time::timeout(self.request_timeout, self.exchange(request, &mut sent_at)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // If it waited for a permit most of the time, the service had no time to respond.
                sent_at = sent_at.filter(|sent_at| sent_at.elapsed() >= self.request_timeout / 2);
                Err(Error::Timeout.into())
            }
        };
        match sent_at {
            Some(sent_at) => self.record(sent_at, outcome),
            // Not sent, or only just: that says nothing about the service.
            None => outcome.map_err(|failure| failure.error),
        }
    }

    /// Waits for a permit, sends the request, and reads the response. Sets `sent_at` when the request is sent.
    async fn exchange(
        self: &Arc<Self>,
        request: &InFlightRequest,
        sent_at: &mut Option<Instant>,
    ) -> Result<Arc<CacheEntry>, Failure> {
        let permit = self.limiter.acquire(request.base.is_some()).await;
        let _permit = permit.map_err(|_| Failure::from(Error::QueueFull))?;
        // The service may have failed while the request waited. Only a probe is sent then.
        let error = if request.is_probe { None } else { self.breaker.lock().error() };
        if let Some(error) = error {
            return Err(error.into());
        }
        let (now, epoch) = (Instant::now(), self.epoch.current());
        *sent_at = Some(now);
        let base = request.base_since(self.key_epoch.load(Ordering::Acquire));
        self.counters.requests.count();
        let etag = base.and_then(|base| base.etag()).filter(|_| self.tags.lock().are_sent(now));
        let (flag_set, etag) = match (self.send_with_tag(&request.context, etag).await?, base) {
            (Bulk::Flags { flag_set, etag }, _) => match &self.override_file {
                Some(file) => (file.apply_to(&flag_set), etag),
                None => (flag_set, etag),
            },
            (Bulk::NotModified { etag }, Some(base)) if base.etag().is_some() => {
                self.counters.not_modified.count();
                (Arc::clone(&base.flag_set), etag.or_else(|| base.etag().map(Box::from)))
            }
            // The request was not conditional.
            (Bulk::NotModified { .. }, _) => return Err(Error::Status(http::StatusCode::NOT_MODIFIED).into()),
        };
        if request.base.is_none() {
            self.counters.new_contexts.count();
        }
        Ok(Arc::new(CacheEntry::new(&request.context, flag_set, etag.as_deref(), base, epoch, now)))
    }

    /// Sends a request, and repeats it without its tag if that may be the reason for a rejection.
    async fn send_with_tag(&self, context: &CanonicalContext, etag: Option<&[u8]>) -> Result<Bulk, Failure> {
        let outcome = self.transport.bulk(context, etag).await;
        let is_rejected = |failure: &Failure| failure.status.is_some_and(may_reject_tag);
        match (&outcome, etag) {
            (Ok(_), Some(_)) => self.tags.lock().accepted(),
            (Err(failure), Some(_)) if is_rejected(failure) => {
                self.counters.requests.count();
                let repeated = self.transport.bulk(context, None).await?;
                if self.tags.lock().rejected(context, Instant::now()) {
                    tracing::warn!(
                        target: "flipswitch", error = %Chain(&failure.error),
                        "requests with `If-None-Match` are rejected; sending none for 5 minutes. Look for a proxy between \
                         the application and the flag service"
                    );
                }
                return Ok(repeated);
            }
            _ => {}
        }
        outcome
    }

    /// Records what an outcome says about the service.
    fn record(
        self: &Arc<Self>,
        sent_at: Instant,
        outcome: Result<Arc<CacheEntry>, Failure>,
    ) -> Result<Arc<CacheEntry>, Error> {
        let now = Instant::now();
        let (outcome, before, after) = {
            let mut breaker = self.breaker.lock();
            if breaker.predates_reset(sent_at) {
                return outcome.map_err(|failure| failure.error);
            }
            let before = breaker.retry_at();
            let outcome = breaker.record(outcome, sent_at, now, fastrand::f64());
            (outcome, before, breaker.retry_at())
        };
        match (&outcome, after) {
            (Ok(_), None) => self.notifier.observe(HealthSignal::Succeeded),
            (Err(error), None) if before.is_some() && concerns_one_context(error) => {
                self.notifier.observe(HealthSignal::Responsive);
            }
            (Err(error), Some(_)) if !concerns_one_context(error) => {
                self.notifier.observe(HealthSignal::Failed(error));
                if matches!(error, Error::Unauthorized) {
                    self.observer.key_refused();
                }
            }
            _ => {}
        }
        // Starts the probe task if the breaker has just opened.
        self.breaker_error();
        match (&outcome, after) {
            // Of requests that fail together, one is logged.
            (Err(error), Some(retry_at)) if after != before => {
                let wait = retry_at.saturating_duration_since(now);
                if before.is_none() {
                    tracing::warn!(target: "flipswitch", error = %Chain(error), ?wait, "flag service request failed; retrying");
                } else {
                    tracing::debug!(target: "flipswitch", error = %Chain(error), ?wait, "flag service still fails");
                }
            }
            (Ok(_), None) if before.is_some() => tracing::info!(target: "flipswitch", "flag service recovered"),
            _ => {}
        }
        self.advance_startup(&outcome);
        outcome
    }

    fn advance_startup(&self, outcome: &Result<Arc<CacheEntry>, Error>) {
        self.startup.send_if_modified(|state| {
            let next = match (&*state, outcome) {
                (Startup::Ready, _) | (Startup::Unauthorized, Err(_)) => return false,
                (_, Ok(_)) => Startup::Ready,
                (_, Err(Error::Unauthorized)) => Startup::Unauthorized,
                (_, Err(error)) => Startup::Waiting(Some(error.clone())),
            };
            match &next {
                Startup::Ready => tracing::info!(target: "flipswitch", "ready"),
                Startup::Unauthorized => {
                    tracing::error!(target: "flipswitch", "the flag service refused the API key; serving defaults");
                }
                Startup::Waiting(_) => {}
            }
            *state = next;
            true
        });
    }
}
