//! Evaluation context → canonical form.
//!
//! The canonical form of a context is the body of the OFREP request that evaluates it: the targeting key first, then
//! the other fields sorted by name, objects within them sorted too. So two contexts are the same to us exactly when
//! the service cannot tell them apart.

use std::{borrow::Borrow, sync::Arc};

use open_feature::{EvaluationContext, EvaluationContextFieldValue, StructValue, Value as FeatureValue};
use serde::ser::{Error as _, Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::{Map, Value as Json};
use smallvec::SmallVec;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use crate::Error;

/// How OFREP spells the targeting key among the other fields.
const TARGETING_KEY: &str = "targetingKey";

/// Structures nested deeper than this are refused: services refuse them as well, most at 128.
const MAX_DEPTH: usize = 64;

/// Room for the canonical form of most contexts, without an allocation.
pub(crate) type Buffer = SmallVec<[u8; 512]>;

/// A context of more bytes than this is a mistake: it would take as much memory for as long as it is known.
const MAX_BYTES: usize = 64 << 10;

/// Writes the canonical form of a context.
///
/// # Errors
///
/// [`Error::InvalidContext`] naming the field: a number that JSON does not have, a date before year 0 or after 9999, a
/// structure of an unknown type, or a field that would take the place of the targeting key. Or if it is larger than
/// 64 KiB.
pub(crate) fn write(context: &EvaluationContext) -> Result<Buffer, Error> {
    let mut body = Buffer::new();
    match serde_json::to_writer(&mut body, &Body(context)) {
        Ok(()) if body.len() <= MAX_BYTES => Ok(body),
        Ok(()) => Err(Error::InvalidContext(format!("it has {} bytes, and at most {MAX_BYTES} are sent", body.len()))),
        Err(error) => Err(Error::InvalidContext(error.to_string())),
    }
}

/// A context in its canonical form. It is found by these bytes, which are compared in full.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CanonicalContext(Arc<[u8]>);

impl Borrow<[u8]> for CanonicalContext {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl CanonicalContext {
    /// Brings a context into its canonical form, as [`write`] does.
    #[cfg(test)]
    pub(crate) fn new(context: &EvaluationContext) -> Result<Self, Error> {
        write(context).map(|body| Self::from_bytes(&body))
    }

    /// Keeps what [`write`] wrote.
    pub(crate) fn from_bytes(body: &[u8]) -> Self {
        Self(body.into())
    }

    /// The context of the request that checks the key at start, fixed by the service.
    pub(crate) fn start_up() -> Self {
        Self::from_bytes(br#"{"context":{"targetingKey":"_init_"}}"#)
    }

    /// The body of the OFREP request.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The context as it goes over the wire: dates are strings, structures are [`serde_json::Value`]s.
    pub(crate) fn decode(&self) -> EvaluationContext {
        let mut context = EvaluationContext::default();
        let fields = match serde_json::from_slice(&self.0) {
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
}

/// The field that a JSON value came from, or one that gives the same JSON again.
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

struct Body<'a>(&'a EvaluationContext);

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut body = serializer.serialize_map(Some(1))?;
        body.serialize_entry("context", &Fields(self.0))?;
        body.end()
    }
}

struct Fields<'a>(&'a EvaluationContext);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let EvaluationContext { targeting_key, custom_fields } = self.0;
        let mut map = serializer.serialize_map(None)?;
        if let Some(key) = targeting_key {
            map.serialize_entry(TARGETING_KEY, key)?;
        }
        for (name, value) in sorted(custom_fields) {
            if name == TARGETING_KEY {
                return Err(S::Error::custom(
                    "the custom field \"targetingKey\" would take the place of the targeting key; set the targeting \
                     key itself",
                ));
            }
            map.serialize_entry(name, &Field { name, value })?;
        }
        map.end()
    }
}

struct Field<'a> {
    name: &'a str,
    value: &'a EvaluationContextFieldValue,
}

impl Serialize for Field<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { name, value } = *self;
        match value {
            EvaluationContextFieldValue::Bool(value) => serializer.serialize_bool(*value),
            EvaluationContextFieldValue::Int(value) => serializer.serialize_i64(*value),
            EvaluationContextFieldValue::Float(value) => finite(name, *value, serializer),
            EvaluationContextFieldValue::String(value) => serializer.serialize_str(value),
            EvaluationContextFieldValue::DateTime(value) => date(name, *value, serializer),
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
                    return Err(S::Error::custom(format_args!(
                        "the field {name:?} holds a structure of a type that cannot be sent; use open_feature's \
                         StructValue or a serde_json::Value"
                    )));
                };
                Nested { name, node, depth: 0 }.serialize(serializer)
            }
        }
    }
}

/// A value inside a structure.
struct Nested<'a> {
    name: &'a str,
    node: Node<'a>,
    depth: usize,
}

