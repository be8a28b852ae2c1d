//! The flags for one context, as a caller reads them.

use std::{collections::HashMap, fmt, sync::Arc, time::Instant};

use open_feature::EvaluationContext;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{
    cache::entry::CacheEntry,
    context::canonical::{self, CanonicalContext},
    error::{Error, FlagError},
    evaluator::evaluator::EvaluationOutcome,
    flag_type::FlagType,
    flags::{
        declare::FlagDef,
        evaluation::FlagEvaluation,
        flag_set::{FlagSet, Item, Outcome},
        override_file::OVERRIDE,
        usage::UsageLog,
    },
    provider::explanation::Explanation,
    sanitize::printable,
};

/// All flags for one context, evaluated together.
///
/// Reading a flag is a lookup in memory: nothing is requested or locked, and for booleans, numbers and `&str` nothing is
/// allocated. All reads of one `Flags` are consistent, even if flags change in the meantime. Evaluate a new one for each
/// request. A clone shares the flags.
///
/// Reading never fails. For a flag that is unknown, has a different type or has no value, a read returns the default passed to
/// the call; [`evaluation`](Self::evaluation) returns the reason.
///
/// ```
/// use flipswitch::{Context, FlipswitchProvider, serde_json::json};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let provider = FlipswitchProvider::in_memory(json!({"dark-mode": true, "theme": "blue", "limit": 10}));
/// let flags = provider.flags(Context::user("user-123")).await;
/// assert!(flags.bool("dark-mode", false));
/// assert_eq!(flags.string("theme", "light"), "blue");
/// assert_eq!(flags.int("limit", 3), 10);
/// assert_eq!(flags.int("unknown", 3), 3);
/// # }
/// ```
#[derive(Clone)]
pub struct Flags(Source);

#[derive(Clone)]
enum Source {
    Fresh(Arc<CacheEntry>),
    /// Flags that may be out of date, and the error of the request for newer ones, if it failed.
    Stale(Arc<CacheEntry>, Option<Arc<Error>>),
    /// No flags from the service.
    Unavailable(Arc<Unavailable>),
    /// Flags with overridden values, or flags whose reads are recorded. Boxed as a whole, because they are rare.
    Special(Arc<Special>),
}

#[derive(Clone)]
struct Special {
    /// The flags without overridden values. This `Flags` is never a `Special` itself.
    flags: Flags,
    /// The flags with overridden values, and the keys of the overridden flags.
    overridden: Option<Arc<(FlagSet, Vec<String>)>>,
    recorders: Vec<Arc<dyn Recorder>>,
}

impl Special {
    #[cold]
    fn record(&self, read: &FlagRead<'_>) {
        self.recorders.iter().for_each(|recorder| recorder.read(read));
    }
}

/// Where the value of a flag comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FlagSource {
    /// The flag service.
    Service,
    /// The flag service, but the value may be out of date.
    Stale,
    /// The [overrides](crate::SignedOverrides) in the browser.
    Override,
    /// The [override file](crate::FlipswitchProviderBuilder::override_file).
    File,
    /// The [bootstrap](crate::FlipswitchProviderBuilder::bootstrap) values.
    Bootstrap,
    /// There is no value, so the default passed to the call is used.
    Default,
}

/// Records reads of flags.
pub(crate) trait Recorder: Send + Sync {
    /// Records a read.
    fn read(&self, read: &FlagRead<'_>);
}

/// A read of a flag.
pub(crate) struct FlagRead<'a> {
    pub(crate) flags: &'a Flags,
    pub(crate) key: &'a str,
    /// The default passed to the call, if it is known.
    pub(crate) default: Option<PlainValue<'a>>,
    /// Whether the caller gets the value of the flag instead of the default.
    pub(crate) is_used: bool,
}

/// A value that is neither a structure nor a list.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PlainValue<'a> {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
}

macro_rules! plain_values {
    ($($name:ident($plain:ty)),*) => {$(
        impl<'a> From<$plain> for PlainValue<'a> {
            fn from(value: $plain) -> Self {
                Self::$name(value)
            }
        }
    )*};
}

plain_values!(Bool(bool), Int(i64), Float(f64), Text(&'a str));

impl fmt::Display for PlainValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Int(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
        }
    }
}

