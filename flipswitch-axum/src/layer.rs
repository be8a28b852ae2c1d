//! The layer: opens a [`RequestScope`] in every request.

use std::{
    any::type_name,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use flipswitch::{FlipswitchProvider, IntoContext, RequestScope, open_feature::EvaluationContext};
use http::{Extensions, Request, request::Parts};
use tower_layer::Layer;
use tower_service::Service;

/// Gives every request its flags: a [`RequestScope`] with the context of the request's user in its extensions.
///
/// Nothing is asked of the flag service until a handler reads a flag, so the layer can stand before all routes. It works
/// on a [`Router`](https://docs.rs/axum/0.8/axum/struct.Router.html), nested or not, on a method router, and on any
/// tower service of HTTP requests.
///
/// # Order of layers
///
/// A layer that finds the user (authentication, sessions) must run before this one, and axum runs the layer that was
/// added *last* first: add the authentication after, that is below, this layer.
///
/// ```
/// use axum::{Extension, Router, routing::get};
/// use flipswitch_axum::{
///     Flags, FlipswitchLayer,
///     flipswitch::{FlipswitchProvider, open_feature::EvaluationContext, serde_json::json},
/// };
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
/// let flags = FlipswitchLayer::new(provider).with_user(|user: &User| {
///     EvaluationContext::default()
///         .with_targeting_key(&user.id)
///         .with_custom_field("plan", user.plan.as_str())
/// });
/// # let authentication = Extension(User { id: "1".into(), plan: "free".into() });
/// let app: Router = Router::new()
///     .route("/", get(home))
///     .layer(flags)
///     .layer(authentication);
/// ```
///
/// # Contexts and cost
///
/// Every distinct context is one evaluation at the service. Put into it what rules decide on (user, plan, country), and
/// not what differs from request to request: with a path, an address or a time in it, every request is a new context.
#[derive(Clone)]
pub struct FlipswitchLayer {
    provider: FlipswitchProvider,
    with_context: Option<Arc<ContextFn>>,
    with_user: Option<Arc<UserFn>>,
    /// Name of the user's type, for `Debug`.
    user: Option<&'static str>,
}

type ContextFn = dyn Fn(&Parts) -> Option<EvaluationContext> + Send + Sync;
type UserFn = dyn Fn(&Extensions) -> Option<EvaluationContext> + Send + Sync;

impl FlipswitchLayer {
    /// Makes a layer that evaluates every request anonymously: one context without targeting key, shared by all.
    #[must_use]
    pub fn new(provider: FlipswitchProvider) -> Self {
        Self { provider, with_context: None, with_user: None, user: None }
    }

    /// Takes the context from the request's head: headers, cookies, extensions. Default: none.
    ///
    /// The function returns an [`EvaluationContext`] or an `Option` of one; `None` falls through to
    /// [`with_user`](Self::with_user) and then to the anonymous context. What a client sends can be forged: use headers
    /// only if something before the application sets them.
    #[must_use]
    pub fn with_context<C: IntoContext>(mut self, context: impl Fn(&Parts) -> C + Send + Sync + 'static) -> Self {
        self.with_context = Some(Arc::new(move |parts| context(parts).into_context()));
        self
    }

    /// Takes the context from the user that another layer put into the extensions, if it did. Default: none.
    ///
    /// Together with [`with_context`](Self::with_context) both are merged, and the user's fields win.
    #[must_use]
    pub fn with_user<U, C>(mut self, context: impl Fn(&U) -> C + Send + Sync + 'static) -> Self
    where
        U: Send + Sync + 'static,
        C: IntoContext,
    {
        self.with_user = Some(Arc::new(move |extensions| context(extensions.get::<U>()?).into_context()));
        self.user = Some(type_name::<U>());
        self
    }

    fn scope(&self, parts: &Parts) -> RequestScope {
        let user = self.with_user.as_ref().and_then(|user| user(&parts.extensions));
        let request = self.with_context.as_ref().and_then(|context| context(parts));
        RequestScope::for_user(self.provider.clone(), user, request)
    }
}

impl<S> Layer<S> for FlipswitchLayer {
    type Service = FlipswitchService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        FlipswitchService { inner, layer: self.clone() }
    }
}

impl fmt::Debug for FlipswitchLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlipswitchLayer")
            .field("provider", &self.provider)
            .field("with_context", &self.with_context.is_some())
            .field("with_user", &self.user)
            .finish()
    }
}

/// The service of a [`FlipswitchLayer`]: the inner one, whose requests carry a [`RequestScope`].
#[derive(Clone, Debug)]
pub struct FlipswitchService<S> {
    inner: S,
    layer: FlipswitchLayer,
}

impl<S, B> Service<Request<B>> for FlipswitchService<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(self.layer.scope(&parts));
        self.inner.call(Request::from_parts(parts, body))
    }
}
