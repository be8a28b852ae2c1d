//! The states of the stream of changes. No I/O: inputs, the time and random numbers are passed in, and actions come out.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use http::StatusCode;

use super::event::{Cause, Effect, Notification, StreamEvent};
use crate::{
    error::{Chain, Error, Failure},
    events::events::{ConnectionStatus, FlagChangeEvent},
    wire::backoff::{MAX_BACKOFF, backoff, retry_after_wait},
};

/// Wait after the first failure, unless the service names another one.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// A connection is stable once it has lasted this long and received bytes. Then the row of failures ends, and an orderly end
/// is not a failure.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// When a connection that received an event or a heartbeat is stable: only the service itself sends these. Many proxies and
/// load balancers end every connection after a fixed time, such as 30 seconds.
const STABLE_WITH_EVENT_AFTER: Duration = Duration::from_secs(10);

/// Two connections that lasted about equally long, to within this share, were probably ended by a time limit.
const SAME_DURATION: f64 = 0.1;

/// A connection that ends earlier is not ended by a time limit of a proxy.
const SHORTEST_LIMIT: Duration = Duration::from_secs(5);

/// About how long to wait after the service refused the API key, or if it has no stream.
const REFUSED_WAIT: Duration = Duration::from_secs(300);

/// Refusals of the API key in a row after which it counts as refused. A single one may be a mistake of a proxy.
const CONFIRMED_REFUSALS: u32 = 2;

/// The provider's options for the stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamOptions {
    /// Failures in a row before polling begins.
    pub(crate) max_retries: u32,
    /// Whether polling may begin at all.
    pub(crate) polling_fallback: bool,
    /// How long a connection may be silent before it counts as broken.
    pub(crate) stream_idle_timeout: Duration,
}

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// The provider starts.
    Start,
    /// The service responded with an event stream.
    Opened,
    /// Connecting failed, with this status if there was a response.
    Refused(Option<StatusCode>, Failure),
    /// Bytes arrived, whatever they are.
    Bytes,
    /// The service names how long to wait before reconnecting.
    Retry(Duration),
    /// The id to continue after has changed, or not.
    LastId(Option<Arc<str>>),
    /// An event arrived.
    Event(StreamEvent),
    /// The service ended the stream.
    Ended,
    /// The stream broke, or exceeded a limit.
    Broken(Error),
    /// The time of [`Supervisor::deadline`] has come.
    DeadlineReached,
    /// The application asks for a new connection.
    Reconnect,
    /// A request for the start-up context has succeeded since the stream opened.
    Refetched,
    /// A request for flags was refused because of the API key.
    Unauthorized,
}

/// Something to do. Actions must be carried out in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Drop the connection, and open another one after this id.
    Connect { last_id: Option<Arc<str>> },
    /// Drop the connection.
    Disconnect,
    /// Changes arrive from now on; anything may have changed before.
    StreamOpened,
    /// Changes do not arrive any more.
    StreamClosed,
    /// Anything may have changed.
    Invalidate(Cause),
    /// Notify the application.
    Notify(Notification),
    /// Publish the status of the connection.
    Status(ConnectionStatus),
    /// Request the flags of the start-up context.
    Refetch,
    /// Begin or end polling.
    Polling(bool),
    /// Publish that the service refuses the API key.
    Unauthorized,
}

/// Decides about the connection of one provider.
#[derive(Debug)]
pub(crate) struct Supervisor {
    options: StreamOptions,
    /// The URL of the stream, for logs.
    url: Arc<str>,
    state: State,
    /// Failures in a row.
    failures: u32,
    first_wait: Duration,
    last_id: Option<Arc<str>>,
    is_polling: bool,
    status: ConnectionStatus,
    /// Whether changes may have been missed: the stream was closed for longer than between two connections.
    missed_changes: bool,
    /// Refusals of the API key in a row.
    key_refusals: u32,
    /// Responses in a row that say that there is no stream. A service whose stream was open before has one: its proxies
    /// respond so while it is deployed.
    absences: u32,
    was_open: bool,
    reported_unauthorized: bool,
    reported_no_stream: bool,
    /// How long the last connection was open.
    last_duration: Option<Duration>,
    reported_limit: bool,
}

#[derive(Debug)]
enum State {
    Idle,
    Connecting {
        after_id: bool,
    },
    Open(Open),
    /// Waits for the next attempt.
    Waiting {
        until: Instant,
    },
    /// Waits for the next attempt after the API key was refused.
    Unauthorized {
        until: Instant,
    },
    /// The service declines connections.
    Declined,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    received_at: Instant,
    has_received: bool,
    has_event: bool,
    has_heartbeat: bool,
}

