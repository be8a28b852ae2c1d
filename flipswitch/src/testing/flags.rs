//! In-memory flags that change on demand, and cookies for requests in tests.

use std::{fmt, sync::Arc};

use open_feature::EvaluationContext;
use serde_json::{Map, Value};

use crate::{
    error::ConfigError,
    flags::flag_set::object,
    provider::{
        flags::ReadLog,
        in_memory::{InMemory, TargetedValue},
        provider::FlipswitchProvider,
    },
    request::{overrides::SignedOverrides, visitor::cookie_of},
};

pub use crate::provider::flags::FlagReads;

/// Returns the name and value of a [visitor cookie](crate::integration::Anonymous::cookie), for the `Cookie` header of a request
/// in a test. The visitor's targeting key is `anonymous-` followed by the number in 32 hexadecimal digits.
///
/// The cookie has its default name. The keys of [`TestFlags`] and [`in_memory`](FlipswitchProvider::in_memory) providers are
/// random, but the same throughout the process.
///
/// ```
/// use flipswitch::testing::{TestFlags, visitor_cookie};
///
/// let flags = TestFlags::new(flipswitch::serde_json::json!({}));
/// let cookie = visitor_cookie(&flags.provider(), 7);
/// assert!(cookie.starts_with("__Host-flipswitch-anonymous=00000000000000000000000000000007."));
/// ```
#[must_use]
pub fn visitor_cookie(provider: &FlipswitchProvider, number: u128) -> String {
    cookie_of(provider, number)
}

/// Returns the name and value of a cookie that overrides flags, for the `Cookie` header of a request in a test. `key` is the key
/// of the application's [`SignedOverrides`], which must allow the flags.
///
/// ```
/// use flipswitch::{serde_json::json, testing::override_cookie};
///
/// # fn main() -> Result<(), flipswitch::ConfigError> {
/// let cookie = override_cookie("the key of the application", json!({"new-checkout": true}))?;
/// assert!(cookie.starts_with("__Host-flipswitch-overrides="));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// A [`ConfigError::Overrides`] if the key is too short, or the values cannot be sent.
pub fn override_cookie(key: impl AsRef<[u8]>, values: Value) -> Result<String, ConfigError> {
    SignedOverrides::new(key).mint(values).cookie()
}

/// Flag values in memory, and a provider that returns them.
///
/// ```
/// use flipswitch::{Context, serde_json::json, testing::TestFlags};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let flags = TestFlags::new(json!({"new-checkout": false, "max-items": 10}));
/// flags.set_when("max-items", 100, |context| context.targeting_key.as_deref() == Some("alice"));
///
/// // The tested code gets `flags.provider()`.
/// let alice = Context::user("alice");
/// assert_eq!(flags.provider().flags(&alice).await.int("max-items", 1), 100);
/// assert!(!flags.provider().flags(&alice).await.bool("new-checkout", true));
///
/// flags.set("new-checkout", true);
/// assert!(flags.provider().flags(&alice).await.bool("new-checkout", false));
///
/// let reads = flags.reads("new-checkout");
/// assert_eq!(reads.count, 2);
/// assert_eq!(reads.contexts[0].targeting_key.as_deref(), Some("alice"));
/// # }
/// ```
#[derive(Clone)]
pub struct TestFlags {
    in_memory: Arc<InMemory>,
    reads: Arc<ReadLog>,
    provider: FlipswitchProvider,
}

impl TestFlags {
    /// Creates flags from a JSON object of flag keys and values, which apply to every context.
    ///
    /// # Panics
    ///
    /// If `flags` is not a JSON object.
    #[must_use]
    #[track_caller]
    pub fn new(flags: Value) -> Self {
        // A `match`, because a closure would not report the caller.
        let values = match object(flags) {
            Ok(values) => values,
            Err(error) => panic!("{error}"),
        };
        let reads = Arc::new(ReadLog::default());
        let in_memory = Arc::new(InMemory::new(values, Some(Arc::clone(&reads))));
        let provider = FlipswitchProvider::with_in_memory(Arc::clone(&in_memory));
        Self { in_memory, reads, provider }
    }

