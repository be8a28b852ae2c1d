//! The open connections to the stream: their stability, the time limit of a proxy, and the connection that replaces the current
//! one before the proxy cuts it. No I/O; instants are passed in.

use std::time::{Duration, Instant};

use super::event::Notification;

/// If the durations of two connections differ by no more than this fraction, a time limit probably ended both.
const SAME_DURATION: f64 = 0.1;

/// Fraction of the time limit after which the next connection is opened.
const NEXT_OPENS_AFTER: f64 = 0.8;

/// Maximum time for which the previous connection is still read, as a fraction of the time limit, so that it is dropped before it
/// is cut.
const MAX_READ_ON: f64 = 0.1;

/// Maximum number of notifications that are remembered, from the beginning of an overlap.
const MAX_NOTIFICATIONS: usize = 64;

/// Number of overlaps after which one connection is left open until it ends, which shows whether the time limit still exists.
const MAX_OVERLAPS: u32 = 50;

/// Number of a connection. Later connections have higher numbers.
pub(crate) type ConnectionNumber = u64;

/// Times that are derived from `stream_idle_timeout`. The documented times apply to a timeout of a minute or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    /// After this time, a connection that has received bytes is stable: 60 s. This resets the count of failures, and an orderly
    /// end of the connection is not a failure.
    pub(super) stable: Duration,
    /// After this time, a connection that has received an event or a heartbeat is stable: 10 s. Only the service itself sends
    /// these. Shorter than `stable`, because many proxies and load balancers end every connection after a fixed time, such as 30
    /// seconds.
    pub(super) stable_with_event: Duration,
    /// How long the previous connection is still read: 2 s. An event may still be on its way there.
    pub(super) read_on: Duration,
    /// A connection that ends earlier than this was not ended by the time limit of a proxy: 5 s.
    pub(super) shortest_limit: Duration,
}

impl Times {
    pub(super) fn new(stream_idle_timeout: Duration) -> Self {
        let unit = stream_idle_timeout.min(Duration::from_secs(60)) / 60;
        Self { stable: unit * 60, stable_with_event: unit * 10, read_on: unit * 2, shortest_limit: unit * 5 }
    }
}

/// A connection that is open.
#[derive(Debug)]
pub(super) struct OpenConnection {
    pub(super) number: ConnectionNumber,
    pub(super) since: Instant,
    pub(super) received_at: Instant,
    pub(super) has_received: bool,
    pub(super) has_event: bool,
    /// Whether the service is known to send changes on it. The service may begin to do so some time after the response head.
    pub(super) is_subscribed: bool,
}

impl OpenConnection {
    pub(super) fn new(number: ConnectionNumber, now: Instant) -> Self {
        Self { number, since: now, received_at: now, has_received: false, has_event: false, is_subscribed: false }
    }

    /// Returns the time at which the connection becomes stable, if it has received bytes.
    pub(super) fn stable_at(&self, times: &Times) -> Option<Instant> {
        let after = if self.has_event { times.stable_with_event } else { times.stable };
        self.has_received.then_some(self.since + after)
    }

    pub(super) fn is_stable(&self, times: &Times, now: Instant) -> bool {
        self.stable_at(times).is_some_and(|at| now >= at)
    }
}

/// The open connection, and possibly a second connection.
#[derive(Debug)]
pub(super) struct Open {
    /// The connection whose age and silence are checked.
    pub(super) current: OpenConnection,
    pub(super) beside: Beside,
}

/// The second connection.
#[derive(Debug)]
pub(super) enum Beside {
    /// No connection yet.
    None,
    /// The next connection is being opened.
    Connecting { number: ConnectionNumber, after_id: bool },
    /// The next connection is open, but nothing has arrived on it yet.
    Next(OpenConnection),
    /// The previous connection, which is read until this time.
    Previous { connection: OpenConnection, until: Instant },
    /// The next connection failed. There is one attempt for each connection.
    Failed,
}

impl Open {
    pub(super) fn new(current: OpenConnection) -> Self {
        Self { current, beside: Beside::None }
    }

    /// Returns the open connection with this number.
    pub(super) fn connection(&mut self, number: ConnectionNumber) -> Option<&mut OpenConnection> {
        let beside = match &mut self.beside {
            Beside::Next(connection) | Beside::Previous { connection, .. } => Some(connection),
            Beside::None | Beside::Connecting { .. } | Beside::Failed => None,
        };
        [Some(&mut self.current), beside].into_iter().flatten().find(|connection| connection.number == number)
    }

    /// If bytes arrived on the next connection, makes it the current connection and returns `true`. The previous connection is
    /// still read until the given time.
    pub(super) fn switch(&mut self, until: Instant) -> bool {
        match std::mem::replace(&mut self.beside, Beside::None) {
            Beside::Next(mut next) if next.has_received => {
                // The previous connection delivers changes until the service has subscribed this one.
                next.is_subscribed = true;
                let connection = std::mem::replace(&mut self.current, next);
                self.beside = Beside::Previous { connection, until };
                true
            }
            beside => {
                self.beside = beside;
                false
            }
        }
    }

    /// Returns the time at which to open the next connection, before the current one is cut.
    pub(super) fn next_at(&self, limit: &TimeLimit) -> Option<Instant> {
        let is_possible = matches!(self.beside, Beside::None) && limit.overlaps < MAX_OVERLAPS;
        let limit = limit.limit.filter(|_| is_possible)?;
        Some(self.current.since + limit.mul_f64(NEXT_OPENS_AFTER))
    }

