//! The service responds, but rejects the stream.

use std::time::{Duration, SystemTime};

use flipswitch::{ConnectionStatus, Error, FlipswitchProvider, HealthState, ProviderEvent};
use flipswitch_local::{Endpoint, Fault, KeyRotation, LocalServer};
use futures_util::future::join_all;
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::support::{
    self,
    events::{CONNECTED, is, until},
    eventually,
    faults::{Kind, Row, Service, service},
};

#[tokio::test]
async fn the_stream_is_retried_after_responses_that_are_not_event_streams() {
    let stream = || Fault::on(Endpoint::Stream);
    let page = "<!doctype html><title>Sign in to this network</title>";
    let faults = [
        stream().garbage(page).content_type("text/html; charset=utf-8"),
        stream().content_type("text/html"),
        stream().content_type("application/json"),
        stream().content_type("text/event-streams"),
        stream().content_type(""),
        stream().status(200),
        stream().status(202),
        stream().status(302),
        stream().status(400),
        stream().status(408),
        stream().status(425),
        stream().status(429),
        stream().status(500),
        stream().status(502).body(page),
        stream().status(503),
        stream().close(),
        stream().reset(),
    ];
    join_all(faults.map(async |fault| {
        let told = format!("{fault:?}");
        let service = service(1).await;
        let struck = service.faults().add(fault.times(1)).unwrap();
        let row = Row::new(support::builder(&service)).named(&told);
        row.sees(1).await;
        row.shows(ConnectionStatus::Connected).await;
        assert_eq!(service.faults().applied(struck), 1, "{told}");
        service.set_flag("f", 2);
        row.sees(2).await;
        row.ends("connecting error connecting connected", service.asked()).await;
    }))
    .await;
}

#[tokio::test]
async fn the_media_type_of_a_stream_is_accepted_in_every_spelling() {
    for content_type in ["Text/Event-Stream", "text/event-stream; charset=utf-8", "text/event-stream ;x=y"] {
        let service = service(1).await;
        service.faults().add(Fault::on(Endpoint::Stream).content_type(content_type)).unwrap();
        let row = Row::new(support::builder(&service));
        row.opens(&service, 1).await;
        service.set_flag("f", 2);
        row.sees(2).await;
        row.ends("connecting connected", service.asked()).await;
    }
}

/// The wait doubles with each rejection. The application gets a status for each rejection, and values remain.
#[tokio::test]
async fn repeated_rejections_double_the_wait() {
    let service = service(1).await;
    service.faults().add(Fault::on(Endpoint::Stream).status(503).times(2)).unwrap();
    let row = Row::new(support::builder(&service));
    row.sees(1).await;
    row.shows(ConnectionStatus::Connected).await;
    let streams = service.asked_for(Kind::Stream);
    assert_eq!(streams.len(), 3);
    assert!(streams[1] - streams[0] >= Duration::from_millis(490), "{streams:?}");
    assert!(streams[2] - streams[1] >= Duration::from_millis(990), "{streams:?}");
    row.ends("connecting error connecting connected", service.asked()).await;
}

/// If the service has no stream, this is reported once, the stream is retried rarely, and the provider polls in the meantime.
#[tokio::test]
async fn polling_replaces_a_stream_that_does_not_exist() {
    let cases = [
        (204, "disconnected"),
        (404, "disconnected"),
        (405, "disconnected"),
        (406, "disconnected"),
        (410, "disconnected"),
        (501, "disconnected"),
    ];
    join_all(cases.map(async |(code, status)| {
        let service = service(1).await;
        service.faults().add(Fault::on(Endpoint::Stream).status(code)).unwrap();
        let row = Row::polling(support::builder(&service)).named(code.to_string());
        row.sees(1).await;
        eventually(async || row.provider.sse_status().to_string() == status).await;
        assert!(row.provider.is_polling_active(), "{code}");
        service.set_flag("f", 2);
        // There are no evaluations, so polling detects the change.
        row.hears_of("f").await;
        row.sees(2).await;
        // Even long after the waits of a failure, there is no second attempt.
        eventually(async || row.began.elapsed() > Duration::from_millis(3_500)).await;
        assert_eq!(service.asked_for(Kind::Stream).len(), 1, "{code}");

        service.faults().clear();
        row.reconnect();
        row.shows(ConnectionStatus::Connected).await;
        row.polls(false).await;
        service.set_flag("f", 3);
        row.sees(3).await;
        row.ends(&format!("connecting {status} connecting connected"), service.asked()).await;
    }))
    .await;
}

