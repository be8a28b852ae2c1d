//! Contexts that are serialised while they are being built.

use std::{fmt, ops::Range, sync::Arc};

use open_feature::EvaluationContext;

use crate::context::{
    attribute::AttributeValue,
    canonical::{self, Canonical, EMPTY, PREFIX, SUFFIX, TARGETING_KEY},
    fields::{self, Place},
    left_out::{LeftOut, MAX_BYTES, Unsendable},
};

/// The context of an evaluation: a targeting key, which identifies the user, and attributes that rules use.
///
/// While a context is being built, it is written in the form in which it is sent, and an evaluation uses this form directly. An
/// [`EvaluationContext`](crate::EvaluationContext) must be converted first. The order of different attributes does not matter.
/// For a context that is used often, see [`prepared`](Self::prepared).
///
/// Attributes that cannot be sent are left out: numbers that are not finite, dates outside the years 0 to 9999, structures that
/// have an unknown type or are nested more than 64 levels deep, and an attribute named `targetingKey`. If a context is larger
/// than 64 KiB, its largest attributes are left out until it fits. Each provider logs a warning once for each name, for at most
/// 32 names. [`Stats::attributes_left_out`](crate::Stats::attributes_left_out) counts these attributes.
///
/// To read a context, convert it to an [`EvaluationContext`](crate::EvaluationContext).
///
/// ```
/// use flipswitch::{Context, FlipswitchProvider, serde_json::json};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let provider = FlipswitchProvider::in_memory(json!({"new-checkout": true}));
/// let context = Context::user("user-123").with("plan", "premium").with("admin", true).with("roles", ["author", "editor"]);
/// assert!(provider.flags(&context).await.bool("new-checkout", false));
/// # }
/// ```
#[derive(Clone)]
pub struct Context(Repr);

#[derive(Clone)]
enum Repr {
    Written(Written),
    Prepared(PreparedContext),
}

/// Up to this size in bytes, each attribute is put in order when it is added. Larger contexts are put in order before their first
/// use, because each attribute would take longer than the previous one.
const SMALL: usize = 2 << 10;

/// Initial capacity in bytes, which is enough for most contexts.
const ROOM: usize = 256;

#[derive(Clone)]
struct Written {
    /// Complete JSON at any time. Empty if there are no fields, as in most anonymous requests.
    body: Vec<u8>,
    /// Where the name of the last attribute is, if it has no escapes. Empty if there are no attributes.
    last_name: Option<(usize, usize)>,
    /// Whether the fields are in order, without duplicates, and not too large.
    is_canonical: bool,
    left_out: Option<Arc<LeftOut>>,
}

impl Context {
    /// Creates the context of a user or another subject, such as an organisation.
    ///
    /// `targeting_key` identifies the subject: a rule that splits users by percentage gives the same key the same variant each
    /// time. For a number or a UUID, pass `id.to_string()`. A key that does not fit into the 64 KiB of a context cannot be sent.
    /// In that case, reads return the defaults passed to the calls, and [`Flags::error`](crate::Flags::error) returns
    /// [`Error::InvalidContext`](crate::Error::InvalidContext).
    #[must_use]
    pub fn user(targeting_key: impl AsRef<str>) -> Self {
        let mut written = Written::new(Vec::with_capacity(ROOM));
        written.body.extend_from_slice(PREFIX);
        let key = canonical::targeting_key(targeting_key.as_ref(), &mut written.body);
        written.body.extend_from_slice(SUFFIX);
        if let Err(bytes) = key {
            written.left_out().set_targeting_key(bytes);
        }
        Self(Repr::Written(written))
    }

    /// Creates a context without a targeting key. All users with the same attributes share it.
    #[must_use]
    pub fn anonymous() -> Self {
        Self(Repr::Written(Written::new(Vec::new())))
    }

