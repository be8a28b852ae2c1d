//! One request: its provider, its context, and its flags.

use std::{
    any::Any,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use open_feature::EvaluationContext;
use parking_lot::Mutex;

use crate::{
    context::{
        context::{Context, Layer, PreparedContext},
        into_context::IntoContext,
    },
    provider::{browsers::BrowserId, flags::Flags, inspection::Inspection, provider::FlipswitchProvider},
    request::{overrides::Overrides, visitor::VisitorCookie, warnings::SetupWarning},
};

/// Maximum number of different OpenFeature client contexts that are remembered in a request.
const MAX_CLIENT_CONTEXTS: usize = 8;

/// The provider, the context and the flags of one request. A clone is a handle to the same scope.
///
/// The web crates open a scope in each request. Nothing is requested from the flag service until the first read, and all
/// parts of the request share one evaluation, even if they read at the same time.
///
/// Work that continues after the response head has been sent, such as a WebSocket or a streamed body, reads the latest flags
/// instead: each read of the scope is then a new evaluation. To keep the flags of the request, keep the [`Flags`].
///
/// ```
/// use flipswitch::{Context, FlipswitchProvider, RequestScope, serde_json::json};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let provider = FlipswitchProvider::in_memory(json!({"new-checkout": true}));
/// let scope = RequestScope::new(provider, Context::user("alice"));
///
/// // Code that runs in the scope can find it without a parameter.
/// let is_new = scope.run(async {
///     let scope = RequestScope::current().expect("runs in a scope");
///     scope.flags().await.bool("new-checkout", false)
/// });
/// assert!(is_new.await);
/// # }
/// ```
#[derive(Clone)]
pub struct RequestScope {
    request: Arc<Request>,
    /// Whether it belongs to work that may outlive the request; see [`InRequest`](crate::InRequest).
    is_carried: bool,
}

struct Request {
    provider: FlipswitchProvider,
    context: Context,
    /// The same context, decoded when it is first read. Boxed like other fields that are rarely needed, because each request has
    /// a scope.
    decoded: OnceLock<Box<EvaluationContext>>,
    flags: OnceLock<Flags>,
    /// The flags for contexts of OpenFeature clients, which are merged with the context of the request.
    client_flags: Mutex<Vec<(PreparedContext, Flags)>>,
    was_read: AtomicBool,
    /// Whether the targeting key identifies a visitor without an account.
    is_visitor: bool,
    /// Whether the response contains data of one user.
    is_private: AtomicBool,
    /// The cookie for a new visitor whose flags are read.
    cookie: Option<Arc<VisitorCookie>>,
    /// The check for a user that was set after the scope was opened.
    missing_user: Option<Arc<MissingUser>>,
    /// Whether the response head has been sent. `None` without a layer, because only a layer can tell.
    has_responded: Option<AtomicBool>,
    /// The scope of the surrounding layer, if there is one. Used if it belongs to another provider.
    outer: OnceLock<RequestScope>,
    /// The overrides and the inspection, if there are any.
    aids: Option<Box<TestAids>>,
}

/// The overrides and the inspection of a request, for testers.
pub(super) struct TestAids {
    pub(super) overrides: Option<Arc<Overrides>>,
    pub(super) inspection: Option<Arc<Inspection>>,
}

impl TestAids {
    /// Returns the flags as the request reads them. `targeting_key` belongs to their context, and `own` to the request.
    fn apply(
        &self,
        mut flags: Flags,
        targeting_key: Option<&str>,
        own: Option<&str>,
        provider: &FlipswitchProvider,
    ) -> Flags {
        let overlay =
            self.overrides.as_ref().and_then(|overrides| overrides.for_context(targeting_key, targeting_key == own));
        if let Some(overlay) = overlay {
            let has_misfits;
            (flags, has_misfits) = flags.overridden(overlay);
            if has_misfits {
                SetupWarning::OverrideOfOtherType.log(provider);
            }
        }
        match &self.inspection {
            Some(inspection) => flags.recorded(Arc::<Inspection>::clone(inspection)),
            None => flags,
        }
    }
}

/// The check for a user that was missing when the scope of a request was opened.
pub(super) struct MissingUser {
    pub(super) name: &'static str,
    pub(super) is_present: Box<IsPresent>,
}

/// Returns whether the extensions of a request have a user.
pub(super) type IsPresent = dyn Fn(&dyn Any) -> bool + Send + Sync;

impl RequestScope {
    /// Opens a scope for a context: a [`Context`](crate::Context), a [`PreparedContext`](crate::PreparedContext), an
    /// [`EvaluationContext`], a reference to one, or an `Option` of one; see [`IntoContext`]. `None` is anonymous.
    #[must_use]
    pub fn new(provider: FlipswitchProvider, context: impl IntoContext) -> Self {
        Self::open(provider, context.into_context().unwrap_or_default(), false, None, None, None, None)
    }

    pub(super) fn open(
        provider: FlipswitchProvider,
        mut context: Context,
        is_visitor: bool,
        cookie: Option<Arc<VisitorCookie>>,
        missing_user: Option<Arc<MissingUser>>,
        has_responded: Option<AtomicBool>,
        aids: Option<Box<TestAids>>,
    ) -> Self {
        context.arrange();
        let request = Request {
            provider,
            context,
            decoded: OnceLock::new(),
            flags: OnceLock::new(),
            client_flags: Mutex::default(),
            was_read: AtomicBool::new(false),
            is_visitor,
            is_private: AtomicBool::new(false),
            cookie,
            missing_user,
            has_responded,
            outer: OnceLock::new(),
            aids,
        };
        Self { request: Arc::new(request), is_carried: false }
    }

    /// Returns the scope for work that may outlive the request.
    pub(super) fn carried(&self) -> Self {
        Self { request: Arc::clone(&self.request), is_carried: true }
    }

    /// Records that the response head has been sent, or that there will be none.
    pub(super) fn responded(&self) {
        if let Some(has_responded) = &self.request.has_responded {
            has_responded.store(true, Ordering::Relaxed);
        }
    }

    /// Sets the scope of a surrounding layer.
    pub(super) fn set_outer(&self, outer: RequestScope) {
        // Set once, when the scope is opened.
        let _ = self.request.outer.set(outer);
    }

    /// Returns the scope of this request that belongs to a provider: this scope, or the scope of a surrounding layer.
    pub(crate) fn of(&self, provider: &FlipswitchProvider) -> Option<Self> {
        let mut scope = self;
        while !scope.request.provider.is_same(provider) {
            scope = scope.request.outer.get()?;
        }
        Some(Self { request: Arc::clone(&scope.request), is_carried: self.is_carried })
    }

    /// Returns whether reads return the flags of the request instead of the latest flags.
    fn is_in_request(&self) -> bool {
        match &self.request.has_responded {
            Some(has_responded) => !has_responded.load(Ordering::Relaxed),
            None => !self.is_carried,
        }
    }

    /// Returns the provider of the request.
    #[must_use]
    pub fn provider(&self) -> &FlipswitchProvider {
        &self.request.provider
    }

    /// Returns the context of the request, as it is sent: dates are RFC 3339 strings, structures are [`serde_json::Value`]s,
    /// and attributes that cannot be sent are missing.
    #[must_use]
    pub fn context(&self) -> &EvaluationContext {
        self.request.decoded.get_or_init(|| Box::new((&self.request.context).into()))
    }

    /// Returns the flags of the request, which are evaluated at the first call. Once the response head has been sent, returns the
    /// latest flags. Never fails; see [`Flags`].
    ///
    /// Waits at most [`stale_wait`](crate::FlipswitchProviderBuilder::stale_wait) for a context with stale flags, at most
    /// [`miss_wait`](crate::FlipswitchProviderBuilder::miss_wait) for one without any, and not at all while the service is
    /// failing.
    pub async fn flags(&self) -> Flags {
        if !self.is_in_request() {
            return self.latest_flags().await;
        }
        self.mark_read();
        self.evaluate().await.clone()
    }

    /// Returns the latest flags for the context of the request, for work that continues while flags change. Waits like
    /// [`flags`](Self::flags).
    ///
    /// ```
    /// use flipswitch::{Context, FlipswitchProvider, RequestScope, serde_json::json};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let provider = FlipswitchProvider::in_memory(json!({"chat": true}));
    /// let scope = RequestScope::new(provider, Context::user("alice"));
    /// let mut messages = ["hello"].into_iter();
    /// while let Some(message) = messages.next() {
    ///     if !scope.latest_flags().await.bool("chat", false) {
    ///         break;
    ///     }
    ///     println!("{message}");
    /// }
    /// # }
    /// ```
    pub async fn latest_flags(&self) -> Flags {
        self.mark_read();
        self.present(self.request.provider.flags(&self.request.context).await)
    }

    /// Returns the same flags as [`flags`](Self::flags) if that call would not wait: if the flags are already evaluated, if fresh
    /// flags are cached, or if no request is currently possible. Counts as a read.
    #[must_use]
    pub fn try_flags(&self) -> Option<Flags> {
        self.mark_read();
        let evaluate = || self.request.provider.try_flags(&self.request.context).map(|flags| self.present(flags));
        if !self.is_in_request() {
            return evaluate();
        }
        let flags = &self.request.flags;
        flags.get().or_else(|| evaluate().map(|evaluated| flags.get_or_init(|| evaluated))).cloned()
    }

    /// Returns the last known flags, which may be out of date, and requests new ones in the background.
    pub(super) fn last_known_flags(&self) -> Option<Flags> {
        let last_known = || self.request.provider.last_known_flags(&self.request.context);
        self.try_flags().or_else(|| last_known().map(|flags| self.present(flags)))
    }

    /// Evaluates the flags of the request, so that [`try_flags`](Self::try_flags) returns them. Does not count as a read.
    pub async fn prefetch(&self) {
        if self.is_in_request() {
            self.evaluate().await;
        } else {
            drop(self.request.provider.flags(&self.request.context).await);
        }
    }

    /// Returns whether the flags of the request were read.
    #[must_use]
    pub fn was_read(&self) -> bool {
        self.request.was_read.load(Ordering::Relaxed)
    }

    /// Returns the cookie for a new visitor, if flags were read.
    pub(super) fn new_cookie(&self) -> Option<&VisitorCookie> {
        self.request.cookie.as_deref().filter(|_| self.was_read())
    }

    /// Warns if the request had no user when the scope was opened, and has one in its extensions now.
    pub(super) fn check_user(&self, extensions: &dyn Any) {
        if let Some(user) = self.request.missing_user.as_ref().filter(|user| (user.is_present)(extensions)) {
            SetupWarning::UserSetTooLate { user: user.name }.log(&self.request.provider);
        }
    }

    /// Returns the flags for the context of an OpenFeature client, which is merged with the context of the request. The same
    /// context has the same flags throughout the request.
    pub(crate) async fn flags_with(&self, given: &EvaluationContext) -> Flags {
        if given.targeting_key.is_none() && given.custom_fields.is_empty() {
            return self.flags().await;
        }
        let own = &self.request.context;
        if given.targeting_key.is_some() {
            let key = own.targeting_key();
            if key.is_some() && key != given.targeting_key {
                SetupWarning::OtherTargetingKey.log(&self.request.provider);
            }
        }
        let merged = Context::merge(own.clone(), given.into(), Layer::Lower).prepared();
        // Must precede the comparison below, because attributes that cannot be sent do not affect the bytes.
        if let Some(invalid) = self.request.provider.report_left_out(merged.canonical()) {
            self.mark_read();
            return invalid;
        }
        let bytes = merged.canonical().bytes;
        if own.with_canonical(|own| own.bytes == bytes) {
            return self.flags().await;
        }
        self.mark_read();
        let present = |flags| self.present_for(flags, || merged.targeting_key());
        if !self.is_in_request() {
            return present(self.request.provider.flags(&merged).await);
        }
        let known = |contexts: &[(PreparedContext, Flags)]| {
            let same = contexts.iter().find(|(context, _)| context.canonical().bytes == bytes);
            same.map(|(_, flags)| flags.clone())
        };
        let before = known(&self.request.client_flags.lock());
        if let Some(flags) = before {
            return flags;
        }
        let flags = present(self.request.provider.flags(&merged).await);
        let mut contexts = self.request.client_flags.lock();
        // Another part of the request may have evaluated the flags in the meantime.
        if let Some(flags) = known(&contexts) {
            return flags;
        }
        if contexts.len() < MAX_CLIENT_CONTEXTS {
            contexts.push((merged.clone(), flags.clone()));
        }
        flags
    }

    /// Returns the flags for a browser: the flags of the request, or the flags for its context with additional attributes. With
    /// `since`, they come from a request that was sent at that time or later.
    pub(super) async fn flags_for_browser(&self, merged: Option<&PreparedContext>, since: Option<Instant>) -> Flags {
        let provider = &self.request.provider;
        let flags = match (merged, since) {
            (None, None) => return self.flags().await,
            (Some(merged), None) => provider.flags(merged).await,
            (Some(merged), Some(since)) => provider.flags_since(&Context::from(merged.clone()), since).await,
            (None, Some(since)) => provider.flags_since(&self.request.context, since).await,
        };
        self.mark_read();
        // The attributes of a browser do not change the user.
        self.present(flags)
    }

    /// Returns the context of the request.
    pub(super) fn own_context(&self) -> &Context {
        &self.request.context
    }

    /// Returns the id to which the limits for browsers apply.
    pub(super) fn browser_id(&self) -> BrowserId {
        BrowserId::of(&self.request.context, self.request.is_visitor)
    }

    /// Records that the response contains data of one user.
    pub(super) fn mark_private(&self) {
        self.request.is_private.store(true, Ordering::Relaxed);
    }

    /// Returns whether the response must be kept out of shared caches.
    pub(super) fn is_private(&self) -> bool {
        self.request.is_private.load(Ordering::Relaxed) || self.has_overrides()
    }

    async fn evaluate(&self) -> &Flags {
        if let Some(flags) = self.request.flags.get() {
            return flags;
        }
        // Parts of the request that evaluate flags at the same time wait for the same response. The flags of the first part
        // become the flags of the request.
        let flags = self.present(self.request.provider.flags(&self.request.context).await);
        self.request.flags.get_or_init(|| flags)
    }

    /// Returns flags for the request's context as the request reads them.
    fn present(&self, flags: Flags) -> Flags {
        self.present_for(flags, || self.targeting_key())
    }

    /// Returns flags for a context with this targeting key as the request reads them.
    fn present_for(&self, flags: Flags, targeting_key: impl FnOnce() -> Option<String>) -> Flags {
        match &self.request.aids {
            None => flags,
            Some(aids) => {
                let own = self.targeting_key();
                aids.apply(flags, targeting_key().as_deref(), own.as_deref(), &self.request.provider)
            }
        }
    }

    /// Returns the targeting key of the request's context.
    pub(super) fn targeting_key(&self) -> Option<String> {
        self.request.context.targeting_key()
    }

    /// Returns whether the request has [overrides](crate::SignedOverrides), regardless of the flags that it reads.
    #[must_use]
    pub fn has_overrides(&self) -> bool {
        self.request.aids.as_ref().is_some_and(|aids| aids.overrides.is_some())
    }

    /// Returns the inspection of the request, if it is inspected.
    pub(super) fn inspection(&self) -> Option<&Inspection> {
        self.request.aids.as_ref()?.inspection.as_deref()
    }

    fn mark_read(&self) {
        self.request.was_read.store(true, Ordering::Relaxed);
    }
}

/// Shows the flags, if they are evaluated. Omits the context, which may contain personal data.
impl fmt::Debug for RequestScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestScope").field("flags", &self.request.flags.get()).finish_non_exhaustive()
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
        assert!(scope.try_flags().is_some());
        let shown = format!("{scope:?}");
        assert!(!shown.contains("secret-user") && shown.contains("flags: 1"), "{shown}");
    }
}
