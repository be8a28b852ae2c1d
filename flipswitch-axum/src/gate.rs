//! The gate: routes that exist for some users only.

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum_core::response::{IntoResponse, Response};
use flipswitch::web::{FlagKey, GateFlag, GateRule};
use http::{Request, StatusCode};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{FlagsExt, MissingLayer};

/// Lets requests through if a flag says so, and else answers 404 with an empty body, as if there were nothing.
///
/// A gate reads the flags that handlers read, so that both agree; it needs a [`FlipswitchLayer`](crate::FlipswitchLayer)
/// that runs before it, that is one added after it, and answers 500 without ([`MissingLayer`]).
///
/// ```
/// use axum::{Router, http::StatusCode, routing::get};
/// use flipswitch_axum::{
///     FlagGate, FlipswitchLayer,
///     flipswitch::{FlipswitchProvider, serde_json::json},
/// };
///
/// flipswitch_axum::flipswitch::flags! {
///     /// The checkout on one page.
///     NewCheckout: bool = "new-checkout", default false;
/// }
///
/// let beta = Router::new()
///     .route("/beta", get(async || "Welcome"))
///     .route_layer(FlagGate::requires("beta").or(FlagGate::requires("staff")).otherwise(StatusCode::FORBIDDEN));
/// let checkout = get(async || "new").layer(FlagGate::requires(NewCheckout));
///
/// # let provider = FlipswitchProvider::in_memory(json!({}));
/// let app: Router = Router::new()
///     .route("/checkout", checkout)
///     .merge(beta)
///     .layer(FlipswitchLayer::new(provider));
/// ```
///
/// # When the flag is not known
///
/// A flag that is not known, has another type or no value counts as its default, which is `false` for one that is named by
/// its key: then [`requires`](Self::requires) is closed and [`requires_not`](Self::requires_not) is open. A variant that is
/// not known is no variant.
///
/// # Where to add it
///
/// - To some routes: `route_layer` of a router that has only those, which is merged or nested then. All methods of these
///   paths are closed, and no other path.
/// - To one route: `layer` of its handler or method router. `route_layer` of a *method router* lets requests of other
///   methods pass, which answer 405.
/// - `layer` of a router is for a nested one: of a merged one it also covers what is not found anywhere, so that unknown
///   paths read flags, and answer what the gate says.
///
/// With these axum adds an `Allow` header to the 404 that another method than the route's gets, which tells that there is
/// something. Where nobody must notice, add the gate to the service: `.route_service("/beta", gate.layer(get(beta)))`, or
/// `.nest_service("/beta", gate.layer(router))`. A visitor's [cookie](crate::Anonymous::cookie) comes with a closed gate as
/// well, and an application with a 404 page of its own gives that to [`otherwise`](Self::otherwise).
///
/// # How long it takes
///
/// As long as the [flags](crate::RequestScope::flags) take: no time for a user who is known, and not longer than
/// `request_timeout` for one who is not. The service behind the gate is held ready meanwhile.
///
/// Under gRPC a 404 is what clients know as `UNIMPLEMENTED`. With tonic, `Server::layer` puts a gate before all services,
/// and `gate.named_layer(service)`, of `tonic::service::LayerExt`, before one.
#[derive(Clone)]
#[must_use = "a gate does nothing until it is added to a router with `.layer(..)`"]
pub struct FlagGate {
    rule: Arc<GateRule>,
    otherwise: Option<Arc<Answer>>,
}

type Answer = dyn Fn() -> Response + Send + Sync;

impl FlagGate {
    /// Opens where the flag is on: one named by its key, whose default is `false`, or a boolean one declared with
    /// [`flags!`](flipswitch::flags).
    pub fn requires(flag: impl GateFlag) -> Self {
        Self::new(GateRule::requires(flag))
    }

    /// Opens where the flag is off.
    pub fn requires_not(flag: impl GateFlag) -> Self {
        Self::new(GateRule::requires_not(flag))
    }

    /// Opens where the service evaluated the flag to this variant.
    pub fn variant(flag: impl FlagKey, variant: impl Into<Cow<'static, str>>) -> Self {
        Self::new(GateRule::variant(flag, variant))
    }

    /// Opens where both gates are open. A chain is read from left to right: `a.or(b).and(c)` is "(a or b) and c".
    pub fn and(self, other: Self) -> Self {
        self.joined(other, GateRule::and)
    }

