//! Answers by context, and when one may be handed out. No I/O; the time is passed in.

use std::{
    hash::RandomState,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use quick_cache::{
    OptionsBuilder, Weighter,
    sync::{Cache as Entries, DefaultLifecycle},
};

use crate::cache::entry::{Ages, ByContext, CacheEntry, OVERHEAD};

/// The generation of what is known, and whether the stream that raises it is open. Both in one word, so that "open"
/// cannot be seen before the generation that was raised with it.
#[derive(Debug, Default)]
pub(crate) struct Clock(AtomicU64);

/// A reading of the [`Clock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tick {
    pub(crate) generation: u64,
    pub(crate) open: bool,
}

impl Clock {
    const OPEN: u64 = 1;
    const GENERATION: u64 = 2;

    pub(crate) fn now(&self) -> Tick {
        let word = self.0.load(Ordering::Acquire);
        Tick { generation: word / Self::GENERATION, open: word & Self::OPEN != 0 }
    }

    /// Anything may have changed: every answer known so far is out of date.
    pub(crate) fn raise(&self) {
        self.0.fetch_add(Self::GENERATION, Ordering::AcqRel);
    }

    /// The stream is open from now on. Whatever happened while it was not may have changed anything.
    pub(crate) fn open(&self) {
        self.update(|word| (word + Self::GENERATION) | Self::OPEN);
    }

    /// The stream is away: answers age faster.
    pub(crate) fn close(&self) {
        self.update(|word| word & !Self::OPEN);
    }

    fn update(&self, change: impl Fn(u64) -> u64) {
        // Cannot fail: the change is never `None`.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| Some(change(word)));
    }
}

/// The answers that are kept: as many as were asked for, within the bytes allowed.
pub(crate) struct Cache {
    entries: Entries<ByContext, Arc<CacheEntry>, Weight, RandomState>,
    ages: Ages,
}

/// Weighs an entry by its bytes, or by its share of the whole if that is more: so one limit keeps both numbers. But never
/// by more than a shard takes in: a large answer is kept, if need be alone, and does not take the one before along.
#[derive(Clone)]
struct Weight {
    share: u64,
    most: u64,
}

impl Weighter<ByContext, Arc<CacheEntry>> for Weight {
    fn weight(&self, _: &ByContext, entry: &Arc<CacheEntry>) -> u64 {
        self.share.max(entry.bytes() as u64).min(self.most)
    }
}

impl Cache {
    pub(crate) fn new(contexts: usize, bytes: usize, ages: Ages) -> Self {
        // More than fit with nothing in them are as good as none of that limit.
        let contexts = contexts.clamp(1, (bytes / OVERHEAD).max(1));
        let share = (bytes / contexts) as u64;
        // Each shard has its part of the limits. Few and large ones are evicted unevenly if shards are many, and a shard
        // must have room for a large answer. A power of two, as the cache makes it in any case.
        let shards = (contexts / 256).min(bytes >> 25).clamp(1, 64).next_power_of_two();
        let capacity = share * contexts as u64;
        let weight = Weight { share, most: (capacity / shards as u64 / 10 * 9).max(1) };
        let mut options = OptionsBuilder::new();
        let options = options.shards(shards).estimated_items_capacity(contexts).weight_capacity(capacity).build();
        let entries = match options {
            Ok(options) => Entries::with_options(options, weight, RandomState::new(), DefaultLifecycle::default()),
            // Options are complete, which is all that is checked.
            Err(_) => Entries::with(contexts, capacity, weight, RandomState::new(), DefaultLifecycle::default()),
        };
        Self { entries, ages }
    }

    pub(crate) fn ages(&self) -> &Ages {
        &self.ages
    }

    /// Finds the answer of a context, whatever its age.
    pub(crate) fn get(&self, context: &[u8]) -> Option<Arc<CacheEntry>> {
        self.entries.get(context)
    }

    /// Finds the answer of a context if it is as good as new.
    pub(crate) fn fresh(&self, context: &[u8], tick: Tick, now: Instant) -> Option<Arc<CacheEntry>> {
        self.get(context).filter(|entry| entry.is_fresh(tick, now, &self.ages))
    }

    /// Keeps an answer, unless a newer one of the context is kept. Not atomic: whoever calls it for one context must do
    /// so one at a time.
    pub(crate) fn put(&self, entry: &Arc<CacheEntry>) {
        let known = self.entries.peek(entry.context());
        if known.is_none_or(|known| entry.is_newer_than(&known)) {
            self.entries.insert(ByContext(Arc::clone(entry)), Arc::clone(entry));
        }
    }

    /// How many contexts are kept, and how many bytes they take.
    pub(crate) fn size(&self) -> (u64, u64) {
        let bytes = self.entries.iter().map(|(_, entry)| entry.bytes() as u64).sum();
        (self.entries.len() as u64, bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::{context::canonical::CanonicalContext, flags::flag_set::FlagSet};

    const HOUR: Duration = Duration::from_secs(3_600);

    fn cache(contexts: usize, bytes: usize) -> Cache {
        Cache::new(contexts, bytes, Ages { open: HOUR, closed: HOUR, stale: HOUR })
    }

    fn entry(context: usize, answer_bytes: usize) -> Arc<CacheEntry> {
        let context = CanonicalContext::from_bytes(format!("context {context}").as_bytes());
        let values = json!({"large": "x".repeat(answer_bytes)}).as_object().unwrap().clone();
        Arc::new(CacheEntry::timeless(&context, Arc::new(FlagSet::of_values(values, "STATIC"))))
    }

    #[test]
    fn as_many_are_kept_as_were_asked_for() {
        for contexts in [1, 2, 10, 100] {
            let cache = cache(contexts, 256 << 20);
            (0..contexts).for_each(|number| cache.put(&entry(number, 0)));
            assert_eq!(cache.size().0, contexts as u64);
            (contexts..3 * contexts).for_each(|number| cache.put(&entry(number, 0)));
            assert!((1..=contexts as u64).contains(&cache.size().0), "{} of {contexts}", cache.size().0);
        }
    }

    #[test]
    fn an_answer_is_kept_however_large_it_is() {
        for (contexts, bytes) in [(10_000, 256 << 20), (10_000, 1 << 20), (1, 1 << 20)] {
            let cache = cache(contexts, bytes);
            for large in [1 << 20, 4 << 20, 16 << 20] {
                let large = entry(0, large);
                cache.put(&large);
                assert!(cache.get(large.context()).is_some(), "{} bytes of {bytes}", large.bytes());
                // Others go on.
                cache.put(&entry(1, 0));
                assert!(cache.get(entry(1, 0).context()).is_some());
            }
        }
    }
}
