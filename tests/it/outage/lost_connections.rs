//! The service is down, or the connection to it is lost.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use flipswitch::{ConnectionStatus, Error, RequestScope};
use flipswitch_local::{Endpoint, Fault, Faults, LocalServer};
use futures_util::future::join_all;
use serde_json::json;
use tokio::runtime::Builder;

use crate::support::{
    self,
    events::connected,
    eventually,
    faults::{Kind, Mute, POLLING, Port, Row, Service, folded, scheduled, service},
    in_time, user,
};

const CAME_BACK: &str = "connecting connected error connecting connected";
const CAME_LATE: &str = "connecting error connecting connected";

#[tokio::test]
async fn flags_are_received_from_a_service_that_starts_late() {
    let port = Port::new();
    let row = Row::new(port.builder());
    let flags = row.read().await;
    assert_eq!(flags.int("f", 7), 7, "the caller's default");
    assert!(matches!(flags.error(), Some(Error::Transport(_))), "{:?}", flags.error());
    row.shows(ConnectionStatus::Error).await;
    let service = port.service(1).await;
    row.shows(ConnectionStatus::Connected).await;
    row.sees(1).await;
    row.ends(CAME_LATE, service.asked()).await;
}

/// A change that no stream reported because none was open is detected after reconnecting, even if it happened while the
/// service was down.
#[tokio::test]
async fn flags_are_requested_again_after_the_service_restarts() {
    let port = Port::new();
    let service = port.service(1).await;
    let row = Row::new(port.builder());
    row.opens(&service, 1).await;
    let before = service.asked();
    in_time(service.shutdown()).await;
    row.shows(ConnectionStatus::Error).await;
    assert_eq!(row.read().await.int("f", -1), 1, "the last known value");
    let service = port.service(2).await;
    row.shows(ConnectionStatus::Connected).await;
    row.sees(2).await;
    row.ends(CAME_BACK, [before, service.asked()].concat()).await;
}

/// Changes that happen while the stream is closed are detected when it is open again, because reconnecting requests
/// the flags, whether or not the service sent an event.
#[tokio::test]
async fn changes_missed_while_the_stream_was_down_are_seen_after_reconnecting() {
    let ends: [fn(&Faults) -> usize; 3] = [Faults::finish_streams, Faults::drop_streams, Faults::reset_streams];
    join_all(ends.map(async |end| {
        let service = service(1).await;
        let row = Row::new(support::builder(&service));
        row.opens(&service, 1).await;
        assert_eq!(end(&service.faults()), 1);
        eventually(async || service.streams() == 0).await;
        // No client receives this.
        service.set_flag("f", 2);
        row.sees(2).await;
        row.shows(ConnectionStatus::Connected).await;
        row.ends(CAME_BACK, service.asked()).await;
    }))
    .await;
}

/// A stream that was finished and cannot be reopened is a failure.
#[tokio::test]
async fn polling_starts_when_a_finished_stream_cannot_be_reopened() {
    let service = service(1).await;
    let row = Row::polling(support::builder(&service));
    row.opens(&service, 1).await;
    service.faults().add(Fault::on(Endpoint::Stream).status(503)).unwrap();
    service.faults().finish_streams();
    row.shows(ConnectionStatus::Error).await;
    assert!(row.provider.is_polling_active());
    service.set_flag("f", 2);
    row.sees(2).await;
    service.faults().clear();
    row.reconnect();
    row.shows(ConnectionStatus::Connected).await;
    row.ends("connecting connected error connecting connected", service.asked()).await;
}

#[tokio::test]
async fn an_event_cut_by_a_reset_is_recovered_by_the_next_stream() {
    let service = service(1).await;
    service.faults().add(Fault::on(Endpoint::Stream).reset().after_bytes(20).times(1)).unwrap();
    let row = Row::new(support::builder(&service));
    row.opens(&service, 1).await;
    service.set_flag("f", 2);
    row.shows(ConnectionStatus::Error).await;
    row.sees(2).await;
    row.shows(ConnectionStatus::Connected).await;
    assert_eq!(row.changes.lock().unwrap().iter().flatten().count(), 0, "an incomplete event does not count");
    row.ends(CAME_BACK, service.asked()).await;
}

/// A half-open connection sends nothing, not even its end. Silence beyond the idle timeout is a failure. Heartbeats end
/// the silence.
#[tokio::test]
async fn a_half_open_stream_is_replaced_after_the_idle_timeout() {
    let service =
        LocalServer::builder().flags(json!({"f": 1})).heartbeat(Duration::from_millis(50)).start().await.unwrap();
    let row = Row::new(support::builder(&service).stream_idle_timeout(Duration::from_millis(500)));
    row.opens(&service, 1).await;
    service.faults().add(Fault::on(Endpoint::Stream).half_open().times(1)).unwrap();
    service.set_flag("f", 2);
    row.shows(ConnectionStatus::Error).await;
    row.sees(2).await;
    row.shows(ConnectionStatus::Connected).await;
    row.ends(CAME_BACK, service.asked()).await;
}

