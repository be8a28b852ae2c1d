//! Clients of other projects, as processes that receive and send lines of JSON.

use std::{path::Path, process::Stdio};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::support::{
    in_time,
    peer::{checked, installed},
};

/// A client in a process that ends with the test.
pub(crate) struct Driver {
    process: Child,
    questions: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// The events that no test has waited for yet, oldest first.
    heard: Vec<Value>,
}

impl Driver {
    /// Starts a script of `tests/peers` in Python, without a cache of its modules next to it. Returns the client with its first
    /// message.
    pub(crate) async fn python(script: &str, arguments: &[&str]) -> (Self, Value) {
        Self::start(Command::new(installed("python")).arg("-B").arg(path(script)).args(arguments)).await
    }

    /// Starts a script of `tests/peers` in Node, with the folder of its packages. Returns the client with its first
    /// message.
    pub(crate) async fn node(script: &str, arguments: &[&str]) -> (Self, Value) {
        let packages = checked("package-lock.json", include_str!("../../peers/package-lock.json")).join("npm");
        Self::start(Command::new("node").arg(path(script)).arg(packages.canonicalize().unwrap()).args(arguments)).await
    }

    async fn start(command: &mut Command) -> (Self, Value) {
        let command = command.env("no_proxy", "*").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let questions = process.stdin.take().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut client = Self { process, questions, lines, heard: Vec::new() };
        let answer = client.answer().await;
        (client, answer)
    }

    pub(crate) async fn ask(&mut self, question: Value) -> Value {
        in_time(self.questions.write_all(format!("{question}\n").as_bytes())).await.unwrap();
        self.answer().await
    }

    async fn answer(&mut self) -> Value {
        in_time(async {
            loop {
                let mut line = self.line().await.expect("the client has ended");
                match line.get_mut("answer") {
                    Some(answer) => break answer.take(),
                    None => self.heard.push(line),
                }
            }
        })
        .await
    }

    /// Waits for an event, and returns the first one of its kind that no test has waited for yet.
    pub(crate) async fn hears(&mut self, what: impl Fn(&Value) -> bool) -> Value {
        in_time(async {
            loop {
                if let Some(index) = self.heard.iter().position(&what) {
                    break self.heard.remove(index);
                }
                let line = self.line().await.expect("the client has ended");
                self.heard.push(line);
            }
        })
        .await
    }

    async fn line(&mut self) -> Option<Value> {
        let line = self.lines.next_line().await.unwrap()?;
        Some(serde_json::from_str(&line).unwrap())
    }

    /// Stops the client, and returns the events that no test has waited for.
    pub(crate) async fn end(self) -> Vec<Value> {
        let Self { mut process, questions, mut lines, mut heard } = self;
        drop(questions);
        while let Some(line) = in_time(lines.next_line()).await.unwrap() {
            heard.push(serde_json::from_str(&line).unwrap());
        }
        assert!(in_time(process.wait()).await.unwrap().success());
        heard
    }
}

fn path(script: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(script)
}
