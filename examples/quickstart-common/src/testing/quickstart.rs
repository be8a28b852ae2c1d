//! What the quick starts promise, whatever their framework.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use flipswitch::serde_json::json;
use flipswitch_local::LocalServer;

use super::{Program, Visit};

/// An event for a page while everything is well.
const CONNECTED: &str = r#"data: {"status":"connected","polling":false}"#;

/// What README.md has its reader do.
pub fn keeps_its_promises(path: &str) {
    let mut program = Program::start(path);
    let (service, flip) = (program.says("Flag service"), program.says("flip a flag"));
    let app = &program.app;
    let flags = |user: &str, plan: &str| Program::curl(&format!("curl '{app}/flags?user_id={user}&plan={plan}'"));
    let feature = || Program::curl(&format!("curl '{app}/feature?user_id=alice'"));

    let (premium, free) = (flags("alice", "premium"), flags("bob", "free"));
    assert!(premium.contains(r#""premium-dashboard":true"#) && premium.contains(r#""max-projects":100"#), "{premium}");
    assert!(free.contains(r#""premium-dashboard":false"#) && free.contains(r#""max-projects":3"#), "{free}");
    assert!(Program::curl(&format!("curl '{app}/'")).contains("Two users, one application"));

    assert_eq!(feature(), r#"{"feature_enabled":false}"#);
    // An open page hears of the change, and does not hold up the end.
    let mut page = Command::new("curl")
        .args(["--no-buffer", "--silent", &format!("{app}/events")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut events = BufReader::new(page.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(events.any(|line| line == CONNECTED));
    Program::curl(&flip);
    assert_eq!(events.find(|line| line.starts_with("data: ")).as_deref(), Some(CONNECTED));
    // The next response, but for the moment that the news of the change takes to arrive.
    let on = (0..1_000).any(|_| feature() == r#"{"feature_enabled":true}"#);
    assert!(on, "the flag was flipped");
    assert!(service.starts_with("http://127.0.0.1:"), "{service}");

    let taken = app.trim_start_matches("http://");
    let refused = Command::new(path).args(["--app", taken, "--service", "127.0.0.1:0"]).output().unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains(&format!("--app: cannot listen on {taken}")), "{said}");

    assert_eq!(program.end("TERM").code(), Some(0));
    events.by_ref().for_each(drop);
    assert!(page.wait().unwrap().success());
}

/// With a key in the environment the flags come from the service that it names.
pub fn uses_the_environment(path: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let service = LocalServer::builder().flags(json!({"new-feature": true})).api_key("from-the-environment");
    let service = runtime.block_on(service.start()).expect("a service");
    let program = Program::start_with(path, &service);
    let answer = Program::curl(&format!("curl '{}/feature?user_id=alice'", program.app));
    assert_eq!(answer, r#"{"feature_enabled":true}"#);
}

/// What a quick start is asked for while it is to end.
#[must_use]
pub fn visit() -> Visit {
    Visit {
        flags: json!({"new-feature": true}),
        plain: "/",
        page: "/feature?user_id=alice",
        answer: r#"{"feature_enabled":true}"#,
        events: Some("/events"),
    }
}
