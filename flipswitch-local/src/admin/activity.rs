//! What goes on, for whoever watches: which lists have changed, and the latest requests of applications.

use std::{collections::VecDeque, convert::Infallible, pin::Pin, sync::Arc, time::Duration};

use ::time::OffsetDateTime;
use axum::body::{Body, Bytes};
use futures_util::{Stream, stream};
use http::{HeaderMap, Method, StatusCode, Uri};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{mask, time};

/// This many requests are listed, the latest ones.
const KEPT: usize = 200;

/// So much of a body is kept, which is enough for what is shown of it.
const BODY: usize = 1_024;

/// Whoever watches is told at most this often; whatever happens meanwhile is told together.
const PAUSE: Duration = Duration::from_millis(50);

/// A sign of life, without which a watcher that has left silently would be kept for ever.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// Something that changes, and is told of by this name.
#[derive(Clone, Copy)]
pub(crate) enum Topic {
    Flags,
    Streams,
    Requests,
    Faults,
    ApiKey,
}

const TOPICS: [(Topic, &str); 5] = [
    (Topic::Flags, "flags"),
    (Topic::Streams, "streams"),
    (Topic::Requests, "requests"),
    (Topic::Faults, "faults"),
    (Topic::ApiKey, "api-key"),
];

/// How often each topic has changed. Counters need no queue: a watcher that falls behind misses nothing.
type Changes = [u64; TOPICS.len()];

#[derive(Default)]
pub(crate) struct Activity {
    changes: watch::Sender<Changes>,
    requests: Mutex<VecDeque<Asked>>,
}

/// A request of an application.
struct Asked {
    id: u64,
    method: Method,
    path: String,
    /// The beginning of the body, and how long all of it is.
    body: (Bytes, usize),
    api_key: Option<String>,
    at: OffsetDateTime,
    begun: Instant,
    outcome: Outcome,
}

#[derive(Clone, Copy)]
enum Outcome {
    Pending,
    Answered(StatusCode, Duration),
    /// The connection ended before there was an answer.
    Unanswered(Duration),
}

impl Activity {
    /// Tells that something has changed.
    pub(crate) fn changed(&self, topic: Topic) {
        self.changes.send_modify(|changes| changes[topic as usize] += 1);
    }

    /// Lists a request that has come in.
    pub(crate) fn asked(self: &Arc<Self>, method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Asking {
        let mut requests = self.requests.lock();
        let id = requests.back().map_or(1, |last| last.id + 1);
        requests.push_back(Asked {
            id,
            method: method.clone(),
            path: mask::truncate(uri.path_and_query().map_or("", |path| path.as_str())),
            body: (Bytes::copy_from_slice(&body[..body.len().min(BODY)]), body.len()),
            api_key: headers.get("x-api-key").map(|key| mask::mask_key(key.as_bytes())),
            at: OffsetDateTime::now_utc(),
            begun: Instant::now(),
            outcome: Outcome::Pending,
        });
        if requests.len() > KEPT {
            requests.pop_front();
        }
        drop(requests);
        self.changed(Topic::Requests);
        Asking { activity: Arc::clone(self), id }
    }

    /// The requests, newest first.
    pub(crate) fn listed(&self) -> Vec<Value> {
        self.requests.lock().iter().rev().map(Asked::to_json).collect()
    }

    /// Tells a watcher at once of everything, and then of what changes, until `stop`. `data` is what is said of a topic.
    pub(crate) fn feed(
        self: &Arc<Self>,
        stop: CancellationToken,
        data: impl Fn(Topic) -> Value + Send + Sync + 'static,
    ) -> Body {
        let watcher = Watcher { changes: self.changes.subscribe(), told: None, pause: Instant::now(), stop };
        let frames: Pin<Box<dyn Stream<Item = Result<Bytes, Infallible>> + Send>> =
            Box::pin(stream::unfold((watcher, data), async |(mut watcher, data)| {
                let frame = watcher.next(&data).await?;
                Some((Ok(frame), (watcher, data)))
            }));
        Body::from_stream(frames)
    }

    fn ended(&self, id: u64, status: Option<StatusCode>) {
        let mut requests = self.requests.lock();
        let first = requests.front().map_or(0, |first| first.id);
        let index = id.checked_sub(first).and_then(|index| usize::try_from(index).ok());
        let Some(request) = index.and_then(|index| requests.get_mut(index)) else { return };
        let Outcome::Pending = request.outcome else { return };
        let took = request.begun.elapsed();
        request.outcome = status.map_or(Outcome::Unanswered(took), |status| Outcome::Answered(status, took));
        drop(requests);
        self.changed(Topic::Requests);
    }
}

/// A request that is being answered. One that is dropped before was not.
pub(crate) struct Asking {
    activity: Arc<Activity>,
    id: u64,
}

impl Asking {
    pub(crate) fn answered(self, status: StatusCode) {
        self.activity.ended(self.id, Some(status));
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.activity.ended(self.id, None);
    }
}

impl Asked {
    fn to_json(&self) -> Value {
        let (status, took) = match self.outcome {
            Outcome::Pending => (None, None),
            Outcome::Answered(status, took) => (Some(status.as_u16()), Some(took)),
            Outcome::Unanswered(took) => (None, Some(took)),
        };
        json!({
            "id": self.id,
            "at": time::timestamp(self.at),
            "method": self.method.as_str(),
            "path": self.path,
            "apiKey": self.api_key,
            "context": self.context(),
            "status": status,
            "millis": took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
        })
    }

