//! Flags for the tests of an application: without a service, changed while a test runs, and with a record of what was read.
//!
//! Nothing here is global, so tests run in parallel. For a test over sockets, or of what an application does in an outage,
//! there is a whole service in `flipswitch-local`.

use std::{fmt, sync::Arc};

use open_feature::EvaluationContext;
use serde_json::{Map, Value};

use crate::{
    FlipswitchProvider,
    provider::in_memory::{Exception, Log, Memory},
};

/// Flags in memory, and the provider that has them.
///
/// ```
/// use flipswitch::{open_feature::EvaluationContext, serde_json::json, testing::TestFlags};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let flags = TestFlags::new(json!({"new-checkout": false, "max-items": 10}));
/// flags.set_when("max-items", 100, |context| context.targeting_key.as_deref() == Some("alice"));
///
/// // What is tested gets `flags.provider()`.
/// let alice = EvaluationContext::default().with_targeting_key("alice");
/// assert_eq!(flags.provider().flags(&alice).await.int("max-items", 1), 100);
/// assert!(!flags.provider().flags(&alice).await.bool("new-checkout", true));
///
/// flags.set("new-checkout", true);
/// assert!(flags.provider().flags(&alice).await.bool("new-checkout", false));
///
/// assert_eq!(flags.evaluated("new-checkout").count, 2);
/// assert_eq!(flags.evaluated("new-checkout").contexts, [alice]);
/// # }
/// ```
#[derive(Clone)]
pub struct TestFlags {
    memory: Arc<Memory>,
    log: Arc<Log>,
    provider: FlipswitchProvider,
}

/// What was read of a flag.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Evaluated {
    /// How many times it was read.
    pub count: usize,
    /// For whom, each context once, in the order of their first reads.
    pub contexts: Vec<EvaluationContext>,
}

impl TestFlags {
    /// Makes flags from an object `{"new-checkout": true, ..}`, which everybody has.
    ///
    /// # Panics
    ///
    /// If `flags` is not an object.
    #[must_use]
    #[track_caller]
    pub fn new(flags: Value) -> Self {
        let Value::Object(flags) = flags else { panic!("flags are an object `{{\"key\": value, ..}}`, not {flags}") };
        let log = Arc::new(Log::default());
        let memory = Arc::new(Memory::new(flags, Some(Arc::clone(&log))));
        let provider = FlipswitchProvider::with_memory(Arc::clone(&memory));
        Self { memory, log, provider }
    }

    /// Returns the provider that has these flags; each time the same one.
    #[must_use]
    pub fn provider(&self) -> FlipswitchProvider {
        self.provider.clone()
    }

    /// Sets a flag for everybody, whatever was set for it before. Listeners hear of it.
    pub fn set(&self, key: impl Into<String>, value: impl Into<Value>) {
        let key = key.into();
        self.memory.set(key.clone(), value.into());
        self.provider.tell_change(key);
    }

    /// Sets a flag for those whose context a function is true of. Of several that are, the one that was set last counts.
    /// Listeners hear of it.
    pub fn set_when(
        &self,
        key: impl Into<String>,
        value: impl Into<Value>,
        applies: impl Fn(&EvaluationContext) -> bool + Send + Sync + 'static,
    ) {
        let key = key.into();
        self.memory.except(Exception { key: key.clone(), value: value.into(), applies: Box::new(applies) });
        self.provider.tell_change(key);
    }

    /// Removes a flag, so that code has its default. Listeners hear of it.
    pub fn remove(&self, key: &str) {
        self.memory.remove(key);
        self.provider.tell_change(key.to_owned());
    }

    /// Returns what was read of a flag so far by those whose context can be sent, through [`Flags`](crate::Flags), extractors, gates or OpenFeature. Reads of
    /// all flags at once ([`iter`](crate::Flags::iter), [`to_json`](crate::Flags::to_json)) do not count.
    #[must_use]
    pub fn evaluated(&self, key: &str) -> Evaluated {
        self.log.of(key)
    }
}

impl fmt::Debug for TestFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestFlags").field("provider", &self.provider).finish_non_exhaustive()
    }
}

