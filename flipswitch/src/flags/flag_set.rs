//! What the service answered for one context: all its flags, found by key.
//!
//! Contexts mostly get the same flags, and of each flag one of few evaluations. So the keys are kept once for all answers
//! that have the same ones, and an evaluation once for all answers that have it: a further flag_set is a few pointers.

use std::sync::Arc;

use hashbrown::HashMap;
use serde_json::{Map, Value};

use crate::{FlagError, FlagEvaluation, FlagType};

/// What an flag_set takes besides its items, those of it that no other has: itself, and its entry with the interner.
const ANSWER_OVERHEAD: usize = 112;

/// What an item takes besides itself and its texts: what an allocator adds to them, and its entry with the interner.
const ITEM_OVERHEAD: usize = 160;

/// A node of a JSON object's tree, which has room for eleven fields.
const NODE: usize = 640;

/// All flags of one context. Immutable: readers share it.
#[derive(Debug, Default)]
pub(crate) struct FlagSet {
    keys: Arc<Keys>,
    /// In the order of the keys.
    items: Box<[Arc<Item>]>,
    /// Memory that only this flag_set needed when it was made, about.
    bytes: usize,
}

/// The keys of an flag_set, sorted.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    position: HashMap<Box<str>, usize>,
}

/// One item of an flag_set.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) key: String,
    pub(crate) outcome: Outcome,
}

/// What the service made of one flag.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    /// A value, or the word that there is none.
    Evaluated(FlagEvaluation),
    /// The service could not evaluate the flag.
    Failed { code: String, details: Option<String> },
}

impl FlagSet {
    /// Takes the items in the order in which they came; of two with the same key the later wins.
    pub(crate) fn new(items: Vec<Arc<Item>>) -> Self {
        let items = sorted(items);
        let keys = Arc::new(Keys::of(&items));
        Self::with_keys(items, keys)
    }

    /// Takes sorted items and their keys.
    pub(crate) fn with_keys(items: Box<[Arc<Item>]>, keys: Arc<Keys>) -> Self {
        let own = items.iter().filter(|item| Arc::strong_count(item) == 1).map(|item| item.bytes());
        let keys_bytes = if Arc::strong_count(&keys) == 1 { keys.bytes() } else { 0 };
        let bytes = ANSWER_OVERHEAD + size_of_val(&*items) + own.sum::<usize>() + keys_bytes;
        Self { keys, items, bytes }
    }

    /// Takes plain values, as an operator writes them.
    pub(crate) fn of_values(values: Map<String, Value>, reason: &str) -> Self {
        let items = values.into_iter().map(|(key, value)| {
            let flag = FlagEvaluation {
                key: key.clone(),
                flag_type: FlagType::of_value(&value),
                value,
                reason: reason.to_owned(),
                variant: None,
                metadata: Map::new(),
            };
            Arc::new(Item { key, outcome: Outcome::Evaluated(flag) })
        });
        Self::new(items.collect())
    }

    #[cfg(test)]
    pub(crate) fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// Memory that only this flag_set needed when it was made, about: what it shares with others is theirs.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn items(&self) -> &[Arc<Item>] {
        &self.items
    }

    fn item(&self, key: &str) -> Option<&Arc<Item>> {
        self.items.get(*self.keys.position.get(key)?)
    }

    /// Finds a flag by its key.
    pub(crate) fn get(&self, key: &str) -> Result<&FlagEvaluation, FlagError> {
        match &self.item(key).ok_or(FlagError::NotFound)?.outcome {
            Outcome::Evaluated(flag) => Ok(flag),
            Outcome::Failed { code, details } => {
                Err(FlagError::Evaluation { code: code.clone(), details: details.clone() })
            }
        }
    }

    /// Finds a flag by its key, if the service could evaluate it.
    pub(crate) fn evaluated(&self, key: &str) -> Option<&FlagEvaluation> {
        match &self.item(key)?.outcome {
            Outcome::Evaluated(flag) => Some(flag),
            Outcome::Failed { .. } => None,
        }
    }

    /// The keys of flags that another flag_set has otherwise, or only one of both has.
    pub(crate) fn changed_keys(&self, other: &Self) -> Vec<String> {
        let differs = |item: &Arc<Item>, other: Option<&Arc<Item>>| {
            other.is_none_or(|other| !Arc::ptr_eq(item, other) && item.outcome != other.outcome)
        };
        let changed = self.items.iter().filter(|item| differs(item, other.item(&item.key)));
        let new = other.items.iter().filter(|item| self.item(&item.key).is_none());
        changed.chain(new).map(|item| item.key.clone()).collect()
    }

    /// All evaluated flags, by key. Those that the service could not evaluate have no value to show.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &FlagEvaluation> {
        self.items.iter().filter_map(|item| match &item.outcome {
            Outcome::Evaluated(flag) => Some(flag),
            Outcome::Failed { .. } => None,
        })
    }
}

impl Item {
    /// Its memory, and that of its text with the interner, about.
    fn bytes(&self) -> usize {
        let outcome = match &self.outcome {
            Outcome::Evaluated(flag) => {
                let texts = flag.key.len() + flag.reason.len() + flag.variant.as_ref().map_or(0, String::len);
                2 * texts + 2 * heap(&flag.value) + object(&flag.metadata)
            }
            Outcome::Failed { code, details } => code.len() + details.as_ref().map_or(0, String::len),
        };
        size_of::<Self>() + ITEM_OVERHEAD + self.key.len() + outcome
    }
}

/// What a JSON value holds on the heap, about.
fn heap(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(|value| size_of::<Value>() + heap(value)).sum(),
        Value::Object(fields) => object(fields),
    }
}

fn object(fields: &Map<String, Value>) -> usize {
    fields.len().div_ceil(8) * NODE + fields.iter().map(|(name, value)| name.len() + heap(value)).sum::<usize>()
}

impl Keys {
    pub(crate) fn of(items: &[Arc<Item>]) -> Self {
        let position = items.iter().enumerate().map(|(position, item)| (item.key.as_str().into(), position));
        Self { position: position.collect() }
    }

    /// Their memory, about.
    fn bytes(&self) -> usize {
        self.position.keys().map(|key| key.len() + 48).sum()
    }

    /// Whether they are the keys of these items.
    pub(crate) fn fit(&self, items: &[Arc<Item>]) -> bool {
        self.position.len() == items.len()
            && items.iter().enumerate().all(|(position, item)| self.position.get(item.key.as_str()) == Some(&position))
    }
}

/// Brings items into the order of their keys; of two with the same key the later stays.
pub(crate) fn sorted(mut items: Vec<Arc<Item>>) -> Box<[Arc<Item>]> {
    // The sort is stable, so among equal keys the later item stands last.
    items.sort_by(|a, b| a.key.cmp(&b.key));
    items.reverse();
    items.dedup_by(|earlier, later| earlier.key == later.key);
    items.reverse();
    items.into()
}
