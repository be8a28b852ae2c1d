//! Warnings about the setup of an application.

use std::fmt;

use crate::warn_once::WarnOnce;

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
    /// A function that builds the context of a request panicked.
    ContextPanicked,
    /// A guard needed a flag that was not in memory.
    GuardWithoutFlags {
        /// Key of the flag.
        key: &'static str,
    },
    /// OpenFeature's global context has a targeting key.
    GlobalTargetingKey,
    /// An OpenFeature client evaluated for another targeting key than that of its request.
    OtherTargetingKey,
}

impl SetupWarning {
    /// Logs the warning, unless one of its kind was logged before.
    pub(crate) fn log(self, warned: &WarnOnce) {
        if warned.is_first(self.kind()) {
            tracing::warn!(target: "flipswitch", "{self}");
        }
    }

    fn kind(self) -> u8 {
        match self {
            Self::DuplicateLayer => 1,
            Self::UserSetTooLate { .. } => 1 << 1,
            Self::ContextPanicked => 1 << 2,
            Self::GuardWithoutFlags { .. } => 1 << 3,
            Self::GlobalTargetingKey => 1 << 4,
            Self::OtherTargetingKey => 1 << 5,
        }
    }
}

impl fmt::Display for SetupWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DuplicateLayer => f.write_str(
                "two Flipswitch layers surround the same handler, and the inner one decides; remove one of them, or add \
                 them to different routes",
            ),
            Self::UserSetTooLate { user } => write!(
                f,
                "the request had no `{user}` when Flipswitch looked for its user, but had one when a flag was read: \
                 requests are evaluated anonymously. The middleware that sets the user must run before Flipswitch: add it \
                 to the application after Flipswitch, because the middleware that is added last runs first",
            ),
            Self::ContextPanicked => f.write_str(
                "a function passed to `with_user` or `with_context` panicked, and its context is ignored. If it needs what \
                 another middleware sets in the request, such as a session, add that middleware to the application after \
                 Flipswitch, because the middleware that is added last runs first",
            ),
            Self::GuardWithoutFlags { key } => write!(
                f,
                "the guard `flag_on` used the default of {key:?}, because the flags of the request were not in memory, and a \
                 guard cannot wait for them; prefetch them with `FlipswitchMiddleware::new(provider).prefetch(true)` around \
                 the guarded routes",
            ),
            Self::GlobalTargetingKey => f.write_str(
                "OpenFeature's global context has a targeting key, which takes precedence over that of every request: an \
                 OpenFeature client evaluates all users as this one; set the targeting key in requests only",
            ),
            Self::OtherTargetingKey => f.write_str(
                "an OpenFeature client evaluated in a request for another targeting key than the request's: the key of the \
                 caller, the client or the global context takes precedence; remove it there if that is not intended",
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
        ];
        let warned = WarnOnce::default();
        for warning in all {
            assert!(warned.is_first(warning.kind()), "{warning}");
        }
    }
}
