//! The routes for browsers, and their responses.

use std::{
    collections::BTreeSet,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde_json::json;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::{
    answer::{self, Public},
    events::{EventLoop, Kind},
    request::{Body, InvalidBody, is_plain_path},
};
pub use super::{
    events::BrowserEvents,
    request::{BrowserRequest, BrowserRoute},
};
use crate::{
    cache::epoch::ECHO_WINDOW,
    context::context::{Context, Layer, PreparedContext},
    events::bus::MAX_AHEAD,
    provider::{
        browsers::{BrowserId, StreamLimits},
        flags::Flags,
        provider::FlipswitchProvider,
    },
    request::{gate::FlagKey, scope::RequestScope, warnings::SetupWarning},
};

/// Maximum size of the body of a browser's request, in bytes.
pub const MAX_BROWSER_BODY: usize = 64 << 10;

const SCRIPT: &str = include_str!("flipswitch.js");

/// The header with the opaque name of the user whose flags are in a response.
const USER: &str = "flipswitch-user";

const JSON: &str = "application/json";

/// Seconds after which a browser may request flags again if none are known.
const RETRY_AFTER: &str = "5";

/// Responds to browsers of an application over OFREP, with the flags for the request's user. The function `browser` in the web
/// crates uses this service. Cloning it is cheap.
#[derive(Clone)]
pub struct BrowserService {
    provider: FlipswitchProvider,
    settings: Arc<Settings>,
}

#[derive(Clone, Debug)]
struct Settings {
    public: Public,
    attributes: Vec<String>,
    public_path: Option<String>,
    limits: StreamLimits,
    has_streams: bool,
    inactivity: Duration,
    spread: Duration,
    origins: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            public: Public::Keys(BTreeSet::new()),
            attributes: Vec::new(),
            public_path: None,
            limits: StreamLimits { total: 10_000, per_context: 16 },
            has_streams: true,
            inactivity: Duration::from_secs(30),
            spread: Duration::from_secs(2),
            origins: Vec::new(),
        }
    }
}

/// A response to a browser.
#[derive(Debug)]
#[non_exhaustive]
pub struct BrowserResponse {
    /// The status.
    pub status: u16,
    /// Headers, with names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: BrowserBody,
}

/// The body of a response to a browser.
#[derive(Debug)]
#[non_exhaustive]
pub enum BrowserBody {
    /// The whole body.
    Full(Bytes),
    /// A stream. It must not be compressed, because compression delays its events.
    Events(BrowserEvents),
}

impl BrowserResponse {
    fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), body: BrowserBody::Full(body.into()) }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn json(status: u16, body: impl Into<String>) -> Self {
        Self::new(status, body.into()).with("content-type", JSON)
    }

    fn error(status: u16, key: Option<&str>, code: &str, details: &str) -> Self {
        let mut body = json!({"errorCode": code, "errorDetails": details});
        if let Some(key) = key {
            body["key"] = key.into();
        }
        Self::json(status, body.to_string())
    }
}

impl BrowserService {
    /// Creates a service without public flags.
    #[must_use]
    pub fn new(provider: FlipswitchProvider) -> Self {
        if provider.browsers().are_keys_random() {
            SetupWarning::BrowserWithoutSecret.log(&provider);
        }
        Self { provider, settings: Arc::default() }
    }

    fn set(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }

    /// Adds flags that browsers may read; see `BrowserRoutes` in the web crates for all options.
    #[must_use]
    pub fn public<K: FlagKey>(self, flags: impl IntoIterator<Item = K>) -> Self {
        self.set(|settings| match &mut settings.public {
            Public::All => {}
            Public::Keys(keys) => keys.extend(flags.into_iter().map(|flag| flag.key())),
        })
    }

    /// Lets browsers read all flags.
    #[must_use]
    pub fn public_all(self) -> Self {
        self.set(|settings| settings.public = Public::All)
    }

    /// Adds names of attributes that browsers may add to the context. Defaults to none.
    #[must_use]
    pub fn attributes<N: Into<String>>(self, names: impl IntoIterator<Item = N>) -> Self {
        let (targeting_key, names): (Vec<_>, Vec<_>) =
            names.into_iter().map(Into::into).partition(|name| name == "targetingKey");
        if !targeting_key.is_empty() {
            tracing::error!(
                target: "flipswitch",
                "`attributes` of the routes for browsers contains \"targetingKey\", which is ignored: the layer determines the \
                 user"
            );
        }
        self.set(|settings| settings.attributes.extend(names))
    }

