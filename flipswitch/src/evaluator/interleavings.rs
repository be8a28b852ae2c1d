//! Random interleavings of evaluations, requests and changes, against what must hold whatever the order.
//!
//! The table of in_flight, the cache and the clock are the real ones. Around them stand a service whose only value is how
//! often it was changed, and evaluations taken apart into the steps between which anything may happen. Nothing sleeps
//! and nothing runs by itself: an interleaving is a list of [`Op`]s, and a failing one shrinks to a short list.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use proptest::{collection::vec, prelude::*, test_runner::TestCaseResult};
use serde_json::{Map, Value, json};
use tokio_test::task::{self, Spawn};

use crate::{
    cache::cache::Cache,
    cache::entry::{CacheEntry, Freshness},
    cache::epoch::{Epoch, EpochReading},
    context::canonical::CanonicalContext,
    error::Error,
    evaluator::in_flight::{InFlightRequest, InFlightRequests, JoinOutcome, WaitOutcome},
    flags::flag_set::FlagSet,
};

const CONTEXTS: usize = 3;

const FRESHNESS: Freshness = Freshness {
    streaming: Duration::from_secs(100),
    polling: Duration::from_secs(10),
    max_stale: Duration::from_secs(200),
};

/// One step. A number picks among whatever the step may be done to: the contexts, or the requests in order of departure.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// An evaluation reads the clock and looks into the cache.
    Begin(usize),
    /// An evaluation that found nothing asks for a request; a slow one hears the outcome only when it is polled.
    Join {
        evaluation: usize,
        slow: bool,
    },
    /// Both at once, as it mostly goes.
    Evaluate(usize),
    /// A slow evaluation hears whatever there is to hear.
    Poll(usize),
    /// The caller of an evaluation has lost interest.
    Cancel(usize),
    /// A request starts for which nobody waits.
    Probe(usize),
    /// A request gets its slot and leaves.
    Send(usize),
    /// The service works out its answer to a request.
    Work(usize),
    /// The answer arrives: in full, even if the tag would have done.
    Respond {
        request: usize,
        in_full: bool,
    },
    /// A request fails, sent or not.
    Fail(usize),
    /// A request takes long.
    Late(usize),
    /// A flag is changed at the service.
    Change,
    /// The stream tells of the oldest change that it has not told yet.
    Event,
    /// There is another API key, of another environment: with other values, under tags that the first one had, too.
    NewKey,
    /// The clock is raised without a change.
    Raise,
    Close,
    Open,
    /// Other contexts need the room.
    Evict,
    Advance(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let number = || 0..6_usize;
    // Most of what can go wrong takes several requests of one context.
    let context = || prop_oneof![3 => Just(0), 1 => 0..CONTEXTS];
    prop_oneof![
        3 => context().prop_map(Op::Begin),
        3 => (number(), any::<bool>()).prop_map(|(evaluation, slow)| Op::Join { evaluation, slow }),
        6 => context().prop_map(Op::Evaluate),
        2 => number().prop_map(Op::Poll),
        1 => number().prop_map(Op::Cancel),
        1 => context().prop_map(Op::Probe),
        6 => number().prop_map(Op::Send),
        6 => number().prop_map(Op::Work),
        6 => (number(), any::<bool>()).prop_map(|(request, in_full)| Op::Respond { request, in_full }),
        2 => number().prop_map(Op::Fail),
        1 => number().prop_map(Op::Late),
        4 => Just(Op::Change),
        4 => Just(Op::Event),
        1 => Just(Op::NewKey),
        1 => Just(Op::Raise),
        1 => Just(Op::Close),
        2 => Just(Op::Open),
        1 => Just(Op::Evict),
        1 => (1..40_u64).prop_map(Op::Advance),
    ]
}

