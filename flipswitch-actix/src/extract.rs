//! Extractors: a handler's way to the request's flags.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    ops::Deref,
    pin::Pin,
    task::{Context, Poll},
};

use actix_web::{
    FromRequest, HttpMessage, HttpRequest, HttpResponse, ResponseError,
    dev::{Payload, ServiceRequest},
    guard::GuardContext,
    http::{StatusCode, header::ContentType},
};
use flipswitch::{FlagDef, RequestScope, web};

use crate::middleware;

/// The flags of the request. As an extractor it evaluates at first use; all extractors of a request share one answer.
///
/// Dereferences to [`flipswitch::Flags`]. `Option<Flags>` is `None` where no [`Flipswitch`](crate::Flipswitch) runs
/// before the handler; plain `Flags` is [`MissingMiddleware`] there.
///
/// ```
/// use flipswitch_actix::Flags;
///
/// async fn banner(flags: Flags) -> String {
///     flags.string("banner", "Welcome").to_owned()
/// }
/// # actix_web::web::get().to(banner);
/// ```
#[derive(Clone, Debug)]
pub struct Flags(pub flipswitch::Flags);

impl Deref for Flags {
    type Target = flipswitch::Flags;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl FromRequest for Flags {
    type Error = MissingMiddleware;
    type Future = FlagsFuture;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> FlagsFuture {
        FlagsFuture(match request.scope() {
            None => State::Done(Some(Err(MissingMiddleware(())))),
            Some(scope) => match scope.flags_now() {
                Some(flags) => State::Done(Some(Ok(Flags(flags.clone())))),
                None => State::Evaluating(Box::pin(async move { Flags(scope.flags().await.clone()) })),
            },
        })
    }
}

/// Future of the [`Flags`] extractor.
pub struct FlagsFuture(State);

enum State {
    Done(Option<Result<Flags, MissingMiddleware>>),
    Evaluating(Pin<Box<dyn Future<Output = Flags>>>),
}

impl Future for FlagsFuture {
    type Output = Result<Flags, MissingMiddleware>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            // Polled again after it was ready, which no executor does: pending, as a fused future would be.
            State::Done(outcome) => outcome.take().map_or(Poll::Pending, Poll::Ready),
            State::Evaluating(flags) => flags.as_mut().poll(cx).map(Ok),
        }
    }
}

impl fmt::Debug for FlagsFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlagsFuture").finish_non_exhaustive()
    }
}

/// The value of one flag that was declared with [`flags!`](flipswitch::flags).
///
/// Evaluated as [`Flags`] are: however many a handler takes, all of a request share one answer. Where no
/// [`Flipswitch`](crate::Flipswitch) runs before the handler it is [`MissingMiddleware`], and `Option<Flag<..>>` is `None`.
///
/// ```
/// use flipswitch_actix::Flag;
///
/// flipswitch_actix::flipswitch::flags! {
///     /// The checkout on one page.
///     NewCheckout: bool = "new-checkout", default false;
/// }
///
/// async fn checkout(Flag(new): Flag<NewCheckout>) -> &'static str {
///     if new { "new" } else { "old" }
/// }
/// # actix_web::web::get().to(checkout);
/// ```
#[derive(Debug)]
pub struct Flag<F: FlagDef>(pub F::Value);

impl<F: FlagDef> FromRequest for Flag<F> {
    type Error = MissingMiddleware;
    type Future = FlagFuture<F>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> FlagFuture<F> {
        FlagFuture(Flags::from_request(request, payload), PhantomData)
    }
}

/// Future of the [`Flag`] extractor.
pub struct FlagFuture<F>(FlagsFuture, PhantomData<fn() -> F>);

impl<F: FlagDef> Future for FlagFuture<F> {
    type Output = Result<Flag<F>, MissingMiddleware>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let flags = Pin::new(&mut self.0).poll(cx);
        flags.map_ok(|flags| Flag(web::read::<F>(&flags)))
    }
}

impl<F> fmt::Debug for FlagFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlagFuture").finish_non_exhaustive()
    }
}

/// The request's scope where there are no extractors: in middleware and guards.
///
/// ```
/// use actix_web::HttpRequest;
/// use flipswitch_actix::FlagsExt;
///
/// async fn greeting(request: HttpRequest) -> &'static str {
///     match request.scope() {
///         Some(scope) if scope.flags().await.bool("new-greeting", false) => "Good day",
///         _ => "Hello",
///     }
/// }
/// # actix_web::web::get().to(greeting);
/// ```
pub trait FlagsExt {
    /// Returns the scope of the request: its provider, context and flags. `None` where no
    /// [`Flipswitch`](crate::Flipswitch) ran before.
    fn scope(&self) -> Option<RequestScope>;

    /// Returns the flags of the request if that needs no waiting: they were evaluated before, memory has a fresh answer for
    /// the context, or the service cannot be asked at present. Asking counts as reading.
    fn flags_now(&self) -> Option<Flags> {
        self.scope()?.flags_now().cloned().map(Flags)
    }
}

impl FlagsExt for HttpRequest {
    fn scope(&self) -> Option<RequestScope> {
        middleware::scope(&self.extensions())
    }
}

impl FlagsExt for ServiceRequest {
    fn scope(&self) -> Option<RequestScope> {
        middleware::scope(&self.extensions())
    }
}

impl FlagsExt for GuardContext<'_> {
    fn scope(&self) -> Option<RequestScope> {
        middleware::scope(&self.req_data())
    }
}

/// Error of a handler or gate that asks for flags where no [`Flipswitch`](crate::Flipswitch) middleware runs before it: a mistake
/// in the application, answered with 500, and logged as an error.
#[derive(Clone, Copy, Debug)]
pub struct MissingMiddleware(pub(crate) ());

impl fmt::Display for MissingMiddleware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "No flags in this request: add `.wrap(Flipswitch::new(provider))` to the app, scope or resource of \
             this route, after any `FlagGate`",
        )
    }
}

impl std::error::Error for MissingMiddleware {}

impl ResponseError for MissingMiddleware {
    fn status_code(&self) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }

    fn error_response(&self) -> HttpResponse {
        // Here, and not where it was found: for an `Option` of flags it is no mistake.
        tracing::error!(target: "flipswitch", "{self}");
        HttpResponse::build(self.status_code()).content_type(ContentType::plaintext()).body(self.to_string())
    }
}
