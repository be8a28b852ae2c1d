//! When a gate is open.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{FlagDef, FlagEvaluation, FlagType, Flags};

/// What names a flag: its key, or a flag declared with [`flags!`](crate::flags).
#[diagnostic::on_unimplemented(
    message = "`{Self}` names no flag",
    label = "give the flag's key, a `&'static str`, or a flag declared with `flags!`"
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

/// What a gate can ask: the key of a boolean flag, whose default is then `false`, or a boolean flag declared with
/// [`flags!`](crate::flags), with its own default.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no boolean flag",
    label = "give the flag's key, a `&'static str`, or a flag declared with `flags!` as `bool`"
)]
pub trait GateFlag: FlagKey {
    /// Returns what counts while the flag is not known.
    fn default_on(&self) -> bool;
}

impl GateFlag for &'static str {
    fn default_on(&self) -> bool {
        false
    }
}

// Else the compiler would say of a flag of another type which types differ, and nothing of gates.
#[diagnostic::do_not_recommend]
impl<F: FlagDef<Value = bool>> GateFlag for F {
    fn default_on(&self) -> bool {
        F::default_value()
    }
}

/// When a gate is open: the rule behind the `FlagGate` of each web package.
///
/// A flag that is not known, has another type or no value counts as its default. For a key that is `false`: then
/// [`requires`](Self::requires) is closed and [`requires_not`](Self::requires_not) is open. A variant that is not known is
/// no variant. A flag that the service does not have, and one that is no boolean, are warned of, once by each gate.
#[derive(Clone, Debug)]
pub struct GateRule(Rule);

#[derive(Clone, Debug)]
enum Rule {
    Flag { key: &'static str, default: bool, opens_if: bool, told: Arc<AtomicBool> },
    Variant { key: &'static str, variant: Cow<'static, str> },
    Both(Box<(Rule, Rule)>),
    Either(Box<(Rule, Rule)>),
}

#[expect(clippy::needless_pass_by_value, reason = "a name is given as it is: `\"beta\"`, `NewCheckout`")]
impl GateRule {
    /// Open where the flag is on.
    #[must_use]
    pub fn requires(flag: impl GateFlag) -> Self {
        Self(Rule::flag(&flag, true))
    }

    /// Open where the flag is off.
    #[must_use]
    pub fn requires_not(flag: impl GateFlag) -> Self {
        Self(Rule::flag(&flag, false))
    }

    /// Open where the service evaluated the flag to this variant.
    #[must_use]
    pub fn variant(flag: impl FlagKey, variant: impl Into<Cow<'static, str>>) -> Self {
        Self(Rule::Variant { key: flag.key(), variant: variant.into() })
    }

    /// Open where both are.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(Rule::Both(Box::new((self.0, other.0))))
    }

    /// Open where one of both is.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(Rule::Either(Box::new((self.0, other.0))))
    }

    /// Returns whether the gate is open for whoever has these flags.
    #[must_use]
    pub fn is_open(&self, flags: &Flags) -> bool {
        self.0.holds(flags)
    }
}

impl Rule {
    fn flag(flag: &impl GateFlag, opens_if: bool) -> Self {
        Self::Flag { key: flag.key(), default: flag.default_on(), opens_if, told: Arc::default() }
    }

    fn holds(&self, flags: &Flags) -> bool {
        match self {
            Self::Flag { key, default, opens_if, told } => {
                let flag = flags.find(key);
                let on = flag.and_then(FlagEvaluation::as_bool).unwrap_or_else(|| {
                    // Of a flag without a value, and while there are no flags at all, the default is what is meant.
                    let is_mistake = flag.map_or(flags.known().is_ok(), |flag| !flag.value.is_null());
                    if is_mistake && !told.swap(true, Ordering::Relaxed) {
                        tell(key, flag, *default);
                    }
                    *default
                });
                on == *opens_if
            }
            Self::Variant { key, variant } => {
                flags.find(key).is_some_and(|flag| flag.variant.as_deref() == Some(variant))
            }
            Self::Both(rules) => rules.0.holds(flags) && rules.1.holds(flags),
            Self::Either(rules) => rules.0.holds(flags) || rules.1.holds(flags),
        }
    }
}

/// Says that a gate goes by its default because of a mistake: in its key, or in the flag's type.
fn tell(key: &str, flag: Option<&FlagEvaluation>, default: bool) {
    match flag.map(|flag| FlagType::of_value(&flag.value)) {
        Some(found) => tracing::warn!(
            target: "flipswitch", key, %found, default, "a gate takes its default: the flag is no boolean"
        ),
        None => tracing::warn!(
            target: "flipswitch", key, default, "a gate takes its default: the service has no such flag"
        ),
    }
}
