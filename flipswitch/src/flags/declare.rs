//! Flags as types: key, type and default are declared once.

use std::{borrow::Cow, fmt};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{flag_type::FlagType, flags::evaluation};

/// A declared flag with its key, type and default. Implemented by [`flags!`](crate::flags).
#[diagnostic::on_unimplemented(
    message = "`{Self}` was not declared with `flags!`",
    label = "not a declared flag",
    note = "declare it: `flipswitch::flags! {{ pub NewCheckout: bool = \"new-checkout\", default false; }}`",
    note = "a flag that is not declared is read by its key: `flags.bool(\"new-checkout\", false)`"
)]
pub trait FlagDef {
    /// Type of the flag's value, deserialised from JSON.
    type Value: DeserializeOwned;

    /// Key of the flag.
    const KEY: &'static str;

    /// Returns the default, which is used if the flag has no value, or a value of a different type.
    fn default_value() -> Self::Value;
}

/// A value that may be declared as the default of a flag of type `T`: a `T`, or a literal that converts to `T`. For example,
/// `"light"` may be the default of a `String`, `10` the default of any number, and `true` the default of an `Option<bool>`.
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

/// A flag in a list that [`flags!`](crate::flags) declares, for [`manifest`] and
/// [`LifespanBuilder::declared`](crate::LifespanBuilder::declared).
#[derive(Clone, Copy)]
pub struct DeclaredFlag {
    key: &'static str,
    description: &'static str,
    default: fn() -> Value,
    accepts: fn(&Value) -> bool,
}

impl DeclaredFlag {
    /// Creates the entry of a flag. Used by [`flags!`](crate::flags).
    #[doc(hidden)]
    #[must_use]
    pub const fn new<F: FlagDef<Value: Serialize>>(description: &'static str) -> Self {
        Self {
            key: F::KEY,
            description,
            default: || serde_json::to_value(F::default_value()).unwrap_or_default(),
            accepts: |value| evaluation::read_as::<F::Value>(value).is_ok(),
        }
    }

    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> &'static str {
        self.key
    }

    /// Returns the documentation of the flag, as written in the doc comment.
    #[must_use]
    pub fn description(&self) -> String {
        let lines = self.description.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end());
        lines.collect::<Vec<_>>().join("\n").trim().to_owned()
    }

    /// Returns the default as JSON.
    #[must_use]
    pub fn default_value(&self) -> Value {
        (self.default)()
    }

    /// Returns whether a value from the service has the type of the flag. Null is accepted, because the default is used for it.
    #[must_use]
    pub fn accepts(&self, value: &Value) -> bool {
        value.is_null() || (self.accepts)(value)
    }

    /// Returns the type in a manifest.
    fn manifest_type(&self) -> &'static str {
        let default = self.default_value();
        match FlagType::of_value(&default) {
            // An integer beyond 63 bits.
            FlagType::Number if default.is_u64() => "integer",
            FlagType::Boolean => "boolean",
            FlagType::String => "string",
            FlagType::Integer => "integer",
            FlagType::Number => "float",
            // The schema allows any value.
            FlagType::Object | FlagType::Array | FlagType::Null => "object",
        }
    }
}

impl fmt::Debug for DeclaredFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeclaredFlag").field("key", &self.key).field("default", &self.default_value()).finish()
    }
}

/// The manifest schema of the OpenFeature CLI.
const MANIFEST_SCHEMA: &str =
    "https://raw.githubusercontent.com/open-feature/cli/refs/heads/main/schema/v0/flag-manifest.json";

/// Returns the manifest of declared flags, in the format of the OpenFeature CLI.
///
/// From a file with the manifest, the CLI can generate code for other languages, and `flipswitch-local check` can compare it with
/// a service.
///
/// The type of a flag is the type of its default. A default that is not a boolean, a number or a string has the type `object`. If
/// two flags have the same key, the later one is used.
///
/// ```
/// use flipswitch::serde_json::json;
///
/// flipswitch::flags! {
///     pub static FLAGS;
///     /// The one-page checkout.
///     pub NewCheckout: bool = "new-checkout", default false;
/// }
///
/// let manifest = flipswitch::manifest(FLAGS);
/// let expected = json!({"flagType": "boolean", "defaultValue": false, "description": "The one-page checkout."});
/// assert_eq!(manifest["flags"]["new-checkout"], expected);
/// ```
#[must_use]
pub fn manifest(flags: &[DeclaredFlag]) -> Value {
    let flags = flags.iter().map(|flag| {
        let mut entry = Map::new();
        entry.insert("flagType".to_owned(), flag.manifest_type().into());
        entry.insert("defaultValue".to_owned(), flag.default_value());
        let description = flag.description();
        if !description.is_empty() {
            entry.insert("description".to_owned(), description.into());
        }
        (flag.key.to_owned(), Value::Object(entry))
    });
    json!({"$schema": MANIFEST_SCHEMA, "flags": flags.collect::<Map<_, _>>()})
}

