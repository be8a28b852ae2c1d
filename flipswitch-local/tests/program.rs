//! The program: its options, its output, and its exit codes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Output, Stdio},
};

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flipswitch-local"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn outcome(arguments: &[&str]) -> (Output, String) {
    let output = program(arguments).output().unwrap();
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    (output, stderr)
}

/// Kills the program at the end of the test, even if the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn it_serves_a_flags_file_and_prints_its_url() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flags.json");
    std::fs::write(&file, r#"{"dark-mode": true}"#).unwrap();
    let arguments =
        ["--flags", file.to_str().unwrap(), "--listen", "127.0.0.1:0", "--api-key", "k", "--heartbeat", "0.5"];
    let mut child = Running(program(&arguments).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let url = lines.next().unwrap().strip_prefix("Flags at ").unwrap().to_owned();
    let dashboard = lines.next().unwrap().trim().strip_prefix("dashboard: ").unwrap().to_owned();
    assert_eq!(dashboard, format!("{url}/"));
    let body = |key: &'static str| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let request = reqwest::Client::new().post(format!("{url}/ofrep/v1/evaluate/flags")).header("x-api-key", key);
        runtime.block_on(async { request.body("{}").send().await.unwrap().text().await.unwrap() })
    };
    assert!(body("k").contains(r#""key":"dark-mode""#), "{}", body("k"));
    assert!(body("x").contains("unknown API key"), "{}", body("x"));

    #[cfg(unix)]
    {
        let terminated = Command::new("kill").arg("-TERM").arg(child.0.id().to_string()).status().unwrap();
        assert!(terminated.success());
        assert!(child.0.wait().unwrap().success(), "termination is a success");
    }
}

#[test]
fn errors_name_the_option() {
    let cases: [(&[&str], i32, &str); 10] = [
        (&["--flag", "x"], 2, "--flag"),
        (&["--listen", "nowhere"], 2, "--listen nowhere: must be an IP address with a port"),
        (&["--listen=localhost:4000"], 2, "--listen localhost:4000: must be an IP address with a port"),
        (&["--heartbeat", "often"], 2, "--heartbeat often: must be a number of seconds"),
        (&["--heartbeat=-1"], 2, "--heartbeat -1: "),
        (&["--heartbeat", "86401"], 1, "heartbeat is 86401s"),
        (&["--heartbeat", "0"], 1, "heartbeat"),
        (
            &["--allow-origin", "http://localhost:1", "--allow-origin", "http://localhost:2/"],
            1,
            "allow_origin: \"http://localhost:2/\" is not an origin",
        ),
        (&["--flags", "no/such/file.json"], 1, "no/such/file.json"),
        (&["--listen", "192.0.2.1:1"], 1, "--listen: cannot listen on 192.0.2.1:1"),
    ];
    for (arguments, code, expected) in cases {
        let (output, stderr) = outcome(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }
}

#[test]
fn control_is_exposed_only_with_the_option() {
    for (exposed, status) in [(false, 421), (true, 200)] {
        let mut arguments = vec!["--listen", "127.0.0.1:0"];
        arguments.extend(exposed.then_some("--expose-control"));
        let mut child = Running(program(&arguments).stdout(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let url = first.strip_prefix("Flags at ").unwrap();
        let request = reqwest::Client::new().get(format!("{url}/local/flags")).header("host", "flags:3001");
        let response = tokio::runtime::Runtime::new().unwrap().block_on(request.send()).unwrap();
        assert_eq!(response.status().as_u16(), status);
    }
}

#[test]
fn browsers_are_supported_with_options() {
    for supported in [false, true] {
        let mut arguments = vec!["--listen", "127.0.0.1:0"];
        let options =
            ["--event-streams", "--allow-origin", "http://localhost:1", "--allow-origin", "http://localhost:2"];
        arguments.extend(options.iter().filter(|_| supported));
        let mut child = Running(program(&arguments).stdout(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let url = first.strip_prefix("Flags at ").unwrap();
        let request = reqwest::Client::new().post(format!("{url}/ofrep/v1/evaluate/flags"));
        let request = request.header("origin", "http://localhost:2").body("{}");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let response = request.send().await.unwrap();
            let allowed = response.headers().get("access-control-allow-origin").cloned();
            assert_eq!(allowed.is_some_and(|origin| origin == "http://localhost:2"), supported);
            assert_eq!(response.text().await.unwrap().contains("/ofrep/v1/sse/flags"), supported);
        });
    }
}

#[test]
fn help_and_version_are_printed() {
    let (help, _) = outcome(&["--help"]);
    assert!(help.status.success());
    assert!(String::from_utf8(help.stdout).unwrap().contains("--flags FILE"));
    let (version, _) = outcome(&["--version"]);
    assert_eq!(
        String::from_utf8(version.stdout).unwrap().trim(),
        concat!("flipswitch-local ", env!("CARGO_PKG_VERSION"))
    );
}
