//! What the server announces: events to the open streams of applications, and changed topics to the dashboard.

use std::{collections::BTreeMap, sync::Arc};

use ::time::OffsetDateTime;
use axum::body::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};

use crate::time;

/// A stream that falls behind by more than this many events gets one event instead: anything may have changed.
const BACKLOG: usize = 1_024;

/// A part of the server's state that the dashboard shows.
#[derive(Clone, Copy)]
pub(crate) enum Topic {
    Flags,
    Streams,
    Requests,
    Faults,
    ApiKey,
}

impl Topic {
    pub(crate) const ALL: [Self; 5] = [Self::Flags, Self::Streams, Self::Requests, Self::Faults, Self::ApiKey];

    /// Returns the name of the topic's events.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Flags => "flags",
            Self::Streams => "streams",
            Self::Requests => "requests",
            Self::Faults => "faults",
            Self::ApiKey => "api-key",
        }
    }
}

/// How often each topic has changed. Counters need no queue, so a watcher that falls behind misses nothing.
pub(crate) type TopicCounts = [u64; Topic::ALL.len()];

/// Sends events to all open streams, and counts the changes of each topic.
pub(crate) struct Broadcaster {
    events: broadcast::Sender<Bytes>,
    /// Ends the open streams.
    finish: watch::Sender<()>,
    /// The id of the last event, in milliseconds since the epoch. Ids never repeat.
    last_id: Mutex<i64>,
    /// The open streams, oldest first.
    streams: Mutex<BTreeMap<u64, OpenStream>>,
    topics: watch::Sender<TopicCounts>,
}

/// A stream as the dashboard lists it.
#[derive(Clone)]
pub(crate) struct OpenStream {
    pub(crate) since: OffsetDateTime,
    pub(crate) client: String,
}

impl Default for Broadcaster {
    fn default() -> Self {
        Self {
            events: broadcast::Sender::new(BACKLOG),
            finish: watch::Sender::default(),
            last_id: Mutex::default(),
            streams: Mutex::default(),
            topics: watch::Sender::default(),
        }
    }
}

impl Broadcaster {
    /// Counts a change of a topic.
    pub(crate) fn changed(&self, topic: Topic) {
        self.topics.send_modify(|counts| counts[topic as usize] += 1);
    }

    pub(crate) fn watch_topics(&self) -> watch::Receiver<TopicCounts> {
        self.topics.subscribe()
    }

    /// Announces that one flag was set or removed.
    pub(crate) fn flag_updated(&self, key: &str) {
        self.send("flag-updated", &json!({"flagKey": key, "timestamp": time::now()}));
        self.changed(Topic::Flags);
    }

    /// Announces that any flag may have changed.
    pub(crate) fn config_updated(&self, reason: &str) {
        self.send("config-updated", &config_updated(reason));
        self.changed(Topic::Flags);
    }

    /// Announces a new API key, and until when the old one is accepted.
    pub(crate) fn api_key_rotated(&self, valid_until: &str) {
        self.send("api-key-rotated", &json!({"validUntil": valid_until, "timestamp": time::now()}));
        self.changed(Topic::ApiKey);
    }

    /// Sends an event to the open streams.
    pub(crate) fn send(&self, event: &str, data: &Value) {
        // Locked until the event is sent, so that no stream sees ids out of order.
        let mut last_id = self.last_id.lock();
        *last_id = millis(OffsetDateTime::now_utc()).max(*last_id + 1);
        // Sending fails only if no stream is open.
        let _ = self.events.send(frame(event, data, Some(*last_id)));
    }

    /// Sends bytes unchanged to the open streams. Returns the number of streams.
    pub(crate) fn inject(&self, bytes: Bytes) -> usize {
        self.events.send(bytes).unwrap_or(0)
    }

    /// Ends the open streams after the events that are already queued. Returns the number of streams.
    pub(crate) fn finish_streams(&self) -> usize {
        self.finish.send_replace(());
        self.finish.receiver_count()
    }

    /// Opens a stream for the client with this name.
    pub(crate) fn subscribe(self: &Arc<Self>, client: String) -> Subscription {
        let mut streams = self.streams.lock();
        let id = streams.last_key_value().map_or(0, |(last, _)| last + 1);
        streams.insert(id, OpenStream { since: OffsetDateTime::now_utc(), client });
        drop(streams);
        self.changed(Topic::Streams);
        let (events, finish) = (self.events.subscribe(), self.finish.subscribe());
        Subscription { broadcaster: Arc::clone(self), id, events, finish }
    }

    /// Returns the number of open streams.
    pub(crate) fn stream_count(&self) -> usize {
        self.streams.lock().len()
    }

    /// Returns the number of open streams, and the newest ones up to `limit`, newest first.
    pub(crate) fn open_streams(&self, limit: usize) -> (usize, Vec<OpenStream>) {
        let streams = self.streams.lock();
        (streams.len(), streams.values().rev().take(limit).cloned().collect())
    }
}

/// An open stream. Dropping it closes the stream.
pub(crate) struct Subscription {
    broadcaster: Arc<Broadcaster>,
    id: u64,
    events: broadcast::Receiver<Bytes>,
    finish: watch::Receiver<()>,
}

impl Subscription {
    /// Waits for the next event. Returns `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        tokio::select! {
            biased;
            event = self.events.recv() => match event {
                Ok(event) => Some(event),
                Err(RecvError::Lagged(_)) => Some(frame("config-updated", &config_updated("events-missed"), None)),
                Err(RecvError::Closed) => None,
            },
            _ = self.finish.changed() => None,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.broadcaster.streams.lock().remove(&self.id);
        self.broadcaster.changed(Topic::Streams);
    }
}

/// Formats one event. The service sends the id after the data.
pub(crate) fn frame(event: &str, data: &Value, id: Option<i64>) -> Bytes {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("event: {event}\ndata: {data}\n{id}\n").into()
}

fn config_updated(reason: &str) -> Value {
    json!({"timestamp": time::now(), "reason": reason})
}

fn millis(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_increase_even_if_several_threads_send() {
        const THREADS: usize = 8;
        let broadcaster = Broadcaster::default();
        for _ in 0..20 {
            let mut stream = broadcaster.events.subscribe();
            let start = std::sync::Barrier::new(THREADS);
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        start.wait();
                        for _ in 0..BACKLOG / THREADS {
                            broadcaster.send("any", &Value::Null);
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

    #[tokio::test]
    async fn a_stream_that_misses_events_gets_config_updated_instead() {
        let broadcaster = Arc::new(Broadcaster::default());
        let mut stream = broadcaster.subscribe("client".to_owned());
        for _ in 0..=BACKLOG {
            broadcaster.flag_updated("a");
        }
        let text = stream.next().await.unwrap();
        let text = str::from_utf8(&text).unwrap();
        assert!(text.starts_with("event: config-updated\n") && text.contains("\"reason\":\"events-missed\""), "{text}");
        assert!(stream.next().await.unwrap().starts_with(b"event: flag-updated\n"));
    }
}
