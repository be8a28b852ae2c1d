//! Tests random interleavings of evaluations, requests and changes against the invariants.
//!
//! The requests in flight, the cache and the epoch are the real implementations. The service is a model whose only value is the
//! number of its changes, and evaluations are split into steps between which anything may happen. Nothing sleeps and nothing runs
//! by itself: an interleaving is a list of [`Op`]s, and a failing interleaving shrinks to a short list.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use open_feature::EvaluationContext;
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{TestCaseError, TestCaseResult},
};
use serde_json::{Map, Value, json};
use tokio_test::task::{self, Spawn};

use crate::{
    cache::cache::Cache,
    cache::entry::{CacheEntry, Freshness},
    cache::epoch::{ECHO_WINDOW, Epoch, EpochReading, is_in_echo_window},
    cache::memo::{FINDS, Memo},
    context::canonical::{Canonical, CanonicalContext, ContextKey},
    context::into_context::View,
    error::Error,
    evaluator::in_flight::{InFlightRequest, InFlightRequests, JoinOutcome, WaitOutcome},
    flags::flag_set::FlagSet,
};

const CONTEXTS: usize = 3;

/// Number of threads, each with a memo.
const THREADS: usize = 3;

/// Longer than any run, so that an open stream never counts as silent.
const NEVER_SILENT: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

const FRESHNESS: Freshness = Freshness {
    streaming: Duration::from_secs(100),
    polling: Duration::from_secs(10),
    max_stale: Duration::from_secs(200),
};

/// One step. A number selects what it applies to: a context, or a request in the order in which they started.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// An evaluation reads the epoch, and the memo of its thread or the cache.
    Begin {
        context: usize,
        thread: usize,
    },
    /// An evaluation that found nothing joins a request. A slow one gets the outcome only at `Op::Poll`.
    Join {
        evaluation: usize,
        slow: bool,
    },
    /// Both steps together.
    Evaluate {
        context: usize,
        thread: usize,
    },
    /// A slow evaluation is polled.
    Poll(usize),
    /// The caller of an evaluation stops waiting.
    Cancel(usize),
    /// A probe starts.
    Probe(usize),
    /// A request gets its permit and is sent.
    Send(usize),
    /// The service evaluates for a request. Within the echo window after an event, it may do so with old rules.
    Work {
        request: usize,
        lags: bool,
    },
    /// The response arrives, in full or, if the tag matches, as 304.
    Respond {
        request: usize,
        in_full: bool,
    },
    /// A request fails, whether or not it has been sent.
    Fail(usize),
    /// A flag is changed at the service.
    Change,
    /// The event of the oldest change without one arrives.
    Event,
    /// The API key of another environment is set. That environment has different values under the same tags.
    NewKey,
    /// Everything is invalidated without a change.
    Invalidate,
    Close,
    Open,
    /// Other contexts evict everything.
    Evict,
    /// The echo window ends.
    Settle,
    Advance(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let number = || 0..6_usize;
    // Most faults need several requests for one context.
    let context = || prop_oneof![3 => Just(0), 1 => 0..CONTEXTS];
    prop_oneof![
        3 => (context(), number()).prop_map(|(context, thread)| Op::Begin { context, thread }),
        3 => (number(), any::<bool>()).prop_map(|(evaluation, slow)| Op::Join { evaluation, slow }),
        6 => (context(), number()).prop_map(|(context, thread)| Op::Evaluate { context, thread }),
        2 => number().prop_map(Op::Poll),
        1 => number().prop_map(Op::Cancel),
        1 => context().prop_map(Op::Probe),
        6 => number().prop_map(Op::Send),
        6 => (number(), any::<bool>()).prop_map(|(request, lags)| Op::Work { request, lags }),
        6 => (number(), any::<bool>()).prop_map(|(request, in_full)| Op::Respond { request, in_full }),
        2 => number().prop_map(Op::Fail),
        4 => Just(Op::Change),
        4 => Just(Op::Event),
        1 => Just(Op::NewKey),
        1 => Just(Op::Invalidate),
        1 => Just(Op::Close),
        2 => Just(Op::Open),
        1 => Just(Op::Evict),
        2 => Just(Op::Settle),
        1 => (1..40_u64).prop_map(Op::Advance),
    ]
}

