//! Building blocks for integrations with web frameworks.
//!
//! Applications use `flipswitch-axum` or `flipswitch-actix`, which re-export what they need. An integration for another
//! framework consists of three parts:
//!
//! 1. It implements [`RequestParts`] for the framework's request, unless that is an [`http::request::Parts`].
//! 2. Its middleware [opens](ScopeBuilder::open) a scope in each request, responds to [override links](ScopeBuilder::redirect)
//!    without calling the inner service, [calls](call) the inner service in the scope, and [finishes](finish) the headers of the
//!    response. Work that continues after `call` reads the latest flags.
//! 3. Its extractors look up the scope with [`scope`], and read its flags.
//!
//! This is a minimal integration for a fictitious framework, whose requests and responses are plain structures:
//!
//! ```
//! use flipswitch::{
//!     Context, FlipswitchProvider, RequestScope,
//!     integration::{self, RequestParts, ResponseHeaders, ScopeBuilder},
//! };
//!
//! #[derive(Default)]
//! struct Request {
//!     method: String,
//!     /// Path and query.
//!     target: String,
//!     headers: Vec<(String, String)>,
//!     extensions: Extensions,
//! }
//!
//! #[derive(Default)]
//! struct Extensions {
//!     user: Option<User>,
//!     scope: Option<RequestScope>,
//! }
//!
//! struct User(String);
//!
//! struct Response {
//!     status: u16,
//!     headers: Vec<(&'static str, String)>,
//!     body: String,
//! }
//!
//! // 1. The request.
//! impl RequestParts for Request {
//!     fn header_values<'a>(&'a self, name: &str) -> Box<dyn Iterator<Item = &'a [u8]> + 'a> {
//!         let name = name.to_owned();
//!         Box::new(self.headers.iter().filter(move |(other, _)| *other == name).map(|(_, value)| value.as_bytes()))
//!     }
//!
//!     fn insert_scope(&mut self, scope: RequestScope) -> Option<RequestScope> {
//!         self.extensions.scope.replace(scope)
//!     }
//! }
//!
//! // 2. The middleware.
//! struct Middleware<H> {
//!     scopes: ScopeBuilder<Request>,
//!     handler: H,
//! }
//!
//! impl<H: AsyncFn(Request) -> Response> Middleware<H> {
//!     async fn call(&self, mut request: Request) -> Response {
//!         let scope = self.scopes.open(&mut request);
//!         if let Some(redirect) = self.scopes.redirect(&request.method, || &request.target, &request, &scope) {
//!             let headers = redirect.headers().into_iter().map(|(name, value)| (name, value.to_owned()));
//!             return Response { status: 303, headers: headers.collect(), body: String::new() };
//!         }
//!         let mut response = integration::call(scope.clone(), || (self.handler)(request)).await;
//!         integration::finish(&scope, response.status, &mut Headers(&mut response.headers));
//!         response
//!     }
//! }
//!
//! struct Headers<'a>(&'a mut Vec<(&'static str, String)>);
//!
//! impl ResponseHeaders for Headers<'_> {
//!     fn values<'a>(&'a self, name: &'static str) -> Box<dyn Iterator<Item = &'a [u8]> + 'a> {
//!         Box::new(self.0.iter().filter(move |(other, _)| *other == name).map(|(_, value)| value.as_bytes()))
//!     }
//!
//!     fn append(&mut self, name: &'static str, value: &str) {
//!         self.0.push((name, value.to_owned()));
//!     }
//!
//!     fn remove(&mut self, matches: &dyn Fn(&str) -> bool) {
//!         self.0.retain(|(name, _)| !matches(name));
//!     }
//! }
//!
//! // 3. The extractor.
//! async fn flags(request: &Request) -> Option<flipswitch::Flags> {
//!     let scope = integration::scope(request.extensions.scope.as_ref(), &request.extensions)?;
//!     Some(scope.flags().await)
//! }
//!
//! // An application.
//! async fn checkout(request: Request) -> Response {
//!     let flags = flags(&request).await.expect("the middleware is installed");
//!     let page = if flags.bool("new-checkout", false) { "new" } else { "old" };
//!     Response { status: 200, headers: Vec::new(), body: page.to_owned() }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let provider = FlipswitchProvider::in_memory(flipswitch::serde_json::json!({"new-checkout": true}));
//! let scopes = ScopeBuilder::new(provider).with_user::<User, Extensions, _>(
//!     |extensions| extensions.user.is_some(),
//!     |request: &Request| {
//!         let user = request.extensions.user.as_ref()?;
//!         Some(Context::user(&user.0))
//!     },
//! );
//! let app = Middleware { scopes, handler: checkout };
//! let request = Request {
//!     extensions: Extensions { user: Some(User("alice".to_owned())), scope: None },
//!     ..Request::default()
//! };
//! assert_eq!(app.call(request).await.body, "new");
//! # }
//! ```

