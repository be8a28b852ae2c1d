//! Keeps equal things once: evaluations that read alike, the keys of answers, and whole answers.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Weak},
};

use parking_lot::{Mutex, MutexGuard};

use crate::flags::flag_set::{self as flag_set, FlagSet, Item, Keys};

/// What was seen of late, as long as somebody holds it.
#[derive(Default)]
pub(crate) struct Interner(Mutex<State>);

#[derive(Default)]
struct State {
    /// Evaluations by the text of their items, which is compared in full.
    items: HashMap<Box<str>, Weak<Item>>,
    /// Answers by a hash of their items; compared item by item.
    answers: HashMap<u64, Weak<FlagSet>>,
    /// Sets of keys, by a hash of them; compared in full.
    keys: HashMap<u64, Weak<Keys>>,
    hasher: RandomState,
    /// The texts of items, in bytes.
    texts: usize,
    /// When there are this many entries, or bytes of texts, those that nobody holds any more are dropped.
    sweep_at: (usize, usize),
}

/// Before there is so much nothing is swept.
const FIRST_SWEEP: (usize, usize) = (1_024, 1 << 20);

impl Interner {
    /// Returns the item of this text: one that is held already, or a new one.
    pub(crate) fn item(&self, text: &str, read: impl FnOnce() -> Option<Item>) -> Option<Arc<Item>> {
        if let Some(item) = self.lock().items.get(text).and_then(Weak::upgrade) {
            return Some(item);
        }
        // Read without the lock; if two read the same text at once, the later is kept.
        let item = Arc::new(read()?);
        let mut state = self.lock();
        if state.items.insert(text.into(), Arc::downgrade(&item)).is_none() {
            state.texts += text.len();
        }
        state.sweep();
        Some(item)
    }

    /// Returns the flag_set of these items, given in any order: one that is held already, or a new one.
    pub(crate) fn flag_set(&self, items: Vec<Arc<Item>>) -> Arc<FlagSet> {
        let items = flag_set::sorted(items);
        let mut state = self.lock();
        let hash = state.hasher.hash_one(items.iter().map(Arc::as_ptr).collect::<Vec<_>>());
        let same = |flag_set: &Arc<FlagSet>| {
            flag_set.items().len() == items.len()
                && flag_set.items().iter().zip(&items).all(|(one, other)| Arc::ptr_eq(one, other))
        };
        if let Some(flag_set) = state.answers.get(&hash).and_then(Weak::upgrade).filter(same) {
            return flag_set;
        }
        let keys_hash = state.hasher.hash_one(items.iter().map(|item| item.key.as_str()).collect::<Vec<_>>());
        let keys = match state.keys.get(&keys_hash).and_then(Weak::upgrade).filter(|keys| keys.fit(&items)) {
            Some(keys) => keys,
            None => {
                let keys = Arc::new(Keys::of(&items));
                state.keys.insert(keys_hash, Arc::downgrade(&keys));
                keys
            }
        };
        let flag_set = Arc::new(FlagSet::with_keys(items, keys));
        state.answers.insert(hash, Arc::downgrade(&flag_set));
        state.sweep();
        flag_set
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    /// Drops what nobody holds, each time there is twice as much as there was after the last time.
    fn sweep(&mut self) {
        let (entries, texts) = self.sweep_at;
        if self.entries() < entries.max(FIRST_SWEEP.0) && self.texts < texts.max(FIRST_SWEEP.1) {
            return;
        }
        self.items.retain(|_, item| item.strong_count() > 0);
        self.answers.retain(|_, flag_set| flag_set.strong_count() > 0);
        self.keys.retain(|_, keys| keys.strong_count() > 0);
        self.texts = self.items.keys().map(|text| text.len()).sum();
        self.sweep_at = (2 * self.entries(), 2 * self.texts);
    }

    fn entries(&self) -> usize {
        self.items.len() + self.answers.len() + self.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ofrep;

    fn flag_set(interner: &Interner, values: &[(&str, i64)]) -> Arc<FlagSet> {
        let items: Vec<_> = values.iter().map(|(key, value)| format!(r#"{{"key":"{key}","value":{value}}}"#)).collect();
        ofrep::bulk(format!(r#"{{"flags":[{}]}}"#, items.join(",")).as_bytes(), interner).unwrap()
    }

    #[test]
    fn equal_answers_evaluations_and_keys_are_kept_once() {
        let interner = Interner::default();
        let (one, same) = (flag_set(&interner, &[("a", 1), ("b", 2)]), flag_set(&interner, &[("b", 2), ("a", 1)]));
        assert!(Arc::ptr_eq(&one, &same));
        let other = flag_set(&interner, &[("a", 1), ("b", 3)]);
        assert!(!Arc::ptr_eq(&one, &other));
        assert!(Arc::ptr_eq(&one.items()[0], &other.items()[0]));
        assert!(Arc::ptr_eq(one.keys(), other.keys()));
        assert_eq!((one.get("b").unwrap().as_i64(), other.get("b").unwrap().as_i64()), (Some(2), Some(3)));
        let more = flag_set(&interner, &[("a", 1), ("b", 2), ("c", 3)]);
        assert!(!Arc::ptr_eq(one.keys(), more.keys()));
        // Also if sets of keys take turns.
        assert!(Arc::ptr_eq(one.keys(), flag_set(&interner, &[("a", 7), ("b", 2)]).keys()));
        assert_eq!(more.get("c").unwrap().as_i64(), Some(3));
    }

    #[test]
    fn what_nobody_holds_is_dropped() {
        let interner = Interner::default();
        let held = flag_set(&interner, &[("held", 0)]);
        for value in 0..20_000 {
            flag_set(&interner, &[("passing", value)]);
        }
        let state = interner.lock();
        assert!(state.entries() <= 2 * FIRST_SWEEP.0, "{}", state.entries());
        drop(state);
        for value in 0..100 {
            let value = value.to_string().repeat(100_000);
            ofrep::bulk(format!(r#"{{"flags":[{{"key":"large","value":"{value}"}}]}}"#).as_bytes(), &interner).unwrap();
        }
        let texts: usize = interner.lock().items.keys().map(|text| text.len()).sum();
        assert!(texts <= 2 * FIRST_SWEEP.1, "{texts}");
        assert!(Arc::ptr_eq(&held, &flag_set(&interner, &[("held", 0)])));
    }
}