    /// Sets the path, or the URL, at which browsers reach the routes if a proxy changes paths. Defaults to the path of each
    /// request.
    #[must_use]
    pub fn public_path(self, path: impl Into<String>) -> Self {
        let path = path.into();
        let path = path.trim_end_matches('/');
        if !is_plain_path(path) && !path.starts_with("https://") && !path.starts_with("http://") {
            tracing::error!(
                target: "flipswitch", path,
                "`public_path` of the routes for browsers is ignored: it must begin with `/`, or be a URL"
            );
            return self;
        }
        self.set(|settings| settings.public_path = Some(path.to_owned()))
    }

    /// Sets how many streams may be open. Defaults to 10 000.
    #[must_use]
    pub fn max_streams(self, streams: usize) -> Self {
        self.set(|settings| settings.limits.total = streams)
    }

    /// Sets how many streams may be open for one user. Defaults to 16.
    #[must_use]
    pub fn max_streams_per_context(self, streams: usize) -> Self {
        self.set(|settings| settings.limits.per_context = streams)
    }

    /// Sets whether browsers receive changes over event streams. Defaults to `true`.
    #[must_use]
    pub fn streams(self, has_streams: bool) -> Self {
        self.set(|settings| settings.has_streams = has_streams)
    }

    /// Sets how long a tab may be hidden before it closes its stream. Defaults to 30 seconds; the minimum is 1 second.
    #[must_use]
    pub fn inactivity(self, inactivity: Duration) -> Self {
        self.set(|settings| settings.inactivity = inactivity.max(Duration::from_secs(1)))
    }

    /// Sets the time over which events about a change are spread. Defaults to 2 seconds; the maximum is 1 hour.
    #[must_use]
    pub fn spread(self, spread: Duration) -> Self {
        self.set(|settings| settings.spread = spread.min(Duration::from_secs(3_600)))
    }

    /// Lets pages from another origin, such as `https://www.example.com`, request flags. Defaults to none.
    #[must_use]
    pub fn allow_origin(self, origin: impl Into<String>) -> Self {
        let origin = origin.into();
        let host = origin.split_once("://").map(|(_, host)| host);
        if host.is_none_or(|host| host.is_empty() || host.contains(['/', '*', ' '])) {
            tracing::error!(
                target: "flipswitch", origin,
                "`allow_origin` of the routes for browsers is ignored: it must be an origin exactly as browsers send it, like \
                 https://www.example.com"
            );
            return self;
        }
        self.set(|settings| settings.origins.push(origin.to_ascii_lowercase()))
    }

    /// Responds to a request. `scope` is the scope of the layer. `body` is `None` if it is larger than [`MAX_BROWSER_BODY`].
    pub async fn respond(
        &self,
        request: &BrowserRequest,
        scope: Option<&RequestScope>,
        body: Option<Bytes>,
    ) -> BrowserResponse {
        let scope = scope.and_then(|scope| scope.of(&self.provider));
        let response = match (request.route, &scope) {
            _ if request.is_preflight() => BrowserResponse::new(204, ""),
            (route, _) if !route.takes(&request.method) => {
                BrowserResponse::error(405, None, "GENERAL", "the method is not allowed").with("allow", route.method())
            }
            (BrowserRoute::Script, _) => self.script(request),
            (_, None) => self.missing_layer(),
            (BrowserRoute::Events, Some(scope)) => self.events(request, scope, Kind::Ofrep),
            (BrowserRoute::OwnEvents, Some(scope)) => self.events(request, scope, Kind::Flipswitch),
            (BrowserRoute::Bulk | BrowserRoute::Flag, Some(scope)) => {
                let response = match body {
                    None => BrowserResponse::error(413, None, "GENERAL", "the body is larger than 64 KiB"),
                    Some(body) => match Body::parse(&body) {
                        Ok(body) => self.evaluate(request, scope, &body).await,
                        Err(InvalidBody(code, details)) => BrowserResponse::error(400, None, code, details),
                    },
                };
                response.with("cache-control", "private, no-store").with("vary", "Cookie")
            }
        };
        self.with_cors(request, response).with("x-content-type-options", "nosniff")
    }