use std::{
    any::{Any, type_name},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::AtomicBool},
    time::SystemTime,
};

pub use crate::request::{
    browser::service::{
        BrowserBody, BrowserEvents, BrowserRequest, BrowserResponse, BrowserRoute, BrowserService, MAX_BROWSER_BODY,
    },
    gate::{FlagKey, GateFlag, GateRule, Unknown},
    inspection::InspectionPage,
    overrides::Redirect,
    probe::HealthProbe,
    visitor::{Anonymous, AnonymousCookie, SameSite},
};
use crate::{
    config::EvaluationEvents,
    context::{
        context::{Context, Layer},
        into_context::IntoContext,
    },
    flags::declare::FlagDef,
    provider::{
        evaluation_events::{PROVIDER, report_client_evaluation},
        flags::Flags,
        inspection::Inspection,
        provider::FlipswitchProvider,
    },
    request::{
        inspection,
        overrides::SignedOverrides,
        scope::{MissingUser, RequestScope, TestAids},
        task_local::Scoped,
        visitor::{Visitor, Visitors, is_for_shared_caches},
        warnings::SetupWarning,
    },
};
use http::{HeaderMap, HeaderName, HeaderValue};
use open_feature::{EvaluationContext, EvaluationDetails, EvaluationError, HookContext, Value};

/// Maximum number of attribute names that are kept for an inspected request.
const MAX_NAMES: usize = 50;

/// The parts of a web framework's request that a scope needs.
pub trait RequestParts {
    /// Returns the values of all headers with this name, in order. The name is in lower case.
    fn header_values<'a>(&'a self, name: &str) -> Box<dyn Iterator<Item = &'a [u8]> + 'a>;

    /// Puts a scope into the extensions of the request, and returns the scope that it replaces, if there is one.
    fn insert_scope(&mut self, scope: RequestScope) -> Option<RequestScope>;

    /// Returns the path, for the [page](InspectionPage) of inspected requests. The default implementation returns an empty path.
    fn path(&self) -> &str {
        ""
    }
}

/// The headers of a web framework's response that [`finish`] needs. Names are in lower case.
pub trait ResponseHeaders {
    /// Returns the values of all headers with this name, in order.
    fn values<'a>(&'a self, name: &'static str) -> Box<dyn Iterator<Item = &'a [u8]> + 'a>;

    /// Adds a header.
    fn append(&mut self, name: &'static str, value: &str);

    /// Removes all headers whose names match.
    fn remove(&mut self, matches: &dyn Fn(&str) -> bool);
}

impl ResponseHeaders for HeaderMap {
    fn values<'a>(&'a self, name: &'static str) -> Box<dyn Iterator<Item = &'a [u8]> + 'a> {
        Box::new(self.get_all(name).into_iter().map(HeaderValue::as_bytes))
    }

    fn append(&mut self, name: &'static str, value: &str) {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.append(HeaderName::from_static(name), value);
        }
    }

    fn remove(&mut self, matches: &dyn Fn(&str) -> bool) {
        let names: Vec<_> = self.keys().filter(|name| matches(name.as_str())).cloned().collect();
        for name in names {
            self.remove(name);
        }
    }
}

impl RequestParts for http::request::Parts {
    fn header_values<'a>(&'a self, name: &str) -> Box<dyn Iterator<Item = &'a [u8]> + 'a> {
        Box::new(self.headers.get_all(name).iter().map(HeaderValue::as_bytes))
    }

    fn insert_scope(&mut self, scope: RequestScope) -> Option<RequestScope> {
        self.extensions.insert(scope)
    }

    fn path(&self) -> &str {
        self.uri.path()
    }
}

