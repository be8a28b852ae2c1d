//! The gate: scopes and resources that exist for some users only.

use std::{
    borrow::Cow,
    fmt,
    future::{Future, Ready, ready},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use actix_web::{
    Error, HttpRequest, HttpResponse, Responder, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{Service, ServiceRequest, ServiceResponse, Transform},
    http::{StatusCode, header::CACHE_CONTROL},
};
use flipswitch::integration::{self, FlagKey, GateFlag, GateRule, Unknown};
use pin_project_lite::pin_project;

use crate::{FlagsExt, MissingMiddleware};

/// Middleware that responds with `404 Not Found` unless a flag is on for the request.
///
/// A gate reads the same flags as handlers. It needs a [`FlipswitchMiddleware`](crate::FlipswitchMiddleware) that runs before
/// it, that is, one that is registered after it. Without one, it responds with 500 ([`MissingMiddleware`]). [`GateRule`]
/// describes what happens for unknown flags.
///
/// ```
/// use actix_web::{App, http::StatusCode, web};
/// use flipswitch_actix::{FlagGate, FlipswitchMiddleware, FlipswitchProvider, flipswitch::serde_json::json};
///
/// flipswitch_actix::flags! {
///     /// Whether the checkout has one page.
///     NewCheckout: bool = "new-checkout", default false;
/// }
///
/// let gate = FlagGate::when(|flags| flags.bool("beta", false) || flags.bool("staff", false));
/// let beta = web::scope("/beta")
///     .route("/", web::get().to(async || "Welcome"))
///     .wrap(gate.fallback(StatusCode::FORBIDDEN));
/// let checkout = web::resource("/checkout").get(async || "new").wrap(FlagGate::enabled(NewCheckout));
///
/// let provider = FlipswitchProvider::in_memory(json!({"beta": true}));
/// let app = App::new().service(checkout).service(beta).wrap(FlipswitchMiddleware::new(provider));
/// ```
///
/// # Where to wrap
///
/// Wrap a scope or a resource: the gate then closes all methods of its paths. A gate around one route of a resource
/// does not apply to other methods: their response is 405, which reveals that the path exists. To serve other users with another
/// route for the same path, use a guard: [`flag_on`](crate::flag_on).
///
/// # Hiding a path
///
/// The default response of a closed gate differs from the application's other 404 responses: it has `Cache-Control: no-store`
/// and an empty body. To hide the path, pass the same function to [`fallback`](Self::fallback) and to `default_service`:
///
/// ```
/// use actix_web::{App, HttpResponse, web};
/// use flipswitch_actix::{FlagGate, FlipswitchMiddleware, FlipswitchProvider, flipswitch::serde_json::json};
///
/// fn not_found() -> HttpResponse {
///     HttpResponse::NotFound().body("There is nothing here.")
/// }
///
/// let provider = FlipswitchProvider::in_memory(json!({"beta": true}));
/// let gate = FlagGate::enabled("beta").fallback(not_found);
/// let app = App::new()
///     .service(web::resource("/beta").get(async || "Welcome").wrap(gate))
///     .default_service(web::to(async || not_found()))
///     .wrap(FlipswitchMiddleware::new(provider));
/// ```
///
/// The response of a closed gate may still set the [cookie](crate::Anonymous::cookie) of a visitor.
///
/// # Waiting
///
/// A gate waits for flags like [`RequestScope::flags`](crate::RequestScope::flags).
///
/// # CORS
///
/// Browsers send preflights without cookies or other credentials, so a gate cannot find their user. It refuses them without
/// reading flags, and logs a warning once. Register the CORS middleware after the gate, so that it runs before the gate
/// and responds to them.
#[derive(Clone)]
#[must_use = "a gate does nothing until it is added to a scope or resource with `.wrap(..)`"]
pub struct FlagGate {
    rule: GateRule,
    fallback: Option<Arc<dyn Fallback>>,
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

    /// Sets the response of a closed gate: a status, or what a function returns, such as `|| ("..", StatusCode::GONE)` or
    /// `|| HttpResponse::Gone().json(..)`. Defaults to 404 with an empty body and `Cache-Control: no-store`, so that no cache
    /// serves it after the flag has been turned on.
    pub fn fallback(mut self, fallback: impl Fallback) -> Self {
        self.fallback = Some(Arc::new(fallback));
        self
    }

    /// Sets what happens while no flags for the request are known, because the service has not responded and there are no
    /// bootstrap values. By default, the gate uses the defaults of the flags.
    pub fn unknown(mut self, unknown: Unknown) -> Self {
        self.rule = self.rule.unknown(unknown);
        self
    }

    fn closed(&self, request: &HttpRequest) -> HttpResponse {
        let not_found = || HttpResponse::NotFound().insert_header((CACHE_CONTROL, "no-store")).finish();
        self.fallback.as_ref().map_or_else(not_found, |fallback| fallback.respond(request))
    }
}

impl From<GateRule> for FlagGate {
    fn from(rule: GateRule) -> Self {
        Self { rule, fallback: None }
    }
}

/// Response of a closed gate: a status, or a function that returns a responder.
#[diagnostic::on_unimplemented(
    message = "a gate cannot respond with `{Self}`",
    label = "pass a `StatusCode`, or a function that returns a response: `|| HttpResponse::Gone()`",
    note = "all workers share the function, so it must be `Send + Sync + 'static` and return a `Responder`"
)]
pub trait Fallback: Send + Sync + 'static {
    /// Creates the response.
    fn respond(&self, request: &HttpRequest) -> HttpResponse;
}

