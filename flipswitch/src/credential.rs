//! The authentication of requests, and the headers that an application adds to them.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{error::ConfigError, sanitize::printable, secret::Secret};

/// The header for an API key.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// How requests are authenticated; see [`auth`](crate::FlipswitchProviderBuilder::auth).
///
/// `Debug` shows at most the last four characters of the key or the token.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Auth {
    /// Sends neither a key nor a token. The default of [`FlipswitchProvider::ofrep`](crate::FlipswitchProvider::ofrep).
    #[default]
    None,
    /// Sends an API key, in the header `X-API-Key`. The default of
    /// [`FlipswitchProvider::builder`](crate::FlipswitchProvider::builder).
    ApiKey(String),
    /// Sends a token, in the header `Authorization: Bearer <token>`.
    Bearer(String),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, key) = match self {
            Self::None => return f.write_str("None"),
            Self::ApiKey(key) => ("ApiKey", key),
            Self::Bearer(token) => ("Bearer", token),
        };
        write!(f, "{name}({})", end(key.trim()))
    }
}

/// The key or token that authenticates requests, if there is one.
#[derive(Clone)]
pub(crate) enum Credential {
    None,
    ApiKey(ApiKey),
    Bearer(ApiKey),
}

impl Credential {
    pub(crate) fn new(auth: &Auth) -> Result<Self, ConfigError> {
        Ok(match auth {
            Auth::None => Self::None,
            Auth::ApiKey(key) => Self::ApiKey(ApiKey::new("api_key", key)?),
            Auth::Bearer(token) => Self::Bearer(ApiKey::new("the bearer token", token)?),
        })
    }

    /// Returns the same kind of credential with a different key or token.
    pub(crate) fn replaced_by(&self, key: &str) -> Result<Self, ConfigError> {
        match self {
            Self::None => Err(ConfigError::NoAuth),
            Self::ApiKey(_) => Self::new(&Auth::ApiKey(key.to_owned())),
            Self::Bearer(_) => Self::new(&Auth::Bearer(key.to_owned())),
        }
    }

    /// Returns the key or the token.
    pub(crate) fn key(&self) -> Option<&ApiKey> {
        match self {
            Self::None => None,
            Self::ApiKey(key) | Self::Bearer(key) => Some(key),
        }
    }

    /// Sets the header for the credential in a request, and replaces any header of the same name.
    pub(crate) fn insert_into(&self, headers: &mut HeaderMap) {
        if let Some((name, value)) = self.header() {
            headers.insert(name, value);
        }
    }

    /// Returns the header that is sent, marked as sensitive.
    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::None => None,
            Self::ApiKey(key) => Some((API_KEY, key.0.clone())),
            Self::Bearer(token) => {
                let mut value = HeaderValue::from_bytes(&[b"Bearer ", token.0.as_bytes()].concat()).ok()?;
                value.set_sensitive(true);
                Some((header::AUTHORIZATION, value))
            }
        }
    }
}

