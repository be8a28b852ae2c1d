//! What packages for web frameworks are made of: whom a request is from, the rule of a gate, and a probe's.
//!
//! Applications use `flipswitch-axum` or `flipswitch-actix`, which hand on what they need of this. A package for another
//! framework [opens](open) a scope in each request, runs what is inside of it [in it](RequestScope::scope), sets the
//! [cookie of a new visitor](new_cookie), and adds what is the framework's own.

use open_feature::EvaluationContext;

use crate::{FlagDef, Flags, FlipswitchProvider, RequestScope};
pub use crate::{
    events::health::HealthProbe,
    request::gate::{FlagKey, GateFlag, GateRule},
    request::visitor::Anonymous,
    request::warnings::Misuse,
};

/// Opens a scope for a request whose context has to be found: by the functions that an application gave, and in the request's
/// headers.
///
/// What is known of the `user` and what is known of the `request` are merged, and the user's fields win. Without a user and
/// without a targeting key, `anonymous` says who the visitor is; `headers` gives the values of all headers of a name. A
/// function that panics finds nothing, which is logged once.
#[must_use]
pub fn open<'a, I>(
    provider: &FlipswitchProvider,
    user: impl FnOnce() -> Option<EvaluationContext>,
    request: impl FnOnce() -> Option<EvaluationContext>,
    anonymous: &Anonymous,
    headers: impl FnOnce(&str) -> I,
) -> RequestScope
where
    I: Iterator<Item = &'a [u8]>,
{
    RequestScope::open(provider, user, request, anonymous, headers)
}

/// Returns the value of the `Set-Cookie` header that the response to a request is to have: if flags were read for a visitor
/// who has no cookie yet ([`Anonymous::cookie`]), and none of the `Set-Cookie` headers that the response has, `set`, is for
/// it. Each call makes another visitor.
#[must_use]
pub fn new_cookie<'a>(scope: &RequestScope, set: impl Iterator<Item = &'a [u8]>) -> Option<String> {
    scope.new_cookie(set)
}

/// Returns the last known flags of a request, which may be out of date, for whoever cannot wait: routing by guards. They are
/// asked for anew, for the next time. Counts as reading.
#[must_use]
pub fn last_known(scope: &RequestScope) -> Option<Flags> {
    scope.last_known()
}

/// Reads a declared flag by its type, as [`Flags::get`] does by its value: for extractors.
#[must_use]
pub fn read<F: FlagDef>(flags: &Flags) -> F::Value {
    flags.read::<F>()
}
