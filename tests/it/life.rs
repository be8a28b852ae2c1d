//! A provider's life beside a server's. What signals do is tested with the examples, as processes.

use std::time::Duration;

use flipswitch::{Error, FlipswitchProvider, Lifespan, ReadyError, serde_json::json};
use flipswitch_local::LocalServer;

use crate::support::{self, in_time, provider, user};

#[tokio::test]
async fn the_provider_starts_before_the_server_and_ends_after_it() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let provider = provider(&service);
    let lifespan = in_time(Lifespan::builder(provider.clone()).start()).await.unwrap();
    assert!(service.requests().iter().any(|request| request.method == "POST"), "the start-up check");
    let server = {
        let provider = provider.clone();
        async move { provider.flags(&user("u")).await.bool("on", false) }
    };
    assert_eq!(in_time(lifespan.run(server)).await, Some(true));
    assert!(matches!(provider.flags(&user("u")).await.error(), Some(Error::ShutDown)));
}

#[tokio::test]
async fn without_the_service_the_server_starts_with_defaults_unless_told_otherwise() {
    let provider = support::provider_of_nothing();
    let lifespan = Lifespan::builder(provider.clone()).ready_timeout(Duration::from_millis(10));
    let started = in_time(lifespan.start()).await.unwrap();
    assert_eq!(in_time(started.run(async { provider.flags(&user("u")).await.int("limit", 7) })).await, Some(7));

    let provider = support::provider_of_nothing();
    let lifespan = Lifespan::builder(provider.clone()).ready_timeout(Duration::from_millis(10)).require_ready(true);
    assert!(in_time(lifespan.start()).await.is_err());
    assert!(matches!(provider.flags(&user("u")).await.error(), Some(Error::ShutDown)), "nothing is left running");
}

#[tokio::test]
async fn a_refused_key_fails_a_start_that_requires_readiness() {
    let service = LocalServer::builder().api_key("right").start().await.unwrap();
    let provider = FlipswitchProvider::builder("wrong").base_url(service.url()).build().unwrap();
    let lifespan = Lifespan::builder(provider).ready_timeout(Duration::from_secs(600)).require_ready(true);
    assert!(matches!(in_time(lifespan.start()).await, Err(ReadyError::Unauthorized)));
}

#[tokio::test]
async fn the_end_of_the_provider_is_the_end_of_the_life() {
    let provider = FlipswitchProvider::in_memory(json!({}));
    let lifespan = Lifespan::builder(provider.clone()).start().await.unwrap();
    let early = lifespan.signal();
    let server = async {
        early.await;
        "drained"
    };
    let (output, ()) = in_time(async { tokio::join!(lifespan.run(server), provider.shutdown()) }).await;
    assert_eq!(output, Some("drained"));
    in_time(lifespan.signal()).await;
    assert!(matches!(Lifespan::builder(provider).start().await, Err(ReadyError::ShutDown)));
}

#[test]
fn a_life_needs_no_runtime_of_the_callers() {
    let provider = FlipswitchProvider::in_memory(json!({"on": true}));
    pollster::block_on(async {
        let lifespan = Lifespan::builder(provider).start().await.unwrap();
        assert!(lifespan.provider().flags(&user("u")).await.bool("on", false));
        lifespan.shutdown().await;
    });
}
