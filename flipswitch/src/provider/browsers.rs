//! What an application knows about the browsers that request flags from it: the last change, the open streams, and the limits.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    context::{canonical, context::Context},
    events::bus::LastChange,
    secret::BrowserKeys,
};

/// Maximum number of new contexts per minute that browsers may cause with attributes that they add. The limit applies to each
/// user with a targeting key, and to all requests without one together.
const NEW_CONTEXTS: u32 = 8;
const NEW_ANONYMOUS_CONTEXTS: u32 = 64;

/// Maximum number of requests per minute that browsers may cause for such contexts when they are known and out of date.
const RENEWED_CONTEXTS: u32 = 32;
const RENEWED_ANONYMOUS_CONTEXTS: u32 = 512;

/// Maximum number of refetches that browsers may cause by sending the time of a change: per minute for one context, and per
/// second for all contexts. Half of the refetches in a second are reserved for users with an account.
const REFETCHES: u32 = 10;
const REFETCHES_PER_SECOND: u32 = 10;

/// Maximum number of users whose allowances are tracked. At most half of them are users without an account. Further users have no
/// allowance until the next minute.
const MAX_COUNTED: usize = 65_536;

/// What all routes for browsers of a provider share.
pub(crate) struct Browsers {
    pub(crate) keys: BrowserKeys,
    /// Whether the keys differ from process to process.
    are_keys_random: bool,
    changes: watch::Receiver<LastChange>,
    streams: Mutex<Streams>,
    allowances: Mutex<Allowances>,
    /// Ends all streams. Also cancelled with the provider's runtime.
    draining: CancellationToken,
}

/// Identifies what limits apply to: a user, or a context without a user.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BrowserId {
    /// Hash of the targeting key without the attributes, or of the whole context if it has no targeting key.
    hash: u64,
    /// Whether there is no targeting key, so that any number of browsers may have this context.
    is_shared: bool,
    /// Whether the context needs no account, so that anybody can have it.
    is_anonymous: bool,
}

impl BrowserId {
    /// Returns the id of a context, which may belong to a visitor without an account.
    pub(crate) fn of(context: &Context, is_visitor: bool) -> Self {
        let (hash, is_shared) = match context.targeting_key() {
            Some(key) => (canonical::hash(key.as_bytes()), false),
            None => (context.with_canonical(|context| canonical::hash(context.bytes)), true),
        };
        Self { hash, is_shared, is_anonymous: is_shared || is_visitor }
    }
}

/// How many streams may be open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamLimits {
    pub(crate) total: usize,
    /// The limit for each targeting key. All requests without an account together have half of the total.
    pub(crate) per_context: usize,
}

#[derive(Default)]
struct Streams {
    open: usize,
    anonymous: usize,
    contexts: HashMap<u64, OfContext>,
}

/// The open streams of one context, and the responses to their browsers.
#[derive(Clone, Copy, Default)]
struct OfContext {
    open: usize,
    progress: Progress,
}

/// The responses of this process to the browsers of a context. Which of the browsers received a response is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The number of the last change after which a browser received a response.
    pub(crate) answered: u64,
    /// When a browser last received flags that may become out of date without a further change.
    pub(crate) unsettled_at: Option<tokio::time::Instant>,
}

impl Streams {
    fn has_room(&self, id: BrowserId, limits: StreamLimits) -> bool {
        let is_below_own = |context: &OfContext| context.open < limits.per_context;
        self.open < limits.total
            && (!id.is_anonymous || self.anonymous < limits.total.div_ceil(2))
            && (id.is_shared || self.contexts.get(&id.hash).is_none_or(is_below_own))
    }
}

#[derive(Default)]
struct Allowances {
    minute: Option<Instant>,
    contexts: HashMap<u64, Used>,
    anonymous_additions: u32,
    anonymous_renewals: u32,
    second: Option<Instant>,
    refetches: u32,
}

#[derive(Default)]
struct Used {
    additions: u32,
    renewals: u32,
    refetches: u32,
}

