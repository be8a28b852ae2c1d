//! Flag overrides for one browser: mints tokens that `SignedOverrides` of `flipswitch` accepts.
//!
//! A token is `<body>.<code>`, both in base64url without padding. The body is JSON, and the code is the HMAC-SHA-256 of
//! `flipswitch-overrides.v1.<purpose>.<name of the provider>.<body>`.

use std::time::{Duration, SystemTime};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::Sha256;

/// Name of the cookie.
pub(crate) const COOKIE: &str = "__Host-flipswitch-overrides";

/// Name of the parameter in the query of a link.
pub(crate) const PARAMETER: &str = "flipswitch";

/// How long a link can be opened.
pub(crate) const LINK_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// Maximum length of a token that is accepted, in bytes.
const MAX_TOKEN: usize = 3_584;

/// Minimum length of a key that is accepted, in bytes.
const MIN_KEY: usize = 16;

/// The key that authenticates tokens.
pub(crate) struct Key(Hmac<Sha256>);

impl Key {
    /// Returns the key without the white space around it.
    pub(crate) fn new(key: &[u8]) -> Result<Self, String> {
        let key = key.trim_ascii();
        if key.len() < MIN_KEY {
            return Err(format!("the key is {} bytes long, but at least {MIN_KEY} are needed", key.len()));
        }
        Hmac::new_from_slice(key).map(Self).map_err(|error| error.to_string())
    }
}

/// The purpose of a token.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// A browser opens it in a link, and gets a cookie.
    Link,
    /// The cookie itself.
    Cookie,
}

/// Flag overrides for one browser.
pub(crate) struct Overrides {
    pub(crate) flags: Map<String, Value>,
    /// Empty for a provider without a name.
    pub(crate) provider_name: String,
    /// The targeting key of the only user that may use them. `None` for every user of the browser.
    pub(crate) targeting_key: Option<String>,
    /// How long they last in the browser.
    pub(crate) lifetime: Duration,
}

/// The content of a token.
#[derive(Serialize)]
struct Body<'a> {
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lasts: Option<u64>,
    flags: &'a Map<String, Value>,
}

impl Overrides {
    /// Returns when a token that is minted now expires, in seconds since the Unix epoch.
    pub(crate) fn expiry(&self, purpose: Purpose, now: SystemTime) -> u64 {
        let lifetime = match purpose {
            Purpose::Link => LINK_LIFETIME,
            Purpose::Cookie => self.lifetime,
        };
        now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() + lifetime.as_secs()
    }

    /// Mints a token.
    pub(crate) fn token(&self, key: &Key, purpose: Purpose, now: SystemTime) -> Result<String, String> {
        let (purpose_name, lasts) = match purpose {
            Purpose::Link => ("link", Some(self.lifetime.as_secs())),
            Purpose::Cookie => ("cookie", None),
        };
        let exp = self.expiry(purpose, now);
        let body = Body { exp, sub: self.targeting_key.as_deref(), lasts, flags: &self.flags };
        let body = BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&body).map_err(|error| error.to_string())?);
        let authenticated = format!("flipswitch-overrides.v1.{purpose_name}.{}.{body}", self.provider_name);
        let code = key.0.clone().chain_update(authenticated).finalize().into_bytes();
        let token = format!("{body}.{}", BASE64_URL_SAFE_NO_PAD.encode(code));
        if token.len() > MAX_TOKEN {
            return Err(format!("the overrides take {} bytes, but at most {MAX_TOKEN} are accepted", token.len()));
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &[u8] = b"0123456789abcdef";

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn overrides(flags: Value) -> Overrides {
        let Value::Object(flags) = flags else { panic!("no object") };
        Overrides { flags, provider_name: String::new(), targeting_key: None, lifetime: Duration::from_secs(8 * 3600) }
    }

    // The expected tokens are the output of this program in Python, with these purposes, names and bodies:
    //
    //     import base64, hmac; text = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    //     def token(purpose, name, body, key=b"0123456789abcdef"): body = text(body.encode()); return body + "." + text(
    //         hmac.digest(key, f"flipswitch-overrides.v1.{purpose}.{name}.{body}".encode(), "sha256"))
    //     print(token("cookie", "", '{"exp":1800028800,"flags":{"new-checkout":true,"theme":"dark"}}'))
    //     print(token("link", "shop", '{"exp":1800000900,"sub":"alice","lasts":3600,' +
    //         '"flags":{"new-checkout":true,"theme":"dark"}}'))

    #[test]
    fn a_cookie_is_the_one_that_another_implementation_makes() {
        let minted = overrides(json!({"new-checkout": true, "theme": "dark"}));
        let expected = "eyJleHAiOjE4MDAwMjg4MDAsImZsYWdzIjp7Im5ldy1jaGVja291dCI6dHJ1ZSwidGhlbWUiOiJkYXJrIn19\
            .BxQAC-hxI18KXTIyQlr5fCaFO14LEIDpU1JuSbS0l6A";
        assert_eq!(minted.token(&Key::new(KEY).unwrap(), Purpose::Cookie, now()).unwrap(), expected);
        let with_space = Key::new(b"\n 0123456789abcdef\t\n").unwrap();
        assert_eq!(minted.token(&with_space, Purpose::Cookie, now()).unwrap(), expected);
    }

    #[test]
    fn a_link_is_the_one_that_another_implementation_makes() {
        let mut minted = overrides(json!({"new-checkout": true, "theme": "dark"}));
        minted.provider_name = "shop".to_owned();
        minted.targeting_key = Some("alice".to_owned());
        minted.lifetime = Duration::from_secs(3600);
        let expected = "eyJleHAiOjE4MDAwMDA5MDAsInN1YiI6ImFsaWNlIiwibGFzdHMiOjM2MDAsImZsYWdzIjp7Im5ldy1jaGVja291dCI6dHJ1\
            ZSwidGhlbWUiOiJkYXJrIn19.M8X1CsYvTwbdPuYYjzyvRZf9vVHnkaR5PXbv2mIu1DA";
        assert_eq!(minted.token(&Key::new(KEY).unwrap(), Purpose::Link, now()).unwrap(), expected);
    }

    #[test]
    fn short_keys_and_long_tokens_are_refused() {
        for short in ["", "0123456789abcde", " 0123456789abcde\n"] {
            assert!(Key::new(short.as_bytes()).is_err_and(|error| error.contains("at least 16")), "{short:?}");
        }
        let key = Key::new(KEY).unwrap();
        let minted = |bytes| overrides(json!({"f": "x".repeat(bytes)})).token(&key, Purpose::Cookie, now());
        let longest = (0..MAX_TOKEN).rev().find_map(|bytes| minted(bytes).ok()).unwrap();
        assert!(longest.len() <= MAX_TOKEN && longest.len() > MAX_TOKEN - 4, "{}", longest.len());
        assert!(minted(MAX_TOKEN).unwrap_err().contains("at most 3584"));
    }
}