    /// What the request is about: its context, or its body as far as that is none.
    fn context(&self) -> Option<String> {
        let (body, length) = &self.body;
        let whole: Option<Value> = serde_json::from_slice(body).ok();
        if let Some(context) = whole.as_ref().and_then(|body| body.get("context")) {
            return Some(mask::truncate(&context.to_string()));
        }
        let text = String::from_utf8_lossy(body);
        let start = text.strip_prefix("{\"context\":").filter(|_| *length > BODY).unwrap_or(&text);
        (!start.is_empty()).then(|| mask::truncate(start))
    }
}

struct Watcher {
    changes: watch::Receiver<Changes>,
    told: Option<Changes>,
    /// Nothing is told before.
    pause: Instant,
    stop: CancellationToken,
}

impl Watcher {
    async fn next(&mut self, data: &impl Fn(Topic) -> Value) -> Option<Bytes> {
        let change = async {
            if self.told.is_some() {
                self.changes.changed().await.ok()?;
            }
            tokio::time::sleep_until(self.pause).await;
            Some(true)
        };
        let something = tokio::select! {
            () = self.stop.cancelled() => return None,
            change = change => change?,
            () = tokio::time::sleep(SIGN_OF_LIFE) => false,
        };
        if !something {
            return Some(Bytes::from_static(b":\n\n"));
        }
        self.pause = Instant::now() + PAUSE;
        let now = *self.changes.borrow_and_update();
        let before = self.told.replace(now);
        // Browsers come back a second after the service has gone.
        let mut frames = if before.is_none() { "retry: 1000\n\n".to_owned() } else { String::new() };
        for (topic, name) in TOPICS {
            if before.is_none_or(|before| before[topic as usize] != now[topic as usize]) {
                frames.push_str(&format!("event: {name}\ndata: {}\n\n", data(topic)));
            }
        }
        Some(frames.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_requests_are_listed_newest_first_with_what_became_of_them() {
        let activity = Arc::new(Activity::default());
        let ask = |path: &str, body: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert("x-api-key", "a-key-of-some-length-1234".parse().unwrap());
            activity.asked(&Method::POST, &path.parse().unwrap(), &headers, body)
        };
        (0..KEPT).for_each(|_| ask("/old", b"").answered(StatusCode::OK));
        let pending = ask("/pending", br#"{"context":{"targetingKey":"alice"}}"#);
        drop(ask("/dropped", b"<html>"));
        let long = format!("{{\"context\":{{\"a\":\"{}\"}}}}", "é".repeat(BODY));
        ask(&format!("/{}", "p".repeat(500)), long.as_bytes()).answered(StatusCode::NOT_FOUND);
        let listed = activity.listed();
        assert_eq!(listed.len(), KEPT);
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
        assert!(activity.listed()[2]["millis"].is_u64());
        // The oldest of those that are answered late are no longer listed.
        let late = ask("/late", b"");
        (0..KEPT).for_each(|_| drop(ask("/", b"")));
        late.answered(StatusCode::OK);
        assert!(activity.listed().iter().all(|request| request["status"].is_null()));
    }

    #[tokio::test]
    async fn a_watcher_that_falls_behind_is_told_everything_together() {
        let activity = Arc::new(Activity::default());
        let stop = CancellationToken::new();
        let mut watcher =
            Watcher { changes: activity.changes.subscribe(), told: None, pause: Instant::now(), stop: stop.clone() };
        let data = |_: Topic| json!({});
        let first = watcher.next(&data).await.unwrap();
        let names: Vec<_> =
            str::from_utf8(&first).unwrap().lines().filter_map(|line| line.strip_prefix("event: ")).collect();
        assert_eq!(names, ["flags", "streams", "requests", "faults", "api-key"]);
        (0..100_000).for_each(|_| activity.changed(Topic::Faults));
        activity.changed(Topic::Flags);
        let next = watcher.next(&data).await.unwrap();
        assert_eq!(str::from_utf8(&next).unwrap(), "event: flags\ndata: {}\n\nevent: faults\ndata: {}\n\n");
        stop.cancel();
        assert!(watcher.next(&data).await.is_none());
    }
}
