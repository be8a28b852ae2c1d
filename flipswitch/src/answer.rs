//! What the service answered for one context: all its flags, found by key.

use serde_json::{Map, Value};

use crate::{FlagError, FlagEvaluation, FlagType};

/// All flags of one context, sorted by key. Immutable: readers share it.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    items: Box<[Item]>,
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
    pub(crate) fn new(mut items: Vec<Item>) -> Self {
        // The sort is stable, so among equal keys the later item stands last.
        items.sort_by(|a, b| a.key.cmp(&b.key));
        items.reverse();
        items.dedup_by(|earlier, later| earlier.key == later.key);
        items.reverse();
        Self { items: items.into() }
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
            Item { key, outcome: Outcome::Evaluated(flag) }
        });
        Self::new(items.collect())
    }

    /// Finds a flag by its key.
    pub(crate) fn get(&self, key: &str) -> Result<&FlagEvaluation, FlagError> {
        match self.items.binary_search_by(|item| item.key.as_str().cmp(key)) {
            Ok(position) => match &self.items[position].outcome {
                Outcome::Evaluated(flag) => Ok(flag),
                Outcome::Failed { code, details } => {
                    Err(FlagError::Evaluation { code: code.clone(), details: details.clone() })
                }
            },
            Err(_) => Err(FlagError::NotFound),
        }
    }

    /// About how many bytes the answer takes.
    pub(crate) fn own_bytes(&self) -> usize {
        self.items.len() * size_of::<Item>()
    }

    /// All evaluated flags, by key. Those that the service could not evaluate have no value to show.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &FlagEvaluation> {
        self.items.iter().filter_map(|item| match &item.outcome {
            Outcome::Evaluated(flag) => Some(flag),
            Outcome::Failed { .. } => None,
        })
    }
}
