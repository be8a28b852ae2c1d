//! Shares equal items, tables of keys, and whole flag sets.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{Arc, Weak},
};

use parking_lot::{Mutex, MutexGuard};

use crate::flags::{
    flag_set::{self, FlagSet, Item, Keys},
    usage::UsageLog,
};

/// The items and flag sets that were received and are in use.
#[derive(Default)]
pub(crate) struct Interner {
    state: Mutex<State>,
    bodies: Mutex<Bodies>,
    /// Records reads of the flags.
    usage: Arc<UsageLog>,
}

#[derive(Default)]
struct State {
    /// Items by their JSON string, which is compared in full.
    items: HashMap<Box<str>, Weak<Item>>,
    /// Flag sets by a hash of their items; compared item by item.
    flag_sets: HashMap<u64, Weak<FlagSet>>,
    /// Tables of keys by a hash of the keys; compared in full.
    keys: HashMap<u64, Weak<Keys>>,
    hasher: RandomState,
    /// Bytes of the JSON strings of all items.
    texts: usize,
    /// Number of entries, and bytes of JSON strings, at which unused entries are dropped next.
    sweep_at: (usize, usize),
}

/// The latest responses that several contexts received, with their flag sets. The latest one comes first.
#[derive(Default)]
struct Bodies(VecDeque<(Box<[u8]>, Weak<FlagSet>)>);

/// Maximum number of responses that are kept.
const MAX_BODIES: usize = 8;

/// Maximum size of a response that is kept, in bytes.
const MAX_BODY: usize = 64 << 10;

/// Number of entries, and bytes of JSON strings, below which nothing is dropped.
const MIN_SWEEP: (usize, usize) = (1_024, 1 << 20);

impl Interner {
    /// Returns the item of a JSON string: the item in use, or a new item. `read` parses a new item, and returns whether it may be
    /// shared.
    pub(crate) fn item(&self, text: &str, read: impl FnOnce() -> Option<(Item, bool)>) -> Option<Arc<Item>> {
        if let Some(item) = self.lock().items.get(text).and_then(Weak::upgrade) {
            return Some(item);
        }
        // Parsed without the lock. If two threads parse the same string, the later item is shared from then on.
        let (item, is_shared) = read()?;
        let item = Arc::new(item);
        if !is_shared {
            return Some(item);
        }
        let mut state = self.lock();
        if state.items.insert(text.into(), Arc::downgrade(&item)).is_none() {
            state.texts += text.len();
        }
        state.sweep();
        Some(item)
    }

    /// Returns the flag set of a response: the flag set of an earlier response with the same bytes, or the flag set that `read`
    /// returns. After a change, most users of an application have the same flags, and parsing them takes longer than comparing
    /// the bytes.
    ///
    /// # Errors
    ///
    /// Returns the error of `read`.
    pub(crate) fn response<E>(
        &self,
        body: &[u8],
        read: impl FnOnce() -> Result<Arc<FlagSet>, E>,
    ) -> Result<Arc<FlagSet>, E> {
        if let Some(flag_set) = self.bodies.lock().find(body) {
            return Ok(flag_set);
        }
        let flag_set = read()?;
        // The flag set was in use, so other contexts may receive it as well. Failures depend on the context.
        if body.len() <= MAX_BODY && Arc::strong_count(&flag_set) > 1 && !flag_set.has_failed() {
            self.bodies.lock().keep(body, &flag_set);
        }
        Ok(flag_set)
    }

    /// Returns the flag set of items in any order: the flag set in use, or a new one.
    pub(crate) fn flag_set(&self, items: Vec<Arc<Item>>) -> Arc<FlagSet> {
        let items = flag_set::sorted(items);
        let mut state = self.lock();
        let hash = state.hasher.hash_one(items.iter().map(Arc::as_ptr).collect::<Vec<_>>());
        let same = |flag_set: &Arc<FlagSet>| {
            flag_set.items().len() == items.len()
                && flag_set.items().iter().zip(&items).all(|(one, other)| Arc::ptr_eq(one, other))
        };
        if let Some(flag_set) = state.flag_sets.get(&hash).and_then(Weak::upgrade).filter(same) {
            return flag_set;
        }
        let keys_hash = state.hasher.hash_one(items.iter().map(|item| item.key.as_str()).collect::<Vec<_>>());
        let keys = match state.keys.get(&keys_hash).and_then(Weak::upgrade).filter(|keys| keys.fit(&items)) {
            Some(keys) => keys,
            None => {
                let keys = Keys::of(&items, Some(&self.usage));
                state.keys.insert(keys_hash, Arc::downgrade(&keys));
                keys
            }
        };
        let flag_set = Arc::new(FlagSet::with_keys(items, keys));
        state.flag_sets.insert(hash, Arc::downgrade(&flag_set));
        state.sweep();
        flag_set
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(crate) fn usage(&self) -> &Arc<UsageLog> {
        &self.usage
    }
}

impl Bodies {
    fn find(&mut self, body: &[u8]) -> Option<Arc<FlagSet>> {
        let position = self.0.iter().position(|(known, _)| **known == *body)?;
        let found = self.0.remove(position)?;
        // If it was dropped, no context has these flags any longer.
        let flag_set = found.1.upgrade()?;
        self.0.push_front(found);
        Some(flag_set)
    }

