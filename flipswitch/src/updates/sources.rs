//! Which streams to follow: the Flipswitch stream, or the streams that an OFREP service advertises.

use std::{mem::discriminant, time::Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::wire::{
    event_streams::{Advertised, StreamProblem},
    transport::StreamSource,
};

/// The streams to follow.
#[derive(Debug, Default)]
pub(super) struct Sources {
    followed: watch::Sender<Vec<StreamSource>>,
    newest: Mutex<Newest>,
}

/// The newest response that could advertise streams.
#[derive(Debug, Default)]
struct Newest {
    /// When it was requested.
    sent_at: Option<Instant>,
    /// The problems that have been logged, one of each kind.
    reported: Vec<StreamProblem>,
}

impl Sources {
    /// Follows these streams from now on.
    pub(super) fn follow(&self, sources: Vec<StreamSource>) {
        self.followed.send_if_modified(|known| {
            let is_new = *known != sources;
            *known = sources;
            is_new
        });
    }

    /// Returns a receiver of the streams to follow.
    pub(super) fn receiver(&self) -> watch::Receiver<Vec<StreamSource>> {
        self.followed.subscribe()
    }

    /// Follows no streams until the response to a request that is sent from now on advertises some.
    pub(super) fn reset(&self, now: Instant) {
        let mut newest = self.newest.lock();
        newest.sent_at = Some(now);
        self.follow(Vec::new());
    }

    /// Follows the streams that a response advertises, unless a later one has arrived. Logs each kind of problem once.
    pub(super) fn advertised(&self, Advertised { streams, problem }: Advertised, sent_at: Instant) {
        let (is_new_problem, has_none) = {
            let mut newest = self.newest.lock();
            if newest.sent_at.is_some_and(|newest| newest > sent_at) {
                return;
            }
            let is_first = newest.sent_at.replace(sent_at).is_none();
            let has_none = streams.is_empty() && is_first;
            self.follow(streams.into_iter().map(StreamSource::Advertised).collect());
            let is_known = |problem: &StreamProblem| {
                newest.reported.iter().any(|known| discriminant(known) == discriminant(problem))
            };
            let is_new = problem.as_ref().is_some_and(|problem| !is_known(problem));
            newest.reported.extend(problem.clone().filter(|_| is_new));
            (is_new, has_none)
        };
        // The lock is not held while logging, because the subscriber is code of the application.
        if has_none {
            tracing::info!(
                target: "flipswitch", "the flag service advertises no event streams; changes arrive by polling, if it is enabled"
            );
        }
        if let (Some(problem), true) = (problem, is_new_problem) {
            tracing::warn!(
                target: "flipswitch", %problem, "an event stream that the flag service advertises is not followed"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use reqwest::Url;

    use super::*;
    use crate::wire::event_streams::advertised;

    #[test]
    fn the_latest_response_decides() {
        let sources = Sources::default();
        let receiver = sources.receiver();
        let now = Instant::now();
        let body = br#"{"eventStreams": [{"type": "sse", "url": "http://a.example"}]}"#;
        let one = || advertised(body, &Url::parse("http://flags.example").unwrap());
        sources.advertised(one(), now);
        assert_eq!(receiver.borrow().len(), 1);
        sources.advertised(Advertised::default(), now - Duration::from_millis(1));
        assert_eq!(receiver.borrow().len(), 1, "a response to an earlier request");
        sources.advertised(Advertised::default(), now);
        assert!(receiver.borrow().is_empty());
    }
}