/// Values that replace the values of some flags.
#[derive(Debug)]
pub(crate) struct Overlay(FlagSet);

impl Overlay {
    pub(crate) fn new(values: Map<String, Value>) -> Self {
        Self(FlagSet::of_values(values, OVERRIDE))
    }
}

struct Unavailable {
    error: Arc<Error>,
    context: CanonicalContext,
    bootstrap: Option<Arc<FlagSet>>,
    usage: Arc<UsageLog>,
}

impl Flags {
    pub(crate) fn fresh(entry: Arc<CacheEntry>) -> Self {
        Self(Source::Fresh(entry))
    }

    /// Creates the flags for this context from an outcome.
    pub(crate) fn new(outcome: EvaluationOutcome, context: CanonicalContext, usage: &Arc<UsageLog>) -> Self {
        Self(match outcome {
            EvaluationOutcome::Fresh(entry) => Source::Fresh(entry),
            EvaluationOutcome::Stale(entry, error) => Source::Stale(entry, error),
            EvaluationOutcome::Unavailable(error, bootstrap) => {
                Source::Unavailable(Arc::new(Unavailable { error, context, bootstrap, usage: Arc::clone(usage) }))
            }
        })
    }

    /// Creates an empty `Flags` for a context that cannot be sent.
    pub(crate) fn invalid(error: Error, context: CanonicalContext, usage: &Arc<UsageLog>) -> Self {
        Self::new(EvaluationOutcome::Unavailable(Arc::new(error), None), context, usage)
    }

    /// Creates flags whose reads are recorded.
    pub(crate) fn recorded(self, recorder: Arc<dyn Recorder>) -> Self {
        let Special { flags, overridden, mut recorders } = self.into_special();
        recorders.push(recorder);
        Self(Source::Special(Arc::new(Special { flags, overridden, recorders })))
    }

    fn into_special(self) -> Special {
        match &self.0 {
            Source::Special(special) => Special::clone(special),
            _ => Special { flags: self, overridden: None, recorders: Vec::new() },
        }
    }

    /// Replaces the values of flags. Returns the flags, and whether a value was left out because its flag has a different type.
    pub(crate) fn overridden(self, Overlay(overlay): &Overlay) -> (Self, bool) {
        let known = self.flag_set();
        let fits = |item: &&Arc<Item>| {
            let (Outcome::Evaluated(new), Some(old)) = (&item.outcome, known.and_then(|set| set.evaluated(&item.key)))
            else {
                // The service does not have the flag, or has no value for it: any type may be right.
                return true;
            };
            new.flag_type.fits(old.flag_type)
        };
        let items: Vec<_> = overlay.items().iter().filter(fits).cloned().collect();
        let has_misfits = items.len() < overlay.items().len();
        if items.is_empty() {
            return (self, has_misfits);
        }
        let keys = items.iter().map(|item| item.key.clone()).collect();
        // If two items have the same key, the later one takes precedence.
        let base = known.map(FlagSet::items).unwrap_or_default();
        let set = FlagSet::new(base.iter().cloned().chain(items).collect());
        let Special { flags, recorders, .. } = self.into_special();
        let overridden = Some(Arc::new((set, keys)));
        (Self(Source::Special(Arc::new(Special { flags, overridden, recorders }))), has_misfits)
    }

    /// Returns whether the request's overrides replace the value of the flag.
    fn is_overridden(&self, key: &str) -> bool {
        match &self.0 {
            Source::Special(special) => {
                special.overridden.as_ref().is_some_and(|overridden| overridden.1.iter().any(|known| known == key))
            }
            _ => false,
        }
    }

    /// Returns the evaluation of a flag, if the service could evaluate it, and its value as one type. Counts as a read.
    #[inline]
    pub(crate) fn read_with<'a, T>(
        &'a self,
        key: &str,
        default: Option<PlainValue<'_>>,
        read: impl FnOnce(&'a FlagEvaluation) -> Option<T>,
    ) -> (Option<&'a FlagEvaluation>, Option<T>) {
        let flag = match &self.0 {
            Source::Fresh(entry) | Source::Stale(entry, _) => {
                entry.flag_set.read(key).and_then(|item| item.evaluated())
            }
            Source::Unavailable(_) | Source::Special(_) => {
                self.note_read(key);
                self.evaluated(key)
            }
        };
        let value = flag.and_then(read);
        if let Source::Special(special) = &self.0 {
            special.record(&FlagRead { flags: self, key, default, is_used: value.is_some() });
        }
        (flag, value)
    }

