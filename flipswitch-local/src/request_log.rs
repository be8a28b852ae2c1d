//! The log of received requests, which tests read and the dashboard lists.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use axum::body::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use time::OffsetDateTime;

use crate::broadcast::{Broadcaster, Topic};

/// The maximum number of requests that the log keeps. It keeps the latest ones.
const MAX_REQUESTS: usize = 16_384;

/// The maximum total size of the bodies, headers and paths in the log, in bytes.
const MAX_BYTES: usize = 32 << 20;

/// One request that a [`LocalServer`](crate::LocalServer) received.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RecordedRequest {
    /// Method of the request.
    pub method: Method,
    /// Path and query as sent.
    pub path: String,
    /// Headers, including the API key.
    pub headers: HeaderMap,
    /// Body as sent.
    pub body: Bytes,
    /// The time at which the body was read.
    pub at: Instant,
}

/// A request in the log, and its outcome.
pub(crate) struct LoggedRequest {
    pub(crate) request: RecordedRequest,
    pub(crate) received_at: OffsetDateTime,
    /// Sequence number of the request among the requests from applications. `None` for requests to the dashboard and to `/local`.
    pub(crate) application_id: Option<u64>,
    outcome: OnceLock<Outcome>,
}

/// The outcome of a request.
#[derive(Clone, Copy)]
pub(crate) struct Outcome {
    /// `None` if the connection ended before there was a response.
    pub(crate) status: Option<StatusCode>,
    pub(crate) took: Duration,
}

/// The latest requests, within the limits.
pub(crate) struct RequestLog {
    entries: Mutex<Entries>,
    broadcaster: Arc<Broadcaster>,
}

#[derive(Default)]
struct Entries {
    requests: VecDeque<Arc<LoggedRequest>>,
    /// Size of all bodies, headers and paths.
    bytes: usize,
    last_application_id: u64,
}

impl RequestLog {
    pub(crate) fn new(broadcaster: Arc<Broadcaster>) -> Self {
        Self { entries: Mutex::default(), broadcaster }
    }

    /// Adds a request. It is pending until the returned guard is completed or dropped.
    pub(crate) fn add(&self, request: RecordedRequest, is_of_application: bool) -> PendingRequest {
        let request = request.detach();
        let bytes = request.size();
        let mut entries = self.entries.lock();
        let application_id = is_of_application.then(|| {
            entries.last_application_id += 1;
            entries.last_application_id
        });
        let (received_at, outcome) = (OffsetDateTime::now_utc(), OnceLock::new());
        let request = Arc::new(LoggedRequest { request, received_at, application_id, outcome });
        entries.bytes += bytes;
        entries.requests.push_back(Arc::clone(&request));
        while entries.requests.len() > MAX_REQUESTS || entries.bytes > MAX_BYTES {
            let Some(oldest) = entries.requests.pop_front() else { break };
            entries.bytes -= oldest.request.size();
        }
        drop(entries);
        let pending = PendingRequest { request, broadcaster: Arc::clone(&self.broadcaster) };
        pending.announce();
        pending
    }

    /// Returns all requests, oldest first.
    pub(crate) fn all(&self) -> Vec<RecordedRequest> {
        self.entries.lock().requests.iter().map(|logged| logged.request.clone()).collect()
    }

    /// Returns the requests from applications, newest first, up to `limit`.
    pub(crate) fn latest_of_applications(&self, limit: usize) -> Vec<Arc<LoggedRequest>> {
        let entries = self.entries.lock();
        let requests = entries.requests.iter().rev().filter(|logged| logged.application_id.is_some());
        requests.take(limit).cloned().collect()
    }
}

impl LoggedRequest {
    /// Returns the outcome, or `None` while the request is pending.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.outcome.get().copied()
    }
}

/// A request that has no response yet. Dropping it records that there was none.
pub(crate) struct PendingRequest {
    request: Arc<LoggedRequest>,
    broadcaster: Arc<Broadcaster>,
}

impl PendingRequest {
    /// Records the response.
    pub(crate) fn complete(self, status: StatusCode) {
        self.finish(Some(status));
    }

    fn finish(&self, status: Option<StatusCode>) {
        let outcome = Outcome { status, took: self.request.request.at.elapsed() };
        if self.request.outcome.set(outcome).is_ok() {
            self.announce();
        }
    }

    /// Announces requests from applications only. The dashboard reads the list with a request, which must not announce another
    /// change.
    fn announce(&self) {
        if self.request.application_id.is_some() {
            self.broadcaster.changed(Topic::Requests);
        }
    }
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        self.finish(None);
    }
}

