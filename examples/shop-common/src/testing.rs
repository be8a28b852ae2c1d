//! Tests of both shops, and their helpers: a shop on loopback, and browsers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

mod browser;
#[cfg(unix)]
mod process;
pub mod scenarios;
mod shop;

pub use quickstart_common::Stop;
#[cfg(unix)]
pub use quickstart_common::testing::ctrl_c_ends_it;

#[cfg(unix)]
pub use self::process::{
    a_second_signal_ends_it_immediately, requests_finish_during_shutdown, serves_pages_and_follows_changes,
};
pub use self::shop::Serve;

/// Makes a test of each scenario. `serve` is an async function that serves the shop on a listener, with a provider, until a
/// [`Stop`](crate::testing::Stop) resolves.
#[macro_export]
macro_rules! test_scenarios {
    ($serve:path) => {
        $crate::test_scenarios! { $serve:
            a_visitor_gets_a_cookie_once_a_flag_was_read,
            a_visitor_keeps_its_identity,
            a_visitor_keeps_its_side_of_a_percentage_rule,
            a_user_gets_the_flags_of_that_user,
            pages_follow_the_user_of_the_session,
            concurrent_users_get_their_own_flags,
            declared_flags_have_their_types_and_values,
            declared_flags_have_their_defaults_in_an_outage,
            a_closed_gate_responds_like_an_unknown_path,
            a_gate_opens_when_its_flag_is_flipped,
            a_closed_gate_responds_with_its_fallback,
            the_script_of_the_page_has_all_flags_escaped,
            user_input_is_escaped,
            a_forged_session_is_ignored,
            the_health_endpoint_reports_the_provider,
        }
    };
    ($serve:path: $($scenario:ident,)+) => {$(
        #[test]
        fn $scenario() {
            $crate::testing::scenarios::$scenario($serve);
        }
    )+};
}
