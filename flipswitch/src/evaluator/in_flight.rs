//! Requests under way, by context: who joins which, and who hears of what.
//!
//! At most two requests of one context are under way: one that may be used, and an older one that a change overtook.
//! An evaluation joins a request only if that was sent slow enough for it, so that it never waits for one older than
//! itself; and it waits for at most two, so that changes without pause do not keep it waiting for ever.

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};

use tokio::sync::watch;

use crate::{Error, cache::entry::CacheEntry, context::canonical::CanonicalContext};

/// The table of in_flight. It locks for the blink of an eye, never across an await.
#[derive(Default)]
pub(crate) struct InFlightRequests {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<CanonicalContext, Entry>,
    last_id: u64,
}

struct Entry {
    /// One or two, the newer one last.
    running: Vec<Running>,
    /// Somebody needs a request newer than both.
    wanted: bool,
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Copy)]
struct Running {
    id: u64,
    epoch: u64,
}

/// What those who wait are told. InFlightRequests are numbered as they start; a waiter waits for the end of one, or of one after it.
#[derive(Debug, Default)]
struct Progress {
    /// The latest request that brought an answer, and the newest answer that was brought: a request that started later may
    /// have been sent earlier.
    answered: u64,
    answer: Option<Arc<CacheEntry>>,
    /// The latest request that failed, and why.
    failed: u64,
    error: Option<Arc<Error>>,
    /// The highest epoch of the requests that ended.
    epoch: u64,
    /// The latest request that takes longer than a reader with an old answer waits.
    slow: u64,
}

/// A request that is to be sent; its end must be told to [`InFlightRequests::land`].
#[derive(Debug)]
pub(crate) struct InFlightRequest {
    pub(crate) id: u64,
    pub(crate) context: CanonicalContext,
    /// The epoch that the request is sure to see.
    pub(crate) epoch: u64,
    /// The answer that was known at the start, with its tag. It belongs to the request: the cache may lose its own.
    pub(crate) base: Option<Arc<CacheEntry>>,
    /// Nobody waits for it: it tries whether the service is back.
    pub(crate) probe: bool,
}

impl InFlightRequest {
    /// The answer that the request may build on: an answer of a epoch before `since` was had with another API key.
    pub(crate) fn base_since(&self, since: u64) -> Option<&CacheEntry> {
        self.base.as_deref().filter(|base| base.epoch >= since)
    }
}

/// What became of an evaluation that wants to join.
#[derive(Debug)]
pub(crate) enum JoinOutcome {
    /// It waits, and, if there is one, this request is to be started.
    Wait(Waiter, Option<InFlightRequest>),
    /// The answer has come meanwhile.
    Cached(Arc<CacheEntry>),
}

/// A place among those who wait for a context.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// The request that it waits for, or the first that may start after it joined.
    request: u64,
    queued: bool,
    progress: watch::Receiver<Progress>,
}

/// What a waiter hears.
#[derive(Debug)]
pub(crate) enum WaitOutcome {
    /// An answer that is good enough.
    Answered(Arc<CacheEntry>),
    /// The request failed.
    Failed(Arc<Error>),
    /// It takes longer than a reader with an old answer waits.
    Slow,
    /// Nobody will say anything any more.
    Lost,
}

impl InFlightRequests {
    /// Joins a request that is new enough for `need`, or prepares one. `known` looks into the cache: under the lock,
    /// since a request leaves its answer there before it leaves the table.
    pub(crate) fn join(
        &self,
        context: &CanonicalContext,
        need: u64,
        base: impl Fn() -> Option<Arc<CacheEntry>>,
        known: impl FnOnce(&Arc<CacheEntry>) -> bool,
    ) -> JoinOutcome {
        let mut table = self.lock();
        let base = base();
        if let Some(entry) = base.as_ref().filter(|entry| known(entry)) {
            return JoinOutcome::Cached(Arc::clone(entry));
        }
        let Table { entries, last_id } = &mut *table;
        let entry = entries.entry(context.clone()).or_insert_with(Entry::new);
        let progress = entry.progress.subscribe();
        // Whoever came before a later request ended has heard of that; an older one that is still under way has nobody to
        // land for.
        let (ended, epoch) = {
            let progress = progress.borrow();
            (progress.ended(), progress.epoch)
        };
        let (request, queued, started) = match entry.running[..] {
            [.., newest] if newest.epoch >= need && newest.id > ended => (newest.id, false, None),
            [_, newest] => {
                entry.wanted = true;
                (newest.id + 1, true, None)
            }
            _ => {
                let started = entry.start(context, need.max(epoch), base, false, last_id);
                (started.id, false, Some(started))
            }
        };
        JoinOutcome::Wait(Waiter { request, queued, progress }, started)
    }

    /// Prepares a request for which nobody waits, unless one of the context is under way.
    pub(crate) fn probe(
        &self,
        context: &CanonicalContext,
        epoch: u64,
        base: Option<Arc<CacheEntry>>,
    ) -> Option<InFlightRequest> {
        let mut table = self.lock();
        let Table { entries, last_id } = &mut *table;
        if entries.contains_key(context) {
            return None;
        }
        let entry = entries.entry(context.clone()).or_insert_with(Entry::new);
        Some(entry.start(context, epoch, base, true, last_id))
    }

