//! Extractors: how handlers read the flags of a request.

use std::{
    fmt,
    future::Future,
    ops::Deref,
    pin::Pin,
    task::{Context, Poll},
};

use actix_web::{
    FromRequest, HttpMessage, HttpRequest, HttpResponse, ResponseError,
    dev::{Extensions, Payload, ServiceRequest},
    guard::GuardContext,
    http::{StatusCode, header::ContentType},
};
use flipswitch::{FlagDef, RequestScope, integration};

/// Extractor for the flags of the request, which are evaluated at their first use. All extractors of a request share them.
///
/// Dereferences to [`flipswitch::Flags`]. Without a [`FlipswitchMiddleware`](crate::FlipswitchMiddleware) the error is
/// [`MissingMiddleware`], and `Option<Flags>` is `None`.
///
/// ```
/// use flipswitch_actix::Flags;
///
/// async fn welcome(flags: Flags) -> String {
///     flags.string("banner", "Welcome").to_owned()
/// }
/// # actix_web::web::get().to(welcome);
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
    type Future = ExtractFuture<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> ExtractFuture<Self> {
        ExtractFuture::new(request, |flags| Self(flags.clone()))
    }
}

/// Extractor for the value of one flag that was declared with [`flags!`](flipswitch::flags).
///
/// The errors are the same as for [`Flags`].
///
/// ```
/// use flipswitch_actix::Flag;
///
/// flipswitch_actix::flags! {
///     /// Whether the checkout has one page.
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
    type Future = ExtractFuture<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> ExtractFuture<Self> {
        ExtractFuture::new(request, |flags| Self(integration::read::<F>(flags)))
    }
}

/// Future of the extractors [`Flags`] and [`Flag`].
pub struct ExtractFuture<T>(State<T>);

enum State<T> {
    Done(Option<Result<T, MissingMiddleware>>),
    Evaluating { flags: Pin<Box<dyn Future<Output = flipswitch::Flags>>>, read: fn(&flipswitch::Flags) -> T },
}

impl<T> ExtractFuture<T> {
    fn new(request: &HttpRequest, read: fn(&flipswitch::Flags) -> T) -> Self {
        Self(match request.flag_scope() {
            None => State::Done(Some(Err(MissingMiddleware(())))),
            Some(scope) => match scope.try_flags() {
                Some(flags) => State::Done(Some(Ok(read(&flags)))),
                None => State::Evaluating { flags: Box::pin(async move { scope.flags().await }), read },
            },
        })
    }
}

/// The value is never pinned.
impl<T> Unpin for ExtractFuture<T> {}

impl<T> Future for ExtractFuture<T> {
    type Output = Result<T, MissingMiddleware>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            // Pending when polled again after completion, like a fused future.
            State::Done(outcome) => outcome.take().map_or(Poll::Pending, Poll::Ready),
            State::Evaluating { flags, read } => flags.as_mut().poll(cx).map(|flags| Ok(read(&flags))),
        }
    }
}

impl<T> fmt::Debug for ExtractFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExtractFuture").finish_non_exhaustive()
    }
}

/// Access to the flags of a request without extractors: in middleware and guards.
///
/// ```
/// use actix_web::HttpRequest;
/// use flipswitch_actix::FlagsExt;
///
/// async fn greeting(request: HttpRequest) -> &'static str {
///     match request.flag_scope() {
///         Some(scope) if scope.flags().await.bool("new-greeting", false) => "Good day",
///         _ => "Hello",
///     }
/// }
/// # actix_web::web::get().to(greeting);
/// ```
pub trait FlagsExt {
    /// Returns the scope of the request, or `None` without a [`FlipswitchMiddleware`](crate::FlipswitchMiddleware).
    fn flag_scope(&self) -> Option<RequestScope>;

    /// Returns the flags of the request if they are available without waiting; see [`RequestScope::try_flags`].
    fn try_flags(&self) -> Option<Flags> {
        self.flag_scope()?.try_flags().map(Flags)
    }
}

impl FlagsExt for HttpRequest {
    fn flag_scope(&self) -> Option<RequestScope> {
        scope(&self.extensions())
    }
}

impl FlagsExt for ServiceRequest {
    fn flag_scope(&self) -> Option<RequestScope> {
        scope(&self.extensions())
    }
}

impl FlagsExt for GuardContext<'_> {
    fn flag_scope(&self) -> Option<RequestScope> {
        scope(&self.req_data())
    }
}

/// Returns the scope of a request whose flags are about to be read.
pub(crate) fn scope(extensions: &Extensions) -> Option<RequestScope> {
    integration::scope(extensions.get(), extensions).cloned()
}

/// Error of an extractor or gate without a [`FlipswitchMiddleware`](crate::FlipswitchMiddleware): a mistake in the
/// application, which is logged as an error. The response is 500.
#[derive(Clone, Copy, Debug)]
pub struct MissingMiddleware(pub(crate) ());

impl fmt::Display for MissingMiddleware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "No flags in this request: add `.wrap(FlipswitchMiddleware::new(provider))` to the app, scope or resource of \
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
        // Logged here, because a missing middleware is not a mistake for an `Option` of flags.
        tracing::error!(target: "flipswitch", "{self}");
        HttpResponse::build(self.status_code()).content_type(ContentType::plaintext()).body(self.to_string())
    }
}