    /// Records in the usage log that a flag was read.
    #[cold]
    fn note_read(&self, key: &str) {
        match &self.0 {
            Source::Fresh(entry) | Source::Stale(entry, _) => drop(entry.flag_set.read(key)),
            Source::Unavailable(unavailable) => unavailable.usage.record_unlisted(key),
            // Reads of overridden flags are recorded like those of other flags.
            Source::Special(special) => special.flags.note_read(key),
        }
    }

    /// Returns the flags as the provider has them, without overrides.
    fn plain(&self) -> &Self {
        match &self.0 {
            Source::Special(special) => &special.flags,
            _ => self,
        }
    }

    #[inline]
    fn flag_set(&self) -> Option<&FlagSet> {
        match &self.0 {
            Source::Special(special) => match &special.overridden {
                Some(overridden) => Some(&overridden.0),
                None => special.flags.flag_set(),
            },
            Source::Fresh(entry) | Source::Stale(entry, _) => Some(&entry.flag_set),
            Source::Unavailable(unavailable) => unavailable.bootstrap.as_deref(),
        }
    }

    /// Returns the boolean flag `key`, or `default`.
    #[must_use]
    pub fn bool(&self, key: &str, default: bool) -> bool {
        self.value(key, FlagType::Boolean, FlagEvaluation::as_bool, default)
    }

    /// Returns the flag `key` as a whole number, or `default`. A value of `42.0` is read as 42; for a value of `3.14`, the
    /// default is returned.
    #[must_use]
    pub fn int(&self, key: &str, default: i64) -> i64 {
        self.value(key, FlagType::Integer, FlagEvaluation::as_i64, default)
    }

    /// Returns the flag `key` as a number, or `default`.
    #[must_use]
    pub fn float(&self, key: &str, default: f64) -> f64 {
        self.value(key, FlagType::Number, FlagEvaluation::as_f64, default)
    }

    /// Returns the string flag `key`, or `default`.
    #[must_use]
    pub fn string<'a>(&'a self, key: &str, default: &'a str) -> &'a str {
        self.value(key, FlagType::String, FlagEvaluation::as_str, default)
    }

    /// Returns the flag `key` deserialised from its JSON value, or `default`.
    ///
    /// ```
    /// use flipswitch::{Context, FlipswitchProvider, serde_json::json};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// #[derive(serde::Deserialize)]
    /// struct Limits {
    ///     items: u32,
    ///     coupons: u32,
    /// }
    ///
    /// let provider = FlipswitchProvider::in_memory(json!({"limits": {"items": 20, "coupons": 2}}));
    /// let flags = provider.flags(Context::anonymous()).await;
    /// let limits = flags.object("limits", Limits { items: 10, coupons: 1 });
    /// assert_eq!((limits.items, limits.coupons), (20, 2));
    /// # }
    /// ```
    #[must_use]
    pub fn object<T: DeserializeOwned>(&self, key: &str, default: T) -> T {
        self.read_as(key).unwrap_or(default)
    }

    /// Returns a flag that was declared with [`flags!`](crate::flags), or its default.
    #[must_use]
    pub fn get<F: FlagDef>(&self, _: F) -> F::Value {
        self.read::<F>()
    }

    pub(crate) fn read<F: FlagDef>(&self) -> F::Value {
        self.read_as(F::KEY).unwrap_or_else(F::default_value)
    }