/// What an evaluation may demand of an answer that is called fresh, fixed when it begins.
#[derive(Clone, Copy, Debug)]
struct Evaluation {
    context: usize,
    reading: EpochReading,
    /// What the service had when the clock was last raised.
    announced: u64,
    /// What an evaluation of the context was answered before this one began.
    seen: u64,
}

struct Waiting {
    evaluation: Evaluation,
    has_old: bool,
    slow: bool,
    /// Two requests were under way that were both too old for it.
    queued: bool,
    /// The requests that landed while it needed just them.
    waited: usize,
    future: Spawn<Pin<Box<dyn Future<Output = WaitOutcome>>>>,
}

/// A request from its departure to its landing.
struct Underway {
    request: InFlightRequest,
    sent: Option<Sent>,
}

struct Sent {
    /// With the key of which environment.
    environment: usize,
    /// What is known from before this epoch is another environment's.
    key_epoch: u64,
    epoch: u64,
    at: Instant,
    /// What the service answers, once it has worked that out.
    version: Option<u64>,
}

struct World {
    contexts: Vec<CanonicalContext>,
    in_flight: InFlightRequests,
    cache: Cache,
    epoch: Epoch,
    now: Instant,
    /// The service's value, for every context.
    version: u64,
    /// The first version of each environment; the last one is in use.
    environments: Vec<u64>,
    key_epoch: u64,
    /// Whether the service works in the order in which requests were sent.
    orderly: bool,
    open: bool,
    /// Changes that the stream has not told yet.
    untold: u64,
    announced: u64,
    seen: [u64; CONTEXTS],
    /// The age of what the cache held after the last step.
    kept: [Option<(u64, Instant)>; CONTEXTS],
    begun: Vec<Evaluation>,
    waiting: Vec<Waiting>,
    underway: Vec<Underway>,
}

fn pick<T>(items: &[T], number: usize) -> Option<usize> {
    (!items.is_empty()).then(|| number % items.len())
}

fn canonical(name: &str) -> CanonicalContext {
    CanonicalContext::from_bytes(name.as_bytes())
}

fn answer(context: usize, version: u64) -> Arc<FlagSet> {
    let values = Map::from_iter([("flag".to_owned(), json!([context, version]))]);
    Arc::new(FlagSet::of_values(values, "STATIC"))
}

/// The context and the version that an answer was made of.
fn parts(answer: &FlagSet) -> (usize, u64) {
    let number = |value: &Value| value.as_u64().unwrap();
    let value = &answer.get("flag").unwrap().value;
    (number(&value[0]) as usize, number(&value[1]))
}

impl World {
    fn new(orderly: bool) -> Self {
        let epoch = Epoch::default();
        epoch.stream_opened();
        Self {
            contexts: (0..CONTEXTS).map(|context| canonical(&format!("context {context}"))).collect(),
            in_flight: InFlightRequests::default(),
            // All contexts of the model and one more.
            cache: Cache::new(CONTEXTS + 1, 1 << 16, FRESHNESS),
            epoch,
            now: Instant::now(),
            version: 1,
            environments: vec![1],
            key_epoch: 0,
            orderly,
            open: true,
            untold: 0,
            announced: 1,
            seen: [0; CONTEXTS],
            kept: [None; CONTEXTS],
            begun: Vec::new(),
            waiting: Vec::new(),
            underway: Vec::new(),
        }
    }