impl Open {
    /// Returns from when on the connection is stable.
    fn stable_at(&self) -> Option<Instant> {
        let after = if self.has_event { STABLE_WITH_EVENT_AFTER } else { STABLE_AFTER };
        self.has_received.then_some(self.since + after)
    }

    fn is_stable(&self, now: Instant) -> bool {
        self.stable_at().is_some_and(|at| now >= at)
    }
}

impl Supervisor {
    pub(crate) fn new(options: StreamOptions, url: Arc<str>, was_open: bool) -> Self {
        Self {
            options,
            url,
            state: State::Idle,
            failures: 0,
            first_wait: FIRST_WAIT,
            last_id: None,
            is_polling: false,
            status: ConnectionStatus::Disconnected,
            missed_changes: false,
            key_refusals: 0,
            absences: 0,
            was_open,
            reported_unauthorized: false,
            reported_no_stream: false,
            last_duration: None,
            reported_limit: false,
        }
    }

    /// Returns when [`Input::DeadlineReached`] is due, unless another input comes first.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Waiting { until } | State::Unauthorized { until } => Some(*until),
            State::Open(open) => {
                let stable_at = open.stable_at().filter(|_| self.failures > 0);
                let idle_at = open.received_at + self.options.stream_idle_timeout;
                [Some(idle_at), stable_at].into_iter().flatten().min()
            }
            State::Idle | State::Connecting { .. } | State::Declined => None,
        }
    }

    /// Takes an input, and returns what to do. `random` is from [0, 1).
    pub(crate) fn input(&mut self, input: Input, now: Instant, random: f64) -> Vec<Action> {
        let mut actions = Vec::new();
        let todo = &mut actions;
        match (&mut self.state, input) {
            (State::Idle, Input::Start) => self.connect(todo),
            (State::Idle, _) => {}
            (State::Connecting { .. }, Input::Opened) => self.opened(now, todo),
            (State::Connecting { after_id }, Input::Refused(status, failure)) => {
                let after_id = *after_id;
                self.refused(status, after_id, failure, now, random, todo);
            }
            (State::Open(open), Input::Bytes) => {
                (open.received_at, open.has_received) = (now, true);
                if open.is_stable(now) {
                    self.failures = 0;
                }
            }
            (State::Open(_), Input::Retry(wait)) => self.first_wait = wait.clamp(FIRST_WAIT, MAX_BACKOFF),
            (State::Open(_), Input::LastId(id)) => self.last_id = id,
            (State::Open(open), Input::Event(event)) => open.event(event, todo),
            (State::Open(open), Input::Ended) => {
                let open_for = now - open.since;
                if open.is_stable(now) {
                    let wait = FIRST_WAIT.mul_f64(0.5 + random / 2.0);
                    tracing::debug!(
                        target: "flipswitch", ?open_for, ?wait, "the service ended the stream of changes; reconnecting"
                    );
                    self.failures = 0;
                    self.last_duration = Some(open_for);
                    self.wait(wait, now, todo);
                } else {
                    self.ended_early(&"the service ended the stream", open_for);
                    self.failed(None, now, random, todo);
                }
            }
            (State::Open(open), Input::Broken(error)) => {
                let open_for = now - open.since;
                self.ended_early(&root_cause(&error), open_for);
                self.failed(None, now, random, todo);
            }
            (State::Open(_), Input::DeadlineReached) => self.deadline_while_open(now, random, todo),
            (State::Open(_), Input::Refetched) => self.poll(false, todo),
            (State::Waiting { until } | State::Unauthorized { until }, Input::DeadlineReached) if now >= *until => {
                self.connect(todo);
            }
            // Polling with the same key would fail as well.
            (State::Unauthorized { .. }, Input::Unauthorized) => self.poll(false, todo),
            (State::Connecting { .. } | State::Waiting { .. }, Input::Unauthorized) => {
                self.key_refusals = self.key_refusals.max(1);
            }
            (State::Open(_), Input::Reconnect) => {
                self.failures = 0;
                todo.extend([Action::Disconnect, Action::StreamClosed]);
                self.connect(todo);
            }
            // Replaces an attempt in flight as well, which may have been sent with another API key.
            (_, Input::Reconnect) => {
                (self.failures, self.key_refusals, self.absences) = (0, 0, 0);
                (self.reported_unauthorized, self.reported_no_stream) = (false, false);
                self.connect(todo);
            }
            // From a connection that has been dropped.
            _ => {}
        }
        actions
    }

    fn connect(&mut self, todo: &mut Vec<Action>) {
        self.state = State::Connecting { after_id: self.last_id.is_some() };
        self.set_status(ConnectionStatus::Connecting, todo);
        todo.push(Action::Connect { last_id: self.last_id.clone() });
    }

    fn opened(&mut self, now: Instant, todo: &mut Vec<Action>) {
        self.state = State::Open(Open {
            since: now,
            received_at: now,
            has_received: false,
            has_event: false,
            has_heartbeat: false,
        });
        (self.key_refusals, self.absences, self.was_open) = (0, 0, true);
        (self.reported_unauthorized, self.reported_no_stream) = (false, false);
        tracing::info!(target: "flipswitch", "the stream of changes is open");
        todo.push(Action::StreamOpened);
        self.set_status(ConnectionStatus::Connected, todo);
        if std::mem::take(&mut self.missed_changes) {
            // A change that was missed may concern other contexts than the start-up context.
            todo.push(Action::Notify(Notification::Changed(FlagChangeEvent::all())));
        }
        todo.push(Action::Refetch);
    }

    fn refused(
        &mut self,
        status: Option<StatusCode>,
        after_id: bool,
        Failure { error, retry_after, .. }: Failure,
        now: Instant,
        random: f64,
        todo: &mut Vec<Action>,
    ) {
        let wait = REFUSED_WAIT.mul_f64(0.8 + 0.4 * random);
        self.missed_changes = true;
        let status = status.map(|status| status.as_u16());
        let is_key_refused = matches!(error, Error::Unauthorized);
        // Not a page of a proxy, which is unreadable.
        let is_own = matches!(error, Error::Status(_));
        let is_absent = is_own && matches!(status, Some(404 | 405 | 406 | 410 | 501)) && !self.was_open;
        self.key_refusals = if is_key_refused { self.key_refusals.saturating_add(1) } else { 0 };
        self.absences = if is_absent { self.absences.saturating_add(1) } else { 0 };
        match status {
            Some(204) => {
                tracing::warn!(target: "flipswitch", "the service declines the stream of changes (204); polling");
                self.state = State::Declined;
                self.poll(true, todo);
                self.set_status(ConnectionStatus::Disconnected, todo);
            }
            _ if self.key_refusals >= CONFIRMED_REFUSALS => {
                self.state = State::Unauthorized { until: now + wait };
                if !std::mem::replace(&mut self.reported_unauthorized, true) {
                    tracing::error!(target: "flipswitch", ?wait, "the service refuses the API key for the stream of changes");
                    todo.push(Action::Unauthorized);
                }
                self.poll(true, todo);
                self.set_status(ConnectionStatus::Error, todo);
            }
            Some(code) if is_absent && self.absences >= self.options.max_retries => {
                if !std::mem::replace(&mut self.reported_no_stream, true) {
                    let url = &*self.url;
                    tracing::warn!(target: "flipswitch", code, url, ?wait, "the service has no stream of changes");
                }
                self.failures = 0;
                self.poll(true, todo);
                self.wait(wait, now, todo);
            }
            code => {
                if after_id && matches!(code, Some(400 | 431)) {
                    self.last_id = None;
                }
                self.log(Chain(&error));
                self.failed(retry_after, now, random, todo);
            }
        }
    }

    fn deadline_while_open(&mut self, now: Instant, random: f64, todo: &mut Vec<Action>) {
        let State::Open(open) = &mut self.state else { return };
        if open.is_stable(now) {
            self.failures = 0;
        }
        let idle = self.options.stream_idle_timeout;
        if now >= open.received_at + idle {
            self.log(format_args!(
                "nothing received for {idle:?}: a half-open connection, or a proxy that buffers (see X-Accel-Buffering)"
            ));
            self.failed(None, now, random, todo);
        }
    }

    fn failed(&mut self, retry_after: Option<Duration>, now: Instant, random: f64, todo: &mut Vec<Action>) {
        self.failures = self.failures.saturating_add(1);
        self.missed_changes = true;
        let wait = backoff(self.first_wait, self.failures, random);
        let wait = retry_after.map_or(wait, |retry_after| wait.max(retry_after_wait(retry_after, random)));
        // Before the status: a listener may ask whether the provider polls.
        if self.failures >= self.options.max_retries {
            self.poll(true, todo);
        }
        self.wait(wait, now, todo);
    }

    /// Drops the connection, if there is one, and waits for the next attempt.
    fn wait(&mut self, wait: Duration, now: Instant, todo: &mut Vec<Action>) {
        todo.push(Action::Disconnect);
        if matches!(self.state, State::Open(_)) {
            todo.push(Action::StreamClosed);
        }
        self.state = State::Waiting { until: now + wait };
        let status = if self.failures > 0 { ConnectionStatus::Error } else { ConnectionStatus::Disconnected };
        self.set_status(status, todo);
    }

    fn poll(&mut self, poll: bool, todo: &mut Vec<Action>) {
        let poll = poll && self.options.polling_fallback;
        if std::mem::replace(&mut self.is_polling, poll) != poll {
            todo.push(Action::Polling(poll));
        }
    }

    fn set_status(&mut self, status: ConnectionStatus, todo: &mut Vec<Action>) {
        if std::mem::replace(&mut self.status, status) != status {
            todo.push(Action::Status(status));
        }
    }

    /// Logs that a connection ended early. If connections end early after the same time again and again, that is a warning
    /// once.
    fn ended_early(&mut self, cause: &dyn fmt::Display, open_for: Duration) {
        let is_same = |last: Duration| open_for.abs_diff(last) <= last.mul_f64(SAME_DURATION);
        let is_limited = open_for >= SHORTEST_LIMIT && self.last_duration.is_some_and(is_same);
        self.last_duration = Some(open_for);
        let seconds = open_for.as_secs_f64();
        match (is_limited, std::mem::replace(&mut self.reported_limit, is_limited)) {
            (false, _) => self.log(format_args!("closed after {seconds:.1} s: {cause}")),
            (true, false) => tracing::warn!(
                target: "flipswitch", %cause,
                "the stream of changes was closed after {seconds:.1} s, like the one before; does a proxy limit it?"
            ),
            (true, true) => tracing::debug!(
                target: "flipswitch", %cause, "the stream of changes was closed after {seconds:.1} s again"
            ),
        }
    }

    /// Logs a failure: as a warning the first one of a row, and the one after which polling begins.
    fn log(&self, error: impl fmt::Display) {
        let failures = self.failures.saturating_add(1);
        if failures == 1 || failures == self.options.max_retries {
            tracing::warn!(target: "flipswitch", %error, failures, "stream of changes failed; retrying");
        } else {
            tracing::debug!(target: "flipswitch", %error, failures, "stream of changes failed; retrying");
        }
    }
}

