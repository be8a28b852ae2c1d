//! The middleware: opens a [`RequestScope`] in every request.

use std::{
    fmt,
    future::{Future, Ready, ready},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use actix_web::{
    Error, HttpMessage, HttpResponse, ResponseError,
    body::EitherBody,
    dev::{Extensions, Service, ServiceRequest, ServiceResponse, Transform},
    http::{
        StatusCode,
        header::{HeaderMap, HeaderName, HeaderValue},
    },
};
use flipswitch::{
    FlipswitchProvider, IntoContext, RequestScope, Scoped, SignedOverrides,
    integration::{self, Anonymous, RequestParts, ResponseHeaders, ScopeBuilder},
};
use pin_project_lite::pin_project;

/// Middleware that gives every request its flags: a [`RequestScope`] with the context of its user in the extensions.
///
/// Nothing is requested from the flag service until a handler reads a flag, so the middleware can wrap an `App`, a `Scope`
/// or a `Resource`. Handlers read flags with [extractors](crate::Flags), other code with [`FlagsExt`](crate::FlagsExt).
///
/// # One provider for all workers
///
/// actix calls the closure of `HttpServer::new` once per worker. Build the provider *before* it, and clone it into each
/// worker: a clone is a handle to the same provider.
///
/// # Order of middleware
///
/// The middleware that sets the user (authentication, sessions) must run before this one. actix runs the most recently registered
/// middleware first, so register authentication after this one, that is, further down in the code. If the user is set too late, a
/// warning is logged once. This applies only to [`with_user`](Self::with_user): a session of actix-session that
/// [`with_context`](Self::with_context) reads too early is empty, and no warning is logged. If two of these middlewares surround
/// a handler, the inner one takes effect, and a warning is logged.
///
/// ```
/// use actix_web::{App, HttpServer, web};
/// use flipswitch_actix::{Context, Flags, FlipswitchMiddleware, FlipswitchProvider, flipswitch::serde_json::json};
///
/// struct User {
///     id: String,
///     plan: String,
/// }
///
/// async fn home(flags: Flags) -> &'static str {
///     if flags.bool("new-home", false) { "new home" } else { "home" }
/// }
///
/// let provider = FlipswitchProvider::in_memory(json!({"new-home": true}));
/// let server = HttpServer::new(move || {
///     let flags = FlipswitchMiddleware::new(provider.clone())
///         .with_user(|user: &User| Context::user(&user.id).with("plan", &user.plan));
///     // Register your authentication after `wrap(flags)`, so that it runs before the flags.
///     App::new().route("/", web::get().to(home)).wrap(flags)
/// });
/// ```
///
/// # Cost of contexts
///
/// Each distinct context costs one evaluation at the service. Use attributes that rules refer to (user, plan, country), and
/// leave out what differs between requests: with a path, an address or a time, every request has a new context.
#[derive(Clone, Debug)]
#[must_use = "a middleware does nothing until it is added with `.wrap(..)`"]
pub struct FlipswitchMiddleware {
    scopes: Arc<ScopeBuilder<Head>>,
    prefetch: bool,
}

/// The request while its scope is being opened.
struct Head(ServiceRequest);

impl RequestParts for Head {
    fn header_values<'a>(&'a self, name: &str) -> Box<dyn Iterator<Item = &'a [u8]> + 'a> {
        Box::new(self.0.headers().get_all(name).map(HeaderValue::as_bytes))
    }

    fn insert_scope(&mut self, scope: RequestScope) -> Option<RequestScope> {
        self.0.extensions_mut().insert(scope)
    }

    fn path(&self) -> &str {
        self.0.path()
    }
}

/// The headers of a response.
struct Headers<'a>(&'a mut HeaderMap);

impl ResponseHeaders for Headers<'_> {
    fn values<'a>(&'a self, name: &'static str) -> Box<dyn Iterator<Item = &'a [u8]> + 'a> {
        Box::new(self.0.get_all(name).map(HeaderValue::as_bytes))
    }

    fn append(&mut self, name: &'static str, value: &str) {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.0.append(HeaderName::from_static(name), value);
        }
    }

    fn remove(&mut self, matches: &dyn Fn(&str) -> bool) {
        self.0.retain(|name, _| !matches(name.as_str()));
    }
}

impl FlipswitchMiddleware {
    /// Creates a middleware that evaluates flags for all requests with one shared context, without a targeting key.
    pub fn new(provider: FlipswitchProvider) -> Self {
        Self { scopes: Arc::new(ScopeBuilder::new(provider)), prefetch: false }
    }