    fn step(&mut self, op: Op) -> TestCaseResult {
        match op {
            Op::Begin(context) => self.begin(context)?,
            Op::Join { evaluation, slow } => {
                if let Some(position) = pick(&self.begun, evaluation) {
                    let evaluation = self.begun.remove(position);
                    self.join(evaluation, slow)?;
                }
            }
            Op::Evaluate(context) => {
                let before = self.begun.len();
                self.begin(context)?;
                if self.begun.len() > before {
                    let evaluation = self.begun.remove(before);
                    self.join(evaluation, false)?;
                }
            }
            Op::Poll(number) => {
                if let Some(position) = pick(&self.waiting, number) {
                    self.poll(position)?;
                }
            }
            Op::Cancel(number) => {
                if let Some(position) = pick(&self.waiting, number) {
                    self.waiting.remove(position);
                }
            }
            Op::Probe(context) => self.probe(context)?,
            Op::Send(number) => self.send(number),
            Op::Work(number) => self.work(number),
            Op::Respond { request, in_full } => self.respond(request, in_full)?,
            Op::Fail(number) => {
                if let Some(position) = pick(&self.underway, number) {
                    self.fail(position)?;
                }
            }
            Op::Late(number) => {
                if let Some(position) = pick(&self.underway, number) {
                    let request = &self.underway[position].request;
                    self.in_flight.mark_slow(&request.context, request.id);
                }
            }
            Op::Change => {
                self.version += 1;
                self.untold += 1;
            }
            Op::Event => {
                if self.untold > 0 && self.open {
                    self.untold -= 1;
                    self.raise();
                }
            }
            Op::NewKey => {
                self.version += 1;
                self.environments.push(self.version);
                self.key_epoch = self.epoch.read().epoch + 1;
                self.raise();
            }
            Op::Raise => self.raise(),
            Op::Close => {
                self.open = false;
                self.epoch.stream_closed();
            }
            Op::Open => {
                // What the old stream had not told, the new one does not tell either.
                self.untold = 0;
                self.open = true;
                self.epoch.stream_opened();
                self.announced = self.version;
            }
            Op::Evict => self.evict(),
            Op::Advance(seconds) => self.now += Duration::from_secs(seconds),
        }
        prop_assert_eq!(self.epoch.read().streaming, self.open, "whether the stream is open");
        self.listen()?;
        self.check_flights()
    }

    /// Contexts that get the same flags may get the same tag, and so may environments. So a tag may be one that matches and
    /// must not.
    fn tag(&self, version: u64) -> Box<[u8]> {
        let start = self.environments.iter().rfind(|start| **start <= version).unwrap();
        format!("\"{}\"", version - start).into_bytes().into()
    }

    /// Whoever hears of the raised clock asks the service after now, so gets what the service has now, at the least.
    /// That is as much as the event announced, or more.
    fn raise(&mut self) {
        self.epoch.invalidate_all();
        self.announced = self.version;
    }

    fn begin(&mut self, context: usize) -> TestCaseResult {
        let reading = self.epoch.read();
        let known = self.cache.get(self.contexts[context].as_bytes());
        // An answer that grew too old is gone like one that was evicted; see `remember`.
        let aged = known.as_ref().is_some_and(|known| self.age(known) > Self::limit(reading));
        let seen = if aged { 0 } else { self.seen[context] };
        let evaluation = Evaluation { context, reading, announced: self.announced, seen };
        match self.cache.fresh(self.contexts[context].as_bytes(), reading, self.now) {
            Some(entry) => {
                prop_assert!(self.age(&entry) <= Self::limit(reading), "a fresh answer is too old");
                self.answered(evaluation, &entry)
            }
            None => {
                let good = known.filter(|known| known.epoch >= reading.epoch && !aged);
                prop_assert!(good.is_none(), "a good answer was not found: {good:?}");
                self.begun.push(evaluation);
                Ok(())
            }
        }
    }

