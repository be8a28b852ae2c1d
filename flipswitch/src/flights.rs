//! Requests under way, by context: who joins which, and who hears of what.
//!
//! At most two requests of one context are under way: one that may be used, and an older one that a change overtook.
//! An evaluation joins a request only if that was sent late enough for it, so that it never waits for one older than
//! itself; and it waits for at most two, so that changes without pause do not keep it waiting for ever.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{Error, cache::Snapshot, context::CanonicalContext};

/// The table of flights. It locks for the blink of an eye, never across an await.
#[derive(Default)]
pub(crate) struct Flights {
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
    news: watch::Sender<News>,
}

#[derive(Clone, Copy)]
struct Running {
    id: u64,
    generation: u64,
}

/// What those who wait are told.
#[derive(Debug, Default)]
struct News {
    /// How many outcomes there were: one from before somebody joined is not for them.
    landed: u64,
    /// The generation of the last outcome.
    generation: u64,
    outcome: Option<Result<Arc<Snapshot>, Arc<Error>>>,
    /// The time is over for which readers with an old answer wait who need a generation below this one.
    late: u64,
}

/// A request that is to be sent; its end must be told to [`Flights::land`].
#[derive(Debug)]
pub(crate) struct Flight {
    id: u64,
    pub(crate) context: CanonicalContext,
    /// The generation that the request is sure to see.
    pub(crate) generation: u64,
    /// The answer that was known at the start, with its tag. It belongs to the request: the cache may lose its own.
    pub(crate) base: Option<Arc<Snapshot>>,
    /// Nobody waits for it: it tries whether the service is back.
    pub(crate) probe: bool,
}

/// What became of an evaluation that wants to join.
#[derive(Debug)]
pub(crate) enum Joined {
    /// It waits, and, if there is one, this flight is to be started.
    Wait(Waiter, Option<Flight>),
    /// The answer has come meanwhile.
    Known(Arc<Snapshot>),
}

/// A place among those who wait for a context.
#[derive(Debug)]
pub(crate) struct Waiter {
    need: u64,
    /// The outcomes before it joined.
    seen: u64,
    queued: bool,
    news: watch::Receiver<News>,
}

/// What a waiter hears.
#[derive(Debug)]
pub(crate) enum Heard {
    /// An answer that is good enough.
    Answer(Arc<Snapshot>),
    /// The request failed.
    Failed(Arc<Error>),
    /// It takes longer than a reader with an old answer waits.
    Late,
    /// Nobody will say anything any more.
    Gone,
}

impl Flights {
    /// Joins a flight that is new enough for `need`, or prepares one. `known` looks into the cache: under the lock,
    /// since a flight leaves its answer there before it leaves the table.
    pub(crate) fn join(
        &self,
        context: &CanonicalContext,
        need: u64,
        base: impl Fn() -> Option<Arc<Snapshot>>,
        known: impl FnOnce(&Arc<Snapshot>) -> bool,
    ) -> Joined {
        let mut table = self.lock();
        let base = base();
        if let Some(snapshot) = base.as_ref().filter(|snapshot| known(snapshot)) {
            return Joined::Known(Arc::clone(snapshot));
        }
        let Table { entries, last_id } = &mut *table;
        let entry = entries.entry(context.clone()).or_insert_with(Entry::new);
        let news = entry.news.subscribe();
        let (seen, reached) = {
            let news = news.borrow();
            (news.landed, news.generation)
        };
        // Whoever came before a newer flight landed has heard of that; an older one that is still under way has nobody
        // to land for.
        let enough = need.max(reached);
        let mut waiter = Waiter { need, seen, queued: false, news };
        let flight = match entry.running[..] {
            [.., newest] if newest.generation >= enough => None,
            [_, _] => {
                entry.wanted = true;
                waiter.queued = true;
                None
            }
            _ => Some(entry.start(context, enough, base, false, last_id)),
        };
        Joined::Wait(waiter, flight)
    }

