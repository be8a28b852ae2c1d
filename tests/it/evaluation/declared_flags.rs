//! Flags that are declared as types.

use std::{collections::BTreeMap, time::Duration};

use futures_util::FutureExt;
use serde::Deserialize;

use flipswitch::{
    EvaluationContext, Flags, FlipswitchProvider, Lifespan, ReadyError,
    serde_json::{Value, json},
};
use flipswitch_local::{Endpoint, Fault, LocalServer};

use crate::support::{self, Log, PATIENCE, in_time, provider};

/// A flag that is deserialized as a structure.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
struct Shape {
    sides: u8,
    name: Option<String>,
}

flipswitch::flags! {
    /// A documented flag.
    pub(crate) On: bool = "on", default false;
    Limit: i64 = "limit", default 10;
    Small: u8 = "limit", default 7;
    Large: u64 = "missing", default 18_446_744_073_709_551_615;
    Index: usize = "missing", default 3_000_000_000;
    Whole: f64 = "missing", default 1;
    Short: f32 = "missing", default 0.5;
    Shared: Box<str> = "missing", default "shared";
    Ratio: f64 = "ratio", default 0.5;
    Theme: String = "theme", default "light";
    Form: Shape = "shape", default Shape { sides: 3, name: None };
    Table: BTreeMap<String, Vec<i64>> = "table", default BTreeMap::new();
    Maybe: Option<bool> = "maybe", default true;
    Never: Option<String> = "missing", default None;
    Raw: Value = "raw", default json!(["none"])
}

fn flags(values: Value) -> Flags {
    FlipswitchProvider::in_memory(values).flags(&EvaluationContext::default()).now_or_never().unwrap()
}

#[test]
fn every_type_is_read_as_declared() {
    let flags = flags(json!({
        "on": true, "limit": 20, "ratio": 2, "theme": "dark", "shape": {"sides": 4, "name": "square"},
        "table": {"a": [1, 2]}, "maybe": false, "raw": {"x": null},
    }));
    assert!(flags.get(On));
    assert_eq!((flags.get(Limit), flags.get(Small)), (20, 20));
    assert_eq!(flags.get(Ratio), 2.0);
    assert_eq!(flags.get(Theme), "dark");
    assert_eq!(flags.get(Form), Shape { sides: 4, name: Some("square".into()) });
    assert_eq!(flags.get(Table)["a"], [1, 2]);
    assert_eq!(flags.get(Maybe), Some(false));
    assert_eq!(flags.get(Raw), json!({"x": null}));
}

#[test]
fn a_missing_flag_and_a_flag_of_another_type_return_the_default() {
    let other = json!({
        "on": "true", "limit": 2.5, "ratio": "2", "theme": 1, "shape": {"sides": 300}, "table": [], "maybe": 1,
        "raw": null,
    });
    for flags in [flags(json!({})), flags(other)] {
        assert!(!flags.get(On));
        assert_eq!((flags.get(Limit), flags.get(Small)), (10, 7));
        assert_eq!(flags.get(Ratio), 0.5);
        assert_eq!(flags.get(Theme), "light");
        assert_eq!(flags.get(Form), Shape { sides: 3, name: None });
        assert_eq!(flags.get(Table), BTreeMap::new());
        assert_eq!(flags.get(Maybe), Some(true));
        assert_eq!(flags.get(Raw), json!(["none"]));
    }
}

#[test]
fn defaults_have_the_type_of_the_flag() {
    let flags = flags(json!({}));
    assert_eq!((flags.get(Large), flags.get(Index)), (u64::MAX, 3_000_000_000));
    assert_eq!((flags.get(Whole), flags.get(Short)), (1.0, 0.5));
    assert_eq!((&*flags.get(Shared), flags.get(Never)), ("shared", None));
}

#[test]
fn a_float_without_a_fraction_can_be_read_as_an_integer() {
    let flags = flags(json!({"limit": 42.0, "ratio": 42}));
    assert_eq!((flags.get(Limit), flags.get(Small), flags.get(Ratio)), (42, 42, 42.0));
    // The same rule applies if the caller selects the type.
    assert_eq!(flags.object("limit", 0_u16), 42);
    assert_eq!(flags.object("limit", -1.0), 42.0);
}

