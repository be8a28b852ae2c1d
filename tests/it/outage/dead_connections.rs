//! Connections that are dead although their packets are acknowledged.

use std::time::{Duration, Instant};

use flipswitch::{ConnectionStatus, FlipswitchProvider, reqwest};
use flipswitch_local::LocalServer;
use serde_json::json;

use crate::support::{eventually, relay::Relay, user};

/// The time limit until a dead connection is detected. The interval and the timeout of pings result in 7 to 9 s.
const LIMIT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_dead_http2_connection_is_replaced_for_requests_and_for_the_stream() {
    let service = LocalServer::start(json!({"f": 1})).await.unwrap();
    let relay = Relay::start(service.url().strip_prefix("http://").unwrap().parse().unwrap()).await;
    let provider = FlipswitchProvider::builder(service.api_key())
        .base_url(relay.url())
        .http_client(|| reqwest::ClientBuilder::new().http2_prior_knowledge())
        .stream_idle_timeout(Duration::from_secs(600))
        .build()
        .unwrap();
    assert_eq!(provider.flags(&user("before")).await.int("f", 0), 1);
    eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;

    relay.kill_connections();
    let dead = Instant::now();
    service.set_flag("f", 2);
    let mut number = 0;
    eventually(async || {
        number += 1;
        provider.flags(&user(&format!("new-{number}"))).await.int("f", 0) == 2
    })
    .await;
    assert!(dead.elapsed() < LIMIT, "{:?}", dead.elapsed());
    // The stream also works again: the change during the outage reaches a known user, and later changes arrive.
    eventually(async || provider.flags(&user("before")).await.int("f", 0) == 2).await;
    eventually(async || provider.sse_status() == ConnectionStatus::Connected && service.streams() == 1).await;
    assert!(dead.elapsed() < LIMIT, "{:?}", dead.elapsed());
    service.set_flag("f", 3);
    eventually(async || provider.flags(&user("before")).await.int("f", 0) == 3).await;
    provider.shutdown().await;
}