    /// Tells the waiters of a request, and of those before it, that it takes long.
    pub(crate) fn mark_slow(&self, context: &CanonicalContext, request: u64) {
        if let Some(entry) = self.lock().entries.get(context) {
            entry.progress.send_modify(|progress| progress.slow = progress.slow.max(request));
        }
    }

    /// Ends a request: keeps its answer, tells those for whom it is good enough, and returns the request to start next,
    /// if somebody needs a newer one. `keep` puts an answer into the cache; `epoch` is what a request that starts
    /// now is sure to see.
    pub(crate) fn complete(
        &self,
        request: &InFlightRequest,
        outcome: Result<Arc<CacheEntry>, Error>,
        keep: impl FnOnce(&Arc<CacheEntry>),
        epoch: impl FnOnce() -> u64,
    ) -> Option<InFlightRequest> {
        let mut table = self.lock();
        let Table { entries, last_id } = &mut *table;
        let entry = entries.get_mut(&request.context)?;
        let position = entry.running.iter().position(|running| running.id == request.id)?;
        let overtaken = position + 1 < entry.running.len();
        entry.running.remove(position);
        let base = match &outcome {
            Ok(entry) => {
                keep(entry);
                Some(Arc::clone(entry))
            }
            Err(_) => request.base.clone(),
        };
        let next = entry.wanted.then(|| {
            entry.wanted = false;
            entry.start(&request.context, epoch(), base, false, last_id)
        });
        let progress = entry.progress.clone();
        // Out of the table before anybody wakes: who comes from now on must find the cache, or start anew.
        if entry.running.is_empty() {
            entries.remove(&request.context);
        }
        drop(table);
        progress.send_if_modified(|progress| {
            progress.epoch = progress.epoch.max(request.epoch);
            match outcome {
                Ok(entry) => {
                    progress.answered = progress.answered.max(request.id);
                    if progress.answer.as_ref().is_none_or(|known| entry.is_newer_than(known)) {
                        progress.answer = Some(entry);
                    }
                    true
                }
                // Those who waited for it wait for the newer one.
                Err(_) if overtaken => false,
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

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }
}

impl Entry {
    fn new() -> Self {
        Self { running: Vec::with_capacity(2), wanted: false, progress: watch::Sender::default() }
    }

    fn start(
        &mut self,
        context: &CanonicalContext,
        epoch: u64,
        base: Option<Arc<CacheEntry>>,
        probe: bool,
        last_id: &mut u64,
    ) -> InFlightRequest {
        *last_id += 1;
        let id = *last_id;
        self.running.push(Running { id, epoch });
        InFlightRequest { id, context: context.clone(), epoch, base, probe }
    }
}

impl Progress {
    /// The latest request that ended.
    fn ended(&self) -> u64 {
        self.answered.max(self.failed)
    }

    /// What there is to hear for those who wait for a request.
    fn of(&self, request: u64, has_old: bool) -> Option<WaitOutcome> {
        match (&self.answer, &self.error) {
            (Some(answer), _) if self.answered >= request => Some(WaitOutcome::Answered(Arc::clone(answer))),
            (_, Some(error)) if self.failed >= request => Some(WaitOutcome::Failed(Arc::clone(error))),
            _ => (has_old && self.slow >= request).then_some(WaitOutcome::Slow),
        }
    }
}

impl Waiter {
    /// The request that it waits for, if that will start only when one under way has ended.
    pub(crate) fn queued(&self) -> Option<u64> {
        self.queued.then_some(self.request)
    }

    /// Waits for the end of its request. With an old answer at hand also for the word that it takes long.
    pub(crate) async fn wait(mut self, has_old: bool) -> WaitOutcome {
        let request = self.request;
        match self.progress.wait_for(|progress| progress.of(request, has_old).is_some()).await {
            Ok(progress) => progress.of(request, has_old).unwrap_or(WaitOutcome::Lost),
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
    fn whoever_listens_late_hears_the_newest_answer() {
        let (in_flight, context, now) = (InFlightRequests::default(), CanonicalContext::start_up(), Instant::now());
        let join = |need| match in_flight.join(&context, need, || None, |_| false) {
            JoinOutcome::Wait(waiter, Some(request)) => (waiter, request),
            other => panic!("{other:?}"),
        };
        let ((_, first), (waiter, second)) = (join(0), join(1));
        let answer = |epoch| Ok(Arc::new(CacheEntry::new(&context, Arc::default(), None, None, epoch, now)));
        assert!(in_flight.complete(&second, answer(1), |_| {}, || 1).is_none());
        assert!(in_flight.complete(&first, answer(0), |_| {}, || 1).is_none());
        match spawn(waiter.wait(false)).poll() {
            Poll::Ready(WaitOutcome::Answered(entry)) => assert_eq!(entry.epoch, 1),
            other => panic!("{other:?}"),
        }
    }
}
