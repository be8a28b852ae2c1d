//! Changes in browsers under difficult conditions: a service that lags or is slow, another instance that has received the
//! change first, or no stream.

use std::time::{Duration, Instant};

use flipswitch::{
    FlipswitchProvider,
    serde_json::{Value, json},
};
use flipswitch_local::{Endpoint, Fault};
use reqwest::Method;

use crate::support::{
    self, BULK,
    apps::{App, Framework, Setup, browsers::Browsers, provider, service},
    evaluations,
    events::{connected, streaming},
    eventually,
    faults::{Kind, Mute, Service},
    in_time,
    page::{Stream, ask, data, send},
};

/// The time after an event in which the service may use old rules.
const ECHO_WINDOW: Duration = Duration::from_secs(2);

fn all_public(provider: FlipswitchProvider) -> Setup {
    Setup { browsers: Browsers { public: None, ..Browsers::default() }, ..provider.into() }
}

/// Opens the stream of a user, and refetches as the first event requires.
async fn follow(app: &App, user: &str) -> (Stream, String) {
    let mut stream = Stream::of(app, user).await;
    stream.event().await;
    let answer = ask(app, user, &[]).await;
    assert_eq!(answer.status, 200);
    (stream, answer.header("etag").to_owned())
}

#[tokio::test]
async fn a_browser_that_may_have_old_values_is_told_to_refetch() {
    for framework in Framework::ALL {
        let service = Mute::start().await;
        let provider = streaming(service.builder().miss_wait(support::PATIENCE).stale_wait(support::PATIENCE)).await;
        let app = framework.serve(all_public(provider.clone())).await;
        let (mut stream, tag) = follow(&app, "alice").await;
        let said = Instant::now();
        service.say("event: flag-updated\ndata: {\"flagKey\":\"f\"}\n\n");
        stream.event().await;
        let unchanged = ask(&app, "alice", &[("if-none-match", &tag)]).await;
        assert_eq!(unchanged.status, 304, "{framework:?}: the service has not changed yet");
        // The service sends no other event, and receives no other request.
        service.set(2);
        let changed = in_time(async {
            loop {
                // The stream to the service has just opened, which also counts as a change.
                stream.event().await;
                let answer = ask(&app, "alice", &[("if-none-match", &tag)]).await;
                if answer.status == 200 {
                    break answer;
                }
            }
        });
        assert_eq!(changed.await.values()["f"], 2, "{framework:?}");
        assert!(said.elapsed() >= ECHO_WINDOW, "{framework:?}: {:?}", said.elapsed());
        provider.shutdown().await;
    }
}