    fn keep(&mut self, body: &[u8], flag_set: &Arc<FlagSet>) {
        // Several contexts may have received it at the same time.
        self.0.retain(|(known, _)| **known != *body);
        self.0.truncate(MAX_BODIES - 1);
        self.0.push_front((body.into(), Arc::downgrade(flag_set)));
    }
}

impl State {
    /// Drops unused entries if the maps have doubled since the last time.
    fn sweep(&mut self) {
        let (entries, texts) = self.sweep_at;
        if self.entries() < entries.max(MIN_SWEEP.0) && self.texts < texts.max(MIN_SWEEP.1) {
            return;
        }
        self.items.retain(|_, item| item.strong_count() > 0);
        self.flag_sets.retain(|_, flag_set| flag_set.strong_count() > 0);
        self.keys.retain(|_, keys| keys.strong_count() > 0);
        self.texts = self.items.keys().map(|text| text.len()).sum();
        self.sweep_at = (2 * self.entries(), 2 * self.texts);
    }

    fn entries(&self) -> usize {
        self.items.len() + self.flag_sets.len() + self.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        flag_type::FlagType,
        flags::{evaluation::FlagEvaluation, flag_set::Outcome},
    };

    /// Receives a set of flags that failed with these codes.
    fn flag_set(interner: &Interner, codes: &[(&str, &str)]) -> Arc<FlagSet> {
        let item = |key: &str, code: &str| Item {
            key: key.to_owned(),
            outcome: Outcome::Failed { code: code.to_owned(), details: None },
        };
        let items =
            codes.iter().map(|(key, code)| interner.item(&format!("{key} {code}"), || Some((item(key, code), true))));
        interner.flag_set(items.map(Option::unwrap).collect())
    }

    #[test]
    fn equal_sets_items_and_keys_are_shared() {
        let interner = Interner::default();
        let (one, same) =
            (flag_set(&interner, &[("a", "1"), ("b", "2")]), flag_set(&interner, &[("b", "2"), ("a", "1")]));
        assert!(Arc::ptr_eq(&one, &same));
        let other = flag_set(&interner, &[("a", "1"), ("b", "3")]);
        assert!(!Arc::ptr_eq(&one, &other));
        assert!(Arc::ptr_eq(&one.items()[0], &other.items()[0]));
        assert!(Arc::ptr_eq(one.keys(), other.keys()));
        assert_ne!(one.items()[1].outcome, other.items()[1].outcome);
        let more = flag_set(&interner, &[("a", "1"), ("b", "2"), ("c", "3")]);
        assert!(!Arc::ptr_eq(one.keys(), more.keys()));
        // Even after another table of keys was used.
        assert!(Arc::ptr_eq(one.keys(), flag_set(&interner, &[("a", "7"), ("b", "2")]).keys()));
        assert_eq!(more.items()[2].key, "c");
    }

    #[test]
    fn a_response_that_several_contexts_receive_is_parsed_twice_at_most() {
        let interner = Interner::default();
        let read = |name: &str| {
            let mut was_read = false;
            let flag_set = interner.response(name.as_bytes(), || {
                was_read = true;
                let key = name.to_owned();
                let flag = FlagEvaluation {
                    key: key.clone(),
                    flag_type: FlagType::Boolean,
                    value: true.into(),
                    reason: String::new(),
                    variant: None,
                    metadata: serde_json::Map::new(),
                };
                let item = interner.item(name, || Some((Item { key, outcome: Outcome::Evaluated(flag) }, true)));
                Ok::<_, ()>(interner.flag_set(item.into_iter().collect()))
            });
            (flag_set.unwrap(), was_read)
        };
        let held = [read("one"), read("one"), read("one"), read("two"), read("one")];
        assert_eq!(held.each_ref().map(|(_, was_read)| *was_read), [true, true, false, true, false]);
        assert!(Arc::ptr_eq(&held[0].0, &held[4].0));
        // The flag set is no longer in use.
        drop(held);
        assert!(read("one").1);
        // Only the latest ones are kept.
        let held: Vec<_> = (0..2 * MAX_BODIES).map(|number| [(); 3].map(|()| read(&number.to_string()).0)).collect();
        let is_kept = |number: usize| !read(&number.to_string()).1;
        assert!((MAX_BODIES..2 * MAX_BODIES).all(is_kept));
        assert!(!is_kept(0));
        drop(held);
        let long = "x".repeat(MAX_BODY + 1);
        assert_eq!([(); 3].map(|()| read(&long)).map(|(_, was_read)| was_read), [true; 3]);
    }

    #[test]
    fn a_response_with_failed_flags_is_read_for_each_context() {
        let interner = Interner::default();
        let held =
            [(); 3].map(|()| interner.response(b"body", || Ok::<_, ()>(flag_set(&interner, &[("a", "GENERAL")]))));
        assert!(held.iter().all(Result::is_ok));
        let other = interner.response(b"body", || Ok::<_, ()>(flag_set(&interner, &[("b", "GENERAL")]))).unwrap();
        assert_eq!(other.items()[0].key, "b");
    }

    #[test]
    fn unused_entries_are_dropped() {
        let interner = Interner::default();
        let held = flag_set(&interner, &[("held", "0")]);
        for value in 0..20_000 {
            flag_set(&interner, &[("passing", &value.to_string())]);
        }
        let state = interner.lock();
        assert!(state.entries() <= 2 * MIN_SWEEP.0, "{}", state.entries());
        drop(state);
        for value in 0..100 {
            flag_set(&interner, &[("large", &value.to_string().repeat(100_000))]);
        }
        let texts: usize = interner.lock().items.keys().map(|text| text.len()).sum();
        assert!(texts <= 2 * MIN_SWEEP.1, "{texts}");
        assert!(Arc::ptr_eq(&held, &flag_set(&interner, &[("held", "0")])));
    }
}
