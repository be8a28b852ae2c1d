//! What a function that builds a context may return.

use open_feature::EvaluationContext;

/// Return type of functions that build the context of a request: an [`EvaluationContext`], or an `Option` of one.
///
/// `None` means that the function has no part in the context, for example because a session has no user. If the function
/// panics, it counts as `None`, and a warning is logged once.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no evaluation context",
    label = "return an `EvaluationContext` or an `Option<EvaluationContext>`"
)]
pub trait IntoContext {
    /// Returns the context, or `None` if there is no user.
    fn into_context(self) -> Option<EvaluationContext>;
}

impl IntoContext for EvaluationContext {
    fn into_context(self) -> Option<EvaluationContext> {
        Some(self)
    }
}

impl IntoContext for Option<EvaluationContext> {
    fn into_context(self) -> Option<EvaluationContext> {
        self
    }
}
