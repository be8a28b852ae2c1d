//! Replacing the API key at runtime, before the old key expires or after it was rejected.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use flipswitch::{
    ConnectionStatus, FlipswitchProvider, HealthState, ProviderEvent, ReadyError,
    open_feature::provider::{FeatureProvider, ProviderStatus},
    serde_json::json,
};
use flipswitch_local::{KeyRotation, LocalServer};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, broadcast},
};

use crate::support::{
    self, Log, PATIENCE,
    events::{CONNECTED, connected, is, is_change_of, is_error, until},
    eventually, in_time,
    scripted::{Received, Reply, Scripted},
    user,
};

/// The stream announces a rotation, and the application sets the new key.
#[tokio::test]
async fn replacing_a_valid_key_causes_no_interruption() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let provider = connected(&service).await;
    let mut events = provider.events();
    let valid_until = SystemTime::now() + Duration::from_secs(3_600);
    let key = service.rotate_api_key(KeyRotation::new().valid_until(valid_until));
    until(&mut events, |event| matches!(event, ProviderEvent::ApiKeyRotated { valid_until: Some(_) })).await;
    let told = provider.health().api_key_valid_until.unwrap();
    assert!((SystemTime::from(told).duration_since(valid_until).unwrap_or_default()) < Duration::from_secs(1));
    provider.set_api_key(key).unwrap();
    assert_eq!(provider.health().api_key_valid_until, None);
    until(&mut events, is(CONNECTED)).await;
    service.set_flag("on", false);
    let told = until(&mut events, is_change_of("on")).await;
    assert!(!told.iter().any(|event| matches!(event, ProviderEvent::Error { .. } | ProviderEvent::Stale)), "{told:?}");
    assert!(!provider.flags(&user("u")).await.bool("on", true));
    // A key that cannot be sent changes nothing.
    assert!(provider.set_api_key("two\nlines").is_err());
    assert!(in_time(provider.flags(&user("new"))).await.error().is_none());
}

