//! The latest flag sets of a thread.

use std::{cell::RefCell, hash::BuildHasher, ops::Range, sync::Arc, time::Instant};

use hashbrown::DefaultHashBuilder;
use open_feature::EvaluationContext;

use crate::{
    cache::{
        cache::{Cache, Puts},
        entry::CacheEntry,
        epoch::EpochReading,
    },
    context::{canonical::has_same_canonical_form, into_context::View},
};

/// Contexts with more fields or bytes are not remembered, because a thread may keep them until it ends.
const MAX_FIELDS: usize = 16;
const MAX_BYTES: usize = 1 << 10;

/// Number of sets in a memo, and number of places for flag sets in each of them. A context belongs to one set.
const SETS: usize = 16;
const PLACES: usize = 4;
/// Number of entries for which a thread counts how often it finds them.
const COUNTED: usize = 64;

/// The latest flag sets of a thread, which it uses when it evaluates their contexts again.
///
/// A hit takes no lock. Each thread has its own copies of the entries, so that threads do not share a reference count.
///
/// Every entry that enters the cache clears all memos. Therefore, no thread returns an older flag set once another thread has
/// returned a newer one. The entries are then read from the cache again, so the cache registers that they are in use before it
/// evicts any.
#[derive(Default)]
pub(crate) struct Memo(Option<Box<MemoTable>>);

/// How often the cache returns an entry before it is remembered. For a context that is evaluated only twice, for example within
/// one request, a copy would cost more than it saves.
pub(crate) const FINDS: u8 = 3;

struct MemoTable {
    /// Number of the cache that the entries are from.
    cache: u64,
    /// The state of that cache before the entries were read from it.
    puts: Puts,
    /// The tag of each entry. Stored apart from the entries, so that comparing tags is fast.
    tags: [u32; SETS * PLACES],
    entries: [Option<Remembered>; SETS * PLACES],
    /// Whether there are entries.
    is_filled: bool,
    /// The place of the last hit.
    last: usize,
    /// The index, within a set, of the place that was filled last. The places are filled in turn.
    filled: usize,
    /// How many times, since the last hit, an entry of another cache has been found often enough to be remembered.
    others: u8,
    /// Addresses of entries that the cache returned, and how often it returned each. One entry may replace another.
    found: [(usize, u8); COUNTED],
    hasher: DefaultHashBuilder,
}

/// Returns the places of the set of a tag.
fn places(tag: u32) -> Range<usize> {
    let first = tag as usize % SETS * PLACES;
    first..first + PLACES
}

struct Remembered {
    entry: Arc<CacheEntry>,
    /// The context, if it was evaluated without its canonical form.
    fields: Option<EvaluationContext>,
    was_hit: bool,
}

thread_local! {
    static MEMO: RefCell<Memo> = const { RefCell::new(Memo(None)) };
}

impl Memo {
    /// Calls a function with the memo of this thread. Returns `None` if the thread is ending.
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
        let table = self.0.as_deref_mut().filter(|table| table.cache == cache.number())?;
        if table.puts != cache.puts() {
            table.clear();
        }
        if !table.is_filled {
            return None;
        }
        // The same context is often evaluated again, which needs no tag.
        let place = table.last;
        let place = if table.has(place, context) { place } else { table.place_of(context)? };
        let remembered = table.entries.get_mut(place)?.as_mut()?;
        if !remembered.entry.is_fresh(reading, now, cache.freshness()) {
            return None;
        }
        remembered.was_hit = true;
        let entry = Arc::clone(&remembered.entry);
        (table.last, table.others) = (place, 0);
        Some(entry)
    }

    /// Counts an entry that the cache returned for a context, and remembers it if it is found often. `puts` is the state of the
    /// cache before the entry was read.
    pub(crate) fn found(&mut self, cache: &Cache, puts: Puts, context: View<'_>, entry: &Arc<CacheEntry>) {
        let table = self.0.get_or_insert_with(|| Box::new(MemoTable::new(cache.number(), puts)));
        let address = Arc::as_ptr(entry).addr();
        let Some((last, finds)) = table.found.get_mut(address / size_of::<CacheEntry>() % COUNTED) else { return };
        *finds = if *last == address { *finds + 1 } else { 1 };
        *last = address;
        if *finds < FINDS {
            return;
        }
        *finds = 0;
        let fields = match context {
            View::Fields(context) if context.custom_fields.len() > MAX_FIELDS => return,
            // The context contains a date or a structure.
            View::Fields(context) if !has_same_canonical_form(context, context) => return,
            View::Fields(context) => Some(context),
            View::Canonical(_) => None,
        };
        // A flag that failed is requested again when it is read, and only a read of the cache checks this.
        if !puts.are_complete() || entry.context().len() > MAX_BYTES || entry.failing().is_some() {
            return;
        }
        if (table.cache, table.puts) != (cache.number(), puts) {
            // Otherwise, two providers that are used in turn would keep replacing each other's entries.
            if table.cache != cache.number() && table.is_filled && table.others < FINDS {
                table.others += 1;
                return;
            }
            // The entries are from another cache, or were read before another entry entered this one.
            table.clear();
            (table.cache, table.puts, table.others) = (cache.number(), puts, 0);
        }
        let tag = table.tag(context);
        if let Some(place) = table.place_for(tag) {
            table.put(
                place,
                tag,
                Remembered { entry: Arc::new(CacheEntry::clone(entry)), fields: fields.cloned(), was_hit: false },
            );
        }
    }
}

