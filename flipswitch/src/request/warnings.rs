//! Warnings about the setup of an application.

use std::{fmt, panic::Location};

use parking_lot::Mutex;

use crate::provider::provider::FlipswitchProvider;

/// A mistake in the setup of an application that shows in its requests. Each kind is logged once per provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetupWarning {
    /// Two layers open a scope in the same request.
    DuplicateLayer,
    /// The user was set after the scope was opened, and before a flag was read.
    UserSetTooLate {
        /// Name of the user's type.
        user: &'static str,
    },
    /// A function that builds the context of a request, or another function that was passed to the layer, panicked.
    ContextPanicked,
    /// A guard needed a flag that was not in memory.
    GuardWithoutFlags {
        /// Key of the flag.
        key: &'static str,
    },
    /// OpenFeature's global context has a targeting key.
    GlobalTargetingKey,
    /// An OpenFeature client evaluated flags for a targeting key that is not the targeting key of its request.
    OtherTargetingKey,
    /// An OpenFeature client evaluated flags without a targeting key, outside any request that has one.
    ClientOutsideOfRequest,
    /// An OpenFeature client evaluated flags in a request of another provider.
    ClientOfOtherProvider,
    /// A CORS preflight reached a gate.
    PreflightAtGate,
    /// A response that shared caches may store would have set a visitor cookie.
    CookieInSharedResponse,
    /// Visitors get cookies, but there is neither a secret nor an API key to authenticate them with.
    CookieWithoutSecret,
    /// An override token, or a value in it, was ignored.
    OverrideIgnored {
        /// The reason.
        problem: &'static str,
    },
    /// Overrides contain a flag that is not allowed.
    OverrideNotAllowed,
    /// Overrides contain a value that does not have the type of its flag.
    OverrideOfOtherType,
    /// A browser has sent a targeting key that is not the targeting key of its request.
    BrowserTargetingKey,
    /// There are routes for browsers, but neither a secret nor a long API key to derive names and tags from.
    BrowserWithoutSecret,
}

/// Maximum number of places that are named because they call `with_current_scope` outside any request.
const MAX_PLACES: usize = 32;

/// Warns that a place in the code carries the current request into work, but runs outside any request. Each place is named once.
#[cold]
pub(super) fn carried_from_nowhere(place: &'static Location<'static>) {
    static NAMED: Mutex<Vec<&Location<'static>>> = Mutex::new(Vec::new());
    let mut named = NAMED.lock();
    if named.len() >= MAX_PLACES || named.contains(&place) {
        return;
    }
    named.push(place);
    drop(named);
    tracing::warn!(
        target: "flipswitch", %place,
        "`with_current_scope()` was called outside any request, so the work evaluates flags anonymously; in the handler, take \
         the `RequestScope`, and use `with_scope(&scope)`"
    );
}

impl SetupWarning {
    /// Logs the warning, unless one of its kind has been logged before.
    pub(crate) fn log(self, provider: &FlipswitchProvider) {
        if provider.warned().is_first(self.kind()) {
            provider.runtime().span().in_scope(|| tracing::warn!(target: "flipswitch", "{self}"));
        }
    }

    fn kind(self) -> u16 {
        match self {
            Self::DuplicateLayer => 1,
            Self::UserSetTooLate { .. } => 1 << 1,
            Self::ContextPanicked => 1 << 2,
            Self::GuardWithoutFlags { .. } => 1 << 3,
            Self::GlobalTargetingKey => 1 << 4,
            Self::OtherTargetingKey => 1 << 5,
            Self::ClientOutsideOfRequest => 1 << 6,
            Self::ClientOfOtherProvider => 1 << 7,
            Self::PreflightAtGate => 1 << 8,
            Self::CookieInSharedResponse => 1 << 9,
            Self::CookieWithoutSecret => 1 << 10,
            Self::OverrideIgnored { .. } => 1 << 11,
            Self::OverrideNotAllowed => 1 << 12,
            Self::OverrideOfOtherType => 1 << 13,
            Self::BrowserTargetingKey => 1 << 14,
            Self::BrowserWithoutSecret => 1 << 15,
        }
    }
}

/// Where to add a middleware so that it runs before Flipswitch.
const ORDERS: &str = "With axum's `Router::layer` and actix-web's `App::wrap`, add it after Flipswitch, because what is added \
                      last runs first; in a `tower::ServiceBuilder`, add it before Flipswitch";

