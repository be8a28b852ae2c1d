//! What an application knows about the browsers that ask it for flags: the last change, the open streams, and what is limited.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    context::{canonical, context::Context},
    events::bus::Subscription,
    provider::provider::FlipswitchProvider,
    secret::BrowserKeys,
};

/// New contexts that browsers may cause in a minute by attributes they add: an identified user, and all others together.
const NEW_CONTEXTS: u32 = 8;
const NEW_ANONYMOUS_CONTEXTS: u32 = 64;

/// Refetches that browsers may cause by a time they name: for one context in a minute, and in a second for all.
const REFETCHES: u32 = 10;
const REFETCHES_PER_SECOND: u32 = 10;

/// Contexts whose allowances are counted. Further ones have none until the next minute.
const MAX_COUNTED: usize = 65_536;

/// A time of the service that is further ahead of ours is not believed.
const MAX_AHEAD: time::Duration = time::Duration::minutes(1);

/// What all routes for browsers of a provider share.
pub(crate) struct Browsers {
    pub(crate) keys: BrowserKeys,
    /// Distinguishes the ids of events from those of other processes.
    process: u64,
    changes: watch::Sender<Change>,
    streams: Mutex<Streams>,
    allowances: Mutex<Allowances>,
    /// Ends all streams. Cancelled with the provider's runtime as well.
    draining: CancellationToken,
    subscription: OnceLock<Subscription>,
}

/// A change of flags. The first one stands for those before the process has started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) number: u64,
    /// The latest time of a change: by the service, or else when it was heard.
    pub(crate) at: OffsetDateTime,
    pub(crate) heard_at: Instant,
}

impl Change {
    /// Returns whether it is a change that this process has heard of.
    pub(crate) fn is_known(&self) -> bool {
        self.number > 1
    }
}

/// The context of a browser's request: what limits go by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ContextId {
    hash: u64,
    /// Whether there is no targeting key, so that any number of browsers may have this context.
    is_anonymous: bool,
}

impl ContextId {
    pub(crate) fn of(context: &Context) -> Self {
        let hash = context.with_canonical(|context| canonical::hash(context.bytes));
        Self { hash, is_anonymous: !context.has_targeting_key() }
    }
}

/// How many streams may be open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamLimits {
    pub(crate) total: usize,
    /// For each context with a targeting key. All others together have half of the total.
    pub(crate) per_context: usize,
}

#[derive(Default)]
struct Streams {
    open: usize,
    anonymous: usize,
    contexts: HashMap<u64, OfContext>,
}

/// The open streams of one context, and what their browsers were answered.
#[derive(Clone, Copy, Default)]
struct OfContext {
    open: usize,
    progress: Progress,
}

/// What the browsers of a context were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The number of the last change after which they were answered by this process.
    pub(crate) answered: u64,
    /// The same for answers that only a later change makes out of date.
    pub(crate) settled: u64,
}

impl Streams {
    fn has_room(&self, id: ContextId, limits: StreamLimits) -> bool {
        let has_own_room = if id.is_anonymous {
            self.anonymous < limits.total.div_ceil(2)
        } else {
            self.contexts.get(&id.hash).is_none_or(|context| context.open < limits.per_context)
        };
        has_own_room && self.open < limits.total
    }
}

#[derive(Default)]
struct Allowances {
    minute: Option<Instant>,
    contexts: HashMap<u64, Used>,
    anonymous_additions: u32,
    second: Option<Instant>,
    refetches: u32,
}

#[derive(Default)]
struct Used {
    additions: u32,
    refetches: u32,
}

impl Allowances {
    /// Begins a new minute or second, if it is time.
    fn advance(&mut self, now: Instant) {
        let is_over = |began: Option<Instant>, length| began.is_none_or(|began| now - began >= length);
        if is_over(self.minute, Duration::from_secs(60)) {
            (self.minute, self.anonymous_additions) = (Some(now), 0);
            self.contexts.clear();
        }
        if is_over(self.second, Duration::from_secs(1)) {
            (self.second, self.refetches) = (Some(now), 0);
        }
    }

    fn used(&mut self, id: ContextId) -> Option<&mut Used> {
        let has_room = self.contexts.len() < MAX_COUNTED || self.contexts.contains_key(&id.hash);
        has_room.then(|| self.contexts.entry(id.hash).or_default())
    }

    fn add(&mut self, id: ContextId, now: Instant) -> bool {
        self.advance(now);
        if id.is_anonymous {
            return take(&mut self.anonymous_additions, NEW_ANONYMOUS_CONTEXTS);
        }
        self.used(id).is_some_and(|used| take(&mut used.additions, NEW_CONTEXTS))
    }

