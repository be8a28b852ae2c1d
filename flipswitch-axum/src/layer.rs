//! The layer: opens a [`RequestScope`] in every request.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::extract::OriginalUri;
use flipswitch::{
    FlipswitchProvider, IntoContext, Scoped, SignedOverrides,
    integration::{self, Anonymous, Redirect, ScopeBuilder},
};
use http::{Extensions, HeaderName, HeaderValue, Request, Response, StatusCode, request::Parts};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

/// Layer that gives every request its flags: a [`RequestScope`](crate::RequestScope) with the context of the request's user
/// in the extensions.
///
/// Nothing is requested from the flag service until a handler reads a flag, so the layer can be added to all routes. It
/// works on a [`Router`](https://docs.rs/axum/0.8/axum/struct.Router.html), nested or not, on a method router, and on any tower
/// service that handles HTTP requests. Handlers read flags with [extractors](crate::Flags), other code with
/// [`FlagsExt`](crate::FlagsExt).
///
/// # Order of layers
///
/// The layer that sets the user (authentication, sessions) must run before this one. axum runs the most recently added layer
/// first, so add authentication after this layer, that is, further down in the code. In a `tower::ServiceBuilder` the order is
/// the opposite. If the user is set too late, a warning is logged once. If two of these layers surround a handler, the inner one
/// takes effect, and a warning is logged.
///
/// ```
/// use axum::{Extension, Router, routing::get};
/// use flipswitch_axum::{Context, Flags, FlipswitchLayer, FlipswitchProvider, flipswitch::serde_json::json};
///
/// #[derive(Clone)]
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
/// let flags = FlipswitchLayer::new(provider).with_user(|user: &User| Context::user(&user.id).with("plan", &user.plan));
/// // Stands in for your authentication.
/// let authentication = Extension(User { id: "user-123".into(), plan: "free".into() });
/// let app: Router = Router::new()
///     .route("/", get(home))
///     .layer(flags)
///     .layer(authentication);
/// ```
///
/// # Contexts and cost
///
/// Each distinct context costs one evaluation at the service. Give contexts only attributes that rules use (user, plan, country).
/// Leave out attributes that differ between requests: if a context contains a path, an address or a time, every request has a new
/// context.
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added with `.layer(..)`"]
pub struct FlipswitchLayer(Arc<ScopeBuilder<Parts>>);

impl FlipswitchLayer {
    /// Creates a layer that evaluates flags for all requests with one shared context, without a targeting key.
    pub fn new(provider: FlipswitchProvider) -> Self {
        Self(Arc::new(ScopeBuilder::new(provider)))
    }

    /// Sets a function that builds the context from the head of the request: headers, cookies, extensions. Defaults to none.
    ///
    /// Clients can send any header: use only those that a trusted proxy sets.
    ///
    /// Attributes from [`with_user`](Self::with_user) take precedence. If one of them is `None`, the attribute with the same name
    /// from this function is used. If either of the two cannot be sent, neither is used. If both contexts together exceed 64 KiB,
    /// attributes from this function are left out first. If both functions return a context, merging them costs as much as
    /// building them a second time.
    ///
    /// ```
    /// use flipswitch_axum::{Context, FlipswitchLayer};
    /// # use flipswitch_axum::{FlipswitchProvider, flipswitch::serde_json::json};
    ///
    /// # let provider = FlipswitchProvider::in_memory(json!({}));
    /// let layer = FlipswitchLayer::new(provider).with_context(|parts| {
    ///     let country = parts.headers.get("x-country")?.to_str().ok()?;
    ///     Some(Context::anonymous().with("country", country))
    /// });
    /// ```
    pub fn with_context<C: IntoContext>(self, context: impl Fn(&Parts) -> C + Send + Sync + 'static) -> Self {
        self.map(|scopes| scopes.with_context(context))
    }

    /// Sets a function that builds the context from the user that another layer puts into the extensions. Defaults to
    /// none.
    ///
    /// If the application keeps users in memory, for example in a session cache, keep a
    /// [`PreparedContext`](crate::PreparedContext) with each user. It is then built once, and not in every request:
    ///
    /// ```
    /// use flipswitch_axum::{Context, FlipswitchLayer, PreparedContext};
    /// # use flipswitch_axum::{FlipswitchProvider, flipswitch::serde_json::json};
    ///
    /// #[derive(Clone)]
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
    /// let layer = FlipswitchLayer::new(provider).with_user(|user: &User| user.context.clone());
    /// ```
    pub fn with_user<U: RequestExtension, C: IntoContext>(
        self,
        context: impl Fn(&U) -> C + Send + Sync + 'static,
    ) -> Self {
        let is_present = |extensions: &Extensions| extensions.get::<U>().is_some();
        let context = move |parts: &Parts| parts.extensions.get().map(&context);
        self.map(|scopes| scopes.with_user::<U, _, _>(is_present, context))
    }