impl fmt::Display for SetupWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DuplicateLayer => f.write_str(
                "two Flipswitch layers of the same provider surround a handler, and only the inner one takes effect; remove one \
                 of them, or add them to different routes",
            ),
            Self::UserSetTooLate { user } => write!(
                f,
                "the request had no `{user}` when Flipswitch looked for its user, but had one when a flag was read: \
                 flags are evaluated anonymously. The middleware that sets the user must run before Flipswitch. {ORDERS}",
            ),
            Self::ContextPanicked => write!(
                f,
                "a function that was passed to `with_inspection`, `with_user`, `with_context` or `consent` panicked, and is \
                 ignored. If it needs data that another middleware sets in the request, such as a session, that middleware must \
                 run before Flipswitch. {ORDERS}",
            ),
            Self::GuardWithoutFlags { key } => write!(
                f,
                "the guard `flag_on` used the default of {key:?}, because the flags of the request were not in memory, and a \
                 guard cannot wait for them; prefetch them with `FlipswitchMiddleware::new(provider).prefetch(true)` around \
                 the guarded routes",
            ),
            Self::GlobalTargetingKey => f.write_str(
                "OpenFeature's global context has a targeting key, which takes precedence over the targeting key of every request: \
                 an OpenFeature client evaluates flags for this key instead of the user; set the targeting key only in requests",
            ),
            Self::OtherTargetingKey => f.write_str(
                "an OpenFeature client in a request evaluated flags for a targeting key that is not the request's: the key of \
                 the caller, the client or the global context takes precedence; if this is not intended, remove that key",
            ),
            Self::ClientOutsideOfRequest => f.write_str(
                "an OpenFeature client evaluated flags anonymously, outside any request and without a targeting key. In work \
                 that a request started (spawned tasks, WebSockets, streamed bodies, libraries that spawn), carry the request \
                 along (`with_current_scope()` or `with_scope(&scope)` of `InRequest`). Elsewhere, pass a targeting key if the \
                 flags depend on the user",
            ),
            Self::ClientOfOtherProvider => f.write_str(
                "an OpenFeature client evaluated flags anonymously, in a request of another Flipswitch provider and without a \
                 targeting key: the layer of the client's own provider is not around this handler. Add it, or pass the client a \
                 context",
            ),
            Self::PreflightAtGate => f.write_str(
                "a CORS preflight reached a gate, which refuses it: browsers send preflights without credentials. The CORS \
                 middleware must run before the gate: add the CORS layer after the gate",
            ),
            Self::CookieInSharedResponse => f.write_str(
                "a visitor received no cookie, because shared caches may store the response (`public`, `s-maxage` or `max-age` \
                 without `private`, or `Expires`), and would give the cookie to others. Mark responses that depend on flags \
                 `private` or `no-store`",
            ),
            Self::CookieWithoutSecret => f.write_str(
                "visitor cookies are authenticated with a random key, because the provider has no `secret`, API key or \
                 token. After a restart, and in other instances, returning visitors count as new; set a `secret`",
            ),
            Self::OverrideIgnored { problem } => write!(
                f,
                "flag overrides in a request are ignored: {problem}. Further occurrences are logged at debug level",
            ),
            Self::OverrideNotAllowed => f.write_str(
                "an override is ignored, because its flag is not allowed; pass the flag to `SignedOverrides::allow`. The key of \
                 the flag is logged at debug level",
            ),
            Self::OverrideOfOtherType => f.write_str(
                "an override is ignored, because its value does not have the type of the flag; mint it with a value of the \
                 flag's type",
            ),
            Self::BrowserWithoutSecret => f.write_str(
                "the names of users and the tags in the routes for browsers differ from process to process, because there is no \
                 `secret`, and no API key of 16 bytes or more to use instead; set a `secret`, the same in all instances",
            ),
            Self::BrowserTargetingKey => f.write_str(
                "a browser sent a targeting key that is not the key of its user, and received the flags of its user, because the \
                 layer determines the user. Remove the targeting key from the page, or use `connect` of `flipswitch.js`",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_warning_is_of_its_own_kind() {
        let all = [
            SetupWarning::DuplicateLayer,
            SetupWarning::UserSetTooLate { user: "User" },
            SetupWarning::ContextPanicked,
            SetupWarning::GuardWithoutFlags { key: "flag" },
            SetupWarning::GlobalTargetingKey,
            SetupWarning::OtherTargetingKey,
            SetupWarning::ClientOutsideOfRequest,
            SetupWarning::ClientOfOtherProvider,
            SetupWarning::PreflightAtGate,
            SetupWarning::CookieInSharedResponse,
            SetupWarning::CookieWithoutSecret,
            SetupWarning::OverrideIgnored { problem: "the token has expired" },
            SetupWarning::OverrideNotAllowed,
            SetupWarning::OverrideOfOtherType,
        ];
        let warned = crate::warn_once::WarnOnce::default();
        for warning in all {
            assert!(warned.is_first(warning.kind()), "{warning}");
        }
    }
}