/// Makes every combination of the values that flags can have: of `{"a": [false, true], "b": ["x", "y"], "c": 1}` the four
/// objects from `{"a": false, "b": "x", "c": 1}` to `{"a": true, "b": "y", "c": 1}`. What is not a list stays as it is; a flag
/// whose value is a list is written as a list of lists.
///
/// ```
/// use flipswitch::{FlipswitchProvider, serde_json::json, testing::combinations};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// for flags in combinations(json!({"new-checkout": [false, true], "theme": ["light", "dark"]})) {
///     let provider = FlipswitchProvider::in_memory(flags.clone());
///     let flags_of_all = provider.flags(&Default::default()).await;
///     assert_eq!(flags_of_all.to_json(), flags, "with {flags}");
/// }
/// # }
/// ```
///
/// # Panics
///
/// If `flags` is not an object, if a list is empty, so that a test would pass without running, and if there are more
/// combinations than a `usize` counts.
#[track_caller]
pub fn combinations(flags: Value) -> impl Iterator<Item = Value> {
    let Value::Object(flags) = flags else { panic!("flags are an object `{{\"key\": [value, ..], ..}}`, not {flags}") };
    let choices: Vec<(String, Vec<Value>)> = flags
        .into_iter()
        .map(|(key, values)| match values {
            Value::Array(values) => (key, values),
            value => (key, vec![value]),
        })
        .collect();
    for (key, values) in &choices {
        assert!(!values.is_empty(), "flag {key:?} has no value to choose from, so that there is no combination");
    }
    let all = choices.iter().try_fold(1_usize, |all, (_, values)| all.checked_mul(values.len()));
    let Some(all) = all else { panic!("there are more combinations of these flags than can be counted") };
    (0..all).map(move |number| {
        // The last flag turns fastest, as the last digit of a number.
        let mut rest = number;
        let chosen = choices.iter().rev().map(|(key, values)| {
            let value = values[rest % values.len()].clone();
            rest /= values.len();
            (key.clone(), value)
        });
        Value::Object(chosen.collect::<Map<_, _>>())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt;
    use serde_json::json;

    use super::*;
    use crate::{FlagEvaluation, Flags, ProviderEvent};

    fn user(id: &str) -> EvaluationContext {
        EvaluationContext::default().with_targeting_key(id)
    }

    fn flags(flags: &TestFlags, id: &str) -> Flags {
        flags.provider().flags(&user(id)).now_or_never().unwrap()
    }

    #[test]
    fn values_are_everybodys_or_some_peoples() {
        let test = TestFlags::new(json!({"limit": 10}));
        test.set_when("limit", 20, |context| context.targeting_key.is_some());
        test.set_when("limit", 30, |context| context.targeting_key.as_deref() == Some("alice"));
        test.set_when("new", "only", |context| context.targeting_key.as_deref() == Some("alice"));
        assert_eq!((flags(&test, "alice").int("limit", 0), flags(&test, "bob").int("limit", 0)), (30, 20));
        assert_eq!((flags(&test, "alice").string("new", "-"), flags(&test, "bob").string("new", "-")), ("only", "-"));
        let nobody = test.provider().flags(&EvaluationContext::default()).now_or_never().unwrap();
        assert_eq!(nobody.evaluation("limit").unwrap().reason, "STATIC");
        assert_eq!(flags(&test, "bob").evaluation("limit").unwrap().reason, "TARGETING_MATCH");
        // Set for everybody means for everybody.
        let before = flags(&test, "alice");
        test.set("limit", 40);
        assert_eq!((before.int("limit", 0), flags(&test, "alice").int("limit", 0)), (30, 40));
        test.remove("limit");
        test.remove("new");
        assert_eq!(flags(&test, "alice").iter().collect::<Vec<&FlagEvaluation>>().len(), 0);
    }

    #[test]
    fn reads_are_recorded() {
        let test = TestFlags::new(json!({"on": true, "other": 1}));
        assert_eq!(test.evaluated("on"), Evaluated::default());
        let alice = flags(&test, "alice");
        assert!(alice.bool("on", false) && alice.bool("on", false) && flags(&test, "bob").clone().bool("on", false));
        // A flag that there is not was read nevertheless.
        assert!(alice.evaluation("missing").is_err());
        assert_eq!(test.evaluated("on"), Evaluated { count: 3, contexts: vec![user("alice"), user("bob")] });
        assert_eq!(test.evaluated("missing").count, 1);
        let (_, _) = (alice.to_json(), alice.iter().count());
        assert_eq!(test.evaluated("other").count, 0);
        // Nothing is shared.
        assert_eq!(TestFlags::new(json!({"on": true})).evaluated("on").count, 0);
    }

    #[test]
    fn changes_are_heard_of_when_they_can_be_seen() {
        let test = TestFlags::new(json!({"on": false}));
        let (heard, changes) = mpsc::channel();
        let provider = test.provider();
        let mut events = provider.events();
        test.provider()
            .add_flag_change_listener(move |change| {
                let on = provider.flags(&user("alice")).now_or_never().unwrap().bool("on", false);
                heard.send((change.flag_key.clone().unwrap(), on)).unwrap();
            })
            .detach();
        test.set("on", true);
        assert_eq!(changes.recv().unwrap(), ("on".to_owned(), true));
        test.set_when("on", false, |_| true);
        assert_eq!(changes.recv().unwrap(), ("on".to_owned(), false));
        test.remove("on");
        assert_eq!(changes.recv().unwrap(), ("on".to_owned(), false));
        let told = std::iter::from_fn(|| events.recv().now_or_never().flatten());
        let changed = told.filter(|event| matches!(event, ProviderEvent::ConfigurationChanged(_)));
        assert_eq!(changed.count(), 3);
    }

    #[test]
    fn every_combination_is_made_once() {
        let made: Vec<_> = combinations(json!({"a": [false, true], "b": ["x", "y"], "c": 1})).collect();
        let expected = [
            json!({"a": false, "b": "x", "c": 1}),
            json!({"a": false, "b": "y", "c": 1}),
            json!({"a": true, "b": "x", "c": 1}),
            json!({"a": true, "b": "y", "c": 1}),
        ];
        assert_eq!(made, expected);
        assert_eq!(combinations(json!({})).collect::<Vec<_>>(), [json!({})]);
    }

    #[test]
    #[should_panic(expected = "flag \"a\" has no value to choose from")]
    fn no_combination_is_a_mistake() {
        let _ = combinations(json!({"a": [], "b": [1]}));
    }

    #[test]
    #[should_panic(expected = "more combinations")]
    fn too_many_combinations_are_a_mistake() {
        let flags = (0..64).map(|number| (number.to_string(), json!([false, true]))).collect();
        let _ = combinations(Value::Object(flags));
    }
}
