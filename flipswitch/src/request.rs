//! One request of a web application: whose it is, and the flags that it was given.

use std::{fmt, sync::Arc};

use open_feature::EvaluationContext;
use tokio::sync::OnceCell;

use crate::{Flags, FlipswitchProvider};

/// One request's provider, context and flags. The web crates put one into each request; a clone is the same scope.
///
/// Nothing is asked of the flag service before the first read, and however many parts of the request read, also at the
/// same time, they share one answer.
#[derive(Clone)]
pub struct RequestScope(Arc<Inner>);

struct Inner {
    provider: FlipswitchProvider,
    context: EvaluationContext,
    flags: OnceCell<Flags>,
}

impl RequestScope {
    /// Opens a scope for one request.
    #[must_use]
    pub fn new(provider: FlipswitchProvider, context: EvaluationContext) -> Self {
        Self(Arc::new(Inner { provider, context, flags: OnceCell::new() }))
    }

    /// Opens a scope for one request, whose context is merged from what is known of its user and what is known of the
    /// request: the user's fields win, and neither gives the anonymous context.
    #[must_use]
    pub fn for_user(
        provider: FlipswitchProvider,
        user: Option<EvaluationContext>,
        request: Option<EvaluationContext>,
    ) -> Self {
        let context = match (user, request) {
            (Some(mut user), Some(request)) => {
                user.merge_missing(&request);
                user
            }
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => EvaluationContext::default(),
        };
        Self::new(provider, context)
    }

    /// Returns the provider that evaluates for the request.
    #[must_use]
    pub fn provider(&self) -> &FlipswitchProvider {
        &self.0.provider
    }

    /// Returns the context of the request.
    #[must_use]
    pub fn context(&self) -> &EvaluationContext {
        &self.0.context
    }

    /// Returns the flags of the request, evaluated at the first call. Never fails; see [`Flags`].
    pub async fn flags(&self) -> &Flags {
        self.0.flags.get_or_init(|| self.0.provider.flags(&self.0.context)).await
    }

    /// Returns the flags of the request if something has read them before.
    #[must_use]
    pub fn flags_now(&self) -> Option<&Flags> {
        self.0.flags.get()
    }
}

/// Shows whether flags were read; never the context, which may hold personal data.
impl fmt::Debug for RequestScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestScope").field("flags", &self.flags_now()).finish_non_exhaustive()
    }
}

/// What a function that looks for a request's context may return: a context, or `None` where it finds no user.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no evaluation context",
    label = "return an `EvaluationContext` or an `Option<EvaluationContext>`"
)]
pub trait IntoContext {
    /// Returns the context, or `None` to fall through to the anonymous one.
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