/// Shows at most the end of the key.
impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key() {
            Some(key) => key.fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// Maximum length of an API key, in bytes.
const MAX_KEY_BYTES: usize = 4_096;

/// An API key or a token, as a header value.
#[derive(Clone)]
pub(crate) struct ApiKey(HeaderValue);

impl ApiKey {
    /// `what` names it in errors.
    pub(crate) fn new(what: &'static str, key: &str) -> Result<Self, ConfigError> {
        let key = key.trim();
        if key.is_empty() {
            return Err(ConfigError::EmptyApiKey { what });
        }
        if key.len() > MAX_KEY_BYTES {
            return Err(ConfigError::LongApiKey { what, length: key.len() });
        }
        if let Some(problem) = wrapping(key) {
            return Err(ConfigError::WrappedApiKey { what, problem });
        }
        if let Some(position) = key.chars().position(|character| !matches!(character, ' '..='~')) {
            return Err(ConfigError::IllegalApiKey { what, position: position + 1 });
        }
        let mut value = HeaderValue::from_str(key).map_err(|_| ConfigError::IllegalApiKey { what, position: 1 })?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Returns the secret for a provider that has no other.
    pub(crate) fn secret(&self) -> Secret {
        Secret::new(self.0.as_bytes())
    }

    /// Returns whether the key could be guessed, because it is shorter than a secret must be.
    pub(crate) fn is_short(&self) -> bool {
        self.0.len() < 16
    }

    /// Returns whether the key looks like a placeholder from an example.
    pub(crate) fn is_placeholder(&self) -> bool {
        let key = self.0.to_str().unwrap_or_default().to_ascii_lowercase().replace(['_', ' '], "-");
        key.starts_with('<')
            || key.chars().all(|character| character == 'x')
            || ["your-", "changeme", "change-me", "placeholder", "my-api-key", "api-key"]
                .iter()
                .any(|start| key.starts_with(start))
    }
}

/// Returns what is wrong with a key that was copied together with something else.
fn wrapping(key: &str) -> Option<&'static str> {
    let is_variable =
        |name: &str| name.contains('_') && name.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_'));
    if key.starts_with(['"', '\'', '`', '“', '‘', '«']) {
        Some("begins with a quote")
    } else if key.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("bearer ")) {
        Some("begins with \"Bearer\"")
    } else if key.starts_with("${") || key.starts_with("$(") || key.strip_prefix('$').is_some_and(is_variable) {
        Some("is the name of a variable that was not expanded")
    } else if key.split_once('=').is_some_and(|(name, value)| !value.is_empty() && is_variable(name)) {
        Some("is an assignment to a variable")
    } else {
        None
    }
}

/// Shows the last four characters of a key that is at least 16 characters long, and nothing of a shorter one.
impl fmt::Display for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&end(self.0.to_str().unwrap_or_default()))
    }
}

/// Returns the last four characters of a key that is at least 16 characters long, and nothing of a shorter one.
fn end(key: &str) -> String {
    let end = key.len().checked_sub(4).filter(|_| key.len() >= 16).and_then(|from| key.get(from..));
    format!("…{}", end.unwrap_or_default())
}

/// Headers that the provider sets itself, and headers that describe the connection.
const OWN_HEADERS: [HeaderName; 13] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::CACHE_CONTROL,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::EXPECT,
    header::HOST,
    header::IF_NONE_MATCH,
    HeaderName::from_static("last-event-id"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Returns the part of a header's name that may be shown. An invalid name may be a part of a secret.
pub(crate) fn shown_name(name: &str) -> String {
    match name.trim().parse::<HeaderName>() {
        Ok(_) => printable(name),
        Err(_) => format!("({} characters)", name.chars().count()),
    }
}

/// Checks a header that the application adds. Its value is marked as sensitive.
pub(crate) fn custom_header(
    name: &str,
    value: &str,
    credential: &Credential,
) -> Result<(HeaderName, HeaderValue), ConfigError> {
    let refuse = |problem| ConfigError::Header { name: shown_name(name), problem };
    let known: HeaderName = name.trim().parse().map_err(|_| refuse("no header can have this name"))?;
    if known == header::USER_AGENT {
        return Err(refuse("the provider sets it; set another one with `http_client`"));
    }
    if OWN_HEADERS.contains(&known) || known.as_str().starts_with("x-flipswitch-") {
        return Err(refuse("the provider sets it; leave it out"));
    }
    if credential.header().is_some_and(|(name, _)| name == known) {
        return Err(refuse("it already carries the API key or the token; leave it out, or use `Auth::None`"));
    }
    let mut value = HeaderValue::from_str(value.trim())
        .map_err(|_| refuse("its value contains a character that a header cannot contain, such as a line break"))?;
    value.set_sensitive(true);
    Ok((known, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholder_keys_are_recognized() {
        for key in ["your-api-key", "YOUR_API_KEY", "<key>", "changeme", "xxxx", "api_key", "my-api-key-here"] {
            assert!(ApiKey::new("api_key", key).unwrap().is_placeholder(), "{key}");
        }
        for key in ["sk_live_8f3a", "quickstart-key", "x1"] {
            assert!(!ApiKey::new("api_key", key).unwrap().is_placeholder(), "{key}");
        }
    }

    #[test]
    fn at_most_the_end_of_a_key_is_shown() {
        assert_eq!(ApiKey::new("api_key", "0123456789abcdef").unwrap().to_string(), "…cdef");
        assert_eq!(ApiKey::new("api_key", "short-key").unwrap().to_string(), "…");
    }
}
