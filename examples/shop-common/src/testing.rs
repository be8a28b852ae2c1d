//! What the tests of both shops share: a shop on loopback, browsers that visit it, and what they expect of it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

mod browser;
#[cfg(unix)]
mod process;
pub mod promises;
mod shop;

pub use quickstart_common::Stop;
#[cfg(unix)]
pub use quickstart_common::testing::ends_at_ctrl_c;

#[cfg(unix)]
pub use self::process::{ends_at_once_when_asked_twice, finishes_what_it_began, it_serves_and_follows};
pub use self::shop::Serve;

/// Makes a test of each promise that a shop keeps. `serve` is the shop: an async function that serves it on a listener
/// with a provider until a [`Stop`](crate::testing::Stop).
#[macro_export]
macro_rules! keeps_its_promises {
    ($serve:path) => {
        $crate::keeps_its_promises! { $serve:
            a_visitor_gets_a_cookie_once_a_flag_was_read,
            a_visitor_stays_the_same_one,
            a_share_of_the_visitors_is_always_the_same_visitors,
            a_user_gets_the_flags_of_that_user,
            the_user_of_a_session_changes,
            users_side_by_side_are_never_mixed,
            declared_flags_have_their_types_and_values,
            declared_flags_have_their_defaults_while_the_service_is_away,
            a_closed_gate_answers_as_if_there_were_nothing,
            a_gate_opens_when_its_flag_is_flipped,
            a_closed_gate_can_answer_something_else,
            the_script_of_the_page_has_the_flags_whatever_they_hold,
            what_a_user_types_is_shown_as_it_is,
            a_forged_session_is_nobodys,
            the_health_is_told,
        }
    };
    ($serve:path: $($promise:ident,)+) => {$(
        #[test]
        fn $promise() {
            $crate::testing::promises::$promise($serve);
        }
    )+};
}
