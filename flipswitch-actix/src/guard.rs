//! The guard: routes that match for some users only.

use std::sync::atomic::{AtomicBool, Ordering};

use actix_web::guard::{Guard, fn_guard};
use flipswitch::web::{GateFlag, GateRule, Misuse};

use crate::{FlagsExt, MissingMiddleware};

/// Makes a guard that lets a route, resource or scope match where the flag is on, so that another one can serve everybody
/// else.
///
/// Guards cannot wait, so the flags have to be in memory: use [`prefetch`](crate::Flipswitch::prefetch). Without it, a flag
/// that is not in memory counts as its default, which is `false` for one that is named by its key, and a warning says so,
/// once. Where no [`Flipswitch`](crate::Flipswitch) runs before, that is so for every request, and is logged as an error, once.
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
                tracing::error!(target: "flipswitch", key, "a guard takes its default. {}", MissingMiddleware(()));
            }
            return default;
        };
        scope.flags_now().map_or_else(
            || {
                Misuse::GuardWithoutFlags { key }.warn(scope.provider());
                default
            },
            |flags| rule.is_open(flags),
        )
    })
}
