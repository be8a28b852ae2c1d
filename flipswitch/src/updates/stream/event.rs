//! The events that the service sends, and what they mean.

use serde::Deserialize;
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::events::events::FlagChangeEvent;

/// What an event means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A flag changed, or possibly all did.
    Changed(FlagChangeEvent),
    /// The API key is to be replaced by then; `None` if that was called off.
    KeyRotated { valid_until: Option<OffsetDateTime> },
    /// The stream is alive.
    Heartbeat,
    /// Something that later versions of the service may say.
    Unknown,
}

/// The fields of all events. Whatever has another type than expected is taken as absent.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Data {
    flag_key: Value,
    timestamp: Value,
    valid_until: Value,
}

impl Event {
    /// Reads an event by its name. One of a change that cannot be read may be about any flag.
    pub(crate) fn read(name: &str, data: &str) -> Self {
        let data = || serde_json::from_str::<Data>(data).unwrap_or_default();
        match name {
            "flag-updated" => {
                let Data { flag_key, timestamp, .. } = data();
                let flag_key = match flag_key {
                    Value::String(key) if !key.is_empty() => Some(key),
                    _ => None,
                };
                Self::Changed(FlagChangeEvent { flag_key, timestamp: date(&timestamp) })
            }
            "config-updated" => Self::Changed(FlagChangeEvent { flag_key: None, timestamp: date(&data().timestamp) }),
            "api-key-rotated" => Self::KeyRotated { valid_until: date(&data().valid_until) },
            "heartbeat" => Self::Heartbeat,
            _ => Self::Unknown,
        }
    }
}

fn date(value: &Value) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(value.as_str()?, &Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn changed(flag_key: Option<&str>, timestamp: Option<OffsetDateTime>) -> Event {
        Event::Changed(FlagChangeEvent { flag_key: flag_key.map(str::to_owned), timestamp })
    }

    #[test]
    fn events_are_read_as_the_service_sends_them() {
        let at = datetime!(2024-01-21 10:30:45.123 UTC);
        let read = Event::read("flag-updated", r#"{"flagKey":"my-feature","timestamp":"2024-01-21T10:30:45.123Z"}"#);
        assert_eq!(read, changed(Some("my-feature"), Some(at)));
        let segment = r#"{"timestamp":"2024-01-21T10:30:45.123Z","reason":"segment-modified"}"#;
        assert_eq!(Event::read("config-updated", segment), changed(None, Some(at)));
        let rotated = Event::read("api-key-rotated", r#"{"validUntil":"2025-06-01T00:00:00Z","timestamp":"…"}"#);
        assert_eq!(rotated, Event::KeyRotated { valid_until: Some(datetime!(2025-06-01 0:00 UTC)) });
        assert_eq!(Event::read("heartbeat", "{}"), Event::Heartbeat);
        assert_eq!(Event::read("message", "{}"), Event::Unknown);
        assert_eq!(Event::read("Flag-Updated", "{}"), Event::Unknown);
    }

    #[test]
    fn a_change_that_cannot_be_read_may_be_about_any_flag() {
        for data in ["", "{", "null", "7", "[]", r#"{"flagKey":null}"#, r#"{"flagKey":7}"#, r#"{"flagKey":""}"#, "{}"] {
            assert_eq!(Event::read("flag-updated", data), changed(None, None), "{data}");
            assert_eq!(Event::read("config-updated", data), changed(None, None), "{data}");
        }
        // What can be read of it is kept.
        let data = r#"{"flagKey":"f","timestamp":1705833045123}"#;
        assert_eq!(Event::read("flag-updated", data), changed(Some("f"), None));
    }

    #[test]
    fn a_rotation_that_names_no_date_was_called_off() {
        for data in [r#"{"validUntil":null}"#, r#"{"validUntil":""}"#, "{}", "nonsense"] {
            assert_eq!(Event::read("api-key-rotated", data), Event::KeyRotated { valid_until: None }, "{data}");
        }
    }
}
