//! Flags without a service: values in memory, for tests and demonstrations.

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};

use open_feature::EvaluationContext;
use serde_json::{Map, Value};

use crate::{flags::flag_set::FlagSet, testing::Evaluated};

/// Why a flag has its value: nobody evaluates rules here.
const REASON: &str = "STATIC";
/// Why a flag has a value that not everybody has.
const EXCEPTIONAL: &str = "TARGETING_MATCH";

/// Values, and who has others.
pub(crate) struct Memory {
    state: Mutex<State>,
    pub(crate) log: Option<Arc<Log>>,
}

struct State {
    values: Map<String, Value>,
    exceptions: Vec<Arc<Exception>>,
    /// The values without exceptions.
    common: Arc<FlagSet>,
}

/// A value that some have.
pub(crate) struct Exception {
    pub(crate) key: String,
    pub(crate) value: Value,
    pub(crate) applies: Box<dyn Fn(&EvaluationContext) -> bool + Send + Sync>,
}

impl Memory {
    pub(crate) fn new(values: Map<String, Value>, log: Option<Arc<Log>>) -> Self {
        let common = Arc::new(FlagSet::of_values(values.clone(), REASON));
        Self { state: Mutex::new(State { values, exceptions: Vec::new(), common }), log }
    }

    /// All flags for a context.
    pub(crate) fn flag_set(&self, context: &EvaluationContext) -> Arc<FlagSet> {
        let (common, exceptions) = {
            let state = self.lock();
            (Arc::clone(&state.common), state.exceptions.clone())
        };
        // Without the lock, since these are the application's.
        let mut exceptional = Map::new();
        for exception in exceptions.iter().filter(|exception| (exception.applies)(context)) {
            exceptional.insert(exception.key.clone(), exception.value.clone());
        }
        if exceptional.is_empty() {
            return common;
        }
        let exceptional = FlagSet::of_values(exceptional, EXCEPTIONAL);
        Arc::new(FlagSet::new(common.items().iter().chain(exceptional.items()).cloned().collect()))
    }

    /// Sets a flag for everybody.
    pub(crate) fn set(&self, key: String, value: Value) {
        let mut state = self.lock();
        state.exceptions.retain(|exception| exception.key != key);
        state.values.insert(key, value);
        state.renew();
    }

    /// Sets a flag for some.
    pub(crate) fn except(&self, exception: Exception) {
        self.lock().exceptions.push(Arc::new(exception));
    }

    pub(crate) fn remove(&self, key: &str) {
        let mut state = self.lock();
        state.exceptions.retain(|exception| exception.key != key);
        state.values.remove(key);
        state.renew();
    }

    pub(crate) fn flags(&self) -> usize {
        self.lock().values.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn renew(&mut self) {
        self.common = Arc::new(FlagSet::of_values(self.values.clone(), REASON));
    }
}

/// What was read of flags, and for whom.
#[derive(Default)]
pub(crate) struct Log(Mutex<HashMap<String, Evaluated>>);

impl Log {
    pub(crate) fn read(&self, key: &str, context: &EvaluationContext) {
        let mut log = self.0.lock();
        let evaluated = log.entry(key.to_owned()).or_default();
        evaluated.count += 1;
        if !evaluated.contexts.contains(context) {
            evaluated.contexts.push(context.clone());
        }
    }

    pub(crate) fn of(&self, key: &str) -> Evaluated {
        self.0.lock().get(key).cloned().unwrap_or_default()
    }
}
