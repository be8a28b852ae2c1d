//! All flags for one context, found by key.
//!
//! Most contexts get the same flags, and each flag has few different evaluations. Flag sets therefore share their table of
//! keys and their items, so that each further flag set consists of a few pointers.

use std::{sync::Arc, time::Instant};

use hashbrown::HashMap;
use serde_json::{Map, Value};

use crate::{
    error::FlagError,
    flag_type::FlagType,
    flags::{
        evaluation::FlagEvaluation,
        failing::Failing,
        usage::{ReadBit, UsageLog},
    },
};

/// Bytes of a flag set in addition to its items: the set itself, and its entry in the interner.
const SET_OVERHEAD: usize = 120;

/// Bytes of an item in addition to its struct and its strings: allocator overhead, and its entry in the interner.
const ITEM_OVERHEAD: usize = 160;

/// Bytes of a node of a JSON object's tree, which holds up to eleven fields.
const NODE: usize = 640;

/// All flags for one context. Immutable, shared by readers.
#[derive(Debug, Default)]
pub(crate) struct FlagSet {
    keys: Arc<Keys>,
    /// In the order of the keys.
    items: Box<[Arc<Item>]>,
    /// Approximate memory that was allocated for this set alone.
    bytes: usize,
    /// What is known about flags that the service could not evaluate, if there are any. Such a set is not shared.
    failing: Option<Box<Failing>>,
}

/// The keys of a flag set, with the positions of their items and the marks of their reads.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    places: HashMap<Box<str>, Place>,
    /// Records reads. `None` for flags that do not come from the service.
    usage: Option<Arc<UsageLog>>,
}

#[derive(Debug)]
struct Place {
    position: u32,
    was_read: ReadBit,
}

/// One item of a flag set.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) key: String,
    pub(crate) outcome: Outcome,
}

/// Outcome of evaluating one flag.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    /// A value, which is null if the service defers to the default in the code.
    Evaluated(FlagEvaluation),
    /// The service could not evaluate the flag.
    Failed { code: String, details: Option<String> },
}

impl FlagSet {
    /// Creates a set from items in any order. If two items have the same key, the later one takes precedence.
    pub(crate) fn new(items: Vec<Arc<Item>>) -> Self {
        Self::new_in(items, None)
    }

    /// Creates a set like [`new`](Self::new), whose reads are recorded.
    fn new_in(items: Vec<Arc<Item>>, usage: Option<&Arc<UsageLog>>) -> Self {
        let items = sorted(items);
        let keys = Keys::of(&items, usage);
        Self::with_keys(items, keys)
    }

    /// Creates a set with further items, which replace items with the same key. Its reads are recorded in the same way as the
    /// reads of this set.
    pub(crate) fn overlaid(&self, items: &[Arc<Item>]) -> Self {
        Self::new_in(self.items.iter().chain(items).cloned().collect(), self.keys.usage.as_ref())
    }

    /// Creates a set from sorted items and their keys.
    pub(crate) fn with_keys(items: Box<[Arc<Item>]>, keys: Arc<Keys>) -> Self {
        let own = items.iter().filter(|item| Arc::strong_count(item) == 1).map(|item| item.bytes());
        let keys_bytes = if Arc::strong_count(&keys) == 1 { keys.bytes() } else { 0 };
        let bytes = SET_OVERHEAD + size_of_val(&*items) + own.sum::<usize>() + keys_bytes;
        Self { keys, items, bytes, failing: None }
    }

    /// Creates a set from plain values.
    pub(crate) fn of_values(values: Map<String, Value>, reason: &str) -> Self {
        Self::of_values_in(values, reason, None)
    }

    /// Creates a set from plain values, whose reads are recorded.
    pub(crate) fn of_values_in(values: Map<String, Value>, reason: &str, usage: Option<&Arc<UsageLog>>) -> Self {
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
        Self::new_in(items.collect(), usage)
    }