#[derive(Clone, Copy)]
enum Node<'a> {
    Struct(&'a StructValue),
    Feature(&'a FeatureValue),
    Json(&'a Json),
    Map(&'a Map<String, Json>),
}

impl<'a> Nested<'a> {
    fn map<S: Serializer, V: 'a>(
        &self,
        serializer: S,
        fields: impl IntoIterator<Item = (&'a String, &'a V)>,
        node: fn(&'a V) -> Node<'a>,
    ) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in sorted(fields) {
            map.serialize_entry(key, &self.inner(node(value)))?;
        }
        map.end()
    }

    fn list<S: Serializer, V: 'a>(
        &self,
        serializer: S,
        values: &'a [V],
        node: fn(&'a V) -> Node<'a>,
    ) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(values.len()))?;
        for value in values {
            list.serialize_element(&self.inner(node(value)))?;
        }
        list.end()
    }

    fn inner(&self, node: Node<'a>) -> Self {
        Self { name: self.name, node, depth: self.depth + 1 }
    }
}

impl Serialize for Nested<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.depth > MAX_DEPTH {
            let name = self.name;
            return Err(S::Error::custom(format_args!("the field {name:?} is nested more than {MAX_DEPTH} deep")));
        }
        match self.node {
            Node::Struct(value) => self.map(serializer, &value.fields, Node::Feature),
            Node::Feature(value) => match value {
                FeatureValue::Bool(value) => serializer.serialize_bool(*value),
                FeatureValue::Int(value) => serializer.serialize_i64(*value),
                FeatureValue::Float(value) => finite(self.name, *value, serializer),
                FeatureValue::String(value) => serializer.serialize_str(value),
                FeatureValue::Array(values) => self.list(serializer, values, Node::Feature),
                FeatureValue::Struct(value) => self.map(serializer, &value.fields, Node::Feature),
            },
            Node::Json(value) => match value {
                Json::Array(values) => self.list(serializer, values, Node::Json),
                Json::Object(fields) => self.map(serializer, fields, Node::Json),
                scalar => scalar.serialize(serializer),
            },
            Node::Map(fields) => self.map(serializer, fields, Node::Json),
        }
    }
}

/// Fields by name. Sorted here even where the map is: with serde_json's `preserve_order`, which any crate of an
/// application may switch on, objects keep the order of insertion.
fn sorted<'a, V: 'a>(fields: impl IntoIterator<Item = (&'a String, &'a V)>) -> SmallVec<[(&'a str, &'a V); 16]> {
    let mut fields: SmallVec<[_; 16]> = fields.into_iter().map(|(name, value)| (name.as_str(), value)).collect();
    fields.sort_unstable_by_key(|(name, _)| *name);
    fields
}

fn finite<S: Serializer>(name: &str, value: f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() {
        serializer.serialize_f64(value)
    } else {
        Err(S::Error::custom(format_args!("the field {name:?} holds {value}, which JSON cannot express")))
    }
}

/// RFC 3339 in UTC, so that one instant is one text whatever its zone.
fn date<S: Serializer>(name: &str, value: OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    let text = value.checked_to_offset(UtcOffset::UTC).and_then(|utc| utc.format(&Rfc3339).ok());
    match text {
        Some(text) => serializer.serialize_str(&text),
        None => Err(S::Error::custom(format_args!(
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
        String::from_utf8(write(context).unwrap().to_vec()).unwrap()
    }

    fn refusal(context: &EvaluationContext) -> String {
        write(context).unwrap_err().to_string()
    }

    fn field(value: impl Into<EvaluationContextFieldValue>) -> EvaluationContext {
        EvaluationContext::default().with_custom_field("f", value)
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
    fn what_cannot_be_sent_is_refused_by_name() {
        struct Opaque;
        let mut deep = json!(0);
        for _ in 0..100 {
            deep = json!([deep]);
        }
        let cases = [
            (field(f64::NAN), "\"f\" holds NaN"),
            (field(f64::NEG_INFINITY), "\"f\" holds -inf"),
            (field(Arc::new(StructValue::default().with_field("a", f64::INFINITY))), "\"f\" holds inf"),
            (field(Arc::new(Opaque)), "\"f\" holds a structure of a type that cannot be sent"),
            (field(Arc::new(deep)), "\"f\" is nested more than 64 deep"),
            (field("x".repeat(70_000)), "bytes, and at most 65536 are sent"),
            (field(datetime!(-0044-03-15 0:00 UTC)), "\"f\" holds the date"),
            (
                EvaluationContext::default().with_custom_field("targetingKey", "x"),
                "\"targetingKey\" would take the place of the targeting key",
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
        assert_eq!(CanonicalContext::new(&canonical.decode()).unwrap(), canonical);
        assert_eq!(canonical.decode().targeting_key, context.targeting_key);
    }

    #[test]
    fn the_start_up_context_is_canonical() {
        let context = EvaluationContext::default().with_targeting_key("_init_");
        assert_eq!(CanonicalContext::new(&context).unwrap(), CanonicalContext::start_up());
    }
}
