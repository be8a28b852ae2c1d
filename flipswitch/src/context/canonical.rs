//! The canonical form of evaluation contexts.
//!
//! It is the body of the OFREP request that evaluates the context: the targeting key first, then the other fields sorted by
//! name, with sorted objects inside. Two contexts are equal for the provider exactly when they are equal for the service.

use std::{borrow::Borrow, sync::Arc};

use open_feature::{EvaluationContext, EvaluationContextFieldValue, StructValue, Value as FeatureValue};
use serde::Serialize;
use serde_json::{Map, Value as Json};
use smallvec::SmallVec;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use crate::{context::buffer::Buffer, error::Error};

/// Name of the targeting key among the fields of an OFREP context.
const TARGETING_KEY: &str = "targetingKey";

/// Deepest accepted nesting of structures. Services have limits as well, most of them 128.
const MAX_DEPTH: usize = 64;

/// Largest accepted context, in bytes. It takes as much memory while it is cached.
const MAX_BYTES: usize = 64 << 10;

/// Writes the canonical form of a context.
///
/// # Errors
///
/// [`Error::InvalidContext`] naming the field: a number that JSON cannot express, a date outside the years 0 to 9999, a
/// structure of an unknown type, or a field that would replace the targeting key. Also for a context over 64 KiB.
pub(crate) fn write(context: &EvaluationContext, body: &mut Buffer) -> Result<(), Error> {
    let EvaluationContext { targeting_key, custom_fields } = context;
    body.extend(br#"{"context":{"#);
    if let Some(key) = targeting_key {
        body.extend(br#""targetingKey":"#);
        string(key, body);
        body.push(b',');
    }
    let mut fields = Fields::new();
    for &(name, value) in sorted(custom_fields, &mut fields) {
        if name == TARGETING_KEY {
            return Err(Error::InvalidContext(
                "the custom field \"targetingKey\" would replace the targeting key; set the targeting key itself"
                    .to_owned(),
            ));
        }
        self::name(name, body);
        field(name, value, body)?;
        body.push(b',');
    }
    close(b'}', body);
    body.push(b'}');
    if body.len() <= MAX_BYTES {
        Ok(())
    } else {
        Err(Error::InvalidContext(format!("it has {} bytes, and at most {MAX_BYTES} are sent", body.len())))
    }
}

/// A context in its canonical form. Compared by all its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CanonicalContext(Arc<[u8]>);

impl Borrow<[u8]> for CanonicalContext {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl CanonicalContext {
    /// Makes the canonical form of a context; see [`write`].
    #[cfg(test)]
    pub(crate) fn new(context: &EvaluationContext) -> Result<Self, Error> {
        let mut body = Buffer::new();
        write(context, &mut body)?;
        Ok(Self::from_bytes(&body))
    }

    /// Copies what [`write`] wrote.
    pub(crate) fn from_bytes(body: &[u8]) -> Self {
        Self(body.into())
    }

    const START_UP: &[u8] = br#"{"context":{"targetingKey":"_init_"}}"#;

    /// Returns the context of the request that checks the API key at the start, which the service defines.
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

/// Reads a canonical context back: dates are strings, structures are [`serde_json::Value`]s.
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

fn field(name: &str, value: &EvaluationContextFieldValue, body: &mut Buffer) -> Result<(), Error> {
    match value {
        EvaluationContextFieldValue::Bool(value) => boolean(*value, body),
        EvaluationContextFieldValue::Int(value) => scalar(value, body),
        EvaluationContextFieldValue::Float(value) => float(name, *value, body)?,
        EvaluationContextFieldValue::String(value) => string(value, body),
        EvaluationContextFieldValue::DateTime(value) => date(name, *value, body)?,
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
                return Err(Error::InvalidContext(format!(
                    "the field {name:?} holds a structure of a type that cannot be sent; use open_feature's StructValue \
                     or a serde_json::Value"
                )));
            };
            nested(name, node, 0, body)?;
        }
    }
    Ok(())
}

/// A value inside a structure.
#[derive(Clone, Copy)]
enum Node<'a> {
    Struct(&'a StructValue),
    Feature(&'a FeatureValue),
    Json(&'a Json),
    Map(&'a Map<String, Json>),
}

fn nested(name: &str, node: Node<'_>, depth: usize, body: &mut Buffer) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::InvalidContext(format!("the field {name:?} is nested more than {MAX_DEPTH} deep")));
    }
    match node {
        Node::Struct(value) => map(name, &value.fields, Node::Feature, depth, body),
        Node::Feature(FeatureValue::Struct(value)) => map(name, &value.fields, Node::Feature, depth, body),
        Node::Feature(FeatureValue::Array(values)) => list(name, values, Node::Feature, depth, body),
        Node::Feature(FeatureValue::Float(value)) => float(name, *value, body),
        Node::Feature(FeatureValue::Bool(value)) => {
            boolean(*value, body);
            Ok(())
        }
        Node::Feature(FeatureValue::Int(value)) => {
            scalar(value, body);
            Ok(())
        }
        Node::Feature(FeatureValue::String(value)) => {
            string(value, body);
            Ok(())
        }
        Node::Json(Json::Array(values)) => list(name, values, Node::Json, depth, body),
        Node::Json(Json::Object(fields)) | Node::Map(fields) => map(name, fields, Node::Json, depth, body),
        Node::Json(value) => {
            scalar(value, body);
            Ok(())
        }
    }
}

fn map<'a, V: 'a>(
    name: &str,
    fields: impl IntoIterator<Item = (&'a String, &'a V)>,
    node: fn(&'a V) -> Node<'a>,
    depth: usize,
    body: &mut Buffer,
) -> Result<(), Error> {
    body.push(b'{');
    let mut room = Fields::new();
    for &(key, value) in sorted(fields, &mut room) {
        self::name(key, body);
        nested(name, node(value), depth + 1, body)?;
        body.push(b',');
    }
    close(b'}', body);
    Ok(())
}

fn list<'a, V>(
    name: &str,
    values: &'a [V],
    node: fn(&'a V) -> Node<'a>,
    depth: usize,
    body: &mut Buffer,
) -> Result<(), Error> {
    body.push(b'[');
    for value in values {
        nested(name, node(value), depth + 1, body)?;
        body.push(b',');
    }
    close(b']', body);
    Ok(())
}

/// Ends a list or an object. Each of its elements wrote a comma after itself.
fn close(bracket: u8, body: &mut Buffer) {
    match body.last_mut() {
        Some(comma @ b',') => *comma = bracket,
        _ => body.push(bracket),
    }
}

/// Writes the name of a field, followed by a colon.
fn name(text: &str, body: &mut Buffer) {
    quoted(text, *b"\":", body);
}

fn string(text: &str, body: &mut Buffer) {
    quoted(text, *b"\"", body);
}

/// Writes a string in quotes. `end` is the closing quote and what follows it. Done by hand, because this runs in every
/// evaluation, and most strings need no escape.
fn quoted<const N: usize>(text: &str, end: [u8; N], body: &mut Buffer) {
    if is_plain(text.as_bytes()) {
        body.put([b'"'], text.as_bytes(), end);
    } else {
        scalar(text, body);
        body.extend(&end[1..]);
    }
}

/// Returns whether a string needs no escape in JSON: it has no quotes, backslashes or control characters. Checks eight bytes
/// at a time; the last chunk may overlap the one before.
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

/// Returns zero if none of eight bytes needs an escape in JSON.
const fn specials(word: u64) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHS: u64 = ONES << 7;
    /// Returns zero if no byte of the word is below a limit of at most 128.
    const fn below(limit: u8, word: u64) -> u64 {
        word.wrapping_sub(ONES * limit as u64) & !word & HIGHS
    }
    below(b' ', word) | below(1, word ^ (ONES * b'"' as u64)) | below(1, word ^ (ONES * b'\\' as u64))
}

fn boolean(value: bool, body: &mut Buffer) {
    body.extend(if value { b"true" } else { b"false" });
}

/// Writes a value whose serialization cannot fail: a string, a number, null.
fn scalar(value: &(impl Serialize + ?Sized), body: &mut Buffer) {
    // Cannot fail: neither writing to memory nor serializing these values does.
    let _ = serde_json::to_writer(body, value);
}

/// Storage for the fields of most contexts without an allocation.
type Fields<'a, V> = SmallVec<[(&'a str, &'a V); 16]>;

/// Sorts fields by name, in the given storage. Needed for sorted maps as well: with serde_json's `preserve_order`, which any
/// crate of an application may enable, objects keep the order of insertion.
fn sorted<'r, 'a, V: 'a>(
    fields: impl IntoIterator<Item = (&'a String, &'a V)>,
    room: &'r mut Fields<'a, V>,
) -> &'r [(&'a str, &'a V)] {
    room.extend(fields.into_iter().map(|(name, value)| (name.as_str(), value)));
    room.sort_unstable_by_key(|(name, _)| *name);
    room
}

fn float(name: &str, value: f64, body: &mut Buffer) -> Result<(), Error> {
    if value.is_finite() {
        scalar(&value, body);
        Ok(())
    } else {
        Err(Error::InvalidContext(format!("the field {name:?} holds {value}, which JSON cannot express")))
    }
}

/// Writes a date as RFC 3339 in UTC, so that one instant has one form in all time zones.
fn date(name: &str, value: OffsetDateTime, body: &mut Buffer) -> Result<(), Error> {
    let utc = value.checked_to_offset(UtcOffset::UTC);
    body.push(b'"');
    match utc.map(|utc| utc.format_into(body, &Rfc3339)) {
        Some(Ok(_)) => {
            body.push(b'"');
            Ok(())
        }
        _ => Err(Error::InvalidContext(format!(
            "the field {name:?} holds the date {value}, which RFC 3339 cannot express (years 0 to 9999)"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    fn body(context: &EvaluationContext) -> String {
        String::from_utf8(CanonicalContext::new(context).unwrap().as_bytes().to_vec()).unwrap()
    }

    fn refusal(context: &EvaluationContext) -> String {
        CanonicalContext::new(context).unwrap_err().to_string()
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
    fn strings_are_escaped_wherever_it_is_needed() {
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
    fn what_cannot_be_sent_is_refused_by_name() {
        struct Opaque;
        let mut deep = json!(0);
        for _ in 0..100 {
            deep = json!([deep]);
        }
        let cases = [
            (field(f64::NAN), "\"z\" holds NaN"),
            (field(f64::NEG_INFINITY), "\"z\" holds -inf"),
            (field(Arc::new(StructValue::default().with_field("a", f64::INFINITY))), "\"z\" holds inf"),
            (field(Arc::new(Opaque)), "\"z\" holds a structure of a type that cannot be sent"),
            (field(Arc::new(deep)), "\"z\" is nested more than 64 deep"),
            (field("x".repeat(70_000)), "bytes, and at most 65536 are sent"),
            (field(datetime!(-0044-03-15 0:00 UTC)), "\"z\" holds the date"),
            (
                EvaluationContext::default().with_custom_field("targetingKey", "x"),
                "\"targetingKey\" would replace the targeting key",
            ),
        ];
        for (context, expected) in cases {
            let text = refusal(&context);
            assert!(text.contains(expected), "{text:?} lacks {expected:?}");
        }
    }

    #[test]
    fn contexts_are_the_same_exactly_where_their_wire_form_is() {
        let same = [
            (field(datetime!(2024-01-01 12:00 +02:00)), field(datetime!(2024-01-01 10:00 UTC))),
            (
                field(Arc::new(json!({"a": 1, "b": 2}))),
                field(Arc::new(StructValue::default().with_field("b", 2).with_field("a", 1))),
            ),
            (field("x"), field(Arc::new(json!("x")))),
        ];
        for (left, right) in same {
            assert_eq!(CanonicalContext::new(&left).unwrap(), CanonicalContext::new(&right).unwrap());
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
            assert_ne!(CanonicalContext::new(&left).unwrap(), CanonicalContext::new(&right).unwrap());
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
        let canonical = CanonicalContext::new(&context).unwrap();
        assert_eq!(CanonicalContext::new(&decode(canonical.as_bytes())).unwrap(), canonical);
        assert_eq!(decode(canonical.as_bytes()).targeting_key, context.targeting_key);
    }

    #[test]
    fn the_start_up_context_is_canonical() {
        let context = EvaluationContext::default().with_targeting_key("_init_");
        assert_eq!(CanonicalContext::new(&context).unwrap(), CanonicalContext::start_up());
    }
}
