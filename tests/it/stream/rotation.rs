//! A load balancer or a proxy ends every stream after the same time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::body::Bytes;
use flipswitch::{ConnectionStatus, FlipswitchProvider, FlipswitchProviderBuilder, HealthState, RequestScope, reqwest};
use flipswitch_local::LocalServer;
use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::{Semaphore, broadcast};

use crate::support::{
    self, eventually,
    faults::{Kind, Row, Service},
    in_time,
    relay::Relay,
    scripted::{Reply, Scripted, TimeLimit},
    user,
};

/// The time limit. The next stream is opened after 1.6 s.
const LIMIT: Duration = Duration::from_secs(2);

/// The idle timeout. A stream that has received bytes is stable after a sixth of it, half a second.
const IDLE: Duration = Duration::from_secs(3);

const USERS: usize = 100;

/// A service with the flag `f` behind a load balancer.
struct Balanced {
    service: Scripted,
    value: Arc<AtomicI64>,
    events: broadcast::Sender<Bytes>,
}

impl Balanced {
    /// Starts a service. `instead` gets the number of a stream, and returns the reply that is sent instead.
    async fn start(cuts: bool, instead: impl Fn(usize, &Reply) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let (value, events) = (Arc::new(AtomicI64::new(1)), broadcast::channel(16).0);
        let streams = AtomicI64::new(0);
        let service = {
            let (value, events) = (Arc::clone(&value), events.clone());
            Scripted::start(move |request, _| {
                if request.is_bulk() {
                    return Reply::json(json!({"flags": [{"key": "f", "value": value.load(Ordering::SeqCst)}]}));
                }
                let number = usize::try_from(streams.fetch_add(1, Ordering::SeqCst)).unwrap();
                let stream = Reply::Limited(events.clone(), TimeLimit { after: LIMIT, cuts });
                instead(number, &stream).unwrap_or(stream)
            })
            .await
        };
        Self { service, value, events }
    }

    fn builder(&self) -> FlipswitchProviderBuilder {
        FlipswitchProvider::builder("key").base_url(self.service.url()).stream_idle_timeout(IDLE)
    }

    fn streams(&self) -> usize {
        self.service.asked_for(Kind::Stream).len()
    }

    fn bulk_requests(&self) -> usize {
        self.service.asked().len() - self.streams()
    }

    async fn has_streams(&self, number: usize) {
        eventually(async || self.streams() >= number).await;
    }

    /// Changes the flag, and sends the event.
    fn flip(&self, value: i64) {
        self.value.store(value, Ordering::SeqCst);
        let data = json!({"flagKey": "f", "timestamp": format!("2025-06-01T00:00:00.{value:03}Z")});
        self.events.send(format!("event: flag-updated\ndata: {data}\n\n").into()).unwrap();
    }
}

/// Returns the value of the flag for each user if all flags are fresh in the cache.
fn cached(row: &Row) -> Option<Vec<i64>> {
    let read = |id| RequestScope::new(row.provider.clone(), user(&format!("user-{id}"))).try_flags();
    (0..USERS).map(|id| read(id).filter(|flags| !flags.is_stale()).map(|flags| flags.int("f", -1))).collect()
}

/// Reads the flag of all users until it is fresh with this value.
async fn all_see(row: &Row, value: i64) {
    row.eventually(format_args!("fresh with {value} for all"), async || {
        let read = async |id| row.provider.flags(&user(&format!("user-{id}"))).await;
        in_time(join_all((0..USERS).map(read))).await;
        cached(row).is_some_and(|values| values.iter().all(|&read| read == value))
    })
    .await;
}

fn statuses(row: &Row) -> Vec<String> {
    row.statuses.lock().unwrap().clone()
}

/// After two streams that ended after similar times, the next stream is always opened before the current one is cut. No flags are
/// invalidated or requested, and the application is notified only of changes, once of each.
#[tokio::test]
async fn a_known_time_limit_of_a_load_balancer_causes_no_requests_for_flags() {
    const QUIET: usize = 5;
    join_all([false, true].map(async |cuts| {
        let service = Balanced::start(cuts, |_, _| None).await;
        let row = Row::new(service.builder()).named(format!("cuts: {cuts}"));
        row.provider.ready(support::PATIENCE).await.unwrap();
        // Two streams have ended. The fourth opens while the third is in use, long after the requests that the third caused.
        service.has_streams(4).await;
        all_see(&row, 1).await;
        // On a busy machine, the next stream may open late, and cause the same requests as the end of a stream.
        let mut asked = Vec::new();
        let mut rotations = async |number: usize| {
            let (before, reconnects) = (service.bulk_requests(), row.provider.stats().reconnects);
            let began = service.streams();
            let mut was_fresh = true;
            row.eventually("rotated", async || {
                was_fresh &= cached(&row) == Some(vec![1; USERS]);
                service.streams() >= began + number
            })
            .await;
            asked.push((service.bulk_requests() - before, row.provider.stats().reconnects - reconnects));
            was_fresh && asked.last() == Some(&(0, 0))
        };
        assert!(rotations(QUIET).await || rotations(QUIET).await || rotations(QUIET).await, "cuts: {cuts}: {asked:?}");
        all_see(&row, 1).await;
        assert_eq!(row.provider.health().state, HealthState::Streaming);
        let changes = row.changes.lock().unwrap().clone();

        // Flags change alternately while two streams are open, and while one is open.
        for value in 2..6 {
            let streams = service.streams();
            service.has_streams(streams + 1).await;
            if value % 2 == 0 {
                let alone = Instant::now() + LIMIT / 4;
                eventually(async || Instant::now() >= alone).await;
            }
            let known = row.changes.lock().unwrap().len();
            service.flip(value);
            row.eventually("notified", async || row.changes.lock().unwrap().len() > known).await;
            // Flags were invalidated before.
            assert!(cached(&row).is_none_or(|values| values.iter().all(|&read| read == value)), "cuts: {cuts}");
            all_see(&row, value).await;
        }
        let changed = row.changes.lock().unwrap()[changes.len()..].to_vec();
        assert_eq!(changed.iter().flatten().count(), 4, "each change once, cuts: {cuts}: {changed:?}");
        in_time(row.provider.shutdown()).await;
    }))
    .await;
}

