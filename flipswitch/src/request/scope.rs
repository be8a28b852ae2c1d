//! One request: its provider, its context, and its flags.

use std::{
    any::Any,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use open_feature::EvaluationContext;
use parking_lot::Mutex;

use crate::{
    context::{
        context::{Context, Layer, PreparedContext},
        into_context::IntoContext,
    },
    provider::{flags::Flags, provider::FlipswitchProvider},
    request::{visitor::AnonymousCookie, warnings::SetupWarning},
};

/// How many different contexts of OpenFeature clients are remembered in a request.
const MAX_CLIENT_CONTEXTS: usize = 8;

/// The provider, the context and the flags of one request. A clone is the same scope.
///
/// The web crates open a scope in each request. Nothing is requested from the flag service until the first read, and all
/// parts of the request share one evaluation, also if they read at the same time.
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
pub struct RequestScope(Arc<Inner>);

struct Inner {
    provider: FlipswitchProvider,
    context: Context,
    /// The same context, decoded when it is first read.
    decoded: OnceLock<EvaluationContext>,
    flags: OnceLock<Flags>,
    /// The flags for contexts of OpenFeature clients, merged with that of the request.
    client_flags: Mutex<Vec<(PreparedContext, Flags)>>,
    was_read: AtomicBool,
    /// The cookie for a new visitor whose flags are read.
    cookie: Option<AnonymousCookie>,
    /// How to find out that the request's user was set after the scope was opened.
    missing_user: Option<MissingUser>,
    /// The scope of the request from which this one was carried into other work.
    origin: Option<RequestScope>,
}

/// The check for a user that was missing when the scope of a request was opened.
#[derive(Clone)]
pub(super) struct MissingUser {
    pub(super) name: &'static str,
    pub(super) is_present: Arc<IsPresent>,
}

/// Returns whether the extensions of a request have a user.
pub(super) type IsPresent = dyn Fn(&dyn Any) -> bool + Send + Sync;

impl RequestScope {
    /// Opens a scope for a context: a [`Context`](crate::Context), a [`PreparedContext`](crate::PreparedContext), an
    /// [`EvaluationContext`], a reference to one, or an `Option` of one; see [`IntoContext`]. `None` is anonymous.
    #[must_use]
    pub fn new(provider: FlipswitchProvider, context: impl IntoContext) -> Self {
        Self::open(provider, context.into_context().unwrap_or_default(), None, None)
    }

    pub(super) fn open(
        provider: FlipswitchProvider,
        mut context: Context,
        cookie: Option<AnonymousCookie>,
        missing_user: Option<MissingUser>,
    ) -> Self {
        context.arrange();
        Self(Arc::new(Inner {
            provider,
            context,
            decoded: OnceLock::new(),
            flags: OnceLock::new(),
            client_flags: Mutex::default(),
            was_read: AtomicBool::new(false),
            cookie,
            missing_user,
            origin: None,
        }))
    }

    /// Opens a scope for other work with the same provider and context. Its reads count as reads of this request.
    pub(super) fn carried(&self) -> Self {
        Self(Arc::new(Inner {
            provider: self.0.provider.clone(),
            context: self.0.context.clone(),
            decoded: OnceLock::new(),
            flags: OnceLock::new(),
            client_flags: Mutex::default(),
            was_read: AtomicBool::new(false),
            cookie: None,
            missing_user: None,
            // Not a chain: work may carry itself on without end.
            origin: Some(self.0.origin.clone().unwrap_or_else(|| self.clone())),
        }))
    }

    /// Returns the provider of the request.
    #[must_use]
    pub fn provider(&self) -> &FlipswitchProvider {
        &self.0.provider
    }

    /// Returns the context of the request, as it is sent: dates are RFC 3339 strings, structures are [`serde_json::Value`]s,
    /// and attributes that cannot be sent are missing.
    #[must_use]
    pub fn context(&self) -> &EvaluationContext {
        self.0.decoded.get_or_init(|| (&self.0.context).into())
    }

    /// Returns the flags of the request, evaluated at the first call. Never fails; see [`Flags`].
    ///
    /// Waits at most [`stale_wait`](crate::FlipswitchProviderBuilder::stale_wait) for a context with stale flags, at most
    /// [`miss_wait`](crate::FlipswitchProviderBuilder::miss_wait) for one without any, and not at all while the service
    /// fails.
    pub async fn flags(&self) -> &Flags {
        self.mark_read();
        self.evaluate().await
    }

    /// Returns the flags of the request if that needs no waiting: if they are evaluated already, if fresh flags are
    /// cached, or if no request is possible at present. Counts as a read.
    #[must_use]
    pub fn try_flags(&self) -> Option<&Flags> {
        self.mark_read();
        self.0.flags.get().or_else(|| {
            let flags = self.0.provider.try_flags(&self.0.context)?;
            Some(self.0.flags.get_or_init(|| flags))
        })
    }

    /// Returns the last known flags, which may be out of date, and requests new ones in the background.
    pub(super) fn last_known_flags(&self) -> Option<Flags> {
        self.try_flags().cloned().or_else(|| self.0.provider.last_known_flags(&self.0.context))
    }

    /// Evaluates the flags of the request, so that [`try_flags`](Self::try_flags) returns them. Does not count as a read.
    pub async fn prefetch(&self) {
        self.evaluate().await;
    }

    /// Returns whether the flags of the request were read.
    #[must_use]
    pub fn was_read(&self) -> bool {
        self.0.was_read.load(Ordering::Relaxed)
    }

    /// Returns the cookie for a new visitor, if flags were read.
    pub(super) fn new_cookie(&self) -> Option<&AnonymousCookie> {
        self.0.cookie.as_ref().filter(|_| self.was_read())
    }

    /// Warns if the request had no user when the scope was opened, and has one in its extensions now.
    pub(super) fn check_user(&self, extensions: &dyn Any) {
        if let Some(user) = self.0.missing_user.as_ref().filter(|user| (user.is_present)(extensions)) {
            SetupWarning::UserSetTooLate { user: user.name }.log(self.0.provider.warned());
        }
    }

    /// Returns the flags for the context of an OpenFeature client, which the request's context completes. The same context
    /// has the same flags in the whole request.
    pub(crate) async fn flags_with(&self, given: &EvaluationContext) -> Flags {
        if given.targeting_key.is_none() && given.custom_fields.is_empty() {
            return self.flags().await.clone();
        }
        let own = &self.0.context;
        if given.targeting_key.is_some() {
            let key = own.targeting_key();
            if key.is_some() && key != given.targeting_key {
                SetupWarning::OtherTargetingKey.log(self.0.provider.warned());
            }
        }
        let merged = Context::merge(own.clone(), given.into(), Layer::Lower).prepared();
        // Before a shortcut: additions that cannot be sent make no difference to the bytes.
        if let Some(invalid) = self.0.provider.report_left_out(merged.canonical()) {
            self.mark_read();
            return invalid;
        }
        let bytes = merged.canonical().bytes;
        if own.with_canonical(|own| own.bytes == bytes) {
            return self.flags().await.clone();
        }
        self.mark_read();
        let known = |contexts: &[(PreparedContext, Flags)]| {
            let same = contexts.iter().find(|(context, _)| context.canonical().bytes == bytes);
            same.map(|(_, flags)| flags.clone())
        };
        let before = known(&self.0.client_flags.lock());
        if let Some(flags) = before {
            return flags;
        }
        let flags = self.0.provider.flags(&merged).await;
        let mut contexts = self.0.client_flags.lock();
        // Another part of the request may have evaluated meanwhile.
        if let Some(flags) = known(&contexts) {
            return flags;
        }
        if contexts.len() < MAX_CLIENT_CONTEXTS {
            contexts.push((merged.clone(), flags.clone()));
        }
        flags
    }

    async fn evaluate(&self) -> &Flags {
        if let Some(flags) = self.0.flags.get() {
            return flags;
        }
        // Parts of the request that evaluate at the same time wait for the same answer, and the first one's flags are those
        // of the request.
        let flags = self.0.provider.flags(&self.0.context).await;
        self.0.flags.get_or_init(|| flags)
    }

    fn mark_read(&self) {
        self.0.was_read.store(true, Ordering::Relaxed);
        if let Some(origin) = &self.0.origin {
            origin.mark_read();
        }
    }
}

/// Shows the flags, if they are evaluated. Omits the context, which may hold personal data.
impl fmt::Debug for RequestScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestScope").field("flags", &self.0.flags.get()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scopes_that_are_carried_on_without_end_are_freed() {
        let first = RequestScope::new(FlipswitchProvider::in_memory(json!({})), Context::anonymous());
        let last = (0..1_000_000).fold(first.clone(), |scope, _| scope.carried());
        assert!(last.try_flags().is_some() && first.was_read());
    }

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
