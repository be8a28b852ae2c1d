//! The canonical form of evaluation contexts.
//!
//! It is the body of the OFREP request that evaluates the context: the targeting key first, then the other fields sorted by
//! name. Nested objects are sorted as well. Two contexts are equal for the provider if and only if they are equal for the
//! service.

use std::{
    cell::Cell,
    hash::{BuildHasher, RandomState},
    sync::{Arc, OnceLock},
};

use open_feature::{EvaluationContext, EvaluationContextFieldValue, StructValue, Value as FeatureValue};
use serde::Serialize;
use serde_json::{Map, Value as Json};
use smallvec::SmallVec;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use crate::context::{
    fields::arrange,
    left_out::{LeftOut, MAX_BYTES, MAX_DEPTH, Unsendable},
};

/// Name of the targeting key among the fields of an OFREP context.
pub(crate) const TARGETING_KEY: &str = "targetingKey";

/// The bytes before the fields of a context.
pub(crate) const PREFIX: &[u8] = br#"{"context":{"#;
/// The bytes after the fields of a context.
pub(crate) const SUFFIX: &[u8] = b"}}";
/// A context without fields.
pub(crate) const EMPTY: &[u8] = br#"{"context":{}}"#;

/// Writes the canonical form of a context to an empty buffer. Returns what is left out, if anything.
pub(crate) fn write(context: &EvaluationContext, body: &mut Vec<u8>) -> Option<LeftOut> {
    let EvaluationContext { targeting_key, custom_fields } = context;
    let mut left_out = LeftOut::default();
    body.extend_from_slice(PREFIX);
    if let Some(key) = targeting_key {
        if let Err(bytes) = self::targeting_key(key, body) {
            left_out.set_targeting_key(bytes);
        } else {
            body.push(b',');
        }
    }
    let mut fields = Fields::new();
    for &(name, value) in sorted(custom_fields, &mut fields) {
        let start = body.len();
        self::name(name, body);
        let outcome = if name == TARGETING_KEY { Err(Unsendable::TargetingKey) } else { field(value, body) };
        match outcome {
            Ok(()) => body.push(b','),
            Err(reason) => {
                body.truncate(start);
                left_out.add(name, reason);
            }
        }
    }
    close(b'}', body);
    body.push(b'}');
    if body.len() > MAX_BYTES {
        *body = arrange(body, &(0..0), |name, reason| left_out.add(name, reason));
    }
    if left_out.is_empty() { None } else { Some(left_out) }
}

/// Returns whether two contexts have the same canonical form, if this can be determined without writing it. Stricter than `==`,
/// for which `0.0` equals `-0.0`.
pub(crate) fn has_same_canonical_form(one: &EvaluationContext, other: &EvaluationContext) -> bool {
    use EvaluationContextFieldValue::{Bool, Float, Int, String};

    let is_same = |one: &EvaluationContextFieldValue, other: &EvaluationContextFieldValue| match (one, other) {
        (Bool(one), Bool(other)) => one == other,
        (Int(one), Int(other)) => one == other,
        (Float(one), Float(other)) => one.to_bits() == other.to_bits(),
        (String(one), String(other)) => one == other,
        // Dates and structures can be compared only by writing them.
        _ => false,
    };
    let (fields, others) = (&one.custom_fields, &other.custom_fields);
    one.targeting_key == other.targeting_key
        && fields.len() == others.len()
        // A clone has its fields in the same order.
        && fields.iter().zip(others).all(|((name, value), (other_name, other))| {
            let other = if name == other_name { Some(other) } else { others.get(name) };
            other.is_some_and(|other| is_same(value, other))
        })
}

