//! Bytes in JSON: a string, `{"json": ..}`, or `{"base64": ".."}`.

use std::fmt;

use axum::body::Bytes;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor},
    ser::SerializeMap,
};
use serde_json::Value;

/// Bytes, which need not be UTF-8.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Payload(pub(crate) Bytes);

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("base64", &STANDARD.encode(&self.0))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PayloadVisitor)
    }
}

struct PayloadVisitor;

impl<'de> Visitor<'de> for PayloadVisitor {
    type Value = Payload;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, {\"json\": ..}, or {\"base64\": \"..\"}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Payload, E> {
        Ok(Payload(Bytes::copy_from_slice(text.as_bytes())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Payload, A::Error> {
        const FORMS: &[&str] = &["json", "base64"];
        let mut bytes = None;
        while let Some(form) = map.next_key::<String>()? {
            if bytes.is_some() {
                return Err(de::Error::custom(format!("a body has only one form, but {form:?} is a second one")));
            }
            bytes = Some(match form.as_str() {
                "json" => map.next_value::<Value>()?.to_string().into_bytes(),
                "base64" => {
                    let text: String = map.next_value()?;
                    STANDARD.decode(text).map_err(|error| de::Error::custom(format!("base64: {error}")))?
                }
                _ => return Err(de::Error::unknown_field(&form, FORMS)),
            });
        }
        Ok(Payload(bytes.ok_or_else(|| de::Error::custom("a body is empty, but needs json or base64"))?.into()))
    }
}
