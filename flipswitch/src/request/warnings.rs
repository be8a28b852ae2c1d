//! Mistakes of applications that show while they run.

use std::{
    fmt,
    sync::atomic::{AtomicU8, Ordering},
};

use crate::FlipswitchProvider;

/// A mistake in how an application is put together, which shows in its requests. Each is told once per provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misuse {
    /// Two layers open a scope in the same request.
    TwoLayers,
    /// The user was not there when the scope was opened, and was there when a flag was read.
    UserFoundLater {
        /// Name of the user's type.
        user: &'static str,
    },
    /// A function that finds the context of a request panicked.
    ContextPanicked,
    /// A guard was asked about a flag that was not in memory.
    GuardWithoutFlags {
        /// Key of the flag.
        key: &'static str,
    },
    /// OpenFeature's global context has a targeting key.
    GlobalTargetingKey,
    /// An OpenFeature client evaluated for another targeting key than that of the request in which it was called.
    OtherTargetingKey,
}

impl Misuse {
    /// Logs a warning, the first time that this kind of mistake shows with this provider.
    pub fn warn(self, provider: &FlipswitchProvider) {
        if provider.told().is_news(self) {
            tracing::warn!(target: "flipswitch", "{self}");
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::TwoLayers => 1,
            Self::UserFoundLater { .. } => 1 << 1,
            Self::ContextPanicked => 1 << 2,
            Self::GuardWithoutFlags { .. } => 1 << 3,
            Self::GlobalTargetingKey => 1 << 4,
            Self::OtherTargetingKey => 1 << 5,
        }
    }
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TwoLayers => f.write_str(
                "two layers of Flipswitch are around the same handler: the inner one decides; keep one of them, or put them \
                 beside each other, around different routes",
            ),
            Self::UserFoundLater { user } => write!(
                f,
                "no `{user}` was in the request when Flipswitch looked for its user, but there was one when a flag was \
                 read: requests are evaluated anonymously. What finds the user must run before Flipswitch: add it to the \
                 application after Flipswitch, since what is added last runs first",
            ),
            Self::ContextPanicked => f.write_str(
                "a function given to `with_user` or `with_context` panicked: requests are evaluated without what it would \
                 have told. If it needs what another middleware leaves in the request, such as a session, add that to the \
                 application after Flipswitch, since what is added last runs first",
            ),
            Self::GuardWithoutFlags { key } => write!(
                f,
                "the guard `flag_on` took the default of {key:?}, since the request's flags were not in memory: a guard \
                 cannot wait for them; have them fetched before with `Flipswitch::new(provider).prefetch(true)`, around \
                 what is guarded",
            ),
            Self::GlobalTargetingKey => f.write_str(
                "OpenFeature's global context has a targeting key: it goes before that of every request, so that an \
                 OpenFeature client evaluates all users as this one; leave the targeting key to the requests",
            ),
            Self::OtherTargetingKey => f.write_str(
                "an OpenFeature client evaluated in a request for another targeting key than the request's: the one that \
                 the caller, the client or the global context gives goes first; if it was not meant, remove it there",
            ),
        }
    }
}

/// Which mistakes were told.
#[derive(Debug, Default)]
pub(crate) struct Told(AtomicU8);

impl Told {
    fn is_news(&self, misuse: Misuse) -> bool {
        self.0.fetch_or(misuse.bit(), Ordering::Relaxed) & misuse.bit() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mistake_is_news_once() {
        let all = [
            Misuse::TwoLayers,
            Misuse::UserFoundLater { user: "User" },
            Misuse::ContextPanicked,
            Misuse::GuardWithoutFlags { key: "flag" },
            Misuse::GlobalTargetingKey,
            Misuse::OtherTargetingKey,
        ];
        let told = Told::default();
        for misuse in all {
            assert!(told.is_news(misuse), "{misuse}");
        }
        for misuse in all {
            assert!(!told.is_news(misuse), "{misuse}");
        }
    }
}