    /// Returns the evaluation of the flag `key`: value, type, reason, variant and metadata.
    ///
    /// If the service defers to the default in the code, that is not an error: the value is null, and the reason says why.
    ///
    /// ```
    /// use flipswitch::{Context, FlagError, FlipswitchProvider, serde_json::json};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), FlagError> {
    /// let provider = FlipswitchProvider::in_memory(json!({"theme": "dark"}));
    /// let flags = provider.flags(Context::anonymous()).await;
    /// let theme = flags.evaluation("theme")?;
    /// assert_eq!((theme.as_str(), theme.reason.as_str()), (Some("dark"), "STATIC"));
    /// assert!(matches!(flags.evaluation("unknown"), Err(FlagError::NotFound)));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`FlagError::NotFound`] if the service does not have the flag, [`FlagError::Evaluation`] if it could not evaluate it, and
    /// [`FlagError::Unavailable`] if there are no flags for the context.
    pub fn evaluation(&self, key: &str) -> Result<&FlagEvaluation, FlagError> {
        self.find(key);
        self.look_up(key)
    }

    /// Returns the evaluation of a flag. Does not count as a read.
    pub(crate) fn look_up(&self, key: &str) -> Result<&FlagEvaluation, FlagError> {
        match (self.flag_set(), &self.0) {
            // There may be no flags other than the overridden ones.
            (_, Source::Special(special)) if !self.is_overridden(key) => special.flags.look_up(key),
            (Some(flags), _) => flags.get(key),
            (None, Source::Unavailable(unavailable)) => Err(FlagError::Unavailable(Error::clone(&unavailable.error))),
            (None, _) => Err(FlagError::NotFound),
        }
    }

    /// Explains why a flag has its value, as text for support pages and logs. Does not count as a read.
    ///
    /// ```
    /// use flipswitch::{Context, FlipswitchProvider, serde_json::json};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let provider = FlipswitchProvider::in_memory(json!({"new-checkout": true}));
    /// let flags = provider.flags(Context::user("alice")).await;
    /// let expected = "\"new-chekout\" uses the default in code: the flag service does not have this flag; did you \
    ///                 mean \"new-checkout\"?";
    /// assert_eq!(flags.why("new-chekout").to_string(), expected);
    /// # }
    /// ```
    #[must_use]
    pub fn why(&self, key: &str) -> Explanation {
        let stale = if self.is_flag_stale(key) { self.error() } else { None };
        let known = self.items().iter().map(|item| item.key.as_str());
        Explanation::new(key, self.look_up(key), self.source_of(key), stale, known)
    }

    /// Returns the flags whose values are overridden by [`SignedOverrides`](crate::SignedOverrides) or an
    /// [`override_file`](crate::FlipswitchProviderBuilder::override_file), so that a page can show them.
    pub fn overrides(&self) -> impl Iterator<Item = &FlagEvaluation> {
        self.iter().filter(|flag| flag.reason == OVERRIDE)
    }

    /// Returns all evaluated flags, sorted by key. Flags that the service could not evaluate are left out.
    pub fn iter(&self) -> impl Iterator<Item = &FlagEvaluation> {
        self.flag_set().into_iter().flat_map(FlagSet::iter)
    }

    /// Returns the context that the flags were evaluated for, as it was sent: dates are RFC 3339 strings, structures are
    /// [`serde_json::Value`]s, and attributes that cannot be sent are missing.
    #[must_use]
    pub fn context(&self) -> EvaluationContext {
        match &self.0 {
            Source::Fresh(entry) | Source::Stale(entry, _) => canonical::decode(entry.context()),
            Source::Special(special) => special.flags.context(),
            Source::Unavailable(unavailable) => canonical::decode(unavailable.context.as_bytes()),
        }
    }

