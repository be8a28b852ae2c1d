//! The API keys that the service takes.

use std::{
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    time::SystemTime,
};

use ::time::OffsetDateTime;
use parking_lot::RwLock;
use serde::Deserialize;

use crate::{mask, time};

/// Another API key, for [`LocalServer::rotate_api_key`](crate::LocalServer::rotate_api_key).
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
#[must_use = "a rotation does nothing until it is handed to a service"]
pub struct KeyRotation {
    #[serde(default)]
    key: Option<String>,
    #[serde(default, deserialize_with = "time::deserialize_optional")]
    valid_until: Option<OffsetDateTime>,
}

impl KeyRotation {
    /// What is wrong with the new key, if no client could send it.
    pub(crate) fn mistake(&self) -> Option<&'static str> {
        let key = self.key.as_deref()?;
        let is_sendable = !key.is_empty() && key.len() <= 4_096 && key.bytes().all(|byte| byte.is_ascii_graphic());
        (!is_sendable).then_some("key: must be 1 to 4096 visible ASCII characters, since it goes into a header")
    }

    /// Begins a rotation to a generated key, after which the old one is refused at once.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the new key. Default: a generated one.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets until when the old key is taken as well. Default: it is refused at once.
    pub fn valid_until(mut self, until: SystemTime) -> Self {
        self.valid_until = Some(time::from_system_time(until));
        self
    }
}

impl fmt::Debug for KeyRotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRotation").field("valid_until", &self.valid_until).finish_non_exhaustive()
    }
}

/// The keys of one service.
pub(crate) struct Keys(RwLock<State>);

struct State {
    /// `None` takes any key.
    current: Option<String>,
    /// Earlier ones, and until when they are taken.
    earlier: Vec<(Option<String>, OffsetDateTime)>,
}

impl Keys {
    pub(crate) fn new(key: Option<String>) -> Self {
        Self(RwLock::new(State { current: key, earlier: Vec::new() }))
    }

    /// A key that is taken.
    pub(crate) fn current(&self) -> String {
        let state = self.0.read();
        state.current.clone().unwrap_or_else(|| "local".to_owned())
    }

    /// The key that is taken, as far as it is shown; `None` if any is.
    pub(crate) fn shown(&self) -> Option<String> {
        let state = self.0.read();
        state.current.as_ref().map(|key| mask::mask_key(key.as_bytes()))
    }

    pub(crate) fn accept(&self, key: Option<&[u8]>) -> bool {
        let fits = |known: &Option<String>| known.as_ref().is_none_or(|known| key == Some(known.as_bytes()));
        let state = self.0.read();
        fits(&state.current) || {
            let now = OffsetDateTime::now_utc();
            state.earlier.iter().any(|(known, until)| now < *until && fits(known))
        }
    }

    /// Takes another key from now on; returns it, and until when the old one is taken.
    pub(crate) fn rotate(&self, rotation: KeyRotation) -> (String, OffsetDateTime) {
        let now = OffsetDateTime::now_utc();
        let key = rotation.key.unwrap_or_else(generated);
        let until = rotation.valid_until.unwrap_or(now);
        let mut state = self.0.write();
        state.earlier.retain(|(_, until)| now < *until);
        let old = state.current.replace(key.clone());
        state.earlier.push((old, until));
        (key, until)
    }
}

/// A key that nobody has met. The standard library seeds its hash tables at random.
fn generated() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("local-{:016x}{:016x}", random(), random())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_key_is_shown_masked() {
        assert_eq!(Keys::new(Some("0123456789abcdef".to_owned())).shown().as_deref(), Some("••••cdef"));
        assert_eq!(Keys::new(None).shown(), None);
    }

    #[test]
    fn an_old_key_is_taken_until_its_time_and_others_never() {
        let hour = std::time::Duration::from_secs(3600);
        let keys = Keys::new(Some("1".into()));
        keys.rotate(KeyRotation::new().key("2").valid_until(SystemTime::now() + hour));
        keys.rotate(KeyRotation::new().key("3").valid_until(SystemTime::now() - hour));
        for (key, accepted) in [("1", true), ("2", false), ("3", true), ("4", false)] {
            assert_eq!(keys.accept(Some(key.as_bytes())), accepted, "{key}");
        }
        assert!(!keys.accept(None));
        let (generated, _) = keys.rotate(KeyRotation::new());
        assert_eq!(keys.current(), generated);
        assert!(keys.accept(Some(generated.as_bytes())) && !keys.accept(Some(b"3")));
    }
}
