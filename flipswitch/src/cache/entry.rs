//! One context's flags, and what is known about them.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use quick_cache::Equivalent;

use crate::{
    cache::epoch::{EpochReading, is_in_echo_window},
    context::canonical::{self, CanonicalContext, ContextKey},
    flags::{failing::Failing, flag_set::FlagSet},
};

/// The flags for one context, and what is known about them. Replaced as a whole, never changed.
#[derive(Clone)]
pub(crate) struct CacheEntry {
    pub(crate) flag_set: Arc<FlagSet>,
    /// The epoch that was read before the request was sent.
    pub(crate) epoch: u64,
    /// When the request that returned or confirmed the flags was sent.
    pub(crate) sent_at: Instant,
    /// The context, followed by the tag: one allocation, since a cache may hold a million of them.
    text: Box<[u8]>,
    /// Length of the context, and whether flags failed, so that a read does not have to look into the flag set.
    context_len: u32,
    /// Bytes that the flag set needed; zero if another context already shared it.
    flag_set_bytes: u32,
}

/// The bit of `context_len` that is set if the service could not evaluate some flags. Contexts are at most 64 KiB.
const FAILING: u32 = 1 << 31;

/// How old flags may become.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Freshness {
    /// Maximum age of fresh flags while the stream of changes is open.
    pub(crate) streaming: Duration,
    /// Maximum age of fresh flags while it is closed.
    pub(crate) polling: Duration,
    /// Maximum age of stale flags. Older flags are not served.
    pub(crate) max_stale: Duration,
}

/// Bytes of an entry in addition to its text and its flag set: the entry itself, its place in the cache, and allocator overhead.
pub(crate) const OVERHEAD: usize = 176;

impl CacheEntry {
    /// Creates an entry. `base` is the entry that the request was sent with; `etag` is the service's tag, byte for byte.
    pub(crate) fn new(
        context: &CanonicalContext,
        flag_set: Arc<FlagSet>,
        etag: Option<&[u8]>,
        base: Option<&Self>,
        epoch: u64,
        sent_at: Instant,
    ) -> Self {
        let flag_set_bytes = match base {
            Some(base) if Arc::ptr_eq(&base.flag_set, &flag_set) => base.flag_set_bytes,
            // No other entry shares it.
            _ if Arc::strong_count(&flag_set) == 1 => u32::try_from(flag_set.bytes()).unwrap_or(u32::MAX),
            _ => 0,
        };
        let text = [context.as_bytes(), etag.unwrap_or_default()].concat().into_boxed_slice();
        let context_len = u32::try_from(context.as_bytes().len()).unwrap_or_default();
        let context_len = if flag_set.failing().is_some() { context_len | FAILING } else { context_len };
        Self { flag_set, epoch, sent_at, text, context_len, flag_set_bytes }
    }

    /// Creates an entry that no invalidation affects, for flags that do not come from a service.
    pub(crate) fn timeless(context: &CanonicalContext, flag_set: Arc<FlagSet>) -> Self {
        Self::new(context, flag_set, None, None, u64::MAX, Instant::now())
    }

    fn context_bytes(&self) -> usize {
        (self.context_len & !FAILING) as usize
    }

    /// Returns the canonical context that the flags are for.
    #[inline]
    pub(crate) fn context(&self) -> &[u8] {
        self.text.get(..self.context_bytes()).unwrap_or_default()
    }

    /// Returns what is known about flags that the service could not evaluate, if there are any.
    #[inline]
    pub(crate) fn failing(&self) -> Option<&Failing> {
        if self.context_len & FAILING == 0 { None } else { self.flag_set.failing() }
    }

    /// Returns the service's tag, byte for byte.
    pub(crate) fn etag(&self) -> Option<&[u8]> {
        self.text.get(self.context_bytes()..).filter(|etag| !etag.is_empty())
    }

    /// Returns whether the flags are fresh for an evaluation that read the epoch when it began.
    ///
    /// Later invalidations are ignored. Otherwise, a rapid series of events would keep an evaluation waiting.
    #[inline]
    pub(crate) fn is_fresh(&self, reading: EpochReading, now: Instant, freshness: &Freshness) -> bool {
        let limit = if reading.streaming { freshness.streaming } else { freshness.polling };
        self.epoch >= reading.epoch && now.saturating_duration_since(self.sent_at) <= limit
    }

