//! The stream of changes.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::body::{Body, Bytes};
use futures_util::{Stream, stream};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

/// A stream that falls behind by more than this many events is told that everything may have changed.
const BACKLOG: usize = 1_024;

/// Sends events to every open stream.
pub(crate) struct Events {
    sender: broadcast::Sender<Bytes>,
    /// The last id given out, in milliseconds since the epoch; ids never repeat.
    last_id: AtomicI64,
    open: Arc<AtomicUsize>,
    heartbeat: Duration,
}

impl Events {
    pub(crate) fn new(heartbeat: Duration) -> Self {
        let (sender, _) = broadcast::channel(BACKLOG);
        Self { sender, last_id: AtomicI64::new(0), open: Arc::default(), heartbeat }
    }

    /// How many streams are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Tells that one flag was set or removed.
    pub(crate) fn flag_updated(&self, key: &str) {
        self.send("flag-updated", &json!({"flagKey": key, "timestamp": now()}));
    }

    /// Tells that anything may have changed.
    pub(crate) fn config_updated(&self, reason: &str) {
        self.send("config-updated", &config_updated(reason));
    }

    pub(crate) fn send(&self, event: &str, data: &Value) {
        let now = millis(OffsetDateTime::now_utc());
        let next = |last: i64| Some(now.max(last + 1));
        let id =
            self.last_id.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map_or(now, |last| now.max(last + 1));
        // Without an open stream there is nobody to tell.
        let _ = self.sender.send(frame(event, data, Some(id)));
    }

    /// Opens a stream, which ends with `stop`.
    pub(crate) fn stream(&self, stop: CancellationToken) -> Body {
        let mut heartbeat = tokio::time::interval_at(tokio::time::Instant::now() + self.heartbeat, self.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let open = Open::new(Arc::clone(&self.open));
        let source = Source { events: self.sender.subscribe(), heartbeat, stop, _open: open };
        let frames: Pin<Box<dyn Stream<Item = Result<Bytes, Infallible>> + Send>> =
            Box::pin(stream::unfold(source, async |mut source| Some((Ok(source.next().await?), source))));
        Body::from_stream(frames)
    }
}

struct Source {
    events: broadcast::Receiver<Bytes>,
    heartbeat: Interval,
    stop: CancellationToken,
    _open: Open,
}

impl Source {
    async fn next(&mut self) -> Option<Bytes> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            event = self.events.recv() => match event {
                Ok(event) => Some(event),
                Err(RecvError::Lagged(_)) => Some(frame("config-updated", &config_updated("events-missed"), None)),
                Err(RecvError::Closed) => None,
            },
            _ = self.heartbeat.tick() => Some(frame("heartbeat", &json!({}), None)),
        }
    }
}

/// Counts a stream for as long as it is open.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn config_updated(reason: &str) -> Value {
    json!({"timestamp": now(), "reason": reason})
}

/// One event as it goes over the wire: the service sends the id after the data.
fn frame(event: &str, data: &Value, id: Option<i64>) -> Bytes {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("event: {event}\ndata: {data}\n{id}\n").into()
}

/// The time in RFC 3339 with milliseconds, as the service writes it.
fn now() -> String {
    let now = OffsetDateTime::now_utc();
    let now = now.replace_millisecond(now.millisecond()).unwrap_or(now);
    now.format(&Rfc3339).unwrap_or_default()
}

fn millis(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}
