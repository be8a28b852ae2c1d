//! One request of a web application: whose it is, and the flags that it was given.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use open_feature::EvaluationContext;
use tokio::sync::OnceCell;

use crate::{
    Flags, FlipswitchProvider,
    anonymous::{Anonymous, Visitor, VisitorCookie},
    misuse::Misuse,
};

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
    read: AtomicBool,
    /// What a visitor gets whose flags were read.
    cookie: Option<VisitorCookie>,
}

impl RequestScope {
    /// Opens a scope for one request.
    #[must_use]
    pub fn new(provider: FlipswitchProvider, context: EvaluationContext) -> Self {
        Self::with_cookie(provider, context, None)
    }

    /// Opens a scope for a request whose context has to be found: by the functions that an application gave, and in the
    /// request's headers.
    ///
    /// What is known of the `user` and what is known of the `request` are merged, and the user's fields win. Without a user
    /// and without a targeting key, `anonymous` says who the visitor is; `headers` gives the values of all headers of a
    /// name. A function that panics finds nothing, which is logged once.
    #[must_use]
    pub fn for_request<'a, I>(
        provider: &FlipswitchProvider,
        user: impl FnOnce() -> Option<EvaluationContext>,
        request: impl FnOnce() -> Option<EvaluationContext>,
        anonymous: &Anonymous,
        headers: impl FnOnce(&str) -> I,
    ) -> Self
    where
        I: Iterator<Item = &'a [u8]>,
    {
        let (user, request) = (contained(provider, user), contained(provider, request));
        let has_user = user.is_some();
        let mut context = match (user, request) {
            (Some(mut user), Some(request)) => {
                user.merge_missing(&request);
                user
            }
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => EvaluationContext::default(),
        };
        let mut cookie = None;
        if !has_user && context.targeting_key.is_none() {
            match anonymous.find(headers) {
                Visitor::Known(key) => context.targeting_key = Some(key),
                Visitor::New(new) => cookie = Some(new),
                Visitor::Nobody => {}
            }
        }
        Self::with_cookie(provider.clone(), context, cookie)
    }

    fn with_cookie(provider: FlipswitchProvider, context: EvaluationContext, cookie: Option<VisitorCookie>) -> Self {
        Self(Arc::new(Inner { provider, context, flags: OnceCell::new(), read: AtomicBool::new(false), cookie }))
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
        self.0.read.store(true, Ordering::Relaxed);
        self.evaluated().await
    }

    /// Returns the flags of the request if that needs no waiting: they were evaluated before, memory has a fresh answer for
    /// the context, or the service cannot be asked at present.
    #[must_use]
    pub fn flags_now(&self) -> Option<&Flags> {
        self.0.read.store(true, Ordering::Relaxed);
        self.0.flags.get().or_else(|| {
            let flags = self.0.provider.flags_now(&self.0.context)?;
            // Refused while somebody waits for an answer, which is the request's one then.
            let _ = self.0.flags.set(flags);
            self.0.flags.get()
        })
    }

    /// Evaluates the flags of the request, so that [`flags_now`](Self::flags_now) has them. This is not reading them.
    pub async fn prefetch(&self) {
        self.evaluated().await;
    }

    /// Returns whether something has read the flags of the request.
    #[must_use]
    pub fn was_read(&self) -> bool {
        self.0.read.load(Ordering::Relaxed)
    }

    /// Returns the value of the `Set-Cookie` header that the response to the request should have, if it should: flags were
    /// read for a visitor who has no cookie yet (see [`Anonymous::cookie`]). Each call makes another visitor.
    #[must_use]
    pub fn new_cookie(&self) -> Option<String> {
        self.0.cookie.filter(|_| self.was_read())?.mint()
    }

    /// Merges the context below one that a caller gives, whose fields win; `None` if nothing comes of it that is not the
    /// request's own. The flags count as read.
    pub(crate) fn merged_below(&self, given: &EvaluationContext) -> Option<EvaluationContext> {
        let own = &self.0.context;
        self.0.read.store(true, Ordering::Relaxed);
        if given.targeting_key.is_none() && given.custom_fields.is_empty() {
            return None;
        }
        if given.targeting_key.is_some() && own.targeting_key.is_some() && given.targeting_key != own.targeting_key {
            Misuse::OtherTargetingKey.warn(&self.0.provider);
        }
        let mut merged = given.clone();
        merged.merge_missing(own);
        (merged != *own).then_some(merged)
    }

    /// The same provider and context, with nothing read yet.
    pub(crate) fn renewed(&self) -> Self {
        Self::new(self.0.provider.clone(), self.0.context.clone())
    }

    async fn evaluated(&self) -> &Flags {
        self.0.flags.get_or_init(|| self.0.provider.flags(&self.0.context)).await
    }
}

/// Asks a function of the application's, which may panic.
fn contained(
    provider: &FlipswitchProvider,
    find: impl FnOnce() -> Option<EvaluationContext>,
) -> Option<EvaluationContext> {
    catch_unwind(AssertUnwindSafe(find)).unwrap_or_else(|_| {
        Misuse::ContextPanicked.warn(provider);
        None
    })
}

/// Shows the flags, if they were evaluated; never the context, which may hold personal data.
impl fmt::Debug for RequestScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestScope").field("flags", &self.0.flags.get()).finish_non_exhaustive()
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
