//! One context's flag_set, and what is known about it.

use std::{
    borrow::Borrow,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{cache::cache::Tick, context::canonical::CanonicalContext, flags::flag_set::FlagSet};

/// One flag_set, and what is known about it. Replaced whole, never changed.
pub(crate) struct CacheEntry {
    pub(crate) flag_set: Arc<FlagSet>,
    /// The generation read before the request was sent.
    pub(crate) generation: u64,
    /// When the request was sent that brought the flag_set, or confirmed it.
    pub(crate) sent_at: Instant,
    /// The context, and after it the tag: a million of them are kept in as few pieces as can be.
    text: Box<[u8]>,
    context: u32,
    /// Bytes that were needed for the flag_set: none if another context had the same.
    flag_set_bytes: u32,
}

/// How old an flag_set may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ages {
    /// Fresh, while the stream is open.
    pub(crate) open: Duration,
    /// Fresh, while it is not.
    pub(crate) closed: Duration,
    /// Served at all.
    pub(crate) stale: Duration,
}

/// What a entry takes besides its text and its flag_set: itself, its entry in the cache, and what an allocator adds.
pub(crate) const OVERHEAD: usize = 176;

impl CacheEntry {
    /// Keeps an flag_set. `base` is the entry that the request went out with; `etag` the service's tag, byte for byte.
    pub(crate) fn new(
        context: &CanonicalContext,
        flag_set: Arc<FlagSet>,
        etag: Option<&[u8]>,
        base: Option<&Self>,
        generation: u64,
        sent_at: Instant,
    ) -> Self {
        let flag_set_bytes = match base {
            Some(base) if Arc::ptr_eq(&base.flag_set, &flag_set) => base.flag_set_bytes,
            // Nobody else has it.
            _ if Arc::strong_count(&flag_set) == 1 => u32::try_from(flag_set.bytes()).unwrap_or(u32::MAX),
            _ => 0,
        };
        let text = [context.as_bytes(), etag.unwrap_or_default()].concat().into_boxed_slice();
        // Contexts are far smaller.
        let context = u32::try_from(context.as_bytes().len()).unwrap_or_default();
        Self { flag_set, generation, sent_at, text, context, flag_set_bytes }
    }

    /// An flag_set that never ages, of no service.
    pub(crate) fn timeless(context: &CanonicalContext, flag_set: Arc<FlagSet>) -> Self {
        Self::new(context, flag_set, None, None, u64::MAX, Instant::now())
    }

    /// The canonical context that the flag_set is for.
    pub(crate) fn context(&self) -> &[u8] {
        self.text.get(..self.context as usize).unwrap_or_default()
    }

    /// The service's tag for the flag_set, byte for byte.
    pub(crate) fn etag(&self) -> Option<&[u8]> {
        self.text.get(self.context as usize..).filter(|etag| !etag.is_empty())
    }

    /// Whether the flag_set is as good as new for an evaluation that began at `tick`. More is not asked: else events
    /// arriving without pause would keep it waiting for ever.
    pub(crate) fn is_fresh(&self, tick: Tick, now: Instant, ages: &Ages) -> bool {
        let age = if tick.open { ages.open } else { ages.closed };
        self.generation >= tick.generation && now.saturating_duration_since(self.sent_at) <= age
    }

    /// Whether the flag_set may be handed out as a stale one.
    pub(crate) fn may_be_served(&self, now: Instant, ages: &Ages) -> bool {
        now.saturating_duration_since(self.sent_at) <= ages.stale
    }

    /// Whether this flag_set is younger than another of the same context.
    pub(crate) fn is_newer_than(&self, other: &Self) -> bool {
        (self.generation, self.sent_at) > (other.generation, other.sent_at)
    }

    /// What it takes in memory, about.
    pub(crate) fn bytes(&self) -> usize {
        OVERHEAD + self.text.len() + self.flag_set_bytes as usize
    }
}

/// Never shows the context, which may hold personal data.
impl fmt::Debug for CacheEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheEntry")
            .field("generation", &self.generation)
            .field("flags", &self.flag_set.items().len())
            .finish_non_exhaustive()
    }
}

/// A entry as the key of its own entry: found by its context, which need not be kept a second time.
#[derive(Clone)]
pub(crate) struct ByContext(pub(crate) Arc<CacheEntry>);

impl Borrow<[u8]> for ByContext {
    fn borrow(&self) -> &[u8] {
        self.0.context()
    }
}

impl Hash for ByContext {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.context().hash(state);
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
    use serde_json::json;

    use super::*;
    use crate::{flags::intern::Interner, wire::ofrep};

    #[test]
    fn an_answer_counts_once_and_for_as_long_as_it_is_renewed() {
        let interner = Interner::default();
        let flag_set = |value: &str| {
            let body = json!({"flags": [{"key": "f", "value": value}]}).to_string();
            ofrep::bulk(body.as_bytes(), &interner).unwrap()
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
