//! The requests in flight, by context: which evaluation joins which request, and which outcome its waiters get.
//!
//! At most two requests for one context are in flight: one that can be joined, and an older one that was superseded by a
//! change. An evaluation joins only a request that was sent late enough for it, so that it never gets flags from before it began.
//! It waits for at most two requests, so that a rapid series of changes does not delay it forever.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{cache::entry::CacheEntry, context::canonical::CanonicalContext, error::Error};

/// The table of requests in flight. Its lock is held briefly, and never across an `.await`.
#[derive(Default)]
pub(crate) struct InFlightRequests {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    contexts: HashMap<CanonicalContext, Context>,
    last_id: u64,
}

/// The requests for one context.
struct Context {
    /// One or two requests, the newer one last.
    running: Vec<Running>,
    /// An evaluation needs a request that is newer than both.
    wants_next: bool,
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Copy)]
struct Running {
    id: u64,
    epoch: u64,
}

/// What waiters observe. Requests are numbered as they start; a waiter waits for one of them, or for a later one.
#[derive(Debug, Default)]
struct Progress {
    /// The latest request that succeeded.
    succeeded: u64,
    /// The newest of all entries. It may come from an earlier request, because requests are not always sent in the order in which
    /// they started.
    entry: Option<Arc<CacheEntry>>,
    /// The latest request that failed, and its error.
    failed: u64,
    error: Option<Arc<Error>>,
    /// The highest epoch of the completed requests.
    epoch: u64,
}

/// A request to be sent. Its outcome must be passed to [`InFlightRequests::complete`].
#[derive(Debug)]
pub(crate) struct InFlightRequest {
    pub(crate) id: u64,
    pub(crate) context: CanonicalContext,
    /// The epoch that the request is certain to see.
    pub(crate) epoch: u64,
    /// The entry that was cached when the request started, with its tag. Kept here, because the cache may evict it.
    pub(crate) base: Option<Arc<CacheEntry>>,
    /// Whether the request is part of a round that finds out whether the service works.
    pub(crate) is_probe: bool,
    /// Whether evaluations waited for another request to complete before this one could start.
    pub(crate) is_next: bool,
    progress: watch::Sender<Progress>,
}

impl InFlightRequest {
    /// Returns a function that returns whether an evaluation is waiting for the request.
    pub(crate) fn is_waited_for(&self) -> Box<dyn Fn() -> bool + Send> {
        let progress = self.progress.clone();
        Box::new(move || progress.receiver_count() > 0)
    }

    /// Returns the entry that the request may be conditional on. An entry from before the epoch `since` was requested with a
    /// different API key.
    pub(crate) fn base_since(&self, since: u64) -> Option<&CacheEntry> {
        self.base.as_deref().filter(|base| base.epoch >= since)
    }
}

/// Outcome of [`InFlightRequests::join`].
#[derive(Debug)]
pub(crate) enum JoinOutcome {
    /// The evaluation must wait. The request, if there is one, must be started.
    Wait(Waiter, Option<InFlightRequest>),
    /// A usable entry was cached in the meantime.
    Cached(Arc<CacheEntry>),
}

/// An evaluation that waits for a request.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// The request that it waits for, or the first request that may start after it joined.
    request: u64,
    /// Whether that request already exists.
    is_joined: bool,
    progress: watch::Receiver<Progress>,
}

/// Outcome of an evaluation's wait. [`Waiter::wait`] itself does not return [`Slow`](Self::Slow).
#[derive(Debug)]
pub(crate) enum WaitOutcome {
    /// The request succeeded.
    Answered(Arc<CacheEntry>),
    /// The request failed.
    Failed(Arc<Error>),
    /// The evaluation has waited long enough.
    Slow,
    /// The request was lost: there will be no outcome.
    Lost,
}

