//! Who a request is from when nobody is logged in.

use std::fmt::Write as _;

use http::HeaderName;

/// Whom a request is evaluated for when no user is found: the targeting key of a visitor whom nobody knows.
///
/// A user is found where `with_user` gives a context, or `with_context` one with a targeting key. Fields that
/// `with_context` gives beside are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Anonymous(Kind);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Nobody,
    Header(HeaderName),
    Cookie(VisitorCookie),
}

/// The cookie that [`Anonymous::cookie`] reads and sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VisitorCookie {
    secure: bool,
}

/// What of a header is taken for an identity, in bytes.
const HEADER_LIMIT: usize = 256;
/// A visitor's number in a cookie, in hexadecimal digits.
const DIGITS: usize = 32;
/// A year, in seconds.
const MAX_AGE: u32 = 31_536_000;

impl Anonymous {
    /// Nobody in particular: no targeting key, and so one context that all visitors share. The default.
    #[expect(non_upper_case_globals, reason = "one of several ways, as a variant would be")]
    pub const None: Self = Self(Kind::Nobody);

    /// The value of a header, such as a device's own number. It counts if the request has it once, and it is UTF-8, not
    /// empty and at most 256 bytes long; else the visitor is nobody in particular.
    ///
    /// Clients can send what they want: with another's number they see the other's flags. A `name` that no header can
    /// have is logged as an error, and never found.
    #[must_use]
    pub fn header(name: impl AsRef<str>) -> Self {
        let name = name.as_ref();
        HeaderName::try_from(name).map_or_else(
            |_| {
                tracing::error!(target: "flipswitch", name, "no header can have this name; visitors stay anonymous");
                Self::None
            },
            |name| Self(Kind::Header(name)),
        )
    }

    /// A random number in a cookie, so that a visitor stays the same one until a year later.
    ///
    /// The cookie is `__Host-flipswitch-anonymous`, with `HttpOnly`, `Secure`, `SameSite=Lax` and `Path=/`; its 128 random
    /// bits are written as 32 hexadecimal digits, and `anonymous-` and those are the targeting key, so that nobody can
    /// forge one that is a user's. A cookie with anything else in it is replaced.
    ///
    /// It is set by the first response to a request that read a flag, which itself is still evaluated for nobody in
    /// particular: a robot that never sends a cookie back costs the flag service nothing. One that makes up cookies is a
    /// new visitor each time. Where responses are marked for shared caches, mark those that depend on flags as private.
    ///
    /// A browser takes the cookie over HTTPS only, and most over plain HTTP from `localhost`;
    /// [`insecure_cookie`](Self::insecure_cookie) is for whoever needs it elsewhere.
    #[must_use]
    pub fn cookie() -> Self {
        Self(Kind::Cookie(VisitorCookie { secure: true }))
    }

    /// The same as [`cookie`](Self::cookie) for sites without HTTPS: without `Secure`, and therefore without the prefix of
    /// the name, which is `flipswitch-anonymous`.
    #[must_use]
    pub fn insecure_cookie() -> Self {
        Self(Kind::Cookie(VisitorCookie { secure: false }))
    }

    /// Looks for the visitor in a request, whose headers of one name `values` gives.
    pub(crate) fn find<'a, I>(&self, values: impl FnOnce(&str) -> I) -> Visitor
    where
        I: Iterator<Item = &'a [u8]>,
    {
        match &self.0 {
            Kind::Nobody => Visitor::Nobody,
            Kind::Header(name) => header_value(values(name.as_str())).map_or(Visitor::Nobody, Visitor::Known),
            Kind::Cookie(cookie) => values("cookie")
                .find_map(|line| cookie.value(line))
                .map_or(Visitor::New(*cookie), |number| Visitor::Known(format!("anonymous-{number}"))),
        }
    }
}

/// Who a visitor is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Visitor {
    /// The targeting key.
    Known(String),
    /// Somebody without a cookie, who gets one if it turns out to be needed.
    New(VisitorCookie),
    Nobody,
}

