//! Endless and very large bodies, and the memory that they take.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use flipswitch::{ConnectionStatus, Error, FlipswitchProvider, FlipswitchProviderBuilder};
use futures_util::future::join_all;
use serde_json::json;
use tokio::{
    runtime::{Builder, Handle},
    sync::broadcast,
};

use crate::support::{
    self,
    faults::{CHANGED, Kind, Mute, Row, Service},
    scripted::{Reply, Scripted},
};

/// The additional memory that a provider may take while it receives a flood of bytes.
const ROOM: u64 = 32 << 20;

/// Returns the peak of allocated bytes while a row runs, with the provider on the thread of the row.
async fn peak<R: Future<Output = ()>>(row: impl FnOnce() -> R + Send + 'static) -> u64 {
    let measured = tokio::task::spawn_blocking(|| {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        allocation_counter::measure(|| runtime.block_on(row())).bytes_max
    });
    support::in_time(measured).await.unwrap()
}

fn builder(url: String) -> FlipswitchProviderBuilder {
    FlipswitchProvider::builder("key").base_url(url).runtime(Handle::current())
}

/// Starts a service whose first stream is `flood` and whose later ones are valid.
async fn flooding(flood: Reply) -> Scripted {
    let events = broadcast::channel(1).0;
    let streams = AtomicUsize::new(0);
    Scripted::start(move |request, _| {
        let is_stream = request.method == "GET";
        match is_stream.then(|| streams.fetch_add(1, Ordering::Relaxed)) {
            None => Reply::json(json!({"flags": [{"key": "f", "value": 1}]})),
            Some(0) => flood.clone(),
            Some(_) => Reply::Bytes("", events.clone()),
        }
    })
    .await
}

fn stream(body: &[u8]) -> Reply {
    Reply::Raw([b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", body].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stream_with_an_oversized_event_is_closed() {
    const MIB: usize = 1 << 20;
    let large = vec![b'x'; 10 * MIB];
    let rows = [
        ("a line without end", Reply::EndlessLine),
        ("an event of 10 MiB", stream(&[b"event: config-updated\ndata: ", &*large, b"\n\n"].concat())),
        ("an event of 10 MiB in lines", stream(&[b"data: ", &large[..1_000], b"\n"].concat().repeat(10 * MIB / 1_007))),
        ("an event's name of 10 MiB", stream(&[b"event: ", &*large, b"\ndata: {}\n\n"].concat())),
        ("an id of 10 MiB", stream(&[b"id: ", &*large, b"\n\n"].concat())),
        ("a field of 10 MiB", stream(&[&*large, b": {}\n\n"].concat())),
    ];
    join_all(rows.map(async |(name, flood)| {
        let service = flooding(flood).await;
        let url = service.url();
        let most = peak(async || {
            let row = Row::new(builder(url));
            row.sees(1).await;
            // The kind of the end does not matter, because it may be the end of the body.
            support::eventually(async || row.statuses.lock().unwrap().iter().any(|status| status == "error")).await;
            row.shows(ConnectionStatus::Connected).await;
            row.sees(1).await;
            row.ends("connecting connected error connecting connected", Vec::new()).await;
        })
        .await;
        assert!(most <= ROOM, "{name}: {most} bytes");
        assert_eq!(service.asked_for(Kind::Stream).len(), 2, "{name}");
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn events_just_below_the_limit_are_read() {
    let mut large = b"event: config-updated\ndata: ".to_vec();
    large.resize((1 << 20) - 100, b'x');
    large.extend(b"\n\n");
    let service = Mute::start().await;
    let row = Row::new(service.builder());
    row.opens(&service.service, 1).await;
    service.set(2);
    service.say(large);
    row.sees(2).await;
    service.set(3);
    service.say(CHANGED);
    row.sees(3).await;
    row.ends("connecting connected", service.service.asked()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_endless_response_is_aborted() {
    let ended = AtomicBool::new(false);
    let service = Scripted::start(move |request, _| match request.method.as_str() {
        "GET" => Reply::status(204, ""),
        _ if request.body.contains("\"u\"") && !ended.swap(true, Ordering::Relaxed) => Reply::Endless,
        _ => Reply::json(json!({"flags": [{"key": "f", "value": 1}]})),
    })
    .await;
    let url = service.url();
    let most = peak(async || {
        let row = Row::new(builder(url));
        assert!(matches!(row.read().await.error(), Some(Error::TooLarge)));
        row.sees(1).await;
        row.ends("connecting disconnected", Vec::new()).await;
    })
    .await;
    assert!(most <= ROOM, "{most} bytes");
}
