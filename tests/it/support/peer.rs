//! Starts servers of other projects as processes.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Instant,
};

use flipswitch::serde_json::{Value, json};
use reqwest::{Method, StatusCode};

use crate::support::{PATIENCE, in_time};

/// A server process, which ends with the test.
#[derive(Debug)]
pub(crate) struct Peer {
    process: Child,
    pub(crate) url: String,
}

impl Peer {
    /// Starts the evaluator of flagd with a file of flags.
    pub(crate) fn flagd(flags: &Path) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/flagd_over_ofrep.py");
        Self::start(Command::new(installed("python")).arg(script).arg(flags).arg("0"))
    }

    /// Starts fast-feature, without flags.
    pub(crate) fn fast_feature() -> Self {
        Self::start(
            Command::new(installed("fast-feature"))
                .args(["serve", "--port", "0"])
                .env("FAST_FEATURE_BACKEND", "inmemory")
                .env("FAST_FEATURE_ADMIN", "true"),
        )
    }

    /// Starts a server on a free port, and waits until it prints the port.
    fn start(command: &mut Command) -> Self {
        let process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut peer = Self { process, url: String::new() };
        let stdout = peer.process.stdout.take().unwrap();
        let stderr = peer.process.stderr.take().unwrap();
        let (sender, output) = mpsc::channel();
        let pipes: [Box<dyn Read + Send>; 2] = [Box::new(stdout), Box::new(stderr)];
        for pipe in pipes {
            let sender = sender.clone();
            thread::spawn(move || {
                // Both are always read to the end, because a full pipe would stop the server.
                for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                    sender.send(String::from_utf8_lossy(&line).into_owned()).ok();
                }
            });
        }
        drop(sender);

        let deadline = Instant::now() + PATIENCE;
        let mut said = String::new();
        while let Ok(line) = output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if let Some(url) = line.split_whitespace().find(|word| word.starts_with("http://")) {
                url.clone_into(&mut peer.url);
                return peer;
            }
            said += &line;
            said.push('\n');
        }
        panic!("the server is not ready; its output:\n{said}")
    }

    /// Creates a flag through the admin interface of fast-feature, whose format differs from flagd's format.
    pub(crate) async fn create(&self, key: &str, flag: &Value) -> StatusCode {
        self.change(Method::POST, "", key, flag).await
    }

    /// Changes a flag of fast-feature.
    pub(crate) async fn update(&self, key: &str, flag: &Value) -> StatusCode {
        self.change(Method::PUT, &format!("/{key}"), key, flag).await
    }

    async fn change(&self, method: Method, path: &str, key: &str, flag: &Value) -> StatusCode {
        let flag = json!({
            "key": key, "state": flag["state"], "variants": flag["variants"], "default_variant": flag["defaultVariant"],
            "targeting": flag["targeting"], "metadata": flag.get("metadata").unwrap_or(&json!({})),
        });
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.request(method, format!("{}/admin/api/flags{path}", self.url)).json(&flag);
        in_time(request.send()).await.unwrap().status()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Returns the path of an installed program.
pub(crate) fn installed(program: &str) -> PathBuf {
    checked("requirements.txt", include_str!("../../peers/requirements.txt")).join("bin").join(program)
}

/// Returns the folder of the peers. Panics if a part is missing, or does not have the version that the tests need.
pub(crate) fn checked(part: &str, version: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let peers = root.join(env::var_os("FLIPSWITCH_PEERS").unwrap_or_else(|| "target/peers".into()));
    let complete = fs::read_to_string(peers.join(part)).is_ok_and(|installed| installed == version);
    assert!(complete, "{} lacks the peers, or is out of date: run tests/peers/setup", peers.display());
    peers
}
