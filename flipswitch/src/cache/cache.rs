//! Flag sets by context, within limits of number and memory.

use std::{
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
    time::Instant,
};

use quick_cache::{
    OptionsBuilder, Weighter,
    sync::{Cache as Entries, DefaultLifecycle},
};

use crate::cache::{
    entry::{ByContext, CacheEntry, ContextKey, Freshness, OVERHEAD},
    epoch::EpochReading,
};
use crate::context::canonical;

/// The cached entries, limited in number and in memory.
pub(crate) struct Cache {
    entries: Entries<ByContext, Arc<CacheEntry>, Weight, BuildHasherDefault<PassOn>>,
    freshness: Freshness,
}

/// Passes on the hash of a key, which is one already.
#[derive(Default)]
struct PassOn(u64);

impl Hasher for PassOn {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = canonical::hash(bytes);
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Weighs an entry by its bytes, or by its share of the whole if that is more, so that one limit enforces both.
///
/// The weight never exceeds what a shard holds: a large entry is cached, alone if need be, without evicting itself.
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
    pub(crate) fn new(contexts: usize, bytes: usize, freshness: Freshness) -> Self {
        // A limit above the number of empty entries that fit has no effect.
        let contexts = contexts.clamp(1, (bytes / OVERHEAD).max(1));
        let share = (bytes / contexts) as u64;
        // Each shard has its part of the limits. Many shards evict few large entries unevenly, and a shard must have room
        // for a large entry. The cache rounds up to a power of two itself; doing it here keeps `most` right.
        let shards = (contexts / 256).min(bytes >> 25).clamp(1, 64).next_power_of_two();
        let capacity = share * contexts as u64;
        let weight = Weight { share, most: (capacity / shards as u64 / 10 * 9).max(1) };
        let mut options = OptionsBuilder::new();
        let options = options.shards(shards).estimated_items_capacity(contexts).weight_capacity(capacity).build();
        let entries = match options {
            Ok(options) => {
                Entries::with_options(options, weight, BuildHasherDefault::default(), DefaultLifecycle::default())
            }
            // Cannot happen: only completeness is checked, and the options are complete.
            Err(_) => {
                Entries::with(contexts, capacity, weight, BuildHasherDefault::default(), DefaultLifecycle::default())
            }
        };
        Self { entries, freshness }
    }

    pub(crate) fn freshness(&self) -> &Freshness {
        &self.freshness
    }

    /// Returns the entry of a context, whatever its age.
    pub(crate) fn get(&self, context: &[u8]) -> Option<Arc<CacheEntry>> {
        self.entries.get(&ContextKey { hash: canonical::hash(context), context })
    }

    /// Returns the entry of a context if it is fresh.
    pub(crate) fn fresh(&self, key: &ContextKey<'_>, reading: EpochReading, now: Instant) -> Option<Arc<CacheEntry>> {
        self.entries.get(key).filter(|entry| entry.is_fresh(reading, now, &self.freshness))
    }

    /// Stores an entry, unless a newer one of the same context is stored. Not atomic: calls for one context must not run
    /// at the same time.
    pub(crate) fn put(&self, entry: &Arc<CacheEntry>) {
        let context = entry.context();
        let known = self.entries.peek(&ContextKey { hash: canonical::hash(context), context });
        if known.is_none_or(|known| entry.is_newer_than(&known)) {
            self.entries.insert(ByContext(Arc::clone(entry)), Arc::clone(entry));
        }
    }

    /// Returns the number of cached contexts, and the bytes that they take.
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
        Cache::new(contexts, bytes, Freshness { streaming: HOUR, polling: HOUR, max_stale: HOUR })
    }

    fn entry(context: usize, answer_bytes: usize) -> Arc<CacheEntry> {
        let context = CanonicalContext::from_bytes(format!("context {context}").as_bytes());
        let values = json!({"large": "x".repeat(answer_bytes)}).as_object().unwrap().clone();
        Arc::new(CacheEntry::timeless(&context, Arc::new(FlagSet::of_values(values, "STATIC"))))
    }

    #[test]
    fn the_cache_holds_as_many_contexts_as_configured() {
        for contexts in [1, 2, 10, 100] {
            let cache = cache(contexts, 256 << 20);
            (0..contexts).for_each(|number| cache.put(&entry(number, 0)));
            assert_eq!(cache.size().0, contexts as u64);
            (contexts..3 * contexts).for_each(|number| cache.put(&entry(number, 0)));
            assert!((1..=contexts as u64).contains(&cache.size().0), "{} of {contexts}", cache.size().0);
        }
    }

    #[test]
    fn an_entry_is_cached_however_large_it_is() {
        for (contexts, bytes) in [(10_000, 256 << 20), (10_000, 1 << 20), (1, 1 << 20)] {
            let cache = cache(contexts, bytes);
            for large in [1 << 20, 4 << 20, 16 << 20] {
                let large = entry(0, large);
                cache.put(&large);
                assert!(cache.get(large.context()).is_some(), "{} bytes of {bytes}", large.bytes());
                // Others are cached as well.
                cache.put(&entry(1, 0));
                assert!(cache.get(entry(1, 0).context()).is_some());
            }
        }
    }
}
