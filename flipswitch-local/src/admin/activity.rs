//! What the dashboard watches: the topics that change, the open streams, and the latest requests from applications.

use std::{convert::Infallible, pin::Pin, sync::Arc, time::Duration};

use axum::body::{Body, Bytes};
use futures_util::{Stream, stream};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    broadcast::{Broadcaster, Topic, TopicCounts},
    keys, mask,
    request_log::{LoggedRequest, RequestLog},
    state::AppState,
    time,
};

/// The maximum number of requests that are listed. The latest ones are listed.
const LISTED_REQUESTS: usize = 200;

/// The maximum number of open streams that are listed. The latest ones are listed, and all are counted.
const LISTED_STREAMS: usize = 50;

/// Number of bytes of a body that are searched for the context to list.
const BODY_PREFIX: usize = 1_024;

/// Watchers get at most one update in this interval; changes in between are sent together.
const UPDATE_INTERVAL: Duration = Duration::from_millis(50);

/// Time without a change after which a comment is sent, so that a closed connection is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Returns the latest requests from applications, newest first.
pub(crate) fn requests(log: &RequestLog) -> Vec<Value> {
    log.latest_of_applications(LISTED_REQUESTS).iter().map(|request| request_json(request)).collect()
}

fn request_json(logged: &LoggedRequest) -> Value {
    let request = &logged.request;
    let outcome = logged.outcome();
    json!({
        "id": logged.application_id,
        "at": time::timestamp(logged.received_at),
        "method": request.method.as_str(),
        "path": mask::truncate(&request.path),
        "apiKey": keys::sent_key(&request.headers).map(mask::mask_key),
        "context": context(&request.body),
        "status": outcome.and_then(|outcome| outcome.status).map(|status| status.as_u16()),
        "millis": outcome.map(|outcome| u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX)),
    })
}

/// Returns the context in a body, or the body itself if there is none.
fn context(body: &[u8]) -> Option<String> {
    let prefix = &body[..body.len().min(BODY_PREFIX)];
    let json: Option<Value> = serde_json::from_slice(prefix).ok();
    if let Some(context) = json.as_ref().and_then(|body| body.get("context")) {
        return Some(mask::truncate(&context.to_string()));
    }
    let text = String::from_utf8_lossy(prefix);
    let start = text.strip_prefix("{\"context\":").filter(|_| body.len() > BODY_PREFIX).unwrap_or(&text);
    (!start.is_empty()).then(|| mask::truncate(start))
}

/// Returns an event stream that names all topics at first, and then each topic that changes. It ends when the server
/// stops.
pub(crate) fn feed(state: &AppState) -> Body {
    let watcher = Watcher::new(Arc::clone(&state.broadcaster), state.stop.clone());
    let frames: Pin<Box<dyn Stream<Item = Result<Bytes, Infallible>> + Send>> =
        Box::pin(stream::unfold(watcher, async |mut watcher| Some((Ok(watcher.next().await?), watcher))));
    Body::from_stream(frames)
}

struct Watcher {
    broadcaster: Arc<Broadcaster>,
    counts: watch::Receiver<TopicCounts>,
    /// The counts of the last update.
    sent: Option<TopicCounts>,
    /// The earliest time of the next update.
    next_update: Instant,
    stop: CancellationToken,
}

impl Watcher {
    fn new(broadcaster: Arc<Broadcaster>, stop: CancellationToken) -> Self {
        let counts = broadcaster.watch_topics();
        Self { broadcaster, counts, sent: None, next_update: Instant::now(), stop }
    }

    async fn next(&mut self) -> Option<Bytes> {
        let change = async {
            if self.sent.is_some() {
                self.counts.changed().await.ok()?;
            }
            tokio::time::sleep_until(self.next_update).await;
            Some(true)
        };
        let has_changed = tokio::select! {
            () = self.stop.cancelled() => return None,
            change = change => change?,
            () = tokio::time::sleep(KEEP_ALIVE) => false,
        };
        if !has_changed {
            return Some(Bytes::from_static(b":\n\n"));
        }
        self.next_update = Instant::now() + UPDATE_INTERVAL;
        let now = *self.counts.borrow_and_update();
        let before = self.sent.replace(now);
        // Browsers reconnect a second after the stream has ended.
        let mut frames = if before.is_none() { "retry: 1000\n\n".to_owned() } else { String::new() };
        for topic in Topic::ALL {
            if before.is_none_or(|before| before[topic as usize] != now[topic as usize]) {
                frames.push_str(&format!("event: {}\ndata: {}\n\n", topic.name(), self.data(topic)));
            }
        }
        Some(frames.into())
    }

