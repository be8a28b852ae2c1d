//! The service cannot evaluate one flag, but evaluates the others.

use std::time::Duration;

use flipswitch::HealthState;
use flipswitch_local::{Endpoint, Fault, LocalServer};
use serde_json::json;

use crate::support::{
    self, Log, builder, eventually,
    faults::{Kind, Row, Service, service},
    in_time, user,
};

#[tokio::test]
async fn a_flag_that_fails_keeps_its_last_value_while_others_are_fresh() {
    let service = LocalServer::start(json!({"a": 1, "b": 1})).await.unwrap();
    let row = Row::new(builder(&service));
    row.provider.ready(support::PATIENCE).await.unwrap();
    row.shows(flipswitch::ConnectionStatus::Connected).await;
    row.eventually("known", async || row.read().await.int("a", 0) == 1).await;

    let fault = service.faults().add(Fault::on(Endpoint::Bulk).flag_error("a", "GENERAL")).unwrap();
    service.set_flag("a", 2);
    service.set_flag("b", 2);
    row.eventually("b is new", async || row.read().await.int("b", 0) == 2).await;
    for _ in 0..100 {
        let flags = row.read().await;
        assert_eq!((flags.int("a", 0), flags.int("b", 0)), (1, 2));
        assert!(flags.is_flag_stale("a") && !flags.is_flag_stale("b") && !flags.is_stale());
        assert!(flags.error().is_none());
    }
    assert_eq!(row.provider.health().state, HealthState::Streaming);

    // Without an event, a read of the flag causes a new request.
    assert!(service.faults().remove(fault));
    row.eventually("a is new", async || row.read().await.int("a", 0) == 2).await;
    assert!(!row.read().await.is_flag_stale("a"));
    let changes = row.changes.lock().unwrap().clone();
    assert!(changes.iter().all(Option::is_some), "{changes:?}");
    row.provider.shutdown().await;
}

#[tokio::test]
async fn a_flag_that_fails_costs_few_requests_and_no_reader_waits() {
    let service = service(1).await;
    let row = Row::new(builder(&service).stale_wait(support::PATIENCE));
    row.opens(&service, 1).await;
    service.faults().add(Fault::on(Endpoint::Bulk).flag_error("f", "GENERAL")).unwrap();
    service.set_flag("f", 2);
    row.eventually("failing", async || row.read().await.is_flag_stale("f")).await;
    let (began, before) = (std::time::Instant::now(), service.asked_for(Kind::User).len());
    let mut slowest = Duration::ZERO;
    eventually(async || {
        let read = std::time::Instant::now();
        assert_eq!(row.read().await.int("f", 0), 1);
        slowest = slowest.max(read.elapsed());
        service.asked_for(Kind::User).len() >= before + 3
    })
    .await;
    // The backoff allows one request, and the end of the echo window causes another.
    assert!(began.elapsed() >= Duration::from_millis(1_400), "{:?}", began.elapsed());
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    row.provider.shutdown().await;
}

#[tokio::test]
async fn a_flag_without_an_earlier_value_returns_its_default_until_it_is_evaluated() {
    let service = LocalServer::start(json!({"a": 1})).await.unwrap();
    let fault = service.faults().add(Fault::on(Endpoint::Bulk).flag_error("a", "GENERAL")).unwrap();
    let provider = builder(&service).build().unwrap();
    assert_eq!(in_time(provider.flags(&user("u"))).await.int("a", 7), 7);
    assert!(service.faults().remove(fault));
    eventually(async || provider.flags(&user("u")).await.int("a", 7) == 1).await;
    provider.shutdown().await;
}

#[tokio::test]
async fn a_gate_logs_that_the_service_could_not_evaluate_its_flag() {
    let service = LocalServer::start(json!({"a": true})).await.unwrap();
    service.faults().add(Fault::on(Endpoint::Bulk).flag_error("a", "GENERAL")).unwrap();
    let provider = builder(&service).build().unwrap();
    let flags = in_time(provider.flags(&user("u"))).await;
    let log = Log::of_this_thread();
    assert!(!flipswitch::integration::GateRule::enabled("a").is_open(&flags));
    let lines = log.lines();
    assert!(
        matches!(lines.as_slice(), [line] if line.contains("GENERAL") && !line.contains("does not have")),
        "{lines:?}"
    );
    provider.shutdown().await;
}
