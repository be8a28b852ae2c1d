//! Requests for flags fail while the stream works.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use flipswitch::{ConnectionStatus, FlipswitchProvider, HealthState};
use flipswitch_local::{Endpoint, Fault};
use futures_util::future::join_all;
use serde_json::json;

use crate::support::{
    self, eventually,
    faults::{Kind, Row, Service, scheduled, service},
    scripted::{Reply, Scripted},
};

/// After an invalid response, the last values remain and are stale until the backoff ends.
#[tokio::test]
async fn after_invalid_responses_the_last_values_remain_until_the_next_request() {
    let bulk = || Fault::on(Endpoint::Bulk);
    let page = "<!doctype html><title>Sign in to this network</title>";
    let faults = [
        bulk().garbage(page).content_type("text/html"),
        bulk().garbage(page),
        bulk().garbage(""),
        bulk().garbage("null"),
        bulk().garbage("{\"flags\": [{\"key\": \"f\", \"value\""),
        bulk().garbage(b"{\"flags\": [{\"key\": \"f\xff\", \"value\": 2}]}".as_slice()),
        bulk().garbage("[".repeat(100_000)),
        // The header does not matter, because the body is not JSON in either case.
        bulk().status(200).header("content-encoding", "gzip").body(b"\x1f\x8b\x08\0\0\0".as_slice()),
        bulk().status(204),
        bulk().status(302),
        // Responses of a firewall or a proxy say nothing about the key or about the flags.
        bulk().status(401).body(page),
        bulk().status(403).body(page),
        bulk().status(403).header("content-type", "text/plain").body("Forbidden"),
        bulk().status(404).body(page),
        // The service had flags before, so a 404 does not mean that it has none.
        bulk().status(404),
        bulk().status(404).header("content-type", "application/json").body("{\"message\": \"no route\"}"),
        bulk().status(404).body("404 page not found\n"),
        bulk().status(429),
        bulk().status(500).body(page),
        bulk().status(503),
        bulk().hang(),
        bulk().half_open(),
        bulk().half_open().after_bytes(5),
        bulk().close().after_bytes(5),
        bulk().reset().after_bytes(5),
    ];
    join_all(faults.map(async |fault| {
        let told = format!("{fault:?}");
        let service = service(1).await;
        let row = Row::new(support::builder(&service).request_timeout(Duration::from_millis(500))).named(&told);
        row.opens(&service, 1).await;
        // A request that is rejected with 403 is repeated without its tag.
        let times = if told.contains("403") { 2 } else { 1 };
        let fault = service.faults().add(fault.times(times)).unwrap();
        service.set_flag("f", 2);
        row.keeps(1).await;
        row.sees(2).await;
        assert_eq!(service.faults().applied(fault), times, "{told}");
        assert_eq!(row.provider.sse_status(), ConnectionStatus::Connected, "{told}");
        row.ends("connecting connected", service.asked()).await;
    }))
    .await;
}

/// While the service fails, reads send no requests. Requests are sent only by the backoff of the context, and by the rounds that
/// find out whether the service works for others.
#[tokio::test]
async fn repeated_failures_double_the_wait() {
    let service = service(1).await;
    let row = Row::new(support::builder(&service));
    row.opens(&service, 1).await;
    let before = service.asked().len();
    let fault = service.faults().add(Fault::on(Endpoint::Bulk).status(503)).unwrap();
    let began = Instant::now();
    service.set_flag("f", 2);
    row.keeps(1).await;
    // There are three rounds.
    let rounds = || {
        let asked = service.asked().split_off(before);
        asked.into_iter().filter(|asked| asked.0 == Kind::StartUp).map(|asked| asked.1).collect::<Vec<_>>()
    };
    eventually(async || {
        row.read().await;
        rounds().len() == 3
    })
    .await;
    let asked = service.faults().applied(fault) as usize;
    assert!(asked <= 3 * scheduled(began.elapsed()), "{asked} requests in {:?}", began.elapsed());
    service.faults().clear();
    row.sees(2).await;
    let rounds = rounds();
    assert!(rounds[1] - rounds[0] >= Duration::from_millis(990), "{rounds:?}");
    assert!(rounds[2] - rounds[1] >= Duration::from_millis(1_990), "{rounds:?}");
    row.ends("connecting connected", service.asked()).await;
}

