//! The rule of a gate, which determines whether a request may pass.

use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    error::FlagError,
    flag_type::FlagType,
    flags::{declare::FlagDef, evaluation::FlagEvaluation},
    provider::flags::Flags,
    request::{scope::RequestScope, warnings::SetupWarning},
};

/// The name of a flag: its key, or a flag declared with [`flags!`](crate::flags).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not the name of a flag",
    label = "pass the flag's key, a `&'static str`, or a flag declared with `flags!`"
)]
pub trait FlagKey {
    /// Returns the key of the flag.
    fn key(&self) -> &'static str;
}

impl FlagKey for &'static str {
    fn key(&self) -> &'static str {
        self
    }
}

impl<F: FlagDef> FlagKey for F {
    fn key(&self) -> &'static str {
        F::KEY
    }
}

/// A flag that a gate can check: either the key of a boolean flag, which defaults to `false`, or a boolean flag declared with
/// [`flags!`](crate::flags), which has its own default.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a boolean flag",
    label = "pass the flag's key, a `&'static str`, or a flag declared with `flags!` as `bool`"
)]
pub trait GateFlag: FlagKey {
    /// Returns the value that is used if the flag has none.
    fn default_on(&self) -> bool;
}

impl GateFlag for &'static str {
    fn default_on(&self) -> bool {
        false
    }
}

// Otherwise, for a flag of a different type, the compiler would report mismatched types and not mention gates.
#[diagnostic::do_not_recommend]
impl<F: FlagDef<Value = bool>> GateFlag for F {
    fn default_on(&self) -> bool {
        F::default_value()
    }
}

/// Determines whether a gate is open for a request. The `FlagGate` of each web crate uses this rule.
///
/// For a flag that is unknown, has a different type or has no value, the default is used, which is `false` if only a key was
/// given. In that case, a gate made with [`enabled`](Self::enabled) is closed, and a gate made with [`disabled`](Self::disabled)
/// is open. If the service does not have the flag, or if the flag is not a boolean, these two log a warning once per gate.
/// [`unknown`](Self::unknown) sets what happens while no flags for the request are known.
#[derive(Clone, Debug)]
pub struct GateRule {
    check: Check,
    unknown: Option<Unknown>,
}

/// What a gate does for a request without any known flags, because the service has not responded for its context and there are
/// no bootstrap values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Closes the gate.
    Closed,
    /// Opens the gate.
    Open,
}

#[derive(Clone)]
enum Check {
    Flag { key: &'static str, default: bool, opens_if: bool, warned: Arc<AtomicBool> },
    Variant { key: &'static str, variant: Arc<str> },
    When(Arc<dyn Fn(&Flags) -> bool + Send + Sync>),
}

#[expect(clippy::needless_pass_by_value, reason = "flags are passed by name: `\"beta\"`, `NewCheckout`")]
impl GateRule {
    /// Creates a rule that opens the gate if the flag is on.
    #[must_use]
    pub fn enabled(flag: impl GateFlag) -> Self {
        Self::new(Check::flag(&flag, true))
    }

    /// Creates a rule that opens the gate if the flag is off.
    #[must_use]
    pub fn disabled(flag: impl GateFlag) -> Self {
        Self::new(Check::flag(&flag, false))
    }

    /// Creates a rule that opens the gate if the flag has this variant.
    #[must_use]
    pub fn variant(flag: impl FlagKey, variant: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Check::Variant { key: flag.key(), variant: variant.into().into() })
    }

    /// Creates a rule that opens the gate if the predicate returns `true` for the flags of the request.
    #[must_use]
    pub fn when(predicate: impl Fn(&Flags) -> bool + Send + Sync + 'static) -> Self {
        Self::new(Check::When(Arc::new(predicate)))
    }

    /// Sets what happens while no flags for the request are known. By default, the rule uses the defaults of the flags.
    #[must_use]
    pub fn unknown(mut self, unknown: Unknown) -> Self {
        self.unknown = Some(unknown);
        self
    }

    /// Returns whether the gate is open for a request with these flags.
    #[must_use]
    pub fn is_open(&self, flags: &Flags) -> bool {
        match self.unknown {
            Some(unknown) if flags.available_for(self.check.key()).is_err() => unknown == Unknown::Open,
            _ => self.check.holds(flags),
        }
    }

    /// Returns whether the gate is open according to the last known flags of a request, for guards, which cannot wait. New flags
    /// are requested in the background.
    ///
    /// Without any flags, a warning is logged once, and [`unknown`](Self::unknown) determines the result. If it is not set, the
    /// default of the rule's flag is used, and a rule without a default is closed.
    #[must_use]
    pub fn is_open_by_last_known(&self, scope: &RequestScope) -> bool {
        scope.last_known_flags().map_or_else(
            || {
                let (key, is_open) = self.check.without_flags();
                SetupWarning::GuardWithoutFlags { key }.log(scope.provider());
                self.unknown.map_or(is_open, |unknown| unknown == Unknown::Open)
            },
            |flags| self.is_open(&flags),
        )
    }

    fn new(check: Check) -> Self {
        Self { check, unknown: None }
    }
}

impl Check {
    fn flag(flag: &impl GateFlag, opens_if: bool) -> Self {
        Self::Flag { key: flag.key(), default: flag.default_on(), opens_if, warned: Arc::default() }
    }

