//! The events of the stream of changes, and their effects.
//!
//! A new kind of event is added in two places: `parse_own` or `parse_advertised` reads it, and [`StreamEvent::effect`] determines
//! its effect.

use serde::Deserialize;
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    events::events::FlagChangeEvent,
    wire::{
        event_streams::{ConfigVersion, refetch},
        transport::StreamSource,
    },
};

/// An event of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StreamEvent {
    /// A flag changed, or possibly all flags. Contains the new version of the flags, if the event names it.
    Changed(FlagChangeEvent, ConfigVersion),
    /// The API key is being replaced, or, with `None`, its replacement was cancelled.
    KeyRotated { valid_until: Option<OffsetDateTime> },
    /// The stream is alive.
    Heartbeat,
    /// An event of a later version of the service.
    Unknown,
}

/// The effect of an event. Each kind of event determines both fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Effect {
    /// Whether cached flags are out of date from now on, and why.
    pub(crate) invalidate: Option<Cause>,
    /// What to notify the application of.
    pub(crate) notify: Option<Notification>,
}

/// Why flags are out of date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A change was announced, with the version of the flags if the event names it. The service may use old rules for a moment
    /// after its own event.
    Announced(ConfigVersion),
    /// A change may have been missed.
    Missed,
}

/// What the application is notified of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notification {
    Changed(FlagChangeEvent),
    KeyRotated { valid_until: Option<OffsetDateTime> },
}

/// The fields of all events. A field of an unexpected type counts as absent.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Data {
    flag_key: Value,
    timestamp: Value,
    valid_until: Value,
}

impl StreamEvent {
    /// Parses an event of a stream.
    pub(crate) fn parse(source: &StreamSource, name: &str, data: &str) -> Self {
        match source {
            StreamSource::Own => Self::parse_own(name, data),
            StreamSource::Advertised(_) => Self::parse_advertised(data),
        }
    }

    /// Parses an OFREP event, which is identified by the type in its data and not by its name (ADR-0008).
    fn parse_advertised(data: &str) -> Self {
        match refetch(data) {
            Some((version, timestamp)) => Self::Changed(FlagChangeEvent { flag_key: None, timestamp }, version),
            None => Self::Unknown,
        }
    }

    /// Parses a Flipswitch event. A change that cannot be read may concern any flag.
    fn parse_own(name: &str, data: &str) -> Self {
        let data = || serde_json::from_str::<Data>(data).unwrap_or_default();
        match name {
            "flag-updated" => {
                let Data { flag_key, timestamp, .. } = data();
                let flag_key = match flag_key {
                    Value::String(key) if !key.is_empty() => Some(key),
                    _ => None,
                };
                Self::Changed(FlagChangeEvent { flag_key, timestamp: date(&timestamp) }, ConfigVersion::default())
            }
            "config-updated" => {
                let change = FlagChangeEvent { flag_key: None, timestamp: date(&data().timestamp) };
                Self::Changed(change, ConfigVersion::default())
            }
            "api-key-rotated" => Self::KeyRotated { valid_until: date(&data().valid_until) },
            "heartbeat" => Self::Heartbeat,
            _ => Self::Unknown,
        }
    }

    /// Returns the effect of the event. `is_first_heartbeat` is true for the first heartbeat on this connection.
    pub(crate) fn effect(self, is_first_heartbeat: bool) -> Effect {
        match self {
            Self::Changed(change, version) => {
                Effect { invalidate: Some(Cause::Announced(version)), notify: Some(Notification::Changed(change)) }
            }
            Self::KeyRotated { valid_until } => {
                let notify = Some(Notification::KeyRotated { valid_until });
                Effect { invalidate: None, notify }
            }
            // The service may have subscribed this connection to changes only after it sent the response head.
            Self::Heartbeat => Effect { invalidate: is_first_heartbeat.then_some(Cause::Missed), notify: None },
            Self::Unknown => Effect { invalidate: None, notify: None },
        }
    }
}

/// Parses an RFC 3339 date. A date without an offset is in UTC.
fn date(value: &Value) -> Option<OffsetDateTime> {
    let text = value.as_str()?;
    OffsetDateTime::parse(text, &Rfc3339).or_else(|_| OffsetDateTime::parse(&format!("{text}Z"), &Rfc3339)).ok()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn changed(flag_key: Option<&str>, timestamp: Option<OffsetDateTime>) -> StreamEvent {
        let change = FlagChangeEvent { flag_key: flag_key.map(str::to_owned), timestamp };
        StreamEvent::Changed(change, ConfigVersion::default())
    }

    #[test]
    fn events_are_parsed_as_the_service_sends_them() {
        let at = datetime!(2024-01-21 10:30:45.123 UTC);
        let read = StreamEvent::parse_own(
            "flag-updated",
            r#"{"flagKey":"my-feature","timestamp":"2024-01-21T10:30:45.123Z"}"#,
        );
        assert_eq!(read, changed(Some("my-feature"), Some(at)));
        let segment = r#"{"timestamp":"2024-01-21T10:30:45.123Z","reason":"segment-modified"}"#;
        assert_eq!(StreamEvent::parse_own("config-updated", segment), changed(None, Some(at)));
        let rotated =
            StreamEvent::parse_own("api-key-rotated", r#"{"validUntil":"2025-06-01T00:00:00Z","timestamp":"…"}"#);
        assert_eq!(rotated, StreamEvent::KeyRotated { valid_until: Some(datetime!(2025-06-01 0:00 UTC)) });
        assert_eq!(StreamEvent::parse_own("heartbeat", "{}"), StreamEvent::Heartbeat);
        assert_eq!(StreamEvent::parse_own("message", "{}"), StreamEvent::Unknown);
        assert_eq!(StreamEvent::parse_own("Flag-Updated", "{}"), StreamEvent::Unknown);
    }

    #[test]
    fn a_change_that_cannot_be_read_may_concern_any_flag() {
        for data in ["", "{", "null", "7", "[]", r#"{"flagKey":null}"#, r#"{"flagKey":7}"#, r#"{"flagKey":""}"#, "{}"] {
            assert_eq!(StreamEvent::parse_own("flag-updated", data), changed(None, None), "{data}");
            assert_eq!(StreamEvent::parse_own("config-updated", data), changed(None, None), "{data}");
        }
        // Readable fields are kept.
        let data = r#"{"flagKey":"f","timestamp":1705833045123}"#;
        assert_eq!(StreamEvent::parse_own("flag-updated", data), changed(Some("f"), None));
    }

    #[test]
    fn a_date_without_an_offset_is_in_utc() {
        let rotated = StreamEvent::parse_own("api-key-rotated", r#"{"validUntil":"2025-06-01T00:00:00"}"#);
        assert_eq!(rotated, StreamEvent::KeyRotated { valid_until: Some(datetime!(2025-06-01 0:00 UTC)) });
    }

    #[test]
    fn a_rotation_without_a_date_was_cancelled() {
        for data in [r#"{"validUntil":null}"#, r#"{"validUntil":""}"#, "{}", "nonsense"] {
            assert_eq!(
                StreamEvent::parse_own("api-key-rotated", data),
                StreamEvent::KeyRotated { valid_until: None },
                "{data}"
            );
        }
    }
}
