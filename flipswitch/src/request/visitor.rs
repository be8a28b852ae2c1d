//! Visitors, that is, requests without a user, and their identification.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::HeaderName;

use crate::{
    error::ConfigError,
    provider::provider::FlipswitchProvider,
    request::{integration::RequestParts, warnings::SetupWarning},
    sanitize::printable,
    secret::VisitorKeys,
};

/// Selects how flags are evaluated for requests without a user: with one shared context, or with a targeting key for each
/// visitor.
///
/// A request has a user if `with_user` returns a context, or if `with_context` returns a context with a targeting key. For other
/// requests, the attributes from `with_context` are kept.
///
/// ```
/// use flipswitch::integration::{Anonymous, SameSite};
///
/// # fn main() -> Result<(), flipswitch::ConfigError> {
/// // All visitors share one context. This is the default.
/// let anonymous = Anonymous::shared();
///
/// // A visitor is identified by a header, which clients can forge.
/// let anonymous = Anonymous::header("x-device-id")?;
///
/// // A visitor is identified by a cookie that only this application can create.
/// let anonymous: Anonymous = Anonymous::cookie().into();
///
/// // The same cookie for all subdomains, and in pages from other sites.
/// let cookie = Anonymous::cookie().domain("example.com").same_site(SameSite::None).partitioned(true);
/// let anonymous = cookie.build()?;
/// # Ok(())
/// # }
/// ```
///
/// The response to the first request that reads a flag sets the cookie:
///
/// ```
/// use flipswitch::{FlipswitchProvider, http, serde_json::json};
/// use flipswitch::integration::{self, Anonymous, ScopeBuilder};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), http::Error> {
/// let provider = FlipswitchProvider::in_memory(json!({"beta": true}));
/// let scopes = ScopeBuilder::new(provider).with_anonymous(Anonymous::cookie());
///
/// let (mut head, ()) = http::Request::get("/").body(())?.into_parts();
/// let scope = scopes.open(&mut head);
/// assert!(scope.flags().await.bool("beta", false));
///
/// let mut headers = http::HeaderMap::new();
/// integration::finish(&scope, 200, &mut headers);
/// assert!(headers["set-cookie"].as_bytes().starts_with(b"__Host-flipswitch-anonymous="));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Anonymous(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Shared,
    Header(HeaderName),
    Cookie(AnonymousCookie),
}

/// A cookie that identifies a visitor, created by [`Anonymous::cookie`].
///
/// If the cookie is invalid, `with_anonymous` logs an error, and all visitors share one context. [`build`](Self::build) returns
/// the error instead.
#[derive(Clone)]
#[must_use = "a cookie does nothing until it is passed to `with_anonymous`"]
pub struct AnonymousCookie {
    name: Option<String>,
    domain: Option<String>,
    path: String,
    same_site: SameSite,
    is_partitioned: bool,
    is_secure: bool,
    max_age: Duration,
    consent: Option<Arc<Consent>>,
}

type Consent = dyn Fn(&dyn RequestParts) -> bool + Send + Sync;

/// Selects the requests to which browsers add a cookie: the attribute `SameSite`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// The cookie is sent only with requests from pages on the same site.
    Strict,
    /// The cookie is also sent with requests that follow a link on another site.
    Lax,
    /// The cookie is sent with all requests. It must be `Secure`.
    None,
}