impl MemoTable {
    fn new(cache: u64, puts: Puts) -> Self {
        Self {
            cache,
            puts,
            tags: [0; SETS * PLACES],
            entries: [const { None }; SETS * PLACES],
            is_filled: false,
            last: 0,
            filled: 0,
            others: 0,
            found: [(0, 0); COUNTED],
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// Returns the tag of a context, by which it is found. A context has different tags in different forms.
    fn tag(&self, context: View<'_>) -> u32 {
        let hash = |bytes: &[u8]| self.hasher.hash_one(bytes);
        let hash = match context {
            View::Fields(EvaluationContext { targeting_key: Some(key), .. }) => hash(key.as_bytes()),
            // The fields are in any order.
            View::Fields(context) => context.custom_fields.iter().fold(0, |tag: u64, (name, value)| {
                let value = value.as_str().unwrap_or_default();
                tag.wrapping_add(self.hasher.hash_one((name.as_str(), value)))
            }),
            View::Canonical(context) => context.hash.unwrap_or_else(|| hash(context.bytes)),
        };
        hash as u32
    }

    /// Returns whether the entry at a place belongs to a context.
    #[inline]
    fn has(&self, place: usize, context: View<'_>) -> bool {
        let Some(Some(remembered)) = self.entries.get(place) else { return false };
        match context {
            View::Fields(context) => {
                remembered.fields.as_ref().is_some_and(|remembered| has_same_canonical_form(context, remembered))
            }
            // A context with attributes that are left out is not remembered, because they are reported.
            View::Canonical(context) => context.left_out.is_none() && context.bytes == remembered.entry.context(),
        }
    }

    /// Returns the place of a context's entry, found by its tag.
    fn place_of(&self, context: View<'_>) -> Option<usize> {
        let tag = self.tag(context);
        places(tag).find(|place| self.tags.get(*place) == Some(&tag) && self.has(*place, context))
    }

    /// Returns the place for a new entry, unless the entry there has been used since the last call for this place. In that case
    /// it is kept until the next call.
    fn place_for(&mut self, tag: u32) -> Option<usize> {
        self.filled = (self.filled + 1) % PLACES;
        let place = places(tag).nth(self.filled)?;
        match self.entries.get_mut(place)? {
            Some(known) if known.was_hit => {
                known.was_hit = false;
                None
            }
            _ => Some(place),
        }
    }

    fn put(&mut self, place: usize, tag: u32, remembered: Remembered) {
        if let (Some(known), Some(entry)) = (self.tags.get_mut(place), self.entries.get_mut(place)) {
            (*known, *entry) = (tag, Some(remembered));
            (self.last, self.is_filled) = (place, true);
        }
    }

    /// Drops all entries, to free their memory.
    fn clear(&mut self) {
        if self.is_filled {
            self.entries = [const { None }; SETS * PLACES];
            self.is_filled = false;
        }
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

    fn user(key: &str) -> (EvaluationContext, CanonicalContext) {
        let context = EvaluationContext::default().with_targeting_key(key).with_custom_field("plan", "free");
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

    /// Covers contexts in both forms: of several users, without a targeting key, and of one user with different attributes.
    #[test]
    fn several_contexts_that_are_read_in_turn_are_remembered() {
        let users: Vec<_> = (0..16).map(|number| user(&format!("user-{number}"))).collect();
        let anonymous: Vec<_> = (0..16).map(|number| context(format!("country-{number}"))).collect();
        let attributes = |value: &str| {
            let fields = EvaluationContext::default().with_targeting_key("user").with_custom_field("field", value);
            let canonical = CanonicalContext::new(&fields);
            (fields, canonical)
        };
        // Without their canonical form, they share one tag and the four places of its set.
        let of_one_user: Vec<_> = ["w", "x", "y", "z"].into_iter().map(attributes).collect();
        for (contexts, is_written) in [
            (&users, false),
            (&users, true),
            (&anonymous, false),
            (&anonymous, true),
            (&of_one_user, false),
            (&of_one_user, true),
        ] {
            let (cache, mut memo) = (cache(100), Memo::default());
            contexts.iter().for_each(|(_, canonical)| put(&cache, canonical));
            let mut remembered = || {
                let read = |(fields, canonical): &(_, _)| {
                    let view = if is_written { view(canonical) } else { View::Fields(fields) };
                    // Fails for the entry of another context.
                    read(&mut memo, &cache, canonical, view)
                };
                contexts.iter().map(read).filter(|is_remembered| *is_remembered).count()
            };
            assert_eq!([0; 2].map(|_| remembered()), [0, 0]);
            // Two entries may share the place that counts how often they are found.
            for _ in 0..20 {
                remembered();
            }
            assert!(2 * remembered() >= contexts.len(), "{} of {}", remembered(), contexts.len());
            // Any entry that enters the cache clears the memo.
            put(&cache, &user("another").1);
            assert_eq!(remembered(), 0);
        }
    }

    #[test]
    fn an_entry_that_enters_before_the_cache_is_read_clears_the_memo() {
        let (cache, mut memo) = (cache(10), Memo::default());
        let (one, two) = (context("x").1, context("y").1);
        put(&cache, &one);
        put(&cache, &two);
        for _ in 0..4 {
            read(&mut memo, &cache, &one, view(&one));
        }
        let now = Instant::now();
        assert!(memo.find(&cache, view(&one), READING, now).is_some());
        // Stored after the memo was read, and before the cache is read.
        put(&cache, &one);
        for _ in 0..FINDS {
            let (puts, entry) = cache.fresh(&ContextKey::new(two.as_bytes()), READING, now).unwrap();
            memo.found(&cache, puts, view(&two), &entry);
        }
        assert!(memo.find(&cache, view(&two), READING, now).is_some());
        assert!(memo.find(&cache, view(&one), READING, now).is_none());
    }

    #[test]
    fn an_entry_that_is_found_but_not_remembered_allocates_nothing() {
        let (one, two, mut memo) = (cache(10), cache(10), Memo::default());
        let (fields, canonical) = user("a");
        put(&one, &canonical);
        put(&two, &canonical);
        for _ in 0..4 {
            read(&mut memo, &one, &canonical, View::Fields(&fields));
        }
        let mut allocations = |cache: &Cache, (fields, canonical): &(EvaluationContext, CanonicalContext)| {
            let once = || assert!(!read(&mut memo, cache, canonical, View::Fields(fields)));
            allocation_counter::measure(once).count_total
        };
        let (large, user) = (context("x".repeat(2_000)), (fields.clone(), canonical.clone()));
        put(&two, &large.1);
        assert!((0..9).all(|_| allocations(&two, &large) == 0), "too large");
        // Until the entries of the other cache replace the entries of the first one.
        assert!((0..9).all(|_| allocations(&two, &user) == 0), "another cache");
    }

    #[test]
    fn a_thread_remembers_a_limited_number_of_contexts() {
        let (cache, mut memo) = (cache(10_000), Memo::default());
        let contexts: Vec<_> = (0..1_000).map(|number| user(&number.to_string()).1).collect();
        contexts.iter().for_each(|canonical| put(&cache, canonical));
        for canonical in &contexts {
            for _ in 0..5 {
                read(&mut memo, &cache, canonical, view(canonical));
            }
        }
        let again =
            contexts.iter().rev().filter(|canonical| read(&mut memo, &cache, canonical, view(canonical))).count();
        assert!((PLACES..=SETS * PLACES).contains(&again), "{again}");
    }

    #[test]
    fn another_cache_replaces_entries_that_are_no_longer_used() {
        let (cache, other, mut memo) = (cache(10), cache(10), Memo::default());
        let (one, two) = (context("x").1, context("y").1);
        put(&cache, &one);
        put(&other, &two);
        let mut read = |cache: &Cache, canonical| read(&mut memo, cache, canonical, view(canonical));
        assert_eq!([0; 4].map(|_| read(&cache, &one)), [false, false, false, true]);
        for _ in 0..20 {
            assert_eq!((read(&other, &two), read(&cache, &one)), (false, true), "in turns");
        }
        put(&other, &one);
        assert!((0..20).any(|_| read(&other, &two)));
        assert!(!read(&other, &one), "the entry of the first cache");
        assert!(!read(&cache, &one));
    }

    #[test]
    fn the_same_context_of_another_cache_is_not_remembered() {
        let (cache, other, mut memo) = (cache(10), cache(10), Memo::default());
        let (_, canonical) = context("x");
        put(&cache, &canonical);
        put(&other, &canonical);
        for _ in 0..4 {
            read(&mut memo, &cache, &canonical, view(&canonical));
        }
        assert!(read(&mut memo, &cache, &canonical, view(&canonical)));
        assert!(!read(&mut memo, &other, &canonical, view(&canonical)));
    }

    #[test]
    fn contexts_that_cannot_be_compared_or_must_be_reported_are_not_remembered() {
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

    /// The flag's value is the version of the entry.
    #[test]
    fn no_thread_reads_an_older_entry_after_another_thread_has_read_a_newer_one() {
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
