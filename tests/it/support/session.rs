//! Runs the program `session`, which prints everything that a provider returns and logs.

use std::process::{Command, Output};

use super::in_time;

/// Runs the program `session` against services.
pub(crate) async fn session(
    key: &'static str,
    base_urls: Vec<String>,
    environment: &[(&str, &str)],
) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_session"));
    command.args(base_urls).env("FLIPSWITCH_API_KEY", key).envs(environment.iter().copied());
    let output = in_time(tokio::task::spawn_blocking(move || command.output().unwrap())).await.unwrap();
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    (output, said)
}
