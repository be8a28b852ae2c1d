//! The program: its options, its output, and its exit codes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Output, Stdio},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flipswitch-local"));
    command.args(arguments).stdin(Stdio::null()).env_remove("FLIPSWITCH_OVERRIDES_KEY");
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
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("--flags FILE") && help.contains("flipswitch-local override --help"), "{help}");
    let (version, _) = outcome(&["--version"]);
    assert_eq!(
        String::from_utf8(version.stdout).unwrap().trim(),
        concat!("flipswitch-local ", env!("CARGO_PKG_VERSION"))
    );
}

/// Runs `override` with a key in the environment.
fn minted(arguments: &[&str]) -> (Output, String, String) {
    let mut command = program(&["override"]);
    let output = command.args(arguments).env("FLIPSWITCH_OVERRIDES_KEY", "0123456789abcdef").output().unwrap();
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8(bytes.clone()).unwrap());
    (output, stdout, stderr)
}

/// Returns the content of a token.
fn content(token: &str) -> Value {
    let (body, code) = token.split_once('.').unwrap();
    assert_eq!(BASE64_URL_SAFE_NO_PAD.decode(code).unwrap().len(), 32);
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(body).unwrap()).unwrap()
}

#[test]
fn override_prints_only_the_query_the_link_or_the_cookie() {
    let (output, query, about) = minted(&["new-checkout=true", "theme=dark"]);
    assert!(output.status.success(), "{about}");
    let token = query.strip_prefix("flipswitch=").unwrap().strip_suffix('\n').unwrap();
    let body = content(token);
    assert_eq!(body["flags"], json!({"new-checkout": true, "theme": "dark"}));
    assert_eq!((&body["lasts"], body.get("sub")), (&json!(8 * 3600), None));
    for part in [r#"{"new-checkout":true,"theme":"dark"}"#, "every user", "15 minutes", "8 hours", "?flipswitch=off"] {
        assert!(about.contains(part), "{part}: {about}");
    }
    assert!(!about.contains(token) && !about.contains("0123456789abcdef"), "{about}");

    let page = "http://shop.example/checkout?step=2#pay";
    let (_, link, about) = minted(&["max=10", "--url", page, "--for", "alice", "--hours=1", "--name", "shop"]);
    let token = link.strip_prefix("http://shop.example/checkout?step=2&flipswitch=").unwrap();
    let body = content(token.strip_suffix("#pay\n").unwrap());
    assert_eq!((&body["flags"], &body["lasts"], &body["sub"]), (&json!({"max": 10}), &json!(3600), &json!("alice")));
    for part in ["\"alice\" only", "provider: shop", "1 hour ", "Warning: this page does not use https"] {
        assert!(about.contains(part), "{part}: {about}");
    }

    let (_, cookie, about) = minted(&["--cookie", "--hours", "168", "--", "-f=null"]);
    let body = content(cookie.strip_prefix("__Host-flipswitch-overrides=").unwrap().trim_end());
    assert_eq!((&body["flags"], body.get("lasts")), (&json!({"-f": null}), None));
    assert!(about.contains("valid for 168 hours, until 20"), "{about}");
}

#[test]
fn override_prefers_the_key_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("overrides.key");
    // Tokens of the same second are equal if their keys are.
    let is_same = |key: &str| {
        std::fs::write(&file, key).unwrap();
        let with_file = ["--cookie", "f=1", "--key-file", file.to_str().unwrap()];
        (0..20).any(|_| minted(&["--cookie", "f=1"]).1 == minted(&with_file).1)
    };
    assert!(is_same("0123456789abcdef\n"));
    assert!(!is_same("another key of tests"));
}

#[test]
fn errors_of_override_name_the_option() {
    let long = format!("f={}", "x".repeat(4_000));
    let cases: [(&[&str], i32, &str); 15] = [
        (&[], 2, "no flags: pass FLAG=VALUE"),
        (&["new-checkout"], 2, "new-checkout: must be FLAG=VALUE"),
        (&["=true"], 2, "=true: must be FLAG=VALUE"),
        (&["f=1", "f=2"], 2, "f=2: f already has a value"),
        (&["f=1", "--key", "0123456789abcdef"], 2, "--key"),
        (&["f=1", "--hours", "169"], 2, "--hours 169: must be a whole number from 1 to 168"),
        (&["f=1", "--hours=0"], 2, "--hours 0: must be"),
        (&["f=1", "--hours", "1.5"], 2, "--hours 1.5: must be"),
        (&["f=1", "--url", "shop.example"], 2, "--url shop.example: must be the URL of a page"),
        (&["f=1", "--url", "https://shop.example", "--cookie"], 2, "--url and --cookie cannot be used together"),
        (&["f=1", "--name", "my shop"], 2, "--name my shop: must be"),
        (&["f=1", "--for="], 2, "--for : must not be empty"),
        (&["f=1", "--key-file"], 2, "--key-file"),
        (&["f=1", "--key-file", "no/such/file"], 1, "--key-file no/such/file: "),
        (&[&long], 2, "at most 3584 are accepted"),
    ];
    for (arguments, code, expected) in cases {
        let (output, stdout, stderr) = minted(arguments);
        assert_eq!((output.status.code(), stdout.as_str()), (Some(code), ""), "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }
    let (output, stderr) = outcome(&["override", "f=1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr.contains("--key-file FILE, or set FLIPSWITCH_OVERRIDES_KEY"), "{stderr}");
    let short = program(&["override", "f=1"]).env("FLIPSWITCH_OVERRIDES_KEY", "secret-secret\n").output().unwrap();
    let stderr = String::from_utf8(short.stderr).unwrap();
    assert_eq!(short.status.code(), Some(1));
    assert!(stderr.contains("FLIPSWITCH_OVERRIDES_KEY: the key is 13 bytes long, but at least 16"), "{stderr}");
    assert!(!stderr.contains("secret"), "{stderr}");
}

#[test]
fn the_help_of_override_names_its_options() {
    let (output, _) = outcome(&["override", "--help"]);
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for option in ["FLAG=VALUE", "--key-file", "--name", "--for", "--hours", "--url", "--cookie", "--help"] {
        assert!(help.contains(option), "{option}: {help}");
    }
}