/// Name of the cookie, without the prefix.
const NAME: &str = "flipswitch-anonymous";
/// Maximum length of a header value that identifies a visitor, in bytes.
const MAX_HEADER_BYTES: usize = 256;
/// Length of a visitor's number in a cookie, in hexadecimal digits, and of its authentication code.
const DIGITS: usize = 32;
/// Maximum number of cookies with the right name that are checked in a request.
const MAX_COOKIES: usize = 4;
/// Maximum length of the name, domain or path of a cookie, in bytes.
const MAX_ATTRIBUTE_BYTES: usize = 256;
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Anonymous {
    /// Evaluates flags for all visitors with one shared context, without a targeting key. This is the default.
    #[must_use]
    pub fn shared() -> Self {
        Self(Kind::Shared)
    }

    /// Identifies a visitor by the value of a header, such as a device id.
    ///
    /// The value is used if the request has the header once, and if the value is 1 to 256 bytes of UTF-8. Otherwise the
    /// [shared](Self::shared) context is used. Clients can send any value: a client that sends the id of another visitor or user
    /// gets that person's flags, and each new value causes a request to the flag service.
    ///
    /// # Errors
    ///
    /// [`ConfigError::HeaderName`] if the name is not a valid header name.
    pub fn header(name: impl AsRef<str>) -> Result<Self, ConfigError> {
        let name = name.as_ref();
        let header = HeaderName::try_from(name).map_err(|_| ConfigError::HeaderName { name: printable(name) })?;
        Ok(Self(Kind::Header(header)))
    }

    /// Identifies a visitor by a cookie with a random number. The cookie is valid for one year.
    ///
    /// The cookie is `__Host-flipswitch-anonymous`, with `HttpOnly`, `Secure`, `SameSite=Lax` and `Path=/`. Its value consists of
    /// a random 128-bit number and an authentication code that only applications with the provider's
    /// [secret](crate::FlipswitchProviderBuilder::secret) can compute. The targeting key is `anonymous-` followed by the number
    /// in 32 hexadecimal digits, so no cookie can name a user. A cookie with any other value is ignored and replaced.
    ///
    /// All applications on one host share their cookies, even on different ports. Give their providers the same secret or
    /// different [names](crate::FlipswitchProviderBuilder::name). Otherwise each application replaces the cookies of the others.
    ///
    /// The first response to a request that read a flag sets the cookie. For that request itself, the [shared](Self::shared)
    /// context is used, so bots that never return a cookie cause no requests to the flag service. A response that shared caches
    /// may store (`Cache-Control: public`, `s-maxage`, or `max-age` without `private`) does not set the cookie. If a response
    /// sets the cookie and has no `Cache-Control`, `Cache-Control: private` is added.
    ///
    /// Browsers accept the cookie only over HTTPS, except that most also accept it from `localhost` over plain HTTP. For other
    /// sites without HTTPS, see [`secure`](AnonymousCookie::secure).
    pub fn cookie() -> AnonymousCookie {
        AnonymousCookie {
            name: None,
            domain: None,
            path: "/".to_owned(),
            same_site: SameSite::Lax,
            is_partitioned: false,
            is_secure: true,
            max_age: 365 * DAY,
            consent: None,
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
        cookie.build().unwrap_or_else(|error| {
            tracing::error!(target: "flipswitch", %error, "invalid cookie: all visitors share one context");
            Self::shared()
        })
    }
}

impl AnonymousCookie {
    /// Sets the name of the cookie, without its prefix. Defaults to `flipswitch-anonymous`, followed by `-` and the
    /// provider's [name](crate::FlipswitchProviderBuilder::name), if it has one.
    ///
    /// A prefix, which browsers check, is added: `__Host-` by default, `__Secure-` with a [domain](Self::domain) or a
    /// [path](Self::path) other than `/`, and none without [`secure`](Self::secure).
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets a domain, such as `example.com`, so that all its subdomains get the cookie. Defaults to none, so only the host that
    /// set the cookie gets it.
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.domain = Some(domain.into());
        self
    }

    /// Sets the path under which requests carry the cookie. Defaults to `/`. Requests to other paths have no cookie, so each of
    /// them would count as a new visitor. Add the layer only to this path.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Selects the requests to which browsers add the cookie. Defaults to [`SameSite::Lax`]. If browsers send no cookie with a
    /// request because of this setting, as with a form on another site, the response does not set a new one.
    pub fn same_site(mut self, same_site: SameSite) -> Self {
        self.same_site = same_site;
        self
    }

    /// Sets whether browsers keep a separate cookie for each site that embeds the application (`Partitioned`). Defaults to
    /// `false`.
    pub fn partitioned(mut self, partitioned: bool) -> Self {
        self.is_partitioned = partitioned;
        self
    }

    /// Sets whether the cookie is `Secure`, that is, accepted only over HTTPS. Defaults to `true`. With `false`, the name has no
    /// prefix: `flipswitch-anonymous`.
    pub fn secure(mut self, secure: bool) -> Self {
        self.is_secure = secure;
        self
    }

    /// Sets how long browsers keep the cookie, in whole seconds. Defaults to 365 days; browsers accept at most 400.
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = max_age;
        self
    }

    /// Sets a function that returns whether the visitor of a request has consented to the cookie. Without consent, the cookie is
    /// neither set nor used, and the [shared](Anonymous::shared) context is used. Defaults to none, so no consent is needed. If
    /// the function panics, the visitor has not consented.
    ///
    /// ```
    /// use flipswitch::integration::Anonymous;
    ///
    /// let cookie = Anonymous::cookie().consent(|request| {
    ///     let mut cookies = request.header_values("cookie").flat_map(|line| line.split(|byte| *byte == b';'));
    ///     cookies.any(|cookie| cookie.trim_ascii() == b"consent=yes")
    /// });
    /// # drop(cookie);
    /// ```
    pub fn consent(mut self, consent: impl Fn(&dyn RequestParts) -> bool + Send + Sync + 'static) -> Self {
        self.consent = Some(Arc::new(consent));
        self
    }

    /// Checks the cookie.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Cookie`] if an attribute is invalid:
    ///
    /// - a name that is empty or longer than 256 bytes, that begins with `__`, or that contains characters other than letters,
    ///   digits, `-`, `_` and `.`
    /// - a domain that is not a host name
    /// - a path that does not begin with `/`, or is not written as in a URL
    /// - a maximum age below 1 second or above 400 days
    /// - [`SameSite::None`] or [`partitioned`](Self::partitioned) without [`secure`](Self::secure)
    pub fn build(self) -> Result<Anonymous, ConfigError> {
        let refuse = |attribute, value: &dyn fmt::Display, problem| {
            Err(ConfigError::Cookie { attribute, value: printable(&value.to_string()), problem })
        };
        if let Some(name) = &self.name {
            if !is_token(name) {
                return refuse("name", name, "use 1 to 256 letters, digits, `-`, `_` and `.`");
            }
            if name.starts_with("__") {
                return refuse("name", name, "leave out the prefix, which is added automatically");
            }
        }
        if let Some(domain) = self.domain.as_ref().filter(|domain| !is_host(domain)) {
            return refuse("domain", domain, "pass a host name like \"example.com\"");
        }
        let is_path = |byte: u8| matches!(byte, b'!'..=b'~') && !matches!(byte, b';' | b'?' | b'#');
        if !self.path.starts_with('/') || self.path.len() > MAX_ATTRIBUTE_BYTES || !self.path.bytes().all(is_path) {
            return refuse("path", &self.path, "pass a path as it is in URLs, like \"/shop\"");
        }
        if !(1..=400 * DAY.as_secs()).contains(&self.max_age.as_secs()) {
            return refuse("max_age", &format_args!("{:?}", self.max_age), "pass a duration from 1 second to 400 days");
        }
        if !self.is_secure && self.same_site == SameSite::None {
            return refuse("same_site", &"None", "browsers accept this only with `secure(true)`");
        }
        if !self.is_secure && self.is_partitioned {
            return refuse("partitioned", &true, "browsers accept this only with `secure(true)`");
        }
        Ok(Anonymous(Kind::Cookie(self)))
    }

    /// Creates the visitor cookie of a provider.
    fn bind(self, provider: &FlipswitchProvider) -> VisitorCookie {
        let Self { name, domain, path, same_site, is_partitioned, is_secure, max_age, consent } = self;
        let name = name.unwrap_or_else(|| match provider.name() {
            Some(provider) => format!("{NAME}-{provider}"),
            None => NAME.to_owned(),
        });
        let prefix = match (is_secure, &domain, path.as_str()) {
            (false, _, _) => "",
            (true, None, "/") => "__Host-",
            _ => "__Secure-",
        };
        let domain = domain.map(|domain| format!("; Domain={domain}")).unwrap_or_default();
        let (secure, partitioned) =
            (if is_secure { "; Secure" } else { "" }, if is_partitioned { "; Partitioned" } else { "" });
        let max_age = max_age.as_secs();
        VisitorCookie {
            name: format!("{prefix}{name}"),
            attributes: format!(
                "{domain}; Path={path}; Max-Age={max_age}; HttpOnly{secure}; SameSite={same_site:?}{partitioned}"
            ),
            keys: provider.visitor_keys().clone(),
            same_site,
            consent,
        }
    }
}

