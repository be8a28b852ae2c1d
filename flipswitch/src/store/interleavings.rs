//! Tests instances that share a store, with random orders of everything that can happen to them: events arrive late, streams
//! break, instances start, writes are late or lost, the store is flushed or restored from a backup, and its clock jumps. The
//! test knows which flags the service had at each time.

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::{collection::vec, prelude::*, test_runner::TestCaseResult};
use serde_json::json;

use super::{
    clock::StoreClock,
    fence::{Fence, KnownEvents, MARGIN, Requirement},
};
use crate::{
    cache::{
        cache::Cache,
        entry::{CacheEntry, Freshness},
        epoch::{ECHO_WINDOW, Epoch, EpochReading},
    },
    context::canonical::CanonicalContext,
    flags::flag_set::FlagSet,
};

const INSTANCES: usize = 3;
const CONTEXTS: usize = 2;
const HOUR: Duration = Duration::from_secs(3_600);
const FRESHNESS: Freshness = Freshness { streaming: HOUR, polling: Duration::ZERO, max_stale: HOUR };

#[derive(Clone, Copy, Debug)]
enum Op {
    /// Time passes.
    Wait(u64),
    /// The flags change. [`IdOf`] selects the id of the event.
    Change(IdOf),
    /// An instance reads the next event.
    Receive(usize),
    /// The stream of an instance breaks, and events are lost.
    Break(usize),
    /// The stream of an instance opens.
    Open(usize),
    /// An instance starts again.
    Restart(usize),
    /// Something invalidates the flags of an instance without an event: a heartbeat or a poll.
    Miss(usize),
    /// An instance sends a request, to which the service responds immediately, perhaps with old rules.
    Request {
        instance: usize,
        context: usize,
        lags: bool,
    },
    /// The response arrives.
    Respond(usize),
    /// All these steps together: an instance stores its response, and another instance looks it up a moment later.
    Share {
        instance: usize,
        context: usize,
        lags: bool,
        reader: usize,
    },
    /// A pending write arrives in the store, or is lost.
    Write {
        write: usize,
        is_lost: bool,
    },
    /// An instance looks up flags in the store. The request and the response take `there` and `back` milliseconds.
    Look {
        instance: usize,
        context: usize,
        there: u64,
        back: u64,
    },
    Flush,
    Backup,
    Restore,
    /// The store's clock jumps, possibly by so little that nothing notices it.
    Jump(i64),
}

#[derive(Clone, Copy, Debug)]
enum IdOf {
    Next,
    Last,
    None,
}

fn op() -> impl Strategy<Value = Op> {
    let instance = || 0..INSTANCES;
    let context = || 0..CONTEXTS;
    prop_oneof![
        6 => prop_oneof![0_u64..60, 60_u64..300, 1_000_u64..2_500].prop_map(Op::Wait),
        3 => prop_oneof![8 => Just(IdOf::Next), 1 => Just(IdOf::Last), 1 => Just(IdOf::None)].prop_map(Op::Change),
        6 => instance().prop_map(Op::Receive),
        1 => instance().prop_map(Op::Break),
        2 => instance().prop_map(Op::Open),
        1 => instance().prop_map(Op::Restart),
        1 => instance().prop_map(Op::Miss),
        8 => (instance(), context(), any::<bool>())
            .prop_map(|(instance, context, lags)| Op::Request { instance, context, lags }),
        8 => any::<usize>().prop_map(Op::Respond),
        8 => (instance(), context(), any::<bool>(), instance())
            .prop_map(|(instance, context, lags, reader)| Op::Share { instance, context, lags, reader }),
        6 => (any::<usize>(), proptest::bool::weighted(0.2)).prop_map(|(write, is_lost)| Op::Write { write, is_lost }),
        10 => (instance(), context(), 0_u64..25, 0_u64..25)
            .prop_map(|(instance, context, there, back)| Op::Look { instance, context, there, back }),
        1 => Just(Op::Flush),
        1 => Just(Op::Backup),
        1 => Just(Op::Restore),
        1 => prop_oneof![-40_i64..40, -5_000_i64..5_000].prop_map(Op::Jump),
    ]
}

/// A change, or the state before the first one.
#[derive(Clone, Copy)]
struct Change {
    at: Instant,
    id: Option<u64>,
}

