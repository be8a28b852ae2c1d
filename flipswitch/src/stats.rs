//! Counters of a provider.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use serde::Serialize;

/// Counters since the provider was built. `contexts` and `bytes` are the current size of the cache, and `throttling` is the
/// current state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Stats {
    /// Evaluations: calls to `flags()`, and to `resolve_*` through OpenFeature. Reads of a `Flags` are not counted.
    pub evaluations: u64,
    /// Evaluations that returned fresh flags from the cache.
    pub hits: u64,
    /// Requests for flags that were sent to the service.
    pub requests: u64,
    /// Requests to which the service responded with 304 Not Modified.
    pub not_modified: u64,
    /// Evaluations that joined an in-flight request.
    pub coalesced: u64,
    /// Evaluations that returned stale flags or bootstrap values.
    pub stale_served: u64,
    /// Evaluations without flags from the service, which returned bootstrap values or no flags.
    pub unavailable: u64,
    /// Contexts that entered the cache, including contexts that had been evicted before.
    pub new_contexts: u64,
    /// Context attributes that were left out because they cannot be sent. They are counted once for each context that is built,
    /// converted or merged. The attributes of a [`PreparedContext`](crate::PreparedContext) are therefore counted once, and the
    /// attributes of a context that is built in each request are counted in each request. The attributes of a context that is
    /// larger than 64 KiB and not prepared are counted at each evaluation.
    pub attributes_left_out: u64,
    /// Connections to the stream of changes after the first one, except those that replaced a connection that was still open.
    pub reconnects: u64,
    /// Polls while the stream of changes was closed.
    pub polls: u64,
    /// Contexts whose flags in the [`store`](crate::FlipswitchProviderBuilder::store) were up to date. Each of them saved a
    /// request.
    pub store_hits: u64,
    /// Requests for which the store had no fresh flags, or did not respond.
    pub store_misses: u64,
    /// Contexts whose last known flags came from the store, because there were none in memory.
    pub store_restored: u64,
    /// Requests that were sent with a lease from the store.
    pub store_leases: u64,
    /// Number of times that a request waited because another instance was requesting the same flags.
    pub store_waits: u64,
    /// Contexts in the cache.
    pub contexts: u64,
    /// Approximate memory use of the cache, in bytes.
    pub bytes: u64,
    /// What currently keeps requests from being sent.
    pub throttling: Throttling,
}

/// What currently keeps requests for flags from being sent, or flags from being evaluated. All fields are zero, false or `None`
/// while the flag service works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Throttling {
    /// Whether the flag service counts as down. No requests are sent, except rounds of up to three to find out whether it has
    /// recovered. Evaluations return the last known flags or defaults immediately.
    #[serde(rename = "circuitOpen")]
    pub is_circuit_open: bool,
    /// Contexts that are waiting for their next request because the flag service failed for them, or rejected them. At most 1 024
    /// are counted.
    pub backed_off_contexts: u64,
    /// Requests that are waiting to be sent.
    pub queued_requests: u64,
    /// The maximum number of requests per second, if the flag service limits their rate (429). `None` if it does not.
    pub requests_per_second: Option<u64>,
    /// Flags that the service failed to evaluate when they were last requested. At most 1 024 are counted.
    pub failing_flags: u64,
    /// Whether requests carry no entity tags, because the service rejected requests with them.
    #[serde(rename = "tagsOff")]
    pub are_tags_off: bool,
}

/// How many shards a counter has, so that threads that count at the same time rarely share one.
const SHARDS: usize = 8;

/// A counter that threads rarely contend for.
#[derive(Debug, Default)]
pub(crate) struct Counter([Shard; SHARDS]);

/// One cache line of the processor, or two that it fetches together.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(AtomicU64);

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Returns the shard of this thread, assigned round-robin.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // The thread-local value may be gone while the thread is ending.
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
        self.add(1);
    }

    pub(crate) fn add(&self, number: u64) {
        self.0[shard()].0.fetch_add(number, Ordering::Relaxed);
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|shard| shard.0.load(Ordering::Relaxed)).sum()
    }
}

/// The counters behind [`Stats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: Counter,
    /// Evaluations that did not return fresh flags from the cache.
    pub(crate) misses: Counter,
    pub(crate) requests: Counter,
    pub(crate) not_modified: Counter,
    pub(crate) coalesced: Counter,
    pub(crate) stale_served: Counter,
    pub(crate) unavailable: Counter,
    pub(crate) new_contexts: Counter,
    pub(crate) attributes_left_out: Counter,
    pub(crate) reconnects: Counter,
    pub(crate) polls: Counter,
    pub(crate) store_hits: Counter,
    pub(crate) store_misses: Counter,
    pub(crate) store_restored: Counter,
    pub(crate) store_leases: Counter,
    pub(crate) store_waits: Counter,
}

impl Counters {
    /// Returns the counters together with the number of cached contexts and their bytes, and the current state.
    pub(crate) fn stats(&self, (contexts, bytes): (u64, u64), throttling: Throttling) -> Stats {
        Stats {
            evaluations: self.hits.total() + self.misses.total(),
            hits: self.hits.total(),
            requests: self.requests.total(),
            not_modified: self.not_modified.total(),
            coalesced: self.coalesced.total(),
            stale_served: self.stale_served.total(),
            unavailable: self.unavailable.total(),
            new_contexts: self.new_contexts.total(),
            attributes_left_out: self.attributes_left_out.total(),
            reconnects: self.reconnects.total(),
            polls: self.polls.total(),
            store_hits: self.store_hits.total(),
            store_misses: self.store_misses.total(),
            store_restored: self.store_restored.total(),
            store_leases: self.store_leases.total(),
            store_waits: self.store_waits.total(),
            contexts,
            bytes,
            throttling,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_from_all_threads_are_summed() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..1_000).for_each(|_| counter.count()));
            }
        });
        assert_eq!(counter.total(), 20_000);
    }
}