/// Shows whether consent is needed, but not the function.
impl fmt::Debug for AnonymousCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, domain, path, same_site, is_partitioned, is_secure, max_age, consent } = self;
        f.debug_struct("AnonymousCookie")
            .field("name", name)
            .field("domain", domain)
            .field("path", path)
            .field("same_site", same_site)
            .field("partitioned", is_partitioned)
            .field("secure", is_secure)
            .field("max_age", max_age)
            .field("consent", &consent.is_some())
            .finish()
    }
}

fn is_token(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=MAX_ATTRIBUTE_BYTES).contains(&name.len()) && name.bytes().all(is_allowed)
}

fn is_host(domain: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let is_label = |label: &str| {
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(is_allowed)
    };
    domain.len() <= MAX_ATTRIBUTE_BYTES && domain.split('.').all(is_label)
}

/// The identification of visitors of one provider.
#[derive(Clone, Debug)]
pub(super) enum Visitors {
    Shared,
    Header(HeaderName),
    Cookie(Arc<VisitorCookie>),
}

/// The visitor of a request.
#[derive(Debug)]
pub(super) enum Visitor<'a> {
    /// Identified by this targeting key.
    Known(String),
    /// Has no cookie yet.
    New(&'a Arc<VisitorCookie>),
    /// Not identified.
    Shared,
}

