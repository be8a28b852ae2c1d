//! Visitors: requests without a user, and how they are identified.

use std::fmt::Write as _;

use http::HeaderName;

use crate::{error::ConfigError, sanitize::printable};

/// Selects how requests without a user are evaluated: all with one shared context, or each visitor with a targeting
/// key.
///
/// A request has a user if `with_user` returns a context, or `with_context` one with a targeting key. Other attributes from
/// `with_context` are kept.
///
/// ```
/// use flipswitch::integration::Anonymous;
///
/// # fn main() -> Result<(), flipswitch::ConfigError> {
/// // All visitors share one context. This is the default.
/// let anonymous = Anonymous::shared();
///
/// // A visitor is identified by a header, which clients can forge.
/// let anonymous = Anonymous::header("x-device-id")?;
///
/// // A visitor is identified by a cookie with a random number.
/// let anonymous: Anonymous = Anonymous::cookie().into();
///
/// // The same without `Secure`, for sites without HTTPS.
/// let anonymous: Anonymous = Anonymous::cookie().secure(false).into();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anonymous(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Shared,
    Header(HeaderName),
    Cookie(AnonymousCookie),
}

/// Cookie that identifies a visitor, created by [`Anonymous::cookie`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a cookie does nothing until it is passed to `with_anonymous`"]
pub struct AnonymousCookie {
    secure: bool,
}

/// Longest header value that identifies a visitor, in bytes.
const MAX_HEADER_BYTES: usize = 256;
/// Length of a visitor's number in a cookie, in hexadecimal digits.
const DIGITS: usize = 32;
/// A year, in seconds.
const MAX_AGE: u32 = 31_536_000;

impl Anonymous {
    /// Evaluates all visitors with one shared context, without a targeting key. The default.
    #[must_use]
    pub fn shared() -> Self {
        Self(Kind::Shared)
    }

    /// Identifies a visitor by the value of a header, such as a device id.
    ///
    /// The value is used if the request has the header once, and if it is UTF-8 of 1 to 256 bytes. Otherwise the
    /// visitor is evaluated with the [shared](Self::shared) context. Clients can send any value: with the id of another
    /// visitor they get that visitor's flags.
    ///
    /// # Errors
    ///
    /// [`ConfigError::HeaderName`] if the name is not a valid header name.
    pub fn header(name: impl AsRef<str>) -> Result<Self, ConfigError> {
        let name = name.as_ref();
        let header = HeaderName::try_from(name).map_err(|_| ConfigError::HeaderName { name: printable(name) })?;
        Ok(Self(Kind::Header(header)))
    }

    /// Identifies a visitor by a cookie with a random number, which is valid for a year.
    ///
    /// The cookie is `__Host-flipswitch-anonymous`, with `HttpOnly`, `Secure`, `SameSite=Lax` and `Path=/`. Its value is a
    /// random number of 128 bits in 32 hexadecimal digits. The targeting key is `anonymous-` followed by the digits, so that
    /// no cookie can name a user. A cookie with another value is replaced.
    ///
    /// The first response to a request that read a flag sets the cookie. That request itself is evaluated with the
    /// [shared](Self::shared) context, so that robots that never return a cookie cost the flag service nothing. A client
    /// that invents cookies is a new visitor each time. Mark responses that depend on flags as private, where shared caches
    /// may store them.
    ///
    /// Browsers accept the cookie over HTTPS only, and most of them from `localhost` over plain HTTP. For other sites
    /// without HTTPS see [`secure`](AnonymousCookie::secure).
    pub fn cookie() -> AnonymousCookie {
        AnonymousCookie { secure: true }
    }

    /// Finds the visitor of a request, given a function that returns all values of a header.
    pub(super) fn find<'a, I>(&self, header_values: impl FnOnce(&str) -> I) -> Visitor<'_>
    where
        I: Iterator<Item = &'a [u8]>,
    {
        match &self.0 {
            Kind::Shared => Visitor::Shared,
            Kind::Header(name) => single_value(header_values(name.as_str())).map_or(Visitor::Shared, Visitor::Known),
            Kind::Cookie(cookie) => header_values("cookie")
                .find_map(|line| cookie.value(line))
                .map_or(Visitor::New(cookie), |number| Visitor::Known(format!("anonymous-{number}"))),
        }
    }
}

