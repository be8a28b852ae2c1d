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
use flipswitch::integration::{self, FlagKey, GateFlag, GateRule, Unknown};
use http::{Request, StatusCode, header::CACHE_CONTROL};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::extract::{self, MissingLayer};

/// Layer that responds with `404 Not Found` unless a flag is on for the request.
///
/// A gate reads the same flags as handlers. It needs a [`FlipswitchLayer`](crate::FlipswitchLayer) that runs before it, that
/// is, one that is added after it. Without one, it responds with 500 ([`MissingLayer`]). [`GateRule`] describes what happens for
/// unknown flags.
///
/// ```
/// use axum::{Router, http::StatusCode, routing::get};
/// use flipswitch_axum::{FlagGate, FlipswitchLayer, FlipswitchProvider, flipswitch::serde_json::json};
///
/// flipswitch_axum::flags! {
///     /// Whether the checkout has one page.
///     NewCheckout: bool = "new-checkout", default false;
/// }
///
/// let beta = Router::new()
///     .route("/beta", get(async || "Welcome"))
///     .route_layer(
///         FlagGate::when(|flags| flags.bool("beta", false) || flags.bool("staff", false))
///             .fallback(StatusCode::FORBIDDEN),
///     );
/// let checkout = get(async || "new").layer(FlagGate::enabled(NewCheckout));
///
/// let provider = FlipswitchProvider::in_memory(json!({"beta": true}));
/// let app: Router = Router::new()
///     .route("/checkout", checkout)
///     .merge(beta)
///     .layer(FlipswitchLayer::new(provider));
/// ```
///
/// # Where to add it
///
/// - To several routes: `route_layer` of a router that has only these routes, and is merged or nested. The gate closes all
///   methods of their paths, and no other paths.
/// - To one route: `layer` of its handler or method router. `route_layer` of a *method router* does not apply to other
///   methods, for which the response is 405.
/// - To a nested router: `layer` of that router. On a merged router, `layer` also applies to requests for unknown paths,
///   which then read flags, and get the response of the gate.
///
/// # Hiding a route
///
/// In these places, axum adds an `Allow` header to the 404 for a method that the route does not support, which reveals
/// that the route exists. The default response of a closed gate also differs from the application's other 404 responses: it
/// has `Cache-Control: no-store` and an empty body. To hide the route, add the gate to a service, and use the same response
/// for the gate and for paths that are not found. [`Layer`] is from the crate `tower`:
///
/// ```
/// use axum::{Router, http::StatusCode, routing::get};
/// use flipswitch_axum::{FlagGate, FlipswitchLayer, FlipswitchProvider, flipswitch::serde_json::json};
/// use tower::Layer;
///
/// const NOT_FOUND: (StatusCode, &str) = (StatusCode::NOT_FOUND, "There is nothing here.");
///
/// let provider = FlipswitchProvider::in_memory(json!({"beta": true}));
/// let gate = FlagGate::enabled("beta").fallback(NOT_FOUND);
/// let app: Router = Router::new()
///     .route_service("/beta", gate.layer(get(async || "Welcome")))
///     .fallback(async || NOT_FOUND)
///     .layer(FlipswitchLayer::new(provider));
/// ```
///
/// A nested router is hidden in the same way, with `.nest_service("/beta", gate.layer(router))`. The response of a closed gate
/// may still set the [cookie](crate::Anonymous::cookie) of a visitor.
///
/// # Waiting
///
/// A gate waits for flags like [`RequestScope::flags`](crate::RequestScope::flags). In the meantime, the inner service is kept
/// ready.
///
/// # CORS
///
/// Browsers send preflights without cookies or other credentials, so a gate cannot find their user. It refuses them without
/// reading flags, and logs a warning once. Add the CORS layer after the gate, so that it runs before the gate and responds to
/// them.
///
/// # gRPC
///
/// Under gRPC, clients see a 404 as `UNIMPLEMENTED`. With tonic, `Server::layer` adds a gate to all services, and
/// `gate.named_layer(service)`, from `tonic::service::LayerExt`, adds it to one service.
#[derive(Clone)]
#[must_use = "a gate does nothing until it is added to a router with `.layer(..)`"]
pub struct FlagGate {
    rule: GateRule,
    fallback: Option<Arc<dyn Fn() -> Response + Send + Sync>>,
}

