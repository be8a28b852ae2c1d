//! Sessions, users and visitors in the examples `sessions-axum` and `sessions-actix`. Both pass the same scenarios.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod application;
mod browser;
mod scenarios;

/// Generates a test of each scenario for each framework.
macro_rules! test_scenarios {
    ($($scenario:ident,)+) => {
        mod on_axum {$(
            #[test]
            fn $scenario() {
                crate::application::Application::run(crate::application::Framework::Axum, crate::scenarios::$scenario);
            }
        )+}

        mod on_actix {$(
            #[test]
            fn $scenario() {
                crate::application::Application::run(crate::application::Framework::Actix, crate::scenarios::$scenario);
            }
        )+}
    };
}

test_scenarios! {
    a_visitor_gets_a_cookie_once_a_flag_was_read,
    a_visitor_keeps_its_identity,
    a_visitor_keeps_its_side_of_a_percentage_rule,
    a_user_gets_the_flags_of_that_user,
    pages_follow_the_user_of_the_session,
    concurrent_users_get_their_own_flags,
    flags_follow_changes_and_keep_their_types,
    flags_have_their_defaults_in_an_outage,
    a_closed_gate_responds_like_an_unknown_path,
    a_gate_opens_when_its_flag_is_flipped,
    an_unknown_user_is_not_logged_in,
    a_forged_session_is_ignored,
}
