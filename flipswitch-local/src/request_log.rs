//! What came in, for tests to look at.

use std::{collections::VecDeque, time::Instant};

use axum::body::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use parking_lot::Mutex;

/// This many requests are kept, the latest ones.
const KEPT: usize = 16_384;

/// Bodies, headers and paths of the requests that are kept have this many bytes together.
const KEPT_BYTES: usize = 32 << 20;

/// One request that a [`LocalServer`](crate::LocalServer) received.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RecordedRequest {
    /// Method of the request.
    pub method: Method,
    /// Path and query as sent.
    pub path: String,
    /// Headers, the API key among them.
    pub headers: HeaderMap,
    /// Body as sent.
    pub body: Bytes,
    /// When its body was read.
    pub at: Instant,
}

/// The latest requests.
#[derive(Default)]
pub(crate) struct Record(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    requests: VecDeque<RecordedRequest>,
    /// Of bodies, headers and paths.
    bytes: usize,
}

impl Record {
    pub(crate) fn add(&self, request: RecordedRequest) {
        let request = request.alone();
        let mut kept = self.0.lock();
        kept.bytes += size(&request);
        kept.requests.push_back(request);
        while kept.requests.len() > KEPT || kept.bytes > KEPT_BYTES {
            let Some(oldest) = kept.requests.pop_front() else { break };
            kept.bytes -= size(&oldest);
        }
    }

    pub(crate) fn all(&self) -> Vec<RecordedRequest> {
        self.0.lock().requests.iter().cloned().collect()
    }
}

impl RecordedRequest {
    /// A copy that holds nothing else: headers and bodies come as parts of what a connection has read, all of which would
    /// stay with each of them.
    fn alone(self) -> Self {
        let copy = |value: &HeaderValue| {
            let mut copy = HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
            copy.set_sensitive(value.is_sensitive());
            copy
        };
        let headers = self.headers.iter().map(|(name, value)| (name.clone(), copy(value))).collect();
        let body = Bytes::copy_from_slice(&self.body);
        Self { headers, body, ..self }
    }
}

fn size(request: &RecordedRequest) -> usize {
    let headers: usize = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    request.body.len() + request.path.len() + headers
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_request_does_not_keep_what_it_was_read_from() {
        let read = Bytes::from(vec![b'x'; 1 << 20]);
        let value = HeaderValue::from_maybe_shared(read.slice(..10)).unwrap();
        let request = RecordedRequest {
            method: Method::GET,
            path: String::new(),
            headers: HeaderMap::from_iter([(http::header::ACCEPT, value.clone()), (http::header::ACCEPT, value)]),
            body: read.slice(10..20),
            at: Instant::now(),
        };
        let record = Record::default();
        record.add(request);
        assert!(read.is_unique(), "only the reader has it");
        let kept = &record.all()[0];
        assert_eq!((kept.headers.get_all(http::header::ACCEPT).iter().count(), kept.body.len()), (2, 10));
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_or_too_big_ones() {
        // Cheap to copy, so that the test holds one body only.
        let mib = Bytes::from(vec![0; 1 << 20]);
        let cases = [
            // Size of the path, body, how many come in, how many are kept.
            (1, Bytes::new(), KEPT + 3, KEPT),
            (0, mib.clone(), 40, 32),
            (1, mib, 40, 31),
            (1 << 10, Bytes::new(), (32 << 10) + 1, KEPT),
            (4 << 10, Bytes::new(), (8 << 10) + 1, 8 << 10),
        ];
        for (path, body, sent, kept) in cases {
            let record = Record::default();
            let start = Instant::now();
            for index in 0..sent {
                record.add(RecordedRequest {
                    method: Method::GET,
                    path: "p".repeat(path),
                    headers: HeaderMap::new(),
                    body: body.clone(),
                    at: start + Duration::from_secs(index as u64),
                });
            }
            let requests = record.all();
            assert_eq!(requests.len(), kept);
            let first = start + Duration::from_secs((sent - kept) as u64);
            assert_eq!(requests[0].at, first, "the latest are kept, oldest first");
        }
    }
}