/// The visitor cookie of a provider.
pub(super) struct VisitorCookie {
    /// The name with its prefix.
    name: String,
    /// The attributes as they follow the value in the header.
    attributes: String,
    keys: VisitorKeys,
    same_site: SameSite,
    consent: Option<Arc<Consent>>,
}

impl fmt::Debug for VisitorCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VisitorCookie")
            .field("name", &self.name)
            .field("attributes", &self.attributes)
            .finish_non_exhaustive()
    }
}

impl Visitors {
    pub(super) fn new(anonymous: Anonymous, provider: &FlipswitchProvider) -> Self {
        match anonymous.0 {
            Kind::Shared => Self::Shared,
            Kind::Header(name) => Self::Header(name),
            Kind::Cookie(cookie) => {
                if provider.lacks_secret() {
                    SetupWarning::CookieWithoutSecret.log(provider);
                }
                Self::Cookie(Arc::new(cookie.bind(provider)))
            }
        }
    }

    /// Finds the visitor of a request.
    pub(super) fn find(&self, request: &dyn RequestParts, provider: &FlipswitchProvider) -> Visitor<'_> {
        match self {
            Self::Shared => Visitor::Shared,
            Self::Header(name) => {
                single_value(request.header_values(name.as_str())).map_or(Visitor::Shared, Visitor::Known)
            }
            Self::Cookie(cookie) if !cookie.is_allowed(request, provider) => Visitor::Shared,
            Self::Cookie(cookie) => match cookie.find(request) {
                Some(key) => Visitor::Known(key),
                None if cookie.is_withheld(request) => Visitor::Shared,
                None => Visitor::New(cookie),
            },
        }
    }
}

impl VisitorCookie {
    fn is_allowed(&self, request: &dyn RequestParts, provider: &FlipswitchProvider) -> bool {
        let Some(consent) = &self.consent else { return true };
        catch_unwind(AssertUnwindSafe(|| consent(request))).unwrap_or_else(|_| {
            SetupWarning::ContextPanicked.log(provider);
            false
        })
    }

    /// Returns whether browsers send no cookie with this request, although they may have one: if another site started the
    /// request, `SameSite` forbids the cookie, or forbids it for forms. A new cookie would replace the old one.
    fn is_withheld(&self, request: &dyn RequestParts) -> bool {
        let is_cross_site = || request.header_values("sec-fetch-site").any(|site| site == b"cross-site");
        match self.same_site {
            SameSite::None => false,
            SameSite::Strict => is_cross_site(),
            SameSite::Lax => is_cross_site() && request.header_values("origin").next().is_some(),
        }
    }