    fn join(&mut self, evaluation: Evaluation, slow: bool) -> TestCaseResult {
        let Evaluation { context, reading, .. } = evaluation;
        let canonical = self.contexts[context].clone();
        let (now, need) = (self.now, reading.epoch);
        let joined = self.in_flight.join(
            &canonical,
            need,
            || self.cache.get(canonical.as_bytes()),
            |known| known.is_fresh(reading, now, self.cache.freshness()),
        );
        let (waiter, request) = match joined {
            JoinOutcome::Cached(entry) => {
                prop_assert!(self.age(&entry) <= Self::limit(reading), "a fresh answer is too old");
                return self.answered(evaluation, &entry);
            }
            JoinOutcome::Wait(waiter, request) => (waiter, request),
        };
        let known = self.cache.fresh(canonical.as_bytes(), reading, now);
        prop_assert!(known.is_none(), "an evaluation waits for what is known: {known:?}");
        if let Some(request) = request {
            prop_assert!(request.epoch >= need, "a request is too old for whom it starts");
            self.spawn(request)?;
        }
        let queued = !self.of(context).any(|underway| underway.request.epoch >= need);
        prop_assert!(!queued || self.of(context).count() == 2, "an evaluation waits for nothing");
        let old = self.cache.get(canonical.as_bytes());
        let has_old = old.is_some_and(|old| old.may_be_served(now, self.cache.freshness()));
        let future: Pin<Box<dyn Future<Output = WaitOutcome>>> = Box::pin(waiter.wait(has_old));
        self.waiting.push(Waiting { evaluation, has_old, slow, queued, waited: 0, future: task::spawn(future) });
        Ok(())
    }

    fn probe(&mut self, context: usize) -> TestCaseResult {
        let canonical = self.contexts[context].clone();
        let base = self.cache.get(canonical.as_bytes());
        let request = self.in_flight.probe(&canonical, self.epoch.read().epoch, base);
        prop_assert_eq!(request.is_some(), self.of(context).count() == 0, "a probe goes where nothing is under way");
        request.map_or(Ok(()), |request| self.spawn(request))
    }

    fn spawn(&mut self, request: InFlightRequest) -> TestCaseResult {
        if let Some(base) = &request.base {
            let (context, version) = parts(&base.flag_set);
            prop_assert_eq!(base.context(), request.context.as_bytes());
            prop_assert_eq!(&self.contexts[context], &request.context, "a base with the answer of another context");
            prop_assert_eq!(base.etag(), Some(&*self.tag(version)), "a base with the tag of another answer");
        }
        self.underway.push(Underway { request, sent: None });
        self.check_flights()
    }

    fn send(&mut self, number: usize) {
        let mut unsent: Vec<_> = self.underway.iter_mut().filter(|underway| underway.sent.is_none()).collect();
        let Some(position) = pick(&unsent, number) else { return };
        // No two requests leave in the same moment: of two that did, the cache could not tell which saw more.
        self.now += Duration::from_micros(1);
        // Read when the request leaves: it may have waited for its slot while the clock was raised.
        unsent[position].sent = Some(Sent {
            environment: self.environments.len() - 1,
            key_epoch: self.key_epoch,
            epoch: self.epoch.read().epoch,
            at: self.now,
            version: None,
        });
    }

    fn work(&mut self, number: usize) {
        let mut sent: Vec<_> = self.underway.iter_mut().filter_map(|underway| underway.sent.as_mut()).collect();
        sent.retain(|sent| sent.version.is_none());
        sent.sort_by_key(|sent| sent.at);
        let Some(position) = pick(&sent, number) else { return };
        let worked_out = if self.orderly { 0..=position } else { position..=position };
        for sent in &mut sent[worked_out] {
            let next = self.environments.get(sent.environment + 1);
            sent.version = Some(next.map_or(self.version, |next| next - 1));
        }
    }

