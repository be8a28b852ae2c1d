//! The guard: routes that match for some users only.

use std::sync::atomic::{AtomicBool, Ordering};

use actix_web::guard::{Guard, fn_guard};
use flipswitch::web::{self, GateFlag, GateRule, Misuse};

use crate::FlagsExt;

/// Makes a guard that lets a route, resource or scope match where the flag is on, so that another one can serve everybody
/// else.
///
/// Guards cannot wait, so the flags have to be in memory: use [`prefetch`](crate::Flipswitch::prefetch). Without it, a guard
/// goes by what is known of the user, also if it is out of date, in which case it is asked for anew, for the next request. Of a
/// user who is not known the flag counts as its default, which is `false` for one that is named by its key, and a warning says
/// so, once.
///
/// The guards of a scope or a resource run before what it is wrapped in: the [`Flipswitch`](crate::Flipswitch) belongs to the
/// app, or to a scope around them. Where none runs before, the default counts for every request, and that is logged as an
/// error, once.
///
/// ```
/// use actix_web::{App, web};
/// use flipswitch_actix::{Flipswitch, flag_on};
/// # use flipswitch_actix::flipswitch::{FlipswitchProvider, serde_json::json};
///
/// # let provider = FlipswitchProvider::in_memory(json!({}));
/// let app = App::new()
///     .service(web::resource("/checkout").guard(flag_on("new-checkout")).get(async || "new"))
///     .service(web::resource("/checkout").get(async || "old"))
///     .wrap(Flipswitch::new(provider).prefetch(true));
/// ```
pub fn flag_on(flag: impl GateFlag) -> impl Guard {
    let (key, default, rule) = (flag.key(), flag.default_on(), GateRule::requires(flag));
    let told = AtomicBool::new(false);
    fn_guard(move |request| {
        let Some(scope) = request.scope() else {
            if !told.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    target: "flipswitch", key,
                    "a guard takes its default, since no flags are in the request yet: add \
                     `.wrap(Flipswitch::new(provider))` to the app, or to a scope around what has the guard; what is added to \
                     the guarded scope or resource itself runs after its guards"
                );
            }
            return default;
        };
        web::last_known(&scope).map_or_else(
            || {
                Misuse::GuardWithoutFlags { key }.warn(scope.provider());
                default
            },
            |flags| rule.is_open(&flags),
        )
    })
}