    /// Returns the targeting key of the visitor whose cookie a request carries.
    fn find(&self, request: &dyn RequestParts) -> Option<String> {
        let lines = request.header_values("cookie");
        let values = lines.flat_map(|line| line.split(|byte| *byte == b';')).filter_map(|pair| {
            let value = pair.trim_ascii().strip_prefix(self.name.as_bytes())?.strip_prefix(b"=")?;
            Visit::parse(value)
        });
        // A few forged cookies do not hide the real one.
        let visit = values.take(MAX_COOKIES).find(|visit| self.keys.verifies(visit.digits.as_bytes(), visit.code))?;
        Some(format!("anonymous-{}", visit.digits))
    }

    /// Returns whether a `Set-Cookie` header sets this cookie.
    pub(super) fn is_set_by(&self, header: &[u8]) -> bool {
        header.strip_prefix(self.name.as_bytes()).is_some_and(|rest| rest.starts_with(b"="))
    }

    /// Creates the `Set-Cookie` header for a new visitor. Returns `None` if the system provides no random numbers.
    pub(super) fn mint(&self) -> Option<String> {
        let mut number = [0; DIGITS / 2];
        getrandom::fill(&mut number)
            .inspect_err(|error| tracing::error!(target: "flipswitch", %error, "no random numbers are available; no cookie is set"))
            .ok()?;
        Some(format!("{}{}", self.pair(u128::from_be_bytes(number)), self.attributes))
    }

    /// Returns the name and value of a visitor's cookie.
    fn pair(&self, number: u128) -> String {
        let digits = format!("{number:032x}");
        let code = u128::from_be_bytes(self.keys.sign(digits.as_bytes()));
        format!("{}={digits}.{code:032x}", self.name)
    }
}

/// Returns the name and value of a visitor's cookie, for tests.
pub(crate) fn cookie_of(provider: &FlipswitchProvider, number: u128) -> String {
    Anonymous::cookie().bind(provider).pair(number)
}

/// The value of a cookie, before its code is verified.
struct Visit<'a> {
    digits: &'a str,
    code: [u8; DIGITS / 2],
}

impl<'a> Visit<'a> {
    fn parse(value: &'a [u8]) -> Option<Self> {
        let (digits, code) = std::str::from_utf8(value).ok()?.split_once('.')?;
        let is_number =
            |text: &str| text.len() == DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let code = u128::from_str_radix(Some(code).filter(|code| is_number(code))?, 16).ok()?;
        is_number(digits).then_some(Self { digits, code: code.to_be_bytes() })
    }
}

/// Headers of content delivery networks, in the syntax of `Cache-Control`.
const CDN_CACHE_HEADERS: [&str; 7] = [
    "cdn-cache-control",
    "surrogate-control",
    "cloudflare-cdn-cache-control",
    "vercel-cdn-cache-control",
    "netlify-cdn-cache-control",
    "edge-control",
    "x-litespeed-cache-control",
];

/// Returns whether shared caches may store a response (RFC 9111, section 3). They may if `Cache-Control` allows it or sets an
/// age, or if there is an `Expires` header, unless the response is private. Caches with a header of their own use that header
/// (RFC 9213).
pub(super) fn is_for_shared_caches<'a, I>(header_values: impl Fn(&'static str) -> I) -> bool
where
    I: Iterator<Item = &'a [u8]>,
{
    let expires = |value: &[u8]| {
        let date = std::str::from_utf8(value).ok().and_then(|value| httpdate::parse_http_date(value).ok());
        date.is_some_and(|date| date > SystemTime::now())
    };
    let may_store = |name, is_stored_otherwise: bool| {
        let (mut is_stored, mut is_private) = (is_stored_otherwise, false);
        for directive in header_values(name).flat_map(|value| value.split(|byte| *byte == b',')) {
            let directive = directive.trim_ascii();
            let name = directive.split(|byte| *byte == b'=').next().unwrap_or_default();
            let is =
                |text: &[u8], names: &[&str]| names.iter().any(|known| text.eq_ignore_ascii_case(known.as_bytes()));
            is_stored |= is(name, &["public", "s-maxage", "max-age"]);
            // With a value, `private` applies only to some header fields.
            is_private |= is(directive, &["private", "no-store"]);
        }
        is_stored && !is_private
    };
    may_store("cache-control", header_values("expires").any(expires))
        || CDN_CACHE_HEADERS.into_iter().any(|name| may_store(name, false))
        || header_values("x-accel-expires").any(|value| value != b"0")
}

