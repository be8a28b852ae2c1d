//! Overrides: flag values for one browser, in a signed cookie.
//!
//! A token is `<body>.<code>`, both in base64url without padding. The body is JSON, and the code is the HMAC-SHA-256 of
//! `flipswitch-overrides.v1.<purpose>.<name of the provider>.<body>`.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::Sha256;

use crate::{
    error::ConfigError,
    flags::flag_set::object,
    provider::{flags::Overlay, provider::FlipswitchProvider},
    request::{gate::FlagKey, integration::RequestParts, scope::RequestScope, warnings::SetupWarning},
    sanitize::printable,
};

/// Name of the cookie.
const COOKIE: &str = "__Host-flipswitch-overrides";

/// Name of the parameter in the query of a link, and the value that ends overrides.
const PARAMETER: &str = "flipswitch";
const OFF: &str = "off";

/// Maximum length of a token, in bytes. Browsers keep cookies of up to 4 096 bytes, including attributes.
const MAX_TOKEN: usize = 3_584;

/// Minimum length of a key, in bytes.
const MIN_KEY: usize = 16;

/// How long a link can be opened.
const LINK_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// Default and maximum time that overrides last.
const LIFETIME: Duration = Duration::from_secs(8 * 3600);
const MAX_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// How far the clock of the machine that minted a token may be ahead.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Maximum number of cookies with this name that are checked. Further cookies are ignored.
const MAX_COOKIES: usize = 4;

/// Flag overrides in individual browsers, for testing: which flags can be overridden, and the key that authenticates the
/// overrides.
///
/// Links are [minted](Self::mint) with the key. A browser that opens a link gets a cookie, and its requests read the values in
/// the cookie instead of the values from the service, with the reason `OVERRIDE`. A link with `?flipswitch=off` ends the
/// overrides. Other browsers, the cache and the service are not affected.
///
/// A token that is invalid, has expired, or is for another provider or user is ignored. Values of flags that are not allowed, and
/// values that do not have the flag's type, are ignored as well. For each of these three cases, the first occurrence is logged as
/// a warning. Every occurrence is logged at debug level.
///
/// ```
/// use flipswitch::{SignedOverrides, serde_json::json};
///
/// # fn main() -> Result<(), flipswitch::ConfigError> {
/// let overrides = SignedOverrides::new("a secret of 32 random bytes ....").allow(["new-checkout", "theme"]);
/// let link = overrides.mint(json!({"new-checkout": true})).for_context("alice").link()?;
/// println!("https://shop.example/checkout?{link}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "overrides do nothing until they are passed to a layer"]
pub struct SignedOverrides {
    /// `None` if the key is too short.
    key: Option<Key>,
    before: Option<Key>,
    allowed: Arc<Vec<&'static str>>,
}

type Key = Hmac<Sha256>;

impl SignedOverrides {
    /// Creates overrides with the key that authenticates them. The key must be at least 16 bytes long, and the same in all
    /// instances; use 32 random bytes. No flag can be overridden until it is [allowed](Self::allow).
    ///
    /// White space around the key is ignored. With a shorter key, an error is logged, and there are no overrides.
    pub fn new(key: impl AsRef<[u8]>) -> Self {
        Self { key: key_of(key.as_ref()), before: None, allowed: Arc::default() }
    }

    /// Sets the previous key. Tokens that were minted with it are still accepted. Defaults to none.
    pub fn key_before(mut self, key: impl AsRef<[u8]>) -> Self {
        self.before = key_of(key.as_ref());
        self
    }

    /// Allows flags to be overridden, in addition to the flags that are already allowed. Takes keys, or flags that were declared
    /// with [`flags!`](crate::flags).
    pub fn allow<F: FlagKey>(mut self, flags: impl IntoIterator<Item = F>) -> Self {
        Arc::make_mut(&mut self.allowed).extend(flags.into_iter().map(|flag| flag.key()));
        self
    }

