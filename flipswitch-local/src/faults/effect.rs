//! The effects of faults, and their JSON.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::faults::{error::FaultError, handle::ConnectionAction, payload::Payload};

/// The effect of a fault. Its variants and fields are those of the JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub(crate) enum Effect {
    Status {
        code: u16,
        #[serde(default)]
        headers: BTreeMap<String, String>,
        #[serde(default)]
        body: Payload,
    },
    Redirect {
        #[serde(default = "temporary_redirect")]
        code: u16,
        location: String,
    },
    Delay {
        #[serde(with = "millis")]
        millis: Duration,
    },
    Hang {},
    Close {
        #[serde(default)]
        after_bytes: Option<u64>,
    },
    Reset {
        #[serde(default)]
        after_bytes: Option<u64>,
    },
    HalfOpen {
        #[serde(default)]
        after_bytes: u64,
    },
    Trickle {
        bytes: usize,
        #[serde(with = "millis")]
        every_millis: Duration,
    },
    Garbage {
        body: Payload,
        #[serde(default)]
        content_type: Option<String>,
    },
    ContentType(String),
    NoHeartbeats {},
}

impl Effect {
    /// Returns after how many bytes of its body the response is cut off, and what happens to the connection then.
    pub(crate) fn cut(&self) -> Option<(u64, ConnectionAction)> {
        match *self {
            Self::Close { after_bytes } => Some((after_bytes?, ConnectionAction::Close)),
            Self::Reset { after_bytes } => Some((after_bytes?, ConnectionAction::Reset)),
            Self::HalfOpen { after_bytes } => Some((after_bytes, ConnectionAction::Silence)),
            _ => None,
        }
    }

    /// Returns whether the endpoint still handles the request.
    pub(crate) fn reaches_endpoint(&self) -> bool {
        self.cut().is_some() || matches!(self, Self::Delay { .. } | Self::Trickle { .. } | Self::ContentType(_))
    }

    /// Returns whether the effect changes the body of the response, so that there must be one.
    pub(crate) fn needs_body(&self) -> bool {
        self.reaches_endpoint() && !matches!(self, Self::Delay { .. })
    }

    /// Checks the values that headers and status lines cannot contain.
    pub(crate) fn validate(&self) -> Result<(), FaultError> {
        match self {
            Self::Status { code, headers, .. } => {
                check_code(*code, 200..=999, "effect.status.code")?;
                headers.iter().try_for_each(|(name, value)| check_header(name, value))
            }
            Self::Redirect { code, location } => {
                check_code(*code, 300..=399, "effect.redirect.code")?;
                check_value(location, "effect.redirect.location")
            }
            Self::Trickle { bytes: 0, .. } => Err(FaultError::new("effect.trickle.bytes", "must be at least 1")),
            Self::Garbage { content_type: Some(content_type), .. } => {
                check_value(content_type, "effect.garbage.contentType")
            }
            Self::ContentType(content_type) => check_value(content_type, "effect.contentType"),
            _ => Ok(()),
        }
    }
}

fn check_code(code: u16, allowed: RangeInclusive<u16>, field: &'static str) -> Result<(), FaultError> {
    if allowed.contains(&code) && StatusCode::from_u16(code).is_ok() {
        return Ok(());
    }
    Err(FaultError::new(field, format!("{code} is not between {} and {}", allowed.start(), allowed.end())))
}

fn check_header(name: &str, value: &str) -> Result<(), FaultError> {
    const FIELD: &str = "effect.status.headers";
    let Ok(known) = name.parse::<HeaderName>() else {
        return Err(FaultError::new(FIELD, format!("{name:?} is not a valid header name")));
    };
    if known == header::CONTENT_LENGTH || known == header::TRANSFER_ENCODING {
        let problem =
            format!("{name:?} is set by the server; to send a shorter body than announced, close with afterBytes");
        return Err(FaultError::new(FIELD, problem));
    }
    HeaderValue::from_str(value)
        .map_err(|_| FaultError::new(FIELD, format!("{value:?} is not a valid value of {name:?}")))
        .map(drop)
}

fn check_value(value: &str, field: &'static str) -> Result<(), FaultError> {
    HeaderValue::from_str(value)
        .map_err(|_| FaultError::new(field, format!("{value:?} is not a valid header value")))
        .map(drop)
}

fn temporary_redirect() -> u16 {
    307
}

/// Deserializes an effect from `{"name": {..}}`, or from `"name"` if it has no required fields.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Effect, D::Error> {
    struct NameOrMap;

    impl<'de> Visitor<'de> for NameOrMap {
        type Value = Effect;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the name of an effect, or an object with one effect")
        }

        fn visit_str<E: de::Error>(self, name: &str) -> Result<Effect, E> {
            serde_json::from_value(serde_json::json!({ name: {} })).map_err(de::Error::custom)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Effect, A::Error> {
            let effect = Effect::deserialize(MapAccessDeserializer::new(&mut map))?;
            match map.next_key::<String>()? {
                None => Ok(effect),
                Some(other) => {
                    Err(de::Error::custom(format!("a fault has only one effect, but {other:?} is a second one")))
                }
            }
        }
    }

    deserializer.deserialize_any(NameOrMap)
}

/// Durations in JSON, as a whole number of milliseconds.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}
