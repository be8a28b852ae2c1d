//! The middleware: opens a [`RequestScope`] in every request.

use std::{
    any::type_name,
    fmt,
    future::{Future, Ready, ready},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use actix_web::{
    Error, HttpMessage,
    dev::{Extensions, Service, ServiceRequest, ServiceResponse, Transform},
    http::header::{HeaderValue, SET_COOKIE},
};
use flipswitch::{
    FlipswitchProvider, IntoContext, RequestScope, Scoped,
    open_feature::EvaluationContext,
    web::{self, Anonymous, Misuse},
};
use pin_project_lite::pin_project;

/// Gives every request its flags: a [`RequestScope`] with the context of the request's user in its extensions.
///
/// Nothing is asked of the flag service until a handler reads a flag, so the middleware can stand before all routes, on
/// an `App`, a `Scope` or a `Resource`.
///
/// # One provider for all workers
///
/// actix runs the closure of `HttpServer::new` once per worker. Build the provider *before* it and hand each worker a
/// clone, which is a handle to the same provider.
///
/// # Order of middleware
///
/// A middleware that finds the user (authentication, sessions) must run before this one, and actix runs the middleware
/// that was registered *last* first: register the authentication after, that is below, this one. Where a user turns up too
/// late, a warning says so, once. Of two of these middlewares around one handler the inner one decides, which is warned of
/// as well.
///
/// ```
/// use actix_web::{App, HttpServer, web};
/// use flipswitch_actix::{
///     Flags, Flipswitch,
///     flipswitch::{FlipswitchProvider, open_feature::EvaluationContext, serde_json::json},
/// };
///
/// struct User {
///     id: String,
///     plan: String,
/// }
///
/// async fn home(flags: Flags) -> &'static str {
///     if flags.bool("new-home", false) { "new" } else { "old" }
/// }
///
/// let provider = FlipswitchProvider::in_memory(json!({"new-home": true}));
/// let server = HttpServer::new(move || {
///     let flags = Flipswitch::new(provider.clone()).with_user(|user: &User| {
///         EvaluationContext::default()
///             .with_targeting_key(&user.id)
///             .with_custom_field("plan", user.plan.as_str())
///     });
///     App::new().wrap(flags).route("/", web::get().to(home))
/// });
/// ```
///
/// # Contexts and cost
///
/// Every distinct context is one evaluation at the service. Put into it what rules decide on (user, plan, country), and
/// not what differs from request to request: with a path, an address or a time in it, every request is a new context.
#[derive(Clone)]
#[must_use = "a middleware does nothing until it is added with `.wrap(..)`"]
pub struct Flipswitch(Arc<Settings>);

#[derive(Clone)]
struct Settings {
    provider: FlipswitchProvider,
    with_context: Option<Arc<ContextFn>>,
    with_user: Option<User>,
    anonymous: Anonymous,
    prefetch: bool,
}

/// How the user is found in the extensions.
#[derive(Clone)]
struct User {
    context: Arc<UserFn>,
    kind: UserType,
}

/// The type that a user has in the extensions.
#[derive(Clone, Copy)]
struct UserType {
    name: &'static str,
    is_in: fn(&Extensions) -> bool,
}

/// In the extensions of a request that has no user yet.
#[derive(Clone, Copy)]
struct Awaited(UserType);

type ContextFn = dyn Fn(&ServiceRequest) -> Option<EvaluationContext> + Send + Sync;
type UserFn = dyn Fn(&Extensions) -> Option<EvaluationContext> + Send + Sync;

impl Flipswitch {
    /// Makes a middleware that evaluates every request anonymously: one context without targeting key, shared by all.
    pub fn new(provider: FlipswitchProvider) -> Self {
        let (with_context, with_user, anonymous, prefetch) = (None, None, Anonymous::None, false);
        Self(Arc::new(Settings { provider, with_context, with_user, anonymous, prefetch }))
    }

    fn settings(&mut self) -> &mut Settings {
        Arc::make_mut(&mut self.0)
    }

    /// Takes the context from the request: headers, cookies, extensions. Default: none.
    ///
    /// The function returns an [`EvaluationContext`] or an `Option` of one. It is asked as well as
    /// [`with_user`](Self::with_user), whose fields win; where there is no user and no targeting key,
    /// [`with_anonymous`](Self::with_anonymous) says who the visitor is. What a client sends can be forged: use headers only
    /// if something before the application sets them. A function that panics found nothing, which is warned of once.
    pub fn with_context<C: IntoContext>(
        mut self,
        context: impl Fn(&ServiceRequest) -> C + Send + Sync + 'static,
    ) -> Self {
        self.settings().with_context = Some(Arc::new(move |request| context(request).into_context()));
        self
    }

    /// Takes the context from the user that another middleware put into the request's extensions, if it did. Default:
    /// none.
    ///
    /// Together with [`with_context`](Self::with_context) both are merged, and the user's fields win. The function may find
    /// that there is nobody (`None`), as where the extension is a session. One that panics found nobody, which is warned
    /// of once.
    pub fn with_user<U, C>(mut self, context: impl Fn(&U) -> C + Send + Sync + 'static) -> Self
    where
        U: 'static,
        C: IntoContext,
    {
        self.settings().with_user = Some(User {
            context: Arc::new(move |extensions| context(extensions.get::<U>()?).into_context()),
            kind: UserType { name: type_name::<U>(), is_in: |extensions| extensions.contains::<U>() },
        });
        self
    }

    /// Says who a visitor is when no user is found. Default: [`Anonymous::None`], nobody in particular.
    pub fn with_anonymous(mut self, anonymous: Anonymous) -> Self {
        self.settings().anonymous = anonymous;
        self
    }

    /// Evaluates the flags of every request before it is routed, for guards, which cannot wait ([`flag_on`](crate::flag_on)).
    /// Default: `false`.
    ///
    /// Requests of known users do not notice; others wait for the flag service, also where no flag is read: at most
    /// [`request_timeout`](flipswitch::FlipswitchProviderBuilder::request_timeout), and while the service fails not at all. So
    /// put it around what is guarded, and not around static files.
    pub fn prefetch(mut self, prefetch: bool) -> Self {
        self.settings().prefetch = prefetch;
        self
    }

    /// Opens the scope of a request, and puts it into the request's extensions.
    fn open(&self, request: &ServiceRequest) -> RequestScope {
        let Settings { provider, with_context, with_user, anonymous, .. } = &*self.0;
        let scope = web::open(
            provider,
            || with_user.as_ref().and_then(|user| (user.context)(&request.extensions())),
            || with_context.as_ref().and_then(|context| context(request)),
            anonymous,
            |name| request.headers().get_all(name).map(HeaderValue::as_bytes),
        );
        let mut extensions = request.extensions_mut();
        if extensions.insert(scope.clone()).is_some() {
            Misuse::TwoLayers.warn(provider);
            extensions.remove::<Awaited>();
        }
        if let Some(User { kind, .. }) = with_user.as_ref().filter(|user| !(user.kind.is_in)(&extensions)) {
            extensions.insert(Awaited(*kind));
        }
        scope
    }
}

/// Returns the scope of a request whose flags are about to be read. That is when a user shows who came too late.
pub(crate) fn scope(extensions: &Extensions) -> Option<RequestScope> {
    let scope = extensions.get::<RequestScope>()?;
    if let Some(Awaited(user)) = extensions.get().filter(|Awaited(user)| (user.is_in)(extensions)) {
        Misuse::UserFoundLater { user: user.name }.warn(scope.provider());
    }
    Some(scope.clone())
}

impl fmt::Debug for Flipswitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flipswitch")
            .field("provider", &self.0.provider)
            .field("with_context", &self.0.with_context.is_some())
            .field("with_user", &self.0.with_user.as_ref().map(|user| user.kind.name))
            .field("anonymous", &self.0.anonymous)
            .field("prefetch", &self.0.prefetch)
            .finish()
    }
}

