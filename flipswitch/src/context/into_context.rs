//! The types that can be used as a context.

use open_feature::EvaluationContext;

use crate::context::{
    canonical::{self, Canonical},
    context::{Context, PreparedContext},
};

/// Types that an evaluation accepts as its context, and that functions which build the context of a request can return.
///
/// Implemented for [`Context`], [`PreparedContext`] and [`EvaluationContext`], for references to them, and for an `Option` of
/// any of these.
///
/// A function that builds the context of a request returns `None` if the request has no user, for example if nobody is signed in.
/// If the function panics, the result is `None`, and a warning is logged once. With `None`, the evaluation is anonymous.
///
/// Applications can implement the trait for their own types:
///
/// ```
/// use flipswitch::{Context, IntoContext};
///
/// struct User {
///     id: String,
///     plan: &'static str,
/// }
///
/// impl IntoContext for &User {
///     fn into_context(self) -> Option<Context> {
///         Some(Context::user(&self.id).with("plan", self.plan))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a context",
    label = "expected a `Context`, a `PreparedContext`, an `EvaluationContext`, or an `Option` of one",
    note = "for a `Result`, call `.ok()`; for another type, implement `IntoContext`"
)]
pub trait IntoContext: Sized {
    /// Returns the context, or `None` if there is no user.
    fn into_context(self) -> Option<Context>;

    /// Calls a function with the context in the form that the caller passed.
    #[doc(hidden)]
    fn view<T>(self, view: impl FnOnce(View<'_>) -> T) -> T {
        let context = self.into_context().unwrap_or_default();
        context.with_canonical(|canonical| view(View::Canonical(canonical)))
    }
}

/// A context as the caller passed it.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// Without a canonical form.
    Fields(&'a EvaluationContext),
    /// In its canonical form.
    Canonical(Canonical<'a>),
}

impl View<'_> {
    /// Calls a function with the canonical form.
    pub(crate) fn with_canonical<T>(self, call: impl FnOnce(Canonical<'_>) -> T) -> T {
        match self {
            Self::Fields(context) => canonical::with_written(context, call),
            Self::Canonical(canonical) => call(canonical),
        }
    }
}

impl IntoContext for Context {
    fn into_context(mut self) -> Option<Context> {
        self.arrange();
        Some(self)
    }
}

impl IntoContext for &Context {
    fn into_context(self) -> Option<Context> {
        self.clone().into_context()
    }

    fn view<T>(self, view: impl FnOnce(View<'_>) -> T) -> T {
        self.with_canonical(|canonical| view(View::Canonical(canonical)))
    }
}

impl IntoContext for PreparedContext {
    fn into_context(self) -> Option<Context> {
        Some(self.into())
    }

    fn view<T>(self, view: impl FnOnce(View<'_>) -> T) -> T {
        IntoContext::view(&self, view)
    }
}

impl IntoContext for &PreparedContext {
    fn into_context(self) -> Option<Context> {
        Some(self.clone().into())
    }

    fn view<T>(self, view: impl FnOnce(View<'_>) -> T) -> T {
        view(View::Canonical(self.canonical()))
    }
}

impl IntoContext for EvaluationContext {
    fn into_context(self) -> Option<Context> {
        Some(self.into())
    }

    fn view<T>(self, view: impl FnOnce(View<'_>) -> T) -> T {
        view(View::Fields(&self))
    }
}

impl IntoContext for &EvaluationContext {
    fn into_context(self) -> Option<Context> {
        Some(self.into())
    }

    fn view<T>(self, view: impl FnOnce(View<'_>) -> T) -> T {
        view(View::Fields(self))
    }
}

impl<C: IntoContext> IntoContext for Option<C> {
    fn into_context(self) -> Option<Context> {
        self?.into_context()
    }

    fn view<T>(self, view: impl FnOnce(View<'_>) -> T) -> T {
        match self {
            Some(context) => context.view(view),
            None => Context::anonymous().view(view),
        }
    }
}
