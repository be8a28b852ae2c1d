//! Polling while the stream is closed, or without a stream.

use std::time::{Duration, Instant};

use flipswitch::ConnectionStatus;
use flipswitch_local::{Endpoint, Fault};
use futures_util::future::join_all;
use tokio::runtime::Builder;

use crate::support::{
    self, eventually,
    faults::{Kind, Mute, POLLING, Row, Service, service},
    in_time,
};

/// Polling detects changes for all contexts, without a stream and while the stream is closed.
#[tokio::test]
async fn polling_reports_changes_without_evaluations() {
    for realtime in [false, true] {
        let service = service(1).await;
        service.faults().add(Fault::on(Endpoint::Stream).status(404)).unwrap();
        let row = Row::polling(support::builder(&service).enable_realtime(realtime));
        row.provider.ready(support::PATIENCE).await.unwrap();
        row.polls(true).await;
        for value in 2..5 {
            service.set_flag("f", value);
            row.hears_of("f").await;
            row.changes.lock().unwrap().clear();
            // The event arrives after the value is visible, so a read gets the new value.
            assert_eq!(row.read().await.int("f", -1), value);
        }
        let streams = service.asked_for(Kind::Stream).len();
        assert_eq!(streams, usize::from(realtime));
        let polls = usize::try_from(row.provider.stats().polls).unwrap();
        let expected = usize::try_from(row.began.elapsed().as_millis() / POLLING.as_millis()).unwrap();
        assert!((2..=2 * (expected + 1)).contains(&polls), "{polls} polls, {expected} expected");
        if realtime {
            row.ends("connecting disconnected", service.asked()).await;
        }
    }
}

/// A flag whose change was reported while the stream was open may change again while the stream is closed.
#[tokio::test]
async fn changes_reported_by_the_stream_do_not_hide_those_found_by_polling() {
    let events = ["event: flag-updated\ndata: {\"flagKey\":\"f\"}\n\n", "event: flag-updated\ndata: {}\n\n"];
    join_all(events.map(async |told| {
        let service = Mute::start().await;
        let row = Row::polling(service.builder());
        row.opens(&service.service, 1).await;
        service.set(2);
        service.say(told);
        row.sees(2).await;
        service.finish();
        row.shows(ConnectionStatus::Error).await;
        row.changes.lock().unwrap().clear();
        service.set(3);
        row.hears_of("f").await;
        assert_eq!(row.read().await.int("f", -1), 3);
        row.shows(ConnectionStatus::Connected).await;
        row.ends("connecting connected error connecting connected", service.service.asked()).await;
    }))
    .await;
}

/// Regardless of how often polling starts and stops, there is one poller while it is active, and none otherwise.
#[test]
fn polling_leaves_no_tasks_behind() {
    const TIMES: usize = 5;
    let own = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let service = service(1).await;
        let row = Row::polling(support::builder(&service).runtime(own.handle().clone()));
        let open = async || {
            let before = row.provider.stats().reconnects;
            row.reconnect();
            row.eventually("connected anew", async || row.provider.stats().reconnects > before).await;
            row.polls(false).await;
        };
        let tasks = || own.metrics().num_alive_tasks();
        row.opens(&service, 1).await;
        open().await;
        let at_first = tasks();
        for _ in 0..TIMES {
            service.faults().drop_streams();
            row.polls(true).await;
            open().await;
        }
        row.eventually("rid of tasks", async || tasks() <= at_first).await;

        service.faults().add(Fault::on(Endpoint::Stream).status(404)).unwrap();
        row.reconnect();
        row.polls(true).await;
        let (began, before) = (Instant::now(), row.provider.stats().polls);
        eventually(async || began.elapsed() > 5 * POLLING).await;
        let polls = u128::from(row.provider.stats().polls - before);
        let expected = began.elapsed().as_millis() / POLLING.as_millis();
        assert!((1..=2 * expected).contains(&polls), "{polls} polls, {expected} expected");
        service.faults().clear();
        open().await;
        let before = row.provider.stats().polls;
        let ended = Instant::now();
        eventually(async || ended.elapsed() > 3 * POLLING).await;
        assert_eq!(row.provider.stats().polls, before);
        in_time(row.provider.shutdown()).await;
    });
    own.shutdown_timeout(Duration::from_secs(1));
}

/// Without realtime and without the fallback there are no background requests.
#[tokio::test]
async fn without_the_polling_fallback_there_are_no_polls() {
    let service = service(1).await;
    service.faults().add(Fault::on(Endpoint::Stream).status(404)).unwrap();
    let row = Row::polling(support::builder(&service).enable_polling_fallback(false));
    row.sees(1).await;
    row.shows(ConnectionStatus::Disconnected).await;
    let began = Instant::now();
    let asked = service.asked().len();
    eventually(async || began.elapsed() > 5 * POLLING).await;
    assert!(!row.provider.is_polling_active());
    assert_eq!(service.asked().len(), asked);
    row.ends("connecting disconnected", service.asked()).await;
}
