//! Extractors: a handler's way to the request's flags.

use std::{convert::Infallible, fmt, ops::Deref};

use axum_core::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use flipswitch::{FlagDef, RequestScope, web};
use http::{Extensions, Request, StatusCode, request::Parts};

use crate::layer;

/// The flags of the request. As an extractor it evaluates at first use; all extractors of a request share one answer.
///
/// Dereferences to [`flipswitch::Flags`]. `Option<Flags>` is `None` where no
/// [`FlipswitchLayer`](crate::FlipswitchLayer) runs before the handler; plain `Flags` is [`MissingLayer`] there.
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

impl Flags {
    async fn of(parts: &Parts) -> Option<Self> {
        let scope = parts.scope()?;
        Some(Self(scope.flags().await.clone()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Flags {
    type Rejection = MissingLayer;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, MissingLayer> {
        Self::of(parts).await.ok_or_else(MissingLayer::found)
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for Flags {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Infallible> {
        Ok(Self::of(parts).await)
    }
}

/// The value of one flag that was declared with [`flags!`](flipswitch::flags).
///
/// Evaluated as [`Flags`] are: however many a handler takes, all of a request share one answer. Where no
/// [`FlipswitchLayer`](crate::FlipswitchLayer) runs before the handler it is [`MissingLayer`], and `Option<Flag<..>>` is
/// `None`.
///
/// ```
/// use flipswitch_axum::Flag;
///
/// flipswitch_axum::flipswitch::flags! {
///     /// The checkout on one page.
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
        let scope = parts.scope().ok_or_else(MissingLayer::found)?;
        Ok(Self(web::read::<F>(scope.flags().await)))
    }
}

impl<F: FlagDef, S: Send + Sync> OptionalFromRequestParts<S> for Flag<F> {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Infallible> {
        Ok(match parts.scope() {
            Some(scope) => Some(Self(web::read::<F>(scope.flags().await))),
            None => None,
        })
    }
}

/// The request's scope where there are no extractors: in middleware, under tonic or bare hyper.
///
/// ```
/// use flipswitch_axum::FlagsExt;
///
/// async fn greeting<B>(request: http::Request<B>) -> &'static str {
///     match request.scope() {
///         Some(scope) if scope.flags().await.bool("new-greeting", false) => "Good day",
///         _ => "Hello",
///     }
/// }
/// # let _ = greeting::<()>;
/// ```
pub trait FlagsExt {
    /// Returns the scope of the request: its provider, context and flags. `None` where no
    /// [`FlipswitchLayer`](crate::FlipswitchLayer) ran before.
    fn scope(&self) -> Option<&RequestScope>;
}

impl FlagsExt for Extensions {
    fn scope(&self) -> Option<&RequestScope> {
        layer::scope(self)
    }
}

impl FlagsExt for Parts {
    fn scope(&self) -> Option<&RequestScope> {
        self.extensions.scope()
    }
}

impl<B> FlagsExt for Request<B> {
    fn scope(&self) -> Option<&RequestScope> {
        self.extensions().scope()
    }
}

/// Rejection of a handler or gate that asks for flags where no [`FlipswitchLayer`](crate::FlipswitchLayer) runs before it:
/// a mistake in the application, answered with 500, and logged as an error.
#[derive(Clone, Copy, Debug)]
pub struct MissingLayer(());

impl MissingLayer {
    /// A request without flags, which is logged.
    pub(crate) fn found() -> Self {
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