impl<S, B> Transform<S, ServiceRequest> for Flipswitch
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
{
    type Response = ServiceResponse<B>;
    type Error = Error;
    type Transform = FlipswitchService<S>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, inner: S) -> Self::Future {
        ready(Ok(FlipswitchService { inner: Rc::new(inner), middleware: self.clone() }))
    }
}

/// The service of a [`Flipswitch`] middleware: the inner one, whose requests carry a [`RequestScope`].
#[derive(Debug)]
pub struct FlipswitchService<S> {
    inner: Rc<S>,
    middleware: Flipswitch,
}

impl<S, B> Service<ServiceRequest> for FlipswitchService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
{
    type Response = ServiceResponse<B>;
    type Error = Error;
    type Future = ResponseFuture<S>;

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let scope = self.middleware.open(&request);
        let state = if self.middleware.0.prefetch {
            let scope = scope.clone();
            let fetched = Box::pin(async move { scope.prefetch().await });
            State::Fetching { fetched, on: Some((Rc::clone(&self.inner), request)) }
        } else {
            State::answering(&self.inner, request, &scope)
        };
        ResponseFuture { state, scope }
    }
}

pin_project! {
    /// Future of a [`FlipswitchService`]: the inner service's, and the cookie of a new visitor.
    pub struct ResponseFuture<S: Service<ServiceRequest>> {
        #[pin]
        state: State<S>,
        scope: RequestScope,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S: Service<ServiceRequest>> {
        Fetching { fetched: Pin<Box<dyn Future<Output = ()>>>, on: Option<(Rc<S>, ServiceRequest)> },
        Answering { #[pin] response: Scoped<S::Future> },
    }
}

impl<S: Service<ServiceRequest>> State<S> {
    /// Hands a request on, in its scope.
    fn answering(inner: &Rc<S>, request: ServiceRequest, scope: &RequestScope) -> Self {
        let response = scope.clone().sync_scope(|| inner.call(request));
        Self::Answering { response: scope.clone().scope(response) }
    }
}

impl<S, B> Future for ResponseFuture<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
{
    type Output = Result<ServiceResponse<B>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::Answering { response } => {
                    let mut response = ready!(response.poll(cx));
                    if let Ok(response) = &mut response {
                        let headers = response.headers_mut();
                        let set = headers.get_all(SET_COOKIE).map(HeaderValue::as_bytes);
                        let cookie = web::new_cookie(this.scope, set);
                        if let Some(cookie) = cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
                            headers.append(SET_COOKIE, cookie);
                        }
                    }
                    return Poll::Ready(response);
                }
                StateProjection::Fetching { fetched, on } => {
                    ready!(fetched.as_mut().poll(cx));
                    // Taken once, here, where the state is left.
                    let Some((inner, request)) = on.take() else { return Poll::Pending };
                    State::answering(&inner, request, this.scope)
                }
            };
            this.state.set(next);
        }
    }
}

impl<S: Service<ServiceRequest>> fmt::Debug for ResponseFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").field("scope", &self.scope).finish_non_exhaustive()
    }
}