    /// Returns whether the flags may be out of date, because there was no current response from the service.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        match &self.0 {
            Source::Fresh(_) => false,
            Source::Special(special) => special.flags.is_stale(),
            Source::Stale(..) => true,
            Source::Unavailable(unavailable) => unavailable.bootstrap.is_some(),
        }
    }

    /// Returns whether one flag may be out of date: all of them [may be](Self::is_stale), or the service could not evaluate
    /// this one, which keeps its last value.
    #[must_use]
    pub fn is_flag_stale(&self, key: &str) -> bool {
        match &self.0 {
            Source::Fresh(entry) => entry.failing().is_some_and(|failing| failing.kept_since(key).is_some()),
            Source::Special(special) => !self.is_overridden(key) && special.flags.is_flag_stale(key),
            _ => self.is_stale(),
        }
    }

    /// Returns the error that explains why there are no flags, or no newer ones.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        match &self.0 {
            Source::Fresh(_) => None,
            Source::Special(special) => special.flags.error(),
            Source::Stale(_, error) => error.as_deref(),
            Source::Unavailable(unavailable) => Some(&unavailable.error),
        }
    }

    /// Returns all flags as one JSON object of keys and values.
    #[must_use]
    pub fn to_json(&self) -> Value {
        Value::Object(self.iter().map(|flag| (flag.key.clone(), flag.value.clone())).collect::<Map<_, _>>())
    }

    /// Returns all flags as one JSON object that is safe inside a `<script>` element of an HTML page: no value can end the
    /// element or begin a comment.
    ///
    /// ```
    /// use flipswitch::{Context, FlipswitchProvider, serde_json::json};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let provider = FlipswitchProvider::in_memory(json!({"banner": "</script>"}));
    /// let flags = provider.flags(Context::anonymous()).await;
    /// let page = format!("<script>const flags = {};</script>", flags.to_script_json());
    /// assert_eq!(page, r#"<script>const flags = {"banner":"\u003c/script\u003e"};</script>"#);
    /// # }
    /// ```
    #[must_use]
    pub fn to_script_json(&self) -> String {
        safe_in_script(&self.to_json().to_string())
    }

    /// Returns the items of all flags, sorted by key. Includes those that the service could not evaluate.
    pub(crate) fn items(&self) -> &[Arc<Item>] {
        self.flag_set().map(FlagSet::items).unwrap_or_default()
    }

    /// Returns the item of a flag, if there is one. Does not count as a read.
    pub(crate) fn item(&self, key: &str) -> Option<&Item> {
        self.flag_set()?.item(key).map(Arc::as_ref)
    }

    /// Calls a function with the canonical context.
    pub(crate) fn with_context<T>(&self, call: impl FnOnce(&[u8]) -> T) -> T {
        match &self.plain().0 {
            Source::Fresh(entry) | Source::Stale(entry, _) => call(entry.context()),
            Source::Unavailable(unavailable) => call(unavailable.context.as_bytes()),
            // Plain flags are not special.
            Source::Special(_) => call(&[]),
        }
    }

    /// Returns whether the flags for which `concerns` returns `true` stay up to date until a later change.
    pub(crate) fn are_settled(&self, concerns: impl Fn(&str) -> bool) -> bool {
        let Source::Fresh(entry) = &self.plain().0 else { return false };
        entry.is_settled() && entry.failing().is_none_or(|failing| failing.is_for_others(concerns))
    }

    /// Returns the time at which the flags were requested.
    pub(crate) fn requested_at(&self) -> Option<Instant> {
        match &self.plain().0 {
            Source::Fresh(entry) | Source::Stale(entry, _) => Some(entry.sent_at),
            _ => None,
        }
    }

    /// Returns an error if there are neither flags nor bootstrap values, and no override of the flag `key`.
    pub(crate) fn available_for(&self, key: Option<&str>) -> Result<(), Error> {
        if key.is_some_and(|key| self.is_overridden(key)) { Ok(()) } else { self.available() }
    }

    /// Returns an error if there are neither flags nor bootstrap values.
    pub(crate) fn available(&self) -> Result<(), Error> {
        match &self.plain().0 {
            Source::Unavailable(unavailable) if unavailable.bootstrap.is_none() => {
                Err(Error::clone(&unavailable.error))
            }
            _ => Ok(()),
        }
    }

    /// Returns the evaluation of a flag, or `None` if the service does not have it.
    pub(crate) fn evaluation_if_known(&self, key: &str) -> Result<Option<FlagEvaluation>, Error> {
        match self.evaluation(key) {
            Ok(flag) => Ok(Some(flag.clone())),
            Err(FlagError::Evaluation { code, details }) => Err(Error::Evaluation { code, details }),
            Err(FlagError::Unavailable(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Reads a flag as one type, or returns the default.
    #[inline]
    fn value<'a, T: Copy + Into<PlainValue<'a>>>(
        &'a self,
        key: &str,
        expected: FlagType,
        read: impl FnOnce(&'a FlagEvaluation) -> Option<T>,
        default: T,
    ) -> T {
        let (flag, value) = self.read_with(key, Some(default.into()), read);
        if value.is_none() {
            log_default(key, flag, expected);
        }
        value.unwrap_or(default)
    }

    /// Returns the evaluation of a flag, if the service could evaluate it.
    pub(crate) fn find(&self, key: &str) -> Option<&FlagEvaluation> {
        self.read_with(key, None, |_| Some(())).0
    }

    /// Returns the evaluation of a flag, if there is one. Does not count as a read.
    pub(crate) fn peek(&self, key: &str) -> Option<&FlagEvaluation> {
        self.evaluated(key)
    }

    /// Returns the source of the value of a flag, and the time since which the value has been known.
    pub(crate) fn source_of(&self, key: &str) -> (FlagSource, Option<Instant>) {
        let has_value = |flag: &FlagEvaluation| !flag.value.is_null();
        if self.is_overridden(key) {
            return (FlagSource::Override, None);
        }
        let Some(flag) = self.evaluated(key).filter(|flag| has_value(flag)) else { return (FlagSource::Default, None) };
        if flag.reason == OVERRIDE {
            return (FlagSource::File, None);
        }
        match &self.plain().0 {
            Source::Fresh(entry) => match entry.failing().and_then(|failing| failing.kept_since(key)) {
                Some(since) => (FlagSource::Stale, Some(since)),
                None => (FlagSource::Service, Some(entry.sent_at)),
            },
            Source::Stale(entry, _) => (FlagSource::Stale, Some(entry.sent_at)),
            _ => (FlagSource::Bootstrap, None),
        }
    }

    #[inline]
    fn evaluated(&self, key: &str) -> Option<&FlagEvaluation> {
        self.flag_set()?.evaluated(key)
    }

    /// Returns the error of a flag that cannot be read as one type.
    #[cold]
    pub(crate) fn read_error(&self, key: &str, expected: FlagType) -> FlagError {
        let error = self.look_up(key).map_or_else(|error| error, |flag| flag.mismatch(expected));
        tracing::debug!(target: "flipswitch", key, %error, "using the default");
        error
    }

    /// Deserialises a flag, if it has a value.
    fn read_as<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        let read = |flag: &FlagEvaluation| {
            if flag.value.is_null() {
                return None;
            }
            flag.read_as()
                .inspect_err(|error| {
                    let error = printable(&error.to_string());
                    tracing::debug!(target: "flipswitch", key, error, "using the default: the value has a different type");
                })
                .ok()
        };
        let (flag, value) = self.read_with(key, None, read);
        if flag.is_none_or(|flag| flag.value.is_null()) {
            tracing::debug!(target: "flipswitch", key, "using the default: the flag has no value");
        }
        value
    }
}

/// Escapes JSON so that it is safe inside a `<script>` element.
pub(crate) fn safe_in_script(json: &str) -> String {
    // These characters occur only in strings, where an escape is equivalent. The last two are line terminators in older versions
    // of JavaScript.
    json.chars().fold(String::with_capacity(json.len()), |mut safe, character| {
        match character {
            '<' => safe.push_str(r"\u003c"),
            '>' => safe.push_str(r"\u003e"),
            '&' => safe.push_str(r"\u0026"),
            '\u{2028}' => safe.push_str(r"\u2028"),
            '\u{2029}' => safe.push_str(r"\u2029"),
            other => safe.push(other),
        }
        safe
    })
}

/// Logs that a default is used, and the reason.
fn log_default(key: &str, flag: Option<&FlagEvaluation>, expected: FlagType) {
    match flag {
        Some(flag) => {
            let found = FlagType::of_value(&flag.value);
            tracing::debug!(target: "flipswitch", key, %expected, %found, "using the default: the value has a different type");
        }
        None => tracing::debug!(target: "flipswitch", key, "using the default: the flag has no value"),
    }
}

/// Shows the number of flags and their state. Omits the context, which may contain personal data.
impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flags")
            .field("flags", &self.iter().count())
            .field("stale", &self.is_stale())
            .field("error", &self.error())
            .finish_non_exhaustive()
    }
}

/// The recorded reads of one flag.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct FlagReads {
    /// Number of reads.
    pub count: usize,
    /// The contexts of the reads, in the order of their first reads and without repetitions. They have the form in which they are
    /// sent: dates are strings, and attributes that cannot be sent are missing.
    pub contexts: Vec<EvaluationContext>,
}

