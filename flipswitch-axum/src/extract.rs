//! Extractors: a handler's way to the request's flags.

use std::{convert::Infallible, fmt, ops::Deref};

use axum_core::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use flipswitch::{FlagDef, RequestScope};
use http::{StatusCode, request::Parts};

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
        let scope = parts.extensions.get::<RequestScope>()?;
        Some(Self(scope.flags().await.clone()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Flags {
    type Rejection = MissingLayer;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, MissingLayer> {
        Self::of(parts).await.ok_or(MissingLayer(()))
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
/// [`FlipswitchLayer`](crate::FlipswitchLayer) runs before the handler it is [`MissingLayer`].
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
        let scope = parts.extensions.get::<RequestScope>().ok_or(MissingLayer(()))?;
        Ok(Self(scope.flags().await.object(F::KEY, F::default_value())))
    }
}

/// Rejection of a handler that asks for flags where no [`FlipswitchLayer`](crate::FlipswitchLayer) runs before it: a
/// mistake in the application, answered with 500.
#[derive(Clone, Copy, Debug)]
pub struct MissingLayer(());

impl MissingLayer {
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
             `.route(..)`",
        )
    }
}

impl std::error::Error for MissingLayer {}

impl IntoResponse for MissingLayer {
    fn into_response(self) -> Response {
        (self.status(), self.body_text()).into_response()
    }
}
