//! The scope in which a task runs, and futures that run in a scope.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    panic::Location,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use crate::request::{scope::RequestScope, warnings};

thread_local! {
    /// The scope of the future that the thread polls or drops.
    static CURRENT: Cell<Option<RequestScope>> = const { Cell::new(None) };
}

/// Exchanges the current scope with another one. Does nothing while the thread is ending.
fn swap(scope: &mut Option<RequestScope>) {
    let _ = CURRENT.try_with(|current| *scope = current.replace(scope.take()));
}

/// Makes a scope the current one until this value is dropped. Until then, it holds the scope that was current before.
struct Entered<'a>(&'a mut Option<RequestScope>);

impl<'a> Entered<'a> {
    fn new(scope: &'a mut Option<RequestScope>) -> Self {
        swap(scope);
        Self(scope)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        swap(self.0);
    }
}

impl RequestScope {
    /// Returns the scope in which the caller runs: the scope of a request inside the layer of a web crate, or one that was set
    /// with [`run`](Self::run) or [`InRequest`].
    #[must_use]
    pub fn current() -> Option<Self> {
        let clone = |current: &Cell<Option<Self>>| {
            let scope = current.take();
            current.set(scope.clone());
            scope
        };
        CURRENT.try_with(clone).ok()?
    }

    /// Runs a future in this scope. Inside the future, OpenFeature clients of the same provider evaluate flags with the context
    /// of this scope.
    ///
    /// For work that may outlive the request, use [`InRequest`].
    #[must_use = "futures do nothing unless polled"]
    pub fn run<F: Future>(self, future: F) -> Scoped<F> {
        Scoped { future: Some(future), scope: Some(self), is_response: false }
    }

    /// Calls a function in this scope.
    pub fn run_sync<T>(self, function: impl FnOnce() -> T) -> T {
        let mut scope = Some(self);
        let _entered = Entered::new(&mut scope);
        function()
    }

    /// Calls a function in this scope, and runs the future that it returns, which produces the response, in the same scope.
    // Inlined, because futures are large, and inlining saves one move.
    #[inline]
    pub(super) fn call<F: Future>(self, function: impl FnOnce() -> F) -> Scoped<F> {
        let mut calling = Calling(Some(self));
        let entered = Entered::new(&mut calling.0);
        let future = function();
        drop(entered);
        Scoped { future: Some(future), scope: calling.0.take(), is_response: true }
    }
}

/// The scope of a service that is called. If the call panics, there will be no response.
struct Calling(Option<RequestScope>);

impl Drop for Calling {
    fn drop(&mut self) {
        if let Some(scope) = &self.0 {
            scope.responded();
        }
    }
}

pin_project! {
    /// The future of [`RequestScope::run`].
    #[must_use = "futures do nothing unless polled"]
    pub struct Scoped<F> {
        // `None` once it is ready.
        #[pin]
        future: Option<F>,
        // While the future is being polled or dropped, the scope that was current before.
        scope: Option<RequestScope>,
        // Whether the response head counts as sent when the future ends.
        is_response: bool,
    }

    impl<F> PinnedDrop for Scoped<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if let Some(scope) = this.scope.as_ref().filter(|_| *this.is_response) {
                scope.responded();
            }
            if this.future.is_none() {
                return;
            }
            let _entered = Entered::new(this.scope);
            this.future.set(None);
        }
    }
}

impl<F> Scoped<F> {
    /// Returns the scope, or `None` while the future is being polled or dropped.
    #[must_use]
    pub fn scope(&self) -> Option<&RequestScope> {
        self.scope.as_ref()
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let entered = Entered::new(this.scope);
        let mut future = this.future;
        // The future is there until it is ready.
        let Some(running) = future.as_mut().as_pin_mut() else { return Poll::Pending };
        let output = running.poll(cx);
        if output.is_ready() {
            future.set(None);
            drop(entered);
            if let Some(scope) = this.scope.as_ref().filter(|_| *this.is_response) {
                scope.responded();
            }
        }
        output
    }
}

