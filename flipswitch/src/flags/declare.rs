//! Flags as types: key, type and default are written down once.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// A flag that is declared with its key, its type and its default. Implemented by [`flags!`](crate::flags).
#[diagnostic::on_unimplemented(
    message = "`{Self}` was not declared with `flags!`",
    label = "not a declared flag",
    note = "declare it: `flipswitch::flags! {{ pub NewCheckout: bool = \"new-checkout\", default false; }}`",
    note = "a flag that is not declared is read by its key: `flags.bool(\"new-checkout\", false)`"
)]
pub trait FlagDef {
    /// Type of the flag's value: anything that its JSON can be read as.
    type Value: DeserializeOwned;

    /// Key of the flag.
    const KEY: &'static str;

    /// The value where the service has none, or one of another type.
    fn default_value() -> Self::Value;
}

/// What may stand as the default of a flag of type `T`: a `T`, or something plain that means one, so that `"light"` is a
/// `String`, `10` any number, and `true` an `Option<bool>`.
#[diagnostic::on_unimplemented(
    message = "a flag of type `{T}` cannot have a default of type `{Self}`",
    note = "anything that converts into `{T}` can be one by `.into()`"
)]
pub trait FlagDefault<T> {
    /// The default as the flag's own type.
    fn into_value(self) -> T;
}

impl<T> FlagDefault<T> for T {
    fn into_value(self) -> T {
        self
    }
}

impl<T> FlagDefault<Option<T>> for T {
    fn into_value(self) -> Option<T> {
        Some(self)
    }
}

macro_rules! plain_defaults {
    ($($plain:ty => $($value:ty),+;)*) => {$($(
        impl FlagDefault<$value> for $plain {
            fn into_value(self) -> $value {
                self.into()
            }
        }
    )+)*};
}

plain_defaults! {
    &'static str => String, Box<str>, Cow<'static, str>, Value;
    String => Box<str>, Cow<'static, str>, Value;
    i32 => f64, Value;
    i64 => Value;
    f64 => Value;
    bool => Value;
}

/// Declares flags as types, so that a key is spelled, and a default chosen, in one place.
///
/// Each flag becomes a unit struct that implements [`FlagDef`]. The type is anything that implements
/// [`Deserialize`](https://docs.rs/serde); the default is one of it, or something plain that means one ([`FlagDefault`]).
/// Attributes, documentation and visibility are kept; `#[cfg(..)]` goes on a `flags!` of its own.
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

            fn default_value() -> $value {
                $crate::FlagDefault::into_value($default)
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
    fn a_whole_number_is_one_however_it_is_written() {
        let flags = flags(json!({"limit": 42.0, "ratio": 42}));
        assert_eq!((flags.get(Limit), flags.get(Small), flags.get(Ratio)), (42, 42, 42.0));
        // The same rule where the type is given by the caller.
        assert_eq!(flags.object("limit", 0_u16), 42);
        assert_eq!(flags.object("limit", -1.0), 42.0);
    }
}