impl InFlightRequests {
    /// Joins a request that is new enough for the epoch `need`, or prepares one.
    ///
    /// `cached` reads the cache, and `is_usable` returns whether its entry makes a request unnecessary. Both are called under the
    /// lock, because a request stores its entry before it leaves the table.
    pub(crate) fn join(
        &self,
        context: &CanonicalContext,
        need: u64,
        cached: impl Fn() -> Option<Arc<CacheEntry>>,
        is_usable: impl FnOnce(&Arc<CacheEntry>) -> bool,
    ) -> JoinOutcome {
        let mut table = self.table.lock();
        let base = cached();
        if let Some(entry) = base.as_ref().filter(|entry| is_usable(entry)) {
            return JoinOutcome::Cached(Arc::clone(entry));
        }
        let Table { contexts, last_id } = &mut *table;
        let requests = contexts.entry(context.clone()).or_insert_with(Context::new);
        let progress = requests.progress.subscribe();
        // A request that completes wakes the waiters of older requests as well. An older request that is still running therefore
        // has no waiters left, and must not be joined.
        let (completed, epoch) = {
            let progress = progress.borrow();
            (progress.completed(), progress.epoch)
        };
        let (request, is_joined, started) = match requests.running[..] {
            [.., newest] if newest.epoch >= need && newest.id > completed => (newest.id, true, None),
            [_, newest] => {
                requests.wants_next = true;
                (newest.id + 1, false, None)
            }
            _ => {
                let started = requests.start(context, need.max(epoch), base, false, last_id);
                (started.id, true, Some(started))
            }
        };
        JoinOutcome::Wait(Waiter { request, is_joined, progress }, started)
    }

    /// Prepares a probe, which is never conditional. If a request for the context is in flight and its outcome is awaited,
    /// returns a waiter for that request instead.
    pub(crate) fn probe(&self, context: &CanonicalContext, epoch: u64) -> Result<InFlightRequest, Waiter> {
        let mut table = self.table.lock();
        let Table { contexts, last_id } = &mut *table;
        let requests = contexts.entry(context.clone()).or_insert_with(Context::new);
        let (completed, known_epoch) = {
            let progress = requests.progress.borrow();
            (progress.completed(), progress.epoch)
        };
        match requests.running[..] {
            [.., newest] if newest.id > completed || requests.running.len() > 1 => {
                Err(Waiter { request: newest.id, is_joined: true, progress: requests.progress.subscribe() })
            }
            _ => Ok(requests.start(context, epoch.max(known_epoch), None, true, last_id)),
        }
    }

    /// Stores an entry that does not come from a request.
    pub(crate) fn store(&self, store: impl FnOnce()) {
        let _table = self.table.lock();
        store();
    }

    /// Completes a request: stores its entry, wakes the waiters that can use it, and returns the request to start next, if
    /// an evaluation needs a newer one.
    ///
    /// `store` puts an entry into the cache. `epoch` returns the epoch that a request which starts now is certain to see.
    pub(crate) fn complete(
        &self,
        request: &InFlightRequest,
        outcome: Result<Arc<CacheEntry>, Error>,
        store: impl FnOnce(&Arc<CacheEntry>),
        epoch: impl FnOnce() -> u64,
    ) -> Option<InFlightRequest> {
        let mut table = self.table.lock();
        let Table { contexts, last_id } = &mut *table;
        let requests = contexts.get_mut(&request.context)?;
        let position = requests.running.iter().position(|running| running.id == request.id)?;
        let is_superseded = position + 1 < requests.running.len();
        requests.running.remove(position);
        let base = match &outcome {
            Ok(entry) => {
                store(entry);
                Some(Arc::clone(entry))
            }
            Err(_) => request.base.clone(),
        };
        let next = requests.wants_next.then(|| {
            requests.wants_next = false;
            InFlightRequest { is_next: true, ..requests.start(&request.context, epoch(), base, false, last_id) }
        });
        let progress = requests.progress.clone();
        // Removed before waiters wake: evaluations from now on must find the cache, or start a request.
        if requests.running.is_empty() {
            contexts.remove(&request.context);
        }
        drop(table);
        progress.send_if_modified(|progress| {
            progress.epoch = progress.epoch.max(request.epoch);
            match outcome {
                Ok(entry) => {
                    progress.succeeded = progress.succeeded.max(request.id);
                    if progress.entry.as_ref().is_none_or(|known| entry.is_newer_than(known)) {
                        progress.entry = Some(entry);
                    }
                    true
                }
                // Its waiters wait for the newer request.
                Err(_) if is_superseded => false,
                Err(error) => {
                    if request.id > progress.failed {
                        (progress.failed, progress.error) = (request.id, Some(Arc::new(error)));
                    }
                    true
                }
            }
        });
        next
    }
}