    /// Adds an attribute, which replaces an earlier one with the same name.
    ///
    /// ```
    /// use flipswitch::{Context, serde_json::json, time::OffsetDateTime};
    ///
    /// # fn main() -> Result<(), flipswitch::time::error::ComponentRange> {
    /// let country: Option<&str> = None;
    /// let context = Context::user("user-123")
    ///     .with("age", 42)
    ///     .with("company", json!({"name": "Example", "employees": 70}))
    ///     // Adds no attribute.
    ///     .with("country", country)
    ///     // Sent as a string, in UTC: "2026-01-21T10:30:00Z".
    ///     .with("since", OffsetDateTime::from_unix_timestamp(1_768_991_400)?);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with(mut self, name: impl AsRef<str>, value: impl AttributeValue) -> Self {
        self.add(name.as_ref(), &value);
        self
    }

    /// Prepares the context for frequent use, for example to keep it with the user in a session cache.
    ///
    /// The result is cheap to clone, and evaluations do not have to compute its hash. To add an attribute, convert it back:
    /// `Context::from(prepared).with(..)`.
    ///
    /// ```
    /// use flipswitch::{Context, PreparedContext};
    ///
    /// #[derive(Clone)]
    /// struct User {
    ///     name: String,
    ///     context: PreparedContext,
    /// }
    ///
    /// // Once, when the user signs in.
    /// let context = Context::user("user-123").with("plan", "premium").prepared();
    /// let user = User { name: "Alice".to_owned(), context };
    /// // In each request: `FlipswitchLayer::new(provider).with_user(|user: &User| user.context.clone())`.
    /// ```
    #[must_use]
    pub fn prepared(self) -> PreparedContext {
        let mut written = match self.0 {
            Repr::Prepared(prepared) => return prepared,
            Repr::Written(written) => written,
        };
        written.arrange();
        let Canonical { bytes, .. } = written.canonical();
        PreparedContext(Arc::new(Prepared {
            body: bytes.into(),
            hash: canonical::hash(bytes),
            left_out: written.left_out,
        }))
    }

    /// Calls a function with the canonical form.
    pub(crate) fn with_canonical<T>(&self, call: impl FnOnce(Canonical<'_>) -> T) -> T {
        match &self.0 {
            Repr::Prepared(prepared) => call(prepared.canonical()),
            Repr::Written(written) if written.is_canonical => call(written.canonical()),
            Repr::Written(written) => {
                let mut written = written.clone();
                written.arrange();
                call(written.canonical())
            }
        }
    }

    /// Puts the fields in order, so that [`with_canonical`](Self::with_canonical) does not have to do so each time.
    pub(crate) fn arrange(&mut self) {
        if let Repr::Written(written) = &mut self.0 {
            written.arrange();
        }
    }

    /// Adds an attribute. Not generic, so that the code is compiled only once.
    fn add(&mut self, name: &str, value: &dyn AttributeValue) {
        match &mut self.0 {
            Repr::Written(written) => written.add(name, value),
            Repr::Prepared(prepared) => {
                let Prepared { body, left_out, .. } = &*prepared.0;
                let last_name = fields::last_name(body);
                let mut written = Written { last_name, left_out: left_out.clone(), ..Written::new(body.to_vec()) };
                written.add(name, value);
                self.0 = Repr::Written(written);
            }
        }
    }

    /// Merges two contexts. The attributes and the targeting key of `upper` take precedence, even if they cannot be sent. If the
    /// result is too large, the attributes of the context that is not `kept` are left out first.
    pub(crate) fn merge(lower: Self, upper: Self, kept: Layer) -> Self {
        if upper.is_empty() {
            return lower;
        }
        if lower.is_empty() {
            return upper;
        }
        lower.with_canonical(|lower| {
            upper.with_canonical(|upper| {
                let mut body = Vec::with_capacity(lower.bytes.len() + upper.bytes.len());
                body.extend_from_slice(PREFIX);
                let mut left_out = lower.left_out.cloned().unwrap_or_default();
                if lower.left_out.is_some() {
                    let names = fields::names(upper.bytes).filter(|name| name != TARGETING_KEY);
                    names.for_each(|name| left_out.remove(&name));
                }
                let upper_key = upper.left_out.and_then(LeftOut::targeting_key_error);
                if fields::has_targeting_key(upper.bytes) || upper_key.is_some() {
                    left_out.keep_targeting_key();
                    body.extend_from_slice(fields::attributes(lower.bytes));
                } else {
                    body.extend_from_slice(fields::written(lower.bytes));
                }
                let border = body.len();
                if let Some(upper) = upper.left_out {
                    for name in upper.names().filter(|name| *name != TARGETING_KEY) {
                        fields::separate(&mut body);
                        canonical::name(name, &mut body);
                    }
                    left_out.merge(upper);
                }
                let fields = fields::written(upper.bytes);
                if !fields.is_empty() {
                    fields::separate(&mut body);
                    body.extend_from_slice(fields);
                }
                body.extend_from_slice(SUFFIX);
                let mut written = Written::new(body);
                written.left_out = left_out.into_shared();
                written.arrange_keeping(match kept {
                    Layer::Lower => 0..border,
                    Layer::Upper => border..usize::MAX,
                });
                Self(Repr::Written(written))
            })
        })
    }

    /// Returns whether the context has no fields, and no fields were left out.
    fn is_empty(&self) -> bool {
        self.with_canonical(|context| context.left_out.is_none() && fields::written(context.bytes).is_empty())
    }

    /// Returns the targeting key.
    pub(crate) fn targeting_key(&self) -> Option<String> {
        self.with_canonical(|canonical| fields::targeting_key(canonical.bytes))
    }

    /// Returns whether there is a targeting key, even one that cannot be sent.
    pub(crate) fn has_targeting_key(&self) -> bool {
        self.with_canonical(|canonical| {
            let is_left_out = canonical.left_out.is_some_and(|left_out| left_out.targeting_key_error().is_some());
            is_left_out || fields::has_targeting_key(canonical.bytes)
        })
    }
}