impl<F> fmt::Debug for Scoped<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scoped").finish_non_exhaustive()
    }
}

/// Carries the scope of a request into work outside its handler: spawned tasks, WebSockets, streamed bodies, background
/// jobs. Without it, a plain OpenFeature client in such work evaluates flags without a context.
///
/// The work reads the flags of the request until the response head has been sent, and the latest flags after that. Outside a web
/// crate's layer, it always reads the latest flags. A future that several requests share evaluates flags for the request that
/// polls it, unless the scope of one request is attached to it.
///
/// ```
/// use flipswitch::{Context, FlipswitchProvider, InRequest, RequestScope, serde_json::json};
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
/// # RequestScope::new(provider, Context::user("alice")).run(handler()).await;
/// # }
/// ```
pub trait InRequest: Future + Sized {
    /// Runs the future in the request of the caller. Outside a request, the future runs unchanged, and a warning that names the
    /// call site is logged once for each call site.
    #[must_use = "futures do nothing unless polled"]
    #[track_caller]
    fn with_current_scope(self) -> Carried<Self> {
        match RequestScope::current() {
            Some(scope) => self.with_scope(&scope),
            None => {
                warnings::carried_from_nowhere(Location::caller());
                Carried { work: Work::Unscoped { future: self } }
            }
        }
    }

    /// Runs the future in the request of a scope, for callers that do not run in that request, such as a streamed body.
    #[must_use = "futures do nothing unless polled"]
    fn with_scope(self, scope: &RequestScope) -> Carried<Self> {
        Carried { work: Work::Scoped { future: scope.carried().run(self) } }
    }
}

impl<F: Future> InRequest for F {}