impl Context {
    fn new() -> Self {
        Self { running: Vec::with_capacity(2), wants_next: false, progress: watch::Sender::default() }
    }

    fn start(
        &mut self,
        context: &CanonicalContext,
        epoch: u64,
        base: Option<Arc<CacheEntry>>,
        is_probe: bool,
        last_id: &mut u64,
    ) -> InFlightRequest {
        *last_id += 1;
        let id = *last_id;
        self.running.push(Running { id, epoch });
        InFlightRequest {
            id,
            context: context.clone(),
            epoch,
            base,
            is_probe,
            is_next: false,
            progress: self.progress.clone(),
        }
    }
}

impl Progress {
    /// Returns the latest request that completed.
    fn completed(&self) -> u64 {
        self.succeeded.max(self.failed)
    }

    /// Returns the outcome for waiters of a request, if there is one.
    fn outcome(&self, request: u64) -> Option<WaitOutcome> {
        match (&self.entry, &self.error) {
            (Some(entry), _) if self.succeeded >= request => Some(WaitOutcome::Answered(Arc::clone(entry))),
            (_, Some(error)) if self.failed >= request => Some(WaitOutcome::Failed(Arc::clone(error))),
            _ => None,
        }
    }
}

impl Waiter {
    /// Returns the id of the request, if it already exists.
    pub(crate) fn joined(&self) -> Option<u64> {
        self.is_joined.then_some(self.request)
    }

    /// Waits for the outcome of the request.
    pub(crate) async fn wait(mut self) -> WaitOutcome {
        let request = self.request;
        match self.progress.wait_for(|progress| progress.outcome(request).is_some()).await {
            Ok(progress) => progress.outcome(request).unwrap_or(WaitOutcome::Lost),
            Err(_) => WaitOutcome::Lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{task::Poll, time::Instant};

    use tokio_test::task::spawn;

    use super::*;

    #[test]
    fn a_probe_is_prepared_beside_a_superseded_request() {
        let (in_flight, context, now) = (InFlightRequests::default(), CanonicalContext::start_up(), Instant::now());
        let join = |need| match in_flight.join(&context, need, || None, |_| false) {
            JoinOutcome::Wait(_, Some(request)) => request,
            other => panic!("{other:?}"),
        };
        let (first, second) = (join(0), join(1));
        assert!(in_flight.probe(&context, 1).is_err(), "the newest request is awaited");
        let entry = Ok(Arc::new(CacheEntry::new(&context, Arc::default(), None, None, 1, now)));
        in_flight.complete(&second, entry, |_| {}, || 1);
        let probe = in_flight.probe(&context, 1).expect("a request to be sent");
        assert!(probe.id > second.id && probe.epoch == 1);
        for request in [first, probe] {
            in_flight.complete(&request, Err(Error::Timeout), |_| {}, || 1);
        }
        assert!(in_flight.table.lock().contexts.is_empty());
    }

    #[test]
    fn a_waiter_that_polls_late_gets_the_newest_entry() {
        let (in_flight, context, now) = (InFlightRequests::default(), CanonicalContext::start_up(), Instant::now());
        let join = |need| match in_flight.join(&context, need, || None, |_| false) {
            JoinOutcome::Wait(waiter, Some(request)) => (waiter, request),
            other => panic!("{other:?}"),
        };
        let ((_, first), (waiter, second)) = (join(0), join(1));
        let entry = |epoch| Ok(Arc::new(CacheEntry::new(&context, Arc::default(), None, None, epoch, now)));
        assert!(in_flight.complete(&second, entry(1), |_| {}, || 1).is_none());
        assert!(in_flight.complete(&first, entry(0), |_| {}, || 1).is_none());
        match spawn(waiter.wait()).poll() {
            Poll::Ready(WaitOutcome::Answered(entry)) => assert_eq!(entry.epoch, 1),
            other => panic!("{other:?}"),
        }
    }
}
