//! What came in, for tests to look at.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use axum::body::Bytes;
use http::{HeaderMap, Method};

/// This many requests are kept, the latest ones.
const KEPT: usize = 16_384;

/// Bodies and paths of the requests that are kept have this many bytes together.
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
    /// Of bodies and paths.
    bytes: usize,
}

impl Record {
    pub(crate) fn add(&self, request: RecordedRequest) {
        let mut kept = self.lock();
        kept.bytes += size(&request);
        kept.requests.push_back(request);
        while kept.requests.len() > KEPT || kept.bytes > KEPT_BYTES {
            let Some(oldest) = kept.requests.pop_front() else { break };
            kept.bytes -= size(&oldest);
        }
    }

    pub(crate) fn all(&self) -> Vec<RecordedRequest> {
        self.lock().requests.iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size(request: &RecordedRequest) -> usize {
    request.body.len() + request.path.len()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

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