    /// Sets a function that builds the context from the request: headers, cookies, extensions. Defaults to none.
    ///
    /// Clients can send any header: use only those that a trusted proxy sets.
    ///
    /// Attributes from [`with_user`](Self::with_user) take precedence. If one of them is `None`, the attribute with the same name
    /// from this function is used. If either of the two cannot be sent, neither is used. If both contexts together exceed 64 KiB,
    /// attributes from this function are left out first. If both functions return a context, merging them costs as much as
    /// building them a second time.
    ///
    /// ```
    /// use flipswitch_actix::{Context, FlipswitchMiddleware};
    /// # use flipswitch_actix::{FlipswitchProvider, flipswitch::serde_json::json};
    ///
    /// # let provider = FlipswitchProvider::in_memory(json!({}));
    /// let middleware = FlipswitchMiddleware::new(provider).with_context(|request| {
    ///     let country = request.headers().get("x-country")?.to_str().ok()?;
    ///     Some(Context::anonymous().with("country", country))
    /// });
    /// ```
    pub fn with_context<C>(self, context: impl Fn(&ServiceRequest) -> C + Send + Sync + 'static) -> Self
    where
        C: IntoContext,
    {
        self.map(|scopes| scopes.with_context(move |head: &Head| context(&head.0)))
    }

    /// Sets a function that builds the context from the user that another middleware puts into the extensions. Defaults to
    /// none.
    ///
    /// If the application keeps users in memory, for example in a session cache, keep a
    /// [`PreparedContext`](crate::PreparedContext) with each user. It is then built once, and not in every request:
    ///
    /// ```
    /// use flipswitch_actix::{Context, FlipswitchMiddleware, PreparedContext};
    /// # use flipswitch_actix::{FlipswitchProvider, flipswitch::serde_json::json};
    ///
    /// struct User {
    ///     name: String,
    ///     context: PreparedContext,
    /// }
    ///
    /// fn load(id: &str, name: String, plan: &str) -> User {
    ///     User { name, context: Context::user(id).with("plan", plan).prepared() }
    /// }
    ///
    /// # let provider = FlipswitchProvider::in_memory(json!({}));
    /// let middleware = FlipswitchMiddleware::new(provider).with_user(|user: &User| user.context.clone());
    /// ```
    pub fn with_user<U, C>(self, context: impl Fn(&U) -> C + Send + Sync + 'static) -> Self
    where
        U: 'static,
        C: IntoContext,
    {
        let context = move |head: &Head| head.0.extensions().get().map(&context);
        self.map(|scopes| scopes.with_user::<U, _, _>(Extensions::contains::<U>, context))
    }

    /// Sets how flags are evaluated for requests without a user. Defaults to [`Anonymous::shared`].
    ///
    /// ```
    /// use flipswitch_actix::{Anonymous, FlipswitchMiddleware};
    /// # use flipswitch_actix::{FlipswitchProvider, flipswitch::serde_json::json};
    ///
    /// # let provider = FlipswitchProvider::in_memory(json!({}));
    /// // Each visitor has a cookie, and therefore separate flags.
    /// let middleware = FlipswitchMiddleware::new(provider).with_anonymous(Anonymous::cookie());
    /// ```
    pub fn with_anonymous(self, anonymous: impl Into<Anonymous>) -> Self {
        self.map(|scopes| scopes.with_anonymous(anonymous))
    }

    /// Sets which flags a signed cookie can override in a browser, for testing; see [`SignedOverrides`]. Defaults to
    /// none.
    ///
    /// The response to a GET request with the `?flipswitch=<token>` of a valid link is a redirect to the same page and sets
    /// the cookie. The response to one with `?flipswitch=off` removes the cookie. Responses to requests with overrides are kept
    /// out of shared caches.
    ///
    /// ```
    /// use flipswitch_actix::{FlipswitchMiddleware, SignedOverrides};
    /// # use flipswitch_actix::{FlipswitchProvider, flipswitch::serde_json::json};
    ///
    /// # let (provider, key) = (FlipswitchProvider::in_memory(json!({})), "0123456789abcdef");
    /// let overrides = SignedOverrides::new(key).allow(["new-checkout"]);
    /// let middleware = FlipswitchMiddleware::new(provider).with_overrides(overrides);
    /// ```
    pub fn with_overrides(self, overrides: SignedOverrides) -> Self {
        self.map(|scopes| scopes.with_overrides(overrides))
    }

    /// Sets which requests are inspected. Defaults to none.
    ///
    /// The header `Server-Timing` of their responses lists the flags that were read before the response head was sent. Browser
    /// developer tools show it. The page of [`inspection`](crate::inspection()) lists the latest 100 of these
    /// requests. Do not base this decision on what a client sends, such as a header: otherwise any client could read the page.
    ///
    /// ```
    /// use actix_web::HttpMessage;
    /// use flipswitch_actix::FlipswitchMiddleware;
    /// # use flipswitch_actix::{FlipswitchProvider, flipswitch::serde_json::json};
    ///
    /// struct Staff;
    ///
    /// # let provider = FlipswitchProvider::in_memory(json!({}));
    /// let middleware = FlipswitchMiddleware::new(provider)
    ///     .with_inspection(|request| request.extensions().contains::<Staff>());
    /// ```
    pub fn with_inspection(self, when: impl Fn(&ServiceRequest) -> bool + Send + Sync + 'static) -> Self {
        self.map(|scopes| scopes.with_inspection(move |head: &Head| when(&head.0)))
    }

    /// Sets whether the flags of every request are evaluated before it is routed, for guards, which cannot wait
    /// ([`flag_on`](crate::flag_on)). Defaults to `false`.
    ///
    /// Requests from users with cached flags are not delayed. Others wait for the flag service, even if no flag is read: at most
    /// [`miss_wait`](flipswitch::FlipswitchProviderBuilder::miss_wait), and not at all while the service is failing. Wrap the
    /// guarded routes only, not static files.
    pub fn prefetch(mut self, prefetch: bool) -> Self {
        self.prefetch = prefetch;
        self
    }

    fn map(self, change: impl FnOnce(ScopeBuilder<Head>) -> ScopeBuilder<Head>) -> Self {
        Self { scopes: Arc::new(change(Arc::unwrap_or_clone(self.scopes))), ..self }
    }
}

impl<S, B> Transform<S, ServiceRequest> for FlipswitchMiddleware
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = Error;
    type Transform = FlipswitchService<S>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, inner: S) -> Self::Future {
        ready(Ok(FlipswitchService { inner: Rc::new(inner), middleware: self.clone() }))
    }
}