    /// Returns whether the flags stay up to date until a later change, even when an echo window ends.
    pub(crate) fn is_settled(&self) -> bool {
        self.epoch == u64::MAX || !is_in_echo_window(self.epoch)
    }

    /// Returns whether the flags may be served as stale flags.
    pub(crate) fn may_be_served(&self, now: Instant, freshness: &Freshness) -> bool {
        now.saturating_duration_since(self.sent_at) <= freshness.max_stale
    }

    /// Returns the epoch of the response to a request that was sent in `epoch`, given the previous entry of the same context.
    ///
    /// Within the echo window after an event, a response may still be from before the event. It is final if it differs from a
    /// final response that was fresh until the event arrived, or if the entry is already final.
    pub(crate) fn epoch_of_next(&self, flag_set: &FlagSet, epoch: u64, freshness: &Freshness, sent_at: Instant) -> u64 {
        let was_fresh =
            self.epoch + 1 == epoch && sent_at.saturating_duration_since(self.sent_at) <= freshness.streaming;
        let is_final = self.epoch > epoch || was_fresh && self.flag_set.differs_in_values(flag_set);
        epoch + u64::from(is_in_echo_window(epoch) && is_final)
    }

    /// Returns whether this entry is newer than another entry of the same context.
    pub(crate) fn is_newer_than(&self, other: &Self) -> bool {
        (self.epoch, self.sent_at) > (other.epoch, other.sent_at)
    }

    /// Returns the approximate memory that the entry takes, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        OVERHEAD + self.text.len() + self.flag_set_bytes as usize
    }
}

/// Omits the context, which may contain personal data.
impl fmt::Debug for CacheEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheEntry")
            .field("epoch", &self.epoch)
            .field("flags", &self.flag_set.items().len())
            .finish_non_exhaustive()
    }
}

/// An entry as its own key in the cache. It is found by its context, which is therefore stored only once.
#[derive(Clone)]
pub(crate) struct ByContext(pub(crate) Arc<CacheEntry>);

impl Hash for ByContext {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(canonical::hash(self.0.context()));
    }
}

impl Hash for ContextKey<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Equivalent<ByContext> for ContextKey<'_> {
    fn equivalent(&self, key: &ByContext) -> bool {
        self.bytes == key.0.context()
    }
}

impl PartialEq for ByContext {
    fn eq(&self, other: &Self) -> bool {
        self.0.context() == other.0.context()
    }
}

impl Eq for ByContext {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{
        flag_set::{Item, Outcome},
        intern::Interner,
    };

    #[test]
    fn a_shared_flag_set_counts_once_even_after_it_is_confirmed() {
        let interner = Interner::default();
        let flag_set = |value: &str| {
            let outcome = || Outcome::Failed { code: value.to_owned(), details: None };
            let item = interner.item(value, || Some((Item { key: "f".to_owned(), outcome: outcome() }, true)));
            interner.flag_set(item.into_iter().collect())
        };
        let context = CanonicalContext::start_up();
        let of = |flag_set, base| CacheEntry::new(&context, flag_set, Some(b"\"tag\""), base, 0, Instant::now());
        let text = context.as_bytes().len() + 5;
        let first = of(flag_set(&"x".repeat(1_000)), None);
        assert!(first.bytes() >= OVERHEAD + text + 1_000, "{}", first.bytes());
        let same = of(flag_set(&"x".repeat(1_000)), None);
        assert_eq!(same.bytes(), OVERHEAD + text);
        for flag_set in [Arc::clone(&first.flag_set), flag_set(&"x".repeat(1_000))] {
            assert_eq!(of(flag_set, Some(&first)).bytes(), first.bytes());
        }
        assert_eq!((first.context(), first.etag()), (context.as_bytes(), Some(&b"\"tag\""[..])));
        assert_eq!(CacheEntry::timeless(&context, Arc::default()).etag(), None);
    }
}
