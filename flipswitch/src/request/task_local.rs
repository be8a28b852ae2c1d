//! The scope in which a task runs.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::task::futures::TaskLocalFuture;

use crate::request::scope::RequestScope;

tokio::task_local! {
    static CURRENT: RequestScope;
}

impl RequestScope {
    /// Returns the scope in which the caller runs: that of a request below the layer of a web crate, or one set with
    /// [`run`](Self::run) or [`InRequest`].
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Runs a future in this scope. In it, OpenFeature clients of the same provider evaluate with this context.
    ///
    /// For work that continues alongside the request, use [`InRequest`], which evaluates its own flags.
    #[must_use = "futures do nothing unless polled"]
    pub fn run<F: Future>(self, future: F) -> Scoped<F> {
        Scoped { future: CURRENT.scope(self, future) }
    }

    /// Calls a function in this scope.
    pub fn run_sync<T>(self, function: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, function)
    }
}

pin_project! {
    /// Future of [`RequestScope::run`].
    #[must_use = "futures do nothing unless polled"]
    pub struct Scoped<F> {
        #[pin]
        future: TaskLocalFuture<RequestScope, F>,
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().future.poll(cx)
    }
}

impl<F> fmt::Debug for Scoped<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scoped").finish_non_exhaustive()
    }
}

/// Carries the provider and the context of a request into work outside its handler: spawned tasks, streamed bodies,
/// background jobs. Without it, a plain OpenFeature client there evaluates without a context.
///
/// The work has its own flags, evaluated when it first reads one, because it may continue long after the request. A future
/// that several requests share would evaluate for the request that polls it: carry it into one of them.
///
/// ```
/// use flipswitch::{EvaluationContext, FlipswitchProvider, InRequest, RequestScope, serde_json::json};
///
/// async fn handler() {
///     // Runs in a request, and so does the task that it spawns.
///     let mail = async { RequestScope::current().map(|scope| scope.context().clone()) };
///     let sent_to = tokio::spawn(mail.with_current_scope()).await.ok().flatten();
///     assert_eq!(sent_to.and_then(|context| context.targeting_key).as_deref(), Some("alice"));
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let provider = FlipswitchProvider::in_memory(json!({}));
/// # let alice = EvaluationContext::default().with_targeting_key("alice");
/// # RequestScope::new(provider, alice).run(handler()).await;
/// # }
/// ```
pub trait InRequest: Future + Sized {
    /// Runs the future in the request of the caller. Outside of a request, the future runs unchanged.
    #[must_use = "futures do nothing unless polled"]
    fn with_current_scope(self) -> Carried<Self> {
        match RequestScope::current() {
            Some(scope) => self.with_scope(&scope),
            None => Carried { work: Work::Unscoped { future: self } },
        }
    }

    /// Runs the future in the request of a scope. For callers that do not run in that request, such as a streamed body.
    #[must_use = "futures do nothing unless polled"]
    fn with_scope(self, scope: &RequestScope) -> Carried<Self> {
        Carried { work: Work::Scoped { future: scope.carried().run(self) } }
    }
}

impl<F: Future> InRequest for F {}

pin_project! {
    /// Future of [`InRequest`].
    #[must_use = "futures do nothing unless polled"]
    pub struct Carried<F> {
        #[pin]
        work: Work<F>,
    }
}

pin_project! {
    #[project = WorkProjection]
    enum Work<F> {
        Scoped { #[pin] future: Scoped<F> },
        Unscoped { #[pin] future: F },
    }
}

impl<F: Future> Future for Carried<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().work.project() {
            WorkProjection::Scoped { future } => future.poll(cx),
            WorkProjection::Unscoped { future } => future.poll(cx),
        }
    }
}

impl<F> fmt::Debug for Carried<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carried").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_send<T: Send>() {}

    #[test]
    fn futures_in_a_scope_are_send() {
        assert_send::<Scoped<std::future::Ready<()>>>();
        assert_send::<Carried<std::future::Ready<()>>>();
        fn assert_shared<T: Send + Sync + Clone + 'static>() {}
        assert_shared::<RequestScope>();
    }
}
