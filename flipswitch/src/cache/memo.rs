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

/// So many hits are followed by one that the cache answers, which must notice that the entry is in use.
const HITS: u8 = 63;

/// The last flag set of a thread, for when its context is evaluated again.
///
/// A hit writes, hashes and locks nothing. The entry is a copy of this thread, so that threads do not share a counter of
/// references. Every entry that enters the cache ends all memos, so no thread returns an older flag set after another thread
/// returned a newer one.
#[derive(Default)]
pub(crate) struct Memo {
    remembered: Option<Remembered>,
    /// Address of the last entry that the cache returned. A context is remembered when it is returned again: for one that
    /// is not, a copy would cost more than it saves.
    last: usize,
}

struct Remembered {
    /// Number of the cache.
    cache: u64,
    /// The state of the cache before the entry was read from it.
    puts: Puts,
    /// Address of the original.
    original: usize,
    entry: Arc<CacheEntry>,
    /// The context, if it was evaluated without its canonical form.
    fields: Option<EvaluationContext>,
    hits: u8,
}

thread_local! {
    static MEMO: RefCell<Memo> = const { RefCell::new(Memo { remembered: None, last: 0 }) };
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
        let remembered = self.remembered.as_mut()?;
        let is_alike = match context {
            View::Fields(context) => {
                remembered.fields.as_ref().is_some_and(|remembered| is_written_alike(context, remembered))
            }
            // What is left out is reported at the first use.
            View::Canonical(context) => context.left_out.is_none() && context.bytes == remembered.entry.context(),
        };
        if !is_alike || remembered.cache != cache.number() {
            return None;
        }
        if remembered.puts != cache.puts() || !remembered.entry.is_fresh(reading, now, cache.freshness()) {
            self.remembered = None;
            return None;
        }
        if remembered.hits == 0 {
            remembered.hits = HITS;
            return None;
        }
        remembered.hits -= 1;
        Some(Arc::clone(&remembered.entry))
    }

    /// Takes note of the entry that the cache returned for a context. `puts` is the state of the cache before.
    pub(crate) fn found(&mut self, cache: &Cache, puts: Puts, context: View<'_>, entry: &Arc<CacheEntry>) {
        let address = Arc::as_ptr(entry).addr();
        if self.last != address {
            self.last = address;
            return;
        }
        let fields = match context {
            View::Fields(context) if context.custom_fields.len() > MAX_FIELDS => return,
            // It has a date or a structure.
            View::Fields(context) if !is_written_alike(context, context) => return,
            View::Fields(context) => Some(context),
            View::Canonical(_) => None,
        };
        let is_remembered = self.remembered.as_ref().is_some_and(|remembered| {
            let Remembered { cache: number, puts: at, original, fields: known, .. } = remembered;
            (*number, *at, *original) == (cache.number(), puts, address) && known.is_some() == fields.is_some()
        });
        // A flag that failed is requested again when it is read, which only the cache notices.
        if is_remembered || !puts.are_complete() || entry.context().len() > MAX_BYTES || entry.failing().is_some() {
            return;
        }
        self.remembered = Some(Remembered {
            cache: cache.number(),
            puts,
            original: address,
            entry: Arc::new(CacheEntry::clone(entry)),
            fields: fields.cloned(),
            hits: HITS,
        });
    }
}