    /// Returns the key of the flag that determines the result, if there is only one.
    fn key(&self) -> Option<&'static str> {
        match self {
            Self::Flag { key, .. } | Self::Variant { key, .. } => Some(key),
            Self::When(_) => None,
        }
    }

    /// Returns the key of the flag, and whether the gate is open without any flags.
    fn without_flags(&self) -> (&'static str, bool) {
        match self {
            Self::Flag { key, default, opens_if, .. } => (key, default == opens_if),
            Self::Variant { key, .. } => (key, false),
            Self::When(_) => ("(predicate)", false),
        }
    }

    fn holds(&self, flags: &Flags) -> bool {
        match self {
            Self::Flag { key, default, opens_if, warned } => {
                let (flag, on) = flags.read_with(key, Some((*default).into()), FlagEvaluation::as_bool);
                let on = on.unwrap_or_else(|| {
                    // A flag without a value, or no flags at all, is not a mistake.
                    let is_mistake = flag.map_or(flags.available().is_ok(), |flag| !flag.value.is_null());
                    if is_mistake && !warned.swap(true, Ordering::Relaxed) {
                        warn(key, flags, *default);
                    }
                    *default
                });
                on == *opens_if
            }
            Self::Variant { key, variant } => {
                flags.find(key).is_some_and(|flag| flag.variant.as_deref() == Some(variant))
            }
            Self::When(predicate) => predicate(flags),
        }
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag { key, opens_if: true, .. } => write!(f, "enabled({key:?})"),
            Self::Flag { key, .. } => write!(f, "disabled({key:?})"),
            Self::Variant { key, variant } => write!(f, "variant({key:?}, {variant:?})"),
            Self::When(_) => f.write_str("when(..)"),
        }
    }
}

/// Warns that a gate uses its default because of a mistake in its key, or in the type of the flag, or because the service
/// could not evaluate the flag.
fn warn(key: &str, flags: &Flags, default: bool) {
    let _entered = RequestScope::current().map(|scope| scope.provider().runtime().span().entered());
    match flags.read_error(key, FlagType::Boolean) {
        FlagError::TypeMismatch { found, .. } => tracing::warn!(
            target: "flipswitch", key, %found, default, "a gate uses its default: the flag is not a boolean"
        ),
        FlagError::NotFound => {
            let did_you_mean = flags.why(key).suggestion;
            tracing::warn!(
                target: "flipswitch", key, default, did_you_mean,
                "a gate uses its default: the flag service does not have the flag"
            );
        }
        error => tracing::warn!(target: "flipswitch", key, default, %error, "a gate uses its default"),
    }
}