    fn data(&self, topic: Topic) -> Value {
        match topic {
            Topic::Streams => self.open_streams(),
            Topic::Flags | Topic::Requests | Topic::Faults | Topic::ApiKey => json!({}),
        }
    }

    fn open_streams(&self) -> Value {
        let (open, streams) = self.broadcaster.open_streams(LISTED_STREAMS);
        let streams: Vec<_> = streams
            .into_iter()
            .map(|stream| json!({"since": time::timestamp(stream.since), "client": stream.client}))
            .collect();
        json!({"open": open, "streams": streams})
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method, StatusCode};

    use super::*;
    use crate::request_log::{PendingRequest, RecordedRequest};

    fn add(log: &RequestLog, path: &str, body: &str) -> PendingRequest {
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", "a-key-of-some-length-1234".parse().unwrap());
        let (path, body) = (path.to_owned(), body.to_owned().into());
        log.add(RecordedRequest { method: Method::POST, path, headers, body, at: std::time::Instant::now() }, true)
    }

    #[test]
    fn the_latest_requests_are_listed_newest_first_with_their_outcomes() {
        let log = RequestLog::new(Arc::default());
        (0..LISTED_REQUESTS).for_each(|_| add(&log, "/old", "").complete(StatusCode::OK));
        let pending = add(&log, "/pending", r#"{"context":{"targetingKey":"alice"}}"#);
        drop(add(&log, "/dropped", "<html>"));
        let long = format!("{{\"context\":{{\"a\":\"{}\"}}}}", "é".repeat(BODY_PREFIX));
        add(&log, &format!("/{}", "p".repeat(500)), &long).complete(StatusCode::NOT_FOUND);
        let listed = requests(&log);
        assert_eq!(listed.len(), LISTED_REQUESTS);
        let seen: Vec<_> = listed.iter().take(3).map(|request| &request["status"]).collect();
        assert_eq!(seen, [&json!(404), &json!(null), &json!(null)]);
        let length = |field: &str| listed[0][field].as_str().unwrap().chars().count();
        assert_eq!((length("path"), length("context")), (241, 241));
        assert!(listed[0]["context"].as_str().unwrap().starts_with("{\"a\":\"éé"), "{}", listed[0]);
        assert_eq!((&listed[1]["context"], listed[1]["millis"].is_u64()), (&json!("<html>"), true));
        assert_eq!(
            (&listed[2]["context"], &listed[2]["millis"]),
            (&json!(r#"{"targetingKey":"alice"}"#), &json!(null))
        );
        assert_eq!(listed[2]["apiKey"], "••••1234");
        drop(pending);
        assert!(requests(&log)[2]["millis"].is_u64());
        // A request that is completed after 200 others is no longer listed.
        let late = add(&log, "/late", "");
        (0..LISTED_REQUESTS).for_each(|_| drop(add(&log, "/", "")));
        late.complete(StatusCode::OK);
        assert!(requests(&log).iter().all(|request| request["status"].is_null()));
    }

    #[tokio::test]
    async fn changes_that_a_watcher_missed_are_sent_together() {
        let broadcaster = Arc::<Broadcaster>::default();
        let stop = CancellationToken::new();
        let mut watcher = Watcher::new(Arc::clone(&broadcaster), stop.clone());
        let first = watcher.next().await.unwrap();
        let names: Vec<_> =
            str::from_utf8(&first).unwrap().lines().filter_map(|line| line.strip_prefix("event: ")).collect();
        assert_eq!(names, ["flags", "streams", "requests", "faults", "api-key"]);
        (0..100_000).for_each(|_| broadcaster.changed(Topic::Faults));
        broadcaster.changed(Topic::Flags);
        let next = watcher.next().await.unwrap();
        assert_eq!(str::from_utf8(&next).unwrap(), "event: flags\ndata: {}\n\nevent: faults\ndata: {}\n\n");
        stop.cancel();
        assert!(watcher.next().await.is_none());
    }
}
