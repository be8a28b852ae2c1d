//! The last flag set of a thread.

use std::{cell::RefCell, sync::Arc, time::Instant};

use open_feature::EvaluationContext;

use crate::{
    cache::{
        cache::{Cache, Puts},
        entry::CacheEntry,
        epoch::EpochReading,
    },
    context::{canonical::is_written_alike, into_context::View},
};

/// Contexts with more fields, or longer in bytes, are not remembered: a thread holds the last one until it ends.
const MAX_FIELDS: usize = 16;
const MAX_BYTES: usize = 1 << 10;

/// The last flag set of a thread, for when its context is evaluated again.
///
/// A hit writes, hashes and locks nothing. The entry is a copy of this thread, so that threads do not share a reference
/// count.
///
/// Every entry that enters the cache ends all memos. No thread therefore returns an older flag set after another thread
/// returned a newer one. The cache, which evicts entries when others enter, thereby notices that an entry is in use.
#[derive(Default)]
pub(crate) struct Memo {
    remembered: Option<Remembered>,
    /// Address of the last entry that the cache returned, and how often in succession. A context is remembered the third
    /// time: for one that is evaluated twice, such as in one request, a copy would cost more than it saves.
    last: (usize, u8),
}

/// How often in succession the cache returns an entry until it is remembered.
pub(crate) const FINDS: u8 = 3;

struct Remembered {
    /// Number of the cache.
    cache: u64,
    /// The state of the cache before the entry was read from it.
    puts: Puts,
    entry: Arc<CacheEntry>,
    /// The context, if it was evaluated without its canonical form.
    fields: Option<EvaluationContext>,
}

thread_local! {
    static MEMO: RefCell<Memo> = const { RefCell::new(Memo { remembered: None, last: (0, 0) }) };
}

impl Memo {
    /// Calls a function with the memo of this thread. Returns `None` while the thread ends.
    pub(crate) fn of_this_thread<T>(call: impl FnOnce(&mut Self) -> T) -> Option<T> {
        MEMO.try_with(|memo| memo.try_borrow_mut().ok().map(|mut memo| call(&mut memo))).ok()?
    }

    /// Returns the entry of a context if it is remembered and fresh.
    pub(crate) fn find(
        &mut self,
        cache: &Cache,
        context: View<'_>,
        reading: EpochReading,
        now: Instant,
    ) -> Option<Arc<CacheEntry>> {
        let (number, puts) = (cache.number(), cache.puts());
        let is_over = |remembered: &mut Remembered| remembered.cache == number && remembered.puts != puts;
        self.remembered.take_if(is_over);
        let remembered = self.remembered.as_ref()?;
        let is_alike = match context {
            View::Fields(context) => {
                remembered.fields.as_ref().is_some_and(|remembered| is_written_alike(context, remembered))
            }
            // What is left out is reported at the first use.
            View::Canonical(context) => context.left_out.is_none() && context.bytes == remembered.entry.context(),
        };
        if !is_alike || remembered.cache != number {
            return None;
        }
        if !remembered.entry.is_fresh(reading, now, cache.freshness()) {
            self.remembered = None;
            return None;
        }
        // Only what is found several times in succession replaces it.
        self.last = (0, 0);
        Some(Arc::clone(&remembered.entry))
    }

    /// Takes note of the entry that the cache returned for a context. `puts` is the state of the cache before.
    pub(crate) fn found(&mut self, cache: &Cache, puts: Puts, context: View<'_>, entry: &Arc<CacheEntry>) {
        let address = Arc::as_ptr(entry).addr();
        let (last, finds) = self.last;
        let finds = if last == address { finds + 1 } else { 1 };
        self.last = (address, finds.min(FINDS - 1));
        if finds < FINDS {
            return;
        }
        let fields = match context {
            View::Fields(context) if context.custom_fields.len() > MAX_FIELDS => return,
            // It has a date or a structure.
            View::Fields(context) if !is_written_alike(context, context) => return,
            View::Fields(context) => Some(context),
            View::Canonical(_) => None,
        };
        // A flag that failed is requested again when it is read, which only the cache notices.
        if !puts.are_complete() || entry.context().len() > MAX_BYTES || entry.failing().is_some() {
            return;
        }
        self.remembered = Some(Remembered {
            cache: cache.number(),
            puts,
            entry: Arc::new(CacheEntry::clone(entry)),
            fields: fields.cloned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, AtomicU64, Ordering},
        thread,
        time::Duration,
    };

    use open_feature::EvaluationContextFieldValue;
    use serde_json::json;
    use time::OffsetDateTime;

    use super::*;
    use crate::{
        cache::entry::Freshness,
        context::{
            canonical::{Canonical, CanonicalContext, ContextKey},
            left_out::{LeftOut, Unsendable},
        },
        flags::{failing::Failing, flag_set::FlagSet},
    };

    const HOUR: Duration = Duration::from_secs(3_600);
    const READING: EpochReading = EpochReading { epoch: 0, streaming: true };

    fn cache(contexts: usize) -> Cache {
        Cache::new(contexts, 256 << 20, Freshness { streaming: HOUR, polling: HOUR, max_stale: HOUR })
    }

    fn put(cache: &Cache, context: &CanonicalContext) {
        let values = json!({"on": true}).as_object().unwrap().clone();
        cache.put(&Arc::new(CacheEntry::timeless(context, Arc::new(FlagSet::of_values(values, "STATIC")))));
    }

    /// Evaluates a context that is cached. Returns whether it was remembered.
    fn read(memo: &mut Memo, cache: &Cache, canonical: &CanonicalContext, view: View<'_>) -> bool {
        let now = Instant::now();
        let remembered = memo.find(cache, view, READING, now);
        if let Some(entry) = &remembered {
            assert_eq!(entry.context(), canonical.as_bytes());
            return true;
        }
        let (puts, entry) = cache.fresh(&ContextKey::new(canonical.as_bytes()), READING, now).unwrap();
        memo.found(cache, puts, view, &entry);
        false
    }

    fn context(value: impl Into<EvaluationContextFieldValue>) -> (EvaluationContext, CanonicalContext) {
        let context = EvaluationContext::default().with_custom_field("field", value);
        let canonical = CanonicalContext::new(&context);
        (context, canonical)
    }

    fn view(canonical: &CanonicalContext) -> View<'_> {
        View::Canonical(Canonical { bytes: canonical.as_bytes(), hash: None, left_out: None })
    }

