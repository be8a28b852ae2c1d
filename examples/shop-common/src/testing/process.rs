//! Tests of the shops as processes.

use flipswitch::serde_json::json;
use quickstart_common::testing::{self, Program, Shutdown};

/// The program serves pages to users, and follows the flag that its output says how to flip.
pub fn serves_pages_and_follows_changes(path: &str) {
    let mut program = Program::start(path);
    let flip = program.line("flip a flag");
    let app = &program.app;
    // An empty file name makes curl keep cookies for the redirect after the login.
    let alice = || Program::curl(&format!("curl --cookie '' --location --data name=alice {app}/login"));
    let page = alice();
    assert!(page.contains("Good day, alice") && page.contains(r#""summer-sale":false"#), "{page}");
    Program::curl(&flip);
    // The change takes a moment to arrive.
    let on = (0..1_000).any(|_| alice().contains(r#""summer-sale":true"#));
    assert!(on, "the flag was flipped");
    assert_eq!(Program::curl(&format!("curl {app}/sale")), crate::SALE);
    assert_eq!(program.stop("TERM").code(), Some(0));
}

/// See [`testing::requests_finish_during_shutdown`].
pub fn requests_finish_during_shutdown(path: &str) {
    testing::requests_finish_during_shutdown(path, &shutdown());
}

/// See [`testing::a_second_signal_ends_it_immediately`].
pub fn a_second_signal_ends_it_immediately(path: &str) {
    testing::a_second_signal_ends_it_immediately(path, &shutdown());
}

/// Requests of a visitor during the shutdown.
fn shutdown() -> Shutdown {
    Shutdown {
        flags: json!({"max-items": 7}),
        plain: "/health/flags",
        page: "/checkout",
        text: "A cart holds 7 items.",
        events: None,
    }
}