    fn respond(&mut self, number: usize, in_full: bool) -> TestCaseResult {
        let answered = |underway: &Underway| underway.sent.as_ref()?.version;
        let ready: Vec<_> = (0..self.underway.len()).filter(|at| answered(&self.underway[*at]).is_some()).collect();
        let Some(position) = pick(&ready, number) else { return Ok(()) };
        let Underway { request, sent } = self.underway.remove(ready[position]);
        let Some(Sent { key_epoch, epoch, at, version: Some(version), .. }) = sent else { return Ok(()) };
        let context = self.number_of(&request.context);
        let base = request.base_since(key_epoch);
        let matching = base.filter(|base| base.etag() == Some(&*self.tag(version)));
        let (answer, etag) = match matching {
            Some(base) if !in_full => (Arc::clone(&base.flag_set), base.etag().map(Box::from)),
            _ => (answer(context, version), Some(self.tag(version))),
        };
        let entry = CacheEntry::new(&request.context, answer, etag.as_deref(), base, epoch, at);
        let entry = Arc::new(entry);
        self.complete(&request, Ok(Arc::clone(&entry)))?;
        let kept = self.cache.get(request.context.as_bytes());
        let kept = kept.is_some_and(|kept| Self::age_order(&kept) >= Self::age_order(&entry));
        prop_assert!(kept, "an answer that came was not kept");
        Ok(())
    }

    fn fail(&mut self, position: usize) -> TestCaseResult {
        let Underway { request, .. } = self.underway.remove(position);
        let context = self.number_of(&request.context);
        // One that nobody may hear of, since a newer request is under way.
        let overtaken = self.of(context).any(|underway| underway.request.epoch > request.epoch);
        let details = (!overtaken).then(|| request.epoch.to_string());
        self.complete(&request, Err(Error::Evaluation { code: context.to_string(), details }))
    }

