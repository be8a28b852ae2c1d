//! Flag sets by context, with limits on their number and memory.

use std::{
    hash::{BuildHasherDefault, Hasher},
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

use crate::cache::{
    entry::{ByContext, CacheEntry, Freshness, OVERHEAD},
    epoch::EpochReading,
};
use crate::context::canonical::{self, ContextKey};

/// The cached entries, limited in number and in memory.
pub(crate) struct Cache {
    entries: Entries<ByContext, Arc<CacheEntry>, Weight, BuildHasherDefault<KnownHash>>,
    freshness: Freshness,
    /// A number that differs from the number of every other cache in the process.
    number: u64,
    puts: AtomicU64,
}

/// The state of a cache. The low 16 bits count the entries that are being stored, and the other bits count the entries that have
/// been stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Puts(u64);

impl Puts {
    const BEGUN: u64 = 1;
    const ENDED: u64 = 1 << 16;

    /// Returns whether no entry was being stored.
    pub(crate) fn are_complete(self) -> bool {
        self.0 % Self::ENDED == 0
    }
}

/// Uses the hash that a key already has.
#[derive(Default)]
struct KnownHash(u64);

impl Hasher for KnownHash {
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

/// Weighs an entry by its bytes, or by an equal share of the memory limit if that is more, so that one limit enforces both.
///
/// The weight never exceeds the capacity of a shard. A large entry is therefore cached without evicting itself, even if it is the
/// only entry.
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
            // Cannot happen: `build` checks only that the options are complete, and they are.
            Err(_) => {
                Entries::with(contexts, capacity, weight, BuildHasherDefault::default(), DefaultLifecycle::default())
            }
        };
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        Self { entries, freshness, number: NUMBERS.fetch_add(1, Ordering::Relaxed), puts: AtomicU64::new(0) }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Returns the state of the cache. An entry is current as long as the state equals the state from before the entry was read,
    /// if that state was complete.
    #[inline]
    pub(crate) fn puts(&self) -> Puts {
        Puts(self.puts.load(Ordering::Acquire))
    }

    pub(crate) fn freshness(&self) -> &Freshness {
        &self.freshness
    }

    /// Returns the entry of a context, regardless of its age.
    pub(crate) fn get(&self, context: &[u8]) -> Option<Arc<CacheEntry>> {
        self.entries.get(&ContextKey::new(context))
    }

    /// Returns the entry of a context if it is fresh, and the state of the cache before it was read.
    pub(crate) fn fresh(
        &self,
        key: &ContextKey<'_>,
        reading: EpochReading,
        now: Instant,
    ) -> Option<(Puts, Arc<CacheEntry>)> {
        // Read before the entry, so that an entry that is stored in the meantime makes this state outdated.
        let puts = self.puts();
        let entry = self.entries.get(key).filter(|entry| entry.is_fresh(reading, now, &self.freshness))?;
        Some((puts, entry))
    }

    /// Stores an entry, unless a newer entry of the same context is stored. Not atomic: calls for one context must not run
    /// concurrently.
    pub(crate) fn put(&self, entry: &Arc<CacheEntry>) {
        self.put_in_steps(entry, || {});
    }

    /// Stores an entry like [`put`](Self::put). Calls `between` at every moment at which other threads may see a part of it.
    pub(crate) fn put_in_steps(&self, entry: &Arc<CacheEntry>, between: impl Fn()) {
        let known = self.entries.peek(&ContextKey::new(entry.context()));
        if known.is_some_and(|known| !entry.is_newer_than(&known)) {
            return;
        }
        // Until the end, no thread remembers an entry, because some threads find the new one and others do not yet.
        self.puts.fetch_add(Puts::BEGUN, Ordering::AcqRel);
        between();
        self.entries.insert(ByContext(Arc::clone(entry)), Arc::clone(entry));
        between();
        self.puts.fetch_add(Puts::ENDED - Puts::BEGUN, Ordering::AcqRel);
    }

    /// Stores the last known flags for a context, replacing flags that are too old to be served. Like [`put`](Self::put), this is
    /// not atomic.
    pub(crate) fn restore(&self, entry: &Arc<CacheEntry>, now: Instant) {
        let key = ContextKey::new(entry.context());
        if self.entries.peek(&key).is_some_and(|known| !known.may_be_served(now, &self.freshness)) {
            self.entries.remove(&key);
        }
        self.put(entry);
    }

    /// Returns the number of cached contexts.
    pub(crate) fn contexts(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Returns the number of cached contexts, and how many bytes they occupy.
    pub(crate) fn size(&self) -> (u64, u64) {
        let bytes = self.entries.iter().map(|(_, entry)| entry.bytes() as u64).sum();
        (self.contexts(), bytes)
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
