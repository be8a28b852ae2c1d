//! Flags in memory for the tests of applications.

use std::sync::mpsc;

use futures_util::FutureExt;

use flipswitch::{
    EvaluationContext, FlagEvaluation, Flags, ProviderEvent, RequestScope,
    serde_json::{Value, json},
    testing::{FlagReads, TestFlags, combinations},
};

fn user(id: &str) -> EvaluationContext {
    EvaluationContext::default().with_targeting_key(id)
}

fn flags(flags: &TestFlags, id: &str) -> Flags {
    flags.provider().flags(&user(id)).now_or_never().unwrap()
}

#[test]
fn values_apply_to_every_context_or_to_some() {
    let test = TestFlags::new(json!({"limit": 10}));
    test.set_when("limit", 20, |context| context.targeting_key.is_some());
    test.set_when("limit", 30, |context| context.targeting_key.as_deref() == Some("alice"));
    test.set_when("new", "only", |context| context.targeting_key.as_deref() == Some("alice"));
    assert_eq!((flags(&test, "alice").int("limit", 0), flags(&test, "bob").int("limit", 0)), (30, 20));
    assert_eq!((flags(&test, "alice").string("new", "-"), flags(&test, "bob").string("new", "-")), ("only", "-"));
    let anonymous = test.provider().flags(&EvaluationContext::default()).now_or_never().unwrap();
    assert_eq!(anonymous.evaluation("limit").unwrap().reason, "STATIC");
    assert_eq!(flags(&test, "bob").evaluation("limit").unwrap().reason, "TARGETING_MATCH");
    // A value for every context replaces all others.
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
    assert_eq!(test.reads("on"), FlagReads::default());
    let alice = flags(&test, "alice");
    assert!(alice.bool("on", false) && alice.bool("on", false) && flags(&test, "bob").clone().bool("on", false));
    // Reads of unknown flags are also recorded.
    assert!(alice.evaluation("missing").is_err());
    let reads = test.reads("on");
    assert_eq!((reads.count, reads.contexts), (3, vec![user("alice"), user("bob")]));
    assert_eq!(test.reads("missing").count, 1);
    let (_, _) = (alice.to_json(), alice.iter().count());
    assert_eq!(test.reads("other").count, 0);
    // Records are not shared.
    assert_eq!(TestFlags::new(json!({"on": true})).reads("on").count, 0);
}

#[test]
fn listeners_are_notified_when_the_new_value_can_be_read() {
    let test = TestFlags::new(json!({"on": false}));
    let (sender, changes) = mpsc::channel();
    let provider = test.provider();
    let mut events = provider.events();
    test.provider()
        .add_flag_change_listener(move |change| {
            let on = provider.flags(&user("alice")).now_or_never().unwrap().bool("on", false);
            sender.send((change.flag_key.clone().unwrap(), on)).unwrap();
        })
        .detach();
    test.set("on", true);
    assert_eq!(changes.recv().unwrap(), ("on".to_owned(), true));
    test.set_when("on", false, |_| true);
    assert_eq!(changes.recv().unwrap(), ("on".to_owned(), false));
    test.remove("on");
    assert_eq!(changes.recv().unwrap(), ("on".to_owned(), false));
    let received = std::iter::from_fn(|| events.recv().now_or_never().flatten());
    let changed = received.filter(|event| matches!(event, ProviderEvent::ConfigurationChanged(_)));
    assert_eq!(changed.count(), 3);
}

#[test]
fn every_combination_is_returned_once() {
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
fn an_empty_list_panics() {
    let _ = combinations(json!({"a": [], "b": [1]}));
}

#[test]
#[should_panic(expected = "more combinations")]
fn too_many_combinations_panic() {
    let flags = (0..64).map(|number| (number.to_string(), json!([false, true]))).collect();
    let _ = combinations(Value::Object(flags));
}

#[test]
fn the_flags_of_a_scope_do_not_change() {
    let test = TestFlags::new(json!({"on": true}));
    let scope = RequestScope::new(test.provider(), EvaluationContext::default());
    assert!(scope.try_flags().unwrap().bool("on", false));
    test.set("on", false);
    assert!(scope.try_flags().unwrap().bool("on", false));
    let later = scope.flags().now_or_never().unwrap();
    assert!(later.bool("on", false));
}