#[tokio::test]
async fn a_stream_with_only_heartbeats_is_not_idle() {
    const IDLE: Duration = Duration::from_secs(1);
    let service =
        LocalServer::builder().flags(json!({"f": 1})).heartbeat(Duration::from_millis(50)).start().await.unwrap();
    let row = Row::new(support::builder(&service).stream_idle_timeout(IDLE));
    row.opens(&service, 1).await;
    let opened = Instant::now();
    eventually(async || opened.elapsed() > 2 * IDLE).await;
    assert_eq!(service.asked_for(Kind::Stream).len(), 1);
    row.ends("connecting connected", service.asked()).await;
}

#[tokio::test]
async fn silent_connections_cost_one_request_timeout() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    let service = service(1).await;
    let silence = service.faults().add(Fault::on(Endpoint::Connections).hang()).unwrap();
    let row = Row::new(support::builder(&service).request_timeout(TIMEOUT));
    let flags = row.read().await;
    assert!(flags.int("f", 7) == 7 && matches!(flags.error(), Some(Error::Timeout)), "{:?}", flags.error());
    let began = Instant::now();
    for _ in 0..100 {
        assert!(matches!(row.read().await.error(), Some(Error::Timeout)));
    }
    assert!(began.elapsed() < 100 * TIMEOUT / 2, "{:?}", began.elapsed());
    assert_eq!(row.provider.sse_status(), ConnectionStatus::Connecting);
    // A stream opens, and requests are sent on schedule.
    let struck = service.faults().applied(silence);
    assert!(struck as usize <= 2 * (1 + scheduled(row.began.elapsed())), "{struck} connections");
    // The kept connections are closed.
    service.faults().clear();
    row.sees(1).await;
    row.shows(ConnectionStatus::Connected).await;
    row.ends(CAME_LATE, service.asked()).await;
}

#[tokio::test]
async fn closed_and_reset_connections_are_retried_with_backoff() {
    let faults = [Fault::on(Endpoint::Connections).close(), Fault::on(Endpoint::Connections).reset()];
    join_all(faults.map(async |fault| {
        let service = service(1).await;
        let fault = service.faults().add(fault).unwrap();
        let row = Row::new(support::builder(&service));
        assert!(row.read().await.error().is_some());
        // The stream fails, and fails again after the first wait.
        eventually(async || {
            row.read().await;
            row.statuses.lock().unwrap().iter().filter(|status| *status == "error").count() == 2
        })
        .await;
        // Requests for the stream, for the user after its own backoff, and of rounds for two contexts, each sent twice.
        let (struck, elapsed) = (service.faults().applied(fault), row.began.elapsed());
        assert!(struck as usize <= 2 * 4 * scheduled(elapsed) + 4, "{struck} connections in {elapsed:?}");
        service.faults().clear();
        row.sees(1).await;
        row.reconnect();
        row.shows(ConnectionStatus::Connected).await;
        row.ends(CAME_LATE, service.asked()).await;
    }))
    .await;
}

/// A service or a proxy may close each stream immediately. The stream is then retried with increasing waits, and the service
/// is polled.
#[tokio::test]
async fn streams_that_close_immediately_lead_to_backoff_and_polling() {
    let service = service(1).await;
    service.faults().add(Fault::on(Endpoint::Stream).close().after_bytes(0)).unwrap();
    let row = Row::with_polling(support::builder(&service).polling_interval(POLLING).max_sse_retries(2), POLLING);
    row.sees(1).await;
    eventually(async || service.asked_for(Kind::Stream).len() == 3).await;
    row.polls(true).await;
    let streams = service.asked_for(Kind::Stream);
    assert!(streams[1] - streams[0] >= Duration::from_millis(490), "{streams:?}");
    assert!(streams[2] - streams[1] >= Duration::from_millis(990), "{streams:?}");
    service.set_flag("f", 2);
    row.hears_of("f").await;
    row.sees(2).await;
    service.faults().clear();
    row.reconnect();
    row.shows(ConnectionStatus::Connected).await;
    row.polls(false).await;
    // The stream may be reported as open for a moment.
    let heard = folded(row.statuses.lock().unwrap().clone()).join(" ");
    assert!(["connecting connected", "connecting connected error connecting connected"].contains(&&*heard), "{heard}");
    row.ends(&heard, service.asked()).await;
}

