//! A program as a process.

use std::{
    io::{BufRead, BufReader, Lines},
    net::SocketAddr,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use flipswitch_local::LocalServer;

/// A free port.
const ANYWHERE: &str = "127.0.0.1:0";

/// How long the examples let requests finish, which is the default of `Lifespan`.
pub(super) const DRAIN: Duration = Duration::from_secs(30);

/// An example that runs, and ends with the test.
#[derive(Debug)]
pub struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// The base URL of the application.
    pub app: String,
}

impl Program {
    /// Starts a program with a flag service in a box, both on free ports.
    #[must_use]
    pub fn start(path: &str) -> Self {
        Self::spawn(
            Command::new(path).args(["--app", ANYWHERE, "--service", ANYWHERE]).env_remove("FLIPSWITCH_API_KEY"),
        )
    }

    /// Starts a program on a free port with the flags of this service.
    #[must_use]
    pub fn start_with(path: &str, service: &LocalServer) -> Self {
        Self::start_at(path, ([127, 0, 0, 1], 0).into(), service)
    }

    /// Starts a program at this address with the flags of this service.
    #[must_use]
    pub fn start_at(path: &str, app: SocketAddr, service: &LocalServer) -> Self {
        // The space and the line's end are what people copy along with a key.
        let key = format!(" {}\n", service.api_key());
        let environment = [("FLIPSWITCH_API_KEY", key), ("FLIPSWITCH_BASE_URL", service.url())];
        Self::spawn(Command::new(path).args(["--app", &app.to_string()]).envs(environment))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the program can be started");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // From here on it ends with the test, also if it says nothing.
        let mut program = Self { child, lines, app: String::new() };
        program.app = program.says("Application").trim_end_matches('/').to_owned();
        program
    }

    /// Reads what the program prints up to the line that begins like this, and returns the rest of that line.
    #[must_use]
    pub fn says(&mut self, name: &str) -> String {
        let line = self.lines.find(|line| line.as_ref().unwrap().trim_start().starts_with(name));
        let line = line.expect("the program goes on").unwrap();
        line.trim_start().trim_start_matches(name).trim().to_owned()
    }

    /// Where the application listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.app.trim_start_matches("http://").parse().unwrap()
    }

    /// Runs a `curl` line as a shell would, and returns what it prints.
    #[expect(clippy::must_use_candidate, reason = "some lines are run for their effect")]
    pub fn curl(line: &str) -> String {
        let output = Command::new("sh").args(["-c", &format!("{line} --silent --show-error --fail")]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Sends the program a signal (`TERM`, `INT`).
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end of the program.
    pub fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DRAIN + Duration::from_secs(5);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the program does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks the program to end by a signal, and waits for it.
    pub fn end(&mut self, signal: &str) -> ExitStatus {
        self.signal(signal);
        self.ended()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Already ended, in a test that went well.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
