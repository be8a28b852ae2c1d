//! Flags that are declared as types.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use serde::Deserialize;

use flipswitch::{
    EvaluationContext, Flags, FlipswitchProvider,
    serde_json::{Value, json},
};

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
fn a_missing_flag_and_one_of_another_type_give_the_default() {
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
fn defaults_are_of_the_flags_own_type() {
    let flags = flags(json!({}));
    assert_eq!((flags.get(Large), flags.get(Index)), (u64::MAX, 3_000_000_000));
    assert_eq!((flags.get(Whole), flags.get(Short)), (1.0, 0.5));
    assert_eq!((&*flags.get(Shared), flags.get(Never)), ("shared", None));
}

#[test]
fn a_float_without_a_fraction_is_a_whole_number() {
    let flags = flags(json!({"limit": 42.0, "ratio": 42}));
    assert_eq!((flags.get(Limit), flags.get(Small), flags.get(Ratio)), (42, 42, 42.0));
    // The same rule where the type is given by the caller.
    assert_eq!(flags.object("limit", 0_u16), 42);
    assert_eq!(flags.object("limit", -1.0), 42.0);
}