/// What an evaluation requires of fresh flags, fixed when it begins.
#[derive(Clone, Copy, Debug)]
struct Evaluation {
    context: usize,
    reading: EpochReading,
    /// The version of the service at the last invalidation.
    announced: u64,
    /// The version that an earlier evaluation of the context got.
    seen: u64,
}

struct Waiting {
    evaluation: Evaluation,
    slow: bool,
    /// Two requests were in flight that were both too old for it.
    queued: bool,
    /// Completed requests that it waited for.
    waited: usize,
    future: Spawn<Pin<Box<dyn Future<Output = WaitOutcome>>>>,
}

/// A request from its start to its completion.
struct Request {
    request: InFlightRequest,
    sent: Option<Sent>,
}

struct Sent {
    /// The environment of the API key.
    environment: usize,
    /// Entries from before this epoch belong to another environment.
    key_epoch: u64,
    epoch: u64,
    at: Instant,
    /// The version that the service responds with, once it has evaluated.
    version: Option<u64>,
}

struct World {
    fields: [EvaluationContext; CONTEXTS],
    /// The canonical forms of the same contexts.
    contexts: Vec<CanonicalContext>,
    /// The memos of the threads. The first thread has its contexts in the canonical form.
    memos: RefCell<[Memo; THREADS]>,
    in_flight: InFlightRequests,
    cache: Cache,
    epoch: Epoch,
    now: Instant,
    /// The version of the service, for every context.
    version: u64,
    /// The first version of each environment; the last one is in use.
    environments: Vec<u64>,
    key_epoch: u64,
    /// Whether the service evaluates in the order in which requests were sent.
    orderly: bool,
    open: bool,
    /// Changes whose events have not arrived.
    unannounced: u64,
    announced: u64,
    /// The version that the events of this echo window announced. It is required once the window has ended.
    echoed: u64,
    /// The last version that the service evaluated for each context.
    worked: [u64; CONTEXTS],
    seen: [u64; CONTEXTS],
    /// The order of the cached entries after the last step.
    kept: [Option<(u64, Instant)>; CONTEXTS],
    begun: Vec<Evaluation>,
    waiting: Vec<Waiting>,
    requests: Vec<Request>,
}

fn pick<T>(items: &[T], number: usize) -> Option<usize> {
    (!items.is_empty()).then(|| number % items.len())
}

fn key(context: &CanonicalContext) -> ContextKey<'_> {
    ContextKey::new(context.as_bytes())
}

fn canonical(name: &str) -> CanonicalContext {
    CanonicalContext::from_bytes(name.as_bytes())
}

fn answer(context: usize, version: u64) -> Arc<FlagSet> {
    let values = Map::from_iter([("flag".to_owned(), json!([context, version]))]);
    Arc::new(FlagSet::of_values(values, "STATIC"))
}

/// Returns the context and the version of a flag set.
fn parts(answer: &FlagSet) -> (usize, u64) {
    let number = |value: &Value| value.as_u64().unwrap();
    let value = &answer.get("flag").unwrap().value;
    (number(&value[0]) as usize, number(&value[1]))
}

impl World {
    fn new(orderly: bool) -> Self {
        let epoch = Epoch::default();
        epoch.stream_opened(Instant::now() + NEVER_SILENT);
        // The first two are equal by `==`.
        let fields = [0.0, -0.0, 1.0].map(|value| EvaluationContext::default().with_custom_field("number", value));
        Self {
            contexts: fields.iter().map(CanonicalContext::new).collect(),
            fields,
            memos: RefCell::default(),
            in_flight: InFlightRequests::default(),
            // All contexts of the model, and one more.
            cache: Cache::new(CONTEXTS + 1, 1 << 16, FRESHNESS),
            epoch,
            now: Instant::now(),
            version: 1,
            environments: vec![1],
            key_epoch: 0,
            orderly,
            open: true,
            unannounced: 0,
            announced: 1,
            echoed: 1,
            worked: [0; CONTEXTS],
            seen: [0; CONTEXTS],
            kept: [None; CONTEXTS],
            begun: Vec::new(),
            waiting: Vec::new(),
            requests: Vec::new(),
        }
    }