    /// Mints overrides from a JSON object of flag keys and values.
    pub fn mint(&self, values: Value) -> OverrideToken {
        OverrideToken { key: self.key.clone(), values, name: String::new(), subject: None, lifetime: LIFETIME }
    }

    /// Returns the overrides of a request, if its cookie has any.
    pub(super) fn find(&self, request: &dyn RequestParts, provider: &FlipswitchProvider) -> Option<Arc<Overrides>> {
        let (name, now) = (provider.name().unwrap_or_default(), SystemTime::now());
        let lines = request.header_values("cookie");
        let pairs = lines.flat_map(|line| line.split(|byte| *byte == b';'));
        let values = pairs.filter_map(|pair| pair.trim_ascii().strip_prefix(COOKIE.as_bytes())?.strip_prefix(b"="));
        let verified = |token| {
            let verified = self.verified(Purpose::Cookie, token, name, now);
            verified.map_err(|problem| ignored(problem, provider)).ok()
        };
        let Body { exp, flags, sub, .. } = values.take(MAX_COOKIES).find_map(verified)?;
        let (allowed, others): (Map<_, _>, Map<_, _>) =
            flags.into_iter().partition(|(key, _)| self.allowed.contains(&key.as_str()));
        for (key, _) in others {
            // The token is authentic, so the key is neither a secret nor a string from an attacker.
            tracing::debug!(target: "flipswitch", flag = printable(&key), "an override is ignored: the flag is not allowed");
            SetupWarning::OverrideNotAllowed.log(provider);
        }
        (!allowed.is_empty()).then(|| Arc::new(Overrides { exp, subject: sub, overlay: Overlay::new(allowed) }))
    }

    /// Returns the response to a request that opens an override link or ends overrides. `target` is the path and query of a GET
    /// request, as the client sent them.
    pub(super) fn redirect(&self, target: &str, request: &dyn RequestParts, scope: &RequestScope) -> Option<Redirect> {
        let token = parameter(target)?;
        // Browsers send the purpose of a request. Requests for images, frames and scripts of other pages are ignored.
        let is = |name: &str, expected: &[u8]| request.header_values(name).all(|value| value == expected);
        let is_speculative = request.header_values("sec-purpose").next().is_some();
        if is_speculative || !is("sec-fetch-mode", b"navigate") || !is("sec-fetch-dest", b"document") {
            return None;
        }
        let set_cookie = if token == OFF {
            format!("{COOKIE}=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Lax")
        } else {
            let (key, provider) = (scope.targeting_key(), scope.provider());
            self.set_cookie(token, key.as_deref(), provider.name().unwrap_or_default(), SystemTime::now())
                .map_err(|problem| ignored(problem, provider))
                .ok()?
        };
        Some(Redirect { location: location(target), set_cookie })
    }