    #[cfg(test)]
    pub(crate) fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// Returns the approximate memory that was allocated for this set alone, in bytes. Shared parts are counted elsewhere.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn items(&self) -> &[Arc<Item>] {
        &self.items
    }

    /// Returns whether the service could not evaluate some flags.
    pub(crate) fn has_failed(&self) -> bool {
        self.items.iter().any(|item| matches!(item.outcome, Outcome::Failed { .. }))
    }

    #[inline]
    pub(crate) fn item(&self, key: &str) -> Option<&Arc<Item>> {
        self.items.get(self.keys.places.get(key)?.position as usize)
    }

    /// Returns the item of a flag, and records the read.
    #[inline]
    pub(crate) fn read(&self, key: &str) -> Option<&Arc<Item>> {
        match self.keys.places.get(key) {
            Some(place) => {
                place.was_read.set();
                self.items.get(place.position as usize)
            }
            None => {
                self.keys.record_unlisted(key);
                None
            }
        }
    }

    /// Returns the evaluation of a flag.
    pub(crate) fn get(&self, key: &str) -> Result<&FlagEvaluation, FlagError> {
        match &self.item(key).ok_or(FlagError::NotFound)?.outcome {
            Outcome::Evaluated(flag) => Ok(flag),
            Outcome::Failed { code, details } => {
                Err(FlagError::Evaluation { code: code.clone(), details: details.clone() })
            }
        }
    }

    /// Returns the evaluation of a flag, if there is one.
    #[inline]
    pub(crate) fn evaluated(&self, key: &str) -> Option<&FlagEvaluation> {
        self.item(key)?.evaluated()
    }

    /// Returns the keys of flags that differ in another set, or are missing from one of the two sets.
    pub(crate) fn changed_keys(&self, other: &Self) -> Vec<String> {
        let differs = |item: &Arc<Item>, other: Option<&Arc<Item>>| {
            other.is_none_or(|other| !Arc::ptr_eq(item, other) && item.outcome != other.outcome)
        };
        let changed = self.items.iter().filter(|item| differs(item, other.item(&item.key)));
        let new = other.items.iter().filter(|item| self.item(&item.key).is_none());
        changed.chain(new).map(|item| item.key.clone()).collect()
    }

    /// Returns the items of flags that the service has, but could not evaluate.
    pub(crate) fn failed(&self) -> impl Iterator<Item = &Arc<Item>> {
        self.items
            .iter()
            .filter(|item| matches!(&item.outcome, Outcome::Failed { code, .. } if code != "FLAG_NOT_FOUND"))
    }

    /// Returns the set with the last items of flags that failed, in the order of their keys.
    pub(crate) fn with_failing(&self, kept: &[Arc<Item>], failing: Box<Failing>) -> Self {
        let set = self.with_items(kept);
        Self { bytes: set.bytes + failing.bytes(), failing: Some(failing), ..set }
    }

    /// Returns the items as the service sent them: without values that are kept because their flags failed.
    pub(crate) fn received(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().map(|item| self.failing().and_then(|failing| failing.received(&item.key)).unwrap_or(item))
    }

    /// Returns what is known about flags that failed.
    pub(crate) fn failing(&self) -> Option<&Failing> {
        self.failing.as_deref()
    }

    /// Returns when the value of a flag was current, if it is kept because the service has not been able to evaluate the flag
    /// since.
    pub(crate) fn kept_since(&self, key: &str) -> Option<Instant> {
        self.failing()?.kept_since(key)
    }

    /// Returns the set with `others` instead of the items with the same keys. `others` must be in the order of their keys.
    fn with_items(&self, others: &[Arc<Item>]) -> Self {
        let replaced = |item: &Arc<Item>| {
            let position = others.binary_search_by(|other| other.key.cmp(&item.key));
            position.ok().and_then(|position| others.get(position)).unwrap_or(item).clone()
        };
        Self::with_keys(self.items.iter().map(replaced).collect(), Arc::clone(&self.keys))
    }

    /// Returns whether another set has different flags, or different values for flags that are evaluated in both sets.
    pub(crate) fn differs_in_values(&self, other: &Self) -> bool {
        let value_differs = |item: &Arc<Item>| match (&item.outcome, other.item(&item.key).map(|other| &other.outcome))
        {
            (Outcome::Evaluated(flag), Some(Outcome::Evaluated(other))) => flag.value != other.value,
            (_, Some(_)) => false,
            (_, None) => true,
        };
        let is_new = |item: &Arc<Item>| self.item(&item.key).is_none();
        !std::ptr::eq(self, other) && (self.items.iter().any(value_differs) || other.items.iter().any(is_new))
    }

    /// Returns all evaluated flags, sorted by key. Flags that the service could not evaluate are left out.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &FlagEvaluation> {
        self.items.iter().filter_map(|item| item.evaluated())
    }
}

