//! Counters of what a provider did.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use serde::Serialize;

/// What a provider did since it was made, and what it keeps. All counts are of events; `contexts` and `bytes` are as of
/// now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Stats {
    /// Evaluations: calls of `flags()` and, through OpenFeature, of `resolve_*`. Reads of a `Flags` are not counted.
    pub evaluations: u64,
    /// Evaluations answered at once from memory, as good as new.
    pub hits: u64,
    /// Requests for flags that were sent.
    pub requests: u64,
    /// Requests of these that the service answered with "unchanged" (304).
    pub not_modified: u64,
    /// Evaluations that waited for a request which another one had started.
    pub coalesced: u64,
    /// Evaluations answered with a value that may be out of date.
    pub stale_served: u64,
    /// Contexts that were answered for the first time, or again after they had been forgotten.
    pub new_contexts: u64,
    /// Connections of the stream of changes after the first.
    pub reconnects: u64,
    /// Polls while the stream was away.
    pub polls: u64,
    /// Contexts whose answers are kept.
    pub contexts: u64,
    /// Bytes that these take, about.
    pub bytes: u64,
}

/// Shards of a counter. Threads that count at once should not meet in one.
const SHARDS: usize = 8;

/// A counter that threads rarely contend for.
#[derive(Debug, Default)]
pub(crate) struct Counter([Shard; SHARDS]);

/// A line of the processor's cache, or two that it fetches together.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(AtomicU64);

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The shard of this thread, handed out in turn.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // While the thread ends, its own shard may be gone.
    SHARD
        .try_with(|shard| {
            if shard.get() == usize::MAX {
                shard.set(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
            }
            shard.get()
        })
        .unwrap_or_default()
}

impl Counter {
    pub(crate) fn count(&self) {
        self.0[shard()].0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|shard| shard.0.load(Ordering::Relaxed)).sum()
    }
}

/// The counters behind [`Stats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: Counter,
    /// Evaluations that are no hits.
    pub(crate) misses: Counter,
    pub(crate) requests: Counter,
    pub(crate) not_modified: Counter,
    pub(crate) coalesced: Counter,
    pub(crate) stale_served: Counter,
    pub(crate) new_contexts: Counter,
    pub(crate) reconnects: Counter,
    pub(crate) polls: Counter,
}

impl Counters {
    /// The counts as of now; `size` is how many contexts are kept, and their bytes.
    pub(crate) fn stats(&self, (contexts, bytes): (u64, u64)) -> Stats {
        Stats {
            evaluations: self.hits.total() + self.misses.total(),
            hits: self.hits.total(),
            requests: self.requests.total(),
            not_modified: self.not_modified.total(),
            coalesced: self.coalesced.total(),
            stale_served: self.stale_served.total(),
            new_contexts: self.new_contexts.total(),
            reconnects: self.reconnects.total(),
            polls: self.polls.total(),
            contexts,
            bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_threads_add_up() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..1_000).for_each(|_| counter.count()));
            }
        });
        assert_eq!(counter.total(), 20_000);
    }
}
