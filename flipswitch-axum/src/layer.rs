//! The layer: opens a [`RequestScope`] in every request.

use std::{
    any::type_name,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use flipswitch::{
    FlipswitchProvider, IntoContext, RequestScope, Scoped,
    open_feature::EvaluationContext,
    web::{self, Anonymous, Misuse},
};
use http::{Extensions, HeaderValue, Request, Response, header::SET_COOKIE, request::Parts};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

/// Gives every request its flags: a [`RequestScope`] with the context of the request's user in its extensions.
///
/// Nothing is asked of the flag service until a handler reads a flag, so the layer can stand before all routes. It works
/// on a [`Router`](https://docs.rs/axum/0.8/axum/struct.Router.html), nested or not, on a method router, and on any
/// tower service of HTTP requests; [`FlagsExt`](crate::FlagsExt) is for handlers that have no extractors.
///
/// # Order of layers
///
/// A layer that finds the user (authentication, sessions) must run before this one, and axum runs the layer that was
/// added *last* first: add the authentication after, that is below, this layer. With a `tower::ServiceBuilder` it is the
/// other way round. Where a user turns up too late, a warning says so, once. Of two of these layers around one handler the
/// inner one decides, which is warned of as well.
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
#[must_use = "a layer does nothing until it is added with `.layer(..)`"]
pub struct FlipswitchLayer(Arc<Settings>);

#[derive(Clone)]
struct Settings {
    provider: FlipswitchProvider,
    with_context: Option<Arc<ContextFn>>,
    with_user: Option<User>,
    anonymous: Anonymous,
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

type ContextFn = dyn Fn(&Parts) -> Option<EvaluationContext> + Send + Sync;
type UserFn = dyn Fn(&Extensions) -> Option<EvaluationContext> + Send + Sync;

impl FlipswitchLayer {
    /// Makes a layer that evaluates every request anonymously: one context without targeting key, shared by all.
    pub fn new(provider: FlipswitchProvider) -> Self {
        Self(Arc::new(Settings { provider, with_context: None, with_user: None, anonymous: Anonymous::None }))
    }

    fn settings(&mut self) -> &mut Settings {
        Arc::make_mut(&mut self.0)
    }

    /// Takes the context from the request's head: headers, cookies, extensions. Default: none.
    ///
    /// The function returns an [`EvaluationContext`] or an `Option` of one. It is asked as well as
    /// [`with_user`](Self::with_user), whose fields win; where there is no user and no targeting key,
    /// [`with_anonymous`](Self::with_anonymous) says who the visitor is. What a client sends can be forged: use headers only
    /// if something before the application sets them. A function that panics found nothing, which is warned of once.
    pub fn with_context<C: IntoContext>(mut self, context: impl Fn(&Parts) -> C + Send + Sync + 'static) -> Self {
        self.settings().with_context = Some(Arc::new(move |parts| context(parts).into_context()));
        self
    }

    /// Takes the context from the user that another layer put into the extensions, if it did. Default: none.
    ///
    /// Together with [`with_context`](Self::with_context) both are merged, and the user's fields win. The function may find
    /// that there is nobody (`None`), as where the extension is a session. One that panics found nobody, which is warned
    /// of once.
    pub fn with_user<U, C>(mut self, context: impl Fn(&U) -> C + Send + Sync + 'static) -> Self
    where
        U: RequestExtension,
        C: IntoContext,
    {
        self.settings().with_user = Some(User {
            context: Arc::new(move |extensions| context(extensions.get::<U>()?).into_context()),
            kind: UserType { name: type_name::<U>(), is_in: |extensions| extensions.get::<U>().is_some() },
        });
        self
    }

    /// Says who a visitor is when no user is found. Default: [`Anonymous::None`], nobody in particular.
    pub fn with_anonymous(mut self, anonymous: Anonymous) -> Self {
        self.settings().anonymous = anonymous;
        self
    }

    /// Opens the scope of a request, and puts it into the request's extensions.
    fn open(&self, parts: &mut Parts) -> RequestScope {
        let Settings { provider, with_context, with_user, anonymous } = &*self.0;
        let scope = web::open(
            provider,
            || with_user.as_ref().and_then(|user| (user.context)(&parts.extensions)),
            || with_context.as_ref().and_then(|context| context(parts)),
            anonymous,
            |name| parts.headers.get_all(name).iter().map(HeaderValue::as_bytes),
        );
        let extensions = &mut parts.extensions;
        if extensions.insert(scope.clone()).is_some() {
            Misuse::TwoLayers.warn(provider);
            extensions.remove::<Awaited>();
        }
        if let Some(User { kind, .. }) = with_user.as_ref().filter(|user| !(user.kind.is_in)(extensions)) {
            extensions.insert(Awaited(*kind));
        }
        scope
    }
}

/// What can be in the [`Extensions`] of a request: whatever is `Clone + Send + Sync + 'static`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be in the extensions of a request",
    label = "not `Clone + Send + Sync + 'static`, as extensions are",
    note = "take the type that the authentication puts there, such as `|user: &Arc<User>|` for an `Arc<User>`"
)]
pub trait RequestExtension: Clone + Send + Sync + 'static {}

// Else the compiler would say which of the three is missing, and not what for.
#[diagnostic::do_not_recommend]
impl<T: Clone + Send + Sync + 'static> RequestExtension for T {}

/// Returns the scope of a request whose flags are about to be read. That is when a user shows who came too late.
pub(crate) fn scope(extensions: &Extensions) -> Option<&RequestScope> {
    let scope = extensions.get::<RequestScope>()?;
    if let Some(Awaited(user)) = extensions.get().filter(|Awaited(user)| (user.is_in)(extensions)) {
        Misuse::UserFoundLater { user: user.name }.warn(scope.provider());
    }
    Some(scope)
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
            .field("provider", &self.0.provider)
            .field("with_context", &self.0.with_context.is_some())
            .field("with_user", &self.0.with_user.as_ref().map(|user| user.kind.name))
            .field("anonymous", &self.0.anonymous)
            .finish()
    }
}

/// The service of a [`FlipswitchLayer`]: the inner one, whose requests carry a [`RequestScope`].
#[derive(Clone, Debug)]
pub struct FlipswitchService<S> {
    inner: S,
    layer: FlipswitchLayer,
}

impl<S, B, R> Service<Request<B>> for FlipswitchService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let scope = self.layer.open(&mut parts);
        let request = Request::from_parts(parts, body);
        let response = scope.clone().sync_scope(|| self.inner.call(request));
        ResponseFuture { response: scope.clone().scope(response), scope }
    }
}

pin_project! {
    /// Future of a [`FlipswitchService`]: the inner service's, and the cookie of a new visitor.
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        response: Scoped<F>,
        scope: RequestScope,
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<R>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.response.poll(cx));
        if let Ok(response) = &mut response {
            let headers = response.headers_mut();
            let cookie = web::new_cookie(this.scope, headers.get_all(SET_COOKIE).iter().map(HeaderValue::as_bytes));
            if let Some(cookie) = cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
                headers.append(SET_COOKIE, cookie);
            }
        }
        Poll::Ready(response)
    }
}