    fn refetch(&mut self, id: ContextId, now: Instant) -> bool {
        self.advance(now);
        self.refetches < REFETCHES_PER_SECOND
            && self.used(id).is_some_and(|used| take(&mut used.refetches, REFETCHES))
            && take(&mut self.refetches, REFETCHES_PER_SECOND)
    }
}

fn take(used: &mut u32, limit: u32) -> bool {
    let is_left = *used < limit;
    *used += u32::from(is_left);
    is_left
}

impl Browsers {
    pub(crate) fn new(keys: BrowserKeys, draining: CancellationToken) -> Self {
        let first = Change { number: 1, at: OffsetDateTime::UNIX_EPOCH, heard_at: Instant::now() };
        Self {
            keys,
            process: fastrand::u64(..),
            changes: watch::Sender::new(first),
            streams: Mutex::default(),
            allowances: Mutex::default(),
            draining,
            subscription: OnceLock::new(),
        }
    }

    /// Begins to take note of the provider's changes, unless it has begun.
    pub(crate) fn follow(self: &Arc<Self>, provider: &FlipswitchProvider) {
        self.subscription.get_or_init(|| {
            // Weak: the provider holds both.
            let browsers = Arc::downgrade(self);
            provider.add_flag_change_listener(move |change| {
                if let Some(browsers) = browsers.upgrade() {
                    browsers.changed(change.timestamp);
                }
            })
        });
    }

    pub(crate) fn changed(&self, at: Option<OffsetDateTime>) {
        let now = OffsetDateTime::now_utc();
        let at = at.filter(|at| *at <= now + MAX_AHEAD).unwrap_or(now);
        self.changes.send_modify(|change| {
            *change = Change { number: change.number + 1, at: change.at.max(at), heard_at: Instant::now() };
        });
    }

    /// Moves the last change into the past.
    #[cfg(test)]
    pub(crate) fn heard_before(&self, time: Duration) {
        self.changes.send_modify(|change| change.heard_at -= time);
    }