    /// Returns the `Set-Cookie` header for the token of a link.
    fn set_cookie(&self, token: &str, key: Option<&str>, name: &str, now: SystemTime) -> Result<String, &'static str> {
        let body = self.verified(Purpose::Link, token.as_bytes(), name, now)?;
        if body.sub.as_deref().is_some_and(|subject| key != Some(subject)) {
            return Err("the token is for another user");
        }
        let lifetime = Duration::from_secs(body.lasts.unwrap_or(LIFETIME.as_secs())).min(MAX_LIFETIME);
        let cookie = OverrideToken {
            key: self.key.clone(),
            values: Value::Object(body.flags),
            name: name.to_owned(),
            subject: body.sub,
            lifetime,
        };
        let value = cookie.sign(Purpose::Cookie, now).map_err(|_| "the cookie cannot be signed")?;
        let seconds = lifetime.as_secs();
        Ok(format!("{COOKIE}={value}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Lax"))
    }

    /// Returns the body of a token, if it was minted with one of the keys, for this purpose and this provider, and has not
    /// expired.
    fn verified(&self, purpose: Purpose, token: &[u8], name: &str, now: SystemTime) -> Result<Body, &'static str> {
        if token.len() > MAX_TOKEN {
            return Err("the token is too long");
        }
        let token = std::str::from_utf8(token).map_err(|_| "the token is malformed")?;
        let (body, code) = token.split_once('.').ok_or("the token is malformed")?;
        let code = BASE64_URL_SAFE_NO_PAD.decode(code).map_err(|_| "the token is malformed")?;
        let keys = [self.key.as_ref(), self.before.as_ref()];
        let is_authentic = |key: &Key| authenticated(key, purpose, name, body).verify_slice(&code).is_ok();
        if !keys.into_iter().flatten().any(is_authentic) {
            return Err(
                "the signature of the token does not match: the token was changed, or is for a different key, provider or \
                 purpose",
            );
        }
        let json = BASE64_URL_SAFE_NO_PAD.decode(body).map_err(|_| "the token is malformed")?;
        let body: Body = serde_json::from_slice(&json).map_err(|_| "the content of the token cannot be read")?;
        let now = seconds(now);
        let longest = match purpose {
            Purpose::Link => LINK_LIFETIME,
            Purpose::Cookie => MAX_LIFETIME,
        };
        if body.exp <= now {
            Err("the token has expired")
        } else if body.exp - now > (longest + CLOCK_SKEW).as_secs() {
            Err("the lifetime of the token is longer than allowed")
        } else {
            Ok(body)
        }
    }
}

/// Shows the flags that are allowed, but no key.
impl fmt::Debug for SignedOverrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedOverrides").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

/// Logs that a token is ignored: once as a warning, since anybody can send tokens, and each time at debug level.
fn ignored(problem: &'static str, provider: &FlipswitchProvider) {
    tracing::debug!(target: "flipswitch", problem, "an override token is ignored");
    SetupWarning::OverrideIgnored { problem }.log(provider);
}

fn key_of(key: &[u8]) -> Option<Key> {
    let key = key.trim_ascii();
    if key.len() < MIN_KEY {
        tracing::error!(
            target: "flipswitch", bytes = key.len(),
            "the key of `SignedOverrides` is too short, so no flag can be overridden; use 32 random bytes (at \
             least {MIN_KEY} are required)"
        );
        return None;
    }
    // Accepts keys of any length.
    Key::new_from_slice(key).ok()
}

fn authenticated(key: &Key, purpose: Purpose, name: &str, body: &str) -> Key {
    let purpose = match purpose {
        Purpose::Link => "link",
        Purpose::Cookie => "cookie",
    };
    key.clone().chain_update(format!("flipswitch-overrides.v1.{purpose}.{name}.{body}"))
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What a token is for.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Link,
    Cookie,
}

/// The content of a token.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    /// When it expires, in seconds since the Unix epoch.
    exp: u64,
    /// The targeting key of the only user that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    /// How long the cookie of a link lasts, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lasts: Option<u64>,
    flags: Map<String, Value>,
}

/// A token that is being minted. Created by [`SignedOverrides::mint`].
#[derive(Clone)]
#[must_use = "a token does nothing until it is turned into a link or a cookie"]
pub struct OverrideToken {
    key: Option<Key>,
    values: Value,
    name: String,
    subject: Option<String>,
    lifetime: Duration,
}

impl OverrideToken {
    /// Limits the overrides to one targeting key. By default, they apply to every user of the browser.
    pub fn for_context(mut self, targeting_key: impl Into<String>) -> Self {
        self.subject = Some(targeting_key.into());
        self
    }