/// One of two contexts that are being merged.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Layer {
    Lower,
    Upper,
}

impl Default for Context {
    /// Returns [`Context::anonymous`].
    fn default() -> Self {
        Self::anonymous()
    }
}

impl From<&EvaluationContext> for Context {
    fn from(context: &EvaluationContext) -> Self {
        let mut written = Written::new(Vec::with_capacity(ROOM));
        written.left_out = canonical::write(context, &mut written.body).and_then(LeftOut::into_shared);
        written.last_name = fields::last_name(&written.body);
        Self(Repr::Written(written))
    }
}

impl From<EvaluationContext> for Context {
    fn from(context: EvaluationContext) -> Self {
        Self::from(&context)
    }
}

/// Returns the context as it is sent: dates are RFC 3339 strings, structures are [`serde_json::Value`]s, and attributes that
/// cannot be sent are missing.
impl From<&Context> for EvaluationContext {
    fn from(context: &Context) -> Self {
        context.with_canonical(|canonical| canonical::decode(canonical.bytes))
    }
}

/// Contexts are equal if the same text is sent for both.
impl PartialEq for Context {
    fn eq(&self, other: &Self) -> bool {
        self.with_canonical(|one| other.with_canonical(|other| one.bytes == other.bytes))
    }
}

impl Eq for Context {}

impl From<PreparedContext> for Context {
    fn from(context: PreparedContext) -> Self {
        Self(Repr::Prepared(context))
    }
}

/// Omits the content, which may be personal data.
impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

impl Written {
    /// Creates a context from a body whose fields are in order.
    fn new(body: Vec<u8>) -> Self {
        Self { body, last_name: Some((0, 0)), is_canonical: true, left_out: None }
    }