/// Opens a scope for each request, with a context that is built from the request's user, head or visitor.
pub struct ScopeBuilder<R> {
    provider: FlipswitchProvider,
    context: Option<Arc<ContextFn<R>>>,
    user: Option<User<R>>,
    visitors: Visitors,
    overrides: Option<SignedOverrides>,
    inspects: Option<Arc<Inspects<R>>>,
}

type Inspects<R> = dyn Fn(&R) -> bool + Send + Sync;
type ContextFn<R> = dyn Fn(&R) -> Option<Context> + Send + Sync;
type UserFn<R> = dyn Fn(&R) -> Option<Option<Context>> + Send + Sync;

/// The functions that find the user of a request.
struct User<R> {
    missing: Arc<MissingUser>,
    /// Returns `None` if there is no user, and `Some(None)` if the user has no context.
    context: Arc<UserFn<R>>,
}

impl<R: RequestParts> ScopeBuilder<R> {
    /// Creates a builder that evaluates flags for all requests with one shared context, without a targeting key.
    #[must_use]
    pub fn new(provider: FlipswitchProvider) -> Self {
        provider.layer_added();
        Self { provider, context: None, user: None, visitors: Visitors::Shared, overrides: None, inspects: None }
    }

    /// Sets a function that builds a context from the request. Defaults to none.
    ///
    /// ```
    /// use flipswitch::{Context, FlipswitchProvider, http, integration::ScopeBuilder, serde_json::json};
    ///
    /// # fn main() -> Result<(), http::Error> {
    /// let provider = FlipswitchProvider::in_memory(json!({"beta": true}));
    /// let scopes = ScopeBuilder::new(provider).with_context(|head: &http::request::Parts| {
    ///     let country = head.headers.get("x-country")?.to_str().ok()?;
    ///     Some(Context::anonymous().with("country", country))
    /// });
    ///
    /// let (mut head, ()) = http::Request::get("/").header("x-country", "SE").body(())?.into_parts();
    /// let scope = scopes.open(&mut head);
    /// let country = scope.context().custom_fields.get("country");
    /// assert_eq!(country.and_then(|country| country.as_str()), Some("SE"));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_context<C: IntoContext>(mut self, context: impl Fn(&R) -> C + Send + Sync + 'static) -> Self {
        self.context = Some(Arc::new(move |request| context(request).into_context()));
        self
    }

    /// Sets how the context is built from a user of type `U` in the extensions `E` of the request. Defaults to none.
    ///
    /// `context` returns `None` if the request has no user. Its attributes take precedence over the attributes from
    /// [`with_context`](Self::with_context).
    ///
    /// `is_present` returns whether the extensions contain a user. It is called when flags are read. If there is a user at that
    /// time, and there was none when the scope was opened, the user was set too late, and a warning is logged once.
    #[must_use]
    pub fn with_user<U, E: 'static, C: IntoContext>(
        mut self,
        is_present: fn(&E) -> bool,
        context: impl Fn(&R) -> Option<C> + Send + Sync + 'static,
    ) -> Self {
        let is_present = move |extensions: &dyn Any| extensions.downcast_ref().is_some_and(is_present);
        self.user = Some(User {
            missing: Arc::new(MissingUser { name: type_name::<U>(), is_present: Box::new(is_present) }),
            context: Arc::new(move |request| context(request).map(IntoContext::into_context)),
        });
        self
    }

    /// Sets how flags are evaluated for requests without a user. Defaults to [`Anonymous::shared`].
    #[must_use]
    pub fn with_anonymous(mut self, anonymous: impl Into<Anonymous>) -> Self {
        self.visitors = Visitors::new(anonymous.into(), &self.provider);
        self
    }

    /// Sets which flags a signed cookie can override, for testers. Defaults to none.
    #[must_use]
    pub fn with_overrides(mut self, overrides: SignedOverrides) -> Self {
        self.overrides = Some(overrides);
        self
    }

    /// Sets which requests are inspected. The `Server-Timing` header of the response and a [page](InspectionPage) show the flags
    /// that such a request has read. Defaults to none.
    #[must_use]
    pub fn with_inspection(mut self, when: impl Fn(&R) -> bool + Send + Sync + 'static) -> Self {
        self.inspects = Some(Arc::new(when));
        self
    }

    /// Returns the response to a request that opens an [override](Self::with_overrides) link, or ends the overrides. If it
    /// returns a response, the inner service must not be called.
    ///
    /// `target` returns the path and query as the client sent them, even inside a nested router. It is not called without
    /// overrides. `scope` is the scope of the request.
    #[must_use]
    pub fn redirect<'a>(
        &self,
        method: &str,
        target: impl FnOnce() -> &'a str,
        request: &R,
        scope: &RequestScope,
    ) -> Option<Redirect> {
        let overrides = self.overrides.as_ref().filter(|_| method == "GET")?;
        overrides.redirect(target(), request, scope)
    }

    /// Returns the overrides and the inspection of a request, if it has any.
    fn aids(&self, request: &R, context: &Context) -> Option<Box<TestAids>> {
        let overrides = self.overrides.as_ref().and_then(|overrides| overrides.find(request, &self.provider));
        let is_inspected =
            self.inspects.as_ref().is_some_and(|when| self.catch_panic(|| when(request)).unwrap_or(false));
        let inspection = is_inspected.then(|| {
            let EvaluationContext { targeting_key, custom_fields, .. } = context.into();
            let mut names: Vec<_> = custom_fields.into_keys().collect();
            names.sort_unstable();
            names.truncate(MAX_NAMES);
            Inspection::new(self.provider.inspections(), request.path(), targeting_key.is_some(), &names)
        });
        (overrides.is_some() || inspection.is_some()).then(|| Box::new(TestAids { overrides, inspection }))
    }

    /// Opens the scope of a request, and puts it into the request's extensions.
    ///
    /// A scope that is already there is replaced. If it belongs to the same provider, a warning is logged once. If it belongs to
    /// a different provider, OpenFeature clients of that provider still find it. Pass the new scope to [`call`]: until the call
    /// ends, work in the scope reads the flags of the request.
    pub fn open(&self, request: &mut R) -> RequestScope {
        let Self { provider, context, user, visitors, overrides, inspects } = self;
        // After a panic, the user counts as present without a context.
        let find = |user: &User<R>| self.catch_panic(|| (user.context)(request)).unwrap_or(Some(None));
        let (user, missing_user) = match user.as_ref().map(|user| (user, find(user))) {
            Some((_, Some(context))) => (context, None),
            Some((user, None)) => (None, Some(Arc::clone(&user.missing))),
            None => (None, None),
        };
        let has_user = user.is_some();
        let request_context = context.as_ref().and_then(|context| self.catch_panic(|| context(request)).flatten());
        let mut context = match (user, request_context) {
            (Some(user), Some(request)) => Context::merge(request, user, Layer::Upper),
            (Some(context), None) | (None, Some(context)) => context,
            (None, None) => Context::anonymous(),
        };
        let (mut cookie, mut is_visitor) = (None, false);
        if !has_user && !matches!(visitors, Visitors::Shared) && !context.has_targeting_key() {
            match visitors.find(request, provider) {
                Visitor::Known(key) => {
                    (context, is_visitor) = (Context::merge(Context::user(key), context, Layer::Upper), true);
                }
                Visitor::New(new) => cookie = Some(new.clone()),
                Visitor::Shared => {}
            }
        }
        let has_aids = overrides.is_some() || inspects.is_some();
        let aids = if has_aids { self.aids(request, &context) } else { None };
        let has_responded = Some(AtomicBool::new(false));
        let scope =
            RequestScope::open(provider.clone(), context, is_visitor, cookie, missing_user, has_responded, aids);
        if let Some(outer) = request.insert_scope(scope.clone()) {
            let is_duplicate = outer.of(provider).is_some();
            scope.set_outer(outer);
            if is_duplicate {
                SetupWarning::DuplicateLayer.log(provider);
            }
        }
        scope
    }

    /// Calls a function of the application. Returns `None` if it panics.
    fn catch_panic<T>(&self, call: impl FnOnce() -> T) -> Option<T> {
        let outcome = catch_unwind(AssertUnwindSafe(call));
        outcome.map_err(|_| SetupWarning::ContextPanicked.log(&self.provider)).ok()
    }
}