/// Declares flags as types, so that the key and the default of a flag are written in one place.
///
/// Each flag becomes a unit struct that implements [`FlagDef`]. Its value can have any type that implements
/// [`Deserialize`](https://docs.rs/serde), and its default is a value that converts to this type ([`FlagDefault`]). Attributes,
/// documentation and visibility are kept. `#[cfg(..)]` on an individual flag is not supported: declare such a flag in a separate
/// `flags!`.
///
/// ```
/// use flipswitch::{Context, FlipswitchProvider, serde_json::json};
///
/// flipswitch::flags! {
///     /// The one-page checkout.
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
/// With `static` and a name in the first line, the macro also declares a list of the flags. The list is used for a
/// [`manifest`](crate::manifest()), and for a warning at startup about flags that the service does not have
/// ([`declared`](crate::LifespanBuilder::declared)). The values of all its flags must implement `Serialize`.
///
/// ```
/// flipswitch::flags! {
///     /// The flags of the shop.
///     pub static FLAGS;
///     /// The one-page checkout.
///     pub NewCheckout: bool = "new-checkout", default false;
/// }
///
/// assert_eq!(FLAGS[0].key(), "new-checkout");
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
    ($(#[$list_attribute:meta])* $list_visibility:vis static $list:ident;
     $($(#[$($attribute:tt)*])* $visibility:vis $name:ident: $value:ty = $key:literal, default $default:expr);* $(;)?) => {
        $crate::flags! {$(
            $(#[$($attribute)*])*
            $visibility $name: $value = $key, default $default;
        )*}

        $(#[$list_attribute])*
        $list_visibility static $list: &[$crate::DeclaredFlag] =
            &[$($crate::DeclaredFlag::new::<$name>($crate::__documentation!($(#[$($attribute)*])*))),*];
    };
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

/// Returns the documentation that a list of attributes contains.
#[doc(hidden)]
#[macro_export]
macro_rules! __documentation {
    () => { "" };
    (#[doc = $line:literal] $($rest:tt)*) => { ::core::concat!($line, "\n", $crate::__documentation!($($rest)*)) };
    (#[$($other:tt)*] $($rest:tt)*) => { $crate::__documentation!($($rest)*) };
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq, Serialize)]
    struct Limits {
        items: u32,
    }

    flags! {
        static FLAGS;
        /// The one-page checkout.
        ///
        /// With "quotes" and \ backslashes.
        #[doc(alias = "checkout")]
        NewCheckout: bool = "new-checkout", default false;
        MaxItems: i64 = "max-items", default 10;
        Rate: f64 = "rate", default 1;
        Theme: String = "theme", default "light";
        Choice: Option<bool> = "choice", default true;
        Nothing: Option<bool> = "nothing", default None;
        Cart: Limits = "cart", default Limits { items: 3 };
        Roles: Vec<String> = "roles", default Vec::new();
    }

    /// Checks the rules of the manifest schema, version 0.
    fn assert_valid(manifest: &Value) {
        let Value::Object(root) = manifest else { panic!("{manifest}") };
        assert!(root["$schema"].is_string() && root["flags"].is_object());
        for (key, flag) in root["flags"].as_object().unwrap() {
            assert!(!key.is_empty());
            let default = &flag["defaultValue"];
            let fits = match flag["flagType"].as_str().unwrap() {
                "boolean" => default.is_boolean(),
                "string" => default.is_string(),
                "integer" => default.is_i64() || default.is_u64(),
                "float" => default.is_number(),
                "object" => true,
                other => panic!("{key}: {other}"),
            };
            assert!(fits, "{key}: {flag}");
            assert!(flag.get("description").is_none_or(Value::is_string));
        }
    }

    #[test]
    fn a_manifest_has_every_declared_flag() {
        let manifest = manifest(FLAGS);
        assert_valid(&manifest);
        let types: Vec<_> = FLAGS.iter().map(|flag| manifest["flags"][flag.key()]["flagType"].clone()).collect();
        assert_eq!(types, ["boolean", "integer", "float", "string", "boolean", "object", "object", "object"]);
        let flags = &manifest["flags"];
        assert_eq!(
            flags["new-checkout"]["description"],
            "The one-page checkout.\n\nWith \"quotes\" and \\ backslashes."
        );
        assert_eq!(flags["max-items"], json!({"flagType": "integer", "defaultValue": 10}));
        assert_eq!(flags["cart"]["defaultValue"], json!({"items": 3}));
        assert_eq!(flags["rate"]["defaultValue"], json!(1.0));
    }

    #[test]
    fn a_declared_flag_accepts_the_values_that_it_can_be_read_from() {
        let accepts = |key: &str, value: Value| FLAGS.iter().find(|flag| flag.key() == key).unwrap().accepts(&value);
        assert!(accepts("new-checkout", json!(true)) && accepts("new-checkout", Value::Null));
        assert!(!accepts("new-checkout", json!("on")) && !accepts("max-items", json!(1.5)));
        assert!(accepts("max-items", json!(42.0)), "it is read as 42");
        assert!(accepts("rate", json!(2)) && accepts("cart", json!({"items": 1})) && !accepts("cart", json!({})));
    }
}
