//! Flags without a service: values in memory, for tests and demonstrations.

use std::sync::Arc;

use open_feature::EvaluationContext;
use parking_lot::Mutex;
use serde_json::{Map, Value};

use crate::{
    context::canonical::{self, CanonicalContext},
    flags::{flag_set::FlagSet, usage::UsageLog},
    provider::flags::ReadLog,
};

/// Reason of a value that applies to every context.
const REASON: &str = "STATIC";
/// Reason of a value that applies to some contexts.
const TARGETED_REASON: &str = "TARGETING_MATCH";

/// Flag values in memory.
pub(crate) struct InMemory {
    state: Mutex<State>,
    pub(crate) reads: Option<Arc<ReadLog>>,
    pub(crate) usage: Arc<UsageLog>,
}

struct State {
    values: Map<String, Value>,
    targeted: Vec<Arc<TargetedValue>>,
    /// The flags without targeted values.
    common: Arc<FlagSet>,
}

/// A value that applies to some contexts.
pub(crate) struct TargetedValue {
    pub(crate) key: String,
    pub(crate) value: Value,
    pub(crate) applies: Box<dyn Fn(&EvaluationContext) -> bool + Send + Sync>,
}

impl InMemory {
    pub(crate) fn new(values: Map<String, Value>, reads: Option<Arc<ReadLog>>) -> Self {
        let mut state = State { values, targeted: Vec::new(), common: Arc::default() };
        let usage = Arc::default();
        state.rebuild(&usage);
        Self { state: Mutex::new(state), reads, usage }
    }

    /// Returns the flags for a context.
    pub(crate) fn flag_set(&self, context: &CanonicalContext) -> Arc<FlagSet> {
        let (common, targeted) = {
            let state = self.state.lock();
            (Arc::clone(&state.common), state.targeted.clone())
        };
        if targeted.is_empty() {
            return common;
        }
        let context = canonical::decode(context.as_bytes());
        // The lock is not held here, because the predicates are code of the application.
        let mut matching = Map::new();
        for targeted in targeted.iter().filter(|targeted| (targeted.applies)(&context)) {
            matching.insert(targeted.key.clone(), targeted.value.clone());
        }
        if matching.is_empty() {
            return common;
        }
        let matching = FlagSet::of_values(matching, TARGETED_REASON);
        Arc::new(common.overlaid(matching.items()))
    }

    /// Sets a flag for every context.
    pub(crate) fn set(&self, key: String, value: Value) {
        let mut state = self.state.lock();
        state.targeted.retain(|targeted| targeted.key != key);
        state.values.insert(key, value);
        state.rebuild(&self.usage);
    }

    /// Sets a flag for some contexts.
    pub(crate) fn set_targeted(&self, targeted: TargetedValue) {
        self.state.lock().targeted.push(Arc::new(targeted));
    }

    pub(crate) fn remove(&self, key: &str) {
        let mut state = self.state.lock();
        state.targeted.retain(|targeted| targeted.key != key);
        state.values.remove(key);
        state.rebuild(&self.usage);
    }

    /// Returns the number of flags.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().values.len()
    }
}

impl State {
    fn rebuild(&mut self, usage: &Arc<UsageLog>) {
        self.common = Arc::new(FlagSet::of_values_in(self.values.clone(), REASON, Some(usage)));
    }
}
