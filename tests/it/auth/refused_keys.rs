//! Responses that refuse the API key, with keys that are valid and keys that are not.

use std::time::{Duration, Instant};

use flipswitch::{
    ConnectionStatus, Error, FlipswitchProvider, HealthState, Lifespan, ReadyError, open_feature::EvaluationContext,
    serde_json::json,
};
use flipswitch_local::{Endpoint, Fault, LocalServer};

use crate::support::{self, PATIENCE, events::connected, eventually, in_time, user};

const PAGE: &str = "<!doctype html><title>Forbidden</title>";

/// The time limit for the confirmation of a refused key: one second, and a margin for a busy machine.
const CONFIRMED: Duration = Duration::from_secs(3);

/// The time limit for the acceptance of a refused key, which is tried again after 5 seconds.
const ACCEPTED: Duration = Duration::from_secs(8);

async fn service() -> LocalServer {
    LocalServer::start(json!({"f": true})).await.unwrap()
}

fn forbidden() -> Fault {
    Fault::on(Endpoint::Bulk).status(403)
}

fn is_accepted(provider: &FlipswitchProvider) {
    let health = provider.health();
    assert_ne!(health.state, HealthState::Unauthorized, "{health:?}");
}

#[tokio::test]
async fn a_page_of_a_firewall_delays_only_one_user_by_some_seconds() {
    let service = service().await;
    let provider = connected(&service).await;
    let fault = service.faults().add(forbidden().html(PAGE).times(1)).unwrap();
    let flags = in_time(provider.flags(&user("first"))).await;
    assert!(!flags.bool("f", false) && matches!(flags.error(), Some(Error::Decode(_))), "{:?}", flags.error());
    let failed = Instant::now();
    for id in 0..100 {
        let flags = in_time(provider.flags(&user(&id.to_string()))).await;
        assert!(flags.bool("f", false), "user {id}: {:?}", flags.error());
        is_accepted(&provider);
    }
    eventually(async || {
        is_accepted(&provider);
        provider.flags(&user("first")).await.bool("f", false)
    })
    .await;
    assert!(failed.elapsed() < Duration::from_secs(5), "{:?}", failed.elapsed());
    assert_eq!(service.faults().applied(fault), 1);
    assert_eq!(provider.health().state, HealthState::Streaming);
}

#[tokio::test]
async fn a_forbidden_attribute_does_not_count_as_a_refused_key() {
    let service = service().await;
    let provider = connected(&service).await;
    let message = json!({"message": "forbidden"});
    let fault = service.faults().add(forbidden().json(message).for_attribute("query")).unwrap();
    let contexts: Vec<EvaluationContext> =
        (0..10).map(|id| user(&format!("forbidden-{id}")).with_custom_field("query", "' or 1=1")).collect();
    let mut id = 0;
    // Each context is requested at its first read, and at least twice after its backoffs.
    while service.faults().applied(fault) < 3 * contexts.len() as u64 {
        for context in &contexts {
            let flags = in_time(provider.flags(context)).await;
            assert!(!flags.bool("f", false) && flags.error().is_some(), "this context has no flags");
        }
        id += 1;
        let flags = in_time(provider.flags(&user(&id.to_string()))).await;
        assert!(flags.bool("f", false) && !flags.is_stale(), "user {id}: {:?}", flags.error());
        is_accepted(&provider);
        assert!(!provider.stats().throttling.is_circuit_open);
    }
    assert_eq!(provider.health().state, HealthState::Streaming);
    assert_eq!(provider.sse_status(), ConnectionStatus::Connected);
}

#[tokio::test]
async fn a_first_response_that_refuses_the_key_does_not_fail_the_start() {
    for body in [None, Some(PAGE)] {
        let refused = || match body {
            Some(page) => forbidden().html(page).times(1),
            None => forbidden().json(json!({"message": "forbidden"})).times(1),
        };
        let service = service().await;
        let fault = service.faults().add(refused()).unwrap();
        let provider = support::provider(&service);
        in_time(provider.ready(PATIENCE)).await.unwrap();
        assert_eq!(service.faults().applied(fault), 1);
        assert!(in_time(provider.flags(&user("u"))).await.bool("f", false));
        is_accepted(&provider);
        provider.shutdown().await;

        let fault = service.faults().add(refused()).unwrap();
        let lifespan = Lifespan::builder(support::provider(&service)).require_ready(true);
        let lifespan = in_time(lifespan.start()).await.unwrap();
        assert_eq!(service.faults().applied(fault), 1);
        is_accepted(lifespan.provider());
        in_time(lifespan.shutdown()).await;
    }
}

#[tokio::test]
async fn a_key_that_all_requests_are_refused_for_is_reported_and_probed() {
    let service = service().await;
    let provider = connected(&service).await;
    assert!(in_time(provider.flags(&user("known"))).await.bool("f", false));
    let refused = Fault::on(Endpoint::All).status(401).json(json!({"message": "unknown API key"}));
    let fault = service.faults().add(refused).unwrap();
    let began = Instant::now();
    assert!(matches!(in_time(provider.flags(&user("new"))).await.error(), Some(Error::Unauthorized)));
    eventually(async || provider.health().state == HealthState::Unauthorized).await;
    assert!(began.elapsed() < CONFIRMED, "{:?}", began.elapsed());
    let known = in_time(provider.flags(&user("known"))).await;
    assert!(known.bool("f", false), "the last known value");
    for id in 0..1_000 {
        let flags = in_time(provider.flags(&user(&id.to_string()))).await;
        assert!(matches!(flags.error(), Some(Error::Unauthorized)), "user {id}: {:?}", flags.error());
    }
    let applied = service.faults().applied(fault);
    assert!(applied <= 8, "only probes are sent: {applied}");
    service.faults().clear();
    let accepted = Instant::now();
    eventually(async || provider.flags(&user("new")).await.bool("f", false)).await;
    assert!(accepted.elapsed() < ACCEPTED, "{:?}", accepted.elapsed());
    eventually(async || provider.health().state == HealthState::Streaming).await;
    eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;
    // The stream also works again.
    service.set_flag("f", false);
    eventually(async || !provider.flags(&user("known")).await.bool("f", true)).await;
}

#[tokio::test]
async fn a_key_that_is_refused_at_the_start_is_probed() {
    let service = service().await;
    service.faults().add(Fault::on(Endpoint::All).status(403).json(json!({"message": "no"}))).unwrap();
    let provider = support::provider(&service);
    let began = Instant::now();
    let error = in_time(provider.ready(PATIENCE)).await.unwrap_err();
    assert!(matches!(error, ReadyError::Unauthorized), "{error:?}");
    assert!(began.elapsed() < CONFIRMED, "{:?}", began.elapsed());
    assert_eq!(provider.health().state, HealthState::Unauthorized);
    service.faults().clear();
    let accepted = Instant::now();
    eventually(async || provider.flags(&user("new")).await.bool("f", false)).await;
    assert!(accepted.elapsed() < ACCEPTED, "{:?}", accepted.elapsed());
    in_time(provider.ready(PATIENCE)).await.unwrap();
    is_accepted(&provider);
    // The stream does not wait for its own probe, which is due minutes later.
    eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;
    assert!(accepted.elapsed() < ACCEPTED, "{:?}", accepted.elapsed());
}