fn header_value<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Option<String> {
    let value = values.next().filter(|value| (1..=HEADER_LIMIT).contains(&value.len()))?;
    // Two of them are the sender's and somebody else's, and nobody knows which.
    values.next().is_none().then(|| std::str::from_utf8(value).ok().map(str::to_owned))?
}

impl VisitorCookie {
    fn name(self) -> &'static str {
        if self.secure { "__Host-flipswitch-anonymous" } else { "flipswitch-anonymous" }
    }

    /// Finds the visitor's number in a `Cookie` header.
    fn value(self, line: &[u8]) -> Option<&str> {
        line.split(|byte| *byte == b';').find_map(|pair| {
            let pair = std::str::from_utf8(pair.trim_ascii()).ok()?;
            let (name, value) = pair.split_once('=')?;
            let is_ours = name == self.name()
                && value.len() == DIGITS
                && value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            is_ours.then_some(value)
        })
    }

    /// Whether a `Set-Cookie` header sets this cookie.
    pub(crate) fn is_set_by(self, header: &[u8]) -> bool {
        header.strip_prefix(self.name().as_bytes()).is_some_and(|rest| rest.starts_with(b"="))
    }

    /// Makes a visitor: the `Set-Cookie` header. `None` where the system has no random numbers.
    pub(crate) fn mint(self) -> Option<String> {
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

    fn find(anonymous: &Anonymous, values: &[&[u8]]) -> Visitor {
        anonymous.find(|_| values.iter().copied())
    }

    fn known(key: &str) -> Visitor {
        Visitor::Known(key.to_owned())
    }

    #[test]
    fn a_header_counts_if_there_is_one_that_is_text_and_short() {
        let header = Anonymous::header("X-Device-Id");
        let (longest, longer) = ("x".repeat(256), "x".repeat(257));
        assert_eq!(find(&header, &[b"device 7"]), known("device 7"));
        assert_eq!(find(&header, &["gerät".as_bytes()]), known("gerät"));
        assert_eq!(find(&header, &[longest.as_bytes()]), known(&longest));
        let refused: [&[&[u8]]; 5] = [&[], &[b""], &[b"one", b"two"], &[b"\xff"], &[longer.as_bytes()]];
        for values in refused {
            assert_eq!(find(&header, values), Visitor::Nobody, "{values:?}");
        }
        let asked = header.find(|name| {
            assert_eq!(name, "x-device-id");
            std::iter::empty()
        });
        assert_eq!(asked, Visitor::Nobody);
    }

    #[test]
    fn a_name_that_no_header_has_is_never_found() {
        assert_eq!(find(&Anonymous::header("x device"), &[b"7"]), Visitor::Nobody);
        assert_eq!(find(&Anonymous::None, &[b"7"]), Visitor::Nobody);
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let line = format!("a=b; __Host-flipswitch-anonymous={NUMBER};c=\"d\"");
        let found = find(&Anonymous::cookie(), &[b"session=\xff; x", line.as_bytes()]);
        assert_eq!(found, known(&format!("anonymous-{NUMBER}")));
        // One that is not ours does not hide one that is.
        let line = format!("flipswitch-anonymous=forged; flipswitch-anonymous={NUMBER}");
        let found = find(&Anonymous::insecure_cookie(), &[line.as_bytes()]);
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
            let found = find(&Anonymous::cookie(), &[line.as_bytes()]);
            assert_eq!(found, Visitor::New(VisitorCookie { secure: true }), "{form}");
        }
        // Whoever can set a cookie without the prefix cannot set one with it.
        let line = format!("flipswitch-anonymous={NUMBER}; x__Host-flipswitch-anonymous={NUMBER}");
        assert_eq!(find(&Anonymous::cookie(), &[line.as_bytes()]), Visitor::New(VisitorCookie { secure: true }));
    }

    #[test]
    fn what_is_set_is_found_again() {
        for (anonymous, name, secure) in [
            (Anonymous::cookie(), "__Host-flipswitch-anonymous=", "; Secure"),
            (Anonymous::insecure_cookie(), "flipswitch-anonymous=", ""),
        ] {
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
