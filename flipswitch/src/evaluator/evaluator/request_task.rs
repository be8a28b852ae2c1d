//! How a flight comes to its end: the request, what it says about the service, and trying on after a failure.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{Service, Startup};
use crate::{
    Error,
    cache::entry::CacheEntry,
    context::canonical::CanonicalContext,
    error::Chain,
    evaluator::circuit_breaker as pause,
    evaluator::in_flight::InFlightRequest,
    events::health::Sign,
    wire::transport::{Bulk, Failure},
};

/// A probe that is in its own way looks again after this time.
const PROBE_RETRY: Duration = Duration::from_millis(500);

/// Whoever brings a flight to its end. It lands in any case: also if its task is dropped, because it panicked or because
/// the runtime that it was to run on is gone.
pub(super) struct RequestTask {
    service: Arc<Service>,
    flight: Option<InFlightRequest>,
}

impl RequestTask {
    pub(super) fn new(service: Arc<Service>, flight: InFlightRequest) -> Self {
        Self { service, flight: Some(flight) }
    }

    pub(super) async fn run(mut self) {
        while let Some(flight) = &self.flight {
            let outcome = self.service.request_in_sight(flight).await;
            self.flight = self.service.complete(flight, outcome);
        }
    }
}

impl Drop for RequestTask {
    fn drop(&mut self) {
        while let Some(flight) = self.flight.take() {
            self.flight = self.service.complete(&flight, Err(Error::ShutDown));
        }
    }
}

/// Tries on until the service answers again: one request at a time, as the pause allows, for which nobody waits. Ends in
/// any case, so that somebody else begins if its task is lost.
pub(super) struct Probe(pub(super) Arc<Service>);

impl Probe {
    pub(super) async fn run(self) {
        let service = &self.0;
        loop {
            // Before the look: what is told between the look and the wait must not be missed.
            let mut over = std::pin::pin!(service.pause_over.notified());
            over.as_mut().enable();
            let Some(until) = service.pause().until() else { break };
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                () = over => continue,
            }
            let context = CanonicalContext::start_up();
            let base = service.cache.get(context.as_bytes());
            match service.in_flight.probe(&context, service.epoch.read().epoch, base) {
                Some(flight) => RequestTask::new(Arc::clone(service), flight).run().await,
                // One from before the failure is still under way, and will be heard of.
                None => tokio::time::sleep(PROBE_RETRY).await,
            }
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.0.pause().end_probing();
    }
}

impl Service {
    /// Makes one request, and draws from it what it says about the service.
    async fn request(self: &Arc<Self>, flight: &InFlightRequest) -> Result<Arc<CacheEntry>, Error> {
        let mut sent = None;
        let request = async {
            let slot = self.slots.acquire(flight.base.is_some()).await;
            let _slot = slot.map_err(|_| Failure::of(Error::Crowded))?;
            // Whoever waited for a slot while the service failed does not go to see for itself.
            let overtaken = if flight.probe { None } else { self.pause().refusal() };
            if let Some(error) = overtaken {
                return Err(Failure::of(error));
            }
            let (sent_at, epoch) = (Instant::now(), self.epoch.read().epoch);
            sent = Some(sent_at);
            let base = flight.base_since(self.key_epoch.load(Ordering::Acquire));
            self.counters.requests.count();
            let etag = base.and_then(|base| base.etag());
            let (answer, etag) = match (self.transport.bulk(&flight.context, etag).await?, base) {
                (Bulk::Flags { flag_set, etag }, _) => {
                    (self.overrides.as_ref().map_or_else(|| Arc::clone(&flag_set), |over| over.over(&flag_set)), etag)
                }
                (Bulk::NotModified { etag }, Some(base)) if base.etag().is_some() => {
                    self.counters.not_modified.count();
                    (Arc::clone(&base.flag_set), etag.or_else(|| base.etag().map(Box::from)))
                }
                // Unchanged since when? We named no answer.
                (Bulk::NotModified { .. }, _) => {
                    return Err(Failure::of(Error::Status(http::StatusCode::NOT_MODIFIED)));
                }
            };
            if flight.base.is_none() {
                self.counters.new_contexts.count();
            }
            Ok(Arc::new(CacheEntry::new(&flight.context, answer, etag.as_deref(), base, epoch, sent_at)))
        };
        let outcome = match tokio::time::timeout(self.request_timeout, request).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // One that waited for a slot most of the time was given no time to be answered.
                sent = sent.filter(|sent| sent.elapsed() >= self.request_timeout / 2);
                Err(Failure::of(Error::Timeout))
            }
        };
        match sent {
            Some(sent) => self.heard(sent, outcome),
            // It never left, or hardly, which says nothing about the service.
            None => outcome.map_err(|failure| failure.error),
        }
    }

    /// Takes what an outcome says about the service.
    fn heard(
        self: &Arc<Self>,
        sent: Instant,
        outcome: Result<Arc<CacheEntry>, Failure>,
    ) -> Result<Arc<CacheEntry>, Error> {
        let now = Instant::now();
        let (outcome, before, after) = {
            let mut pause = self.pause();
            if pause.is_of_another_key(sent) {
                return outcome.map_err(|failure| failure.error);
            }
            let before = pause.until();
            let outcome = pause.outcome(outcome, sent, now, fastrand::f64());
            (outcome, before, pause.until())
        };
        match (&outcome, after) {
            (Ok(_), None) => self.sign(Sign::Answered),
            (Err(error), None) if before.is_some() && pause::concerns_one(error) => self.sign(Sign::Alive),
            (Err(error), Some(_)) if !pause::concerns_one(error) => {
                self.sign(Sign::Failed(error));
                if matches!(error, Error::Unauthorized) {
                    self.commands.unauthorized();
                }
            }
            _ => {}
        }
        // Begins to try on, if there is need to.
        self.paused();
        match (&outcome, after) {
            // Of many that fail together one is told.
            (Err(error), Some(until)) if after != before => {
                let wait = until.saturating_duration_since(now);
                if before.is_none() {
                    tracing::warn!(target: "flipswitch", error = %Chain(error), ?wait, "the flag service failed; trying on");
                } else {
                    tracing::debug!(target: "flipswitch", error = %Chain(error), ?wait, "the flag service still fails");
                }
            }
            (Ok(_), None) if before.is_some() => tracing::info!(target: "flipswitch", "the flag service answers again"),
            _ => {}
        }
        self.startup.send_if_modified(|state| {
            let next = match (&*state, &outcome) {
                (Startup::Ready, _) | (Startup::Unauthorized, Err(_)) => return false,
                (_, Ok(_)) => Startup::Ready,
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
        outcome
    }

    /// Makes the request of a flight; tells its waiters when it takes long.
    async fn request_in_sight(self: &Arc<Self>, flight: &InFlightRequest) -> Result<Arc<CacheEntry>, Error> {
        let mut request = std::pin::pin!(self.request(flight));
        tokio::select! {
            biased;
            outcome = &mut request => outcome,
            () = tokio::time::sleep(self.max_wait) => {
                self.in_flight.mark_slow(&flight.context, flight.id);
                request.await
            }
        }
    }
}
