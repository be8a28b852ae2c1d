//! The effects of faults, and their JSON.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::faults::{error::FaultError, handle::ConnectionAction, payload::Payload};

/// Limits the headers of a response. Clients do not accept many more.
const MAX_HEADERS: usize = 100;

/// Limits the concurrency and the rate that a fault allows.
const MAX_LIMIT: usize = 10_000;

/// The effect of a fault. Its variants and fields are the same as in JSON.
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
        #[serde(default, skip_serializing_if = "Option::is_none")]
        concurrency: Option<usize>,
    },
    RateLimit {
        per_second: usize,
        #[serde(default)]
        headers: BTreeMap<String, String>,
        #[serde(default)]
        body: Payload,
    },
    Hang {},
    Close {
        #[serde(default)]
        after_bytes: Option<u64>,
        #[serde(default, with = "optional_millis", skip_serializing_if = "Option::is_none")]
        after_millis: Option<Duration>,
    },
    Reset {
        #[serde(default)]
        after_bytes: Option<u64>,
        #[serde(default, with = "optional_millis", skip_serializing_if = "Option::is_none")]
        after_millis: Option<Duration>,
    },
    Finish {
        #[serde(default, with = "millis")]
        after_millis: Duration,
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
    FlagError(FlagError),
    NotModified {},
    NoHeartbeats {},
    NoReplay {},
    SplitEvents {},
}

/// Tells the endpoint that an event stream sends nothing when it opens.
#[derive(Clone, Copy)]
pub(crate) struct NoReplay;

/// The error for one flag, instead of its value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct FlagError {
    pub(crate) key: String,
    #[serde(default = "general")]
    pub(crate) code: String,
    #[serde(default = "simulated")]
    pub(crate) details: String,
}

impl FlagError {
    pub(crate) fn new(key: String, code: String) -> Self {
        Self { key, code, details: simulated() }
    }
}

fn general() -> String {
    "GENERAL".to_owned()
}

fn simulated() -> String {
    "simulated by a fault".to_owned()
}

impl Effect {
    /// Returns the number of bytes after which the body is cut off, and the action on the connection.
    pub(crate) fn cut(&self) -> Option<(u64, ConnectionAction)> {
        match *self {
            Self::Close { after_bytes, .. } => Some((after_bytes?, ConnectionAction::Close)),
            Self::Reset { after_bytes, .. } => Some((after_bytes?, ConnectionAction::Reset)),
            Self::HalfOpen { after_bytes } => Some((after_bytes, ConnectionAction::Silence)),
            _ => None,
        }
    }

    /// Returns the time after which a stream ends, and the action on its connection: none if the stream ends gracefully.
    pub(crate) fn end_of_stream(&self) -> Option<(Duration, Option<ConnectionAction>)> {
        match *self {
            Self::Close { after_millis, .. } => Some((after_millis?, Some(ConnectionAction::Close))),
            Self::Reset { after_millis, .. } => Some((after_millis?, Some(ConnectionAction::Reset))),
            Self::Finish { after_millis } => Some((after_millis, None)),
            _ => None,
        }
    }

    /// Returns whether the endpoint still handles the request.
    pub(crate) fn reaches_endpoint(&self) -> bool {
        self.changes_body() || matches!(self, Self::Delay { .. } | Self::FlagError(_) | Self::NoReplay {})
    }

    /// Returns whether the effect changes the body of the response, in which case the response must have one.
    pub(crate) fn changes_body(&self) -> bool {
        self.cut().is_some()
            || self.end_of_stream().is_some()
            || matches!(self, Self::Trickle { .. } | Self::SplitEvents {} | Self::ContentType(_))
    }

    /// Checks that all values are in range, and that headers and status lines can contain them.
    pub(crate) fn validate(&self) -> Result<(), FaultError> {
        match self {
            Self::Status { code, headers, .. } => {
                check_code(*code, 200..=999, "effect.status.code")?;
                check_headers(headers, "effect.status.headers")
            }
            Self::Delay { concurrency: Some(concurrency), .. } => check_limit(*concurrency, "effect.delay.concurrency"),
            Self::RateLimit { per_second, headers, .. } => {
                check_limit(*per_second, "effect.rateLimit.perSecond")?;
                check_headers(headers, "effect.rateLimit.headers")
            }
            Self::Close { after_bytes: Some(_), after_millis: Some(_) } => {
                Err(FaultError::new("effect.close", "must not have both afterBytes and afterMillis"))
            }
            Self::Reset { after_bytes: Some(_), after_millis: Some(_) } => {
                Err(FaultError::new("effect.reset", "must not have both afterBytes and afterMillis"))
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

fn check_limit(limit: usize, field: &'static str) -> Result<(), FaultError> {
    if (1..=MAX_LIMIT).contains(&limit) {
        return Ok(());
    }
    Err(FaultError::new(field, format!("{limit} is not between 1 and {MAX_LIMIT}")))
}

fn check_headers(headers: &BTreeMap<String, String>, field: &'static str) -> Result<(), FaultError> {
    if headers.len() > MAX_HEADERS {
        return Err(FaultError::new(
            field,
            format!("has {} entries, but at most {MAX_HEADERS} are allowed", headers.len()),
        ));
    }
    headers.iter().try_for_each(|(name, value)| check_header(name, value, field))
}

fn check_header(name: &str, value: &str, field: &'static str) -> Result<(), FaultError> {
    let Ok(known) = name.parse::<HeaderName>() else {
        return Err(FaultError::new(field, format!("{name:?} is not a valid header name")));
    };
    if known == header::CONTENT_LENGTH || known == header::TRANSFER_ENCODING {
        let problem =
            format!("{name:?} is set by the server; to send a shorter body than announced, close with afterBytes");
        return Err(FaultError::new(field, problem));
    }
    HeaderValue::from_str(value)
        .map_err(|_| FaultError::new(field, format!("{value:?} is not a valid value for {name:?}")))
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

/// Deserialises an effect from `{"name": {..}}`, or from `"name"` if it has no required fields.
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

/// Like [`millis`], for optional durations.
mod optional_millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::millis::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_millis))
    }
}
