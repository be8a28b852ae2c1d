//! Flags as types: key, type and default are written down once.

use serde::de::DeserializeOwned;

/// A flag that is declared with its key, its type and its default. Implemented by [`flags!`](crate::flags).
#[diagnostic::on_unimplemented(
    message = "`{Self}` was not declared with `flags!`",
    label = "not a declared flag",
    note = "declare it: `flipswitch::flags! {{ pub {Self}: bool = \"its-key\", default false; }}`"
)]
pub trait FlagDef {
    /// Type of the flag's value: anything that its JSON can be read as.
    type Value: DeserializeOwned;

    /// Key of the flag.
    const KEY: &'static str;

    /// The value where the service has none, or one of another type.
    fn default_value() -> Self::Value;
}

/// Declares flags as types, so that a key is spelled, and a default chosen, in one place.
///
/// Each flag becomes a unit struct that implements [`FlagDef`]. The type is anything that implements
/// [`Deserialize`](https://docs.rs/serde); the default any expression that converts into it. Attributes, documentation and
/// visibility are kept.
///
/// ```
/// use flipswitch::{FlipswitchProvider, open_feature::EvaluationContext, serde_json::json};
///
/// flipswitch::flags! {
///     /// The checkout on one page.
///     pub NewCheckout: bool = "new-checkout", default false;
///     /// How many items a cart holds.
///     pub MaxItems: i64 = "max-items", default 10;
///     /// The look of the shop.
///     pub Theme: String = "theme", default "light";
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let provider = FlipswitchProvider::in_memory(json!({"new-checkout": true, "theme": "dark"}));
/// let flags = provider.flags(&EvaluationContext::default()).await;
/// assert!(flags.get(NewCheckout));
/// assert_eq!(flags.get(MaxItems), 10);
/// assert_eq!(flags.get(Theme), "dark");
/// # }
/// ```
///
/// A flag that was not declared does not compile:
///
/// ```compile_fail,E0425
/// # let provider = flipswitch::FlipswitchProvider::in_memory(Default::default());
/// # tokio_test::block_on(async {
/// # let flags = provider.flags(&Default::default()).await;
/// flipswitch::flags! { NewCheckout: bool = "new-checkout", default false }
/// flags.get(NewChekout);
/// # });
/// ```
#[macro_export]
macro_rules! flags {
    ($($(#[$attribute:meta])* $visibility:vis $name:ident: $value:ty = $key:literal, default $default:expr);* $(;)?) => {$(
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        $visibility struct $name;

        impl $crate::FlagDef for $name {
            type Value = $value;

            const KEY: &'static str = $key;

            #[allow(clippy::useless_conversion, reason = "a default of the flag's own type needs none")]
            fn default_value() -> $value {
                ::core::convert::Into::into($default)
            }
        }
    )*};
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures_util::FutureExt;
    use open_feature::EvaluationContext;
    use serde::Deserialize;
    use serde_json::{Value, json};

    use crate::{Flags, FlipswitchProvider};

    /// What an application reads as a whole.
    #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
    struct Shape {
        sides: u8,
        name: Option<String>,
    }

    crate::flags! {
        /// A documented flag.
        pub(crate) On: bool = "on", default false;
        Limit: i64 = "limit", default 10;
        Small: u8 = "limit", default 7;
        Ratio: f64 = "ratio", default 0.5;
        Theme: String = "theme", default "light";
        Form: Shape = "shape", default Shape { sides: 3, name: None };
        Table: BTreeMap<String, Vec<i64>> = "table", default BTreeMap::new();
        Maybe: Option<bool> = "maybe", default true;
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
    fn a_whole_number_is_one_however_it_is_written() {
        let flags = flags(json!({"limit": 42.0, "ratio": 42}));
        assert_eq!((flags.get(Limit), flags.get(Small), flags.get(Ratio)), (42, 42, 42.0));
        // The same rule where the type is given by the caller.
        assert_eq!(flags.object("limit", 0_u16), 42);
        assert_eq!(flags.object("limit", -1.0), 42.0);
    }
}
