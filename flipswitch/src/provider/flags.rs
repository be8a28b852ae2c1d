//! The entry that a caller reads.

use std::{fmt, sync::Arc};

use open_feature::EvaluationContext;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{
    Error, FlagDef, FlagError, FlagEvaluation, FlagType,
    cache::entry::CacheEntry,
    context::canonical::{self as context, CanonicalContext},
    flags::flag_set::FlagSet,
    provider::in_memory::Log,
    wire::ofrep,
};

/// All flags of one context, from one answer of the service.
///
/// Reading a flag is a search in memory: nothing is requested, locked or, for booleans, numbers and `&str`, allocated.
/// All reads of one `Flags` agree with each other, whatever changes meanwhile; take a new one for each request. A clone
/// shares the answer.
///
/// Reading never fails. A flag that is unknown, has another type or no value gives the caller's default;
/// [`evaluation`](Self::evaluation) tells why.
///
/// ```
/// # use flipswitch::{FlipswitchProvider, open_feature::EvaluationContext, serde_json::json};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let provider = FlipswitchProvider::in_memory(json!({"dark-mode": true, "theme": "blue", "limit": 10}));
/// let flags = provider.flags(&EvaluationContext::default().with_targeting_key("user-123")).await;
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
    /// An answer that is as good as new.
    Fresh(Arc<CacheEntry>),
    /// An answer that may be out of date, and why, if a request failed.
    Stale(Arc<CacheEntry>, Option<Arc<Error>>),
    /// No answer of the service.
    Absent(Arc<Absent>),
    /// Values of a test, which keeps a record.
    Recorded(Arc<Recorded>),
}

struct Recorded {
    entry: Arc<CacheEntry>,
    context: EvaluationContext,
    log: Arc<Log>,
}

struct Absent {
    error: Arc<Error>,
    context: Subject,
    /// The operator's values.
    bootstrap: Option<Arc<FlagSet>>,
}

enum Subject {
    Canonical(CanonicalContext),
    /// A context that has no canonical form, because it is invalid.
    Raw(EvaluationContext),
}

impl Flags {
    pub(crate) fn fresh(entry: Arc<CacheEntry>) -> Self {
        Self(Source::Fresh(entry))
    }

    pub(crate) fn stale(entry: Arc<CacheEntry>, error: Option<Arc<Error>>) -> Self {
        Self(Source::Stale(entry, error))
    }

    pub(crate) fn absent(error: Arc<Error>, context: CanonicalContext) -> Self {
        Self(Source::Absent(Arc::new(Absent { error, context: Subject::Canonical(context), bootstrap: None })))
    }

    /// The operator's values, until the service has any.
    pub(crate) fn bootstrapped(bootstrap: Arc<FlagSet>, error: Arc<Error>, context: CanonicalContext) -> Self {
        let context = Subject::Canonical(context);
        Self(Source::Absent(Arc::new(Absent { error, context, bootstrap: Some(bootstrap) })))
    }

    /// No values for a context that cannot be sent.
    pub(crate) fn refused(error: Error, context: EvaluationContext) -> Self {
        let (error, context) = (Arc::new(error), Subject::Raw(context));
        Self(Source::Absent(Arc::new(Absent { error, context, bootstrap: None })))
    }

    /// Values of a test.
    pub(crate) fn recorded(entry: Arc<CacheEntry>, context: EvaluationContext, log: Arc<Log>) -> Self {
        Self(Source::Recorded(Arc::new(Recorded { entry, context, log })))
    }

    /// Notes that a flag is read, if somebody wants to know.
    fn note(&self, key: &str) {
        if let Source::Recorded(recorded) = &self.0 {
            recorded.log.read(key, &recorded.context);
        }
    }

    fn flag_set(&self) -> Option<&FlagSet> {
        match &self.0 {
            Source::Recorded(recorded) => Some(&recorded.entry.flag_set),
            Source::Fresh(entry) | Source::Stale(entry, _) => Some(&entry.flag_set),
            Source::Absent(absent) => absent.bootstrap.as_deref(),
        }
    }

    /// Returns the boolean flag `key`, or `default`.
    #[must_use]
    pub fn bool(&self, key: &str, default: bool) -> bool {
        self.value(key, FlagType::Boolean, FlagEvaluation::as_bool, default)
    }

    /// Returns the flag `key` as a whole number, or `default`. `42.0` is the whole number 42; `3.14` is none.
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

    /// Returns the flag `key` as anything that its JSON value can be read as, or `default`.
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

    /// Returns everything that is known about the flag `key`.
    ///
    /// A flag whose value the service leaves to the code is no error: its value is null, its reason says why.
    ///
    /// # Errors
    ///
    /// [`FlagError::NotFound`] if the answer does not have the flag, [`FlagError::Evaluation`] if the service could not
    /// evaluate it, [`FlagError::Unavailable`] if there is no answer.
    pub fn evaluation(&self, key: &str) -> Result<&FlagEvaluation, FlagError> {
        self.note(key);
        self.look_up(key)
    }

    fn look_up(&self, key: &str) -> Result<&FlagEvaluation, FlagError> {
        match (self.flag_set(), &self.0) {
            (Some(flags), _) => flags.get(key),
            (None, Source::Absent(absent)) => Err(FlagError::Unavailable(Error::clone(&absent.error))),
            (None, _) => Err(FlagError::NotFound),
        }
    }

    /// Returns all evaluated flags, sorted by key. Flags that the service could not evaluate are not among them.
    pub fn iter(&self) -> impl Iterator<Item = &FlagEvaluation> {
        self.flag_set().into_iter().flat_map(FlagSet::iter)
    }