impl Allowances {
    /// Begins a new minute or second if the last one has elapsed.
    fn advance(&mut self, now: Instant) {
        let is_over = |began: Option<Instant>, length| began.is_none_or(|began| now - began >= length);
        if is_over(self.minute, Duration::from_secs(60)) {
            (self.minute, self.anonymous_additions, self.anonymous_renewals) = (Some(now), 0, 0);
            self.contexts.clear();
        }
        if is_over(self.second, Duration::from_secs(1)) {
            (self.second, self.refetches) = (Some(now), 0);
        }
    }

    /// Returns what a context has used. Contexts that anybody can have leave room for others.
    fn used(&mut self, id: BrowserId) -> Option<&mut Used> {
        let room = if id.is_anonymous { MAX_COUNTED / 2 } else { MAX_COUNTED };
        let has_room = self.contexts.len() < room || self.contexts.contains_key(&id.hash);
        has_room.then(|| self.contexts.entry(id.hash).or_default())
    }

    fn add(&mut self, id: BrowserId, now: Instant) -> bool {
        self.advance(now);
        if id.is_shared {
            return take(&mut self.anonymous_additions, NEW_ANONYMOUS_CONTEXTS);
        }
        self.used(id).is_some_and(|used| take(&mut used.additions, NEW_CONTEXTS))
    }

    fn renew(&mut self, id: BrowserId, now: Instant) -> bool {
        self.advance(now);
        if id.is_shared {
            return take(&mut self.anonymous_renewals, RENEWED_ANONYMOUS_CONTEXTS);
        }
        self.used(id).is_some_and(|used| take(&mut used.renewals, RENEWED_CONTEXTS))
    }

