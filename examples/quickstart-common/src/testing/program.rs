//! A quick start or another example as a process.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use flipswitch_local::LocalServer;

use super::TIME_LIMIT;

/// Address with a free port.
const FREE_PORT: &str = "127.0.0.1:0";

/// The default `drain_timeout` of `Lifespan`.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A running program, which is killed when it is dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    /// The lines that it prints.
    lines: mpsc::Receiver<String>,
    /// The base URL of the application.
    pub app: String,
}

impl Program {
    /// Starts a program with a local flag service, both on free ports.
    #[must_use]
    pub fn start(path: &str) -> Self {
        Self::spawn(
            Command::new(path).args(["--app", FREE_PORT, "--service", FREE_PORT]).env_remove("FLIPSWITCH_API_KEY"),
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
        // Users may copy a space or a line break along with a key.
        let key = format!(" {}\n", service.api_key());
        let environment = [("FLIPSWITCH_API_KEY", key), ("FLIPSWITCH_BASE_URL", service.url())];
        Self::spawn(Command::new(path).args(["--app", &app.to_string()]).envs(environment))
    }

    /// Starts a program, and waits until it has printed the URL of its application.
    #[must_use]
    pub fn spawn(command: &mut Command) -> Self {
        let mut program = Self::spawn_without_application(command);
        program.app = program.line("Application").trim_end_matches('/').to_owned();
        program
    }

    /// Starts a program that has no application. Its `app` is empty.
    #[must_use]
    pub fn spawn_without_application(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the program can be started");
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        // Reads each line immediately, so that the program never waits for the test.
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        // Killed on drop from here on, even if it prints nothing.
        Self { child, lines, app: String::new() }
    }

    /// Reads the output of the program up to the line with this label, and returns the rest of that line.
    pub fn line(&mut self, label: &str) -> String {
        let deadline = Instant::now() + TIME_LIMIT;
        loop {
            let time_left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(time_left).expect("the program prints the line");
            if let Some(rest) = line.trim_start().strip_prefix(label) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Returns the address of the application.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        let address = self.app.trim_start_matches("http://").split('/').next().unwrap();
        address.parse().unwrap()
    }

    /// Runs a `curl` command in a shell, and returns its output.
    #[expect(clippy::must_use_candidate, reason = "some commands are run for their effect")]
    pub fn curl(command: &str) -> String {
        let output =
            Command::new("sh").args(["-c", &format!("{command} --silent --show-error --fail")]).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Sends a signal to the program (`TERM`, `INT`).
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until the program has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DRAIN_TIMEOUT + Duration::from_secs(5);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the program does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal, and waits until the program has ended.
    pub fn stop(&mut self, signal: &str) -> ExitStatus {
        self.signal(signal);
        self.wait()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails if the program has already ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
