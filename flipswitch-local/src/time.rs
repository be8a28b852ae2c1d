//! Points in time as the service writes and reads them: RFC 3339 dates in UTC.

use std::time::SystemTime;

use serde::{Deserialize, Deserializer, de};
use time::{Duration, OffsetDateTime, PrimitiveDateTime, UtcOffset, format_description::well_known::Rfc3339};

/// Formats the current time.
pub(crate) fn now() -> String {
    timestamp(OffsetDateTime::now_utc())
}

/// Formats a time in UTC, always with three digits of milliseconds. The well-known format of the `time` crate omits
/// trailing zeros, which the service does not.
pub(crate) fn timestamp(time: OffsetDateTime) -> String {
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second, millisecond) = time.to_hms_milli();
    let month = u8::from(month);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z")
}

/// Converts a system time. Times that RFC 3339 cannot express are converted to the nearest time that it can express, from 1970 to
/// 9999.
pub(crate) fn from_system_time(time: SystemTime) -> OffsetDateTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let since = Duration::try_from(since).unwrap_or(Duration::MAX);
    OffsetDateTime::UNIX_EPOCH.checked_add(since).unwrap_or(PrimitiveDateTime::MAX.assume_utc())
}

/// Deserialises an optional time in RFC 3339, converted to UTC.
pub(crate) fn deserialize_optional<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<OffsetDateTime>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let time = OffsetDateTime::parse(&text, &Rfc3339).map_err(|error| {
        de::Error::custom(format!("{text:?} is not a time in RFC 3339, such as 2030-01-01T00:00:00Z: {error}"))
    })?;
    match time.checked_to_offset(UtcOffset::UTC) {
        Some(time) => Ok(Some(time)),
        None => Err(de::Error::custom(format!("{text:?} is out of range"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_have_three_digits_of_milliseconds() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_700_000_000_500_000_000, "2023-11-14T22:13:20.500Z"),
            (1_700_000_000_007_999_999, "2023-11-14T22:13:20.007Z"),
        ];
        for (nanos, expected) in cases {
            assert_eq!(timestamp(OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap()), expected);
        }
    }

    #[test]
    fn system_times_out_of_range_are_clamped() {
        let year = |time| from_system_time(time).year();
        assert_eq!(year(SystemTime::UNIX_EPOCH - std::time::Duration::from_secs(1 << 40)), 1970);
        assert_eq!(year(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1 << 40)), 9999);
    }
}
