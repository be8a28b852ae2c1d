//! Overrides that the program mints, in an application that accepts them.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use axum::{Router, routing::get};
use flipswitch::{Context, FlipswitchProvider, SignedOverrides};
use flipswitch_axum::{Flags, FlipswitchLayer};
use reqwest::{Client, StatusCode, redirect::Policy};
use serde_json::json;

use crate::support::in_time;

const KEY: &str = "the key of these tests";

/// Runs `flipswitch-local override` with a key, and returns its output.
fn minted(key: &str, arguments: &[&str]) -> String {
    // The program is in the folder above the folder of the tests. It is built here, unless it exists.
    let tests = std::env::current_exe().unwrap();
    let folder = tests.ancestors().nth(2).unwrap();
    let program = folder.join(format!("flipswitch-local{}", std::env::consts::EXE_SUFFIX));
    if !program.exists() {
        build(folder);
    }
    let mut command = Command::new(program);
    command.arg("override").args(arguments).env("FLIPSWITCH_OVERRIDES_KEY", key).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// Builds the program, which `cargo test` does for the whole workspace, but not for this package alone.
fn build(folder: &Path) {
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--quiet", "--locked", "--package", "flipswitch-local", "--target-dir"]);
    command.arg(folder.parent().unwrap());
    if folder.ends_with("release") {
        command.arg("--release");
    }
    assert!(command.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
}

/// Serves an application that accepts overrides of a flag, and returns its URL. The header `user` names the user.
async fn application() -> String {
    let provider = FlipswitchProvider::in_memory(json!({"theme": "light"}));
    let layer = FlipswitchLayer::new(provider)
        .with_context(|parts| Some(Context::user(parts.headers.get("user")?.to_str().ok()?)))
        .with_overrides(SignedOverrides::new(KEY).allow(["theme"]));
    let theme = get(async |flags: Flags| flags.string("theme", "none").to_owned());
    let app = Router::new().route("/theme", theme).layer(layer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/theme", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

/// Returns what a user reads with a cookie.
async fn theme(url: &str, user: &str, cookie: &str) -> String {
    let request = Client::new().get(url).header("user", user).header("cookie", cookie);
    in_time(async { request.send().await.unwrap().error_for_status().unwrap().text().await.unwrap() }).await
}

#[tokio::test]
async fn a_cookie_is_accepted_for_its_key_provider_and_user_only() {
    let url = application().await;
    assert_eq!(theme(&url, "alice", "a=b").await, "light");
    let cookie = minted(KEY, &["--cookie", "theme=dark"]);
    assert_eq!(theme(&url, "alice", &format!("a=b; {cookie}")).await, "dark");
    for (expected, key, arguments) in [
        ("dark", KEY, vec!["--for", "alice"]),
        ("dark", KEY, vec!["--hours", "100"]),
        ("light", KEY, vec!["--for", "bob"]),
        ("light", KEY, vec!["--name", "other"]),
        ("light", "another key of these tests", vec![]),
    ] {
        let cookie = minted(key, &[&["--cookie", "theme=dark"], arguments.as_slice()].concat());
        assert_eq!(theme(&url, "alice", &cookie).await, expected, "{key} {arguments:?}");
    }
}

#[tokio::test]
async fn a_link_sets_the_cookie() {
    let url = application().await;
    let link = minted(KEY, &["theme=dark", "--for", "alice", "--url", &format!("{url}?a=b")]);
    let client = Client::builder().redirect(Policy::none()).build().unwrap();
    let response = in_time(client.get(link).header("user", "alice").send()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    assert_eq!(response.headers()["location"], "/theme?a=b");
    let cookie = response.headers()["set-cookie"].to_str().unwrap();
    assert!(cookie.contains("; Max-Age=28800; "), "{cookie}");
    assert_eq!(theme(&url, "alice", cookie.split(';').next().unwrap()).await, "dark");
}