    /// Opens where one of both gates is open.
    pub fn or(self, other: Self) -> Self {
        self.joined(other, GateRule::or)
    }

    /// Says what a closed gate answers: a status, or any response. Default: 404 with an empty body. Of two gates that were
    /// joined, the first one's is taken if it has one.
    pub fn otherwise(mut self, response: impl IntoResponse + Clone + Send + Sync + 'static) -> Self {
        self.otherwise = Some(Arc::new(move || response.clone().into_response()));
        self
    }

    fn new(rule: GateRule) -> Self {
        Self { rule: Arc::new(rule), otherwise: None }
    }

    fn joined(self, other: Self, join: fn(GateRule, GateRule) -> GateRule) -> Self {
        let rule = join(Arc::unwrap_or_clone(self.rule), Arc::unwrap_or_clone(other.rule));
        Self { rule: Arc::new(rule), otherwise: self.otherwise.or(other.otherwise) }
    }

    fn closed(&self) -> Response {
        self.otherwise.as_ref().map_or_else(|| StatusCode::NOT_FOUND.into_response(), |otherwise| otherwise())
    }
}

impl<S> Layer<S> for FlagGate {
    type Service = GateService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        GateService { inner, gate: self.clone() }
    }
}

impl fmt::Debug for FlagGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlagGate").field("rule", &self.rule).finish_non_exhaustive()
    }
}

/// The service of a [`FlagGate`]: the inner one, for those who may.
#[derive(Clone, Debug)]
pub struct GateService<S> {
    inner: S,
    gate: FlagGate,
}

impl<S, B> Service<Request<B>> for GateService<S>
where
    S: Service<Request<B>> + Clone,
    S::Response: IntoResponse,
{
    type Response = Response;
    type Error = S::Error;
    type Future = GateFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Some(scope) = request.scope() else { return GateFuture::answer(MissingLayer::found().into_response()) };
        if let Some(flags) = scope.flags_now() {
            return if self.gate.rule.is_open(flags) {
                GateFuture { state: State::Open { response: self.inner.call(request) } }
            } else {
                GateFuture::answer(self.gate.closed())
            };
        }
        let (scope, gate) = (scope.clone(), self.gate.clone());
        let evaluated =
            Box::pin(async move { if gate.rule.is_open(scope.flags().await) { Ok(()) } else { Err(gate.closed()) } });
        // The one that is ready goes along; what stays will be asked for its readiness again.
        let inner = self.inner.clone();
        let inner = mem::replace(&mut self.inner, inner);
        GateFuture { state: State::Asking { evaluated, on: Some((inner, request)) } }
    }
}

pin_project! {
    /// Future of a [`GateService`].
    pub struct GateFuture<S: Service<Request<B>>, B> {
        #[pin]
        state: State<S, B>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S: Service<Request<B>>, B> {
        Asking { evaluated: Evaluated, on: Option<(S, Request<B>)> },
        Open { #[pin] response: S::Future },
        Answered { response: Option<Response> },
    }
}

/// Whether the gate is open, or else what it answers.
type Evaluated = Pin<Box<dyn Future<Output = Result<(), Response>> + Send>>;

impl<S: Service<Request<B>>, B> GateFuture<S, B> {
    fn answer(response: Response) -> Self {
        Self { state: State::Answered { response: Some(response) } }
    }
}

impl<S, B> Future for GateFuture<S, B>
where
    S: Service<Request<B>>,
    S::Response: IntoResponse,
{
    type Output = Result<Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProjection::Open { response } => return response.poll(cx).map_ok(IntoResponse::into_response),
                // Polled again after it was ready, which no executor does: pending, as a fused future would be.
                StateProjection::Answered { response } => {
                    return response.take().map_or(Poll::Pending, |response| Poll::Ready(Ok(response)));
                }
                StateProjection::Asking { evaluated, on } => match (ready!(evaluated.as_mut().poll(cx)), on.take()) {
                    (Ok(()), Some((mut inner, request))) => State::Open { response: inner.call(request) },
                    (Ok(()), None) => State::Answered { response: None },
                    (Err(response), _) => State::Answered { response: Some(response) },
                },
            };
            state.set(next);
        }
    }
}

impl<S: Service<Request<B>>, B> fmt::Debug for GateFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateFuture").finish_non_exhaustive()
    }
}