impl RecordedRequest {
    /// Copies headers and body. Otherwise, they would keep the whole read buffer of the connection in memory.
    fn detach(self) -> Self {
        let copy = |value: &HeaderValue| {
            let mut copy = HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
            copy.set_sensitive(value.is_sensitive());
            copy
        };
        let headers = self.headers.iter().map(|(name, value)| (name.clone(), copy(value))).collect();
        let body = Bytes::copy_from_slice(&self.body);
        Self { headers, body, ..self }
    }

    fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        self.body.len() + self.path.len() + headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> RequestLog {
        RequestLog::new(Arc::default())
    }

    fn request(path: &str, body: Bytes) -> RecordedRequest {
        let headers = HeaderMap::new();
        RecordedRequest { method: Method::GET, path: path.to_owned(), headers, body, at: Instant::now() }
    }

    #[test]
    fn a_logged_request_does_not_keep_the_buffer_it_was_read_from() {
        let read = Bytes::from(vec![b'x'; 1 << 20]);
        let value = HeaderValue::from_maybe_shared(read.slice(..10)).unwrap();
        let headers = HeaderMap::from_iter([(http::header::ACCEPT, value.clone()), (http::header::ACCEPT, value)]);
        let log = log();
        drop(log.add(RecordedRequest { headers, ..request("", read.slice(10..20)) }, true));
        assert!(read.is_unique(), "the log holds no reference to the buffer");
        let kept = &log.all()[0];
        assert_eq!((kept.headers.get_all(http::header::ACCEPT).iter().count(), kept.body.len()), (2, 10));
    }

    #[test]
    fn the_oldest_requests_are_dropped_beyond_the_limits() {
        let mib = Bytes::from(vec![0; 1 << 20]);
        let cases = [
            // Size of the path, size of the body, number of requests, and number of requests that are kept.
            (1, Bytes::new(), MAX_REQUESTS + 3, MAX_REQUESTS),
            (0, mib.clone(), 40, 32),
            (1, mib, 40, 31),
            (1 << 10, Bytes::new(), (32 << 10) + 1, MAX_REQUESTS),
            (4 << 10, Bytes::new(), (8 << 10) + 1, 8 << 10),
        ];
        for (path, body, sent, kept) in cases {
            let log = log();
            let start = Instant::now();
            for index in 0..sent {
                let at = start + Duration::from_secs(index as u64);
                drop(log.add(RecordedRequest { at, ..request(&"p".repeat(path), body.clone()) }, false));
            }
            let requests = log.all();
            assert_eq!(requests.len(), kept);
            let first = start + Duration::from_secs((sent - kept) as u64);
            assert_eq!(requests[0].at, first, "the latest are kept, oldest first");
        }
    }

    #[test]
    fn each_request_has_one_outcome() {
        let log = log();
        let pending = log.add(request("/pending", Bytes::new()), true);
        drop(log.add(request("/dropped", Bytes::new()), true));
        log.add(request("/completed", Bytes::new()), true).complete(StatusCode::NOT_FOUND);
        log.add(request("/local/flags", Bytes::new()), false).complete(StatusCode::OK);
        let listed = log.latest_of_applications(10);
        let seen: Vec<_> = listed.iter().map(|logged| (logged.application_id, logged.outcome())).collect();
        assert!(matches!(
            seen[..],
            [
                (Some(3), Some(Outcome { status: Some(StatusCode::NOT_FOUND), .. })),
                (Some(2), Some(Outcome { status: None, .. })),
                (Some(1), None),
            ]
        ));
        drop(pending);
        assert!(listed[2].outcome().is_some_and(|outcome| outcome.status.is_none()));
        assert_eq!(log.latest_of_applications(1)[0].request.path, "/completed");
        assert_eq!(log.all().len(), 4);
    }

    #[test]
    fn only_requests_of_applications_are_announced() {
        let broadcaster = Arc::<Broadcaster>::default();
        let log = RequestLog::new(Arc::clone(&broadcaster));
        let changes = || broadcaster.watch_topics().borrow()[Topic::Requests as usize];
        log.add(request("/local/requests", Bytes::new()), false).complete(StatusCode::OK);
        assert_eq!(changes(), 0);
        log.add(request("/ofrep", Bytes::new()), true).complete(StatusCode::OK);
        assert_eq!(changes(), 2, "when it comes in, and when it is answered");
    }
}