struct Instance {
    epoch: Epoch,
    known: KnownEvents,
    clock: StoreClock,
    cache: Cache,
    is_open: bool,
    /// Versions whose events have not arrived.
    events: VecDeque<usize>,
    /// Versions whose events were read, and when.
    read: Vec<(usize, Instant)>,
    missed_at: Instant,
    /// How many times the store's clock had been set back when it was first read.
    first_clock: Option<usize>,
}

impl Instance {
    fn read_clock(&mut self, before: Instant, after: Instant, clock: u64, set_back: usize) -> Instant {
        self.first_clock.get_or_insert(set_back);
        self.clock.read(before, after, clock)
    }

    fn new(now: Instant) -> Self {
        Self {
            epoch: Epoch::default(),
            known: KnownEvents::new(now),
            clock: StoreClock::default(),
            cache: Cache::new(100, 1 << 20, FRESHNESS),
            is_open: false,
            events: VecDeque::new(),
            read: Vec::new(),
            missed_at: now,
            first_clock: None,
        }
    }

    fn position(&self, now: Instant) -> (EpochReading, Option<Requirement>) {
        let reading = self.epoch.read(now);
        (reading, self.known.requirement(reading))
    }
}

/// A request that was sent.
struct Request {
    instance: usize,
    context: usize,
    version: usize,
    reading: EpochReading,
    fence: Option<Fence>,
    sent_at: Instant,
}

/// The content of a store.
#[derive(Clone)]
struct Stored {
    sent: u64,
    version: usize,
    fence: Option<Fence>,
    /// How many times the clock had been set back.
    clock: usize,
    sent_at: Instant,
}

struct World {
    now: Instant,
    start: Instant,
    changes: Vec<Change>,
    instances: Vec<Instance>,
    /// The newest version that each context was evaluated with.
    worked: [usize; CONTEXTS],
    requests: Vec<Request>,
    /// Pending writes.
    writes: Vec<(usize, Stored)>,
    store: HashMap<usize, Stored>,
    backup: HashMap<usize, Stored>,
    /// How far the store's clock is ahead, in microseconds.
    ahead: i64,
    /// How many times the store's clock was set back.
    set_back: usize,
    hits: usize,
}

fn context(number: usize) -> CanonicalContext {
    CanonicalContext::from_bytes(format!("context {number}").as_bytes())
}

/// Returns the value of a context in a version. One context changes in every version, the other in every third version.
fn value(context: usize, version: usize) -> usize {
    if context == 0 { version } else { version / 3 }
}

fn flag_set(context: usize, version: usize) -> Arc<FlagSet> {
    let values = json!({"f": value(context, version), "of": context}).as_object().unwrap().clone();
    Arc::new(FlagSet::of_values(values, "STATIC"))
}

impl World {
    fn new() -> Self {
        let start = Instant::now();
        let now = start + HOUR;
        Self {
            now,
            start,
            changes: vec![Change { at: start, id: None }],
            instances: (0..INSTANCES).map(|_| Instance::new(now)).collect(),
            worked: [0; CONTEXTS],
            requests: Vec::new(),
            writes: Vec::new(),
            store: HashMap::new(),
            backup: HashMap::new(),
            ahead: 0,
            set_back: 0,
            hits: 0,
        }
    }

