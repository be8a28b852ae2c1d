//! The types that the attributes of a context can have.

use std::{borrow::Cow, sync::Arc};

use open_feature::{EvaluationContextFieldValue, StructValue, Value as FeatureValue};
use serde_json::{Map, Value as Json};
use time::OffsetDateTime;

use crate::context::{canonical, left_out::Unsendable};

/// Types that [`Context::with`](crate::Context::with) accepts as the value of an attribute.
///
/// Implemented for `str`, `String`, `Cow<str>`, `bool`, integers up to 64 bits, `f32`, `f64`, `time::OffsetDateTime`,
/// `serde_json::Value` and maps of it, `StructValue`, `Value` and `EvaluationContextFieldValue` of OpenFeature, slices, arrays
/// and `Vec`s of these types, references to them, `Arc`s of them, and `Option`s. `None` adds no attribute, and no element to a
/// list. A JSON `null` is sent. An `f32` is sent as the `f64` of the same value. A list or structure that contains a value that
/// cannot be sent is left out completely.
///
/// Applications cannot implement this trait. Convert other types, for example with `to_string()` or
/// `serde_json::to_value(..)`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an attribute of a context",
    label = "not a string, boolean, number, date, list or JSON value",
    note = "convert it, for example with `.to_string()` or `serde_json::to_value(..)`"
)]
pub trait AttributeValue {
    /// Appends the value as JSON.
    ///
    /// # Errors
    ///
    /// The reason why it cannot be sent.
    #[doc(hidden)]
    fn write_json(&self, body: &mut Vec<u8>) -> Result<(), Unsendable>;
}

impl<T: AttributeValue + ?Sized> AttributeValue for &T {
    fn write_json(&self, body: &mut Vec<u8>) -> Result<(), Unsendable> {
        (**self).write_json(body)
    }
}

impl<T: AttributeValue> AttributeValue for Option<T> {
    fn write_json(&self, body: &mut Vec<u8>) -> Result<(), Unsendable> {
        self.as_ref().ok_or(Unsendable::Absent)?.write_json(body)
    }
}

impl<T: AttributeValue + ?Sized> AttributeValue for Arc<T> {
    fn write_json(&self, body: &mut Vec<u8>) -> Result<(), Unsendable> {
        (**self).write_json(body)
    }
}

impl<T: AttributeValue> AttributeValue for [T] {
    fn write_json(&self, body: &mut Vec<u8>) -> Result<(), Unsendable> {
        canonical::list(self, body, AttributeValue::write_json)
    }
}

impl<T: AttributeValue, const N: usize> AttributeValue for [T; N] {
    fn write_json(&self, body: &mut Vec<u8>) -> Result<(), Unsendable> {
        self.as_slice().write_json(body)
    }
}

impl<T: AttributeValue> AttributeValue for Vec<T> {
    fn write_json(&self, body: &mut Vec<u8>) -> Result<(), Unsendable> {
        self.as_slice().write_json(body)
    }
}

/// Implements the trait for types with a function that writes them.
macro_rules! values {
    ($($type:ty: $write:expr;)*) => {$(
        impl AttributeValue for $type {
            fn write_json(&self, body: &mut Vec<u8>) -> Result<(), Unsendable> {
                let write: fn(&Self, &mut Vec<u8>) -> Result<(), Unsendable> = $write;
                write(self, body)
            }
        }
    )*};
}

/// Implements the trait for types that can always be written as JSON.
macro_rules! scalars {
    ($($type:ty)*) => {values! {$(
        $type: |value, body| {
            canonical::scalar(value, body);
            Ok(())
        };
    )*}};
}

scalars! { bool i8 i16 i32 i64 isize u8 u16 u32 u64 usize }

values! {
    f64: |value, body| canonical::float(*value, body);
    f32: |value, body| canonical::float(f64::from(*value), body);
    str: |value, body| {
        canonical::string(value, body);
        Ok(())
    };
    String: |value, body| value.as_str().write_json(body);
    Cow<'_, str>: |value, body| (**value).write_json(body);
    OffsetDateTime: |value, body| canonical::date(*value, body);
    Json: |value, body| canonical::nested(canonical::Node::Json(value), 0, body);
    Map<String, Json>: |value, body| canonical::nested(canonical::Node::Map(value), 0, body);
    StructValue: |value, body| canonical::nested(canonical::Node::Struct(value), 0, body);
    FeatureValue: |value, body| canonical::nested(canonical::Node::Feature(value), 0, body);
    EvaluationContextFieldValue: |value, body| canonical::field(value, body);
}