    /// Sets how flags are evaluated for requests without a user. Defaults to [`Anonymous::shared`].
    ///
    /// ```
    /// use flipswitch_axum::{Anonymous, FlipswitchLayer};
    /// # use flipswitch_axum::{FlipswitchProvider, flipswitch::serde_json::json};
    ///
    /// # let provider = FlipswitchProvider::in_memory(json!({}));
    /// // Each visitor has a cookie, and therefore separate flags.
    /// let layer = FlipswitchLayer::new(provider).with_anonymous(Anonymous::cookie());
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
    /// use flipswitch_axum::{FlipswitchLayer, SignedOverrides};
    /// # use flipswitch_axum::{FlipswitchProvider, flipswitch::serde_json::json};
    ///
    /// # let (provider, key) = (FlipswitchProvider::in_memory(json!({})), "0123456789abcdef");
    /// let layer = FlipswitchLayer::new(provider).with_overrides(SignedOverrides::new(key).allow(["new-checkout"]));
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
    /// use flipswitch_axum::FlipswitchLayer;
    /// # use flipswitch_axum::{FlipswitchProvider, flipswitch::serde_json::json};
    ///
    /// #[derive(Clone)]
    /// struct Staff;
    ///
    /// # let provider = FlipswitchProvider::in_memory(json!({}));
    /// let layer = FlipswitchLayer::new(provider).with_inspection(|parts| parts.extensions.get::<Staff>().is_some());
    /// ```
    pub fn with_inspection(self, when: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.map(|scopes| scopes.with_inspection(when))
    }

    fn map(self, change: impl FnOnce(ScopeBuilder<Parts>) -> ScopeBuilder<Parts>) -> Self {
        Self(Arc::new(change(Arc::unwrap_or_clone(self.0))))
    }
}

/// Type that can be in the [`Extensions`] of a request: any type that is `Clone + Send + Sync + 'static`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be in the extensions of a request",
    label = "not `Clone + Send + Sync + 'static`, as extensions must be",
    note = "take the type that authentication puts there, such as `|user: &Arc<User>|` for an `Arc<User>`"
)]
pub trait RequestExtension: Clone + Send + Sync + 'static {}

// Otherwise the compiler would report one of the three bounds, and not its purpose.
#[diagnostic::do_not_recommend]
impl<T: Clone + Send + Sync + 'static> RequestExtension for T {}

impl<S> Layer<S> for FlipswitchLayer {
    type Service = FlipswitchService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        FlipswitchService { inner, scopes: Arc::clone(&self.0) }
    }
}

/// Service of a [`FlipswitchLayer`].
#[derive(Clone, Debug)]
pub struct FlipswitchService<S> {
    inner: S,
    scopes: Arc<ScopeBuilder<Parts>>,
}

impl<S, B, R> Service<Request<B>> for FlipswitchService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let scope = self.scopes.open(&mut parts);
        let target = || {
            let original = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |OriginalUri(uri)| uri);
            original.path_and_query().map_or("/", |target| target.as_str())
        };
        if let Some(redirect) = self.scopes.redirect(parts.method.as_str(), target, &parts, &scope) {
            return ResponseFuture { state: State::Redirecting { redirect } };
        }
        let response = integration::call(scope, || self.inner.call(Request::from_parts(parts, body)));
        ResponseFuture { state: State::Responding { response } }
    }
}

pin_project! {
    /// Future of a [`FlipswitchService`].
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProjection]
    enum State<F> {
        Responding { #[pin] response: Scoped<F> },
        Redirecting { redirect: Redirect },
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Default,
{
    type Output = Result<Response<R>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Redirecting { redirect } => {
                let mut response = Response::new(R::default());
                *response.status_mut() = StatusCode::SEE_OTHER;
                for (name, value) in redirect.headers() {
                    if let Ok(value) = HeaderValue::from_str(value) {
                        response.headers_mut().insert(HeaderName::from_static(name), value);
                    }
                }
                Poll::Ready(Ok(response))
            }
            StateProjection::Responding { response: mut future } => {
                let mut response = ready!(future.as_mut().poll(cx));
                if let (Ok(response), Some(scope)) = (&mut response, future.scope()) {
                    integration::finish(scope, response.status().as_u16(), response.headers_mut());
                }
                Poll::Ready(response)
            }
        }
    }
}