flipswitch::flags! {
    static LISTED;
    ListedOn: bool = "on", default false;
    ListedTheme: String = "theme", default "light";
    ListedMissing: bool = "new-chekout", default false;
    ListedFailing: bool = "failing", default false;
}

/// Starts a provider with declared flags. Returns whether the start succeeded, and the warnings.
async fn start(service: &LocalServer, required: bool) -> (Result<(), ReadyError>, Vec<String>) {
    let log = Log::of_this_thread();
    let lifespan = Lifespan::builder(provider(service)).declared(LISTED).require_declared(required);
    let started = in_time(lifespan.ready_timeout(PATIENCE).start()).await;
    let outcome = match started {
        Ok(lifespan) => {
            in_time(lifespan.shutdown()).await;
            Ok(())
        }
        Err(error) => Err(error),
    };
    (outcome, log.lines().into_iter().filter(|line| line.contains("declared flags")).collect())
}

#[tokio::test]
async fn the_start_warns_once_about_declared_flags_that_the_service_does_not_have() {
    let service =
        LocalServer::start(json!({"on": true, "theme": 7, "new-checkout": true, "failing": true})).await.unwrap();
    service.faults().add(Fault::on(Endpoint::Bulk).flag_error("failing", "GENERAL")).unwrap();
    let (outcome, warnings) = start(&service, false).await;
    assert!(outcome.is_ok());
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    let expected = r#""theme" has the type integer, "new-chekout" is missing (did you mean "new-checkout"?)"#;
    assert!(warning.replace('\\', "").contains(expected), "{warning}");
    assert!(!warning.contains("failing"), "{warning}");

    let (outcome, _) = start(&service, true).await;
    let error = outcome.unwrap_err();
    assert!(matches!(&error, ReadyError::Undeclared(problems) if problems == expected), "{error:?}");

    service.set_flag("theme", "dark");
    service.set_flag("new-chekout", true);
    let (outcome, warnings) = start(&service, true).await;
    assert!(outcome.is_ok() && warnings.is_empty(), "{warnings:?}");
}

#[tokio::test]
async fn no_declared_flags_are_reported_missing_while_the_service_is_unavailable() {
    let lifespan = Lifespan::builder(support::provider_of_nothing()).declared(LISTED).require_declared(true);
    let log = Log::of_this_thread();
    let lifespan = in_time(lifespan.ready_timeout(Duration::from_millis(1)).start()).await.unwrap();
    assert!(log.lines().iter().all(|line| !line.contains("declared flags")), "{:?}", log.lines());
    in_time(lifespan.shutdown()).await;
}

#[tokio::test]
async fn why_explains_the_value_of_a_flag() {
    let service = LocalServer::start(json!({"flags": {
        "new-checkout": {
            "state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
            "targeting": {"if": [{"==": [{"var": "targetingKey"}, "alice"]}, "on"]},
        },
        "disabled": {"state": "DISABLED", "variants": {"on": true}, "defaultVariant": "on"},
    }}))
    .await
    .unwrap();
    service.faults().add(Fault::on(Endpoint::Bulk).flag_error("failing", "GENERAL")).unwrap();
    let provider = support::unattended(service.url(), Duration::from_millis(1)).build().unwrap();
    let why = async |key: &str| in_time(provider.flags(&support::user("alice"))).await.why(key).to_string();
    let text = why("new-checkout").await;
    assert_eq!(
        text,
        r#""new-checkout" is true, from the variant "on", with the reason TARGETING_MATCH; requested 0 s ago"#
    );
    let cases = [
        ("newCheckout", r#"does not have this flag; did you mean "new-checkout"?"#),
        ("banner", "does not have this flag"),
        ("disabled", "defers to this default (reason DISABLED)"),
        ("failing", "GENERAL"),
    ];
    for (key, expected) in cases {
        let text = why(key).await;
        assert!(text.contains(expected) && text.contains(" uses the default in code: "), "{key}: {text}");
    }
    service.shutdown().await;
    let text = why("new-checkout").await;
    assert!(text.contains("may be out of date: ") && text.contains("the request to the flag service failed"), "{text}");
    let unknown = in_time(provider.flags(&support::user("bob"))).await.why("new-checkout").to_string();
    assert!(unknown.starts_with("\"new-checkout\" uses the default in code: "), "{unknown}");
    assert!(!text.contains("alice") && !unknown.contains("bob"));
}
