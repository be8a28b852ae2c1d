//! The combined state of several streams. No I/O; instants are passed in.

use std::time::{Duration, Instant};

use crate::events::events::ConnectionStatus;

/// Minimum time between two requests for the start-up context that are caused by changes to the streams.
const REFETCH_INTERVAL: Duration = Duration::from_secs(60);

/// Minimum time between two openings of streams that responses have added or moved.
const OPENING_INTERVAL: Duration = Duration::from_secs(2);

/// The state of one stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamState {
    pub(super) is_open: bool,
    /// The time until which an open stream counts as open if nothing more is received.
    pub(super) heard_until: Instant,
    pub(super) status: ConnectionStatus,
    pub(super) polls: bool,
}

/// Returns the time until which the streams count as open if nothing more is received. Returns `None` if one of them is closed,
/// or if there are none.
pub(super) fn open_until(streams: impl Iterator<Item = StreamState>) -> Option<Instant> {
    streams.map(|stream| stream.is_open.then_some(stream.heard_until)).min().flatten()
}

/// Returns the status of all streams, which is the worst status of any stream.
pub(super) fn status(streams: impl Iterator<Item = StreamState>) -> ConnectionStatus {
    let severity = |status: &ConnectionStatus| match status {
        ConnectionStatus::Error => 3,
        ConnectionStatus::Connecting => 2,
        ConnectionStatus::Disconnected => 1,
        ConnectionStatus::Connected => 0,
    };
    streams.map(|stream| stream.status).max_by_key(severity).unwrap_or(ConnectionStatus::Disconnected)
}

/// Returns whether to poll the service: if a stream requires it, or if there are no streams.
pub(super) fn polls(mut streams: impl Iterator<Item = StreamState>) -> bool {
    streams.next().is_none_or(|first| first.polls || streams.any(|stream| stream.polls))
}

/// Limits requests for the start-up context that a change to the streams causes, because the response may change the streams
/// again.
#[derive(Debug, Default)]
pub(super) struct Refetches {
    last: Option<Instant>,
    is_due: bool,
}

impl Refetches {
    /// Asks for a request. Returns whether to send it now. Otherwise, it is due at the [deadline](Self::deadline).
    pub(super) fn ask(&mut self, now: Instant) -> bool {
        self.is_due = true;
        self.take_due(now)
    }

    /// Returns whether a request is due.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        let is_now = self.is_due && self.last.is_none_or(|last| now >= last + REFETCH_INTERVAL);
        if is_now {
            (self.last, self.is_due) = (Some(now), false);
        }
        is_now
    }

    /// Returns the time at which the next request is due, if one is pending.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.last.filter(|_| self.is_due).map(|last| last + REFETCH_INTERVAL)
    }
}

/// Returns the time at which to open streams that a response has added or moved. `last` is when streams were last opened.
pub(super) fn opens_at(last: Option<Instant>, now: Instant) -> Instant {
    last.map_or(now, |last| now.max(last + OPENING_INTERVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn streams_are_open_only_together_and_have_the_worst_status() {
        use ConnectionStatus::{Connected, Connecting, Disconnected, Error};
        let now = Instant::now();
        let of = |status, seconds: u32, polls| StreamState {
            is_open: status == Connected,
            heard_until: now + SECOND * seconds,
            status,
            polls,
        };
        let cases: [(&[StreamState], Option<u32>, ConnectionStatus, bool); 6] = [
            (&[], None, Disconnected, true),
            (&[of(Connected, 1, false)], Some(1), Connected, false),
            (&[of(Connected, 2, false), of(Connected, 1, false)], Some(1), Connected, false),
            (&[of(Connected, 2, false), of(Disconnected, 9, true)], None, Disconnected, true),
            (&[of(Connecting, 2, false), of(Disconnected, 1, false)], None, Connecting, false),
            (&[of(Error, 2, true), of(Connecting, 1, false), of(Connected, 1, false)], None, Error, true),
        ];
        for (streams, until, expected, is_polled) in cases {
            let each = || streams.iter().copied();
            assert_eq!(open_until(each()), until.map(|seconds| now + SECOND * seconds), "{streams:?}");
            assert_eq!((status(each()), polls(each())), (expected, is_polled), "{streams:?}");
        }
    }

    #[test]
    fn a_change_of_streams_causes_one_request_a_minute() {
        let now = Instant::now();
        let mut refetches = Refetches::default();
        assert!(refetches.deadline().is_none() && refetches.ask(now));
        assert!(refetches.deadline().is_none() && !refetches.take_due(now + SECOND * 60));
        assert!(!refetches.ask(now + SECOND) && !refetches.ask(now + SECOND * 2));
        assert_eq!(refetches.deadline(), Some(now + SECOND * 60), "it is not lost");
        assert!(!refetches.take_due(now + SECOND * 59) && refetches.take_due(now + SECOND * 60));
        assert!(refetches.deadline().is_none() && refetches.ask(now + SECOND * 120));
    }

    #[test]
    fn streams_that_keep_changing_are_opened_every_two_seconds() {
        let now = Instant::now();
        assert_eq!(opens_at(None, now), now);
        assert_eq!(opens_at(Some(now), now + SECOND), now + SECOND * 2);
        assert_eq!(opens_at(Some(now), now + SECOND * 3), now + SECOND * 3);
    }
}
