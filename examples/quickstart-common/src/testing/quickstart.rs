//! Tests of both quick starts.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use flipswitch::serde_json::json;
use flipswitch_local::LocalServer;

use super::Program;

/// Event while the provider is connected.
const CONNECTED: &str = r#"data: {"status":"connected","polling":false}"#;

/// The commands in README.md have the results that it describes.
pub fn behaves_as_the_readme_says(path: &str) {
    let mut program = Program::start(path);
    let (service, flip) = (program.line("Flag service"), program.line("flip a flag"));
    let app = &program.app;
    let flags = |user: &str, plan: &str| Program::curl(&format!("curl '{app}/flags?user_id={user}&plan={plan}'"));
    let feature = || Program::curl(&format!("curl '{app}/feature?user_id=alice'"));

    let (premium, free) = (flags("alice", "premium"), flags("bob", "free"));
    assert!(premium.contains(r#""premium-dashboard":true"#) && premium.contains(r#""max-projects":100"#), "{premium}");
    assert!(free.contains(r#""premium-dashboard":false"#) && free.contains(r#""max-projects":3"#), "{free}");
    assert!(Program::curl(&format!("curl '{app}/'")).contains("Two users, one application"));

    assert_eq!(feature(), r#"{"feature_enabled":false}"#);
    // An open page receives the change, and does not delay the shutdown.
    let mut page = Command::new("curl")
        .args(["--no-buffer", "--silent", &format!("{app}/events")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut events = BufReader::new(page.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(events.any(|line| line == CONNECTED));
    Program::curl(&flip);
    assert_eq!(events.find(|line| line.starts_with("data: ")).as_deref(), Some(CONNECTED));
    // The change takes a moment to arrive.
    let on = (0..1_000).any(|_| feature() == r#"{"feature_enabled":true}"#);
    assert!(on, "the flag was flipped");
    assert!(service.starts_with("http://127.0.0.1:"), "{service}");

    let taken = app.trim_start_matches("http://");
    let failed = Command::new(path).args(["--app", taken, "--service", "127.0.0.1:0"]).output().unwrap();
    assert!(!failed.status.success());
    let error = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(error.contains(&format!("--app: cannot listen on {taken}")), "{error}");

    assert_eq!(program.stop("TERM").code(), Some(0));
    events.by_ref().for_each(drop);
    assert!(page.wait().unwrap().success());
}

/// With an API key in the environment, flags come from the service in the environment.
pub fn uses_the_service_from_the_environment(path: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let service = LocalServer::builder().flags(json!({"new-feature": true})).api_key("from-the-environment");
    let service = runtime.block_on(service.start()).expect("a service");
    let program = Program::start_with(path, &service);
    let body = Program::curl(&format!("curl '{}/feature?user_id=alice'", program.app));
    assert_eq!(body, r#"{"feature_enabled":true}"#);
}