/// Clients that failed together do not reconnect together: the first wait is spread over its second half.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconnects_of_many_clients_are_spread_over_time() {
    const CLIENTS: usize = 16;
    let service = service(1).await;
    service.faults().add(Fault::on(Endpoint::Stream).status(503)).unwrap();
    let rows: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let builder = flipswitch::FlipswitchProvider::builder(format!("key-{client}")).base_url(service.url());
            Row::new(builder)
        })
        .collect();
    join_all(rows.iter().map(|row| row.sees(1))).await;
    let mut waits = Vec::new();
    for client in 0..CLIENTS {
        let times = || -> Vec<_> {
            let is_its = |request: &flipswitch_local::RecordedRequest| {
                request.method == "GET" && request.headers["x-api-key"] == format!("key-{client}")
            };
            service.requests().into_iter().filter(is_its).map(|request| request.at).collect()
        };
        eventually(async || times().len() >= 2).await;
        waits.push(times()[1] - times()[0]);
    }
    waits.sort();
    assert!(waits[0] >= Duration::from_millis(490), "{waits:?}");
    assert!(waits[CLIENTS - 1] - waits[0] >= Duration::from_millis(100), "{waits:?}");
    for row in rows {
        row.provider.shutdown().await;
    }
}

#[tokio::test]
async fn the_retry_field_sets_the_first_wait_within_limits() {
    // The wait is neither zero nor 46 days. The second wait would be 15 to 30 s, so the test reconnects.
    join_all([("0", true), ("4000000000", false)].map(async |(named, asks_by_itself)| {
        let service = Mute::start().await;
        let row = Row::polling(service.builder());
        row.opens(&service.service, 1).await;
        service.say(format!("retry: {named}\n\n"));
        service.finish();
        row.shows(ConnectionStatus::Error).await;
        let failed = Instant::now();
        service.set(2);
        if asks_by_itself {
            row.shows(ConnectionStatus::Connected).await;
            assert!(failed.elapsed() >= Duration::from_millis(400), "{:?}", failed.elapsed());
        } else {
            eventually(async || failed.elapsed() > Duration::from_millis(1_200)).await;
            row.sees(2).await;
            assert_eq!(row.provider.sse_status(), ConnectionStatus::Error);
            assert_eq!(service.service.asked_for(Kind::Stream).len(), 1);
            row.reconnect();
            row.shows(ConnectionStatus::Connected).await;
        }
        row.sees(2).await;
        row.ends(CAME_BACK, service.service.asked()).await;
    }))
    .await;
}

/// While the runtime is blocked, the stream is not read, and no timer fires. Flags that may have changed in this time are not
/// fresh for longer than the idle timeout of the stream.
#[test]
fn a_blocked_runtime_does_not_keep_flags_fresh() {
    let own = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let service = service(1).await;
        let builder = support::builder(&service).stream_idle_timeout(Duration::from_secs(3));
        let row = Row::polling(builder.runtime(own.handle().clone()));
        row.opens(&service, 1).await;
        let ((started, is_started), (unblock, is_unblocked)) = (mpsc::channel(), mpsc::channel::<()>());
        own.spawn(async move {
            started.send(()).unwrap();
            // Fails when the other end is dropped.
            let _ = is_unblocked.recv();
        });
        is_started.recv().unwrap();
        assert_eq!(row.provider.sse_status(), ConnectionStatus::Connected);
        service.set_flag("f", 2);
        let fresh = || RequestScope::new(row.provider.clone(), user("u")).try_flags().is_some();
        row.eventually("without fresh flags", async || !fresh()).await;
        drop(unblock);
        row.sees(2).await;
        in_time(row.provider.shutdown()).await;
    });
    own.shutdown_timeout(Duration::from_secs(1));
}

/// An open but silent stream announces nothing, but the flags of the start-up context are requested whenever it opens.
#[tokio::test]
async fn a_change_that_only_a_response_shows_reaches_all_users() {
    let service = LocalServer::start(json!({"f": 1})).await.unwrap();
    let provider = connected(&service).await;
    service.faults().add(Fault::on(Endpoint::Stream).half_open()).unwrap();
    // The delay ensures that the response has the change.
    let slow = Fault::on(Endpoint::Bulk).delay(Duration::from_secs(1)).for_targeting_key("_init_");
    service.faults().add(slow).unwrap();
    provider.reconnect_sse();
    eventually(async || provider.stats().reconnects == 1).await;
    assert_eq!(in_time(provider.flags(&user("alice"))).await.int("f", 0), 1);
    service.set_flag("f", 2);
    // This is much earlier than the silent stream counts as closed.
    eventually(async || in_time(provider.flags(&user("alice"))).await.int("f", 0) == 2).await;
    assert_eq!(provider.sse_status(), ConnectionStatus::Connected);
    provider.shutdown().await;
}