/// Writes a targeting key.
///
/// # Errors
///
/// The size of the key, if it cannot be sent. In that case, nothing is written.
pub(crate) fn targeting_key(key: &str, body: &mut Vec<u8>) -> Result<(), usize> {
    let start = body.len();
    body.extend_from_slice(br#""targetingKey":"#);
    string(key, body);
    if body.len() + SUFFIX.len() <= MAX_BYTES {
        return Ok(());
    }
    let bytes = body.len() - start;
    body.truncate(start);
    Err(bytes)
}

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Maximum capacity of a buffer that is kept, in bytes.
const KEPT_BYTES: usize = 4 << 10;

/// Calls a function with the canonical form of a context, and with what is left out, and returns its result. The context is
/// written to a buffer of the thread, so nothing is allocated.
pub(crate) fn with_written<T>(context: &EvaluationContext, call: impl FnOnce(Canonical<'_>) -> T) -> T {
    // Uses a new buffer if the buffer of the thread is in use, or no longer exists because the thread is ending.
    let mut body = BUFFER.try_with(Cell::take).unwrap_or_default();
    let left_out = write(context, &mut body);
    let result = call(Canonical { bytes: &body, hash: None, left_out: left_out.as_ref() });
    if body.capacity() <= KEPT_BYTES {
        body.clear();
        let _ = BUFFER.try_with(|buffer| buffer.set(body));
    }
    result
}

/// Returns the hash of a context, with a random key of the process.
pub(crate) fn hash(canonical: &[u8]) -> u64 {
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    KEYS.get_or_init(RandomState::new).hash_one(canonical)
}

/// The canonical form of a context, regardless of where it is stored.
#[derive(Clone, Copy, Debug)]
pub struct Canonical<'a> {
    pub(crate) bytes: &'a [u8],
    /// The hash of the bytes, if it is known.
    pub(crate) hash: Option<u64>,
    pub(crate) left_out: Option<&'a LeftOut>,
}

/// A context to look up, with its hash.
pub(crate) struct ContextKey<'a> {
    pub(crate) hash: u64,
    pub(crate) bytes: &'a [u8],
}

impl<'a> ContextKey<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { hash: hash(bytes), bytes }
    }
}

impl<'a> Canonical<'a> {
    pub(crate) fn key(&self) -> ContextKey<'a> {
        let Self { bytes, hash, .. } = *self;
        ContextKey { hash: hash.unwrap_or_else(|| self::hash(bytes)), bytes }
    }
}

/// A context in its canonical form. Compared by all its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CanonicalContext(Arc<[u8]>);

impl CanonicalContext {
    /// Creates the canonical form of a context; see [`write`].
    #[cfg(test)]
    pub(crate) fn new(context: &EvaluationContext) -> Self {
        let mut body = Vec::new();
        assert!(write(context, &mut body).is_none(), "an attribute is left out");
        Self::from_bytes(&body)
    }

    /// Copies what [`write`] wrote.
    pub(crate) fn from_bytes(body: &[u8]) -> Self {
        Self(body.into())
    }

    const START_UP: &[u8] = br#"{"context":{"targetingKey":"_init_"}}"#;

    /// Returns the context of the request that checks the API key at startup. The service defines this context.
    pub(crate) fn start_up() -> Self {
        Self::from_bytes(Self::START_UP)
    }

    pub(crate) fn is_start_up(&self) -> bool {
        *self.0 == *Self::START_UP
    }

    /// Returns the body of the OFREP request.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Converts a canonical form back to a context. Dates become strings, and structures become [`serde_json::Value`]s.
pub(crate) fn decode(canonical: &[u8]) -> EvaluationContext {
    let mut context = EvaluationContext::default();
    let fields = match serde_json::from_slice(canonical) {
        Ok(Json::Object(mut body)) => body.remove("context"),
        _ => None,
    };
    let Some(Json::Object(fields)) = fields else { return context };
    for (name, value) in fields {
        match value {
            Json::String(key) if name == TARGETING_KEY => context.targeting_key = Some(key),
            value => context.add_custom_field(name, field_value(value)),
        }
    }
    context
}

/// Returns a field that has this JSON value.
fn field_value(value: Json) -> EvaluationContextFieldValue {
    match value {
        Json::Bool(value) => value.into(),
        Json::String(value) => value.into(),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => integer.into(),
            (None, Some(float)) if number.is_f64() => float.into(),
            _ => EvaluationContextFieldValue::new_struct(Json::Number(number)),
        },
        value => EvaluationContextFieldValue::new_struct(value),
    }
}