    /// Evaluates flags for the user of the request, and ignores the targeting key in the body.
    async fn evaluate(&self, request: &BrowserRequest, scope: &RequestScope, body: &Body) -> BrowserResponse {
        let browsers = self.provider.browsers();
        let (id, change) = (scope.browser_id(), browsers.latest().number);
        let user = answer::user(scope);
        if body.targeting_key().is_some_and(|key| key != user && scope.targeting_key().as_deref() != Some(key)) {
            SetupWarning::BrowserTargetingKey.log(&self.provider);
        }
        let (merged, is_reduced) = self.merged(scope, body, id);
        let (since, is_refused) = self.least_time(request, scope, merged.as_ref(), id);
        let flags = scope.flags_for_browser(merged.as_ref(), since).await;
        let is_late = since.is_some_and(|since| flags.requested_at().is_none_or(|at| at < since));
        if request.route == BrowserRoute::Bulk {
            let is_settled =
                since.is_none() && !is_refused && !is_reduced && flags.are_settled(|key| self.settings.public.has(key));
            browsers.answered(id, change, is_settled);
        }
        if flags.available().is_err() && flags.items().is_empty() {
            return BrowserResponse::error(503, None, "GENERAL", "no flags are currently known")
                .with("retry-after", RETRY_AFTER)
                .with(USER, user);
        }
        let response = match request.route {
            BrowserRoute::Flag => self.one(request, &flags),
            _ => self.all(request, &flags, id, &user, is_late || is_refused),
        };
        response.with(USER, user)
    }

    fn one(&self, request: &BrowserRequest, flags: &Flags) -> BrowserResponse {
        let key = request.key();
        let public = key.as_deref().filter(|key| self.settings.public.has(key));
        match public.and_then(|key| answer::one(flags, key)) {
            Some((flag, true)) => BrowserResponse::json(200, flag),
            Some((flag, false)) => BrowserResponse::json(400, flag),
            // The same response for a flag that is not public.
            None => {
                BrowserResponse::error(404, Some(&key.unwrap_or_default()), "FLAG_NOT_FOUND", "there is no such flag")
            }
        }
    }

    fn all(
        &self,
        request: &BrowserRequest,
        flags: &Flags,
        id: BrowserId,
        user: &str,
        is_late: bool,
    ) -> BrowserResponse {
        let list = answer::list(flags, &self.settings.public);
        let tag = answer::tag(flags, &list, &self.provider.browsers().keys);
        let url = self.stream_url(request, user);
        let has_room = url.is_some() && self.provider.browsers().has_room(id, self.settings.limits);
        // If newer flags may exist, the browser must not take a 304 as a confirmation. If there is no room for a stream, the
        // browser would try again and again to open the stream that it knows.
        if !is_late && has_room == url.is_some() && request.has(&tag) {
            return BrowserResponse::new(304, "").with("etag", tag);
        }
        let streams = match url.filter(|_| has_room) {
            Some(url) => {
                let stream =
                    json!([{"type": "sse", "url": url, "inactivityDelaySec": self.settings.inactivity.as_secs()}]);
                format!(",\"eventStreams\":{stream}")
            }
            None => String::new(),
        };
        BrowserResponse::json(200, format!("{{\"flags\":{list}{streams}}}")).with("etag", tag)
    }

    /// Returns the context of the request with the attributes that the browser adds, and whether these attributes were ignored
    /// because there is no allowance for them. Attributes of the request take precedence.
    fn merged(&self, scope: &RequestScope, body: &Body, id: BrowserId) -> (Option<PreparedContext>, bool) {
        let Some(additions) = body.additions(&self.settings.attributes) else { return (None, false) };
        let merged = Context::merge(additions, scope.own_context().clone(), Layer::Upper).prepared();
        let (context, browsers) = (Context::from(merged.clone()), self.provider.browsers());
        let is_allowed = match self.provider.known_since(&context) {
            _ if self.provider.has_fresh(&context) => true,
            Some(_) => browsers.may_renew(id),
            None => browsers.may_add(id),
        };
        (is_allowed.then_some(merged), !is_allowed)
    }

    /// Returns the earliest time at which the flags may have been requested, if the browser has an event from another instance
    /// about a change that this instance does not know. Also returns whether there is no allowance for a newer request.
    fn least_time(
        &self,
        request: &BrowserRequest,
        scope: &RequestScope,
        merged: Option<&PreparedContext>,
        id: BrowserId,
    ) -> (Option<Instant>, bool) {
        let browsers = self.provider.browsers();
        let now = OffsetDateTime::now_utc();
        // Times in the future are ignored, because they cannot come from an event.
        let is_new = |at: &OffsetDateTime| browsers.latest().at.is_none_or(|latest| *at > latest);
        let changed_at = request.last_modified().filter(|at| is_new(at) && *at <= now + MAX_AHEAD);
        let Some(changed_at) = changed_at else { return (None, false) };
        let known_since = match merged {
            Some(merged) => self.provider.known_since(&Context::from(merged.clone())),
            None => self.provider.known_since(scope.own_context()),
        };
        // The service may use old rules for a moment after its own event. During that time, one request is enough.
        let past = Duration::try_from(now - changed_at).unwrap_or_default();
        let past = past.checked_sub(ECHO_WINDOW).unwrap_or(past);
        let since = Instant::now().checked_sub(past);
        match (known_since, since) {
            (Some(known_since), Some(since)) if known_since < since => match browsers.may_refetch(id) {
                true => (Some(since), false),
                false => (None, true),
            },
            _ => (None, false),
        }
    }