    fn canonical(&self) -> Canonical<'_> {
        let bytes = if self.body.is_empty() { EMPTY } else { &self.body };
        Canonical { bytes, hash: None, left_out: self.left_out.as_deref() }
    }

    fn left_out(&mut self) -> &mut LeftOut {
        Arc::make_mut(self.left_out.get_or_insert_default())
    }

    fn add(&mut self, name: &str, value: &dyn AttributeValue) {
        if let Some(mut left_out) = self.left_out.take() {
            Arc::make_mut(&mut left_out).remove(name);
            self.left_out = Some(left_out).filter(|left_out| !left_out.is_empty());
        }
        if name == TARGETING_KEY {
            self.left_out().add(name, Unsendable::TargetingKey);
            return;
        }
        let Self { body, last_name, .. } = self;
        if body.is_empty() {
            body.reserve(ROOM);
            body.extend_from_slice(EMPTY);
        }
        let last = last_name.map(|(start, end)| body.get(start..end).unwrap_or_default());
        let place = match last {
            _ if !self.is_canonical => None,
            Some(last) if name.as_bytes() > last => Some(Place::Last),
            _ if body.len() > SMALL => None,
            _ => Some(fields::place(body, name)),
        };
        let end = body.len() - SUFFIX.len();
        body.truncate(end);
        fields::separate(body);
        let start = body.len();
        let is_plain = canonical::name(name, body);
        let value_start = body.len();
        let outcome = value.write_json(body);
        match (&outcome, &place) {
            (Ok(()), Some(Place::Last)) => {
                *last_name = is_plain.then_some((start + 1, value_start - 2));
            }
            (Ok(()), Some(Place::Before(position))) => {
                let added = body.len() - end;
                fields::move_last(body, end, *position);
                *last_name = last_name.map(|(start, end)| (start + added, end + added));
            }
            (Err(_), Some(Place::Last | Place::Before(_))) => body.truncate(end),
            (Ok(()), _) => {}
            // An earlier attribute with this name is also left out.
            (Err(_), _) => body.truncate(value_start),
        }
        body.extend_from_slice(SUFFIX);
        let is_in_place = matches!(place, Some(Place::Last | Place::Before(_)));
        self.is_canonical &= is_in_place && self.body.len() <= MAX_BYTES;
        match outcome {
            Ok(()) | Err(Unsendable::Absent) => {}
            Err(reason) => self.left_out().add(name, reason),
        }
        if !self.is_canonical && self.body.len() <= SMALL {
            self.arrange();
        }
    }

    fn arrange(&mut self) {
        if !self.is_canonical {
            self.arrange_keeping(0..0);
        }
    }

    /// Puts the fields in order. If the context is too large, fields within `kept`, which is a range of bytes in the body, are
    /// left out after all others.
    fn arrange_keeping(&mut self, kept: Range<usize>) {
        let mut left_out = LeftOut::default();
        self.body = fields::arrange(&self.body, &kept, |name, reason| left_out.add(name, reason));
        if !left_out.is_empty() {
            self.left_out().merge(&left_out);
        }
        self.last_name = fields::last_name(&self.body);
        self.is_canonical = true;
    }
}

/// A [`Context`] for frequent use, created by [`Context::prepared`].
///
/// Contains the context in the form in which it is sent, and the hash of this form. Clones share both. A prepared context can be
/// passed wherever a context is expected.
#[derive(Clone)]
pub struct PreparedContext(Arc<Prepared>);

struct Prepared {
    body: Box<[u8]>,
    hash: u64,
    left_out: Option<Arc<LeftOut>>,
}

impl PreparedContext {
    /// Returns the targeting key as it is sent.
    pub(crate) fn targeting_key(&self) -> Option<String> {
        fields::targeting_key(self.canonical().bytes)
    }

    pub(crate) fn canonical(&self) -> Canonical<'_> {
        let Prepared { body, hash, left_out } = &*self.0;
        Canonical { bytes: body, hash: Some(*hash), left_out: left_out.as_deref() }
    }
}

/// Contexts are equal if the same text is sent for both.
impl PartialEq for PreparedContext {
    fn eq(&self, other: &Self) -> bool {
        self.0.body == other.0.body
    }
}

impl Eq for PreparedContext {}