impl Open {
    fn event(&mut self, event: StreamEvent, todo: &mut Vec<Action>) {
        let is_heartbeat = event == StreamEvent::Heartbeat;
        let Effect { invalidate, notify } = event.effect(!self.has_heartbeat);
        self.has_event = true;
        self.has_heartbeat |= is_heartbeat;
        todo.extend(invalidate.map(Action::Invalidate));
        if let Some(Notification::Changed(FlagChangeEvent { flag_key: None, .. })) = notify {
            // Finds out which flags changed.
            todo.push(Action::Refetch);
        }
        todo.extend(notify.map(Action::Notify));
    }
}

/// Returns the last source of an error, without those in between, which say the same in other words.
fn root_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const URL: &str = "http://flags.example/api/v1/flags/events";
    const MILLISECOND: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);
    const OPTIONS: StreamOptions =
        StreamOptions { max_retries: 5, polling_fallback: true, stream_idle_timeout: MINUTE };

    /// A supervisor with a clock that the test advances, and a fixed random number.
    struct Stream {
        supervisor: Supervisor,
        now: Instant,
        random: f64,
    }

    impl Stream {
        fn new(options: StreamOptions) -> Self {
            Self { supervisor: Supervisor::new(options, URL.into(), false), now: Instant::now(), random: 1.0 }
        }

        /// One that connects.
        fn connecting() -> Self {
            let mut stream = Self::new(OPTIONS);
            stream.does(Input::Start, [status(ConnectionStatus::Connecting), connect(None)]);
            stream
        }

        /// One that is open, and has no failure behind it.
        fn open() -> Self {
            let mut stream = Self::connecting();
            stream.does(Input::Opened, [Action::StreamOpened, status(ConnectionStatus::Connected), Action::Refetch]);
            stream
        }

        fn does(&mut self, input: Input, expected: impl IntoIterator<Item = Action>) {
            let case = format!("{input:?} in {:?}", self.supervisor.state);
            let actions = self.supervisor.input(input, self.now, self.random);
            assert_eq!(actions, expected.into_iter().collect::<Vec<_>>(), "{case}");
        }

        /// Advances the time to the deadline, which must be `wait` from now, and expects it to connect.
        fn connects_after(&mut self, wait: Duration) {
            self.waits(wait);
            let last_id = self.supervisor.last_id.clone();
            self.does(Input::DeadlineReached, [status(ConnectionStatus::Connecting), connect(last_id.as_deref())]);
        }

        fn waits(&mut self, wait: Duration) {
            assert_eq!(self.supervisor.deadline(), Some(self.now + wait), "{:?}", self.supervisor.state);
            self.now += wait.saturating_sub(MILLISECOND);
            self.does(Input::DeadlineReached, []);
            self.now += MILLISECOND;
        }

        fn refuse(&mut self, code: u16, expected: impl IntoIterator<Item = Action>) {
            self.does(refused(code), expected);
        }
    }

    fn status(status: ConnectionStatus) -> Action {
        Action::Status(status)
    }

    fn connect(last_id: Option<&str>) -> Action {
        Action::Connect { last_id: last_id.map(Arc::from) }
    }

    fn failure(retry_after: Option<Duration>) -> Failure {
        Failure { retry_after, ..Error::Timeout.into() }
    }

    fn refused(code: u16) -> Input {
        let status = StatusCode::from_u16(code).unwrap();
        let error = if matches!(code, 401 | 403) { Error::Unauthorized } else { Error::Status(status) };
        Input::Refused(Some(status), error.into())
    }

    /// Name resolution, connection, TLS, the deadline, a refused redirect: there is no status.
    fn unreachable() -> Input {
        Input::Refused(None, failure(None))
    }

    fn changed(key: Option<&str>) -> FlagChangeEvent {
        FlagChangeEvent { flag_key: key.map(str::to_owned), timestamp: None }
    }

    fn notify(key: Option<&str>) -> Action {
        Action::Notify(Notification::Changed(changed(key)))
    }

    fn event(event: StreamEvent) -> Input {
        Input::Event(event)
    }

    const FAILED: [Action; 2] = [Action::Disconnect, Action::Status(ConnectionStatus::Error)];
    const BROKE: [Action; 3] = [Action::Disconnect, Action::StreamClosed, Action::Status(ConnectionStatus::Error)];

    #[test]
    fn before_the_start_nothing_happens() {
        let mut stream = Stream::new(OPTIONS);
        assert_eq!(stream.supervisor.deadline(), None);
        for input in [Input::Opened, Input::DeadlineReached, Input::Reconnect, Input::Refetched] {
            stream.does(input, []);
        }
    }

    #[test]
    fn waits_double_are_spread_and_lead_to_polling() {
        let mut stream = Stream::connecting();
        for seconds in [1, 2, 4, 8] {
            stream.does(unreachable(), FAILED);
            stream.connects_after(SECOND * seconds);
        }
        stream.does(unreachable(), [&[Action::Polling(true)], FAILED.as_slice()].concat());
        stream.connects_after(SECOND * 16);
        for _ in 0..3 {
            stream.does(unreachable(), FAILED);
            stream.connects_after(SECOND * 30);
        }
        stream.random = 0.0;
        stream.does(unreachable(), FAILED);
        stream.connects_after(SECOND * 15);
    }

    #[test]
    fn without_the_fallback_nothing_is_polled() {
        let mut stream = Stream::new(StreamOptions { polling_fallback: false, max_retries: 1, ..OPTIONS });
        stream.does(Input::Start, [status(ConnectionStatus::Connecting), connect(None)]);
        stream.does(unreachable(), FAILED);
        stream.connects_after(SECOND);
        stream.refuse(204, [status(ConnectionStatus::Disconnected)]);
    }

    #[test]
    fn every_other_status_is_a_failure() {
        // A response with 200 has another media type here: a page of a proxy.
        for code in [200, 202, 302, 307, 402, 408, 418, 425, 429, 500, 502, 503, 504] {
            let mut stream = Stream::connecting();
            stream.refuse(code, FAILED);
            stream.connects_after(SECOND);
        }
    }

    #[test]
    fn retry_after_is_respected() {
        for (asked, random, wait) in [
            (SECOND * 10, 0.0, SECOND * 10),
            (SECOND * 10, 1.0, SECOND * 11),
            // Shorter than the ordinary wait.
            (MILLISECOND, 1.0, SECOND),
            // Bounded.
            (Duration::MAX, 0.0, SECOND * 300),
        ] {
            let mut stream = Stream::connecting();
            stream.random = random;
            let status = StatusCode::SERVICE_UNAVAILABLE;
            stream.does(Input::Refused(Some(status), failure(Some(asked))), FAILED);
            stream.connects_after(wait);
        }
    }

    #[test]
    fn a_service_that_declines_connections_is_polled() {
        let mut stream = Stream::connecting();
        stream.refuse(204, [Action::Polling(true), status(ConnectionStatus::Disconnected)]);
        assert_eq!(stream.supervisor.deadline(), None);
        stream.does(Input::DeadlineReached, []);
        stream.does(Input::Reconnect, [status(ConnectionStatus::Connecting), connect(None)]);
    }

    #[test]
    fn a_refused_key_is_reported_once_and_retried_rarely() {
        for code in [401, 403] {
            let mut stream = Stream::connecting();
            stream.refuse(code, FAILED);
            stream.connects_after(SECOND);
            let entry = [Action::Unauthorized, Action::Polling(true), status(ConnectionStatus::Error)];
            stream.refuse(code, entry);
            // The key is refused for flags as well, so polling ends.
            stream.does(Input::Unauthorized, [Action::Polling(false)]);
            stream.does(Input::Unauthorized, []);
            for (random, seconds) in [(0.0, 240), (0.5, 300), (1.0, 360)] {
                stream.connects_after(SECOND * seconds_before(&stream));
                stream.random = random;
                stream.refuse(code, [Action::Polling(true), status(ConnectionStatus::Error)]);
                assert_eq!(seconds_before(&stream), seconds);
                stream.does(Input::Unauthorized, [Action::Polling(false)]);
            }
            stream.does(Input::Reconnect, [status(ConnectionStatus::Connecting), connect(None)]);
            let all = notify(None);
            stream
                .does(Input::Opened, [Action::StreamOpened, status(ConnectionStatus::Connected), all, Action::Refetch]);
            // Once it was accepted, a refusal is reported again.
            stream.does(Input::Ended, BROKE);
            stream.connects_after(SECOND);
            // A request that was refused confirms it.
            stream.does(Input::Unauthorized, []);
            stream.refuse(code, [Action::Unauthorized, Action::Polling(true), status(ConnectionStatus::Error)]);
        }
    }

    #[test]
    fn a_key_that_is_refused_once_is_retried_soon() {
        let mut stream = Stream::connecting();
        for seconds in [1, 4] {
            stream.refuse(403, FAILED);
            stream.connects_after(SECOND * seconds);
            // Another failure in between.
            stream.does(unreachable(), FAILED);
            stream.connects_after(SECOND * seconds * 2);
        }
        // A page of a firewall is no refusal of the key, and does not say that there is no stream.
        for code in [401, 403, 404] {
            let mut stream = Stream::connecting();
            for seconds in [1, 2, 4] {
                stream.does(Input::Refused(Some(StatusCode::from_u16(code).unwrap()), failure(None)), FAILED);
                stream.connects_after(SECOND * seconds);
            }
        }
    }

    fn seconds_before(stream: &Stream) -> u32 {
        let wait = stream.supervisor.deadline().unwrap() - stream.now;
        u32::try_from(wait.as_millis() / 1_000).unwrap()
    }

    #[test]
    fn a_service_without_a_stream_is_polled_and_retried_rarely() {
        for code in [404, 405, 406, 410, 501] {
            let mut stream = Stream::connecting();
            for seconds in [1, 2, 4, 8] {
                stream.refuse(code, FAILED);
                stream.connects_after(SECOND * seconds);
            }
            stream.random = 0.5;
            let polls = [Action::Polling(true), Action::Disconnect, status(ConnectionStatus::Disconnected)];
            stream.refuse(code, polls);
            stream.connects_after(SECOND * 300);
            stream.refuse(code, [Action::Disconnect, status(ConnectionStatus::Disconnected)]);
            assert_eq!(stream.supervisor.failures, 0);
            stream.does(Input::Reconnect, [status(ConnectionStatus::Connecting), connect(None)]);
        }
    }

    #[test]
    fn a_stream_that_was_open_is_retried_with_the_ordinary_backoff() {
        let mut stream = Stream::open();
        stream.does(Input::Ended, BROKE);
        stream.connects_after(SECOND);
        for seconds in [2, 4, 8] {
            stream.refuse(404, FAILED);
            stream.connects_after(SECOND * seconds);
        }
        stream.refuse(404, [&[Action::Polling(true)], FAILED.as_slice()].concat());
        stream.connects_after(SECOND * 16);
        for _ in 0..3 {
            stream.refuse(404, FAILED);
            stream.connects_after(SECOND * 30);
        }
    }

    #[test]
    fn an_id_that_may_have_been_rejected_is_dropped() {
        for code in [400, 431] {
            let mut stream = Stream::open();
            stream.does(Input::LastId(Some("7".into())), []);
            stream.does(Input::Ended, BROKE);
            stream.connects_after(SECOND);
            // Another failure keeps it.
            stream.refuse(500, FAILED);
            stream.connects_after(SECOND * 2);
            stream.refuse(code, FAILED);
            assert_eq!(stream.supervisor.last_id, None);
            stream.connects_after(SECOND * 4);
            stream.refuse(code, FAILED);
            assert_eq!(stream.supervisor.failures, 4);
        }
    }

    #[test]
    fn an_id_is_kept_across_connections() {
        let mut stream = Stream::open();
        stream.does(Input::LastId(Some("7".into())), []);
        stream.does(Input::Broken(Error::Timeout), BROKE);
        stream.waits(SECOND);
        stream.does(Input::DeadlineReached, [status(ConnectionStatus::Connecting), connect(Some("7"))]);
        stream.supervisor.input(Input::Opened, stream.now, 0.0);
        stream.does(Input::LastId(None), []);
        stream.does(
            Input::Reconnect,
            [Action::Disconnect, Action::StreamClosed, status(ConnectionStatus::Connecting), connect(None)],
        );
    }

    #[test]
    fn an_opened_stream_invalidates_everything_and_polling_ends_after_a_refetch() {
        let mut stream = Stream::connecting();
        for _ in 0..5 {
            stream.supervisor.input(unreachable(), stream.now, 1.0);
            stream.now = stream.supervisor.deadline().unwrap();
            stream.supervisor.input(Input::DeadlineReached, stream.now, 1.0);
        }
        // Responses to earlier polls do not count.
        stream.does(Input::Refetched, []);
        let all = notify(None);
        stream.does(Input::Opened, [Action::StreamOpened, status(ConnectionStatus::Connected), all, Action::Refetch]);
        assert_eq!(stream.supervisor.failures, 5, "headers alone prove nothing");
        stream.does(Input::Refetched, [Action::Polling(false)]);
        stream.does(Input::Refetched, []);
        // The row of failures goes on: a service that accepts and closes is polled in the end.
        stream.does(Input::Ended, [&[Action::Polling(true)], BROKE.as_slice()].concat());
        stream.connects_after(SECOND * 30);
    }

    #[test]
    fn events_invalidate_before_anything_else() {
        let mut stream = Stream::open();
        let flag = || StreamEvent::Changed(changed(Some("f")));
        stream.does(event(flag()), [Action::Invalidate(Cause::Announced), notify(Some("f"))]);
        let all = || StreamEvent::Changed(changed(None));
        stream.does(event(all()), [Action::Invalidate(Cause::Announced), Action::Refetch, notify(None)]);
        let valid_until = Some(datetime!(2025-06-01 0:00 UTC));
        stream.does(
            event(StreamEvent::KeyRotated { valid_until }),
            [Action::Notify(Notification::KeyRotated { valid_until })],
        );
        stream.does(event(StreamEvent::Unknown), []);
        // The first heartbeat: the service may have subscribed the connection after it sent the head.
        stream.does(event(StreamEvent::Heartbeat), [Action::Invalidate(Cause::Missed)]);
        stream.does(event(StreamEvent::Heartbeat), []);
    }

    #[test]
    fn silence_is_a_failure_and_any_byte_ends_it() {
        let mut stream = Stream::open();
        for _ in 0..3 {
            stream.now += MINUTE - MILLISECOND;
            stream.does(Input::DeadlineReached, []);
            stream.does(Input::Bytes, []);
        }
        stream.waits(MINUTE);
        stream.does(Input::DeadlineReached, BROKE);
        stream.connects_after(SECOND);
        // Counted from the opening, if nothing arrived at all.
        let mut stream = Stream::open();
        stream.waits(MINUTE);
        stream.does(Input::DeadlineReached, BROKE);
    }

    #[test]
    fn a_stable_connection_ends_the_row_of_failures() {
        let mut stream = Stream::connecting();
        stream.supervisor.failures = 3;
        stream.supervisor.input(Input::Opened, stream.now, 0.0);
        stream.now += SECOND;
        stream.does(Input::Bytes, []);
        stream.waits(MINUTE - SECOND);
        stream.does(Input::DeadlineReached, []);
        assert_eq!(stream.supervisor.failures, 0);
        // An end is then a rotation, and no failure.
        stream.does(Input::Ended, [Action::Disconnect, Action::StreamClosed, status(ConnectionStatus::Disconnected)]);
        stream.connects_after(SECOND);
        stream.does(Input::Opened, [Action::StreamOpened, status(ConnectionStatus::Connected), Action::Refetch]);
    }

    #[test]
    fn a_connection_with_an_event_is_stable_after_ten_seconds() {
        for first in [StreamEvent::Heartbeat, StreamEvent::Unknown, StreamEvent::Changed(changed(Some("f")))] {
            let mut stream = Stream::open();
            stream.supervisor.failures = 3;
            stream.does(Input::Bytes, []);
            stream.supervisor.input(event(first), stream.now, 0.0);
            stream.now += SECOND * 10;
            stream.supervisor.input(Input::DeadlineReached, stream.now, 0.0);
            assert_eq!(stream.supervisor.failures, 0);
            let rotation = [Action::Disconnect, Action::StreamClosed, status(ConnectionStatus::Disconnected)];
            stream.does(Input::Ended, rotation);
            stream.connects_after(SECOND);
            // Nothing was missed for long, so the application is told of no change.
            stream.does(Input::Opened, [Action::StreamOpened, status(ConnectionStatus::Connected), Action::Refetch]);
        }
        // Earlier, or without an event, an end is a failure.
        for (seconds, has_event) in [(9, true), (10, false)] {
            let mut stream = Stream::open();
            stream.does(Input::Bytes, []);
            if has_event {
                stream.does(event(StreamEvent::Unknown), []);
            }
            stream.now += SECOND * seconds;
            stream.does(Input::Ended, BROKE);
        }
    }

    #[test]
    fn a_time_limit_of_a_proxy_is_recognized() {
        let mut stream = Stream::open();
        let mut ends_after = |seconds, limited| {
            stream.supervisor.ended_early(&"", Duration::from_secs_f64(seconds));
            assert_eq!(stream.supervisor.reported_limit, limited, "after {seconds} s");
        };
        for (seconds, limited) in [(60.0, false), (61.0, true), (59.0, true), (30.0, false), (0.1, false), (0.1, false)]
        {
            ends_after(seconds, limited);
        }
    }

    #[test]
    fn a_connection_that_received_nothing_is_not_stable() {
        let mut stream = Stream::new(StreamOptions { stream_idle_timeout: MINUTE * 3, ..OPTIONS });
        stream.supervisor.input(Input::Start, stream.now, 0.0);
        stream.supervisor.failures = 3;
        stream.supervisor.input(Input::Opened, stream.now, 0.0);
        stream.now += MINUTE * 2;
        stream.does(Input::DeadlineReached, []);
        assert_eq!(stream.supervisor.failures, 3);
        stream.does(Input::Bytes, []);
        assert_eq!(stream.supervisor.failures, 0);
    }

    #[test]
    fn an_early_end_a_broken_body_and_too_large_an_event_are_failures() {
        for input in [Input::Ended, Input::Broken(Error::TooLarge), Input::Broken(Error::Timeout)] {
            let mut stream = Stream::open();
            stream.does(Input::Bytes, []);
            stream.now += MINUTE - MILLISECOND;
            stream.does(input, BROKE);
            stream.connects_after(SECOND);
        }
        // Also of a stable connection: only its end is no failure.
        let mut stream = Stream::open();
        stream.does(Input::Bytes, []);
        stream.now += MINUTE;
        stream.does(Input::Bytes, []);
        stream.does(Input::Broken(Error::Timeout), BROKE);
    }

    #[test]
    fn the_service_sets_the_first_wait_within_limits() {
        for (named, wait) in
            [(Duration::ZERO, SECOND), (SECOND * 5, SECOND * 5), (Duration::from_millis(u64::MAX), SECOND * 30)]
        {
            let mut stream = Stream::open();
            stream.does(Input::Retry(named), []);
            stream.does(Input::Ended, BROKE);
            stream.connects_after(wait);
        }
    }

    #[test]
    fn a_reconnect_is_possible_in_every_state() {
        let mut waiting = Stream::connecting();
        for _ in 0..2 {
            waiting.supervisor.input(unreachable(), waiting.now, 1.0);
            waiting.does(Input::Reconnect, [status(ConnectionStatus::Connecting), connect(None)]);
            assert_eq!(waiting.supervisor.failures, 0);
        }
        waiting.supervisor.failures = 3;
        waiting.does(Input::Reconnect, [connect(None)]);
        assert_eq!(waiting.supervisor.failures, 0);
        let mut open = Stream::open();
        open.does(
            Input::Reconnect,
            [Action::Disconnect, Action::StreamClosed, status(ConnectionStatus::Connecting), connect(None)],
        );
    }

    #[test]
    fn inputs_of_a_dropped_connection_are_ignored() {
        let of_a_connection = || {
            let change = event(StreamEvent::Changed(changed(None)));
            [Input::Opened, Input::Bytes, change, Input::Ended, Input::Broken(Error::Timeout), Input::Refetched]
        };
        let mut waiting = Stream::connecting();
        waiting.supervisor.input(unreachable(), waiting.now, 1.0);
        let mut unauthorized = Stream::connecting();
        for input in [refused(401), Input::Reconnect, Input::Unauthorized, refused(401)] {
            unauthorized.supervisor.input(input, unauthorized.now, 1.0);
        }
        assert!(matches!(unauthorized.supervisor.state, State::Unauthorized { .. }));
        let mut parked = Stream::connecting();
        parked.supervisor.input(refused(204), parked.now, 1.0);
        for mut stream in [waiting, unauthorized, parked] {
            for input in of_a_connection() {
                stream.does(input, []);
            }
        }
        let mut open = Stream::open();
        open.does(unreachable(), []);
        open.does(Input::Opened, []);
    }
}