impl<R> Clone for ScopeBuilder<R> {
    fn clone(&self) -> Self {
        let user = self.user.as_ref();
        let user = user.map(|user| User { missing: Arc::clone(&user.missing), context: Arc::clone(&user.context) });
        Self {
            provider: self.provider.clone(),
            context: self.context.clone(),
            user,
            visitors: self.visitors.clone(),
            overrides: self.overrides.clone(),
            inspects: self.inspects.clone(),
        }
    }
}

impl<R> fmt::Debug for ScopeBuilder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopeBuilder")
            .field("provider", &self.provider)
            .field("with_context", &self.context.is_some())
            .field("with_user", &self.user.as_ref().map(|user| user.missing.name))
            .field("visitors", &self.visitors)
            .field("overrides", &self.overrides)
            .field("with_inspection", &self.inspects.is_some())
            .finish()
    }
}

/// Calls a function in a scope, and runs the future that it returns, which produces the response, in the same scope.
///
/// Once the future is ready or dropped, the response head counts as sent. From then on, reads of a scope that
/// [`ScopeBuilder::open`] has opened return the latest flags. [`Scoped::scope`] returns the scope after the response.
#[inline]
pub fn call<F: Future>(scope: RequestScope, service: impl FnOnce() -> F) -> Scoped<F> {
    scope.call(service)
}