    /// Returns the context that the flags were evaluated for, in the form in which it goes over the wire: dates are
    /// RFC 3339 strings, structures [`serde_json::Value`]s.
    #[must_use]
    pub fn context(&self) -> EvaluationContext {
        match &self.0 {
            Source::Fresh(entry) | Source::Stale(entry, _) => context::decode(entry.context()),
            Source::Recorded(recorded) => context::decode(recorded.entry.context()),
            Source::Absent(absent) => match &absent.context {
                Subject::Canonical(context) => context::decode(context.as_bytes()),
                Subject::Raw(context) => context.clone(),
            },
        }
    }

    /// Returns whether the values may be out of date: the service could not be asked again in time.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        match &self.0 {
            Source::Fresh(_) | Source::Recorded(_) => false,
            Source::Stale(..) => true,
            Source::Absent(absent) => absent.bootstrap.is_some(),
        }
    }

    /// Returns why there is no answer, or none newer than this one.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        match &self.0 {
            Source::Fresh(_) | Source::Recorded(_) => None,
            Source::Stale(_, error) => error.as_deref(),
            Source::Absent(absent) => Some(&absent.error),
        }
    }

    /// Returns all values as one JSON object, key → value.
    #[must_use]
    pub fn to_json(&self) -> Value {
        Value::Object(self.iter().map(|flag| (flag.key.clone(), flag.value.clone())).collect::<Map<_, _>>())
    }

    /// Returns all values as one JSON object that may stand inside a `<script>` of an HTML page: whatever a flag holds, it
    /// ends no element and begins no comment.
    ///
    /// ```
    /// # use flipswitch::{FlipswitchProvider, open_feature::EvaluationContext, serde_json::json};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let provider = FlipswitchProvider::in_memory(json!({"banner": "</script>"}));
    /// let flags = provider.flags(&EvaluationContext::default()).await;
    /// let page = format!("<script>const flags = {};</script>", flags.to_script_json());
    /// assert_eq!(page, r#"<script>const flags = {"banner":"\u003c/script\u003e"};</script>"#);
    /// # }
    /// ```
    #[must_use]
    pub fn to_script_json(&self) -> String {
        let json = self.to_json().to_string();
        // All of these stand in strings only, where an escape means the same. The last two end lines in older scripts.
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

    /// Whether there is an answer at all.
    pub(crate) fn known(&self) -> Result<(), Error> {
        match &self.0 {
            Source::Absent(absent) if absent.bootstrap.is_none() => Err(Error::clone(&absent.error)),
            _ => Ok(()),
        }
    }

    /// The evaluation of a flag, `None` only if the answer does not have it.
    pub(crate) fn evaluation_if_any(&self, key: &str) -> Result<Option<FlagEvaluation>, Error> {
        match self.evaluation(key) {
            Ok(flag) => Ok(Some(flag.clone())),
            Err(FlagError::Evaluation { code, details }) => Err(Error::Evaluation { code, details }),
            Err(FlagError::Unavailable(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Reads a flag as one type, or takes the default; nothing is made of why.
    fn value<'a, T>(
        &'a self,
        key: &str,
        expected: FlagType,
        read: impl FnOnce(&'a FlagEvaluation) -> Option<T>,
        default: T,
    ) -> T {
        let flag = self.find(key);
        let value = flag.and_then(read);
        if value.is_none() {
            self.tell_default(key, flag, expected);
        }
        value.unwrap_or(default)
    }

    /// Finds a flag that the service could evaluate.
    pub(crate) fn find(&self, key: &str) -> Option<&FlagEvaluation> {
        self.note(key);
        self.flag_set()?.evaluated(key)
    }

    /// Tells that a default is used, and why.
    fn tell_default(&self, key: &str, flag: Option<&FlagEvaluation>, expected: FlagType) {
        match flag {
            Some(flag) => {
                let found = FlagType::of_value(&flag.value);
                tracing::debug!(target: "flipswitch", key, %expected, %found, "the default is used");
            }
            None => tracing::debug!(target: "flipswitch", key, "the default is used: there is no value of this flag"),
        }
    }

    /// Why a flag cannot be read as one type.
    #[cold]
    pub(crate) fn why_not(&self, key: &str, expected: FlagType) -> FlagError {
        let error = self.look_up(key).map_or_else(|error| error, |flag| flag.mismatch(expected));
        tracing::debug!(target: "flipswitch", key, %error, "the default is used");
        error
    }

    /// Reads a flag as anything, if it has a value.
    fn read_as<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        let Some(flag) = self.find(key).filter(|flag| !flag.value.is_null()) else {
            tracing::debug!(target: "flipswitch", key, "the default is used: there is no value of this flag");
            return None;
        };
        flag.read_as()
            .inspect_err(|error| {
                let error = ofrep::printable(&error.to_string());
                tracing::debug!(target: "flipswitch", key, error, "not of the type asked for; the default is used");
            })
            .ok()
    }
}

/// Shows how many flags there are and how good they are; never the context, which may hold personal data.
impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flags")
            .field("flags", &self.iter().count())
            .field("stale", &self.is_stale())
            .field("error", &self.error())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn flags(items: &Value) -> Flags {
        let body = json!({"flags": items}).to_string();
        let answer = ofrep::bulk(body.as_bytes(), &crate::flags::intern::Interner::default()).unwrap();
        Flags::fresh(Arc::new(CacheEntry::timeless(&CanonicalContext::start_up(), answer)))
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
    fn objects_are_read_as_any_type_that_fits() {
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
        let flags = Flags::absent(Arc::new(Error::Timeout), CanonicalContext::new(&context).unwrap());
        assert!(!format!("{flags:?}").contains("secret-user"));
        assert_eq!(flags.context(), context);
    }

    #[test]
    fn values_in_a_script_are_the_same_and_end_nothing() {
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