    fn complete(&mut self, request: &InFlightRequest, outcome: Result<Arc<CacheEntry>, Error>) -> TestCaseResult {
        let context = self.number_of(&request.context);
        let overtaken = self.of(context).any(|underway| underway.request.epoch > request.epoch);
        // Those who wait for an overtaken request that fails wait on. It is the one case in which they wait for a third:
        // the newer one may be overtaken and fail in its turn.
        let counts = outcome.is_ok() || !overtaken;
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.evaluation.context == context) {
            if waiting.queued || (counts && request.epoch >= waiting.evaluation.reading.epoch) {
                waiting.waited += 1;
            }
            waiting.queued = false;
        }
        let next = self.in_flight.complete(request, outcome, |entry| self.cache.put(entry), || self.epoch.read().epoch);
        next.map_or(Ok(()), |next| self.spawn(next))
    }

    /// Other contexts take the room of all.
    fn evict(&self) {
        for number in 0..32 {
            let other = canonical(&format!("other {number}"));
            self.cache.put(&Arc::new(CacheEntry::timeless(&other, Arc::default())));
            // Entries that are never read again would give way before those that are.
            self.cache.get(other.as_bytes());
            self.cache.get(other.as_bytes());
        }
    }

    /// Lets the evaluations hear that listen, all but the slow ones.
    fn listen(&mut self) -> TestCaseResult {
        for position in (0..self.waiting.len()).rev() {
            if !self.waiting[position].slow {
                self.poll(position)?;
            }
        }
        self.remember()
    }

    fn poll(&mut self, position: usize) -> TestCaseResult {
        let Poll::Ready(heard) = self.waiting[position].future.poll() else { return Ok(()) };
        let Waiting { evaluation, has_old, slow, waited, .. } = self.waiting.remove(position);
        prop_assert!(slow || waited <= 2, "an evaluation waited for {} requests", waited);
        match heard {
            WaitOutcome::Answered(entry) => self.answered(evaluation, &entry)?,
            WaitOutcome::Failed(error) => {
                let Error::Evaluation { code, details } = &*error else { unreachable!("{error}") };
                prop_assert_eq!(code, &evaluation.context.to_string(), "the failure of another context");
                let epoch = details.as_ref().and_then(|epoch| epoch.parse::<u64>().ok());
                prop_assert!(epoch.is_some(), "the failure of a request that was overtaken");
                let need = Some(evaluation.reading.epoch);
                prop_assert!(epoch >= need, "the failure of a request that was too old");
            }
            WaitOutcome::Slow => prop_assert!(has_old, "an evaluation that has no old answer gives up"),
            WaitOutcome::Lost => prop_assert!(false, "an evaluation was forgotten"),
        }
        Ok(())
    }

    /// Checks an answer that is handed out as fresh.
    fn answered(&mut self, evaluation: Evaluation, entry: &CacheEntry) -> TestCaseResult {
        let Evaluation { context, announced, seen, .. } = evaluation;
        let (answered, version) = parts(&entry.flag_set);
        prop_assert_eq!(entry.context(), self.contexts[context].as_bytes());
        prop_assert_eq!(answered, context, "the answer of another context");
        prop_assert!(version >= announced, "version {version} after {announced} was announced: {evaluation:?}");
        // A service that works out a later request first answers it with an older value, and nothing that it says tells
        // so. Only of one that works in order can be demanded that values never go back.
        prop_assert!(version >= seen || !self.orderly, "version {version} after {seen} was seen: {evaluation:?}");
        // See `remember`: an answer that the cache holds no more binds nobody.
        let kept = self.cache.get(entry.context());
        if kept.is_some_and(|kept| Self::age_order(&kept) >= Self::age_order(entry)) {
            self.seen[context] = self.seen[context].max(version);
        }
        Ok(())
    }

    /// Forgets what was seen where the cache did. It alone knows what was handed out: without it, an older request of the
    /// same epoch, which left its slot late, may bring an older value after a newer one.
    fn remember(&mut self) -> TestCaseResult {
        for (context, canonical) in self.contexts.iter().enumerate() {
            let kept = self.cache.get(canonical.as_bytes()).map(|kept| Self::age_order(&kept));
            match kept {
                Some(_) => prop_assert!(kept >= self.kept[context], "an answer gave way to an older one"),
                None => self.seen[context] = 0,
            }
            self.kept[context] = kept;
        }
        Ok(())
    }

    /// At most two requests of a context are under way, and all but the last are overtaken.
    fn check_flights(&self) -> TestCaseResult {
        for context in 0..CONTEXTS {
            let epochs: Vec<_> = self.of(context).map(|underway| underway.request.epoch).collect();
            prop_assert!(epochs.len() <= 2, "{epochs:?} are under way");
            prop_assert!(epochs.is_sorted_by(|older, newer| older < newer), "{epochs:?} are under way");
        }
        Ok(())
    }

    /// Ends all in_flight: nobody may be left waiting, and nothing left in the table.
    fn end(mut self) -> TestCaseResult {
        let mut steps = 0;
        while !self.underway.is_empty() {
            for op in [Op::Send(0), Op::Work(0), Op::Respond { request: 0, in_full: false }] {
                self.step(op)?;
            }
            steps += 1;
            prop_assert!(steps < 100, "requests follow each other without end");
        }
        while let Some(last) = self.waiting.len().checked_sub(1) {
            self.poll(last)?;
            prop_assert_eq!(self.waiting.len(), last, "an evaluation waits though all requests have landed");
        }
        (0..CONTEXTS).try_for_each(|context| self.probe(context))
    }

    fn of(&self, context: usize) -> impl Iterator<Item = &Underway> {
        self.underway.iter().filter(move |underway| underway.request.context == self.contexts[context])
    }

    fn number_of(&self, context: &CanonicalContext) -> usize {
        self.contexts.iter().position(|known| known == context).unwrap()
    }

    fn age(&self, entry: &CacheEntry) -> Duration {
        self.now.saturating_duration_since(entry.sent_at)
    }

    fn limit(reading: EpochReading) -> Duration {
        if reading.streaming { FRESHNESS.streaming } else { FRESHNESS.polling }
    }

    fn age_order(entry: &CacheEntry) -> (u64, Instant) {
        (entry.epoch, entry.sent_at)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_things_makes_an_old_answer_fresh(orderly in any::<bool>(), ops in vec(op(), 1..80)) {
        let mut world = World::new(orderly);
        for op in ops {
            world.step(op)?;
        }
        world.end()?;
    }
}
