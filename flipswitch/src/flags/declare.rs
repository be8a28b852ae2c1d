//! Flags as types: key, type and default are declared once.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// A declared flag with its key, type and default. Implemented by [`flags!`](crate::flags).
#[diagnostic::on_unimplemented(
    message = "`{Self}` was not declared with `flags!`",
    label = "not a declared flag",
    note = "declare it: `flipswitch::flags! {{ pub NewCheckout: bool = \"new-checkout\", default false; }}`",
    note = "a flag that is not declared is read by its key: `flags.bool(\"new-checkout\", false)`"
)]
pub trait FlagDef {
    /// Type of the flag's value, deserialized from JSON.
    type Value: DeserializeOwned;

    /// Key of the flag.
    const KEY: &'static str;

    /// Returns the default, which counts if the flag has no value, or a value of another type.
    fn default_value() -> Self::Value;
}

/// A value that may be declared as the default of a flag of type `T`: a `T`, or a literal that converts to one. `"light"` is
/// a `String`, `10` any number, and `true` an `Option<bool>`.
#[diagnostic::on_unimplemented(
    message = "a flag of type `{T}` cannot have a default of type `{Self}`",
    note = "a value that converts into `{T}` can be used with `.into()`"
)]
pub trait FlagDefault<T> {
    /// Converts the default to the type of the flag.
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

/// Declares flags as types, so that key and default are written in one place.
///
/// Each flag becomes a unit struct that implements [`FlagDef`]. Its type is any type that implements
/// [`Deserialize`](https://docs.rs/serde), and its default a value that converts to it ([`FlagDefault`]). Attributes,
/// documentation and visibility are kept. `#[cfg(..)]` on a single flag is not supported: put it on a `flags!` of its own.
///
/// ```
/// use flipswitch::{Context, FlipswitchProvider, serde_json::json};
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
/// let flags = provider.flags(Context::anonymous()).await;
/// assert!(flags.get(NewCheckout));
/// assert_eq!(flags.get(MaxItems), 10);
/// assert_eq!(flags.get(Theme), "dark");
/// # }
/// ```
///
/// A flag that is not declared does not compile:
///
/// ```compile_fail,E0425
/// # let provider = flipswitch::FlipswitchProvider::in_memory(Default::default());
/// # tokio_test::block_on(async {
/// # let flags = provider.flags(flipswitch::Context::anonymous()).await;
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
