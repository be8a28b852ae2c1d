//! What the tests of both quick starts share: the program as a process, from its first line to its last.

use std::{
    io::{BufRead, BufReader, Lines},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
};

use flipswitch::serde_json::json;
use flipswitch_local::LocalServer;

/// A quick start that runs, and ends with the test.
#[derive(Debug)]
pub struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// The base URL of the application.
    pub app: String,
    /// The flag service, as the program prints it.
    pub service: String,
    /// The line that flips a flag, as the program prints it.
    pub flip: String,
}

impl Program {
    /// Starts a program on free ports and reads what it prints.
    ///
    /// # Panics
    ///
    /// If it does not start, or prints something else.
    #[expect(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]
    #[must_use]
    pub fn start(path: &str) -> Self {
        let mut child = Command::new(path)
            .args(["--app", "127.0.0.1:0", "--service", "127.0.0.1:0"])
            .env_remove("FLIPSWITCH_API_KEY")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut field = |name: &str| {
            let line = lines.find(|line| line.as_ref().unwrap().trim_start().starts_with(name)).expect(name).unwrap();
            line.trim_start().trim_start_matches(name).trim().to_owned()
        };
        let app = field("Application").trim_end_matches('/').to_owned();
        let service = field("Flag service").split(' ').next().unwrap().to_owned();
        let flip = field("flip a flag");
        Self { child, lines, app, service, flip }
    }

    /// Runs a `curl` line as a shell would, and returns what it prints.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    #[expect(clippy::must_use_candidate, reason = "some lines are run for their effect")]
    pub fn curl(line: &str) -> String {
        let output = Command::new("sh").args(["-c", &format!("{line} --silent --show-error --fail")]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Asks the program to end by a signal (`TERM`, `INT`), and waits for it.
    ///
    /// # Panics
    ///
    /// If the signal cannot be sent.
    #[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    pub fn end(&mut self, signal: &str) -> ExitStatus {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        // Read to its end, so that the program is not held up by a full pipe.
        self.lines.by_ref().for_each(drop);
        self.child.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Already ended, in a test that went well.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// An event for a page while everything is well.
const CONNECTED: &str = r#"data: {"status":"connected","polling":false}"#;

/// What a quick start promises, whatever its framework.
///
/// # Panics
///
/// If it does not keep a promise.
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub fn keeps_its_promises(path: &str) {
    let mut program = Program::start(path);
    let Program { app, flip, service, .. } = &program;
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
    Program::curl(flip);
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
///
/// # Panics
///
/// If they do not.
#[expect(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]
pub fn uses_the_environment(path: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let service = runtime
        .block_on(LocalServer::builder().flags(json!({"new-feature": true})).api_key("from-the-environment").start())
        .expect("a service");
    let mut child = Command::new(path)
        .args(["--app", "127.0.0.1:0"])
        .envs([("FLIPSWITCH_API_KEY", " from-the-environment\n"), ("FLIPSWITCH_BASE_URL", &service.url())])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let app = first.trim_start_matches("Application").trim().trim_end_matches('/');
    let answer = Program::curl(&format!("curl '{app}/feature?user_id=alice'"));
    child.kill().ok();
    child.wait().ok();
    assert_eq!(answer, r#"{"feature_enabled":true}"#);
}

/// Ctrl-c ends a quick start in order, too.
///
/// # Panics
///
/// If it does not.
pub fn ends_at_ctrl_c(path: &str) {
    assert_eq!(Program::start(path).end("INT").code(), Some(0));
}
