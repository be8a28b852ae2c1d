//! The API keys that the server accepts.

use std::{
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    time::SystemTime,
};

use ::time::OffsetDateTime;
use http::{HeaderMap, header};
use parking_lot::RwLock;
use serde::Deserialize;

use crate::{mask, time};

/// A rotation of the API key, for [`LocalServer::rotate_api_key`](crate::LocalServer::rotate_api_key).
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use flipswitch_local::KeyRotation;
///
/// let in_an_hour = SystemTime::now() + Duration::from_secs(3600);
/// let rotation = KeyRotation::new().key("next-key").valid_until(in_an_hour);
/// ```
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[must_use = "a rotation does nothing until it is passed to a server"]
pub struct KeyRotation {
    #[serde(default)]
    key: Option<String>,
    #[serde(default, deserialize_with = "time::deserialize_optional")]
    valid_until: Option<OffsetDateTime>,
}

impl KeyRotation {
    /// Creates a rotation to a generated key.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the new key. Defaults to a generated key.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the time until which the old key is still accepted. By default, the old key is rejected immediately.
    pub fn valid_until(mut self, until: SystemTime) -> Self {
        self.valid_until = Some(time::from_system_time(until));
        self
    }

    /// Checks that clients can send the new key.
    pub(crate) fn validate(&self) -> Result<(), &'static str> {
        let is_sendable =
            |key: &str| !key.is_empty() && key.len() <= 4_096 && key.bytes().all(|byte| byte.is_ascii_graphic());
        if self.key.as_deref().is_none_or(is_sendable) {
            Ok(())
        } else {
            Err("key: must be 1 to 4096 visible ASCII characters, since it is sent in a header")
        }
    }
}

impl fmt::Debug for KeyRotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRotation").field("valid_until", &self.valid_until).finish_non_exhaustive()
    }
}

/// The keys of one server.
pub(crate) struct Keys(RwLock<State>);

struct State {
    /// `None` accepts any key.
    current: Option<String>,
    /// Earlier keys, and the times until which they are accepted.
    earlier: Vec<(Option<String>, OffsetDateTime)>,
}

impl Keys {
    pub(crate) fn new(key: Option<String>) -> Self {
        Self(RwLock::new(State { current: key, earlier: Vec::new() }))
    }

    /// Returns a key that is accepted.
    pub(crate) fn current(&self) -> String {
        let state = self.0.read();
        state.current.clone().unwrap_or_else(|| "local".to_owned())
    }

    /// Returns the current key, masked, or `None` if any key is accepted.
    pub(crate) fn masked(&self) -> Option<String> {
        let state = self.0.read();
        state.current.as_ref().map(|key| mask::mask_key(key.as_bytes()))
    }

    /// Returns whether a request with this key is accepted.
    pub(crate) fn accepts(&self, key: Option<&[u8]>) -> bool {
        let matches = |known: &Option<String>| known.as_ref().is_none_or(|known| key == Some(known.as_bytes()));
        let state = self.0.read();
        matches(&state.current) || {
            let now = OffsetDateTime::now_utc();
            state.earlier.iter().any(|(known, until)| now < *until && matches(known))
        }
    }

    /// Replaces the key. Returns the new key, and the time until which the old one is accepted.
    pub(crate) fn rotate(&self, rotation: KeyRotation) -> (String, OffsetDateTime) {
        let now = OffsetDateTime::now_utc();
        let key = rotation.key.unwrap_or_else(generate_key);
        let until = rotation.valid_until.unwrap_or(now);
        let mut state = self.0.write();
        state.earlier.retain(|(_, until)| now < *until);
        let old = state.current.replace(key.clone());
        state.earlier.push((old, until));
        (key, until)
    }
}

/// Returns the API key of a request: the value of `X-API-Key` or, without that header, the token of `Authorization: Bearer`.
pub(crate) fn sent_key(headers: &HeaderMap) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    if let Some(key) = headers.get("x-api-key") {
        return Some(key.as_bytes());
    }
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then(|| token.trim_ascii())
}

/// Generates a key from the random seeds that the standard library uses for hash tables.
fn generate_key() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("local-{:016x}{:016x}", random(), random())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_key_is_masked() {
        assert_eq!(Keys::new(Some("0123456789abcdef".to_owned())).masked().as_deref(), Some("••••cdef"));
        assert_eq!(Keys::new(None).masked(), None);
    }

    #[test]
    fn an_old_key_is_accepted_until_it_expires() {
        let hour = std::time::Duration::from_secs(3600);
        let keys = Keys::new(Some("1".into()));
        keys.rotate(KeyRotation::new().key("2").valid_until(SystemTime::now() + hour));
        keys.rotate(KeyRotation::new().key("3").valid_until(SystemTime::now() - hour));
        for (key, accepted) in [("1", true), ("2", false), ("3", true), ("4", false)] {
            assert_eq!(keys.accepts(Some(key.as_bytes())), accepted, "{key}");
        }
        assert!(!keys.accepts(None));
        let (generated, _) = keys.rotate(KeyRotation::new());
        assert_eq!(keys.current(), generated);
        assert!(keys.accepts(Some(generated.as_bytes())) && !keys.accepts(Some(b"3")));
    }

    #[test]
    fn a_key_is_sent_in_one_of_two_headers() {
        let cases = [
            ("", None),
            ("x-api-key: k", Some("k")),
            ("authorization: Bearer k", Some("k")),
            ("authorization: bEARER  k ", Some("k")),
            ("authorization: Bearer k\nx-api-key: other", Some("other")),
            ("authorization: Bearer k\nx-api-key: ", Some("")),
            ("authorization: Basic azpr", None),
            ("authorization: Bearerk", None),
            ("authorization: k", None),
        ];
        for (lines, expected) in cases {
            let pairs = lines.lines().map(|line| line.split_once(": ").unwrap());
            let headers: HeaderMap =
                pairs.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            assert_eq!(sent_key(&headers), expected.map(str::as_bytes), "{lines:?}");
        }
    }
}