/// The recorded reads of all flags.
#[derive(Default)]
pub(crate) struct ReadLog(Mutex<HashMap<String, FlagReads>>);

impl Recorder for ReadLog {
    fn read(&self, read: &FlagRead<'_>) {
        let context = read.flags.context();
        let mut log = self.0.lock();
        let reads = log.entry(read.key.to_owned()).or_default();
        reads.count += 1;
        if !reads.contexts.contains(&context) {
            reads.contexts.push(context);
        }
    }
}

impl ReadLog {
    pub(crate) fn reads(&self, key: &str) -> FlagReads {
        self.0.lock().get(key).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{flags::intern::Interner, wire::ofrep};

    fn flags(items: &Value) -> Flags {
        let body = json!({"flags": items}).to_string();
        let flag_set = ofrep::bulk(body.as_bytes(), b"", &Interner::default()).unwrap();
        Flags::fresh(Arc::new(CacheEntry::timeless(&CanonicalContext::start_up(), flag_set)))
    }

    #[test]
    fn a_flag_of_another_type_gives_the_default() {
        let flags = flags(&json!([
            {"key": "bool", "value": true}, {"key": "int", "value": 42}, {"key": "float", "value": 2.5},
            {"key": "string", "value": "s"}, {"key": "object", "value": {"a": 1}}, {"key": "none"},
        ]));
        let expected = [
            ("bool", true, -1, -1.0, "d"),
            ("int", false, 42, 42.0, "d"),
            ("float", false, -1, 2.5, "d"),
            ("string", false, -1, -1.0, "s"),
            ("object", false, -1, -1.0, "d"),
            ("none", false, -1, -1.0, "d"),
            ("unknown", false, -1, -1.0, "d"),
        ];
        for (key, bool, int, float, string) in expected {
            assert_eq!(flags.bool(key, false), bool, "{key}");
            assert_eq!(flags.int(key, -1), int, "{key}");
            assert_eq!(flags.float(key, -1.0), float, "{key}");
            assert_eq!(flags.string(key, "d"), string, "{key}");
        }
    }

    #[test]
    fn objects_are_deserialized_as_any_type_that_fits() {
        let flags = flags(&json!([
            {"key": "object", "value": {"a": 1}}, {"key": "list", "value": [1, 2]}, {"key": "none", "value": null},
        ]));
        let default = || Map::from_iter([("d".to_owned(), json!(0))]);
        assert_eq!(flags.object("object", default())["a"], 1);
        assert_eq!(flags.object::<Vec<i64>>("list", vec![]), [1, 2]);
        assert_eq!(flags.object("list", default()), default());
        assert_eq!(flags.object::<Option<i64>>("none", Some(7)), Some(7));
    }

    #[test]
    fn the_json_view_has_every_evaluated_flag() {
        let flags = flags(&json!([
            {"key": "b", "value": [1, {"c": null}]}, {"key": "a", "value": 1.0}, {"key": "e", "errorCode": "GENERAL"},
        ]));
        assert_eq!(flags.to_json(), json!({"a": 1.0, "b": [1, {"c": null}]}));
    }

    #[test]
    fn debug_output_does_not_show_the_context() {
        let context = EvaluationContext::default().with_targeting_key("secret-user");
        let outcome = EvaluationOutcome::Unavailable(Arc::new(Error::Timeout), None);
        let flags = Flags::new(outcome, CanonicalContext::new(&context), &Arc::default());
        assert!(!format!("{flags:?}").contains("secret-user"));
        assert_eq!(flags.context(), context);
    }

    #[test]
    fn values_in_a_script_are_unchanged_and_end_nothing() {
        let values = json!([
            {"key": "</script><script>alert(1)</script>", "value": "<!-- <script> ]]> & \u{2028}\u{2029} \" \\ </SCRIPT >"},
            {"key": "nested", "value": {"<": ["&amp;", null, 1.5, "ä"]}},
        ]);
        let flags = flags(&values);
        let script = flags.to_script_json();
        assert!(!script.contains(['<', '>', '&', '\u{2028}', '\u{2029}']), "{script}");
        assert_eq!(serde_json::from_str::<Value>(&script).unwrap(), flags.to_json());
    }
}
