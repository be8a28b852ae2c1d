//! The current flags. Every change is announced to the open streams.

use std::{collections::BTreeSet, sync::Arc};

use open_feature::EvaluationContext;
use parking_lot::RwLock;
use serde_json::{Map, Value, json};

use crate::{
    broadcast::Broadcaster,
    flags::{
        definition::{Definition, Flags},
        evaluate::Evaluator,
    },
};

/// The flags of one server.
pub(crate) struct FlagStore {
    flags: RwLock<Flags>,
    evaluator: Evaluator,
    broadcaster: Arc<Broadcaster>,
}

impl FlagStore {
    pub(crate) fn new(flags: Flags, broadcaster: Arc<Broadcaster>) -> Self {
        Self { flags: RwLock::new(flags), evaluator: Evaluator::default(), broadcaster }
    }

    /// Evaluates one flag to its OFREP item. Returns `None` if there is no flag with this key.
    pub(crate) fn evaluate(&self, key: &str, context: &EvaluationContext) -> Option<Value> {
        self.flags.read().get(key).map(|flag| self.evaluator.item(key, flag, context))
    }

    /// Evaluates all flags to their OFREP items, sorted by key.
    pub(crate) fn evaluate_all(&self, context: &EvaluationContext) -> Vec<Value> {
        self.flags.read().iter().map(|(key, flag)| self.evaluator.item(key, flag, context)).collect()
    }

    /// Sets a flag, and announces the change even if the flag was the same before.
    pub(crate) fn set(&self, key: &str, definition: Definition) {
        self.flags.write().insert(key.to_owned(), definition);
        self.broadcaster.flag_updated(key);
    }

    /// Removes a flag. Returns whether it existed.
    pub(crate) fn remove(&self, key: &str) -> bool {
        let existed = self.flags.write().remove(key).is_some();
        if existed {
            self.broadcaster.flag_updated(key);
        }
        existed
    }

    /// Applies the differences between two versions of a flags file. Returns the keys that differ.
    ///
    /// Flags that are the same in both versions are left alone, so that a change through the API lasts until the file
    /// changes that flag.
    pub(crate) fn apply_changes(&self, before: &Flags, after: &Flags) -> BTreeSet<String> {
        let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        let changed: BTreeSet<_> =
            keys.into_iter().filter(|key| before.get(*key) != after.get(*key)).cloned().collect();
        let mut flags = self.flags.write();
        for key in &changed {
            match after.get(key) {
                Some(flag) => flags.insert(key.clone(), flag.clone()),
                None => flags.remove(key),
            };
        }
        drop(flags);
        let mut keys = changed.iter();
        match (keys.next(), keys.next()) {
            (None, _) => {}
            (Some(key), None) => self.broadcaster.flag_updated(key),
            (Some(_), Some(_)) => self.broadcaster.config_updated("flags-file-changed"),
        }
        changed
    }

    /// Returns all definitions as a document in flagd's format.
    pub(crate) fn to_json(&self) -> Value {
        let flags: Map<_, _> = self.flags.read().iter().map(|(key, flag)| (key.clone(), flag.to_json())).collect();
        json!({ "flags": flags })
    }
}
