//! What came in, for tests to look at.

use std::{collections::VecDeque, sync::Mutex, time::Instant};

use axum::body::Bytes;
use http::{HeaderMap, Method};

/// This many requests are kept, the latest ones.
const KEPT: usize = 16_384;

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
pub(crate) struct Record(Mutex<VecDeque<RecordedRequest>>);

impl Record {
    pub(crate) fn add(&self, request: RecordedRequest) {
        let mut requests = self.lock();
        if requests.len() == KEPT {
            requests.pop_front();
        }
        requests.push_back(request);
    }

    pub(crate) fn all(&self) -> Vec<RecordedRequest> {
        self.lock().iter().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<RecordedRequest>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