    /// Returns the URL of the stream for a browser, if it can use one. The URL differs by user, so that a page whose user changes
    /// opens a new stream.
    fn stream_url(&self, request: &BrowserRequest, user: &str) -> Option<String> {
        let Settings { has_streams, public_path, .. } = &*self.settings;
        // The web provider of Flipswitch opens its own stream, and an event source sends no cookies to another origin.
        if !has_streams || request.is_of_own_provider() || request.is_cross_origin() {
            return None;
        }
        let mount = public_path.as_deref().or_else(|| request.mount())?;
        Some(format!("{mount}{}?user={user}", BrowserRoute::Events.path()))
    }

    fn events(&self, request: &BrowserRequest, scope: &RequestScope, kind: Kind) -> BrowserResponse {
        let Settings { has_streams, limits, spread, .. } = &*self.settings;
        let id = scope.browser_id();
        // A page of another site must not use up the streams of its visitors.
        let stream =
            (*has_streams && !request.is_cross_origin()).then(|| self.provider.browsers().open(id, *limits)).flatten();
        let Some(stream) = stream else {
            // Event sources do not reconnect after a 204.
            return BrowserResponse::new(204, "").with("cache-control", "no-store");
        };
        let events = EventLoop::new(stream, self.provider.clone(), kind, *spread);
        BrowserResponse { status: 200, headers: Vec::new(), body: BrowserBody::Events(BrowserEvents::new(events)) }
            .with("content-type", "text/event-stream")
            .with("cache-control", "private, no-store, no-transform")
            // Asks nginx, and proxies that follow its convention, not to buffer events.
            .with("x-accel-buffering", "no")
    }

    fn script(&self, request: &BrowserRequest) -> BrowserResponse {
        let Settings { has_streams, inactivity, public_path, .. } = &*self.settings;
        let inactivity = has_streams.then_some(inactivity.as_secs());
        let script = SCRIPT
            .replace("INACTIVITY_OR_NULL", &json!(inactivity).to_string())
            .replace("PUBLIC_PATH_OR_NULL", &json!(public_path).to_string());
        let tag = format!("\"{}\"", BASE64_URL_SAFE_NO_PAD.encode(&Sha256::digest(&script)[..12]));
        let response = match request.has(&tag) {
            true => BrowserResponse::new(304, ""),
            false => BrowserResponse::new(200, script).with("content-type", "text/javascript; charset=utf-8"),
        };
        response.with("etag", tag).with("cache-control", "no-cache")
    }

    fn missing_layer(&self) -> BrowserResponse {
        let details = "No flags in this request: the routes for browsers must be inside the Flipswitch layer or middleware, \
                       with the same provider";
        self.provider.runtime().span().in_scope(|| tracing::error!(target: "flipswitch", "{details}"));
        BrowserResponse::error(500, None, "GENERAL", details)
    }

    /// Returns whether pages from this origin may request flags.
    fn allows(&self, origin: &str) -> bool {
        self.settings.origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin))
    }

    fn with_cors(&self, request: &BrowserRequest, response: BrowserResponse) -> BrowserResponse {
        let origins = &self.settings.origins;
        if origins.is_empty() {
            return response;
        }
        let response = response.with("vary", "Origin");
        if !self.allows(request.origin()) {
            return response;
        }
        let response = response
            .with("access-control-allow-origin", request.origin())
            .with("access-control-allow-credentials", "true");
        match request.is_preflight() {
            true => response
                .with("access-control-allow-methods", request.route.method())
                .with(
                    "access-control-allow-headers",
                    "content-type, if-none-match, x-api-key, x-flipswitch-sdk, x-flipswitch-runtime, x-flipswitch-os, \
                     x-flipswitch-features",
                )
                .with("access-control-max-age", "600"),
            false => response.with("access-control-expose-headers", format!("ETag, Retry-After, {USER}")),
        }
    }
}

impl fmt::Debug for BrowserService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrowserService").field("provider", &self.provider).field("settings", &self.settings).finish()
    }
}
