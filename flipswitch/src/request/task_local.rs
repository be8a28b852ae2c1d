//! The scope that a task runs in, so that code below a handler needs no context handed down to it.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::task::futures::TaskLocalFuture;

use crate::RequestScope;

tokio::task_local! {
    static CURRENT: RequestScope;
}

impl RequestScope {
    /// Returns the scope that the caller runs in: below the layer of a web package, and wherever it was carried to by
    /// [`scope`](Self::scope) or [`InRequest`].
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Runs a future in this scope: an OpenFeature client in it, of the same provider, evaluates in this context where its
    /// caller gives none. Work that goes on beside the request is better carried by [`InRequest`], which gives it an answer
    /// of its own.
    #[must_use = "futures do nothing unless polled"]
    pub fn scope<F: Future>(self, future: F) -> Scoped<F> {
        Scoped { future: CURRENT.scope(self, future) }
    }

    /// Calls a function in this scope.
    pub fn sync_scope<T>(self, function: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, function)
    }
}

pin_project! {
    /// Future that runs in a [`RequestScope`]; made by [`RequestScope::scope`].
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

/// Carries the provider and the context of a request into work that does not run below its handler: spawned tasks, streamed
/// bodies, background jobs. Without it, a plain OpenFeature client there evaluates anonymously.
///
/// The work gets an answer of its own, evaluated when it first reads a flag, since it may go on for long after the request.
/// A future that several requests share evaluates for the one that polls it: carry it into one.
///
/// ```
/// use flipswitch::{
///     FlipswitchProvider, InRequest, RequestScope,
///     open_feature::EvaluationContext,
///     serde_json::json,
/// };
///
/// async fn handler() {
///     // Runs in a request, and so does what it spawns.
///     let mail = async { RequestScope::current().map(|scope| scope.context().clone()) };
///     let sent_to = tokio::spawn(mail.in_current_request()).await.ok().flatten();
///     assert_eq!(sent_to.and_then(|context| context.targeting_key).as_deref(), Some("alice"));
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let provider = FlipswitchProvider::in_memory(json!({}));
/// # let alice = EvaluationContext::default().with_targeting_key("alice");
/// # RequestScope::new(provider, alice).scope(handler()).await;
/// # }
/// ```
pub trait InRequest: Future + Sized {
    /// Carries the request that the caller runs in. Outside of any, the future runs as it is.
    #[must_use = "futures do nothing unless polled"]
    fn in_current_request(self) -> Carried<Self> {
        match RequestScope::current() {
            Some(scope) => self.in_request_of(&scope),
            None => Carried { work: Work::Alone { future: self } },
        }
    }

    /// Carries the request of a scope, for where that is at hand and the caller does not run in it, such as a streamed body.
    #[must_use = "futures do nothing unless polled"]
    fn in_request_of(self, scope: &RequestScope) -> Carried<Self> {
        Carried { work: Work::Scoped { future: scope.carried().scope(self) } }
    }
}

impl<F: Future> InRequest for F {}

pin_project! {
    /// Future that was carried into a request; made by [`InRequest`].
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
        Alone { #[pin] future: F },
    }
}

impl<F: Future> Future for Carried<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().work.project() {
            WorkProjection::Scoped { future } => future.poll(cx),
            WorkProjection::Alone { future } => future.poll(cx),
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

    /// What spawning needs.
    fn assert_send<T: Send>() {}

    #[test]
    fn what_carries_work_can_be_sent_if_the_work_can() {
        assert_send::<Scoped<std::future::Ready<()>>>();
        assert_send::<Carried<std::future::Ready<()>>>();
        fn assert_shared<T: Send + Sync + Clone + 'static>() {}
        assert_shared::<RequestScope>();
    }
}
