//! The stream of changes, state by state. No I/O: inputs, the time and chance are passed in, and what is to be done comes
//! out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::StatusCode;

use super::event::Event;
use crate::{
    Error,
    error::Chain,
    events::events::{ConnectionStatus, FlagChangeEvent},
    wire::backoff::{LONGEST, asked, backoff},
    wire::transport::Failure,
};

/// The wait after the first failure, unless the service names another.
const BASE: Duration = Duration::from_secs(1);

/// A connection is sound when it has lasted this long and said something: then the waits begin anew, and its end is no
/// failure.
const STABLE: Duration = Duration::from_secs(60);

/// A refused key, or a service without a stream, is tried again after about this time.
const PROBE: Duration = Duration::from_secs(300);

/// The service may evaluate a moment behind its own event: this long after the last one, everything counts as changed
/// once more.
const ECHO: Duration = Duration::from_secs(2);

/// What of the provider's options concerns the stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Failures in a row before polling begins.
    pub(crate) max_retries: u32,
    /// Whether polling may begin at all.
    pub(crate) polling_fallback: bool,
    /// Without a byte for this long a connection counts as broken.
    pub(crate) idle_timeout: Duration,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// The provider starts.
    Start,
    /// The service answered with an event stream.
    Opened,
    /// Connecting came to something else, with this status if there was one.
    Refused(Option<StatusCode>, Failure),
    /// Bytes came, whatever they are.
    Bytes,
    /// The service names how long to wait before connecting again.
    Retry(Duration),
    /// The id to go on after is this from now on.
    LastId(Option<Arc<str>>),
    /// An event came.
    Event(Event),
    /// The service closed the stream.
    Ended,
    /// The stream broke, or said more than it may.
    Broken(Error),
    /// The time of [`Supervisor::deadline`] has come.
    Timer,
    /// The application wants a new connection.
    Reconnect,
    /// The start-up context was asked for again, and answered.
    Refetched,
    /// A request for flags was refused because of the API key.
    Unauthorized,
    /// Whoever carries this out panicked.
    Panicked,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Give up the connection that there is, and ask for the stream, from after this id.
    Connect { last_id: Option<Arc<str>> },
    /// Close the connection.
    Disconnect,
    /// From now on changes are heard of; whatever happened before may have changed anything.
    Open,
    /// Changes are not heard of any more.
    Away,
    /// Anything may have changed.
    Raise,
    /// Tell the application of a change.
    Changed(FlagChangeEvent),
    /// Tell the application that its key is to be replaced.
    KeyRotated { valid_until: Option<time::OffsetDateTime> },
    /// Tell the application how the connection is.
    Status(ConnectionStatus),
    /// Ask for the start-up context again.
    Refetch,
    /// Begin or end polling.
    Polling(bool),
    /// Tell the application that the key is refused.
    KeyRefused,
}

/// Follows one provider's stream.
#[derive(Debug)]
pub(crate) struct Supervisor {
    options: Options,
    state: State,
    /// Failures in a row.
    failures: u32,
    base: Duration,
    last_id: Option<Arc<str>>,
    polling: bool,
    status: ConnectionStatus,
    /// The stream was away for longer than between two connections: not all that happened may have been told.
    missed: bool,
    told_refused: bool,
    told_no_stream: bool,
}

#[derive(Debug)]
enum State {
    Idle,
    Connecting {
        after_id: bool,
    },
    Open(Open),
    /// Until the next attempt.
    Waiting {
        until: Instant,
    },
    /// The key is refused: until the next attempt.
    Unauthorized {
        until: Instant,
    },
    /// The service wants no connections.
    Parked,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    heard_at: Instant,
    heard: bool,
    /// No heartbeat has come yet.
    silent: bool,
    echo_at: Option<Instant>,
}

impl Open {
    /// From when on it is sound.
    fn sound_at(&self) -> Option<Instant> {
        self.heard.then_some(self.since + STABLE)
    }

    fn is_sound(&self, now: Instant) -> bool {
        self.sound_at().is_some_and(|at| now >= at)
    }
}

