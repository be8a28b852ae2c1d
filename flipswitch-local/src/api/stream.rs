//! The stream of changes.

use std::{collections::BTreeMap, convert::Infallible, pin::Pin, sync::Arc, time::Duration};

use ::time::OffsetDateTime;
use axum::body::{Body, Bytes};
use futures_util::{Stream, stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    sync::{
        broadcast::{self, error::RecvError},
        watch,
    },
    time::{Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::activity::{Activity, Topic},
    faults::registry::Book,
    time,
};

/// A stream that falls behind by more than this many events is told that everything may have changed.
const BACKLOG: usize = 1_024;

/// This many open streams are listed one by one, the latest ones; all are counted.
const LISTED: usize = 50;

/// Sends events to every open stream.
pub(crate) struct Events {
    sender: broadcast::Sender<Bytes>,
    /// Tells the streams that are open to end.
    finish: watch::Sender<()>,
    /// The last id given out, in milliseconds since the epoch; ids never repeat.
    last_id: Mutex<i64>,
    open: Arc<OpenStreams>,
    heartbeat: Duration,
    activity: Arc<Activity>,
}

impl Events {
    pub(crate) fn new(heartbeat: Duration, activity: Arc<Activity>) -> Self {
        let (sender, _) = broadcast::channel(BACKLOG);
        let open = Arc::new(OpenStreams { streams: Mutex::default(), activity: Arc::clone(&activity) });
        Self { sender, finish: watch::Sender::new(()), last_id: Mutex::new(0), open, heartbeat, activity }
    }

    /// How many streams are open.
    pub(crate) fn open(&self) -> usize {
        self.open.streams.lock().len()
    }

    /// The streams that are open, as far as they are listed: `{"open": n, "streams": [{"since", "client"}]}`.
    pub(crate) fn listed(&self) -> Value {
        let streams = self.open.streams.lock();
        let listed = streams.values().rev().take(LISTED);
        let listed: Vec<_> =
            listed.map(|stream| json!({"since": time::timestamp(stream.since), "client": stream.client})).collect();
        json!({"open": streams.len(), "streams": listed})
    }

    /// Tells that one flag was set or removed.
    pub(crate) fn flag_updated(&self, key: &str) {
        self.send("flag-updated", &json!({"flagKey": key, "timestamp": time::now()}));
        self.activity.changed(Topic::Flags);
    }

    /// Tells that anything may have changed.
    pub(crate) fn config_updated(&self, reason: &str) {
        self.send("config-updated", &config_updated(reason));
        self.activity.changed(Topic::Flags);
    }

    /// Tells that there is a new API key, and until when the old one is taken.
    pub(crate) fn api_key_rotated(&self, valid_until: &str) {
        self.send("api-key-rotated", &json!({"validUntil": valid_until, "timestamp": time::now()}));
        self.activity.changed(Topic::ApiKey);
    }

    pub(crate) fn send(&self, event: &str, data: &Value) {
        // Held until the event is sent: a stream must never see ids go backwards.
        let mut last_id = self.last_id.lock();
        *last_id = millis(OffsetDateTime::now_utc()).max(*last_id + 1);
        // Without an open stream there is nobody to tell.
        let _ = self.sender.send(frame(event, data, Some(*last_id)));
    }

    /// Sends bytes as they are; returns to how many streams.
    pub(crate) fn inject(&self, bytes: Bytes) -> usize {
        self.sender.send(bytes).unwrap_or(0)
    }

    /// Ends the streams that are open, after what they are still to send; returns how many there are.
    pub(crate) fn finish(&self) -> usize {
        self.finish.send_replace(());
        self.finish.receiver_count()
    }

    /// Opens a stream for a client that calls itself so; it ends with `stop`.
    pub(crate) fn stream(&self, client: String, stop: CancellationToken, faults: Arc<Book>) -> Body {
        let mut heartbeat = tokio::time::interval_at(tokio::time::Instant::now() + self.heartbeat, self.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let open = OpenStreams::add(&self.open, client);
        let (events, finish) = (self.sender.subscribe(), self.finish.subscribe());
        let source = Source { events, finish, heartbeat, faults, stop, _open: open };
        let frames: Pin<Box<dyn Stream<Item = Result<Bytes, Infallible>> + Send>> =
            Box::pin(stream::unfold(source, async |mut source| Some((Ok(source.next().await?), source))));
        Body::from_stream(frames)
    }
}

struct Source {
    events: broadcast::Receiver<Bytes>,
    finish: watch::Receiver<()>,
    heartbeat: Interval,
    faults: Arc<Book>,
    stop: CancellationToken,
    _open: Open,
}

impl Source {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            return tokio::select! {
                biased;
                () = self.stop.cancelled() => None,
                event = self.events.recv() => match event {
                    Ok(event) => Some(event),
                    Err(RecvError::Lagged(_)) => Some(frame("config-updated", &config_updated("events-missed"), None)),
                    Err(RecvError::Closed) => None,
                },
                _ = self.finish.changed() => None,
                _ = self.heartbeat.tick() => {
                    if self.faults.heartbeat() {
                        continue;
                    }
                    Some(frame("heartbeat", &json!({}), None))
                }
            };
        }
    }
}

/// The streams that are open, oldest first.
struct OpenStreams {
    streams: Mutex<BTreeMap<u64, OpenStream>>,
    activity: Arc<Activity>,
}

struct OpenStream {
    since: OffsetDateTime,
    client: String,
}

impl OpenStreams {
    fn add(open: &Arc<Self>, client: String) -> Open {
        let mut streams = open.streams.lock();
        let id = streams.last_key_value().map_or(0, |(last, _)| last + 1);
        streams.insert(id, OpenStream { since: OffsetDateTime::now_utc(), client });
        drop(streams);
        open.activity.changed(Topic::Streams);
        Open { streams: Arc::clone(open), id }
    }
}

/// Counts a stream for as long as it is open.
struct Open {
    streams: Arc<OpenStreams>,
    id: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.streams.streams.lock().remove(&self.id);
        self.streams.activity.changed(Topic::Streams);
    }
}

fn config_updated(reason: &str) -> Value {
    json!({"timestamp": time::now(), "reason": reason})
}

/// One event as it goes over the wire: the service sends the id after the data.
fn frame(event: &str, data: &Value, id: Option<i64>) -> Bytes {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("event: {event}\ndata: {data}\n{id}\n").into()
}

fn millis(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_sees_ids_grow_whichever_thread_sends() {
        const THREADS: usize = 8;
        let events = Events::new(Duration::from_secs(1), Arc::default());
        for _ in 0..20 {
            let mut stream = events.sender.subscribe();
            let together = std::sync::Barrier::new(THREADS);
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        together.wait();
                        for _ in 0..BACKLOG / THREADS {
                            events.send("any", &Value::Null);
                        }
                    });
                }
            });
            let mut last = 0;
            for _ in 0..BACKLOG {
                let frame = stream.try_recv().unwrap();
                let text = std::str::from_utf8(&frame).unwrap();
                let id: i64 = text.rsplit("id: ").next().unwrap().trim().parse().unwrap();
                assert!(id > last, "{id} after {last}");
                last = id;
            }
        }
    }
}