pin_project! {
    /// The future of [`InRequest`].
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

    use std::{sync::Arc, task::Waker};

    use serde_json::json;

    use crate::{context::context::Context as FlagContext, provider::provider::FlipswitchProvider};

    fn scope(user: &str) -> RequestScope {
        RequestScope::new(FlipswitchProvider::in_memory(json!({})), FlagContext::user(user))
    }

    fn current() -> Option<String> {
        RequestScope::current().and_then(|scope| scope.context().targeting_key.clone())
    }

    /// Fails unless it is made, polled and dropped in the scope of a user.
    struct Probe(&'static str);

    impl Probe {
        fn new(user: &'static str) -> Self {
            assert_eq!(current().as_deref(), Some(user));
            Self(user)
        }
    }

    impl Future for Probe {
        type Output = ();

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            assert_eq!(current().as_deref(), Some(self.0));
            let inner = scope("inner").run_sync(|| {
                let inner = Probe::new("inner");
                RequestScope::current().unwrap().run(async { drop(inner) })
            });
            assert!(Box::pin(inner).as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
            assert_eq!(current().as_deref(), Some(self.0));
            Poll::Pending
        }
    }

    impl Drop for Probe {
        fn drop(&mut self) {
            assert_eq!(current().as_deref(), Some(self.0), "dropped");
        }
    }

    #[test]
    fn a_future_is_made_polled_and_dropped_in_its_scope() {
        let cx = &mut Context::from_waker(Waker::noop());
        let (mut alice, mut bob) =
            (Box::pin(scope("alice").call(|| Probe::new("alice"))), Box::pin(scope("bob").call(|| Probe::new("bob"))));
        for _ in 0..2 {
            assert!(alice.as_mut().poll(cx).is_pending() && bob.as_mut().poll(cx).is_pending());
            assert_eq!((current(), alice.scope().is_some()), (None, true));
        }
        // The same holds on another thread, and inside another scope.
        scope("bob").run_sync(|| drop(alice));
        std::thread::spawn(move || drop(bob)).join().unwrap();
        assert_eq!(current(), None);
    }

    #[test]
    fn a_response_has_left_when_its_future_is_ready_or_dropped_or_the_call_panics() {
        use crate::{provider::in_memory::InMemory, request::integration::ScopeBuilder};

        let flags = Arc::new(InMemory::new(serde_json::Map::new(), None));
        let provider = FlipswitchProvider::with_in_memory(Arc::clone(&flags));
        let scopes = ScopeBuilder::new(provider.clone());
        let cx = &mut Context::from_waker(Waker::noop());
        type End = dyn Fn(RequestScope, &mut Context<'_>);
        let ends: [&End; 3] = [
            &|scope, cx| assert!(Box::pin(scope.call(|| std::future::ready(()))).as_mut().poll(cx).is_ready()),
            &|scope, _| drop(scope.call(std::future::pending::<()>)),
            &|scope, _| {
                let panics = || scope.call(|| -> std::future::Ready<()> { panic!("expected") });
                assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
            },
        ];
        for end in ends {
            flags.set("on".to_owned(), false.into());
            let (mut head, ()) = http::Request::new(()).into_parts();
            let scope = scopes.open(&mut head);
            let carried = [scope.carried(), scope.carried().carried()];
            let is_on = |scope: &RequestScope| scope.try_flags().unwrap().bool("on", false);
            assert!(!is_on(&scope));
            flags.set("on".to_owned(), true.into());
            assert!(carried.iter().all(|carried| !is_on(carried)) && !is_on(&scope), "the request keeps its flags");
            end(scope.clone(), cx);
            assert!(carried.iter().all(is_on) && is_on(&scope), "then the latest flags");
        }
        // Without a layer, only carried work follows changes.
        let scope = RequestScope::new(provider, FlagContext::anonymous());
        let is_on = |scope: &RequestScope| scope.try_flags().unwrap().bool("on", false);
        assert!(is_on(&scope) && is_on(&scope.carried()));
        flags.set("on".to_owned(), false.into());
        assert!(is_on(&scope) && !is_on(&scope.carried()));
    }

    /// A future that is ready, and cannot be dropped.
    struct Undroppable;

    impl Future for Undroppable {
        type Output = ();

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            Poll::Ready(())
        }
    }

    impl Drop for Undroppable {
        fn drop(&mut self) {
            panic!("expected")
        }
    }

    #[test]
    fn a_response_has_left_even_if_its_future_panics_when_it_is_dropped() {
        use crate::{provider::in_memory::InMemory, request::integration::ScopeBuilder};

        let flags = Arc::new(InMemory::new(serde_json::Map::new(), None));
        let scopes = ScopeBuilder::new(FlipswitchProvider::with_in_memory(Arc::clone(&flags)));
        flags.set("on".to_owned(), false.into());
        let (mut head, ()) = http::Request::new(()).into_parts();
        let scope = scopes.open(&mut head);
        let is_on = |scope: &RequestScope| scope.try_flags().unwrap().bool("on", false);
        assert!(!is_on(&scope));
        flags.set("on".to_owned(), true.into());
        let mut response = Box::pin(scope.clone().call(|| Undroppable));
        let poll = || response.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(poll)).is_err());
        drop(response);
        assert!(is_on(&scope));
    }

    #[test]
    fn a_panic_restores_the_surrounding_scope() {
        let outer = scope("outer").run_sync(|| {
            let mut panics = Box::pin(scope("inner").run(async { panic!("expected") }));
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                panics.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            }));
            assert!(outcome.is_err());
            current()
        });
        assert_eq!((outer.as_deref(), current()), (Some("outer"), None));
    }

    fn assert_send<T: Send>() {}

    #[test]
    fn futures_in_a_scope_are_send() {
        assert_send::<Scoped<std::future::Ready<()>>>();
        assert_send::<Carried<std::future::Ready<()>>>();
        fn assert_shared<T: Send + Sync + Clone + 'static>() {}
        assert_shared::<RequestScope>();
    }
}