impl Supervisor {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            options,
            state: State::Idle,
            failures: 0,
            base: BASE,
            last_id: None,
            polling: false,
            status: ConnectionStatus::Disconnected,
            missed: false,
            told_refused: false,
            told_no_stream: false,
        }
    }

    /// When [`Input::Timer`] is due, unless something happens before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Waiting { until } | State::Unauthorized { until } => Some(*until),
            State::Open(open) => {
                let sound_at = open.sound_at().filter(|_| self.failures > 0);
                [Some(open.heard_at + self.options.idle_timeout), open.echo_at, sound_at].into_iter().flatten().min()
            }
            State::Idle | State::Connecting { .. } | State::Parked => None,
        }
    }

    /// Takes what happened, and says what is to be done. `random` is from [0, 1).
    pub(crate) fn input(&mut self, input: Input, now: Instant, random: f64) -> Vec<Action> {
        let mut actions = Vec::new();
        let todo = &mut actions;
        match (&mut self.state, input) {
            (State::Idle, Input::Start) => self.connect(todo),
            (State::Idle, _) => {}
            (_, Input::Panicked) => {
                tracing::error!(target: "flipswitch", "the follower of the stream of changes panicked; connecting again");
                self.failed(None, now, random, todo);
            }
            (State::Connecting { .. }, Input::Opened) => self.opened(now, todo),
            (State::Connecting { after_id }, Input::Refused(status, failure)) => {
                let after_id = *after_id;
                self.refused(status, after_id, failure, now, random, todo);
            }
            (State::Open(open), Input::Bytes) => {
                (open.heard_at, open.heard) = (now, true);
                if open.is_sound(now) {
                    self.failures = 0;
                }
            }
            (State::Open(_), Input::Retry(wait)) => self.base = wait.clamp(BASE, LONGEST),
            (State::Open(_), Input::LastId(id)) => self.last_id = id,
            (State::Open(open), Input::Event(event)) => match event {
                Event::Changed(change) => {
                    open.echo_at = Some(now + ECHO);
                    todo.push(Action::Raise);
                    if change.flag_key.is_none() {
                        todo.push(Action::Refetch);
                    }
                    todo.push(Action::Changed(change));
                }
                Event::KeyRotated { valid_until } => todo.push(Action::KeyRotated { valid_until }),
                // The service may have begun to tell us of changes only after its headers.
                Event::Heartbeat if std::mem::take(&mut open.silent) => todo.push(Action::Raise),
                Event::Heartbeat | Event::Unknown => {}
            },
            (State::Open(open), Input::Ended) => {
                if open.is_sound(now) {
                    let wait = BASE.mul_f64(0.5 + random / 2.0);
                    tracing::debug!(target: "flipswitch", ?wait, "the service ended the stream of changes; connecting again");
                    self.wait(wait, now, todo);
                } else {
                    self.log("the service ended the stream of changes early");
                    self.failed(None, now, random, todo);
                }
            }
            (State::Open(_), Input::Broken(error)) => {
                self.log(Chain(&error));
                self.failed(None, now, random, todo);
            }
            (State::Open(_), Input::Timer) => self.while_open(now, random, todo),
            (State::Open(_), Input::Refetched) => self.poll(false, todo),
            (State::Waiting { until } | State::Unauthorized { until }, Input::Timer) if now >= *until => {
                self.connect(todo);
            }
            // With the same key nothing else will come of polling.
            (State::Unauthorized { .. }, Input::Unauthorized) => self.poll(false, todo),
            (State::Open(_), Input::Reconnect) => {
                self.failures = 0;
                todo.extend([Action::Disconnect, Action::Away]);
                self.connect(todo);
            }
            // Also in place of an attempt under way, which may have gone out with another API key.
            (_, Input::Reconnect) => {
                self.failures = 0;
                self.told_refused = false;
                self.connect(todo);
            }
            // Of a connection that is no more.
            _ => {}
        }
        actions
    }

    fn connect(&mut self, todo: &mut Vec<Action>) {
        self.state = State::Connecting { after_id: self.last_id.is_some() };
        self.show(ConnectionStatus::Connecting, todo);
        todo.push(Action::Connect { last_id: self.last_id.clone() });
    }

    fn opened(&mut self, now: Instant, todo: &mut Vec<Action>) {
        let open = Open { since: now, heard_at: now, heard: false, silent: true, echo_at: None };
        self.state = State::Open(open);
        (self.told_refused, self.told_no_stream) = (false, false);
        tracing::info!(target: "flipswitch", "the stream of changes is open");
        todo.push(Action::Open);
        self.show(ConnectionStatus::Connected, todo);
        if std::mem::take(&mut self.missed) {
            // Something may have happened meanwhile that only its readers would notice.
            todo.push(Action::Changed(FlagChangeEvent::all()));
        }
        todo.push(Action::Refetch);
    }

    fn refused(
        &mut self,
        status: Option<StatusCode>,
        after_id: bool,
        Failure { error, retry_after }: Failure,
        now: Instant,
        random: f64,
        todo: &mut Vec<Action>,
    ) {
        let probe = PROBE.mul_f64(0.8 + 0.4 * random);
        self.missed = true;
        match status.map(|status| status.as_u16()) {
            Some(204) => {
                tracing::warn!(target: "flipswitch", "the service wants no connections for changes (204); polling");
                self.state = State::Parked;
                self.poll(true, todo);
                self.show(ConnectionStatus::Disconnected, todo);
            }
            Some(401 | 403) => {
                self.state = State::Unauthorized { until: now + probe };
                if !std::mem::replace(&mut self.told_refused, true) {
                    tracing::error!(target: "flipswitch", ?probe, "the service refuses the API key for the stream of changes");
                    todo.push(Action::KeyRefused);
                }
                self.poll(true, todo);
                self.show(ConnectionStatus::Error, todo);
            }
            Some(code @ (404 | 405 | 406 | 410 | 501)) => {
                if !std::mem::replace(&mut self.told_no_stream, true) {
                    tracing::warn!(target: "flipswitch", code, ?probe, "the service has no stream of changes; polling");
                }
                self.poll(true, todo);
                self.wait(probe, now, todo);
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

    /// What of an open connection is due by now.
    fn while_open(&mut self, now: Instant, random: f64, todo: &mut Vec<Action>) {
        let State::Open(open) = &mut self.state else { return };
        if open.echo_at.is_some_and(|at| now >= at) {
            open.echo_at = None;
            todo.push(Action::Raise);
        }
        if open.is_sound(now) {
            self.failures = 0;
        }
        let idle = self.options.idle_timeout;
        if now >= open.heard_at + idle {
            self.log(format_args!(
                "no bytes for {idle:?}: a half-open connection, or a proxy that holds them back (see X-Accel-Buffering)"
            ));
            self.failed(None, now, random, todo);
        }
    }

    fn failed(&mut self, retry_after: Option<Duration>, now: Instant, random: f64, todo: &mut Vec<Action>) {
        self.failures = self.failures.saturating_add(1);
        self.missed = true;
        let wait = backoff(self.base, self.failures, random);
        let wait = retry_after.map_or(wait, |retry_after| wait.max(asked(retry_after, random)));
        // Before the status: whoever hears that may ask whether there is polling.
        if self.failures >= self.options.max_retries {
            self.poll(true, todo);
        }
        self.wait(wait, now, todo);
    }

    /// Lets go of the connection, if there is one, until the next attempt.
    fn wait(&mut self, wait: Duration, now: Instant, todo: &mut Vec<Action>) {
        todo.push(Action::Disconnect);
        if matches!(self.state, State::Open(_)) {
            todo.push(Action::Away);
        }
        self.state = State::Waiting { until: now + wait };
        let status = if self.failures > 0 { ConnectionStatus::Error } else { ConnectionStatus::Disconnected };
        self.show(status, todo);
    }

    fn poll(&mut self, poll: bool, todo: &mut Vec<Action>) {
        let poll = poll && self.options.polling_fallback;
        if std::mem::replace(&mut self.polling, poll) != poll {
            todo.push(Action::Polling(poll));
        }
    }

    fn show(&mut self, status: ConnectionStatus, todo: &mut Vec<Action>) {
        if std::mem::replace(&mut self.status, status) != status {
            todo.push(Action::Status(status));
        }
    }

    /// Logs a failure: loudly the first of a row, and the one after which polling begins.
    fn log(&self, error: impl std::fmt::Display) {
        let failures = self.failures.saturating_add(1);
        if failures == 1 || failures == self.options.max_retries {
            tracing::warn!(target: "flipswitch", %error, failures, "the stream of changes failed; trying on");
        } else {
            tracing::debug!(target: "flipswitch", %error, failures, "the stream of changes failed; trying on");
        }
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);
    const OPTIONS: Options = Options { max_retries: 5, polling_fallback: true, idle_timeout: MINUTE };

    /// A supervisor with a clock that goes on when it is told to, and chance that is the same each time.
    struct Stream {
        supervisor: Supervisor,
        now: Instant,
        random: f64,
    }

    impl Stream {
        fn new(options: Options) -> Self {
            Self { supervisor: Supervisor::new(options), now: Instant::now(), random: 1.0 }
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
            stream.does(Input::Opened, [Action::Open, status(ConnectionStatus::Connected), Action::Refetch]);
            stream
        }

        fn does(&mut self, input: Input, expected: impl IntoIterator<Item = Action>) {
            let told = format!("{input:?} in {:?}", self.supervisor.state);
            let actions = self.supervisor.input(input, self.now, self.random);
            assert_eq!(actions, expected.into_iter().collect::<Vec<_>>(), "{told}");
        }

        /// Passes the time up to the deadline, which must be `wait` from now; then it connects.
        fn connects_after(&mut self, wait: Duration) {
            self.waits(wait);
            let last_id = self.supervisor.last_id.clone();
            self.does(Input::Timer, [status(ConnectionStatus::Connecting), connect(last_id.as_deref())]);
        }

        fn waits(&mut self, wait: Duration) {
            assert_eq!(self.supervisor.deadline(), Some(self.now + wait), "{:?}", self.supervisor.state);
            self.now += wait.saturating_sub(MILLISECOND);
            self.does(Input::Timer, []);
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
        Failure { error: Error::Timeout, retry_after }
    }

    fn refused(code: u16) -> Input {
        Input::Refused(Some(StatusCode::from_u16(code).unwrap()), failure(None))
    }

    /// Name resolution, connection, TLS, the deadline, a refused redirect: there is no status.
    fn unreachable() -> Input {
        Input::Refused(None, failure(None))
    }

    fn changed(key: Option<&str>) -> FlagChangeEvent {
        FlagChangeEvent { flag_key: key.map(str::to_owned), timestamp: None }
    }

    fn event(event: Event) -> Input {
        Input::Event(event)
    }

    const FAILED: [Action; 2] = [Action::Disconnect, Action::Status(ConnectionStatus::Error)];
    const BROKE: [Action; 3] = [Action::Disconnect, Action::Away, Action::Status(ConnectionStatus::Error)];

    #[test]
    fn before_the_start_nothing_is_done() {
        let mut stream = Stream::new(OPTIONS);
        assert_eq!(stream.supervisor.deadline(), None);
        for input in [Input::Opened, Input::Timer, Input::Reconnect, Input::Panicked, Input::Refetched] {
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
        let mut stream = Stream::new(Options { polling_fallback: false, max_retries: 1, ..OPTIONS });
        stream.does(Input::Start, [status(ConnectionStatus::Connecting), connect(None)]);
        stream.does(unreachable(), FAILED);
        stream.connects_after(SECOND);
        stream.refuse(204, [status(ConnectionStatus::Disconnected)]);
    }

    #[test]
    fn every_status_that_is_not_told_apart_is_a_failure() {
        // 200 is one with another media type: a page of a proxy.
        for code in [200, 202, 302, 307, 402, 408, 418, 425, 429, 500, 502, 503, 504] {
            let mut stream = Stream::connecting();
            stream.refuse(code, FAILED);
            stream.connects_after(SECOND);
        }
    }

    #[test]
    fn a_service_is_not_asked_before_the_time_it_names() {
        for (asked, random, wait) in [
            (SECOND * 10, 0.0, SECOND * 10),
            (SECOND * 10, 1.0, SECOND * 11),
            // Shorter than what is waited anyway.
            (MILLISECOND, 1.0, SECOND),
            // And not for ever.
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
    fn a_service_that_wants_no_connections_is_left_alone() {
        let mut stream = Stream::connecting();
        stream.refuse(204, [Action::Polling(true), status(ConnectionStatus::Disconnected)]);
        assert_eq!(stream.supervisor.deadline(), None);
        stream.does(Input::Timer, []);
        stream.does(Input::Reconnect, [status(ConnectionStatus::Connecting), connect(None)]);
    }

    #[test]
    fn a_refused_key_is_told_once_and_tried_seldom() {
        for code in [401, 403] {
            let mut stream = Stream::connecting();
            let entry = [Action::KeyRefused, Action::Polling(true), status(ConnectionStatus::Error)];
            stream.refuse(code, entry);
            // The key is refused for flags as well: nothing more comes of polling.
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
            let all = Action::Changed(changed(None));
            stream.does(Input::Opened, [Action::Open, status(ConnectionStatus::Connected), all, Action::Refetch]);
            // Once it was accepted, a refusal is news again.
            stream.does(Input::Ended, BROKE);
            stream.connects_after(SECOND);
            stream.refuse(code, [Action::KeyRefused, Action::Polling(true), status(ConnectionStatus::Error)]);
        }
    }

    fn seconds_before(stream: &Stream) -> u32 {
        let wait = stream.supervisor.deadline().unwrap() - stream.now;
        u32::try_from(wait.as_millis() / 1_000).unwrap()
    }

    #[test]
    fn a_service_without_a_stream_is_polled_and_tried_seldom() {
        for code in [404, 405, 406, 410, 501] {
            let mut stream = Stream::connecting();
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
    fn an_id_that_may_have_been_refused_is_forgotten() {
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
    fn an_id_survives_connections_until_another_comes() {
        let mut stream = Stream::open();
        stream.does(Input::LastId(Some("7".into())), []);
        stream.does(Input::Broken(Error::Timeout), BROKE);
        stream.waits(SECOND);
        stream.does(Input::Timer, [status(ConnectionStatus::Connecting), connect(Some("7"))]);
        stream.supervisor.input(Input::Opened, stream.now, 0.0);
        stream.does(Input::LastId(None), []);
        stream.does(
            Input::Reconnect,
            [Action::Disconnect, Action::Away, status(ConnectionStatus::Connecting), connect(None)],
        );
    }

    #[test]
    fn when_it_opens_everything_counts_as_changed_and_polling_ends_after_a_refetch() {
        let mut stream = Stream::connecting();
        for _ in 0..5 {
            stream.supervisor.input(unreachable(), stream.now, 1.0);
            stream.now = stream.supervisor.deadline().unwrap();
            stream.supervisor.input(Input::Timer, stream.now, 1.0);
        }
        // Answers to polls that were asked for before do not count.
        stream.does(Input::Refetched, []);
        let all = Action::Changed(changed(None));
        stream.does(Input::Opened, [Action::Open, status(ConnectionStatus::Connected), all, Action::Refetch]);
        assert_eq!(stream.supervisor.failures, 5, "headers alone prove nothing");
        stream.does(Input::Refetched, [Action::Polling(false)]);
        stream.does(Input::Refetched, []);
        // A failure now begins where it was: connect-and-close does not go on for ever without polling.
        stream.does(Input::Ended, [&[Action::Polling(true)], BROKE.as_slice()].concat());
        stream.connects_after(SECOND * 30);
    }

    #[test]
    fn events_invalidate_before_anything_else() {
        let mut stream = Stream::open();
        let flag = || Event::Changed(changed(Some("f")));
        stream.does(event(flag()), [Action::Raise, Action::Changed(changed(Some("f")))]);
        let all = || Event::Changed(changed(None));
        stream.does(event(all()), [Action::Raise, Action::Refetch, Action::Changed(changed(None))]);
        let valid_until = Some(datetime!(2025-06-01 0:00 UTC));
        stream.does(event(Event::KeyRotated { valid_until }), [Action::KeyRotated { valid_until }]);
        stream.does(event(Event::Unknown), []);
        // The first heartbeat: the service may have subscribed us after its headers.
        stream.does(event(Event::Heartbeat), [Action::Raise]);
        stream.does(event(Event::Heartbeat), []);
    }

    #[test]
    fn two_seconds_after_the_last_event_everything_counts_as_changed_once_more() {
        let mut stream = Stream::open();
        let flag = || event(Event::Changed(changed(Some("f"))));
        stream.supervisor.input(flag(), stream.now, 0.0);
        stream.now += SECOND;
        stream.supervisor.input(flag(), stream.now, 0.0);
        stream.waits(SECOND * 2);
        stream.does(Input::Timer, [Action::Raise]);
        stream.does(Input::Timer, []);
        // Nothing else does so.
        stream.does(Input::Bytes, []);
        stream.does(event(Event::Unknown), []);
        stream.waits(MINUTE);
    }

    #[test]
    fn silence_is_a_failure_and_any_byte_ends_it() {
        let mut stream = Stream::open();
        for _ in 0..3 {
            stream.now += MINUTE - MILLISECOND;
            stream.does(Input::Timer, []);
            stream.does(Input::Bytes, []);
        }
        stream.waits(MINUTE);
        stream.does(Input::Timer, BROKE);
        stream.connects_after(SECOND);
        // From the opening on, if nothing came at all.
        let mut stream = Stream::open();
        stream.waits(MINUTE);
        stream.does(Input::Timer, BROKE);
    }

    #[test]
    fn a_sound_minute_ends_the_row_of_failures() {
        let mut stream = Stream::connecting();
        stream.supervisor.failures = 3;
        stream.supervisor.input(Input::Opened, stream.now, 0.0);
        stream.now += SECOND;
        stream.does(Input::Bytes, []);
        stream.waits(MINUTE - SECOND);
        stream.does(Input::Timer, []);
        assert_eq!(stream.supervisor.failures, 0);
        // And an end is no failure then, but a rotation: statuses and nothing else.
        stream.does(Input::Ended, [Action::Disconnect, Action::Away, status(ConnectionStatus::Disconnected)]);
        stream.connects_after(SECOND);
        stream.does(Input::Opened, [Action::Open, status(ConnectionStatus::Connected), Action::Refetch]);
    }

    #[test]
    fn a_minute_without_a_byte_is_not_sound() {
        let mut stream = Stream::new(Options { idle_timeout: MINUTE * 3, ..OPTIONS });
        stream.supervisor.input(Input::Start, stream.now, 0.0);
        stream.supervisor.failures = 3;
        stream.supervisor.input(Input::Opened, stream.now, 0.0);
        stream.now += MINUTE * 2;
        stream.does(Input::Timer, []);
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
        // Also of a connection that was sound: only its end is none.
        let mut stream = Stream::open();
        stream.does(Input::Bytes, []);
        stream.now += MINUTE;
        stream.does(Input::Bytes, []);
        stream.does(Input::Broken(Error::Timeout), BROKE);
    }

    #[test]
    fn the_service_names_the_first_wait_within_limits() {
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
    fn a_new_connection_may_be_asked_for_in_any_state() {
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
            [Action::Disconnect, Action::Away, status(ConnectionStatus::Connecting), connect(None)],
        );
    }

    #[test]
    fn a_panic_is_a_failure_in_every_state() {
        let mut stream = Stream::open();
        stream.does(Input::Panicked, BROKE);
        stream.connects_after(SECOND);
        stream.does(Input::Panicked, FAILED);
        stream.connects_after(SECOND * 2);
    }

    #[test]
    fn what_belongs_to_a_connection_that_is_no_more_is_dropped() {
        let of_a_connection = || {
            let change = event(Event::Changed(changed(None)));
            [Input::Opened, Input::Bytes, change, Input::Ended, Input::Broken(Error::Timeout), Input::Refetched]
        };
        let mut waiting = Stream::connecting();
        waiting.supervisor.input(unreachable(), waiting.now, 1.0);
        let mut unauthorized = Stream::connecting();
        unauthorized.supervisor.input(refused(401), unauthorized.now, 1.0);
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
