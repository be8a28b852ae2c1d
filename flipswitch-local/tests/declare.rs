//! The subcommands `declare` and `check`. What `declare` prints is compiled here.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[rustfmt::skip]
#[expect(unused_qualifications, reason = "as it is printed, for code that does not import the crate")]
#[path = "fixtures/declared.rs"]
mod declared;

use std::{path::PathBuf, process::Output};

use flipswitch_local::{Endpoint, Fault, LocalServer};
use serde_json::{Value, json};
use tokio::process::Command;

const SOURCE: &str = include_str!("fixtures/declared.rs");

async fn program(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flipswitch-local"));
    let Output { status, stdout, stderr } =
        command.args(arguments).env_remove("FLIPSWITCH_API_KEY").output().await.unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// Writes a manifest, and returns the file and its folder.
fn written(manifest: &Value) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flags.json");
    std::fs::write(&file, manifest.to_string()).unwrap();
    (folder, file)
}

#[tokio::test]
async fn declared_flags_become_a_manifest_and_the_same_declarations_again() {
    let manifest = flipswitch::manifest(declared::FLAGS);
    let (_folder, file) = written(&manifest);
    let (code, source, errors) = program(&["declare", "--manifest", file.to_str().unwrap()]).await;
    assert_eq!((code, errors.as_str()), (0, ""));
    assert_eq!(source, SOURCE);
}

#[tokio::test]
async fn the_flags_of_a_service_are_declared_with_empty_defaults() {
    let flags = json!({"on": true, "limit": 20, "ratio": 0.5, "theme": "dark", "shape": {"sides": 4}});
    let service = LocalServer::builder().flags(flags).api_key("sesame").start().await.unwrap();
    let url = service.url();
    let (code, source, errors) =
        program(&["declare", "--service", &url, "--api-key", "sesame", "--crate", "flipswitch-axum"]).await;
    assert_eq!((code, errors.as_str()), (0, ""));
    let expected = "flipswitch_axum::flags! {
    pub static FLAGS;
    pub Limit: i64 = \"limit\", default 0;
    pub On: bool = \"on\", default false;
    pub Ratio: f64 = \"ratio\", default 0.0;
    pub Shape: flipswitch_axum::flipswitch::serde_json::Value = \"shape\", default flipswitch_axum::flipswitch::serde_json::json!({});
    pub Theme: String = \"theme\", default \"\";
}
";
    assert_eq!(source, expected);
    let (code, _, error) = program(&["declare", "--service", &url]).await;
    assert!(code == 1 && error.contains("refuses the API key"), "{error}");
    service.shutdown().await;
    let (code, _, error) = program(&["declare", "--service", &url]).await;
    assert!(code == 1 && error.contains(&url), "{error}");
}

#[tokio::test]
async fn the_exit_code_says_whether_a_service_fits_a_manifest() {
    let service = LocalServer::start(json!({"new-checkout": true, "theme": 7, "extra": 1})).await.unwrap();
    let url = service.url();
    let flag = |flag_type: &str, default: Value| json!({"flagType": flag_type, "defaultValue": default});
    let fits = json!({"flags": {"new-checkout": flag("boolean", json!(false))}});
    let (_folder, file) = written(&fits);
    let (code, report, _) = program(&["check", "--manifest", file.to_str().unwrap(), "--service", &url]).await;
    assert_eq!(code, 0, "{report}");
    assert!(
        report.ends_with("the service matches the manifest\n") && report.contains("undeclared: extra\n"),
        "{report}"
    );

    let differs = json!({"flags": {"theme": flag("string", json!("light")), "gone": flag("boolean", json!(true))}});
    let (_folder, file) = written(&differs);
    let (code, report, _) =
        program(&["check", "--manifest", file.to_str().unwrap(), "--service", &url, "--json"]).await;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((code, &report["missing"]), (1, &json!(["gone"])));
    assert_eq!(report["types"], json!([{"key": "theme", "manifest": "string", "service": "integer"}]));

    for (arguments, problem) in [
        (vec!["check", "--service", &url], "pass --manifest"),
        (vec!["check", "--manifest", "no/such.json", "--service", &url], "no/such.json"),
        (vec!["check", "--manifest", file.to_str().unwrap(), "--service", "localhost:3001"], "must be the URL"),
        (vec!["declare"], "either --manifest"),
        (vec!["declare", "--manifest", "x", "--crate", "other"], "must be one of flipswitch"),
    ] {
        let (code, _, error) = program(&arguments).await;
        assert!(code == 2 && error.contains(problem), "{arguments:?}: {code} {error}");
    }
    service.shutdown().await;
}

/// A redirect would take the API key to another server.
#[tokio::test]
async fn redirects_are_not_followed() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let other = LocalServer::start(json!({"on": true})).await.unwrap();
    let target = format!("{}/ofrep/v1/evaluate/flags", other.url());
    service.faults().add(Fault::on(Endpoint::Bulk).redirect(307, target)).unwrap();
    let (code, _, error) = program(&["declare", "--service", &service.url(), "--api-key", "secret"]).await;
    assert!(code == 1 && error.contains("redirects"), "{error}");
    assert!(other.requests().is_empty());
}