impl Fallback for StatusCode {
    fn respond(&self, _: &HttpRequest) -> HttpResponse {
        HttpResponse::new(*self)
    }
}

// Otherwise the compiler would list the parts of a response that are not `Send`.
#[diagnostic::do_not_recommend]
impl<F, R> Fallback for F
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Responder,
{
    fn respond(&self, request: &HttpRequest) -> HttpResponse {
        self().respond_to(request).map_into_boxed_body()
    }
}

impl<S, B> Transform<S, ServiceRequest> for FlagGate
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = Error;
    type Transform = GateService<S>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, inner: S) -> Self::Future {
        ready(Ok(GateService { inner: Rc::new(inner), gate: self.clone() }))
    }
}

impl fmt::Debug for FlagGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlagGate").field("rule", &self.rule).finish_non_exhaustive()
    }
}

/// Service of a [`FlagGate`].
#[derive(Debug)]
pub struct GateService<S> {
    inner: Rc<S>,
    gate: FlagGate,
}

impl<S, B> Service<ServiceRequest> for GateService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = Error;
    type Future = GateFuture<S>;

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let Some(scope) = request.flag_scope() else {
            return GateFuture::respond(request.into_response(MissingMiddleware(()).error_response()));
        };
        if integration::is_preflight(request.method().as_str(), |name| request.headers().contains_key(name)) {
            integration::preflight_refused(&scope);
            let closed = self.gate.closed(request.request());
            return GateFuture::respond(request.into_response(closed));
        }
        if let Some(flags) = scope.try_flags() {
            return if self.gate.rule.is_open(&flags) {
                GateFuture { state: State::Open { response: self.inner.call(request) } }
            } else {
                let closed = self.gate.closed(request.request());
                GateFuture::respond(request.into_response(closed))
            };
        }
        let (gate, rule) = (self.gate.clone(), self.gate.rule.clone());
        let is_open = Box::pin(async move { rule.is_open(&scope.flags().await) });
        GateFuture { state: State::Deciding { is_open, gate, call: Some((Rc::clone(&self.inner), request)) } }
    }
}

pin_project! {
    /// Future of a [`GateService`].
    pub struct GateFuture<S: Service<ServiceRequest>> {
        #[pin]
        state: State<S>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S: Service<ServiceRequest>> {
        Deciding { is_open: Pin<Box<dyn Future<Output = bool>>>, gate: FlagGate, call: Option<(Rc<S>, ServiceRequest)> },
        Open { #[pin] response: S::Future },
        Done { response: Option<ServiceResponse> },
    }
}

impl<S: Service<ServiceRequest>> GateFuture<S> {
    fn respond(response: ServiceResponse) -> Self {
        Self { state: State::Done { response: Some(response) } }
    }
}

impl<S, B> Future for GateFuture<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    type Output = Result<ServiceResponse<EitherBody<B>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProjection::Open { response } => {
                    return response.poll(cx).map_ok(ServiceResponse::map_into_left_body);
                }
                // Pending when polled again after completion, like a fused future.
                StateProjection::Done { response } => {
                    return response
                        .take()
                        .map_or(Poll::Pending, |response| Poll::Ready(Ok(response.map_into_right_body())));
                }
                StateProjection::Deciding { is_open, gate, call } => {
                    match (ready!(is_open.as_mut().poll(cx)), call.take()) {
                        (true, Some((inner, request))) => State::Open { response: inner.call(request) },
                        (false, Some((_, request))) => {
                            let closed = gate.closed(request.request());
                            State::Done { response: Some(request.into_response(closed)) }
                        }
                        (_, None) => State::Done { response: None },
                    }
                }
            };
            state.set(next);
        }
    }
}

impl<S: Service<ServiceRequest>> fmt::Debug for GateFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateFuture").finish_non_exhaustive()
    }
}