    fn step(&mut self, op: Op) -> TestCaseResult {
        match op {
            Op::Begin { context, thread } => self.begin(context, thread)?,
            Op::Join { evaluation, slow } => {
                if let Some(position) = pick(&self.begun, evaluation) {
                    let evaluation = self.begun.remove(position);
                    self.join(evaluation, slow)?;
                }
            }
            Op::Evaluate { context, thread } => {
                let before = self.begun.len();
                self.begin(context, thread)?;
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
            Op::Work { request, lags } => self.work(request, lags),
            Op::Respond { request, in_full } => self.respond(request, in_full)?,
            Op::Fail(number) => {
                if let Some(position) = pick(&self.requests, number) {
                    self.fail(position)?;
                }
            }
            Op::Change => {
                self.version += 1;
                self.unannounced += 1;
            }
            Op::Event => {
                if self.unannounced > 0 && self.open {
                    self.settle();
                    self.unannounced -= 1;
                    self.echoed = self.echoed.max(self.version - self.unannounced);
                    self.epoch.change_announced(self.now);
                }
            }
            Op::NewKey => {
                self.version += 1;
                self.environments.push(self.version);
                self.key_epoch = self.epoch.after_next_invalidation();
                self.epoch.invalidate_all();
                (self.announced, self.echoed) = (self.version, self.version);
            }
            Op::Invalidate => self.invalidate(),
            Op::Close => {
                self.open = false;
                self.epoch.stream_closed();
            }
            Op::Open => {
                // Events that the old stream did not deliver are lost.
                self.unannounced = 0;
                self.open = true;
                self.settle();
                self.epoch.stream_opened(self.now + NEVER_SILENT);
                self.echoed = self.version;
                self.settle();
            }
            Op::Evict => self.evict(),
            Op::Settle => self.now += ECHO_WINDOW + Duration::from_micros(1),
            Op::Advance(seconds) => self.now += Duration::from_secs(seconds),
        }
        self.settle();
        prop_assert_eq!(self.epoch.read(self.now).streaming, self.open, "whether the stream is open");
        self.poll_all()?;
        self.check_in_flight()
    }

    /// Returns the tag of a version. Contexts and environments may have equal tags, so a tag that must not be used may match.
    fn tag(&self, version: u64) -> Box<[u8]> {
        let start = self.environments.iter().rfind(|start| **start <= version).unwrap();
        format!("\"{}\"", version - start).into_bytes().into()
    }

    /// Invalidates everything. Requests from now on get at least the current version of the service or, within an echo window,
    /// get it once the window has ended.
    fn invalidate(&mut self) {
        self.epoch.invalidate_all();
        self.echoed = self.version;
        self.settle();
    }

    fn is_in_echo_window(&self) -> bool {
        is_in_echo_window(self.epoch.current(self.now))
    }

    /// Takes the end of an echo window into account.
    fn settle(&mut self) {
        if !self.is_in_echo_window() {
            self.announced = self.echoed;
        }
    }

    /// Reads the memo of a thread, and otherwise the cache.
    fn find(&self, context: usize, thread: usize, reading: EpochReading) -> Option<Arc<CacheEntry>> {
        let memo = &mut self.memos.borrow_mut()[thread % THREADS];
        let (view, canonical) = (self.view(context, thread), &self.contexts[context]);
        memo.find(&self.cache, view, reading, self.now).or_else(|| {
            let (puts, entry) = self.cache.fresh(&key(canonical), reading, self.now)?;
            memo.found(&self.cache, puts, view, &entry);
            Some(entry)
        })
    }

    fn view(&self, context: usize, thread: usize) -> View<'_> {
        if thread % THREADS == 0 {
            View::Canonical(Canonical { bytes: self.contexts[context].as_bytes(), hash: None, left_out: None })
        } else {
            View::Fields(&self.fields[context])
        }
    }

    /// Stores an entry, while all threads read. Returns the version that they read last.
    fn put(&self, entry: &Arc<CacheEntry>) -> Result<u64, TestCaseError> {
        let context = self.contexts.iter().position(|known| known.as_bytes() == entry.context()).unwrap();
        let reading = self.epoch.read(self.now);
        let find = || Some(self.cache.fresh(&key(&self.contexts[context]), reading, self.now)?.1);
        let (seen, is_older) = (Cell::new(0), Cell::new(false));
        let read = |entry: Option<Arc<CacheEntry>>| {
            if let Some(entry) = entry {
                let (_, version) = parts(&entry.flag_set);
                is_older.set(is_older.get() || version < seen.get());
                seen.set(version);
            }
        };
        let states = RefCell::new(vec![self.cache.puts()]);
        let found = RefCell::new(vec![(states.borrow()[0], find())]);
        self.cache.put_in_steps(entry, || {
            // A thread without a memo reads the entry, then the others until they remember it. None may read an older version
            // than the one before.
            read(find());
            for _ in 0..FINDS {
                (0..THREADS).for_each(|thread| read(self.find(context, thread, reading)));
            }
            states.borrow_mut().push(self.cache.puts());
            found.borrow_mut().extend(states.borrow().iter().map(|puts| (*puts, find())));
        });
        read(find());
        // Only now do slow threads remember what they have found.
        for (puts, entry) in found.into_inner() {
            let Some(entry) = entry else { continue };
            for thread in 0..THREADS {
                for _ in 0..FINDS {
                    self.memos.borrow_mut()[thread].found(&self.cache, puts, self.view(context, thread), &entry);
                }
                read(self.find(context, thread, reading));
            }
        }
        prop_assert!(!is_older.get() || !self.orderly, "version {} after a newer one was stored", seen.get());
        Ok(seen.get())
    }