/// If the service rejects the key for the stream but accepts it for requests, the key does not count as refused. The stream is
/// retried with the ordinary backoff, and the provider polls in the meantime.
#[tokio::test]
async fn a_key_that_only_the_stream_rejects_is_a_failure_of_the_stream() {
    join_all([401, 403].map(async |code| {
        let service = service(1).await;
        service.faults().add(Fault::on(Endpoint::Stream).status(code).times(3)).unwrap();
        let row = Row::polling(support::builder(&service)).named(code.to_string());
        let mut events = row.provider.events();
        row.sees(1).await;
        row.shows(ConnectionStatus::Error).await;
        row.polls(true).await;
        service.set_flag("f", 2);
        // There are no evaluations, so polling detects the change.
        row.hears_of("f").await;
        row.sees(2).await;
        // The stream recovers without `reconnect_sse`, after the ordinary waits.
        row.shows(ConnectionStatus::Connected).await;
        row.polls(false).await;
        assert_eq!(service.asked_for(Kind::Stream).len(), 4, "{code}");
        let is_fatal = |event: &ProviderEvent| matches!(event, ProviderEvent::Error { fatal: true, .. });
        let before = until(&mut events, is(CONNECTED)).await;
        assert!(!before.iter().any(is_fatal), "{code}: {before:?}");
        row.ends("connecting error connecting connected", service.asked()).await;
    }))
    .await;
}

#[tokio::test]
async fn without_polling_a_missing_stream_is_not_reported_as_streaming() {
    join_all([204, 404].map(async |code| {
        let service = service(1).await;
        service.faults().add(Fault::on(Endpoint::Stream).status(code)).unwrap();
        let builder = support::builder(&service).enable_polling_fallback(false).max_sse_retries(1);
        let provider = builder.build().unwrap();
        provider.ready(support::PATIENCE).await.unwrap();
        eventually(async || provider.health().state == HealthState::Polling).await;
        eventually(async || provider.sse_status() == ConnectionStatus::Disconnected).await;
        assert!(!provider.health().polling, "{code}");

        service.faults().clear();
        provider.reconnect_sse();
        eventually(async || provider.health().state == HealthState::Streaming).await;
        provider.shutdown().await;
    }))
    .await;
}

