//! For tests of handlers and gates by themselves: requests that have flags without a layer.

use flipswitch::{RequestScope, open_feature::EvaluationContext, serde_json::Value, testing::TestFlags};
use http::{Request, request::Builder};

/// Gives a request of a test its flags, as the layer would. Where the layer is part of what is tested, hand that a provider
/// [in memory](flipswitch::FlipswitchProvider::in_memory) or [`TestFlags`] instead.
///
/// ```
/// use axum::{Router, body::{Body, to_bytes}, http::Request, routing::get};
/// use flipswitch_axum::{Flags, flipswitch::serde_json::json, testing::WithFlags};
/// use tower::ServiceExt;
///
/// async fn checkout(flags: Flags) -> &'static str {
///     if flags.bool("new-checkout", false) { "new" } else { "old" }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// for (on, expected) in [(true, "new"), (false, "old")] {
///     let request = Request::new(Body::empty()).with_flags(json!({"new-checkout": on}));
///     let response = Router::new().route("/", get(checkout)).oneshot(request).await.unwrap();
///     assert_eq!(to_bytes(response.into_body(), 100).await.unwrap(), expected);
/// }
/// # }
/// ```
pub trait WithFlags: Sized {
    /// Puts a scope into the request: a provider, and whom the request is from.
    #[must_use]
    fn with_scope(self, scope: RequestScope) -> Self;

    /// Gives the request these flags, an object `{"key": value, ..}`, from nobody in particular.
    ///
    /// # Panics
    ///
    /// If `flags` is not an object.
    #[must_use]
    #[track_caller]
    fn with_flags(self, flags: Value) -> Self {
        self.with_scope(RequestScope::new(TestFlags::new(flags).provider(), EvaluationContext::default()))
    }
}

impl<B> WithFlags for Request<B> {
    fn with_scope(mut self, scope: RequestScope) -> Self {
        self.extensions_mut().insert(scope);
        self
    }
}

impl WithFlags for Builder {
    fn with_scope(self, scope: RequestScope) -> Self {
        self.extension(scope)
    }
}