    fn begin(&mut self, context: usize, thread: usize) -> TestCaseResult {
        let reading = self.epoch.read(self.now);
        let known = self.cache.get(self.contexts[context].as_bytes());
        // An entry that is too old counts as evicted; see `remember`.
        let aged = known.as_ref().is_some_and(|known| self.age(known) > Self::limit(reading));
        let seen = if aged { 0 } else { self.seen[context] };
        let evaluation = Evaluation { context, reading, announced: self.announced, seen };
        match self.find(context, thread, reading) {
            Some(entry) => {
                prop_assert!(self.age(&entry) <= Self::limit(reading), "a fresh answer is too old");
                self.answered(evaluation, &entry)
            }
            None => {
                let good = known.filter(|known| known.epoch >= reading.epoch && !aged);
                prop_assert!(good.is_none(), "usable flags were not found: {good:?}");
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
        let known = self.cache.fresh(&key(&canonical), reading, now);
        prop_assert!(known.is_none(), "an evaluation waits although fresh flags are cached: {known:?}");
        if let Some(request) = request {
            prop_assert!(request.epoch >= need, "a request is too old for the evaluation that starts it");
            self.spawn(request)?;
        }
        let queued = !self.of(context).any(|request| request.request.epoch >= need);
        prop_assert!(!queued || self.of(context).count() == 2, "an evaluation waits for nothing");
        let future: Pin<Box<dyn Future<Output = WaitOutcome>>> = Box::pin(waiter.wait());
        self.waiting.push(Waiting { evaluation, slow, queued, waited: 0, future: task::spawn(future) });
        Ok(())
    }

    fn probe(&mut self, context: usize) -> TestCaseResult {
        let canonical = self.contexts[context].clone();
        let request = self.in_flight.probe(&canonical, self.epoch.current(self.now));
        match request {
            Ok(request) => self.spawn(request),
            Err(_) => {
                prop_assert!(self.of(context).count() > 0, "a probe waits for nothing");
                Ok(())
            }
        }
    }

    fn spawn(&mut self, request: InFlightRequest) -> TestCaseResult {
        if let Some(base) = &request.base {
            let (context, version) = parts(&base.flag_set);
            prop_assert_eq!(base.context(), request.context.as_bytes());
            prop_assert_eq!(&self.contexts[context], &request.context, "a base with the flags of another context");
            prop_assert_eq!(base.etag(), Some(&*self.tag(version)), "a base with the tag of another answer");
        }
        self.requests.push(Request { request, sent: None });
        self.check_in_flight()
    }

    fn send(&mut self, number: usize) {
        let mut unsent: Vec<_> = self.requests.iter_mut().filter(|request| request.sent.is_none()).collect();
        let Some(position) = pick(&unsent, number) else { return };
        // No two requests are sent at the same instant: their entries would have no order.
        self.now += Duration::from_micros(1);
        // Read when the request is sent: it may have waited for its permit during an invalidation.
        unsent[position].sent = Some(Sent {
            environment: self.environments.len() - 1,
            key_epoch: self.key_epoch,
            epoch: self.epoch.current(self.now),
            at: self.now,
            version: None,
        });
    }

    fn work(&mut self, number: usize, lags: bool) {
        // A service that evaluates out of order may return an older version, which looks like a change.
        let lags = lags && self.orderly && self.is_in_echo_window();
        let contexts = self.contexts.clone();
        let context_of = |request: &Request| contexts.iter().position(|known| *known == request.request.context);
        let mut sent: Vec<_> = self
            .requests
            .iter_mut()
            .filter_map(|request| Some((context_of(request)?, request.sent.as_mut()?)))
            .filter(|(_, sent)| sent.version.is_none())
            .collect();
        sent.sort_by_key(|(_, sent)| sent.at);
        let Some(position) = pick(&sent, number) else { return };
        let worked_out = if self.orderly { 0..=position } else { position..=position };
        for (context, sent) in &mut sent[worked_out] {
            let next = self.environments.get(sent.environment + 1);
            let version = match next {
                Some(next) => next - 1,
                // With old rules, but never older than before.
                None if lags => self.announced.max(self.worked[*context]),
                None => self.version,
            };
            self.worked[*context] = self.worked[*context].max(version);
            sent.version = Some(version);
        }
    }

    fn respond(&mut self, number: usize, in_full: bool) -> TestCaseResult {
        let answered = |request: &Request| request.sent.as_ref()?.version;
        let ready: Vec<_> = (0..self.requests.len()).filter(|at| answered(&self.requests[*at]).is_some()).collect();
        let Some(position) = pick(&ready, number) else { return Ok(()) };
        let Request { request, sent } = self.requests.remove(ready[position]);
        let Some(Sent { key_epoch, epoch, at, version: Some(version), .. }) = sent else { return Ok(()) };
        let context = self.number_of(&request.context);
        let base = request.base_since(key_epoch);
        let matching = base.filter(|base| base.etag() == Some(&*self.tag(version)));
        let (answer, etag) = match matching {
            Some(base) if !in_full => (Arc::clone(&base.flag_set), base.etag().map(Box::from)),
            _ => (answer(context, version), Some(self.tag(version))),
        };
        let known = self.cache.get(request.context.as_bytes()).filter(|known| known.epoch >= key_epoch);
        let epoch = known.map_or(epoch, |known| known.epoch_of_next(&answer, epoch, self.cache.freshness(), at));
        let entry = CacheEntry::new(&request.context, answer, etag.as_deref(), base, epoch, at);
        let entry = Arc::new(entry);
        self.complete(&request, Ok(Arc::clone(&entry)))?;
        let kept = self.cache.get(request.context.as_bytes());
        let kept = kept.is_some_and(|kept| Self::age_order(&kept) >= Self::age_order(&entry));
        prop_assert!(kept, "an answer was not cached");
        Ok(())
    }

    fn fail(&mut self, position: usize) -> TestCaseResult {
        let Request { request, .. } = self.requests.remove(position);
        let context = self.number_of(&request.context);
        // The waiters of a superseded request must not get its failure.
        let superseded = self.of(context).any(|other| other.request.epoch > request.epoch);
        let details = (!superseded).then(|| request.epoch.to_string());
        self.complete(&request, Err(Error::Evaluation { code: context.to_string(), details }))
    }

    fn complete(&mut self, request: &InFlightRequest, outcome: Result<Arc<CacheEntry>, Error>) -> TestCaseResult {
        let context = self.number_of(&request.context);
        let superseded = self.of(context).any(|other| other.request.epoch > request.epoch);
        // Waiters of a superseded request that fails wait for the newer one. Only then can they wait for a third request,
        // because the newer one may be superseded and fail as well.
        let counts = outcome.is_ok() || !superseded;
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.evaluation.context == context) {
            if waiting.queued || (counts && request.epoch >= waiting.evaluation.reading.epoch) {
                waiting.waited += 1;
            }
            waiting.queued = false;
        }
        let mut seen = Ok(0);
        let epoch = || self.epoch.current(self.now);
        let next = self.in_flight.complete(request, outcome, |entry| seen = self.put(entry), epoch);
        self.seen[context] = self.seen[context].max(seen?);
        next.map_or(Ok(()), |next| self.spawn(next))
    }

    /// Evicts all contexts.
    fn evict(&self) {
        for number in 0..32 {
            let other = canonical(&format!("other {number}"));
            self.cache.put(&Arc::new(CacheEntry::timeless(&other, Arc::default())));
            // Entries that are never read would be evicted first.
            self.cache.get(other.as_bytes());
            self.cache.get(other.as_bytes());
        }
    }

    /// Polls all evaluations except the slow ones.
    fn poll_all(&mut self) -> TestCaseResult {
        for position in (0..self.waiting.len()).rev() {
            if !self.waiting[position].slow {
                self.poll(position)?;
            }
        }
        self.remember()
    }

    fn poll(&mut self, position: usize) -> TestCaseResult {
        let Poll::Ready(outcome) = self.waiting[position].future.poll() else { return Ok(()) };
        let Waiting { evaluation, slow, waited, .. } = self.waiting.remove(position);
        prop_assert!(slow || waited <= 2, "an evaluation waited for {} requests", waited);
        match outcome {
            WaitOutcome::Answered(entry) => self.answered(evaluation, &entry)?,
            WaitOutcome::Failed(error) => {
                let Error::Evaluation { code, details } = &*error else { unreachable!("{error}") };
                prop_assert_eq!(code, &evaluation.context.to_string(), "the failure of another context");
                let epoch = details.as_ref().and_then(|epoch| epoch.parse::<u64>().ok());
                prop_assert!(epoch.is_some(), "the failure of a request that was superseded");
                let need = Some(evaluation.reading.epoch);
                prop_assert!(epoch >= need, "the failure of a request that was too old");
            }
            WaitOutcome::Slow | WaitOutcome::Lost => prop_assert!(false, "an evaluation was forgotten"),
        }
        Ok(())
    }

    /// Checks flags that are returned as fresh.
    fn answered(&mut self, evaluation: Evaluation, entry: &CacheEntry) -> TestCaseResult {
        let Evaluation { context, announced, seen, .. } = evaluation;
        let (answered, version) = parts(&entry.flag_set);
        prop_assert_eq!(entry.context(), self.contexts[context].as_bytes());
        prop_assert_eq!(answered, context, "the answer of another context");
        prop_assert!(version >= announced, "version {version} after {announced} was announced: {evaluation:?}");
        // A service that evaluates out of order may respond to a later request with an older version, which cannot be
        // detected. Only with an orderly service can versions be required never to go back.
        prop_assert!(version >= seen || !self.orderly, "version {version} after {seen} was seen: {evaluation:?}");
        // See `remember`: an evicted entry requires nothing of later ones.
        let kept = self.cache.get(entry.context());
        if kept.is_some_and(|kept| Self::age_order(&kept) >= Self::age_order(entry)) {
            self.seen[context] = self.seen[context].max(version);
        }
        Ok(())
    }

    /// Records the entries that the cache holds, and forgets the versions of evicted contexts. Only the cache knows what was
    /// returned before, so an older request of the same epoch may return an older version after an eviction.
    fn remember(&mut self) -> TestCaseResult {
        for (context, canonical) in self.contexts.iter().enumerate() {
            let kept = self.cache.get(canonical.as_bytes()).map(|kept| Self::age_order(&kept));
            match kept {
                Some(_) => prop_assert!(kept >= self.kept[context], "an older answer replaced a newer one"),
                None => self.seen[context] = 0,
            }
            self.kept[context] = kept;
        }
        Ok(())
    }

    /// Checks that at most two requests for a context are in flight, and that all but the last are superseded.
    fn check_in_flight(&self) -> TestCaseResult {
        for context in 0..CONTEXTS {
            let epochs: Vec<_> = self.of(context).map(|request| request.request.epoch).collect();
            prop_assert!(epochs.len() <= 2, "{epochs:?} are in flight");
            prop_assert!(epochs.is_sorted_by(|older, newer| older < newer), "{epochs:?} are in flight");
        }
        Ok(())
    }

    /// Completes all requests: no evaluation may be left waiting, and no request in the table.
    fn end(mut self) -> TestCaseResult {
        let mut steps = 0;
        while !self.requests.is_empty() {
            for op in [Op::Send(0), Op::Work { request: 0, lags: false }, Op::Respond { request: 0, in_full: false }] {
                self.step(op)?;
            }
            steps += 1;
            prop_assert!(steps < 100, "requests follow each other endlessly");
        }
        while let Some(last) = self.waiting.len().checked_sub(1) {
            self.poll(last)?;
            prop_assert_eq!(self.waiting.len(), last, "an evaluation waits although all requests are complete");
        }
        (0..CONTEXTS).try_for_each(|context| self.probe(context))
    }

    fn of(&self, context: usize) -> impl Iterator<Item = &Request> {
        self.requests.iter().filter(move |request| request.request.context == self.contexts[context])
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
    fn no_interleaving_makes_old_flags_fresh(orderly in any::<bool>(), ops in vec(op(), 1..80)) {
        let mut world = World::new(orderly);
        for op in ops {
            world.step(op)?;
        }
        world.end()?;
    }
}