    /// Sets how long the overrides last. Defaults to 8 hours; the maximum is 7 days. A link can be opened for 15 minutes.
    pub fn lasting(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Sets the [name](crate::FlipswitchProviderBuilder::name) of the provider that the overrides are for. Defaults to none, for
    /// a provider without a name.
    pub fn provider_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Returns the query of a link, `flipswitch=<token>`, to be added to the URL of any page.
    ///
    /// # Errors
    ///
    /// A [`ConfigError::Overrides`] if the overrides cannot be minted.
    pub fn link(&self) -> Result<String, ConfigError> {
        Ok(format!("{PARAMETER}={}", self.sign(Purpose::Link, SystemTime::now())?))
    }

    /// Returns the name and value of the cookie, for tests that set it.
    ///
    /// # Errors
    ///
    /// A [`ConfigError::Overrides`] if the overrides cannot be minted.
    pub fn cookie(&self) -> Result<String, ConfigError> {
        Ok(format!("{COOKIE}={}", self.sign(Purpose::Cookie, SystemTime::now())?))
    }

    fn sign(&self, purpose: Purpose, now: SystemTime) -> Result<String, ConfigError> {
        let refuse = |problem: String| ConfigError::Overrides { problem };
        let key = self.key.as_ref().ok_or_else(|| refuse(format!("the key is shorter than {MIN_KEY} bytes")))?;
        let flags = object(self.values.clone()).map_err(|error| refuse(error.to_string()))?;
        if flags.is_empty() {
            return Err(refuse("there are no values".to_owned()));
        }
        if self.lifetime < Duration::from_secs(1) || self.lifetime > MAX_LIFETIME {
            return Err(refuse(format!(
                "the lifetime is {:?}; pass a duration from 1 second to 7 days",
                self.lifetime
            )));
        }
        let (lifetime, lasts) = match purpose {
            Purpose::Link => (LINK_LIFETIME, Some(self.lifetime.as_secs())),
            Purpose::Cookie => (self.lifetime, None),
        };
        let body = Body { exp: seconds(now) + lifetime.as_secs(), sub: self.subject.clone(), lasts, flags };
        let json = serde_json::to_vec(&body).map_err(|error| refuse(error.to_string()))?;
        let body = BASE64_URL_SAFE_NO_PAD.encode(json);
        let code = authenticated(key, purpose, &self.name, &body).finalize().into_bytes();
        let token = format!("{body}.{}", BASE64_URL_SAFE_NO_PAD.encode(code));
        if token.len() > MAX_TOKEN {
            return Err(refuse(format!(
                "the token is {} bytes long, but at most {MAX_TOKEN} are accepted",
                token.len()
            )));
        }
        Ok(token)
    }
}

/// Shows no values and no key.
impl fmt::Debug for OverrideToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OverrideToken").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

/// The overrides of one request.
#[derive(Debug)]
pub(super) struct Overrides {
    /// When they expire, in seconds since the Unix epoch.
    exp: u64,
    /// The targeting key of the only user that they are for.
    subject: Option<String>,
    overlay: Overlay,
}

impl Overrides {
    /// Returns the overlay for the flags of a context with this targeting key. `is_own` is true if it is the targeting key of the
    /// request. Without a subject, the overrides apply to the user of the browser, and not to other users whose flags the request
    /// reads.
    pub(super) fn for_context(&self, targeting_key: Option<&str>, is_own: bool) -> Option<&Overlay> {
        let is_meant = self.subject.as_deref().map_or(is_own, |subject| targeting_key == Some(subject));
        // Work that a request has started may continue for longer.
        (is_meant && seconds(SystemTime::now()) < self.exp).then_some(&self.overlay)
    }
}

/// The response to a request that opens a link, or ends overrides: `303 See Other`. `Debug` omits the cookie.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Redirect {
    /// Path and query of the same page without the token, for the `Location` header.
    pub location: String,
    /// Value of the `Set-Cookie` header.
    pub set_cookie: String,
}

impl fmt::Debug for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redirect").field("location", &self.location).finish_non_exhaustive()
    }
}