/// A key that all endpoints reject, in any order, is reported once and retried rarely, with one request and one
/// stream, regardless of the number of reads. When the service accepts it, `reconnect_sse` opens the stream.
#[tokio::test]
async fn a_rejected_key_stops_requests_until_reconnect_sse() {
    join_all([Endpoint::Single, Endpoint::Stream, Endpoint::Bulk].map(async |late| {
        let service = LocalServer::builder().flags(json!({"f": 1})).api_key("other").start().await.unwrap();
        service.faults().add(Fault::on(late).delay(Duration::from_millis(300))).unwrap();
        let row = Row::polling(FlipswitchProvider::builder("mine").base_url(service.url())).named(format!("{late:?}"));
        assert!(matches!(row.read().await.error(), Some(Error::Unauthorized)));
        row.shows(ConnectionStatus::Error).await;
        // A second refusal confirms the first, even if it is for the stream.
        row.eventually("refused", async || row.provider.health().state == HealthState::Unauthorized).await;
        row.eventually("refused", async || row.began.elapsed() > Duration::from_millis(1_800)).await;
        // With the same key, polling has no effect.
        row.polls(false).await;
        let asked = service.asked().len();
        // Two streams, the evaluation, and the start-up request, which is repeated after its own wait and for confirmation.
        assert!(asked <= 6, "{late:?}: {asked}");
        row.eventually("late", async || {
            assert!(matches!(row.read().await.error(), Some(Error::Unauthorized)));
            row.began.elapsed() > Duration::from_millis(3_000)
        })
        .await;
        assert_eq!(
            service.asked().len(),
            asked,
            "{late:?}: {:?}",
            service.asked().iter().map(|asked| (asked.0, asked.1 - row.began)).collect::<Vec<_>>()
        );
        assert!(!row.provider.is_polling_active(), "{late:?}");

        assert_eq!(service.rotate_api_key(KeyRotation::new().key("mine")), "mine");
        row.reconnect();
        row.shows(ConnectionStatus::Connected).await;
        row.ends("connecting error connecting connected", service.asked()).await;
    }))
    .await;
}

/// If a key is rejected after it was accepted, the last values remain.
#[tokio::test]
async fn a_key_that_is_rejected_later_keeps_the_last_values() {
    let service = service(1).await;
    let row = Row::new(support::builder(&service));
    row.opens(&service, 1).await;
    service.rotate_api_key(KeyRotation::new().key("next"));
    service.set_flag("f", 2);
    row.keeps(1).await;
    assert!(matches!(row.read().await.error(), Some(Error::Unauthorized)));
    let asked = service.asked().len();
    for _ in 0..100 {
        row.keeps(1).await;
    }
    assert_eq!(service.asked().len(), asked);
    row.ends("connecting connected", service.asked()).await;
}

/// Returns `Retry-After` in each of its forms, with the time that it names.
fn times() -> impl Iterator<Item = (u16, String, SystemTime)> {
    const TWO: Duration = Duration::from_secs(2);
    let now = SystemTime::now();
    // An HTTP date has no fractions of a second. This date is between two and three seconds from now.
    let date = now + Duration::from_secs(3);
    let whole = date.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(whole);
    let forms = [
        ("2".to_owned(), now + TWO),
        (httpdate::fmt_http_date(date), date),
        (OffsetDateTime::from(now + TWO).format(&Rfc3339).unwrap(), now + TWO),
    ];
    [429, 503].into_iter().flat_map(move |code| forms.clone().map(|(named, time)| (code, named, time)))
}

#[tokio::test]
async fn retry_after_delays_the_stream() {
    join_all(times().map(async |(code, named, time)| {
        let service = service(1).await;
        service.faults().add(Fault::on(Endpoint::Stream).status(code).header("retry-after", &named).times(1)).unwrap();
        let row = Row::new(support::builder(&service));
        row.sees(1).await;
        row.shows(ConnectionStatus::Connected).await;
        assert!(SystemTime::now() >= time, "{code} {named}");
        assert_eq!(service.asked_for(Kind::Stream).len(), 2, "{code} {named}");
        row.ends("connecting error connecting connected", service.asked()).await;
    }))
    .await;
}

#[tokio::test]
async fn retry_after_delays_requests_for_flags() {
    join_all(times().map(async |(code, named, time)| {
        let service = service(1).await;
        let row = Row::new(support::builder(&service));
        row.opens(&service, 1).await;
        service.faults().add(Fault::on(Endpoint::Bulk).status(code).header("retry-after", &named).times(1)).unwrap();
        service.set_flag("f", 2);
        row.keeps(1).await;
        let asked = service.asked_for(Kind::User).len();
        eventually(async || {
            row.read().await;
            service.asked_for(Kind::User).len() > asked
        })
        .await;
        assert!(SystemTime::now() >= time, "{code} {named}");
        row.sees(2).await;
        row.ends("connecting connected", service.asked()).await;
    }))
    .await;
}