    /// Returns the time of the store's clock.
    fn clock(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.start) + 10 * HOUR;
        u64::try_from(passed.as_micros()).unwrap().checked_add_signed(self.ahead).unwrap()
    }

    fn changed_at(&self) -> Instant {
        self.changes.last().map_or(self.start, |last| last.at)
    }

    fn wait(&mut self, millis: u64) {
        // Time always passes, so that no two things happen at the same instant.
        self.now += Duration::from_millis(millis) + Duration::from_micros(1);
    }

    fn step(&mut self, op: Op) -> TestCaseResult {
        self.wait(0);
        let now = self.now;
        match op {
            Op::Wait(millis) => self.wait(millis),
            Op::Change(id) => {
                let last = self.changes.iter().rev().find_map(|change| change.id);
                let next = Some(self.clock(now).max(last.map_or(0, |last| last + 1)));
                let id = match id {
                    IdOf::Next => next,
                    // Only events of the same millisecond have the same id.
                    IdOf::Last => last.filter(|_| now < self.changed_at() + Duration::from_millis(1)).or(next),
                    IdOf::None => None,
                };
                self.changes.push(Change { at: now, id });
                let version = self.changes.len() - 1;
                self.instances.iter_mut().filter(|it| it.is_open).for_each(|it| it.events.push_back(version));
            }
            Op::Receive(instance) => {
                let instance = &mut self.instances[instance];
                if let Some(version) = instance.events.pop_front() {
                    instance.known.event(self.changes[version].id, instance.epoch.current(now), now);
                    instance.epoch.change_announced(now);
                    instance.read.push((version, now));
                }
            }
            Op::Break(instance) => {
                let instance = &mut self.instances[instance];
                instance.is_open = false;
                instance.events.clear();
                instance.epoch.stream_closed();
            }
            // An instance that missed a change cannot notice that the service still evaluates with old rules. The first heartbeat
            // makes up for this, so streams do not open in that time.
            Op::Open(_) if now < self.changed_at() + ECHO_WINDOW => {}
            Op::Open(instance) => {
                let instance = &mut self.instances[instance];
                instance.events.clear();
                (instance.is_open, instance.missed_at) = (true, now);
                instance.known.missed(now);
                instance.epoch.stream_opened(now + HOUR);
            }
            Op::Restart(instance) => {
                self.instances[instance] = Instance::new(now);
                self.requests.retain(|request| request.instance != instance);
            }
            Op::Miss(instance) => {
                let instance = &mut self.instances[instance];
                instance.missed_at = now;
                instance.known.missed(now);
                instance.epoch.invalidate_all();
            }
            Op::Request { instance, context, lags } => self.request(instance, context, lags),
            Op::Respond(number) => return self.respond(number),
            Op::Share { instance, context, lags, reader } => {
                self.request(instance, context, lags);
                self.respond(self.requests.len() - 1)?;
                if let Some(last) = self.writes.len().checked_sub(1) {
                    self.step(Op::Write { write: last, is_lost: false })?;
                }
                return self.look(reader, context, 1, 1);
            }
            Op::Write { write, is_lost } => {
                if let Some(position) = write.checked_rem(self.writes.len()) {
                    let (context, stored) = self.writes.remove(position);
                    let stands = |known: &Stored| known.sent > stored.sent && known.sent <= self.clock(now) + 1_000_000;
                    if !is_lost && !self.store.get(&context).is_some_and(stands) {
                        self.store.insert(context, stored);
                    }
                }
            }
            Op::Look { instance, context, there, back } => return self.look(instance, context, there, back),
            Op::Flush => self.store.clear(),
            Op::Backup => self.backup.clone_from(&self.store),
            Op::Restore => self.store.clone_from(&self.backup),
            Op::Jump(millis) => {
                self.ahead += millis * 1_000;
                self.set_back += usize::from(millis < 0);
            }
        }
        Ok(())
    }

    fn request(&mut self, instance: usize, context: usize, lags: bool) {
        let now = self.now;
        let (reading, requirement) = self.instances[instance].position(now);
        // With old rules, the service evaluates as if the changes within the echo window had not happened yet.
        let is_seen = |change: &Change| !lags || change.at + ECHO_WINDOW < now;
        let version = self.changes.iter().take_while(|change| is_seen(change)).count() - 1;
        // The version is never older than before, because that would look like a change.
        let version = version.max(self.worked[context]);
        self.worked[context] = version;
        let fence = requirement.map(|requirement| requirement.fence);
        self.requests.push(Request { instance, context, version, reading, fence, sent_at: now });
    }

    fn respond(&mut self, number: usize) -> TestCaseResult {
        let Some(position) = number.checked_rem(self.requests.len()) else { return Ok(()) };
        let Request { instance: at, context: number, version, reading, fence, sent_at } =
            self.requests.remove(position);
        let (instance, canonical) = (&self.instances[at], context(number));
        let flag_set = flag_set(number, version);
        let known = instance.cache.get(canonical.as_bytes());
        let epoch =
            known.map_or(reading.epoch, |known| known.epoch_of_next(&flag_set, reading.epoch, &FRESHNESS, sent_at));
        let entry = Arc::new(CacheEntry::new(&canonical, flag_set, None, None, epoch, sent_at));
        instance.cache.put(&entry);
        let fence = if entry.is_settled() { fence.map(Fence::after_echo) } else { fence };
        // The clock is read before the response is written.
        let clock = self.clock(self.now);
        let instance = &mut self.instances[at];
        instance.read_clock(self.now, self.now, clock, self.set_back);
        if let Some((sent, is_steady)) = instance.clock.at(sent_at, self.now) {
            let fence = fence.filter(|_| is_steady);
            self.writes.push((number, Stored { sent, version, fence, clock: self.set_back, sent_at }));
        }
        Ok(())
    }

    fn look(&mut self, at: usize, number: usize, there: u64, back: u64) -> TestCaseResult {
        let (begun, canonical) = (self.now, context(number));
        let requirement = self.instances[at].position(begun).1;
        let (needed, needed_since) = (self.needed(at, begun), self.needed_since(at));
        self.wait(there);
        let (clock, stored) = (self.clock(self.now), self.store.get(&number).cloned());
        self.wait(back);
        let (now, instance) = (self.now, &mut self.instances[at]);
        let steady_since = instance.read_clock(begun, now, clock, self.set_back);
        let Some(Stored { sent, version, fence, clock: written, sent_at: truly_sent_at }) = stored else {
            return Ok(());
        };
        let Some(sent_at) = clock.checked_sub(sent).and_then(|age| begun.checked_sub(Duration::from_micros(age)))
        else {
            return Ok(());
        };
        let known = instance.cache.get(canonical.as_bytes());
        let epoch = requirement.and_then(|it| it.epoch_of(fence, sent_at, known.as_ref().map(|known| known.sent_at)));
        let Some(epoch) = epoch.filter(|_| sent_at >= steady_since + MARGIN) else { return Ok(()) };
        if instance.first_clock.is_some_and(|first| first > written) {
            // The instance cannot know that the clock was set back before its first reading.
            return Ok(());
        }
        self.hits += 1;
        HITS.set(HITS.get() + 1);
        let what = format!("instance {at}, context {number}, version {version} {fence:?}, needed {needed}");
        prop_assert!(value(number, version) >= value(number, needed), "{}", what);
        prop_assert!(truly_sent_at >= needed_since, "sent {:?} too early: {}", needed_since - truly_sent_at, what);
        let entry = CacheEntry::new(&canonical, flag_set(number, version), None, None, epoch, sent_at);
        instance.cache.put(&Arc::new(entry));
        // Checks evaluations that begin now and after the echo window, which use the flags in memory if they are fresh.
        for later in [now, now + ECHO_WINDOW + Duration::from_millis(1)] {
            let reading = self.instances[at].epoch.read(later);
            let fresh = self.instances[at].cache.get(canonical.as_bytes());
            if let Some(fresh) = fresh.filter(|fresh| fresh.is_fresh(reading, later, &FRESHNESS)) {
                let fresh = fresh.flag_set.get("f").unwrap().as_i64().unwrap();
                let needed = value(number, self.needed(at, later)) as i64;
                prop_assert!(fresh >= needed, "{fresh} is fresh after {:?}: {}", later - now, what);
            }
        }
        Ok(())
    }

    /// Returns the earliest request time with which flags can be fresh in an instance. This is after every
    /// change that the instance knows of, and after the last time at which it may have missed something.
    fn needed_since(&self, instance: usize) -> Instant {
        let Instance { read, missed_at, .. } = &self.instances[instance];
        read.iter().map(|(version, _)| self.changes[*version].at).fold(*missed_at, Instant::max)
    }

    /// Returns the minimum version that flags must have to be fresh in an instance. It includes every event that the instance has
    /// read and whose echo window has ended; the window begins again with each event. It also includes every change that was
    /// certain when the instance may last have missed something.
    fn needed(&self, instance: usize, now: Instant) -> usize {
        let Instance { read, missed_at, .. } = &self.instances[instance];
        let next = |event: usize| read.get(event + 1).map_or(now, |(_, at)| *at);
        let is_over = (0..read.len()).rposition(|event| read[event].1 + ECHO_WINDOW < next(event));
        let read = is_over.and_then(|last| read[..=last].iter().map(|(version, _)| *version).max());
        let is_certain = |change: &Change| change.at + ECHO_WINDOW < *missed_at;
        let missed = self.changes.iter().rposition(is_certain);
        read.into_iter().chain(missed).max().unwrap_or_default()
    }
}

thread_local! {
    static HITS: Cell<usize> = const { Cell::new(0) };
}

#[test]
fn no_interleaving_makes_old_flags_of_the_store_fresh() {
    let config = ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let run = runner.run(&vec(op(), 1..100), |ops| {
        let mut world = World::new();
        // All interleavings begin with open streams.
        for instance in 0..INSTANCES {
            world.step(Op::Open(instance))?;
            world.step(Op::Look { instance, context: 0, there: 1, back: 1 })?;
        }
        ops.into_iter().try_for_each(|op| world.step(op))
    });
    if let Err(error) = run {
        panic!("{error}");
    }
    assert!(HITS.get() > 1_000, "only {} answers from the store were fresh", HITS.get());
}
