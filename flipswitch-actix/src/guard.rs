//! The guard: routes that match for some users only.

use std::sync::atomic::{AtomicBool, Ordering};

use actix_web::guard::{Guard, fn_guard};
use flipswitch::integration::{self, GateFlag, GateRule};

use crate::FlagsExt;

/// Creates a guard that matches if the flag is on, so that another route can serve all other users.
///
/// Guards cannot wait, so the flags must be in memory: use [`prefetch`](crate::FlipswitchMiddleware::prefetch). Without it,
/// the guard uses the last known flags for the user, even if they are out of date, and requests new ones for the next
/// request. For a user without known flags, the default of the flag is used (`false` if only a key is given), and a warning is
/// logged once. The default is also used for CORS preflights.
///
/// The guards of a scope or a resource run before its own middleware: wrap the app, or a scope around it, with the
/// [`FlipswitchMiddleware`](crate::FlipswitchMiddleware). Without the middleware, the default is used for every request, and an
/// error is logged once.
///
/// ```
/// use actix_web::{App, web};
/// use flipswitch_actix::{FlipswitchMiddleware, flag_on};
/// # use flipswitch_actix::{FlipswitchProvider, flipswitch::serde_json::json};
///
/// # let provider = FlipswitchProvider::in_memory(json!({}));
/// let app = App::new()
///     .service(web::resource("/checkout").guard(flag_on("new-checkout")).get(async || "new"))
///     .service(web::resource("/checkout").get(async || "old"))
///     .wrap(FlipswitchMiddleware::new(provider).prefetch(true));
/// ```
pub fn flag_on(flag: impl GateFlag) -> impl Guard {
    let (key, default, rule) = (flag.key(), flag.default_on(), GateRule::enabled(flag));
    let logged = AtomicBool::new(false);
    fn_guard(move |request| {
        let Some(scope) = request.flag_scope() else {
            if !logged.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    target: "flipswitch", key,
                    "a guard uses its default, because the request has no flags yet: add \
                     `.wrap(FlipswitchMiddleware::new(provider))` to the app, or to a scope around the guarded one; the \
                     middleware of the guarded scope or resource itself runs after its guards"
                );
            }
            return default;
        };
        let head = request.head();
        // A preflight has no credentials, so no flags are read for it.
        if integration::is_preflight(head.method.as_str(), |name| head.headers.contains_key(name)) {
            return default;
        }
        rule.is_open_by_last_known(&scope)
    })
}