    /// Prepares a flight for which nobody waits, unless one of the context is under way.
    pub(crate) fn probe(
        &self,
        context: &CanonicalContext,
        generation: u64,
        base: Option<Arc<Snapshot>>,
    ) -> Option<Flight> {
        let mut table = self.lock();
        let Table { entries, last_id } = &mut *table;
        if entries.contains_key(context) {
            return None;
        }
        let entry = entries.entry(context.clone()).or_insert_with(Entry::new);
        Some(entry.start(context, generation, base, true, last_id))
    }

    /// Tells the waiters of a context who need this generation that it takes long.
    pub(crate) fn late(&self, context: &CanonicalContext, generation: u64) {
        if let Some(entry) = self.lock().entries.get(context) {
            entry.news.send_modify(|news| news.late = news.late.max(generation + 1));
        }
    }

    /// Ends a flight: keeps its answer, tells those for whom it is good enough, and returns the flight to start next,
    /// if somebody needs a newer one. `keep` puts an answer into the cache; `generation` is what a flight that starts
    /// now is sure to see.
    pub(crate) fn land(
        &self,
        flight: &Flight,
        outcome: Result<Arc<Snapshot>, Error>,
        keep: impl FnOnce(&Arc<Snapshot>),
        generation: impl FnOnce() -> u64,
    ) -> Option<Flight> {
        let mut table = self.lock();
        let Table { entries, last_id } = &mut *table;
        let entry = entries.get_mut(&flight.context)?;
        let position = entry.running.iter().position(|running| running.id == flight.id)?;
        let overtaken = position + 1 < entry.running.len();
        entry.running.remove(position);
        let (reached, outcome) = match outcome {
            Ok(snapshot) => {
                keep(&snapshot);
                (snapshot.generation, Some(Ok(snapshot)))
            }
            // Those who waited for it wait for the newer one.
            Err(_) if overtaken => (0, None),
            Err(error) => (flight.generation, Some(Err(Arc::new(error)))),
        };
        let base = match &outcome {
            Some(Ok(snapshot)) => Some(Arc::clone(snapshot)),
            _ => flight.base.clone(),
        };
        let next = entry.wanted.then(|| {
            entry.wanted = false;
            entry.start(&flight.context, generation(), base, false, last_id)
        });
        let news = entry.news.clone();
        // Out of the table before anybody wakes: who comes from now on must find the cache, or start anew.
        if entry.running.is_empty() {
            entries.remove(&flight.context);
        }
        drop(table);
        if let Some(outcome) = outcome {
            news.send_if_modified(|news| {
                // An older flight that lands later has nothing to add.
                let told = match (&news.outcome, &outcome) {
                    (Some(Ok(known)), Ok(snapshot)) => snapshot.is_newer_than(known),
                    _ => reached >= news.generation,
                };
                if told {
                    news.landed += 1;
                    news.generation = reached;
                    news.outcome = Some(outcome);
                }
                told
            });
        }
        next
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn new() -> Self {
        Self { running: Vec::with_capacity(2), wanted: false, news: watch::Sender::default() }
    }

    fn start(
        &mut self,
        context: &CanonicalContext,
        generation: u64,
        base: Option<Arc<Snapshot>>,
        probe: bool,
        last_id: &mut u64,
    ) -> Flight {
        *last_id += 1;
        let id = *last_id;
        self.running.push(Running { id, generation });
        Flight { id, context: context.clone(), generation, base, probe }
    }
}

impl Waiter {
    /// Whether its request will start only when one under way has ended.
    pub(crate) fn is_queued(&self) -> bool {
        self.queued
    }

    /// Waits for an outcome that is new enough. With an old answer at hand also for the word that it takes long.
    pub(crate) async fn wait(mut self, has_old: bool) -> Heard {
        let (need, seen) = (self.need, self.seen);
        let is_enough = |news: &News| news.landed > seen && news.generation >= need;
        let news = self.news.wait_for(|news| is_enough(news) || (has_old && news.late > need));
        match news.await {
            Ok(news) => match &news.outcome {
                Some(Ok(snapshot)) if is_enough(&news) => Heard::Answer(Arc::clone(snapshot)),
                Some(Err(error)) if is_enough(&news) => Heard::Failed(Arc::clone(error)),
                _ => Heard::Late,
            },
            Err(_) => Heard::Gone,
        }
    }
}