    /// Returns the provider of these flags. Each call returns a handle to the same provider.
    #[must_use]
    pub fn provider(&self) -> FlipswitchProvider {
        self.provider.clone()
    }

    /// Sets a flag for every context, and replaces all its previous values. Listeners are notified.
    pub fn set(&self, key: impl Into<String>, value: impl Into<Value>) {
        let key = key.into();
        self.in_memory.set(key.clone(), value.into());
        self.provider.publish_change(key);
    }

    /// Sets a flag for the contexts for which a predicate returns `true`. If several values apply to a context, the one that was
    /// set last is used. Listeners are notified. The predicate receives the context as it is sent: dates are strings, and
    /// attributes that cannot be sent are missing.
    pub fn set_when(
        &self,
        key: impl Into<String>,
        value: impl Into<Value>,
        applies: impl Fn(&EvaluationContext) -> bool + Send + Sync + 'static,
    ) {
        let key = key.into();
        let applies = Box::new(applies);
        self.in_memory.set_targeted(TargetedValue { key: key.clone(), value: value.into(), applies });
        self.provider.publish_change(key);
    }

    /// Removes a flag, so reads return the default passed to the call. Listeners are notified.
    pub fn remove(&self, key: &str) {
        self.in_memory.remove(key);
        self.provider.publish_change(key.to_owned());
    }

    /// Returns the reads of a flag so far, whether through [`Flags`](crate::Flags), extractors, gates or OpenFeature.
    ///
    /// Includes neither reads of all flags together ([`iter`](crate::Flags::iter), [`to_json`](crate::Flags::to_json)) nor reads
    /// for a context whose targeting key cannot be sent.
    #[must_use]
    pub fn reads(&self, key: &str) -> FlagReads {
        self.reads.reads(key)
    }
}

impl fmt::Debug for TestFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestFlags").field("provider", &self.provider).finish_non_exhaustive()
    }
}

/// Returns every combination of the values that flags can have.
///
/// For `{"a": [false, true], "b": ["x", "y"], "c": 1}`, these are the four objects from `{"a": false, "b": "x", "c": 1}`
/// to `{"a": true, "b": "y", "c": 1}`. If a value is not a list, it is the only choice. For a flag whose value is a list,
/// pass a list of lists.
///
/// ```
/// use flipswitch::{Context, FlipswitchProvider, serde_json::json, testing::combinations};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// for flags in combinations(json!({"new-checkout": [false, true], "theme": ["light", "dark"]})) {
///     let provider = FlipswitchProvider::in_memory(flags.clone());
///     let flags_of_all = provider.flags(Context::anonymous()).await;
///     assert_eq!(flags_of_all.to_json(), flags, "with {flags}");
/// }
/// # }
/// ```
///
/// # Panics
///
/// If `flags` is not a JSON object, if a list is empty (the test would not run at all), or if there are more combinations than a
/// `usize` can count.
#[track_caller]
pub fn combinations(flags: Value) -> impl Iterator<Item = Value> {
    // A `match`, because a closure would not report the caller.
    let flags = match object(flags) {
        Ok(flags) => flags,
        Err(error) => panic!("{error}"),
    };
    let choices: Vec<(String, Vec<Value>)> = flags
        .into_iter()
        .map(|(key, values)| match values {
            Value::Array(values) => (key, values),
            value => (key, vec![value]),
        })
        .collect();
    for (key, values) in &choices {
        assert!(!values.is_empty(), "flag {key:?} has no value to choose from, so there is no combination");
    }
    let all = choices.iter().try_fold(1_usize, |all, (_, values)| all.checked_mul(values.len()));
    let Some(all) = all else { panic!("there are more combinations of these flags than can be counted") };
    (0..all).map(move |number| {
        // The last flag changes fastest, like the last digit of a number.
        let mut rest = number;
        let chosen = choices.iter().rev().map(|(key, values)| {
            let value = values[rest % values.len()].clone();
            rest /= values.len();
            (key.clone(), value)
        });
        Value::Object(chosen.collect::<Map<_, _>>())
    })
}
