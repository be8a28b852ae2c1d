//! What the service answered for one context: all its flags, found by key.
//!
//! Contexts mostly get the same flags, and of each flag one of few evaluations. So the keys are kept once for all answers
//! that have the same ones, and an evaluation once for all answers that have it: a further answer is a few pointers.

use std::sync::Arc;

use hashbrown::HashMap;
use serde_json::{Map, Value};

use crate::{FlagError, FlagEvaluation, FlagType};

/// All flags of one context. Immutable: readers share it.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    keys: Arc<Keys>,
    /// In the order of the keys.
    items: Box<[Arc<Item>]>,
}

/// The keys of an answer, sorted.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    position: HashMap<Box<str>, usize>,
}

/// One item of an answer.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) key: String,
    pub(crate) outcome: Outcome,
}

/// What the service made of one flag.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// A value, or the word that there is none.
    Evaluated(FlagEvaluation),
    /// The service could not evaluate the flag.
    Failed { code: String, details: Option<String> },
}

impl Answer {
    /// Takes the items in the order in which they came; of two with the same key the later wins.
    pub(crate) fn new(items: Vec<Arc<Item>>) -> Self {
        let items = sorted(items);
        let keys = Arc::new(Keys::of(&items));
        Self { keys, items }
    }

    /// Takes sorted items and their keys.
    pub(crate) fn with_keys(items: Box<[Arc<Item>]>, keys: Arc<Keys>) -> Self {
        Self { keys, items }
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

    pub(crate) fn items(&self) -> &[Arc<Item>] {
        &self.items
    }

    /// Finds a flag by its key.
    pub(crate) fn get(&self, key: &str) -> Result<&FlagEvaluation, FlagError> {
        let item = self.keys.position.get(key).and_then(|position| self.items.get(*position));
        match &item.ok_or(FlagError::NotFound)?.outcome {
            Outcome::Evaluated(flag) => Ok(flag),
            Outcome::Failed { code, details } => {
                Err(FlagError::Evaluation { code: code.clone(), details: details.clone() })
            }
        }
    }

    /// All evaluated flags, by key. Those that the service could not evaluate have no value to show.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &FlagEvaluation> {
        self.items.iter().filter_map(|item| match &item.outcome {
            Outcome::Evaluated(flag) => Some(flag),
            Outcome::Failed { .. } => None,
        })
    }
}

impl Keys {
    pub(crate) fn of(items: &[Arc<Item>]) -> Self {
        let position = items.iter().enumerate().map(|(position, item)| (item.key.as_str().into(), position));
        Self { position: position.collect() }
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