impl Item {
    /// Returns the evaluation, if the service could evaluate the flag.
    #[inline]
    pub(crate) fn evaluated(&self) -> Option<&FlagEvaluation> {
        match &self.outcome {
            Outcome::Evaluated(flag) => Some(flag),
            Outcome::Failed { .. } => None,
        }
    }

    /// Returns the approximate memory of the item, and of its JSON string in the interner.
    fn bytes(&self) -> usize {
        let outcome = match &self.outcome {
            Outcome::Evaluated(flag) => {
                let texts = flag.key.len() + flag.reason.len() + flag.variant.as_ref().map_or(0, String::len);
                2 * texts + 2 * heap_bytes(&flag.value) + object_bytes(&flag.metadata)
            }
            Outcome::Failed { code, details } => code.len() + details.as_ref().map_or(0, String::len),
        };
        size_of::<Self>() + ITEM_OVERHEAD + self.key.len() + outcome
    }
}

/// Returns the approximate heap memory of a JSON value.
fn heap_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(|value| size_of::<Value>() + heap_bytes(value)).sum(),
        Value::Object(fields) => object_bytes(fields),
    }
}

fn object_bytes(fields: &Map<String, Value>) -> usize {
    fields.len().div_ceil(8) * NODE + fields.iter().map(|(name, value)| name.len() + heap_bytes(value)).sum::<usize>()
}

impl Keys {
    pub(crate) fn of(items: &[Arc<Item>], usage: Option<&Arc<UsageLog>>) -> Arc<Self> {
        let place = |position| Place { position, was_read: ReadBit::default() };
        let places = (0..).zip(items).map(|(position, item)| (item.key.as_str().into(), place(position)));
        let keys = Arc::new(Self { places: places.collect(), usage: usage.cloned() });
        if let Some(usage) = usage {
            usage.add_table(&keys);
        }
        keys
    }

    /// Returns the keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(|key| &**key)
    }

    /// Returns the keys that have been read since the last call.
    pub(crate) fn take_read(&self) -> impl Iterator<Item = &str> {
        self.places.iter().filter(|(_, place)| place.was_read.take()).map(|(key, _)| &**key)
    }

    #[cold]
    fn record_unlisted(&self, key: &str) {
        if let Some(usage) = &self.usage {
            usage.record_unlisted(key);
        }
    }

    /// Returns the approximate memory of the keys.
    fn bytes(&self) -> usize {
        self.places.keys().map(|key| key.len() + 48).sum()
    }

    /// Returns whether these are the keys of the items.
    pub(crate) fn fit(&self, items: &[Arc<Item>]) -> bool {
        let is_at = |position, key: &str| self.places.get(key).is_some_and(|place| place.position == position);
        self.places.len() == items.len() && (0..).zip(items).all(|(position, item)| is_at(position, item.key.as_str()))
    }
}

/// Reports the reads that have not been collected yet.
impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(usage) = &self.usage {
            usage.table_ended(self.take_read());
        }
    }
}

/// Sorts items by key. If two items have the same key, the later one is kept.
pub(crate) fn sorted(mut items: Vec<Arc<Item>>) -> Box<[Arc<Item>]> {
    // The sort is stable, so among equal keys the later item comes last.
    items.sort_by(|a, b| a.key.cmp(&b.key));
    items.reverse();
    items.dedup_by(|earlier, later| earlier.key == later.key);
    items.reverse();
    items.into()
}

/// Returns the fields of a JSON object of flag keys and values, as an application passes them.
///
/// # Errors
///
/// [`NotAnObject`] for any other JSON value.
pub(crate) fn object(values: Value) -> Result<Map<String, Value>, NotAnObject> {
    match values {
        Value::Object(values) => Ok(values),
        other => Err(NotAnObject { found: FlagType::of_value(&other) }),
    }
}

/// Flag values that are not a JSON object.
#[derive(Debug, thiserror::Error)]
#[error("a JSON {found} where a JSON object of flag keys and values is needed, like {{\"dark-mode\": true}}")]
pub(crate) struct NotAnObject {
    pub(crate) found: FlagType,
}