    #[test]
    fn a_context_is_remembered_when_it_is_found_often() {
        let (cache, mut memo) = (cache(10), Memo::default());
        let (fields, canonical) = context("x");
        put(&cache, &canonical);
        let mut read = |view| read(&mut memo, &cache, &canonical, view);
        assert_eq!([0; 5].map(|_| read(View::Fields(&fields))), [false, false, false, true, true]);
        assert_eq!([0; 2].map(|_| read(view(&canonical))), [true, true], "the same context in another form");
        put(&cache, &context("y").1);
        assert_eq!([0; 4].map(|_| read(view(&canonical))), [false, false, false, true], "an entry entered the cache");
        assert_eq!([0; 4].map(|_| read(View::Fields(&fields))), [false, false, false, true], "in another form");
    }

    #[test]
    fn contexts_in_turns_and_those_of_another_cache_are_not_remembered() {
        let (cache, other, mut memo) = (cache(10), cache(10), Memo::default());
        let (one, two) = (context("x").1, context("y").1);
        put(&cache, &one);
        put(&cache, &two);
        for canonical in [&one, &one, &two, &two, &one, &one, &two, &two] {
            assert!(!read(&mut memo, &cache, canonical, view(canonical)));
        }
        put(&other, &one);
        for _ in 0..3 {
            read(&mut memo, &cache, &one, view(&one));
        }
        assert!(read(&mut memo, &cache, &one, view(&one)));
        assert!(!read(&mut memo, &other, &one, view(&one)));
    }

    #[test]
    fn what_cannot_be_compared_or_must_be_reported_is_not_remembered() {
        let mut left_out = LeftOut::default();
        left_out.add("odd", Unsendable::Opaque);
        let (cache, mut memo) = (cache(10), Memo::default());
        let structure = EvaluationContextFieldValue::new_struct(json!([1]));
        for (fields, canonical) in [context(OffsetDateTime::UNIX_EPOCH), context(structure), context("x".repeat(2_000))]
        {
            put(&cache, &canonical);
            for _ in 0..5 {
                assert!(!read(&mut memo, &cache, &canonical, View::Fields(&fields)), "{fields:?}");
            }
        }
        let canonical = CanonicalContext::from_bytes(b"failing");
        let flag_set = FlagSet::default().with_failing(&[], Failing::no_flags(Instant::now()));
        cache.put(&Arc::new(CacheEntry::timeless(&canonical, Arc::new(flag_set))));
        for _ in 0..5 {
            assert!(!read(&mut memo, &cache, &canonical, view(&canonical)), "a read may request its flags again");
        }
        let (_, canonical) = context("x");
        put(&cache, &canonical);
        let read = [0; 4].map(|_| read(&mut memo, &cache, &canonical, view(&canonical)));
        assert_eq!(read, [false, false, false, true]);
        let unreported = Canonical { bytes: canonical.as_bytes(), hash: None, left_out: Some(&left_out) };
        assert!(memo.find(&cache, View::Canonical(unreported), READING, Instant::now()).is_none());
    }

    /// In each version of the entry, the flag has the number of the version.
    #[test]
    fn no_thread_reads_an_older_entry_than_another_thread_did_before() {
        let (cache, seen, is_over) = (cache(10), AtomicU64::new(0), AtomicBool::new(false));
        let (_, canonical) = context("x");
        let put = |version: u64| {
            let values = json!({"version": version}).as_object().unwrap().clone();
            cache.put(&Arc::new(CacheEntry::timeless(&canonical, Arc::new(FlagSet::of_values(values, "STATIC")))));
        };
        put(1);
        let read_on = || {
            let mut memo = Memo::default();
            while !is_over.load(Ordering::SeqCst) {
                let (before, now) = (seen.load(Ordering::SeqCst), Instant::now());
                let entry = memo.find(&cache, view(&canonical), READING, now).unwrap_or_else(|| {
                    let (puts, entry) = cache.fresh(&ContextKey::new(canonical.as_bytes()), READING, now).unwrap();
                    memo.found(&cache, puts, view(&canonical), &entry);
                    entry
                });
                let version = entry.flag_set.get("version").unwrap().as_i64().unwrap() as u64;
                assert!(version >= before, "version {version} after {before}");
                seen.fetch_max(version, Ordering::SeqCst);
            }
        };
        thread::scope(|threads| {
            (0..3).for_each(|_| drop(threads.spawn(read_on)));
            (2..50_000).for_each(put);
            is_over.store(true, Ordering::SeqCst);
        });
        assert!(seen.into_inner() > 1);
    }

    #[test]
    fn a_context_in_use_is_not_evicted() {
        let (cache, mut memo) = (cache(100), Memo::default());
        let (_, canonical) = context("in use");
        put(&cache, &canonical);
        for number in 0..10_000 {
            for _ in 0..5 {
                read(&mut memo, &cache, &canonical, view(&canonical));
            }
            put(&cache, &context(number).1);
        }
    }
}