/// Even if a stream has sent nothing before the current one ends, it replaces the current one, as after any end of a stable
/// stream.
#[tokio::test]
async fn the_next_stream_replaces_one_that_ends_before_the_next_has_sent_a_byte() {
    join_all([false, true].map(async |cuts| {
        let released = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&released);
        let service = Balanced::start(cuts, move |number, stream| {
            (number == 3).then(|| Reply::Held(Arc::clone(&held), Box::new(stream.clone())))
        })
        .await;
        let row = Row::new(service.builder()).named(format!("cuts: {cuts}"));
        row.provider.ready(support::PATIENCE).await.unwrap();
        service.has_streams(4).await;
        assert_eq!(row.provider.sse_status(), ConnectionStatus::Connected);
        let (told, changes) = (statuses(&row).len(), row.changes.lock().unwrap().len());
        row.shows(ConnectionStatus::Connecting).await;
        // The flag changes without an event.
        service.value.store(2, Ordering::SeqCst);
        released.add_permits(1);
        row.shows(ConnectionStatus::Connected).await;
        row.sees(2).await;
        assert_eq!(service.streams(), 4, "cuts: {cuts}");
        row.eventually("told", async || statuses(&row).len() >= told + 2).await;
        assert_eq!(statuses(&row)[told..], ["connecting", "connected"], "cuts: {cuts}");
        // Only changes that are visible in the start-up context are reported.
        let changed = row.changes.lock().unwrap()[changes..].to_vec();
        assert!(changed.iter().all(Option::is_some), "cuts: {cuts}: {changed:?}");
        in_time(row.provider.shutdown()).await;
    }))
    .await;
}

/// If the next stream fails while the current one is open, this is not a failure, and it is not tried again for the same stream.
#[tokio::test]
async fn a_refused_next_stream_does_not_count_as_a_failure() {
    join_all([401, 503].map(async |code| {
        let service = Balanced::start(false, move |number, _| (number == 3).then(|| Reply::status(code, ""))).await;
        let row = Row::new(service.builder()).named(code.to_string());
        row.provider.ready(support::PATIENCE).await.unwrap();
        service.has_streams(4).await;
        assert_eq!(row.provider.sse_status(), ConnectionStatus::Connected, "{code}");
        let told = statuses(&row).len();
        // The current stream ends, which is a rotation, and the next one opens in time.
        service.has_streams(6).await;
        let asked = service.service.asked_for(Kind::Stream);
        assert!(asked[4] - asked[3] >= LIMIT / 5, "{code}: {asked:?}");
        service.has_streams(7).await;
        assert_eq!(statuses(&row)[told..], ["disconnected", "connecting", "connected"], "{code}");
        assert!(!row.provider.is_polling_active(), "{code}");
        in_time(row.provider.shutdown()).await;
    }))
    .await;
}

/// With HTTP/2, streams could share a connection, and would be cut together.
#[tokio::test]
async fn each_stream_has_its_own_connection() {
    let service = LocalServer::start(json!({"f": 1})).await.unwrap();
    let relay = Relay::start(service.url().strip_prefix("http://").unwrap().parse().unwrap()).await;
    let builder = FlipswitchProvider::builder(service.api_key())
        .base_url(relay.url())
        .http_client(|| reqwest::ClientBuilder::new().http2_prior_knowledge());
    let row = Row::new(builder);
    row.opens(&service, 1).await;
    for _ in 0..2 {
        let (connections, streams) = (relay.accepted(), service.asked_for(Kind::Stream).len());
        row.reconnect();
        eventually(async || service.asked_for(Kind::Stream).len() == streams + 1).await;
        row.shows(ConnectionStatus::Connected).await;
        row.sees(1).await;
        assert_eq!(relay.accepted(), connections + 1);
    }
    in_time(row.provider.shutdown()).await;
}
