//! Requests with flags, for tests of handlers and gates without the layer.

use flipswitch::{EvaluationContext, RequestScope, serde_json::Value, testing::TestFlags};
use http::{Request, request::Builder};

/// Gives a test request its flags, as the layer would. To test the layer as well, pass it an [in-memory
/// provider](flipswitch::FlipswitchProvider::in_memory) or the provider of [`TestFlags`]. Flags set here have no effect inside
/// the layer, because the layer replaces them with its provider's flags.
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
    /// Puts a scope into the request.
    #[must_use]
    fn with_scope(self, scope: RequestScope) -> Self;

    /// Puts a scope with these flags and an empty context into the request.
    ///
    /// # Panics
    ///
    /// Panics if `flags` is not a JSON object of flag keys and values.
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