    pub(crate) fn latest(&self) -> Change {
        *self.changes.borrow()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Returns the id of a change's event.
    pub(crate) fn id(&self, change: Change) -> String {
        format!("{:x}.{}", self.process, change.number)
    }

    /// Ends all streams, now and later.
    pub(crate) fn drain(&self) {
        self.draining.cancel();
    }

    pub(crate) fn draining(&self) -> &CancellationToken {
        &self.draining
    }

    /// Returns whether a stream can be opened.
    pub(crate) fn has_room(&self, id: ContextId, limits: StreamLimits) -> bool {
        !self.draining.is_cancelled() && self.streams.lock().has_room(id, limits)
    }

    /// Counts a stream, until the result is dropped. Returns `None` if there is no room.
    pub(crate) fn open(self: &Arc<Self>, id: ContextId, limits: StreamLimits) -> Option<OpenStream> {
        let mut streams = self.streams.lock();
        if self.draining.is_cancelled() || !streams.has_room(id, limits) {
            return None;
        }
        streams.open += 1;
        streams.anonymous += usize::from(id.is_anonymous);
        streams.contexts.entry(id.hash).or_default().open += 1;
        Some(OpenStream { browsers: Arc::clone(self), id })
    }

    /// Returns the number of open streams.
    pub(crate) fn open_streams(&self) -> usize {
        self.streams.lock().open
    }

    /// Takes note that a browser of a context was answered after a change.
    pub(crate) fn answered(&self, id: ContextId, change: u64, is_settled: bool) {
        if let Some(OfContext { progress, .. }) = self.streams.lock().contexts.get_mut(&id.hash) {
            progress.answered = progress.answered.max(change);
            progress.settled =
                if is_settled { progress.settled.max(change) } else { progress.settled.min(change.saturating_sub(1)) };
        }
    }

    /// Returns whether a browser may cause a new context, and counts it.
    pub(crate) fn may_add(&self, id: ContextId) -> bool {
        self.allowances.lock().add(id, Instant::now())
    }

    /// Returns whether a browser may cause a refetch, and counts it.
    pub(crate) fn may_refetch(&self, id: ContextId) -> bool {
        self.allowances.lock().refetch(id, Instant::now())
    }
}

/// An open stream of a browser.
pub(crate) struct OpenStream {
    pub(crate) browsers: Arc<Browsers>,
    id: ContextId,
}

impl OpenStream {
    /// Returns what the browsers of the same context were answered.
    pub(crate) fn progress(&self) -> Progress {
        self.browsers.streams.lock().contexts.get(&self.id.hash).map(|context| context.progress).unwrap_or_default()
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut streams = self.browsers.streams.lock();
        streams.open -= 1;
        streams.anonymous -= usize::from(self.id.is_anonymous);
        if let Some(context) = streams.contexts.get_mut(&self.id.hash) {
            context.open -= 1;
            if context.open == 0 {
                streams.contexts.remove(&self.id.hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn browsers() -> Arc<Browsers> {
        let keys = BrowserKeys::new(&Secret::new(b"a secret of this test"));
        Arc::new(Browsers::new(keys, CancellationToken::new()))
    }

    fn user(key: &str) -> ContextId {
        ContextId::of(&Context::user(key))
    }

    fn visitor(locale: &str) -> ContextId {
        ContextId::of(&Context::anonymous().with("locale", locale))
    }

    #[test]
    fn streams_are_limited_in_total_by_context_and_for_anonymous_ones() {
        let (browsers, limits) = (browsers(), StreamLimits { total: 5, per_context: 2 });
        let open = |id| browsers.open(id, limits);
        let alice = [open(user("alice")), open(user("alice"))];
        assert!(alice.iter().all(Option::is_some) && open(user("alice")).is_none());
        let anonymous = [open(visitor("de")), open(visitor("en")), open(visitor("de"))];
        assert!(anonymous.iter().all(Option::is_some), "half of them, rounded up");
        assert!(!browsers.has_room(visitor("fr"), limits) && !browsers.has_room(user("bob"), limits));
        drop(alice);
        assert!(!browsers.has_room(visitor("fr"), limits) && browsers.has_room(user("bob"), limits));
        drop(anonymous);
        assert_eq!(browsers.open_streams(), 0);
        assert!(browsers.streams.lock().contexts.is_empty(), "nothing is left behind");
        browsers.drain();
        assert!(open(user("alice")).is_none());
    }

    #[test]
    fn allowances_are_those_of_a_minute() {
        let (mut allowances, now) = (Allowances::default(), Instant::now());
        let mut count = |id, seconds| {
            let now = now + Duration::from_secs(seconds);
            (0..200).filter(|_| allowances.add(id, now)).count()
        };
        assert_eq!((count(user("alice"), 0), count(user("bob"), 1), count(user("alice"), 59)), (8, 8, 0));
        assert_eq!((count(visitor("de"), 59), count(visitor("en"), 59)), (64, 0), "of all visitors together");
        assert_eq!((count(user("alice"), 60), count(visitor("en"), 60)), (8, 64));
    }

    #[test]
    fn refetches_are_limited_by_context_and_second() {
        let (mut allowances, now) = (Allowances::default(), Instant::now());
        let mut count = |id, seconds| {
            let now = now + Duration::from_secs(seconds);
            (0..200).filter(|_| allowances.refetch(id, now)).count()
        };
        assert_eq!((count(user("alice"), 0), count(user("bob"), 0)), (10, 0));
        assert_eq!((count(user("alice"), 1), count(user("carol"), 1), count(user("carol"), 2)), (0, 10, 0));
        assert_eq!(count(user("alice"), 60), 10);
    }

    #[test]
    fn counted_contexts_are_bounded() {
        let (mut allowances, now) = (Allowances::default(), Instant::now());
        for hash in 0..MAX_COUNTED as u64 + 10 {
            assert_eq!(allowances.add(ContextId { hash, is_anonymous: false }, now), hash < MAX_COUNTED as u64);
        }
        assert_eq!(allowances.contexts.len(), MAX_COUNTED);
        assert!(!allowances.add(ContextId { hash: u64::MAX, is_anonymous: false }, now));
        assert!(allowances.add(ContextId { hash: 1, is_anonymous: false }, now));
    }

    #[test]
    fn an_answer_that_is_not_settled_undoes_one_that_was() {
        let (browsers, id) = (browsers(), user("alice"));
        let stream = browsers.open(id, StreamLimits { total: 1, per_context: 1 }).unwrap();
        assert_eq!(stream.progress(), Progress::default());
        browsers.answered(id, 3, true);
        assert_eq!(stream.progress(), Progress { answered: 3, settled: 3 });
        browsers.answered(id, 3, false);
        assert_eq!(stream.progress(), Progress { answered: 3, settled: 2 });
        browsers.answered(user("bob"), 9, true);
        assert_eq!(stream.progress(), Progress { answered: 3, settled: 2 }, "of another context");
    }
}