impl Redirect {
    /// Returns all headers of the response, with names in lower case. The response has no body.
    #[must_use]
    pub fn headers(&self) -> [(&'static str, &str); 5] {
        [
            ("location", &self.location),
            ("set-cookie", &self.set_cookie),
            ("cache-control", "no-store"),
            ("referrer-policy", "no-referrer"),
            // The browser may have stored the page with different values.
            ("clear-site-data", "\"cache\""),
        ]
    }
}

/// Returns the token in the query of a target.
fn parameter(target: &str) -> Option<&str> {
    let (_, query) = target.split_once('?')?;
    query.split('&').find_map(|pair| pair.strip_prefix(PARAMETER)?.strip_prefix('='))
}

/// Returns the path and query of a target without the token. The path begins with one `/`, so that browsers do not take it for
/// the name of another host.
fn location(target: &str) -> String {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let is_other =
        |pair: &&str| pair.strip_prefix(PARAMETER).is_none_or(|rest| !rest.is_empty() && !rest.starts_with('='));
    let query: Vec<_> = query.split('&').filter(|pair| !pair.is_empty()).filter(is_other).collect();
    let path: String = path.chars().filter(|character| !character.is_ascii_control()).collect();
    let path = path.trim_start_matches(['/', '\\']);
    if query.is_empty() { format!("/{path}") } else { format!("/{path}?{}", query.join("&")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn overrides() -> SignedOverrides {
        SignedOverrides::new("0123456789abcdef").allow(["f"])
    }

    fn token(purpose: Purpose) -> String {
        overrides().mint(json!({"f": true})).sign(purpose, at(NOW)).unwrap()
    }

    fn is_valid(
        overrides: &SignedOverrides,
        purpose: Purpose,
        token: &str,
        name: &str,
        now: u64,
    ) -> Result<(), &'static str> {
        overrides.verified(purpose, token.as_bytes(), name, at(now)).map(drop)
    }

    #[test]
    fn a_token_is_valid_for_its_key_purpose_provider_and_time_only() {
        use Purpose::{Cookie, Link};
        let (cookie, link) = (token(Cookie), token(Link));
        let valid = |purpose, token: &str, name, now| is_valid(&overrides(), purpose, token, name, now);
        assert_eq!(valid(Cookie, &cookie, "", NOW), Ok(()));
        assert_eq!(valid(Link, &link, "", NOW + 899), Ok(()));
        assert_eq!(valid(Link, &link, "", NOW + 900), Err("the token has expired"));
        assert_eq!(valid(Link, &link, "", NOW - 60), Ok(()), "it was minted on a machine whose clock is ahead");
        assert!(valid(Link, &link, "", NOW - 61).unwrap_err().contains("longer"));
        assert_eq!(valid(Cookie, &cookie, "", NOW + 8 * 3600 - 1), Ok(()));
        assert_eq!(valid(Cookie, &cookie, "", NOW + 8 * 3600), Err("the token has expired"));
        for invalid in
            [valid(Link, &cookie, "", NOW), valid(Cookie, &link, "", NOW), valid(Cookie, &cookie, "other", NOW)]
        {
            assert!(invalid.unwrap_err().contains("provider or purpose"));
        }
        let other = SignedOverrides::new("another key of tests").allow(["f"]);
        assert!(is_valid(&other, Cookie, &cookie, "", NOW).is_err());
        assert_eq!(is_valid(&other.key_before("0123456789abcdef\n"), Cookie, &cookie, "", NOW), Ok(()));
        assert!(is_valid(&SignedOverrides::new("short"), Cookie, &cookie, "", NOW).is_err());
        // The clock was wrong when the token was minted.
        assert!(valid(Cookie, &cookie, "", NOW - 7 * 24 * 3600).unwrap_err().contains("longer"));
    }

    #[test]
    fn a_changed_token_is_invalid() {
        let token = token(Purpose::Cookie);
        let valid = |token: &str| is_valid(&overrides(), Purpose::Cookie, token, "", NOW);
        for position in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[position] = if changed[position] == b'A' { b'B' } else { b'A' };
            assert!(valid(std::str::from_utf8(&changed).unwrap()).is_err(), "{position}");
        }
        let (body, code) = token.split_once('.').unwrap();
        for other in [
            "",
            ".",
            "x",
            &format!("{body}."),
            &format!(".{code}"),
            &format!("{body}={code}"),
            &format!("{token}A"),
            &format!("{token}.x"),
        ] {
            assert!(valid(other).is_err(), "{other}");
        }
        // A shorter code.
        assert!(valid(&token[..token.len() - 2]).is_err());
        assert!(valid(&"A".repeat(MAX_TOKEN + 1)).unwrap_err().contains("long"));
    }

    #[test]
    fn overrides_that_cannot_be_minted_are_refused() {
        let mint = |values| overrides().mint(values);
        let day = Duration::from_secs(24 * 3600);
        let long = "x".repeat(MAX_TOKEN);
        for (token, problem) in [
            (mint(json!({})), "no values"),
            (mint(json!([])), "JSON array"),
            (mint(json!({"f": long})), "at most 3584"),
            (mint(json!({"f": 1})).lasting(8 * day), "7 days"),
            (mint(json!({"f": 1})).lasting(Duration::ZERO), "7 days"),
            (SignedOverrides::new("short").mint(json!({"f": 1})), "shorter than 16"),
        ] {
            for minted in [token.link(), token.cookie()] {
                let error = minted.unwrap_err().to_string();
                assert!(error.contains(problem), "{error}");
            }
        }
        assert!(mint(json!({"f": 1})).lasting(7 * day).cookie().is_ok());
    }

    #[test]
    fn a_link_becomes_a_cookie_for_its_user() {
        let link = |token: OverrideToken| token.sign(Purpose::Link, at(NOW)).unwrap();
        let set = |token: &str, key, now| overrides().set_cookie(token, key, "", at(now));
        let for_alice = link(overrides().mint(json!({"f": 7})).for_context("alice").lasting(Duration::from_secs(60)));
        let cookie = set(&for_alice, Some("alice"), NOW + 10).unwrap();
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        assert_eq!(attributes, "Path=/; Max-Age=60; Secure; HttpOnly; SameSite=Lax");
        let value = pair.strip_prefix("__Host-flipswitch-overrides=").unwrap();
        assert_eq!(is_valid(&overrides(), Purpose::Cookie, value, "", NOW + 69), Ok(()));
        assert_eq!(is_valid(&overrides(), Purpose::Cookie, value, "", NOW + 70), Err("the token has expired"));
        for key in [Some("bob"), None] {
            assert_eq!(set(&for_alice, key, NOW), Err("the token is for another user"));
        }
        assert!(set(&link(overrides().mint(json!({"f": 7}))), None, NOW).is_ok());
        assert!(set(&token(Purpose::Cookie), None, NOW).is_err());
    }

    #[test]
    fn the_location_stays_on_the_site() {
        for (target, expected) in [
            ("/", "/"),
            ("/checkout?flipswitch=x", "/checkout"),
            ("/checkout?a=1&flipswitch=x&b=%20", "/checkout?a=1&b=%20"),
            ("/a?flipswitch=x&flipswitch=y&flipswitches=z&flipswitch", "/a?flipswitches=z"),
            ("/a/?&&flipswitch=off", "/a/"),
            ("//evil.example/x?flipswitch=x", "/evil.example/x"),
            ("/\\evil.example?flipswitch=x", "/evil.example"),
            ("/\\/\\//evil.example?flipswitch=x", "/evil.example"),
            ("/%2F%2Fevil.example?flipswitch=x", "/%2F%2Fevil.example"),
            ("https://evil.example/?flipswitch=x", "/https://evil.example/"),
            ("/\t/evil.example?flipswitch=x", "/evil.example"),
            ("", "/"),
        ] {
            assert_eq!(location(target), expected, "{target}");
        }
        assert_eq!(parameter("/a?b=1&flipswitch=x.y"), Some("x.y"));
        for none in ["/a", "/a?flipswitches=x", "/a?xflipswitch=y", "/flipswitch=x"] {
            assert_eq!(parameter(none), None, "{none}");
        }
    }
}
