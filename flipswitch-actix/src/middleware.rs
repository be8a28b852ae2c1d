//! The middleware: opens a [`RequestScope`] in every request.

use std::{
    any::type_name,
    fmt,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use actix_web::{
    Error, HttpMessage,
    dev::{Extensions, Service, ServiceRequest, ServiceResponse, Transform},
};
use flipswitch::{FlipswitchProvider, IntoContext, RequestScope, open_feature::EvaluationContext};

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
/// that was registered *last* first: register the authentication after, that is below, this one.
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
pub struct Flipswitch {
    provider: FlipswitchProvider,
    with_context: Option<Arc<ContextFn>>,
    with_user: Option<Arc<UserFn>>,
    /// Name of the user's type, for `Debug`.
    user: Option<&'static str>,
}

type ContextFn = dyn Fn(&ServiceRequest) -> Option<EvaluationContext> + Send + Sync;
type UserFn = dyn Fn(&Extensions) -> Option<EvaluationContext> + Send + Sync;

impl Flipswitch {
    /// Makes a middleware that evaluates every request anonymously: one context without targeting key, shared by all.
    #[must_use]
    pub fn new(provider: FlipswitchProvider) -> Self {
        Self { provider, with_context: None, with_user: None, user: None }
    }

    /// Takes the context from the request: headers, cookies, extensions. Default: none.
    ///
    /// The function returns an [`EvaluationContext`] or an `Option` of one; `None` falls through to
    /// [`with_user`](Self::with_user) and then to the anonymous context. What a client sends can be forged: use headers
    /// only if something before the application sets them.
    #[must_use]
    pub fn with_context<C: IntoContext>(
        mut self,
        context: impl Fn(&ServiceRequest) -> C + Send + Sync + 'static,
    ) -> Self {
        self.with_context = Some(Arc::new(move |request| context(request).into_context()));
        self
    }

    /// Takes the context from the user that another middleware put into the request's extensions, if it did. Default:
    /// none.
    ///
    /// Together with [`with_context`](Self::with_context) both are merged, and the user's fields win.
    #[must_use]
    pub fn with_user<U, C>(mut self, context: impl Fn(&U) -> C + Send + Sync + 'static) -> Self
    where
        U: 'static,
        C: IntoContext,
    {
        self.with_user = Some(Arc::new(move |extensions| context(extensions.get::<U>()?).into_context()));
        self.user = Some(type_name::<U>());
        self
    }

    fn scope(&self, request: &ServiceRequest) -> RequestScope {
        let user = self.with_user.as_ref().and_then(|user| user(&request.extensions()));
        let of_request = self.with_context.as_ref().and_then(|context| context(request));
        RequestScope::for_user(self.provider.clone(), user, of_request)
    }
}

impl fmt::Debug for Flipswitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flipswitch")
            .field("provider", &self.provider)
            .field("with_context", &self.with_context.is_some())
            .field("with_user", &self.user)
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
        ready(Ok(FlipswitchService { inner, middleware: self.clone() }))
    }
}

/// The service of a [`Flipswitch`] middleware: the inner one, whose requests carry a [`RequestScope`].
#[derive(Clone, Debug)]
pub struct FlipswitchService<S> {
    inner: S,
    middleware: Flipswitch,
}

impl<S, B> Service<ServiceRequest> for FlipswitchService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
{
    type Response = ServiceResponse<B>;
    type Error = Error;
    type Future = S::Future;

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&self, request: ServiceRequest) -> S::Future {
        let scope = self.middleware.scope(&request);
        request.extensions_mut().insert(scope);
        self.inner.call(request)
    }
}
