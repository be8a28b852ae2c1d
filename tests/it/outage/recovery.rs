//! A service recovers while many users wait for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use flipswitch_local::{Endpoint, Fault, LocalServer};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{
    PATIENCE, builder, eventually,
    faults::{Kind, Port, Row, Service, service},
    in_time, reserved_port, user,
};

/// The time that the service takes for a response.
const LATENCY: Duration = Duration::from_millis(100);

/// Returns the maximum number of requests in the first second of a service, if each takes [`LATENCY`]: the three of a
/// round, and then one for each permit for contexts without flags. These are half of all permits, which are 4 at
/// first and double with every 10 responses.
fn bound() -> usize {
    let (mut permits, mut answers, mut requests) = (4_usize, 3, 3);
    // The round takes the first tenth of the second.
    for _ in 1..Duration::from_secs(1).as_millis() / LATENCY.as_millis() {
        requests += permits / 2;
        answers += permits / 2;
        if answers >= 10 {
            (answers, permits) = (0, 2 * permits);
        }
    }
    requests
}

#[tokio::test]
async fn a_recovering_service_does_not_receive_all_requests_at_once() {
    const USERS: usize = 5_000;
    let port = Port::new();
    let provider = port.builder().enable_realtime(false).build().unwrap();
    let (reads, answered, stop) =
        (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default(), CancellationToken::new());
    for id in 0..USERS {
        let (provider, reads, answered) = (provider.clone(), Arc::clone(&reads), Arc::clone(&answered));
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            let context = user(&id.to_string());
            while provider.flags(&context).await.int("f", 0) != 1 {
                reads.fetch_add(1, Ordering::Relaxed);
                // The reads are spread over the second.
                tokio::time::sleep(Duration::from_millis(500 + id as u64 % 500)).await;
            }
            answered.fetch_add(1, Ordering::Relaxed);
        }));
    }
    eventually(async || reads.load(Ordering::Relaxed) >= 2 * USERS && provider.stats().throttling.is_circuit_open)
        .await;
    let service = port.service(1).await;
    service.faults().add(Fault::on(Endpoint::Bulk).delay(LATENCY)).unwrap();
    // Some users get their flags in the second after the first request.
    eventually(async || service.asked().first().is_some_and(|(_, at)| at.elapsed() > Duration::from_secs(1))).await;
    let asked = service.asked();
    let first = asked[0].1;
    let within = |time: Duration| asked.iter().filter(|(_, at)| *at < first + time).count();
    let (at_first, in_a_second) = (within(3 * LATENCY), within(Duration::from_secs(1)));
    assert!(at_first <= 3 + 3 * 2, "{at_first} requests in {:?}", 3 * LATENCY);
    assert!(in_a_second <= bound(), "{in_a_second} requests in the first second");
    assert!(in_a_second > 3, "requests for users must follow the round");
    assert!(asked.iter().any(|(kind, _)| *kind == Kind::StartUp), "the round must request the start-up context");
    // All users get their flags, a few hundred of them per second.
    let enough = in_a_second + 500;
    eventually(async || answered.load(Ordering::Relaxed) >= enough).await;
    assert!(!provider.stats().throttling.is_circuit_open);
    stop.cancel();
    in_time(provider.shutdown()).await;
}

/// Maintenance pages specify long times. Flags recover as soon as after any other failure, and a change is visible immediately.
#[tokio::test]
async fn a_long_retry_after_of_a_failure_is_limited() {
    let service = service(1).await;
    let row = Row::new(builder(&service));
    row.opens(&service, 1).await;
    let fault = Fault::on(Endpoint::Bulk).status(503).header("retry-after", "3600").times(1);
    service.faults().add(fault).unwrap();
    service.set_flag("f", 2);
    row.keeps(1).await;
    service.set_flag("f", 3);
    row.sees(3).await;
    row.provider.shutdown().await;
}

/// The `Retry-After` of one user applies only to this user. It delays neither the detection of an outage nor the recovery.
#[tokio::test]
async fn a_long_retry_after_of_one_context_does_not_delay_the_recovery() {
    let address = reserved_port();
    let service = LocalServer::builder().flags(json!({"f": 1})).listen(address).start().await.unwrap();
    let provider = builder(&service).enable_realtime(false).polling_interval(Duration::from_millis(1)).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    let unavailable = Fault::on(Endpoint::Bulk).status(503).header("retry-after", "120");
    service.faults().add(unavailable.for_targeting_key("poison")).unwrap();
    assert!(in_time(provider.flags(&user("poison"))).await.error().is_some());
    assert!(in_time(provider.flags(&user("known"))).await.error().is_none());
    in_time(service.shutdown()).await;
    eventually(async || {
        provider.flags(&user("new")).await;
        provider.stats().throttling.is_circuit_open
    })
    .await;
    let _service = LocalServer::builder().flags(json!({"f": 1})).listen(address).start().await.unwrap();
    eventually(async || provider.flags(&user("new")).await.int("f", 0) == 1).await;
    provider.shutdown().await;
}
