//! The program, as README.md has its reader meet it, and how it ends.

use flipswitch::serde_json::json;
use quickstart_common::testing::{self, Program, Visit};

/// The program serves, knows its users, and follows the flag that it says how to flip.
pub fn it_serves_and_follows(path: &str) {
    let mut program = Program::start(path);
    let flip = program.says("flip a flag");
    let app = &program.app;
    // An empty name of a file with cookies: they are kept for the redirect after the login.
    let alice = || Program::curl(&format!("curl --cookie '' --location --data name=alice {app}/login"));
    let page = alice();
    assert!(page.contains("Good day, alice") && page.contains(r#""summer-sale":false"#), "{page}");
    Program::curl(&flip);
    // The next page, but for the moment that the news of the change takes to arrive.
    let on = (0..1_000).any(|_| alice().contains(r#""summer-sale":true"#));
    assert!(on, "the flag was flipped");
    assert_eq!(Program::curl(&format!("curl {app}/sale")), crate::SALE);
    assert_eq!(program.end("TERM").code(), Some(0));
}

/// As every example does.
pub fn finishes_what_it_began(path: &str) {
    testing::finishes_what_it_began(path, &visit());
}

/// As every example does.
pub fn ends_at_once_when_asked_twice(path: &str) {
    testing::ends_at_once_when_asked_twice(path, &visit());
}

/// The first visitor's checkout.
fn visit() -> Visit {
    Visit {
        flags: json!({"max-items": 7}),
        plain: "/health/flags",
        page: "/checkout",
        answer: "A cart holds 7 items.",
        events: None,
    }
}