impl Default for Anonymous {
    fn default() -> Self {
        Self::shared()
    }
}

impl From<AnonymousCookie> for Anonymous {
    fn from(cookie: AnonymousCookie) -> Self {
        Self(Kind::Cookie(cookie))
    }
}

/// The visitor of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Visitor<'a> {
    /// Identified by this targeting key.
    Known(String),
    /// Without a cookie yet.
    New(&'a AnonymousCookie),
    /// Not identified.
    Shared,
}

/// Returns whether shared caches may store a response with these values of `Cache-Control` (RFC 9111, section 3): whether it
/// says so, or sets an age, and is not private.
pub(super) fn is_for_shared_caches<'a>(values: impl Iterator<Item = &'a [u8]>) -> bool {
    let (mut is_stored, mut is_private) = (false, false);
    for directive in values.flat_map(|value| value.split(|byte| *byte == b',')) {
        let name = directive.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
        let is = |names: &[&str]| names.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()));
        is_stored |= is(&["public", "s-maxage", "max-age"]);
        is_private |= is(&["private", "no-store"]);
    }
    is_stored && !is_private
}

fn single_value<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Option<String> {
    let value = values.next().filter(|value| (1..=MAX_HEADER_BYTES).contains(&value.len()))?;
    // If there are two values, a third party may have added one.
    values.next().is_none().then(|| std::str::from_utf8(value).ok().map(str::to_owned))?
}

impl AnonymousCookie {
    /// Sets whether the cookie is `Secure`, that is, accepted over HTTPS only. Defaults to `true`. Without it, the name has
    /// no prefix: `flipswitch-anonymous`.
    pub fn secure(mut self, secure: bool) -> Self {
        self.secure = secure;
        self
    }