/// Service of a [`FlipswitchMiddleware`].
#[derive(Debug)]
pub struct FlipswitchService<S> {
    inner: Rc<S>,
    middleware: FlipswitchMiddleware,
}

impl<S, B> Service<ServiceRequest> for FlipswitchService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = Error;
    type Future = ResponseFuture<S>;

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let mut head = Head(request);
        let scope = self.middleware.scopes.open(&mut head);
        let target = || head.0.uri().path_and_query().map_or("/", |target| target.as_str());
        if let Some(redirect) = self.middleware.scopes.redirect(head.0.method().as_str(), target, &head, &scope) {
            let mut response = HttpResponse::SeeOther();
            for header in redirect.headers() {
                response.append_header(header);
            }
            let response = Some(head.0.into_response(response.finish()));
            return ResponseFuture { state: State::Redirecting { response } };
        }
        let Head(request) = head;
        let is_preflight =
            || integration::is_preflight(request.method().as_str(), |name| request.headers().contains_key(name));
        let state = if self.middleware.prefetch && !is_preflight() {
            let call = Some((Rc::clone(&self.inner), request, scope.clone()));
            State::Prefetching { prefetch: Box::pin(async move { scope.prefetch().await }), call }
        } else {
            State::responding(&*self.inner, request, scope)
        };
        ResponseFuture { state }
    }
}

pin_project! {
    /// Future of a [`FlipswitchService`].
    pub struct ResponseFuture<S: Service<ServiceRequest>> {
        #[pin]
        state: State<S>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S: Service<ServiceRequest>> {
        Prefetching { prefetch: Pin<Box<dyn Future<Output = ()>>>, call: Option<(Rc<S>, ServiceRequest, RequestScope)> },
        Responding { #[pin] response: Scoped<S::Future> },
        Redirecting { response: Option<ServiceResponse> },
    }
}

impl<S: Service<ServiceRequest>> State<S> {
    /// Calls the inner service in the scope of the request.
    fn responding(inner: &S, request: ServiceRequest, scope: RequestScope) -> Self {
        Self::Responding { response: integration::call(scope, || inner.call(request)) }
    }
}

impl<S, B> Future for ResponseFuture<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
{
    type Output = Result<ServiceResponse<EitherBody<B>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::Responding { response: mut future } => {
                    let mut response = ready!(future.as_mut().poll(cx));
                    match (&mut response, future.scope()) {
                        (Ok(response), Some(scope)) => {
                            let status = response.status().as_u16();
                            integration::finish(scope, status, &mut Headers(response.headers_mut()));
                        }
                        (Err(_), Some(scope)) if scope.has_overrides() => {
                            let scope = scope.clone();
                            response = response.map_err(|error| OverriddenError { error, scope }.into());
                        }
                        _ => {}
                    }
                    return Poll::Ready(response.map(ServiceResponse::map_into_left_body));
                }
                StateProjection::Redirecting { response } => {
                    // Taken once, because the future ends here.
                    let Some(response) = response.take() else { return Poll::Pending };
                    return Poll::Ready(Ok(response.map_into_right_body()));
                }
                StateProjection::Prefetching { prefetch, call } => {
                    ready!(prefetch.as_mut().poll(cx));
                    // Taken once, because the state ends here.
                    let Some((inner, request, scope)) = call.take() else { return Poll::Pending };
                    State::responding(&*inner, request, scope)
                }
            };
            this.state.set(next);
        }
    }
}

/// An error in a request with overrides, whose response must stay out of shared caches.
#[derive(Debug)]
struct OverriddenError {
    error: Error,
    scope: RequestScope,
}

impl fmt::Display for OverriddenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl ResponseError for OverriddenError {
    fn status_code(&self) -> StatusCode {
        self.error.as_response_error().status_code()
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = self.error.error_response();
        let status = response.status().as_u16();
        integration::finish(&self.scope, status, &mut Headers(response.headers_mut()));
        response
    }
}

impl<S: Service<ServiceRequest>> fmt::Debug for ResponseFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