/// If every response is a page, a proxy is in between, or the base URL is wrong. The provider is not ready, and the error has
/// the URL and other possible reasons.
#[tokio::test]
async fn an_error_for_a_page_names_the_url() {
    let page = "<html><title>Not found</title></html>";
    join_all([(401, "API key"), (403, "API key"), (404, "base URL")].map(async |(status, reason)| {
        let service = Scripted::answering(Reply::status(status, page)).await;
        let provider = FlipswitchProvider::builder("key").base_url(service.url()).build().unwrap();
        let error = provider.ready(Duration::from_secs(1)).await.unwrap_err();
        let text = support::chain(&error);
        let url = format!("{}/ofrep/v1/evaluate/flags", service.url());
        for part in [&status.to_string(), &url, reason] {
            assert!(text.contains(part), "{status}: {text}");
        }
        assert!(!provider.health().is_ready() && provider.health().state != HealthState::Unauthorized, "{status}");
        provider.shutdown().await;
    }))
    .await;
}

/// A 404 in the form of the service means that there are no flags yet, or that the base URL is wrong. Until this is certain,
/// the provider is not ready, and bootstrap values apply.
#[tokio::test]
async fn a_404_is_a_failure_at_first() {
    for body in ["", "{\"message\": \"no route\"}"] {
        let service = Scripted::answering(Reply::status(404, body)).await;
        let builder = FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false);
        let provider = builder.bootstrap(json!({"f": 1})).build().unwrap();
        let error = provider.ready(Duration::from_millis(500)).await.unwrap_err();
        assert!(support::chain(&error).contains("base URL"), "{}", support::chain(&error));
        let flags = provider.flags(&support::user("u")).await;
        assert!(flags.int("f", 0) == 1 && flags.is_stale() && flags.error().is_some());
        assert!(!provider.health().is_ready());
        provider.shutdown().await;
    }
}

/// The provider requests no encoding, so it reads a response unchanged and ignores `Content-Encoding`.
#[tokio::test]
async fn a_wrong_content_encoding_of_a_response_is_ignored() {
    let service = service(1).await;
    let answer = json!({"flags": [{"key": "f", "value": 2}]}).to_string();
    service
        .faults()
        .add(Fault::on(Endpoint::Bulk).status(200).header("content-encoding", "gzip").body(answer))
        .unwrap();
    let row = Row::new(support::builder(&service));
    row.sees(2).await;
    service.faults().clear();
    row.shows(ConnectionStatus::Connected).await;
    service.set_flag("f", 3);
    row.sees(3).await;
    row.ends("connecting connected", service.asked()).await;
}

/// The API key is only for the service. A redirect to another origin does not even cause a connection.
#[tokio::test]
async fn redirected_requests_do_not_reach_another_origin() {
    join_all([301, 302, 303, 307, 308].map(async |code| {
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        elsewhere.set_nonblocking(true).unwrap();
        let service = service(1).await;
        let location = format!("http://{}/", elsewhere.local_addr().unwrap());
        service.faults().add(Fault::on(Endpoint::Stream).redirect(code, &location)).unwrap();
        service.faults().add(Fault::on(Endpoint::Bulk).redirect(code, &location)).unwrap();
        let row = Row::new(support::builder(&service)).named(code.to_string());
        assert!(row.read().await.error().is_some(), "{code}");
        row.shows(ConnectionStatus::Error).await;
        assert_eq!(elsewhere.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "{code}");
        service.faults().clear();
        row.sees(1).await;
        row.shows(ConnectionStatus::Connected).await;
        row.ends("connecting error connecting connected", service.asked()).await;
    }))
    .await;
}