#[tokio::test]
async fn a_rotation_without_a_secret_warns_that_visitors_lose_their_identity() {
    for has_secret in [false, true] {
        let log = Log::of_this_thread();
        let service = LocalServer::start(json!({})).await.unwrap();
        // The provider runs on this thread, whose log is read.
        let builder = support::builder(&service).runtime(Handle::current());
        let builder = if has_secret { builder.secret("a secret of the whole fleet") } else { builder };
        let provider = builder.build().unwrap();
        let mut events = provider.events();
        in_time(provider.ready(PATIENCE)).await.unwrap();
        eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;
        service.rotate_api_key(KeyRotation::new().valid_until(SystemTime::now() + Duration::from_secs(3_600)));
        until(&mut events, |event| matches!(event, ProviderEvent::ApiKeyRotated { valid_until: Some(_) })).await;
        let lines = log.lines();
        let rotated: Vec<_> = lines.iter().filter(|line| line.contains("the API key is being replaced")).collect();
        assert_eq!(rotated.len(), 1, "{lines:?}");
        assert_eq!(rotated[0].contains("no `secret` is set"), !has_secret, "{lines:?}");
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_rejected_key_is_reported_once_and_a_new_key_recovers_immediately() {
    let service = LocalServer::builder().flags(json!({"on": true})).api_key("good").start().await.unwrap();
    let provider = FlipswitchProvider::builder("wrong").base_url(service.url()).build().unwrap();
    let mut events = provider.events();
    assert!(matches!(in_time(provider.ready(PATIENCE)).await, Err(ReadyError::Unauthorized)));
    until(&mut events, is_error(true)).await;
    eventually(async || provider.sse_status() == ConnectionStatus::Error).await;
    assert_eq!((provider.health().state, provider.status()), (HealthState::Unauthorized, ProviderStatus::Error));
    provider.set_api_key(" good ").unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    let before = until(&mut events, is(ProviderEvent::Ready)).await;
    assert!(!before.iter().any(is_error(true)), "{before:?}");
    assert!(in_time(provider.flags(&user("u"))).await.bool("on", false));
    eventually(async || provider.health().state == HealthState::Streaming).await;
}

#[tokio::test]
async fn etags_of_the_old_key_are_not_sent_with_a_new_key() {
    // Two environments have the same tag by chance.
    let service = Scripted::start(|request, _| {
        let value = request.header("x-api-key").unwrap_or_default().to_owned();
        if request.header("if-none-match").is_some() {
            return Reply::Http(304, Vec::new(), Vec::new());
        }
        Reply::json(json!({"flags": [{"key": "environment", "value": value}]})).with("etag", "\"1\"")
    })
    .await;
    let provider = FlipswitchProvider::builder("one")
        .base_url(service.url())
        .enable_realtime(false)
        .stale_wait(PATIENCE)
        .build()
        .unwrap();
    assert_eq!(in_time(provider.flags(&user("u"))).await.string("environment", ""), "one");
    provider.set_api_key("two").unwrap();
    for _ in 0..3 {
        let flags = in_time(provider.flags(&user("u"))).await;
        assert_eq!((flags.string("environment", ""), flags.is_stale()), ("two", false));
    }
}

#[tokio::test]
async fn a_request_sent_with_the_old_key_does_not_affect_health() {
    let held = Arc::new(Semaphore::new(0));
    let service = {
        let held = Arc::clone(&held);
        Scripted::start(move |request, _| match request.header("x-api-key") {
            Some("wrong") => Reply::Held(Arc::clone(&held), Box::new(Reply::status(401, ""))),
            _ => Reply::json(json!({"flags": [{"key": "on", "value": true}]})),
        })
        .await
    };
    let provider = FlipswitchProvider::builder("wrong").base_url(service.url()).enable_realtime(false).build().unwrap();
    let waits = tokio::spawn({
        let provider = provider.clone();
        async move { provider.flags(&user("u")).await }
    });
    eventually(async || service.received().iter().any(|request| request.body.contains("\"u\""))).await;
    provider.set_api_key("good").unwrap();
    held.add_permits(100);
    in_time(waits).await.unwrap();
    // It causes neither a pause of five minutes nor a fatal error.
    assert!(in_time(provider.flags(&user("u"))).await.bool("on", false));
    in_time(provider.ready(PATIENCE)).await.unwrap();
    assert_ne!(provider.health().state, HealthState::Unauthorized);
}

/// Replies with an open stream that sends nothing.
fn quiet(request: &Received) -> Option<Reply> {
    static EVENTS: LazyLock<broadcast::Sender<&'static str>> = LazyLock::new(|| broadcast::channel(1).0);
    (!request.is_bulk()).then(|| Reply::Events(EVENTS.clone()))
}

#[tokio::test]
async fn a_key_set_while_the_stream_connects_is_used_for_the_stream() {
    let held = Arc::new(Semaphore::new(0));
    let service = {
        let held = Arc::clone(&held);
        Scripted::start(move |request, _| match request.header("x-api-key") {
            Some("old") if !request.is_bulk() => Reply::Held(Arc::clone(&held), Box::new(Reply::status(401, ""))),
            _ => quiet(request).unwrap_or_else(|| Reply::json(json!({"flags": []}))),
        })
        .await
    };
    let provider = FlipswitchProvider::builder("old").base_url(service.url()).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    eventually(async || service.received().iter().any(|request| !request.is_bulk())).await;
    provider.set_api_key("new").unwrap();
    held.add_permits(10);
    eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;
    assert_eq!(provider.health().state, HealthState::Streaming);
}

#[tokio::test]
async fn ready_waits_for_the_latest_key() {
    for polls in [true, false] {
        let held = Arc::new(Semaphore::new(0));
        let service = {
            let held = Arc::clone(&held);
            Scripted::start(move |request, _| match request.header("x-api-key") {
                Some("wrong") => Reply::Held(Arc::clone(&held), Box::new(Reply::status(401, ""))),
                _ => Reply::json(json!({"flags": []})),
            })
            .await
        };
        let provider = FlipswitchProvider::builder("wrong")
            .base_url(service.url())
            .enable_realtime(false)
            .enable_polling_fallback(polls)
            .build()
            .unwrap();
        let ready = tokio::spawn({
            let provider = provider.clone();
            async move { provider.ready(PATIENCE).await }
        });
        eventually(async || !service.received().is_empty()).await;
        provider.set_api_key("good").unwrap();
        held.add_permits(10);
        in_time(ready).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_new_key_is_reported_as_a_change_of_all_flags() {
    // The flag changes only for the user, so the start-up context does not show the change.
    let service = Scripted::start(|request, _| {
        let of_another = request.header("x-api-key") == Some("two") && !request.body.contains("_init_");
        let value = if of_another { 2 } else { 1 };
        quiet(request).unwrap_or_else(|| Reply::json(json!({"flags": [{"key": "f", "value": value}]})))
    })
    .await;
    let provider = FlipswitchProvider::builder("one").base_url(service.url()).stale_wait(PATIENCE).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;
    let mut events = provider.events();
    provider.set_api_key("two").unwrap();
    until(&mut events, |event| matches!(event, ProviderEvent::ConfigurationChanged(all) if all.flag_key.is_none()))
        .await;
    assert_eq!(provider.flags(&user("u")).await.int("f", 0), 2);
}
