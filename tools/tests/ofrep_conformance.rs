//! The options, the output and the exit codes of the program `ofrep-conformance`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Output;

use flipswitch_local::{Endpoint, Fault, LocalServer};
use serde_json::{Value, json};
use tokio::process::Command;

/// Runs the program. Returns its exit code, its output and its errors.
async fn run(arguments: &[&str]) -> (i32, String, String) {
    let program = env!("CARGO_BIN_EXE_ofrep_conformance");
    let Output { status, stdout, stderr } = Command::new(program).args(arguments).output().await.unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[tokio::test]
async fn the_exit_code_says_whether_the_service_conforms() {
    let service = LocalServer::builder().flags(json!({"f": true, "g": 1})).api_key("sesame").start().await.unwrap();
    let url = service.url();
    for credentials in [["--api-key", "sesame"], ["--bearer", "sesame"], ["--header", "X-API-Key=sesame"]] {
        let (code, report, _) = run(&[&[&url, "--flag", "g"], &credentials[..]].concat()).await;
        assert_eq!(code, 0, "{report}");
        assert!(report.ends_with("the service conforms\n") && !report.contains("sesame"), "{report}");
    }
    for (arguments, problem) in
        [(vec![url.as_str()], "401"), (vec![&*format!("{url}/ofrep/v1"), "--api-key", "sesame"], "404")]
    {
        let (code, _, error) = run(&arguments).await;
        assert!(code == 2 && error.contains(problem), "{error}");
    }
    service.faults().add(Fault::on(Endpoint::Bulk).status(503)).unwrap();
    let (code, report, _) = run(&[&url, "--api-key", "sesame", "--json", "--stream-wait", "0.5"]).await;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((code, &report["conforms"]), (1, &json!(false)));
    let first = &report["rows"][0];
    assert_eq!((&first["name"], &first["seen"]), (&json!("bulk-response"), &json!("status 503")));
    service.shutdown().await;
}

#[tokio::test]
async fn wrong_usage_is_an_error() {
    let (code, help, _) = run(&["--help"]).await;
    assert!(code == 0 && help.contains("Usage: ofrep-conformance URL"), "{help}");
    for (arguments, problem) in [
        (&[][..], "pass the URL"),
        (&["localhost:8080"], "must begin with http"),
        (&["http://localhost:8080", "again"], "again"),
        (&["http://localhost:8080", "--header", "name"], "NAME=VALUE"),
        (&["http://localhost:8080", "--api-key", "a\nb"], "x-api-key"),
        (&["http://localhost:8080", "--stream-wait", "-1"], "negative"),
        (&["http://localhost:8080", "--unknown"], "--unknown"),
    ] {
        let (code, _, error) = run(arguments).await;
        assert_eq!(code, 2, "{arguments:?}");
        assert!(error.contains(problem), "{arguments:?}: {error}");
    }
}
