//! Extractors: how handlers read the flags of a request.

use std::{convert::Infallible, fmt, ops::Deref};

use axum_core::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use flipswitch::{FlagDef, RequestScope, integration};
use http::{Extensions, Request, StatusCode, request::Parts};

/// Extractor for the flags of the request, which are evaluated at their first use. All extractors of a request share them.
///
/// Dereferences to [`flipswitch::Flags`]. Without a [`FlipswitchLayer`](crate::FlipswitchLayer) the rejection is
/// [`MissingLayer`], and `Option<Flags>` is `None`.
///
/// ```
/// use flipswitch_axum::Flags;
///
/// async fn banner(flags: Flags) -> String {
///     flags.string("banner", "Welcome").to_owned()
/// }
/// # axum::Router::<()>::new().route("/", axum::routing::get(banner));
/// ```
#[derive(Clone, Debug)]
pub struct Flags(pub flipswitch::Flags);

impl Deref for Flags {
    type Target = flipswitch::Flags;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Flags {
    type Rejection = MissingLayer;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, MissingLayer> {
        flags(parts).await.map(Self).ok_or_else(MissingLayer::logged)
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for Flags {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Infallible> {
        Ok(flags(parts).await.map(Self))
    }
}

/// Extractor for the value of one flag that was declared with [`flags!`](flipswitch::flags).
///
/// The rejections are the same as for [`Flags`].
///
/// ```
/// use flipswitch_axum::Flag;
///
/// flipswitch_axum::flags! {
///     /// Whether the checkout has one page.
///     NewCheckout: bool = "new-checkout", default false;
/// }
///
/// async fn checkout(Flag(new): Flag<NewCheckout>) -> &'static str {
///     if new { "new" } else { "old" }
/// }
/// # axum::Router::<()>::new().route("/", axum::routing::get(checkout));
/// ```
#[derive(Debug)]
pub struct Flag<F: FlagDef>(pub F::Value);

impl<F: FlagDef, S: Send + Sync> FromRequestParts<S> for Flag<F> {
    type Rejection = MissingLayer;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, MissingLayer> {
        let flags = flags(parts).await.ok_or_else(MissingLayer::logged)?;
        Ok(Self(integration::read::<F>(&flags)))
    }
}

impl<F: FlagDef, S: Send + Sync> OptionalFromRequestParts<S> for Flag<F> {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Infallible> {
        Ok(flags(parts).await.map(|flags| Self(integration::read::<F>(&flags))))
    }
}

/// Access to the flags of a request without extractors: in middleware, and with tonic or plain hyper.
///
/// ```
/// use flipswitch_axum::FlagsExt;
///
/// async fn greeting<B>(request: http::Request<B>) -> &'static str {
///     match request.flag_scope() {
///         Some(scope) if scope.flags().await.bool("new-greeting", false) => "Good day",
///         _ => "Hello",
///     }
/// }
/// # let _ = greeting::<()>;
/// ```
pub trait FlagsExt {
    /// Returns the scope of the request, or `None` without a [`FlipswitchLayer`](crate::FlipswitchLayer).
    fn flag_scope(&self) -> Option<RequestScope>;

    /// Returns the flags of the request if they are available without waiting; see [`RequestScope::try_flags`].
    fn try_flags(&self) -> Option<Flags> {
        self.flag_scope()?.try_flags().map(Flags)
    }
}

impl FlagsExt for Extensions {
    fn flag_scope(&self) -> Option<RequestScope> {
        scope(self).cloned()
    }
}

impl FlagsExt for Parts {
    fn flag_scope(&self) -> Option<RequestScope> {
        scope(&self.extensions).cloned()
    }
}

impl<B> FlagsExt for Request<B> {
    fn flag_scope(&self) -> Option<RequestScope> {
        scope(self.extensions()).cloned()
    }
}

/// Returns the scope of a request whose flags are about to be read.
pub(crate) fn scope(extensions: &Extensions) -> Option<&RequestScope> {
    integration::scope(extensions.get(), extensions)
}

/// Returns the flags of a request. Evaluates them if necessary.
async fn flags(parts: &Parts) -> Option<flipswitch::Flags> {
    let scope = scope(&parts.extensions)?;
    match scope.try_flags() {
        Some(flags) => Some(flags),
        // Boxed, because the future of a handler, which is moved several times, contains this one.
        None => Some(Box::pin(scope.flags()).await),
    }
}

/// Rejection of an extractor or gate without a [`FlipswitchLayer`](crate::FlipswitchLayer): a mistake in the application. It is
/// logged as an error, and the response is 500.
#[derive(Clone, Copy, Debug)]
pub struct MissingLayer(());

impl MissingLayer {
    /// Creates and logs the rejection.
    pub(crate) fn logged() -> Self {
        let rejection = Self(());
        tracing::error!(target: "flipswitch", "{rejection}");
        rejection
    }

    /// Returns the status of the response, 500.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }

    /// Returns the text of the response: what to add, and where.
    #[must_use]
    pub fn body_text(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for MissingLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "No flags in this request: add `.layer(FlipswitchLayer::new(provider))` to the router of this route, after \
             `.route(..)` and after any `FlagGate`",
        )
    }
}

impl std::error::Error for MissingLayer {}

impl IntoResponse for MissingLayer {
    fn into_response(self) -> Response {
        (self.status(), self.body_text()).into_response()
    }
}