/// Returns the scope from a request's extensions, for code that is about to read flags.
///
/// `extensions` have the type `E` of [`with_user`](ScopeBuilder::with_user). They are checked for a user that was set too late.
pub fn scope<'a>(scope: Option<&'a RequestScope>, extensions: &dyn Any) -> Option<&'a RequestScope> {
    scope.inspect(|scope| scope.check_user(extensions))
}

/// Returns the value of the `Set-Cookie` header for a new visitor, if the request read flags and [`Anonymous::cookie`] is
/// in use.
///
/// `header_values` returns all values of a header of the response, by its name in lower case. It is called only if a cookie may
/// be needed. Returns `None` if the response already sets the cookie. If shared caches may store the response, it must not set a
/// cookie. In that case, this function returns `None`, and a warning is logged once. Each call creates a new visitor.
#[must_use]
pub fn new_cookie<'a, I>(scope: &RequestScope, header_values: impl Fn(&'static str) -> I) -> Option<String>
where
    I: Iterator<Item = &'a [u8]>,
{
    let cookie = scope.new_cookie()?;
    if header_values("set-cookie").any(|header| cookie.is_set_by(header)) {
        return None;
    }
    if is_for_shared_caches(header_values) {
        SetupWarning::CookieInSharedResponse.log(scope.provider());
        return None;
    }
    cookie.mint()
}

/// Changes the headers of a response as the flags of its request require: adds the [cookie](new_cookie) for a new visitor, keeps
/// a response with overridden flags or with [initial values](Flags::to_ofrep_json) out of shared caches, and adds the flags that an
/// inspected request has read.
pub fn finish(scope: &RequestScope, status: u16, headers: &mut dyn ResponseHeaders) {
    // Caches would add the headers of a 304 to the response that they have stored.
    let is_whole = status != 304;
    let timing = scope.inspection().filter(|_| is_whole).and_then(inspection::server_timing);
    if scope.is_private() || timing.is_some() {
        keep_private(headers);
    }
    if let Some(timing) = timing {
        headers.append("server-timing", &timing);
    }
    let cookie = if is_whole { new_cookie(scope, |name| headers.values(name)) } else { None };
    if let Some(cookie) = cookie {
        headers.append("set-cookie", &cookie);
        // Without this header, a shared cache may choose an age itself.
        if headers.values("cache-control").next().is_none() {
            headers.append("cache-control", "private");
        }
    }
}

