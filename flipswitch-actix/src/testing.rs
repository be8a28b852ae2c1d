//! For tests of handlers and gates by themselves: requests that have flags without a middleware.

use actix_web::HttpMessage;
use flipswitch::{RequestScope, open_feature::EvaluationContext, serde_json::Value, testing::TestFlags};

/// Gives a request of a test its flags, as the middleware would. Where the middleware is part of what is tested, hand that a
/// provider [in memory](flipswitch::FlipswitchProvider::in_memory) or [`TestFlags`] instead.
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

impl<R: HttpMessage> WithFlags for R {
    fn with_scope(self, scope: RequestScope) -> Self {
        self.extensions_mut().insert(scope);
        self
    }
}