    fn name(&self) -> &'static str {
        if self.secure { "__Host-flipswitch-anonymous" } else { "flipswitch-anonymous" }
    }

    /// Finds the visitor's number in a `Cookie` header.
    fn value<'a>(&self, line: &'a [u8]) -> Option<&'a str> {
        line.split(|byte| *byte == b';').find_map(|pair| {
            let pair = std::str::from_utf8(pair.trim_ascii()).ok()?;
            let (name, value) = pair.split_once('=')?;
            let is_valid = name == self.name()
                && value.len() == DIGITS
                && value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            is_valid.then_some(value)
        })
    }

    /// Returns whether a `Set-Cookie` header sets this cookie.
    pub(super) fn is_set_by(&self, header: &[u8]) -> bool {
        header.strip_prefix(self.name().as_bytes()).is_some_and(|rest| rest.starts_with(b"="))
    }

    /// Makes the `Set-Cookie` header for a new visitor. Returns `None` if the system has no random numbers.
    pub(super) fn mint(&self) -> Option<String> {
        let mut bits = [0; DIGITS / 2];
        getrandom::fill(&mut bits)
            .inspect_err(|error| tracing::error!(target: "flipswitch", %error, "no random numbers: no cookie is set"))
            .ok()?;
        let mut header = format!("{}=", self.name());
        for byte in bits {
            // Writing to a string does not fail.
            let _ = write!(header, "{byte:02x}");
        }
        let secure = if self.secure { "; Secure" } else { "" };
        let _ = write!(header, "; Path=/; Max-Age={MAX_AGE}; HttpOnly{secure}; SameSite=Lax");
        Some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER: &str = "0123456789abcdef0123456789abcdef";

    fn find<'a>(anonymous: &'a Anonymous, values: &[&[u8]]) -> Visitor<'a> {
        anonymous.find(|_| values.iter().copied())
    }

    fn cookie(secure: bool) -> Anonymous {
        Anonymous::cookie().secure(secure).into()
    }

    fn known(key: &str) -> Visitor<'static> {
        Visitor::Known(key.to_owned())
    }

    #[test]
    fn responses_for_shared_caches_are_recognized() {
        let cases: [(&[&str], bool); 10] = [
            (&[], false),
            (&["public"], true),
            (&["no-cache", "S-MaxAge=60"], true),
            (&["max-age=60"], true),
            (&["max-age=60, private"], false),
            (&["Private, max-age=60"], false),
            (&["public", "no-store"], false),
            (&["no-cache"], false),
            (&["republic"], false),
            (&["x=\"public\""], false),
        ];
        for (values, expected) in cases {
            assert_eq!(is_for_shared_caches(values.iter().map(|value| value.as_bytes())), expected, "{values:?}");
        }
    }

    #[test]
    fn a_header_counts_if_there_is_one_that_is_text_and_short() {
        let header = Anonymous::header("X-Device-Id").unwrap();
        let (longest, longer) = ("x".repeat(256), "x".repeat(257));
        assert_eq!(find(&header, &[b"device 7"]), known("device 7"));
        assert_eq!(find(&header, &["gerät".as_bytes()]), known("gerät"));
        assert_eq!(find(&header, &[longest.as_bytes()]), known(&longest));
        let refused: [&[&[u8]]; 5] = [&[], &[b""], &[b"one", b"two"], &[b"\xff"], &[longer.as_bytes()]];
        for values in refused {
            assert_eq!(find(&header, values), Visitor::Shared, "{values:?}");
        }
        let asked = header.find(|name| {
            assert_eq!(name, "x-device-id");
            std::iter::empty()
        });
        assert_eq!(asked, Visitor::Shared);
    }

    #[test]
    fn a_name_that_no_header_has_is_refused() {
        let error = Anonymous::header("x device").unwrap_err().to_string();
        assert!(error.contains("\"x device\""), "{error}");
        assert_eq!(find(&Anonymous::shared(), &[b"7"]), Visitor::Shared);
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let line = format!("a=b; __Host-flipswitch-anonymous={NUMBER};c=\"d\"");
        let secure = cookie(true);
        let found = find(&secure, &[b"session=\xff; x", line.as_bytes()]);
        assert_eq!(found, known(&format!("anonymous-{NUMBER}")));
        // A forged cookie does not hide a valid one.
        let line = format!("flipswitch-anonymous=forged; flipswitch-anonymous={NUMBER}");
        let insecure = cookie(false);
        let found = find(&insecure, &[line.as_bytes()]);
        assert_eq!(found, known(&format!("anonymous-{NUMBER}")));
    }

    #[test]
    fn a_cookie_in_another_form_is_replaced() {
        let forms = [
            String::new(),
            NUMBER[1..].to_owned(),
            format!("{NUMBER}0"),
            NUMBER.to_uppercase(),
            format!("\"{NUMBER}\""),
            format!("{}g", &NUMBER[1..]),
            format!("{}é", &NUMBER[2..]),
            "anonymous-1".to_owned(),
        ];
        for form in forms {
            let line = format!("__Host-flipswitch-anonymous={form}");
            let anonymous = cookie(true);
            let found = find(&anonymous, &[line.as_bytes()]);
            assert_eq!(found, Visitor::New(&AnonymousCookie { secure: true }), "{form}");
        }
        // Other origins of the same site can set a cookie without the prefix only.
        let line = format!("flipswitch-anonymous={NUMBER}; x__Host-flipswitch-anonymous={NUMBER}");
        assert_eq!(find(&cookie(true), &[line.as_bytes()]), Visitor::New(&AnonymousCookie { secure: true }));
    }

    #[test]
    fn a_cookie_that_was_set_is_found() {
        for (anonymous, name, secure) in
            [(cookie(true), "__Host-flipswitch-anonymous=", "; Secure"), (cookie(false), "flipswitch-anonymous=", "")]
        {
            let Visitor::New(cookie) = find(&anonymous, &[]) else { panic!("there is no cookie") };
            let (header, other) = (cookie.mint().unwrap(), cookie.mint().unwrap());
            assert_ne!(header, other);
            let (pair, attributes) = header.split_once("; ").unwrap();
            let number = pair.strip_prefix(name).unwrap();
            assert_eq!(attributes, format!("Path=/; Max-Age=31536000; HttpOnly{secure}; SameSite=Lax"));
            assert_eq!(find(&anonymous, &[pair.as_bytes()]), known(&format!("anonymous-{number}")));
        }
    }
}
