//! Runs each example, and the commands in its header, which must print what the header says.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use quickstart_common::testing::{Program, in_time};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_tungstenite::tungstenite::Message;

const FREE_PORT: &str = "127.0.0.1:0";
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// Starts an example on a free port.
fn start(program: &str) -> Program {
    Program::spawn(Command::new(program).arg(FREE_PORT))
}

/// Returns the commands that the header of a file shows after `$`, each with the output that follows it.
fn commands(file: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let lines =
        text.lines().map_while(|line| line.strip_prefix("//!")).map(|line| line.strip_prefix(' ').unwrap_or(""));
    let mut commands = Vec::new();
    let mut is_code = false;
    for line in lines {
        if line.starts_with("```") {
            is_code = line == "```text";
        } else if let Some(command) = line.strip_prefix("$ ") {
            commands.push((command.to_owned(), String::new()));
        } else if let (true, Some((_, output))) = (is_code, commands.last_mut()) {
            *output += line;
            *output += "\n";
        }
    }
    commands
}

/// Runs the `curl` commands of a header. `addresses` has pairs of an address in the header and the one to use.
fn check(file: &str, addresses: &[(&str, &str)]) {
    let folder = TempDir::new().unwrap();
    let mut checked = 0;
    for (command, expected) in commands(file).iter().filter(|(command, _)| command.starts_with("curl ")) {
        let command = addresses.iter().fold(command.clone(), |command, (shown, used)| command.replace(shown, used));
        let command = command.replacen("curl ", "curl --max-time 10 ", 1);
        let deadline = Instant::now() + TIME_LIMIT;
        loop {
            let output = Command::new("sh").args(["-c", &command]).current_dir(&folder).output().unwrap();
            let printed = String::from_utf8(output.stdout).unwrap();
            if output.status.success() && (expected.is_empty() || printed.trim_end() == expected.trim_end()) {
                break;
            }
            // A change takes a moment to arrive.
            assert!(Instant::now() < deadline, "{file}: {command}\nexpected: {expected}\nprinted: {printed}");
        }
        checked += 1;
    }
    assert!(checked > 0, "{file} shows no command");
}

/// Checks the header of an example with one application, and that SIGTERM ends the example.
fn check_program(program: &str, file: &str) {
    let mut program = start(program);
    let dashboard = program.line("Dashboard");
    let address = program.address().to_string();
    let port = dashboard.trim_end_matches('/').rsplit_once(':').unwrap().1;
    check(file, &[("127.0.0.1:3000", &address), ("PORT", port)]);
    assert_eq!(program.stop("TERM").code(), Some(0));
}

/// Sets a flag of the local flag service.
fn set(dashboard: &str, flag: &str, value: &str) {
    Program::curl(&format!("curl -X PUT {dashboard}local/flags/{flag} -d '{{\"value\": {value}}}'"));
}

#[test]
fn first_flag() {
    let mut program = Program::spawn_without_application(&mut Command::new(env!("CARGO_BIN_EXE_first-flag")));
    let flip = program.line("Flip a flag");
    assert_eq!(program.line("new-checkout for alice:"), "false");
    Program::curl(&flip);
    assert_eq!(program.line("new-checkout for alice:"), "true");
    assert_eq!(program.stop("INT").code(), Some(0));
}

#[test]
fn gates() {
    check_program(env!("CARGO_BIN_EXE_gates"), "gates.rs");
}

#[test]
fn sessions_on_axum() {
    check_program(env!("CARGO_BIN_EXE_sessions-axum"), "sessions_axum.rs");
}

#[test]
fn sessions_on_actix() {
    check_program(env!("CARGO_BIN_EXE_sessions-actix"), "sessions_actix.rs");
}

#[test]
fn environments() {
    check_program(env!("CARGO_BIN_EXE_environments"), "environments.rs");
}

#[test]
fn browser() {
    check_program(env!("CARGO_BIN_EXE_browser"), "browser.rs");
}

#[test]
fn testing() {
    check_program(env!("CARGO_BIN_EXE_testing"), "testing.rs");
}