/// Writes the value of a field.
pub(crate) fn field(value: &EvaluationContextFieldValue, body: &mut Vec<u8>) -> Result<(), Unsendable> {
    match value {
        EvaluationContextFieldValue::Bool(value) => scalar(value, body),
        EvaluationContextFieldValue::Int(value) => scalar(value, body),
        EvaluationContextFieldValue::Float(value) => float(*value, body)?,
        EvaluationContextFieldValue::String(value) => string(value, body),
        EvaluationContextFieldValue::DateTime(value) => date(*value, body)?,
        EvaluationContextFieldValue::Struct(value) => {
            let node = if let Some(value) = value.downcast_ref::<StructValue>() {
                Node::Struct(value)
            } else if let Some(value) = value.downcast_ref::<FeatureValue>() {
                Node::Feature(value)
            } else if let Some(value) = value.downcast_ref::<Json>() {
                Node::Json(value)
            } else if let Some(value) = value.downcast_ref::<Map<String, Json>>() {
                Node::Map(value)
            } else {
                return Err(Unsendable::Opaque);
            };
            nested(node, 0, body)?;
        }
    }
    Ok(())
}

/// A value inside a structure.
#[derive(Clone, Copy)]
pub(crate) enum Node<'a> {
    Struct(&'a StructValue),
    Feature(&'a FeatureValue),
    Json(&'a Json),
    Map(&'a Map<String, Json>),
}

/// Writes a value that may contain other values.
pub(crate) fn nested(node: Node<'_>, depth: usize, body: &mut Vec<u8>) -> Result<(), Unsendable> {
    if depth > MAX_DEPTH {
        return Err(Unsendable::Nested);
    }
    match node {
        Node::Struct(value) => return map(&value.fields, Node::Feature, depth, body),
        Node::Feature(FeatureValue::Struct(value)) => return map(&value.fields, Node::Feature, depth, body),
        Node::Json(Json::Object(fields)) | Node::Map(fields) => return map(fields, Node::Json, depth, body),
        Node::Feature(FeatureValue::Array(values)) => {
            return list(values, body, |value, body| nested(Node::Feature(value), depth + 1, body));
        }
        Node::Json(Json::Array(values)) => {
            return list(values, body, |value, body| nested(Node::Json(value), depth + 1, body));
        }
        Node::Feature(FeatureValue::Float(value)) => return float(*value, body),
        Node::Feature(FeatureValue::Bool(value)) => scalar(value, body),
        Node::Feature(FeatureValue::Int(value)) => scalar(value, body),
        Node::Feature(FeatureValue::String(value)) => string(value, body),
        Node::Json(value) => scalar(value, body),
    }
    Ok(())
}

fn map<'a, V: 'a>(
    fields: impl IntoIterator<Item = (&'a String, &'a V)>,
    node: fn(&'a V) -> Node<'a>,
    depth: usize,
    body: &mut Vec<u8>,
) -> Result<(), Unsendable> {
    body.push(b'{');
    let mut room = Fields::new();
    for &(key, value) in sorted(fields, &mut room) {
        name(key, body);
        nested(node(value), depth + 1, body)?;
        body.push(b',');
    }
    close(b'}', body);
    Ok(())
}

/// Writes a list. `write` writes one element. Absent elements are left out.
pub(crate) fn list<V>(
    values: &[V],
    body: &mut Vec<u8>,
    write: impl Fn(&V, &mut Vec<u8>) -> Result<(), Unsendable>,
) -> Result<(), Unsendable> {
    body.push(b'[');
    for value in values {
        match write(value, body) {
            Ok(()) => body.push(b','),
            Err(Unsendable::Absent) => {}
            Err(reason) => return Err(reason),
        }
    }
    close(b']', body);
    Ok(())
}

/// Ends a list or an object. Each of its elements has written a comma after itself.
fn close(bracket: u8, body: &mut Vec<u8>) {
    match body.last_mut() {
        Some(comma @ b',') => *comma = bracket,
        _ => body.push(bracket),
    }
}

/// Writes the name of a field, followed by a colon. Returns whether it has no escapes.
#[inline]
pub(crate) fn name(text: &str, body: &mut Vec<u8>) -> bool {
    quoted(text, *b"\":", body)
}

/// Writes a string in quotes.
#[inline]
pub(crate) fn string(text: &str, body: &mut Vec<u8>) {
    quoted(text, *b"\"", body);
}

/// Writes a string in quotes. `end` is the closing quote and what follows it. Returns whether the string has no escapes.
/// Implemented by hand, because this runs in every evaluation, and most strings need no escape.
#[inline]
fn quoted<const N: usize>(text: &str, end: [u8; N], body: &mut Vec<u8>) -> bool {
    let is_plain = is_plain(text.as_bytes());
    if is_plain {
        body.reserve(1 + text.len() + N);
        body.push(b'"');
        body.extend_from_slice(text.as_bytes());
        body.extend_from_slice(&end);
    } else {
        scalar(text, body);
        body.extend_from_slice(&end[1..]);
    }
    is_plain
}

/// Returns whether a string needs no escape in JSON: it has no quotes, backslashes or control characters. Checks eight bytes
/// at a time; the last chunk may overlap the one before.
#[inline]
fn is_plain(text: &[u8]) -> bool {
    if let Some(last) = text.last_chunk::<8>() {
        let word = |chunk: &[u8]| chunk.try_into().map_or(0, u64::from_ne_bytes);
        text.chunks_exact(8).fold(specials(word(last)), |found, chunk| found | specials(word(chunk))) == 0
    } else if let (Some(first), Some(last)) = (text.first_chunk::<4>(), text.last_chunk::<4>()) {
        let [first, last] = [first, last].map(|chunk| u64::from(u32::from_ne_bytes(*chunk)));
        specials(first << 32 | last) == 0
    } else {
        !text.iter().any(|byte| matches!(byte, 0..0x20 | b'"' | b'\\'))
    }
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);

/// Returns zero if no byte of the word is below a limit of at most 128. Otherwise, the lowest bit that is set belongs to the
/// first such byte of a little-endian word.
const fn below(limit: u8, word: u64) -> u64 {
    const HIGHS: u64 = ONES << 7;
    word.wrapping_sub(ONES * limit as u64) & !word & HIGHS
}

/// Returns zero if none of eight bytes is a quote or a backslash. Otherwise behaves like [`below`].
const fn quotes(word: u64) -> u64 {
    below(1, word ^ (ONES * b'"' as u64)) | below(1, word ^ (ONES * b'\\' as u64))
}

/// Returns zero if none of eight bytes needs an escape in JSON.
const fn specials(word: u64) -> u64 {
    below(b' ', word) | quotes(word)
}

/// Returns the position after the quoted string at the beginning of `text`.
pub(crate) fn string_end(text: &[u8]) -> Option<usize> {
    let mut position = 1;
    loop {
        let rest = text.get(position..)?;
        if let Some(word) = rest.first_chunk().map(|chunk| quotes(u64::from_le_bytes(*chunk))) {
            if word == 0 {
                position += 8;
                continue;
            }
            position += word.trailing_zeros() as usize / 8;
        }
        match text.get(position)? {
            b'"' => return Some(position + 1),
            b'\\' => position += 2,
            _ => position += 1,
        }
    }
}

/// Writes a value whose serialisation cannot fail: a string, a boolean, a number, null.
pub(crate) fn scalar(value: &(impl Serialize + ?Sized), body: &mut Vec<u8>) {
    // Cannot fail: neither writing to memory nor serialising these values does.
    let _ = serde_json::to_writer(body, value);
}

/// Storage for the fields of most contexts without an allocation.
type Fields<'a, V> = SmallVec<[(&'a str, &'a V); 16]>;

/// Sorts fields by name, in the given storage. Needed even for sorted maps: with serde_json's `preserve_order`, which any crate
/// of an application may enable, objects keep the order of insertion.
fn sorted<'r, 'a, V: 'a>(
    fields: impl IntoIterator<Item = (&'a String, &'a V)>,
    room: &'r mut Fields<'a, V>,
) -> &'r [(&'a str, &'a V)] {
    room.extend(fields.into_iter().map(|(name, value)| (name.as_str(), value)));
    room.sort_unstable_by_key(|(name, _)| *name);
    room
}

/// Writes a number that may not be finite.
pub(crate) fn float(value: f64, body: &mut Vec<u8>) -> Result<(), Unsendable> {
    if !value.is_finite() {
        return Err(Unsendable::Number(value));
    }
    scalar(&value, body);
    Ok(())
}

/// Writes a date as RFC 3339 in UTC, so that one instant has one form in all time zones.
pub(crate) fn date(value: OffsetDateTime, body: &mut Vec<u8>) -> Result<(), Unsendable> {
    let utc = value.checked_to_offset(UtcOffset::UTC).ok_or(Unsendable::Date(value))?;
    body.push(b'"');
    utc.format_into(body, &Rfc3339).map_err(|_| Unsendable::Date(value))?;
    body.push(b'"');
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    fn body(context: &EvaluationContext) -> String {
        String::from_utf8(CanonicalContext::new(context).as_bytes().to_vec()).unwrap()
    }

    fn field(value: impl Into<EvaluationContextFieldValue>) -> EvaluationContext {
        EvaluationContext::default().with_custom_field("z", value)
    }

    #[test]
    fn the_body_holds_every_field_with_its_type() {
        let context = EvaluationContext::default()
            .with_targeting_key("user-123")
            .with_custom_field("plan", "premium")
            .with_custom_field("admin", true)
            .with_custom_field("age", 9_007_199_254_740_993_i64)
            .with_custom_field("score", 0.1)
            .with_custom_field("since", datetime!(2024-01-21 12:30:45.123 +02:00))
            .with_custom_field("shape", Arc::new(StructValue::default().with_field("b", 1).with_field("a", 2.0)))
            .with_custom_field("roles", Arc::new(json!(["z", {"y": null, "x": u64::MAX}])));
        assert_eq!(
            body(&context),
            concat!(
                r#"{"context":{"targetingKey":"user-123","admin":true,"age":9007199254740993,"plan":"premium","#,
                r#""roles":["z",{"x":18446744073709551615,"y":null}],"score":0.1,"shape":{"a":2.0,"b":1},"#,
                r#""since":"2024-01-21T10:30:45.123Z"}}"#
            )
        );
        assert_eq!(body(&EvaluationContext::default()), r#"{"context":{}}"#);
    }

    #[test]
    fn strings_are_escaped_where_necessary() {
        for length in 0..20 {
            for position in 0..length {
                for special in (0..0x80_u8).chain([0xc3]) {
                    let mut text = vec![b'x'; length];
                    text[position] = special;
                    let text = String::from_utf8_lossy(&text);
                    let expected =
                        json!({"context": {"targetingKey": text, "z": {&*text: [text, {}, []]}}}).to_string();
                    let context = field(Arc::new(json!({&*text: [text, {}, []]}))).with_targeting_key(text);
                    assert_eq!(body(&context), expected);
                }
            }
        }
    }

    #[test]
    fn attributes_that_cannot_be_sent_are_left_out() {
        struct Opaque;
        let mut deep = json!(0);
        for _ in 0..100 {
            deep = json!([deep]);
        }
        let cases = [
            (field(f64::NAN), "JSON cannot express NaN"),
            (field(f64::NEG_INFINITY), "JSON cannot express -inf"),
            (field(Arc::new(StructValue::default().with_field("a", f64::INFINITY))), "JSON cannot express inf"),
            (field(Arc::new(Opaque)), "it is a structure of a type that cannot be sent"),
            (field(Arc::new(deep)), "it is nested more than 64 levels deep"),
            (field("x".repeat(70_000)), "it would make the context larger than 65536 bytes (70006 bytes)"),
            (field(datetime!(-0044-03-15 0:00 UTC)), "RFC 3339 cannot express the date -0044-03-15"),
        ];
        for (context, expected) in cases {
            let context = context.with_targeting_key("user").with_custom_field("a", 1).with_custom_field("zz", true);
            let mut body = Vec::new();
            let left_out = write(&context, &mut body).unwrap();
            assert_eq!(body, br#"{"context":{"targetingKey":"user","a":1,"zz":true}}"#);
            assert_eq!(left_out.names().collect::<Vec<_>>(), ["z"]);
            let reasons: Vec<_> = left_out.take_unreported().map(|(_, reason)| reason.to_string()).collect();
            assert!(reasons[0].contains(expected), "{reasons:?}");
            assert!(left_out.targeting_key_error().is_none());
        }
        let mut body = Vec::new();
        let custom_key = EvaluationContext::default().with_custom_field("targetingKey", "admin");
        let left_out = write(&custom_key, &mut body).unwrap();
        assert_eq!(body, EMPTY);
        assert_eq!(left_out.take_unreported().collect::<Vec<_>>(), [(TARGETING_KEY, Unsendable::TargetingKey)]);
    }

    #[test]
    fn contexts_are_equal_exactly_if_their_wire_forms_are() {
        let same = [
            (field(datetime!(2024-01-01 12:00 +02:00)), field(datetime!(2024-01-01 10:00 UTC))),
            (
                field(Arc::new(json!({"a": 1, "b": 2}))),
                field(Arc::new(StructValue::default().with_field("b", 2).with_field("a", 1))),
            ),
            (field("x"), field(Arc::new(json!("x")))),
        ];
        for (left, right) in same {
            assert_eq!(CanonicalContext::new(&left), CanonicalContext::new(&right));
        }
        let different = [
            (field("1"), field(1)),
            (field(1), field(1.0)),
            (field(0.0), field(-0.0)),
            (field(true), field("true")),
            (EvaluationContext::default(), EvaluationContext::default().with_targeting_key("")),
            (field(Arc::new(json!({"a": {"b": 1}}))), field(Arc::new(json!({"a": 1, "b": 1})))),
            (field("a\",\"g\":\"b"), field("a").with_custom_field("g", "b")),
        ];
        for (left, right) in different {
            assert_ne!(CanonicalContext::new(&left), CanonicalContext::new(&right));
        }
    }

    #[test]
    fn a_decoded_context_has_the_same_wire_form() {
        let context = field(u32::MAX)
            .with_targeting_key("key \"\n\u{2028}")
            .with_custom_field("date", datetime!(2024-01-21 12:30:45.123 +02:00))
            .with_custom_field("large", Arc::new(json!(u64::MAX)))
            .with_custom_field("null", Arc::new(json!(null)))
            .with_custom_field("zero", -0.0)
            .with_custom_field("tree", Arc::new(json!({"a": [1, 2.5, {"b": null}]})));
        let canonical = CanonicalContext::new(&context);
        assert_eq!(CanonicalContext::new(&decode(canonical.as_bytes())), canonical);
        assert_eq!(decode(canonical.as_bytes()).targeting_key, context.targeting_key);
    }

    #[test]
    fn the_start_up_context_is_canonical() {
        let context = EvaluationContext::default().with_targeting_key("_init_");
        assert_eq!(CanonicalContext::new(&context), CanonicalContext::start_up());
    }
}
