//! One request of a web application: whose it is, and the flags that it was given.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;

use open_feature::EvaluationContext;
use tokio::sync::OnceCell;

use crate::{
    Flags, FlipswitchProvider,
    request::visitor::{Anonymous, Visitor, VisitorCookie},
    request::warnings::Misuse,
};

/// What OpenFeature clients added to a request's context is remembered up to this number of different additions.
const ADDITIONS: usize = 8;

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
    /// The flags for what clients added to the context.
    with_additions: Mutex<Vec<(EvaluationContext, Flags)>>,
    read: AtomicBool,
    /// What a visitor gets whose flags were read.
    cookie: Option<VisitorCookie>,
    /// The request from which this was carried into other work.
    origin: Option<RequestScope>,
}

impl RequestScope {
    /// Opens a scope for one request.
    #[must_use]
    pub fn new(provider: FlipswitchProvider, context: EvaluationContext) -> Self {
        Self::with(provider, context, None, None)
    }

    /// Opens a scope for a request whose context has to be found; see [`web::open`](crate::web::open).
    pub(crate) fn open<'a, I>(
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
        Self::with(provider.clone(), context, cookie, None)
    }

    fn with(
        provider: FlipswitchProvider,
        context: EvaluationContext,
        cookie: Option<VisitorCookie>,
        origin: Option<Self>,
    ) -> Self {
        let (flags, with_additions, read) = (OnceCell::new(), Mutex::default(), AtomicBool::new(false));
        Self(Arc::new(Inner { provider, context, flags, with_additions, read, cookie, origin }))
    }

    /// The same provider and context for other work, which reads for the same visitor.
    pub(crate) fn carried(&self) -> Self {
        Self::with(self.0.provider.clone(), self.0.context.clone(), None, Some(self.clone()))
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
    ///
    /// Waits at most [`max_wait`](crate::FlipswitchProviderBuilder::max_wait) for a context that is known and out of date,
    /// at most [`request_timeout`](crate::FlipswitchProviderBuilder::request_timeout) for one that is not known, and not at
    /// all while the service fails.
    pub async fn flags(&self) -> &Flags {
        self.mark_read();
        self.evaluated().await
    }

    /// Returns the flags of the request if that needs no waiting: they were evaluated before, memory has a fresh answer for
    /// the context, or the service cannot be asked at present. Asking counts as reading.
    #[must_use]
    pub fn flags_now(&self) -> Option<&Flags> {
        self.mark_read();
        self.0.flags.get().or_else(|| {
            let flags = self.0.provider.flags_now(&self.0.context)?;
            // Refused while somebody waits for an answer, which is the request's one then.
            let _ = self.0.flags.set(flags);
            self.0.flags.get()
        })
    }

    /// The last known flags, which may be out of date, for whoever can neither wait nor do without. They are asked for anew,
    /// for the next time.
    pub(crate) fn last_known(&self) -> Option<Flags> {
        self.mark_read();
        self.flags_now().cloned().or_else(|| self.0.provider.last_known(&self.0.context))
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

    /// The cookie of a new visitor; see [`web::new_cookie`](crate::web::new_cookie).
    pub(crate) fn new_cookie<'a>(&self, mut set: impl Iterator<Item = &'a [u8]>) -> Option<String> {
        let cookie = self.0.cookie.filter(|_| self.was_read())?;
        if set.any(|header| cookie.is_set_by(header)) { None } else { cookie.mint() }
    }

    /// Returns the flags for what an OpenFeature client gives, whose fields win over the request's own. The same addition
    /// has the same answer in the whole request.
    pub(crate) async fn flags_with(&self, given: &EvaluationContext) -> Flags {
        let own = &self.0.context;
        if given.targeting_key.is_none() && given.custom_fields.is_empty() {
            return self.flags().await.clone();
        }
        if given.targeting_key.is_some() && own.targeting_key.is_some() && given.targeting_key != own.targeting_key {
            Misuse::OtherTargetingKey.warn(&self.0.provider);
        }
        let mut merged = given.clone();
        merged.merge_missing(own);
        if merged == *own {
            return self.flags().await.clone();
        }
        self.mark_read();
        let known = |additions: &[(EvaluationContext, Flags)]| {
            additions.iter().find(|(context, _)| *context == merged).map(|(_, flags)| flags.clone())
        };
        let additions = || self.0.with_additions.lock();
        let before = known(&additions());
        if let Some(flags) = before {
            return flags;
        }
        let flags = self.0.provider.flags(&merged).await;
        let mut additions = additions();
        // Somebody else may have been answered meanwhile.
        if let Some(flags) = known(&additions) {
            return flags;
        }
        if additions.len() < ADDITIONS {
            additions.push((merged, flags.clone()));
        }
        flags
    }

    async fn evaluated(&self) -> &Flags {
        self.0.flags.get_or_init(|| self.0.provider.flags(&self.0.context)).await
    }

    fn mark_read(&self) {
        self.0.read.store(true, Ordering::Relaxed);
        if let Some(origin) = &self.0.origin {
            origin.mark_read();
        }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn debug_output_does_not_show_the_context() {
        let provider = FlipswitchProvider::in_memory(json!({"on": true}));
        let scope = RequestScope::new(provider, EvaluationContext::default().with_targeting_key("secret-user"));
        assert!(!format!("{scope:?}").contains("secret-user"));
        assert!(scope.flags_now().is_some());
        let shown = format!("{scope:?}");
        assert!(!shown.contains("secret-user") && shown.contains("flags: 1"), "{shown}");
    }

    #[test]
    fn what_is_known_at_once_is_the_requests_answer() {
        let test = crate::testing::TestFlags::new(json!({"on": true}));
        let scope = RequestScope::new(test.provider(), EvaluationContext::default());
        assert!(scope.flags_now().unwrap().bool("on", false));
        test.set("on", false);
        assert!(scope.flags_now().unwrap().bool("on", false));
        let later = futures_util::FutureExt::now_or_never(scope.flags()).unwrap();
        assert!(later.bool("on", false));
    }
}
