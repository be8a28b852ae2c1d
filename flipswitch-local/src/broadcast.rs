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

/// A stream that falls behind by more than this many events gets one event instead, which says that anything may have changed.
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

/// The kinds of streams. All of them receive the same changes, each in its own form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamKind {
    /// The Flipswitch stream, which receives every event by its name.
    Flipswitch,
    /// An OFREP event stream, whose client is asked to refetch the flags after each change.
    Ofrep,
}

/// A version of the flags: the id of the change that led to it, in milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version(i64);

impl Version {
    /// Returns the id of the change's event.
    pub(crate) fn id(self) -> String {
        self.0.to_string()
    }

    /// Returns the time of the change.
    pub(crate) fn last_modified(self) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + ::time::Duration::milliseconds(self.0)
    }

    /// Formats the event that asks clients of an event stream to refetch the flags. Its tag is the id in quotes.
    pub(crate) fn refetch(self) -> Bytes {
        let (id, seconds) = (self.0, self.last_modified().unix_timestamp());
        let data = format!(r#"{{"type":"refetchEvaluation","etag":"\"{id}\"","lastModified":{seconds}}}"#);
        format!("id: {id}\ndata: {data}\n\n").into()
    }
}

/// What is sent to the open streams, in the form of each kind.
#[derive(Clone)]
struct Message {
    flipswitch: Bytes,
    /// `None` for events that are not sent to OFREP event streams.
    ofrep: Option<Bytes>,
}

struct Last {
    /// The id of the last event, in milliseconds since the epoch. Ids never repeat.
    id: i64,
    version: Version,
}

/// Sends events to all open streams, and counts the changes of each topic.
pub(crate) struct Broadcaster {
    events: broadcast::Sender<Message>,
    /// Ends the open streams.
    finish: watch::Sender<()>,
    last: Mutex<Last>,
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
        let now = millis(OffsetDateTime::now_utc());
        Self {
            events: broadcast::Sender::new(BACKLOG),
            finish: watch::Sender::default(),
            last: Mutex::new(Last { id: now, version: Version(now) }),
            streams: Mutex::default(),
            topics: watch::Sender::default(),
        }
    }
}

impl Broadcaster {
    /// Counts a change to a topic.
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

    /// Announces a new API key, and the time until which the old one is accepted.
    pub(crate) fn api_key_rotated(&self, valid_until: &str) {
        self.send("api-key-rotated", &json!({"validUntil": valid_until, "timestamp": time::now()}));
        self.changed(Topic::ApiKey);
    }

    /// Sends an event to the open streams. OFREP event streams receive only flag changes.
    pub(crate) fn send(&self, event: &str, data: &Value) {
        // Locked until the event is sent, so that no stream sees ids out of order.
        let mut last = self.last.lock();
        last.id = millis(OffsetDateTime::now_utc()).max(last.id + 1);
        let flipswitch = frame(event, data, Some(last.id));
        let ofrep = matches!(event, "flag-updated" | "config-updated").then(|| {
            last.version = Version(last.id);
            last.version.refetch()
        });
        // Sending fails only if no stream is open.
        let _ = self.events.send(Message { flipswitch, ofrep });
    }

    /// Returns the version of the flags. It is never newer than the flags themselves.
    pub(crate) fn version(&self) -> Version {
        self.last.lock().version
    }

    /// Sends bytes unchanged to the open streams of both kinds. Returns the number of streams.
    pub(crate) fn inject(&self, bytes: Bytes) -> usize {
        self.events.send(Message { flipswitch: bytes.clone(), ofrep: Some(bytes) }).unwrap_or(0)
    }

    /// Ends the open streams after the events that are already queued. Returns the number of streams.
    pub(crate) fn finish_streams(&self) -> usize {
        self.finish.send_replace(());
        self.finish.receiver_count()
    }