#[test]
fn telemetry() {
    let mut program = start(env!("CARGO_BIN_EXE_telemetry"));
    let address = program.address().to_string();
    check("telemetry.rs", &[("127.0.0.1:3000", &address)]);
    program.line("EventName: \"feature_flag.evaluation\"");
    program.line("Name         : GET /checkout");
    program.line("Name      : feature_flag.evaluation");
    program.signal("TERM");
    // The metrics.
    program.line("Name         : flipswitch.evaluations");
    assert_eq!(program.wait().code(), Some(0));
}

#[test]
fn live() {
    let mut program = start(env!("CARGO_BIN_EXE_live"));
    let dashboard = program.line("Dashboard");
    let url = program.app.replace("http", "ws").replace("/discount", "/chat");
    Runtime::new().unwrap().block_on(async {
        let mut events = flipswitch::reqwest::get(&program.app).await.unwrap();
        let mut text = async || in_time(events.chunk()).await.unwrap().unwrap();
        assert_eq!(text().await, "data: The discount is 10 percent.\n\n");
        set(&dashboard, "discount", "20");
        assert_eq!(text().await, "data: The discount is 20 percent.\n\n");

        let (mut socket, _) = in_time(tokio_tungstenite::connect_async(url)).await.unwrap();
        socket.send(Message::text("Good morning")).await.unwrap();
        assert_eq!(in_time(socket.next()).await.unwrap().unwrap(), Message::text("Good morning"));
        set(&dashboard, "chat", "false");
        // The application closes the connection.
        in_time(async { while let Some(Ok(_)) = socket.next().await {} }).await;

        // The event stream is still open, and does not delay the shutdown.
        let began = Instant::now();
        assert_eq!(program.stop("TERM").code(), Some(0));
        assert!(began.elapsed() < TIME_LIMIT);
        assert!(in_time(events.chunk()).await.unwrap().is_none());
    });
}

#[test]
fn without_the_url_of_redis_the_fleet_says_how_to_start_one() {
    let output = Command::new(env!("CARGO_BIN_EXE_redis-fleet")).env_remove("REDIS_URL").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("redis-server"), "{error}");
}

/// Stops `redis-server` at the end of a test.
#[cfg(feature = "redis-server")]
struct Redis(std::process::Child);

#[cfg(feature = "redis-server")]
impl Drop for Redis {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[cfg(feature = "redis-server")]
#[test]
fn instances_share_flags_in_redis() {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("socket").display().to_string();
    let redis = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--unixsocket", &socket, "--logfile", "log"])
        .current_dir(&folder)
        .spawn();
    let _redis = Redis(redis.expect("redis-server must be installed: apt-get install redis-server"));
    let instance = |service: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_redis-fleet"));
        command.arg(FREE_PORT).env("REDIS_URL", format!("unix://{socket}")).env_remove("FLIPSWITCH_BASE_URL");
        Program::spawn(command.envs(service.map(|url| ("FLIPSWITCH_BASE_URL", url))))
    };
    let mut first = instance(None);
    let dashboard = first.line("Dashboard");
    let mut second = instance(Some(dashboard.trim_end_matches('/')));
    let page = |program: &Program| Program::curl(&format!("curl {}/", program.app));
    let [.., (_, of_first), (_, of_second)] = &commands("redis_fleet.rs")[..] else { panic!("two commands") };
    assert_eq!(page(&first), *of_first);
    let counted = |page: &str| page.rsplit_once(' ').unwrap().1.trim_end().parse::<u32>().unwrap();
    assert_eq!(counted(of_second), 1);

    // The second instance reads from Redis once its stream of changes is open.
    let deadline = Instant::now() + TIME_LIMIT;
    let mut is_on = false;
    while counted(&page(&second)) == 0 {
        is_on = !is_on;
        set(&dashboard, "new-checkout", &is_on.to_string());
        for program in [&first, &second] {
            while !page(program).starts_with(&format!("new-checkout is {is_on}, ")) {
                assert!(Instant::now() < deadline);
            }
        }
        assert!(Instant::now() < deadline);
    }
    for program in [&mut first, &mut second] {
        assert_eq!(program.stop("TERM").code(), Some(0));
    }
}