/// Keeps a response out of shared caches regardless of the headers that the application has set, and separate from responses to
/// browsers without the cookie.
fn keep_private(headers: &mut dyn ResponseHeaders) {
    let items = |name| -> Vec<String> {
        let items = headers.values(name).flat_map(|value| value.split(|byte| *byte == b','));
        items.map(|item| String::from_utf8_lossy(item).trim().to_ascii_lowercase()).collect()
    };
    let is_any = |items: &[String], wanted: &[&str]| items.iter().any(|item| wanted.contains(&item.as_str()));
    let (directives, vary) = (items("cache-control"), items("vary"));
    let is_private = is_any(&directives, &["private", "no-store"])
        && !directives.iter().any(|directive| directive == "public" || directive.starts_with("s-maxage"));
    // A page that the application lets expire immediately must not be kept longer.
    let is_expired = headers.values("expires").any(|value| {
        let date = std::str::from_utf8(value).ok().and_then(|value| httpdate::parse_http_date(value).ok());
        date.is_none_or(|date| date <= SystemTime::now())
    });
    // Headers for specific caches take precedence in these caches (RFC 9213).
    headers.remove(&|name| {
        let is_of_a_cache = name.ends_with("-cache-control")
            || matches!(name, "expires" | "surrogate-control" | "edge-control" | "x-accel-expires");
        is_of_a_cache || name == "cache-control" && !is_private
    });
    if !is_private {
        let kept = ["no-store", "no-cache", "max-age=0", "must-revalidate", "no-transform"];
        let kept = directives.iter().filter(|directive| kept.contains(&directive.as_str()));
        let mut value = kept.fold("private".to_owned(), |value, directive| value + ", " + directive);
        if is_expired && directives.is_empty() {
            value.push_str(", no-cache");
        }
        headers.append("cache-control", &value);
    }
    if !is_any(&vary, &["cookie", "*"]) {
        headers.append("vary", "Cookie");
    }
}

/// Returns whether a request is a CORS preflight, which browsers send to find out whether they may send another request (Fetch
/// standard, "CORS-preflight request"). Flags are not read for a preflight, because it has no credentials.
///
/// `has_header` returns whether the request has a header, by its name in lower case.
#[must_use]
pub fn is_preflight(method: &str, has_header: impl Fn(&'static str) -> bool) -> bool {
    method == "OPTIONS" && has_header("origin") && has_header("access-control-request-method")
}

/// Warns once that a preflight reached a gate, which must refuse it. The CORS middleware must be outside the gate.
pub fn preflight_refused(scope: &RequestScope) {
    SetupWarning::PreflightAtGate.log(scope.provider());
}

/// Reads a declared flag by its type, for extractors. Otherwise behaves like [`Flags::get`].
#[must_use]
pub fn read<F: FlagDef>(flags: &Flags) -> F::Value {
    flags.read::<F>()
}

/// Returns whether a provider reports evaluations itself, as set by its
/// [`evaluation_events`](crate::FlipswitchProviderBuilder::evaluation_events) option.
#[must_use]
pub fn reports_evaluations(provider: &FlipswitchProvider) -> bool {
    provider.event_reporter().events != EvaluationEvents::Off
}

/// Reports an evaluation by an OpenFeature client as an event, for hooks. The event has the same attributes as the events of
/// [`evaluation_events`](crate::FlipswitchProviderBuilder::evaluation_events).
///
/// The client may belong to any provider. The context id is derived from the targeting key of the evaluation, with the settings
/// of `provider`. If the evaluation has no targeting key, and the caller runs in a request of `provider`, the targeting key of
/// that request is used. Does nothing for evaluations by Flipswitch providers if `provider` [reports](reports_evaluations) its
/// own evaluations.
pub fn report_evaluation(
    provider: &FlipswitchProvider,
    context: &HookContext<'_>,
    outcome: Result<&EvaluationDetails<Value>, &EvaluationError>,
) {
    if reports_evaluations(provider) && context.provider_metadata.name == PROVIDER {
        return;
    }
    let of_request = || RequestScope::current()?.of(provider)?.targeting_key();
    let targeting_key = context.evaluation_context.targeting_key.clone().or_else(of_request);
    let context_id = targeting_key.and_then(|key| provider.event_reporter().context_id(&key));
    report_client_evaluation(context, context_id.as_deref(), outcome);
}