    /// Opens a stream for the client with this name.
    pub(crate) fn subscribe(self: &Arc<Self>, kind: StreamKind, client: String) -> Subscription {
        let mut streams = self.streams.lock();
        let id = streams.last_key_value().map_or(0, |(last, _)| last + 1);
        streams.insert(id, OpenStream { since: OffsetDateTime::now_utc(), client });
        drop(streams);
        self.changed(Topic::Streams);
        let finish = self.finish.subscribe();
        // Locked, so that the first event announces the change after this version.
        let last = self.last.lock();
        let (events, version) = (self.events.subscribe(), last.version);
        drop(last);
        Subscription { broadcaster: Arc::clone(self), kind, id, version, events, finish }
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
    pub(crate) kind: StreamKind,
    id: u64,
    /// The version of the flags when the stream was opened.
    pub(crate) version: Version,
    events: broadcast::Receiver<Message>,
    finish: watch::Receiver<()>,
}

impl Subscription {
    /// Waits for the next event. Returns `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            let message = tokio::select! {
                biased;
                message = self.events.recv() => message,
                _ = self.finish.changed() => return None,
            };
            let frame = match (message, self.kind) {
                (Ok(message), StreamKind::Flipswitch) => Some(message.flipswitch),
                (Ok(message), StreamKind::Ofrep) => message.ofrep,
                (Err(RecvError::Lagged(_)), StreamKind::Flipswitch) => {
                    Some(frame("config-updated", &config_updated("events-missed"), None))
                }
                (Err(RecvError::Lagged(_)), StreamKind::Ofrep) => Some(self.skip_to_present()),
                (Err(RecvError::Closed), _) => return None,
            };
            if frame.is_some() {
                return frame;
            }
        }
    }

    /// Skips the queued events. Each of them would request the same refetch as the event that is returned.
    fn skip_to_present(&mut self) -> Bytes {
        let last = self.broadcaster.last.lock();
        self.events = self.events.resubscribe();
        last.version.refetch()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.broadcaster.streams.lock().remove(&self.id);
        self.broadcaster.changed(Topic::Streams);
    }
}

/// Formats one event of the Flipswitch stream. The service sends the id after the data.
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
                let frame = stream.try_recv().unwrap().flipswitch;
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
        let mut stream = broadcaster.subscribe(StreamKind::Flipswitch, "client".to_owned());
        for _ in 0..=BACKLOG {
            broadcaster.flag_updated("a");
        }
        let text = stream.next().await.unwrap();
        let text = str::from_utf8(&text).unwrap();
        assert!(text.starts_with("event: config-updated\n") && text.contains("\"reason\":\"events-missed\""), "{text}");
        assert!(stream.next().await.unwrap().starts_with(b"event: flag-updated\n"));
    }

    #[tokio::test]
    async fn an_event_stream_that_misses_events_is_asked_once_to_refetch() {
        let broadcaster = Arc::new(Broadcaster::default());
        let mut stream = broadcaster.subscribe(StreamKind::Ofrep, "client".to_owned());
        for _ in 0..=BACKLOG {
            broadcaster.flag_updated("a");
        }
        let newest = broadcaster.version();
        assert_eq!(stream.next().await.unwrap(), newest.refetch());
        broadcaster.flag_updated("a");
        let next = broadcaster.version();
        assert_ne!(next, newest);
        assert_eq!(stream.next().await.unwrap(), next.refetch(), "nothing in between");
    }

    #[tokio::test]
    async fn event_streams_receive_changes_with_the_ids_of_the_other_stream() {
        let broadcaster = Arc::new(Broadcaster::default());
        let mut own = broadcaster.subscribe(StreamKind::Flipswitch, "client".to_owned());
        let mut events = broadcaster.subscribe(StreamKind::Ofrep, "client".to_owned());
        let opened = events.version;
        broadcaster.api_key_rotated("2030-01-01T00:00:00.000Z");
        assert_eq!(broadcaster.version(), opened, "the flags are the same");
        broadcaster.config_updated("test");
        let version = broadcaster.version();
        let id = version.id();
        let seconds = id.parse::<i64>().unwrap() / 1_000;
        let data = json!({"type": "refetchEvaluation", "etag": format!("\"{id}\""), "lastModified": seconds});
        let frame = events.next().await.unwrap();
        let (first, rest) = str::from_utf8(&frame).unwrap().split_once("\ndata: ").unwrap();
        assert_eq!(first, format!("id: {id}"));
        assert_eq!(serde_json::from_str::<Value>(rest.strip_suffix("\n\n").unwrap()).unwrap(), data);
        assert!(own.next().await.unwrap().starts_with(b"event: api-key-rotated\n"));
        assert!(own.next().await.unwrap().ends_with(format!("\nid: {id}\n\n").as_bytes()));
        assert_eq!(broadcaster.inject(Bytes::from_static(b":\n")), 2);
        assert_eq!((own.next().await.unwrap(), events.next().await.unwrap()), (":\n".into(), ":\n".into()));
    }
}