impl FlagGate {
    /// Creates a gate that opens if a flag is on.
    pub fn enabled(flag: impl GateFlag) -> Self {
        GateRule::enabled(flag).into()
    }

    /// Creates a gate that opens if a flag is off.
    pub fn disabled(flag: impl GateFlag) -> Self {
        GateRule::disabled(flag).into()
    }

    /// Creates a gate that opens if the service evaluated the flag to this variant.
    pub fn variant(flag: impl FlagKey, variant: impl Into<Cow<'static, str>>) -> Self {
        GateRule::variant(flag, variant).into()
    }

    /// Creates a gate that opens if the predicate returns `true` for the flags of the request.
    pub fn when(predicate: impl Fn(&flipswitch::Flags) -> bool + Send + Sync + 'static) -> Self {
        GateRule::when(predicate).into()
    }

    /// Sets the response of a closed gate: a status, or any response. Defaults to 404 with an empty body and
    /// `Cache-Control: no-store`, so that no cache serves it after the flag has been turned on.
    pub fn fallback(mut self, response: impl IntoResponse + Clone + Send + Sync + 'static) -> Self {
        self.fallback = Some(Arc::new(move || response.clone().into_response()));
        self
    }

    /// Sets what happens while no flags for the request are known, because there was no response and there are no bootstrap
    /// values. By default, the gate uses the defaults of the flags.
    pub fn unknown(mut self, unknown: Unknown) -> Self {
        self.rule = self.rule.unknown(unknown);
        self
    }

    fn closed(&self) -> Response {
        let not_found = || (StatusCode::NOT_FOUND, [(CACHE_CONTROL, "no-store")]).into_response();
        self.fallback.as_ref().map_or_else(not_found, |fallback| fallback())
    }
}

impl From<GateRule> for FlagGate {
    fn from(rule: GateRule) -> Self {
        Self { rule, fallback: None }
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

/// Service of a [`FlagGate`].
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
        let Some(scope) = extract::scope(request.extensions()) else {
            return GateFuture::respond(MissingLayer::logged().into_response());
        };
        if integration::is_preflight(request.method().as_str(), |name| request.headers().contains_key(name)) {
            integration::preflight_refused(scope);
            return GateFuture::respond(self.gate.closed());
        }
        if let Some(flags) = scope.try_flags() {
            return if self.gate.rule.is_open(&flags) {
                GateFuture { state: State::Open { response: self.inner.call(request) } }
            } else {
                GateFuture::respond(self.gate.closed())
            };
        }
        let (scope, gate) = (scope.clone(), self.gate.clone());
        let decision =
            Box::pin(async move { if gate.rule.is_open(&scope.flags().await) { Ok(()) } else { Err(gate.closed()) } });
        // The service that is ready moves into the future. Its clone must become ready again.
        let inner = self.inner.clone();
        let inner = mem::replace(&mut self.inner, inner);
        GateFuture { state: State::Deciding { decision, call: Some((inner, request)) } }
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
        Deciding { decision: Decision, call: Option<(S, Request<B>)> },
        Open { #[pin] response: S::Future },
        Done { response: Option<Response> },
    }
}

/// Whether the gate is open and, if it is closed, its response.
type Decision = Pin<Box<dyn Future<Output = Result<(), Response>> + Send>>;

impl<S: Service<Request<B>>, B> GateFuture<S, B> {
    fn respond(response: Response) -> Self {
        Self { state: State::Done { response: Some(response) } }
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
                // Pending when polled again after completion, like a fused future.
                StateProjection::Done { response } => {
                    return response.take().map_or(Poll::Pending, |response| Poll::Ready(Ok(response)));
                }
                StateProjection::Deciding { decision, call } => match (ready!(decision.as_mut().poll(cx)), call.take())
                {
                    (Ok(()), Some((mut inner, request))) => State::Open { response: inner.call(request) },
                    (Ok(()), None) => State::Done { response: None },
                    (Err(response), _) => State::Done { response: Some(response) },
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
