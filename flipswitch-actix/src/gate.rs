//! The gate: routes that exist for some users only.

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
    http::StatusCode,
};
use flipswitch::web::{FlagKey, GateFlag, GateRule};
use pin_project_lite::pin_project;

use crate::{FlagsExt, MissingMiddleware};

/// Lets requests through if a flag says so, and else answers 404 with an empty body, as if there were nothing.
///
/// A gate reads the flags that handlers read, so that both agree; it needs a [`Flipswitch`](crate::Flipswitch) that runs
/// before it, that is one registered after it, and answers 500 without ([`MissingMiddleware`]).
///
/// ```
/// use actix_web::{App, http::StatusCode, web};
/// use flipswitch_actix::{
///     FlagGate, Flipswitch,
///     flipswitch::{FlipswitchProvider, serde_json::json},
/// };
///
/// flipswitch_actix::flipswitch::flags! {
///     /// The checkout on one page.
///     NewCheckout: bool = "new-checkout", default false;
/// }
///
/// let beta = web::scope("/beta")
///     .route("/", web::get().to(async || "Welcome"))
///     .wrap(FlagGate::requires("beta").or(FlagGate::requires("staff")).otherwise(StatusCode::FORBIDDEN));
/// let checkout = web::resource("/checkout").get(async || "new").wrap(FlagGate::requires(NewCheckout));
///
/// # let provider = FlipswitchProvider::in_memory(json!({}));
/// let app = App::new().service(checkout).service(beta).wrap(Flipswitch::new(provider));
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
/// `wrap` of a scope or a resource hides all that it is added to, other methods included; `wrap` of one route of a resource
/// lets requests of other methods pass, which answer 405 and so tell that there is something. What is to be served to whom
/// the gate is closed for may stand under the same path with a guard instead: [`flag_on`](crate::flag_on).
///
/// A visitor's [cookie](crate::Anonymous::cookie) comes with a closed gate as well, and an application with a 404 page of its
/// own gives that to [`otherwise`](Self::otherwise).
///
/// # How long it takes
///
/// As long as the [flags](crate::RequestScope::flags) take: no time for a user who is known, and not longer than
/// `request_timeout` for one who is not.
#[derive(Clone)]
#[must_use = "a gate does nothing until it is added to a scope or resource with `.wrap(..)`"]
pub struct FlagGate {
    rule: Arc<GateRule>,
    otherwise: Option<Arc<Answer>>,
}

type Answer = dyn Fn(&HttpRequest) -> HttpResponse + Send + Sync;

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

    /// Says what a closed gate answers: a status, or what a function returns, such as `|| ("..", StatusCode::GONE)` or
    /// `|| HttpResponse::Gone().json(..)`. Default: 404 with an empty body. Of two gates that were joined, the first one's is
    /// taken if it has one.
    pub fn otherwise(mut self, response: impl Otherwise) -> Self {
        self.otherwise = Some(Arc::new(move |request| response.respond(request)));
        self
    }

    fn new(rule: GateRule) -> Self {
        Self { rule: Arc::new(rule), otherwise: None }
    }

    fn joined(self, other: Self, join: fn(GateRule, GateRule) -> GateRule) -> Self {
        let rule = join(Arc::unwrap_or_clone(self.rule), Arc::unwrap_or_clone(other.rule));
        Self { rule: Arc::new(rule), otherwise: self.otherwise.or(other.otherwise) }
    }

    fn closed(&self, request: &HttpRequest) -> HttpResponse {
        self.otherwise.as_ref().map_or_else(|| HttpResponse::new(StatusCode::NOT_FOUND), |otherwise| otherwise(request))
    }
}

/// What a closed gate may answer: a status, or a function whose result is made into the response.
#[diagnostic::on_unimplemented(
    message = "a gate cannot answer with `{Self}`",
    label = "give a `StatusCode`, or a function that returns a response: `|| HttpResponse::Gone()`",
    note = "all workers share the function: it is `Send + Sync + 'static`, and what it returns is a `Responder`"
)]
pub trait Otherwise: Send + Sync + 'static {
    /// Makes the response.
    fn respond(&self, request: &HttpRequest) -> HttpResponse;
}

impl Otherwise for StatusCode {
    fn respond(&self, _: &HttpRequest) -> HttpResponse {
        HttpResponse::new(*self)
    }
}

// Else the compiler would list whatever within a response cannot be sent to another thread.
#[diagnostic::do_not_recommend]
impl<F, R> Otherwise for F
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

/// The service of a [`FlagGate`]: the inner one, for those who may.
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
        let Some(scope) = request.scope() else {
            return GateFuture::answer(request.into_response(MissingMiddleware(()).error_response()));
        };
        if let Some(flags) = scope.flags_now() {
            return if self.gate.rule.is_open(flags) {
                GateFuture { state: State::Open { response: self.inner.call(request) } }
            } else {
                let closed = self.gate.closed(request.request());
                GateFuture::answer(request.into_response(closed))
            };
        }
        let rule = Arc::clone(&self.gate.rule);
        let evaluated = Box::pin(async move { rule.is_open(scope.flags().await) });
        let (gate, on) = (self.gate.clone(), Some((Rc::clone(&self.inner), request)));
        GateFuture { state: State::Asking { evaluated, gate, on } }
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
        Asking { evaluated: Pin<Box<dyn Future<Output = bool>>>, gate: FlagGate, on: Option<(Rc<S>, ServiceRequest)> },
        Open { #[pin] response: S::Future },
        Answered { response: Option<ServiceResponse> },
    }
}

impl<S: Service<ServiceRequest>> GateFuture<S> {
    fn answer(response: ServiceResponse) -> Self {
        Self { state: State::Answered { response: Some(response) } }
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
                // Polled again after it was ready, which no executor does: pending, as a fused future would be.
                StateProjection::Answered { response } => {
                    return response
                        .take()
                        .map_or(Poll::Pending, |response| Poll::Ready(Ok(response.map_into_right_body())));
                }
                StateProjection::Asking { evaluated, gate, on } => {
                    match (ready!(evaluated.as_mut().poll(cx)), on.take()) {
                        (true, Some((inner, request))) => State::Open { response: inner.call(request) },
                        (false, Some((_, request))) => {
                            let closed = gate.closed(request.request());
                            State::Answered { response: Some(request.into_response(closed)) }
                        }
                        (_, None) => State::Answered { response: None },
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