    /// Returns the time until which the previous connection is read.
    pub(super) fn previous_until(&self) -> Option<Instant> {
        match self.beside {
            Beside::Previous { until, .. } => Some(until),
            _ => None,
        }
    }
}

/// The time limit of a proxy or a load balancer, derived from how long connections last.
#[derive(Debug, Default)]
pub(super) struct TimeLimit {
    /// How long the last connection lasted, and whether it was stable and received an event or a heartbeat.
    last: Option<(Duration, bool)>,
    limit: Option<Duration>,
    /// Overlaps since the other side last ended a connection.
    overlaps: u32,
}

impl TimeLimit {
    /// Records that the other side ended a connection. `counts` is true if it was stable and received an event or a heartbeat.
    /// Returns whether the previous connection lasted about as long.
    pub(super) fn ended(&mut self, open_for: Duration, counts: bool) -> bool {
        self.overlaps = 0;
        let last = self.last.replace((open_for, counts));
        let like = last.filter(|(last, _)| open_for.abs_diff(*last) <= last.mul_f64(SAME_DURATION));
        if let Some((last, true)) = like.filter(|_| counts) {
            self.limit = Some(open_for.min(last));
        } else if self.limit.is_some_and(|limit| open_for > limit.mul_f64(1.0 + SAME_DURATION)) {
            // It lasted longer than the limit would allow.
            self.limit = None;
        }
        like.is_some()
    }

    /// Records that a second connection is opened while the current one is in use.
    pub(super) fn overlaps(&mut self) {
        self.overlaps += 1;
    }

    /// Returns how long the previous connection is still read.
    pub(super) fn read_on(&self, times: &Times) -> Duration {
        self.limit.map_or(times.read_on, |limit| times.read_on.min(limit.mul_f64(MAX_READ_ON)))
    }
}

/// What the application has been notified of since the latest overlap began, so that an event that arrives on both connections
/// causes only one notification.
#[derive(Debug, Default)]
pub(super) struct Notified(Vec<(ConnectionNumber, Notification)>);

impl Notified {
    /// Discards everything, because a new overlap begins, or the stream was closed.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Remembers what arrived on a connection.
    pub(super) fn remember(&mut self, number: ConnectionNumber, notification: &Notification) {
        if self.0.len() < MAX_NOTIFICATIONS {
            self.0.push((number, notification.clone()));
        }
    }

    /// Returns whether the same notification arrived on the other connection. Each arrival is matched only once.
    pub(super) fn is_repeated(&mut self, number: ConnectionNumber, notification: &Notification) -> bool {
        // Without a timestamp, it may be a different change of the same flag.
        let is_distinct = !matches!(notification, Notification::Changed(change) if change.timestamp.is_none());
        let is_it = |(on, known): &(ConnectionNumber, Notification)| *on != number && known == notification;
        let known = self.0.iter().position(is_it).filter(|_| is_distinct);
        known.map(|known| self.0.swap_remove(known)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_shrink_only_with_a_short_idle_timeout() {
        let seconds = |idle: u64| {
            let Times { stable, stable_with_event, read_on, shortest_limit } = Times::new(Duration::from_secs(idle));
            [stable, stable_with_event, read_on, shortest_limit].map(|time| time.as_secs_f64())
        };
        for idle in [60, 61, 3_600] {
            assert_eq!(seconds(idle), [60.0, 10.0, 2.0, 5.0], "{idle}");
        }
        assert_eq!(seconds(6), [6.0, 1.0, 0.2, 0.5]);
    }

    #[test]
    fn after_many_overlaps_a_connection_is_left_open_until_it_ends() {
        let mut limit = TimeLimit::default();
        let ends = |limit: &mut TimeLimit, seconds| limit.ended(Duration::from_secs(seconds), true);
        ends(&mut limit, 30);
        ends(&mut limit, 30);
        let open = Open::new(OpenConnection::new(1, Instant::now()));
        for _ in 0..MAX_OVERLAPS {
            assert!(open.next_at(&limit).is_some());
            limit.overlaps();
        }
        assert!(open.next_at(&limit).is_none());
        ends(&mut limit, 30);
        assert!(open.next_at(&limit).is_some(), "the limit still exists");
        ends(&mut limit, 60);
        assert!(open.next_at(&limit).is_none(), "the limit no longer exists");
    }

    #[test]
    fn two_connections_of_similar_durations_show_a_limit_until_one_lasts_longer() {
        let mut limit = TimeLimit::default();
        let mut ends = |seconds: f64, counts, is_like, expected: Option<f64>| {
            assert_eq!(limit.ended(Duration::from_secs_f64(seconds), counts), is_like, "{seconds}");
            assert_eq!(limit.limit.map(|limit| limit.as_secs_f64()), expected, "{seconds}");
        };
        ends(30.0, true, false, None);
        // A connection of a different duration in between.
        ends(17.0, true, false, None);
        ends(30.0, true, false, None);
        // Does not count: not stable, or without an event.
        ends(30.0, false, true, None);
        ends(30.0, true, true, None);
        ends(31.0, true, true, Some(30.0));
        // A restart of the service says nothing about the limit.
        ends(12.0, true, false, Some(30.0));
        ends(33.0, true, false, Some(30.0));
        ends(20.0, true, false, Some(30.0));
        ends(20.0, true, true, Some(20.0));
        ends(30.0, true, false, None);
    }
}