/// The service may begin to report changes some time after it sent its headers, so the first heartbeat makes all flags stale.
#[tokio::test]
async fn browsers_are_told_to_refetch_when_flags_become_stale_without_a_change() {
    for framework in Framework::ALL {
        let service = Mute::start().await;
        let provider = streaming(service.builder().miss_wait(support::PATIENCE).stale_wait(support::PATIENCE)).await;
        let app = framework.serve(all_public(provider.clone())).await;
        let (mut stream, tag) = follow(&app, "alice").await;
        service.set(2);
        assert_eq!(
            ask(&app, "alice", &[("if-none-match", &tag)]).await.status,
            304,
            "{framework:?}: no event has arrived"
        );
        service.say("event: heartbeat\ndata: {}\n\n");
        stream.event().await;
        let answer = ask(&app, "alice", &[("if-none-match", &tag)]).await;
        assert_eq!((answer.status, &answer.values()["f"]), (200, &json!(2)), "{framework:?}");
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_browser_that_got_the_new_value_is_not_told_to_refetch_again() {
    let service = Mute::start().await;
    let provider = streaming(service.builder().miss_wait(support::PATIENCE).stale_wait(support::PATIENCE)).await;
    let app = Framework::Axum.serve(all_public(provider.clone())).await;
    let (mut stream, tag) = follow(&app, "alice").await;
    // The stream has just opened, and its echo window must have ended.
    let opened = Instant::now();
    eventually(async || opened.elapsed() > ECHO_WINDOW + Duration::from_secs(2)).await;
    ask(&app, "alice", &[]).await;
    service.set(2);
    service.say("event: flag-updated\ndata: {\"flagKey\":\"f\"}\n\n");
    stream.event().await;
    assert_eq!(ask(&app, "alice", &[("if-none-match", &tag)]).await.status, 200);
    let asked = service.service.asked_for(Kind::User).len();
    let silence = tokio::time::timeout(ECHO_WINDOW + Duration::from_secs(3), stream.event()).await;
    assert!(silence.is_err(), "{silence:?}");
    assert_eq!(service.service.asked_for(Kind::User).len(), asked);
    provider.shutdown().await;
}

#[tokio::test]
async fn a_browser_that_got_an_old_value_from_a_slow_service_is_told_to_refetch_again() {
    for framework in Framework::ALL {
        let service = service().await;
        let provider = streaming(support::builder(&service).stale_wait(Duration::from_millis(1))).await;
        let app = framework.serve(provider.clone()).await;
        let (mut stream, tag) = follow(&app, "alice").await;
        let slow = Fault::on(Endpoint::Bulk).delay(Duration::from_secs(1)).for_targeting_key("alice");
        service.faults().add(slow).unwrap();
        service.set_flag("theme", "#111");
        stream.event().await;
        assert_eq!(
            ask(&app, "alice", &[("if-none-match", &tag)]).await.status,
            304,
            "{framework:?}: the last known one"
        );
        eventually(async || {
            stream.event().await;
            let answer = ask(&app, "alice", &[("if-none-match", &tag)]).await;
            answer.status == 200 && answer.values()["theme"] == "#111"
        })
        .await;
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_page_that_had_no_flags_gets_them_when_the_service_is_back() {
    for framework in Framework::ALL {
        let service = service().await;
        service.faults().add(Fault::on(Endpoint::Bulk).status(500).for_targeting_key("alice")).unwrap();
        let provider = support::provider(&service);
        let app = framework.serve(provider.clone()).await;
        let mut stream = Stream::of(&app, "alice").await;
        stream.event().await;
        assert_eq!(ask(&app, "alice", &[]).await.status, 503, "{framework:?}");
        service.faults().clear();
        eventually(async || {
            stream.event().await;
            ask(&app, "alice", &[]).await.status == 200
        })
        .await;
        provider.shutdown().await;
    }
}

/// Refetches as after an event that contains this time.
async fn ask_after(app: &App, user: &str, tag: &str, time: &str) -> (u16, Value) {
    let path = format!("/flags{BULK}?flagConfigLastModified={}", time.replace(':', "%3A").replace('+', "%2B"));
    let answer = send(app, Method::POST, &path, &[("x-user", user), ("if-none-match", tag)], "{}").await;
    let values = if answer.status == 200 { answer.values() } else { Value::Null };
    (answer.status, values)
}

#[tokio::test]
async fn an_instance_that_missed_a_change_learns_of_it_from_the_browser() {
    for framework in Framework::ALL {
        let service = service().await;
        // Both responses have the same tag.
        let builder = || support::builder(&service).secret("the secret of all instances");
        let hears = framework.serve(streaming(builder()).await).await;
        // There is neither a stream nor a poll within the test.
        let deaf = builder().enable_realtime(false).polling_interval(Duration::from_secs(3_600)).build().unwrap();
        let deaf = framework.serve(deaf).await;
        let (mut stream, tag) = follow(&hears, "alice").await;
        assert_eq!(ask(&deaf, "alice", &[("if-none-match", &tag)]).await.status, 304, "{framework:?}: the same flags");
        ask(&deaf, "bob", &[]).await;
        service.set_flag("theme", "#111");
        let event = data(&stream.event().await);
        let time = event["lastModified"].as_str().unwrap();
        assert_eq!(
            ask(&deaf, "alice", &[("if-none-match", &tag)]).await.status,
            304,
            "{framework:?}: it has not heard"
        );
        let (status, values) = ask_after(&deaf, "alice", &tag, time).await;
        assert_eq!((status, &values["theme"]), (200, &json!("#111")), "{framework:?}");
        // Only requests for this context count.
        let before = evaluations(&service);
        assert_eq!(ask(&deaf, "bob", &[]).await.values()["theme"], "#fff", "{framework:?}");
        assert_eq!(evaluations(&service), before);
    }
}

#[tokio::test]
async fn invented_times_of_browsers_cause_a_limited_number_of_requests() {
    for framework in Framework::ALL {
        let service = service().await;
        let app = framework.serve(provider(&service)).await;
        let tag = ask(&app, "alice", &[]).await.header("etag").to_owned();
        let before = service.requests().len();
        let soon = || (time::OffsetDateTime::now_utc().unix_timestamp() + 30).to_string();
        for number in 0..50 {
            let invented =
                ["9999-12-31T23:59:59Z", "2100-01-01T00:00:00+01:00", "99999999999", "0", "x", "-1", &soon()];
            for time in invented {
                let (status, _) = ask_after(&app, "alice", &tag, time).await;
                assert!(status == 200 || status == 304, "{framework:?} {number} {time}");
            }
        }
        let requests = service.requests().len() - before;
        assert!(requests <= 10, "{framework:?}: {requests}");
        // While there may be newer flags, a response does not confirm the old ones.
        assert_eq!(requests, 10, "{framework:?}: one that may be true is believed");
        assert_eq!(ask_after(&app, "alice", &tag, &soon()).await.0, 200, "{framework:?}");
        assert_eq!(ask_after(&app, "alice", &tag, "9999-12-31T23:59:59Z").await.0, 304, "{framework:?}");
        assert_eq!(ask(&app, "alice", &[("if-none-match", &tag)]).await.status, 304, "{framework:?}");
    }
}

#[tokio::test]
async fn without_a_stream_browsers_are_told_to_refetch_at_the_polling_interval() {
    for framework in Framework::ALL {
        let service = service().await;
        let builder = support::builder(&service).enable_realtime(false).polling_interval(Duration::from_secs(1));
        let provider = builder.build().unwrap();
        let app = framework.serve(provider.clone()).await;
        let (mut stream, tag) = follow(&app, "alice").await;
        // Only alice's flag changes, so the poll for the start-up context detects no change.
        let definition = json!({
            "state": "ENABLED", "variants": {"dark": "#000", "light": "#fff"}, "defaultVariant": "light",
            "targeting": {"if": [{"==": [{"var": "targetingKey"}, "nobody"]}, "dark"]},
        });
        service.set_definition("theme", definition).unwrap();
        eventually(async || {
            stream.event().await;
            let answer = ask(&app, "alice", &[("if-none-match", &tag)]).await;
            answer.status == 200 && answer.values()["theme"] == "#fff"
        })
        .await;
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_change_reaches_many_streams_spread_over_the_configured_time() {
    let service = service().await;
    let spread = Duration::from_secs(2);
    let browsers = Browsers { spread, ..Browsers::default() };
    let setup = Setup { browsers, ..connected(&service).await.into() };
    let app = Framework::Axum.serve(setup).await;
    let mut streams = Vec::new();
    for number in 0..20 {
        let (stream, _) = follow(&app, &format!("user-{number}")).await;
        streams.push(stream);
    }
    let changed = Instant::now();
    service.set_flag("theme", "#111");
    let arrivals = streams.iter_mut().map(async |stream| {
        stream.event().await;
        changed.elapsed()
    });
    let arrivals = futures_util::future::join_all(arrivals).await;
    let (first, last) = (arrivals.iter().min().unwrap(), arrivals.iter().max().unwrap());
    // The probability that all events arrive within a quarter of the time is below 1 in 10^11.
    assert!(*last - *first > spread / 4, "{arrivals:?}");
}