fn single_value<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Option<String> {
    let value = values.next().filter(|value| (1..=MAX_HEADER_BYTES).contains(&value.len()))?;
    // If there are two values, a third party may have added one.
    values.next().is_none().then(|| std::str::from_utf8(value).ok().map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::request::scope::RequestScope;

    #[test]
    fn responses_for_shared_caches_are_recognized() {
        let cases: [(&[&str], bool); 11] = [
            (&[], false),
            (&["public"], true),
            (&["no-cache", "S-MaxAge=60"], true),
            (&["max-age=60"], true),
            (&["max-age=60, private"], false),
            (&["Private, max-age=60"], false),
            (&["public", "no-store"], false),
            (&["no-cache"], false),
            (&["republic"], false),
            (&["public, private=\"x-user\""], true),
            (&["x=\"public\""], false),
        ];
        for (values, expected) in cases {
            let of = |asked| move |name| values.iter().filter(move |_| name == asked).map(|value| value.as_bytes());
            assert_eq!(is_for_shared_caches(of("cache-control")), expected, "{values:?}");
            assert_eq!(is_for_shared_caches(of("cdn-cache-control")), expected, "{values:?}");
        }
        let tomorrow = httpdate::fmt_http_date(SystemTime::now() + DAY);
        for (expires, expected) in [(&*tomorrow, true), ("0", false), ("Thu, 01 Jan 1970 00:00:00 GMT", false)] {
            let value = |name| (name == "expires").then_some(expires.as_bytes()).into_iter();
            assert_eq!(is_for_shared_caches(value), expected, "{expires}");
            let private = |name| value(name).chain((name == "cache-control").then_some(&b"private"[..]));
            assert!(!is_for_shared_caches(private), "{expires}");
        }
    }

    struct Head(Vec<(&'static str, Vec<u8>)>);

    impl RequestParts for Head {
        fn header_values<'a>(&'a self, name: &str) -> Box<dyn Iterator<Item = &'a [u8]> + 'a> {
            let name = name.to_owned();
            Box::new(self.0.iter().filter(move |(other, _)| *other == name).map(|(_, value)| value.as_slice()))
        }

        fn insert_scope(&mut self, _: RequestScope) -> Option<RequestScope> {
            None
        }
    }

    /// Returns the targeting key of a visitor, or `new` or `shared`.
    fn find(anonymous: impl Into<Anonymous>, name: &'static str, values: &[&[u8]]) -> String {
        let head = Head(values.iter().map(|value| (name, value.to_vec())).collect());
        let provider = provider();
        match Visitors::new(anonymous.into(), &provider).find(&head, &provider) {
            Visitor::Known(key) => key,
            Visitor::New(_) => "new".to_owned(),
            Visitor::Shared => "shared".to_owned(),
        }
    }

    fn provider() -> FlipswitchProvider {
        FlipswitchProvider::in_memory(serde_json::json!({}))
    }

    /// Returns the cookie of visitor 7.
    fn seven() -> String {
        cookie_of(&provider(), 7)
    }

    const SEVEN: &str = "anonymous-00000000000000000000000000000007";

    #[test]
    fn a_header_is_used_if_it_occurs_once_and_is_short_text() {
        let header = || Anonymous::header("X-Device-Id").unwrap();
        let (longest, longer) = ("x".repeat(256), "x".repeat(257));
        assert_eq!(find(header(), "x-device-id", &[b"device 7"]), "device 7");
        assert_eq!(find(header(), "x-device-id", &["gerät".as_bytes()]), "gerät");
        assert_eq!(find(header(), "x-device-id", &[longest.as_bytes()]), longest);
        let refused: [&[&[u8]]; 5] = [&[], &[b""], &[b"one", b"two"], &[b"\xff"], &[longer.as_bytes()]];
        for values in refused {
            assert_eq!(find(header(), "x-device-id", values), "shared", "{values:?}");
        }
        assert_eq!(find(header(), "x-other", &[b"device 7"]), "shared");
    }

    #[test]
    fn an_invalid_header_name_is_refused() {
        let error = Anonymous::header("x device").unwrap_err().to_string();
        assert!(error.contains("\"x device\""), "{error}");
        assert_eq!(find(Anonymous::shared(), "x-device-id", &[b"7"]), "shared");
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let line = format!("a=b; {};c=\"d\"", seven());
        assert_eq!(find(Anonymous::cookie(), "cookie", &[b"session=\xff; x", line.as_bytes()]), SEVEN);
        // A few made-up cookies do not hide a valid one.
        let made_up = seven().replace("7.", "8.");
        for (count, expected) in [(0, SEVEN), (3, SEVEN), (4, "new")] {
            let line = vec![made_up.clone(); count].join("; ") + "; " + &seven();
            assert_eq!(find(Anonymous::cookie(), "cookie", &[line.as_bytes()]), expected, "{count}");
        }
        let insecure = seven().replace("__Host-", "");
        assert_eq!(find(Anonymous::cookie().secure(false), "cookie", &[insecure.as_bytes()]), SEVEN);
        // Other origins of the same site can only set a cookie without the prefix.
        assert_eq!(find(Anonymous::cookie(), "cookie", &[insecure.as_bytes()]), "new");
        assert_eq!(find(Anonymous::cookie(), "cookie", &[format!("x{}", seven()).as_bytes()]), "new");
    }

    #[test]
    fn a_cookie_that_this_application_did_not_make_is_ignored() {
        let (name, value) = seven().split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap();
        let number = "0123456789abcdef0123456789abcdef";
        let (digits, code) = value.split_once('.').unwrap();
        let values = [
            String::new(),
            // A cookie as created by earlier releases.
            number.to_owned(),
            format!("{number}.{number}"),
            format!("{digits}."),
            format!(".{code}"),
            format!("{digits}.{}", &code[1..]),
            format!("{digits}.{code}0"),
            format!("{digits}.+{}", &code[1..]),
            format!("0{digits}.{code}"),
            format!("{digits}.{code}.{code}"),
            value.to_uppercase().replace('7', "F"),
            format!("\"{value}\""),
            value.replace('7', "é"),
            "anonymous-1".to_owned(),
        ];
        for value in values {
            assert_eq!(find(Anonymous::cookie(), "cookie", &[format!("{name}={value}").as_bytes()]), "new", "{value}");
        }
        assert_eq!(find(Anonymous::cookie(), "cookie", &[seven().as_bytes()]), SEVEN);
    }

    #[test]
    fn a_cookie_that_was_set_is_found() {
        let host = "__Host-flipswitch-anonymous=";
        let year = "Max-Age=31536000; HttpOnly";
        let cases = [
            (Anonymous::cookie(), host, format!("Path=/; {year}; Secure; SameSite=Lax")),
            (Anonymous::cookie().secure(false), "flipswitch-anonymous=", format!("Path=/; {year}; SameSite=Lax")),
            (
                Anonymous::cookie().domain("example.com").same_site(SameSite::None).partitioned(true),
                "__Secure-flipswitch-anonymous=",
                format!("Domain=example.com; Path=/; {year}; Secure; SameSite=None; Partitioned"),
            ),
            (
                Anonymous::cookie().path("/shop").name("visit").same_site(SameSite::Strict).max_age(DAY),
                "__Secure-visit=",
                "Path=/shop; Max-Age=86400; HttpOnly; Secure; SameSite=Strict".to_owned(),
            ),
        ];
        for (cookie, name, attributes) in cases {
            let provider = provider();
            let Visitors::Cookie(bound) = Visitors::new(cookie.clone().into(), &provider) else { panic!("no cookie") };
            let (header, other) = (bound.mint().unwrap(), bound.mint().unwrap());
            assert_ne!(header, other);
            assert!(bound.is_set_by(header.as_bytes()) && !bound.is_set_by(b"other=1"));
            let (pair, found) = header.split_once("; ").unwrap();
            assert_eq!(found, attributes);
            assert!(pair.starts_with(name), "{pair}");
            let key = find(cookie, "cookie", &[pair.as_bytes()]);
            assert_eq!(key, format!("anonymous-{}", &pair[name.len()..name.len() + DIGITS]));
        }
    }

    #[test]
    fn a_request_that_browsers_send_without_cookies_makes_no_new_visitor() {
        let cross_site = ("sec-fetch-site", b"cross-site".to_vec());
        let form = ("origin", b"https://other.example".to_vec());
        let head =
            |headers: &[&(&'static str, Vec<u8>)]| Head(headers.iter().map(|header| (*header).clone()).collect());
        let provider = provider();
        for (same_site, link, posted) in
            [(SameSite::Strict, false, false), (SameSite::Lax, true, false), (SameSite::None, true, true)]
        {
            let visitors = Visitors::new(Anonymous::cookie().same_site(same_site).into(), &provider);
            let is_new = |head: &Head| matches!(visitors.find(head, &provider), Visitor::New(_));
            assert!(is_new(&head(&[])) && is_new(&head(&[&form])), "{same_site:?}");
            assert_eq!(is_new(&head(&[&cross_site])), link, "{same_site:?}");
            assert_eq!(is_new(&head(&[&cross_site, &form])), posted, "{same_site:?}");
        }
    }

    #[test]
    fn without_consent_no_cookie_is_used_or_set() {
        let cookie = || {
            Anonymous::cookie().consent(|request| request.header_values("cookie").any(|line| line.starts_with(b"ok")))
        };
        assert_eq!(find(cookie(), "cookie", &[]), "shared");
        assert_eq!(find(cookie(), "cookie", &[seven().as_bytes()]), "shared");
        assert_eq!(find(cookie(), "cookie", &[b"ok"]), "new");
        assert_eq!(find(cookie(), "cookie", &[format!("ok; {}", seven()).as_bytes()]), SEVEN);
        let panics = Anonymous::cookie().consent(|_| panic!("expected"));
        assert_eq!(find(panics, "cookie", &[seven().as_bytes()]), "shared");
    }

    #[test]
    fn invalid_attributes_are_refused_by_name() {
        let cookie = Anonymous::cookie;
        let long = "x".repeat(257);
        let cases = [
            (cookie().name(""), "name"),
            (cookie().name("a b"), "name"),
            (cookie().name("a;b"), "name"),
            (cookie().name("__Host-x"), "name"),
            (cookie().name(&long), "name"),
            (cookie().domain(""), "domain"),
            (cookie().domain("a.example; Path=/x"), "domain"),
            (cookie().domain(".example.com"), "domain"),
            (cookie().domain("example.com."), "domain"),
            (cookie().domain("a..example"), "domain"),
            (cookie().domain("a-.example"), "domain"),
            (cookie().path("/a b"), "path"),
            (cookie().path("/a?b"), "path"),
            (cookie().name("__Http-x"), "name"),
            (cookie().path("shop"), "path"),
            (cookie().path("/a;b"), "path"),
            (cookie().path("/a\r\nb"), "path"),
            (cookie().max_age(Duration::from_millis(999)), "max_age"),
            (cookie().max_age(401 * DAY), "max_age"),
            (cookie().same_site(SameSite::None).secure(false), "same_site"),
            (cookie().partitioned(true).secure(false), "partitioned"),
        ];
        for (cookie, attribute) in cases {
            let error = cookie.clone().build().unwrap_err().to_string();
            assert!(error.contains(&format!("the {attribute} ")), "{error}");
            // An application that ignores the error sets no cookies.
            assert_eq!(find(cookie, "cookie", &[seven().as_bytes()]), "shared", "{error}");
        }
    }
}