/// Omits the content, which may be personal data.
impl fmt::Debug for PreparedContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedContext").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use open_feature::{EvaluationContextFieldValue, StructValue};
    use proptest::{collection::vec, prelude::*, sample::select};
    use serde_json::{Value as Json, json};
    use time::macros::datetime;

    use super::*;

    fn text(context: &Context) -> String {
        context.with_canonical(|context| String::from_utf8(context.bytes.to_vec()).unwrap())
    }

    fn names_left_out(context: &Context) -> BTreeSet<String> {
        context.with_canonical(|context| {
            context.left_out.into_iter().flat_map(LeftOut::names).map(str::to_owned).collect()
        })
    }

    fn has_error(context: &Context) -> bool {
        context.with_canonical(|context| context.left_out.and_then(LeftOut::targeting_key_error).is_some())
    }

    #[test]
    fn contexts_are_equal_if_the_same_text_is_sent() {
        let (one, other) = (Context::user("u").with("a", 1).with("b", 2), Context::user("u").with("b", 2).with("a", 1));
        assert_eq!((&one, one.clone().prepared()), (&other, other.clone().prepared()));
        assert_ne!((&one, one.clone().prepared()), (&other, other.clone().with("a", 1.0).prepared()));
        let read = EvaluationContext::from(&one);
        assert_eq!(
            read,
            EvaluationContext::default().with_targeting_key("u").with_custom_field("a", 1).with_custom_field("b", 2)
        );
    }

    #[test]
    fn attributes_are_written_in_the_order_of_their_names() {
        let context = Context::user("u")
            .with("b", "x")
            .with("d", 1)
            .with("a", true)
            .with("c", [Some(1.5), None, Some(-0.0)])
            .with("b", "y");
        assert_eq!(text(&context), r#"{"context":{"targetingKey":"u","a":true,"b":"y","c":[1.5,-0.0],"d":1}}"#);
        assert_eq!(text(&Context::anonymous().with("", "").with("a", "")), r#"{"context":{"":"","a":""}}"#);
        assert_eq!(
            text(&Context::user("").with("\"", 1).with("!", 1)),
            r#"{"context":{"targetingKey":"","!":1,"\"":1}}"#
        );
    }

    #[test]
    fn a_prepared_context_can_be_extended() {
        let prepared = Context::user("u").with("m", 1).prepared();
        for (name, expected) in [("a", r#""a":2,"m":1"#), ("m", r#""m":2"#), ("z", r#""m":1,"z":2"#)] {
            let extended = Context::from(prepared.clone()).with(name, 2);
            assert_eq!(text(&extended), format!(r#"{{"context":{{"targetingKey":"u",{expected}}}}}"#));
        }
    }

    #[test]
    fn the_last_attribute_with_a_name_counts_even_if_it_has_no_value() {
        for context in [Context::user("u"), Context::user("u").with("z", 1)] {
            let base = text(&context);
            assert_eq!(text(&context.clone().with("a", 1).with("a", None::<i32>)), base);
            let lost = context.clone().with("a", 1).with("a", f64::NAN);
            assert_eq!((text(&lost), names_left_out(&lost)), (base, ["a".to_owned()].into()));
            let found = lost.with("a", 2);
            assert_eq!((text(&found), names_left_out(&found)), (text(&context.with("a", 2)), [].into()));
        }
    }

    #[test]
    fn the_upper_context_takes_precedence() {
        let lower = Context::user("lower").with("a", 1).with("c", 1);
        let upper = Context::anonymous().with("b", 2).with("c", 2);
        let merged = Context::merge(lower.clone(), upper.with("a", f64::NAN), Layer::Upper);
        assert_eq!(text(&merged), r#"{"context":{"targetingKey":"lower","b":2,"c":2}}"#);
        assert_eq!(names_left_out(&merged), ["a".to_owned()].into());
        let merged = Context::merge(lower, Context::user("upper"), Layer::Upper);
        assert_eq!(text(&merged), r#"{"context":{"targetingKey":"upper","a":1,"c":1}}"#);
        let too_long = Context::user("x".repeat(70_000));
        let merged = Context::merge(Context::user("lower").with("a", 1), too_long.clone(), Layer::Upper);
        assert!(has_error(&merged));
        assert_eq!(text(&merged), r#"{"context":{"a":1}}"#, "the lower key does not replace the upper one");
        assert!(!has_error(&Context::merge(too_long, Context::user("upper"), Layer::Upper)));
    }

    #[test]
    fn merging_leaves_out_the_attributes_of_the_other_context_first() {
        let large = |name: &str, bytes: usize| Context::anonymous().with(name, "x".repeat(bytes));
        let (lower, upper) = (large("l", 30_000).with("l1", 1), large("u", 40_000).with("u1", 1));
        for (kept, lost) in [(Layer::Lower, "u"), (Layer::Upper, "l")] {
            let merged = Context::merge(lower.clone(), upper.clone(), kept);
            assert_eq!(names_left_out(&merged), [lost.to_owned()].into());
            let fields = merged.with_canonical(|context| canonical::decode(context.bytes).custom_fields);
            assert!(fields.len() == 3 && !fields.contains_key(lost), "{kept:?}");
        }
    }

    #[derive(Clone, Debug)]
    enum Attribute {
        Bool(bool),
        Int(i64),
        Float(f64),
        Text(String),
        Large(usize),
        Date(time::OffsetDateTime),
        Json(Json),
        Struct(f64),
        Opaque,
    }

    impl Attribute {
        fn field(&self) -> EvaluationContextFieldValue {
            match self.clone() {
                Self::Bool(value) => value.into(),
                Self::Int(value) => value.into(),
                Self::Float(value) => value.into(),
                Self::Text(value) => value.into(),
                Self::Large(bytes) => "x".repeat(bytes).into(),
                Self::Date(value) => value.into(),
                Self::Json(value) => EvaluationContextFieldValue::new_struct(value),
                Self::Struct(value) => {
                    EvaluationContextFieldValue::new_struct(StructValue::default().with_field("inner", value))
                }
                Self::Opaque => EvaluationContextFieldValue::new_struct(()),
            }
        }

        fn add_to(&self, name: &str, context: Context) -> Context {
            match self {
                Self::Bool(value) => context.with(name, value),
                Self::Int(value) => context.with(name, value),
                Self::Float(value) => context.with(name, value),
                Self::Text(value) => context.with(name, value),
                Self::Large(bytes) => context.with(name, "x".repeat(*bytes)),
                Self::Date(value) => context.with(name, value),
                Self::Json(value) => context.with(name, value),
                Self::Struct(value) => context.with(name, StructValue::default().with_field("inner", *value)),
                Self::Opaque => context.with(name, self.field()),
            }
        }

        /// Returns the JSON, if it can be sent.
        fn json(&self) -> Option<Json> {
            Some(match self {
                Self::Bool(value) => json!(value),
                Self::Int(value) => json!(value),
                Self::Float(value) => value.is_finite().then(|| json!(value))?,
                Self::Text(value) => json!(value),
                Self::Large(bytes) => json!("x".repeat(*bytes)),
                Self::Date(value) => {
                    let utc = value.checked_to_offset(time::UtcOffset::UTC)?;
                    json!(utc.format(&time::format_description::well_known::Rfc3339).ok()?)
                }
                // The value that is nested too deeply.
                Self::Json(value) if value.to_string().starts_with("[[[") => return None,
                Self::Json(value) => value.clone(),
                Self::Struct(value) => value.is_finite().then(|| json!({"inner": value}))?,
                Self::Opaque => return None,
            })
        }
    }

    fn float() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<f64>(),
            select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1.0, 1e300, f64::MIN_POSITIVE])
        ]
    }

    fn attribute() -> impl Strategy<Value = Attribute> {
        let dates = select(vec![
            datetime!(2024-01-21 12:30:45.123 +02:00),
            datetime!(-0044-03-15 0:00 UTC),
            datetime!(0000-01-01 0:00 +05:00),
            datetime!(9999-12-31 23:59:59 -05:00),
        ]);
        let deep = (0..70).fold(json!(0), |deep, _| json!([deep]));
        let json = select(vec![json!(null), json!([1, [], {"b": null, "a": [u64::MAX]}]), json!({"\"": "}],{"}), deep]);
        prop_oneof![
            1 => any::<bool>().prop_map(Attribute::Bool),
            1 => any::<i64>().prop_map(Attribute::Int),
            3 => float().prop_map(Attribute::Float),
            3 => any::<String>().prop_map(Attribute::Text),
            3 => r#"[a"\\\n,:{}\[\]]{0,20}"#.prop_map(Attribute::Text),
            1 => (0..70_000_usize).prop_map(Attribute::Large),
            1 => dates.prop_map(Attribute::Date),
            1 => json.prop_map(Attribute::Json),
            1 => float().prop_map(Attribute::Struct),
            1 => Just(Attribute::Opaque),
        ]
    }

    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => "[a-e]{0,2}",
            2 => r#"[a"\\\n,:{}]{0,9}"#,
            1 => any::<String>(),
            1 => Just("targetingKey".to_owned()),
            1 => select(vec!["\"", "\\", "\n", "é", "{", "~", " "]).prop_map(str::to_owned),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn all_types_of_context_write_the_same_and_leave_out_only_what_cannot_be_sent(
            key in proptest::option::of(any::<String>()), attributes in vec((name(), attribute()), 0..12),
        ) {
            let fields: BTreeMap<_, _> = attributes.iter().cloned().collect();
            let mut feature = EvaluationContext { targeting_key: key.clone(), ..EvaluationContext::default() };
            feature.custom_fields.extend(fields.iter().map(|(name, value)| (name.clone(), value.field())));
            let start = key.as_ref().map_or_else(Context::anonymous, Context::user);
            let context = attributes.iter().fold(start, |context, (name, value)| value.add_to(name, context));

            // Both types write the same context.
            let (bytes, left_out) = (text(&context), names_left_out(&context));
            let converted = Context::from(&feature);
            prop_assert_eq!(&text(&converted), &bytes);
            prop_assert_eq!(&names_left_out(&converted), &left_out);
            let decoded = canonical::decode(bytes.as_bytes());
            prop_assert_eq!(&text(&Context::from(&decoded)), &bytes);
            let prepared = context.prepared();
            prop_assert_eq!(prepared.canonical().bytes, bytes.as_bytes());
            prop_assert_eq!(prepared.canonical().hash, Some(canonical::hash(bytes.as_bytes())));

            // Valid, limited, and complete.
            prop_assert!(bytes.len() <= MAX_BYTES);
            let mut sent: Json = serde_json::from_str(&bytes).unwrap();
            let sent = sent["context"].as_object_mut().unwrap();
            prop_assert_eq!(sent.remove("targetingKey"), key.map(Json::from));
            let size = |name: &str, value: &Json| json!({name: value}).to_string().len() - 1;
            let mut room = MAX_BYTES - bytes.len();
            room += usize::from(sent.is_empty());
            for (name, value) in &fields {
                match (sent.get(name), value.json()) {
                    (Some(sent), Some(value)) => prop_assert_eq!(sent, &value),
                    (None, Some(value)) if name != "targetingKey" => {
                        prop_assert!(size(name, &value) > room, "{} is left out unnecessarily", name);
                    }
                    (sent, _) => prop_assert!(sent.is_none()),
                }
                prop_assert_eq!(!sent.contains_key(name), left_out.contains(name), "{}", name);
            }
            prop_assert!(sent.keys().all(|name| fields.contains_key(name)));
        }

        #[test]
        fn merging_contexts_is_the_same_as_merging_their_attributes(
            keys in any::<[Option<bool>; 2]>(), attributes in vec((any::<bool>(), name(), attribute()), 0..12),
        ) {
            let mut contexts = [(); 2].map(|()| EvaluationContext::default());
            for (context, key) in contexts.iter_mut().zip(keys) {
                context.targeting_key = key.map(|is_valid| if is_valid { "k".to_owned() } else { "k".repeat(70_000) });
            }
            let large = attributes.iter().map(|(.., value)| if let Attribute::Large(bytes) = value { *bytes } else { 0 });
            let is_small = large.sum::<usize>() < 60_000;
            for (is_upper, name, value) in attributes {
                contexts[usize::from(is_upper)].add_custom_field(name, value.field());
            }
            let [lower, upper] = contexts;
            let [one, other] = [&lower, &upper].map(Context::from);
            let mut expected = upper;
            expected.merge_missing(&lower);
            let expected = Context::from(&expected);
            for kept in [Layer::Lower, Layer::Upper] {
                let merged = Context::merge(one.clone(), other.clone(), kept);
                prop_assert!(text(&merged).len() <= MAX_BYTES);
                let again = Context::from(&EvaluationContext::from(&merged));
                prop_assert_eq!(text(&again), text(&merged), "it is in its canonical form");
                prop_assert_eq!(has_error(&merged), has_error(&expected));
                // The result for large contexts depends on which one is kept.
                if is_small {
                    prop_assert_eq!(text(&merged), text(&expected));
                    prop_assert_eq!(names_left_out(&merged), names_left_out(&expected));
                }
            }
        }
    }
}
