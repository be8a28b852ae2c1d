//! Extractors: a handler's way to the request's flags.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    ops::Deref,
    pin::Pin,
    task::{Context, Poll},
};

use actix_web::{FromRequest, HttpMessage, HttpRequest, ResponseError, dev::Payload, http::StatusCode};
use flipswitch::{FlagDef, RequestScope};

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
        let scope = request.extensions().get::<RequestScope>().cloned();
        FlagsFuture(match scope {
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
/// [`Flipswitch`](crate::Flipswitch) runs before the handler it is [`MissingMiddleware`].
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
        flags.map_ok(|flags| Flag(flags.object(F::KEY, F::default_value())))
    }
}

impl<F> fmt::Debug for FlagFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlagFuture").finish_non_exhaustive()
    }
}

/// Error of a handler that asks for flags where no [`Flipswitch`](crate::Flipswitch) middleware runs before it: a mistake
/// in the application, answered with 500.
#[derive(Clone, Copy, Debug)]
pub struct MissingMiddleware(());

impl fmt::Display for MissingMiddleware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("No flags in this request: add `.wrap(Flipswitch::new(provider))` to the app, scope or resource of this route")
    }
}

impl std::error::Error for MissingMiddleware {}

impl ResponseError for MissingMiddleware {
    fn status_code(&self) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}