    fn refetch(&mut self, id: BrowserId, now: Instant) -> bool {
        self.advance(now);
        let limit = if id.is_anonymous { REFETCHES_PER_SECOND / 2 } else { REFETCHES_PER_SECOND };
        self.refetches < limit
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
    pub(crate) fn new(
        keys: BrowserKeys,
        are_keys_random: bool,
        changes: watch::Receiver<LastChange>,
        draining: CancellationToken,
    ) -> Self {
        let (streams, allowances) = (Mutex::default(), Mutex::default());
        Self { keys, are_keys_random, changes, streams, allowances, draining }
    }

    /// Returns whether the keys differ from process to process.
    pub(crate) fn are_keys_random(&self) -> bool {
        self.are_keys_random
    }

    /// Returns the last change.
    pub(crate) fn latest(&self) -> LastChange {
        *self.changes.borrow()
    }

    /// Returns a receiver of the last change and of later ones.
    pub(crate) fn changes(&self) -> watch::Receiver<LastChange> {
        self.changes.clone()
    }

    /// Ends all open streams, and prevents new ones from opening.
    pub(crate) fn drain(&self) {
        self.draining.cancel();
    }

    pub(crate) fn draining(&self) -> &CancellationToken {
        &self.draining
    }

    /// Returns whether a stream can be opened.
    pub(crate) fn has_room(&self, id: BrowserId, limits: StreamLimits) -> bool {
        !self.draining.is_cancelled() && self.streams.lock().has_room(id, limits)
    }

    /// Counts a stream until the result is dropped. Returns `None` if there is no room.
    pub(crate) fn open(self: &Arc<Self>, id: BrowserId, limits: StreamLimits) -> Option<OpenStream> {
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

    /// Records that a browser of a context received a response after a change.
    pub(crate) fn answered(&self, id: BrowserId, change: u64, is_settled: bool) {
        if let Some(OfContext { progress, .. }) = self.streams.lock().contexts.get_mut(&id.hash) {
            progress.answered = progress.answered.max(change);
            if !is_settled {
                progress.unsettled_at = Some(tokio::time::Instant::now());
            }
        }
    }

    /// Returns whether a browser may cause a new context, and counts it.
    pub(crate) fn may_add(&self, id: BrowserId) -> bool {
        self.allowances.lock().add(id, Instant::now())
    }

    /// Returns whether a browser may cause a request for a context that it has caused before, and counts it.
    pub(crate) fn may_renew(&self, id: BrowserId) -> bool {
        self.allowances.lock().renew(id, Instant::now())
    }

    /// Returns whether a browser may cause a refetch, and counts it.
    pub(crate) fn may_refetch(&self, id: BrowserId) -> bool {
        self.allowances.lock().refetch(id, Instant::now())
    }
}

/// An open stream of a browser.
pub(crate) struct OpenStream {
    pub(crate) browsers: Arc<Browsers>,
    id: BrowserId,
}

impl OpenStream {
    /// Returns the responses to the browsers of the same context, and whether they may have gone to a browser other than the one
    /// of this stream.
    pub(crate) fn progress(&self) -> (Progress, bool) {
        let context = self.browsers.streams.lock().contexts.get(&self.id.hash).copied().unwrap_or_default();
        (context.progress, self.id.is_shared || context.open > 1)
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
        let (_, changes) = watch::channel(LastChange::default());
        Arc::new(Browsers::new(keys, false, changes, CancellationToken::new()))
    }

    fn user(key: &str) -> BrowserId {
        BrowserId::of(&Context::user(key), false)
    }

    fn visitor(locale: &str) -> BrowserId {
        BrowserId::of(&Context::anonymous().with("locale", locale), false)
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
        // Visitors have keys of their own, and anybody can be one.
        let visit = |key: &str| BrowserId::of(&Context::user(key), true);
        let visits: Vec<_> = ["1", "2", "3"].map(|key| open(visit(key))).into();
        assert!(visits.iter().all(Option::is_some) && open(visit("4")).is_none() && open(user("bob")).is_some());
        drop(visits);
        // The attributes of a user make no difference.
        let with = |plan: &str| BrowserId::of(&Context::user("alice").with("plan", plan), false);
        let plans = [open(with("free")), open(with("premium"))];
        assert!(plans.iter().all(Option::is_some) && open(with("gold")).is_none());
        browsers.drain();
        assert!(open(user("carol")).is_none());
    }

    #[test]
    fn allowances_are_renewed_each_minute() {
        let (mut allowances, now) = (Allowances::default(), Instant::now());
        let mut count = |id, seconds| {
            let now = now + Duration::from_secs(seconds);
            (0..200).filter(|_| allowances.add(id, now)).count()
        };
        assert_eq!((count(user("alice"), 0), count(user("bob"), 1), count(user("alice"), 59)), (8, 8, 0));
        assert_eq!((count(visitor("de"), 59), count(visitor("en"), 59)), (64, 0), "all visitors together");
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
        assert_eq!((count(visitor("de"), 3), count(user("dora"), 3)), (5, 5), "half is left to users");
        assert_eq!(count(user("alice"), 60), 10);
    }

    #[test]
    fn counted_contexts_are_bounded() {
        let (mut allowances, now) = (Allowances::default(), Instant::now());
        for hash in 0..MAX_COUNTED as u64 + 10 {
            assert_eq!(allowances.add(BrowserId { hash, ..user("") }, now), hash < MAX_COUNTED as u64);
        }
        assert_eq!(allowances.contexts.len(), MAX_COUNTED);
        assert!(!allowances.add(BrowserId { hash: u64::MAX, ..user("") }, now));
        assert!(allowances.add(BrowserId { hash: 1, ..user("") }, now));
    }

    #[test]
    fn answers_to_browsers_are_remembered_while_they_have_streams() {
        let (browsers, id) = (browsers(), user("alice"));
        let stream = browsers.open(id, StreamLimits { total: 1, per_context: 1 }).unwrap();
        browsers.answered(id, 3, true);
        assert_eq!(stream.progress().0, Progress { answered: 3, unsettled_at: None });
        browsers.answered(id, 2, false);
        let progress = stream.progress().0;
        assert!(progress.answered == 3 && progress.unsettled_at.is_some());
        browsers.answered(id, 4, true);
        assert_eq!(stream.progress().0.unsettled_at, progress.unsettled_at, "it may concern another tab");
        browsers.answered(user("bob"), 9, true);
        assert_eq!(stream.progress().0.answered, 4, "another user makes no difference");
    }
}
