//! Requests with flags, for tests of handlers and gates without the middleware.

use actix_web::HttpMessage;
use flipswitch::{EvaluationContext, RequestScope, serde_json::Value, testing::TestFlags};

/// Gives a test request its flags, as the middleware would. To test the middleware as well, pass it an [in-memory
/// provider](flipswitch::FlipswitchProvider::in_memory) or the provider of [`TestFlags`]. Flags set here have no effect in the
/// middleware, because the middleware replaces them with its provider's flags.
///
/// ```
/// use actix_web::{App, test, web};
/// use flipswitch_actix::{Flags, flipswitch::serde_json::json, testing::WithFlags};
///
/// async fn checkout(flags: Flags) -> &'static str {
///     if flags.bool("new-checkout", false) { "new" } else { "old" }
/// }
///
/// # #[actix_web::main]
/// # async fn main() {
/// let app = test::init_service(App::new().route("/", web::get().to(checkout))).await;
/// for (on, expected) in [(true, "new"), (false, "old")] {
///     let request = test::TestRequest::get().to_request().with_flags(json!({"new-checkout": on}));
///     assert_eq!(test::call_and_read_body(&app, request).await, expected);
/// }
/// # }
/// ```
pub trait WithFlags: Sized {
    /// Puts a scope into the extensions of the request.
    #[must_use]
    fn with_scope(self, scope: RequestScope) -> Self;

    /// Puts a scope with these flags and an empty context into the extensions of the request.
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

impl<R: HttpMessage> WithFlags for R {
    fn with_scope(self, scope: RequestScope) -> Self {
        self.extensions_mut().insert(scope);
        self
    }
}
