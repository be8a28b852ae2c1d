//! The states of the stream of changes. No I/O: inputs, the time and random numbers are passed in, and actions are returned.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use http::StatusCode;

use super::{
    connections::{Beside, ConnectionNumber, Notified, Open, OpenConnection, TimeLimit, Times},
    event::{Cause, Effect, Notification, StreamEvent},
};
use crate::{
    config::ServiceKind,
    error::{Chain, Error, Failure},
    events::events::{ConnectionStatus, FlagChangeEvent},
    wire::backoff::{MAX_BACKOFF, backoff, retry_after_wait},
};

/// Wait after the first failure, unless the service specifies a different one.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Approximate wait after the service refused the API key, or if it has no stream.
const REFUSED_WAIT: Duration = Duration::from_secs(300);

/// Number of refusals in a row after which the API key counts as refused. A single refusal may be a mistake by a proxy.
const CONFIRMED_REFUSALS: u32 = 2;

/// How long a response to a request for flags contradicts a refusal of the API key for the stream, and how often to check for
/// such a response while the key counts as refused.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

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
    /// Opens the stream at this time.
    Start(Instant),
    /// Something happened to the connection with this number.
    Connection(ConnectionNumber, ConnectionInput),
    /// The deadline from [`Supervisor::deadline`] has been reached.
    DeadlineReached,
    /// The application requests a new connection.
    Reconnect,
    /// The service advertises a new URL for the stream, which opens at this time. Contains the part of the URL that logs may
    /// show.
    Moved(Arc<str>, Instant),
    /// The machine was asleep: the other side may have closed the connection long ago, and time has passed unnoticed.
    Resumed,
    /// A request for the start-up context has succeeded since the stream opened.
    Refetched,
    /// A request for flags was refused because of the API key.
    Unauthorized,
    /// When the service last responded to a request with the API key in use, if it has refused none since. Precedes every input
    /// that depends on it.
    Answered(Option<Instant>),
}

/// Something that happened to a connection.
#[derive(Debug)]
pub(crate) enum ConnectionInput {
    /// The service responded with an event stream.
    Opened,
    /// Connecting failed, with this status if there was a response.
    Refused(Option<StatusCode>, Failure),
    /// Bytes of any kind arrived.
    Bytes,
    /// The service specifies how long to wait before reconnecting.
    Retry(Duration),
    /// The id to continue after has changed.
    LastId(Option<Arc<str>>),
    /// An event arrived.
    Event(StreamEvent),
    /// The service ended the stream.
    Ended,
    /// The stream broke, or exceeded a limit.
    Broken(Error),
}

/// Something to do. Actions must be carried out in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Drop all connections, and open a new one that continues after this id.
    Connect { number: ConnectionNumber, last_id: Option<Arc<str>> },
    /// Open a second connection that continues after this id, while the current one stays open.
    ConnectBeside { number: ConnectionNumber, last_id: Option<Arc<str>> },
    /// Drop this connection.
    Close(ConnectionNumber),
    /// Drop all connections.
    Disconnect,
    /// Changes arrive from now on; anything may have changed before.
    StreamOpened,
    /// Changes no longer arrive.
    StreamClosed,
    /// Anything may have changed.
    Invalidate(Cause),
    /// Notify the application.
    Notify(Notification),
    /// Publish the status of the connection.
    Status(ConnectionStatus),
    /// Request the flags for the start-up context.
    Refetch,
    /// Request the flags because a stream that a response has added or moved is open.
    RefetchForNewStream,
    /// Request the flags in full, because the response may advertise a new URL.
    RenewUrl,
    /// Begin or end polling.
    Polling(bool),
    /// Publish that the service refuses the API key.
    Unauthorized,
    /// Publish that the service has no stream, or declines to serve it.
    NoStream,
}

/// Determines what to do with the connections of one stream.
#[derive(Debug)]
pub(crate) struct Supervisor {
    options: StreamOptions,
    service: ServiceKind,
    times: Times,
    /// The part of the stream's URL that logs may show.
    url: Arc<str>,
    /// Whether the next connection is the first one at its URL.
    is_new: bool,
    state: State,
    /// Number of the last connection.
    last_number: ConnectionNumber,
    /// Failures in a row.
    failures: u32,
    first_wait: Duration,
    last_id: Option<Arc<str>>,
    is_polling: bool,
    status: ConnectionStatus,
    /// Whether changes may have been missed, because the stream was closed for longer than the switch to another connection
    /// takes.
    missed_changes: bool,
    /// Refusals of the API key in a row.
    key_refusals: u32,
    /// When the first of these refusals occurred.
    refused_since: Option<Instant>,
    /// When the service last responded to a request with the API key in use.
    answered_at: Option<Instant>,
    /// Responses in a row that say that there is no stream. They are not counted if the stream was open before, because proxies
    /// send such responses while the service is being deployed.
    absences: u32,
    was_open: bool,
    reported_unauthorized: bool,
    reported_no_stream: bool,
    reported_declined: bool,
    time_limit: TimeLimit,
    reported_limit: bool,
    notified: Notified,
}

#[derive(Debug)]
enum State {
    Idle,
    Connecting {
        number: ConnectionNumber,
        after_id: bool,
    },
    Open(Open),
    /// Waits for the next attempt.
    Waiting {
        until: Instant,
    },
    /// Waits for the next attempt after the API key was refused.
    Unauthorized {
        since: Instant,
        until: Instant,
        /// When to check for a response to a request with the same key.
        look_at: Instant,
    },
    /// The service declines connections.
    Declined,
}

impl Supervisor {
    pub(crate) fn new(options: StreamOptions, service: ServiceKind, url: Arc<str>, was_open: bool) -> Self {
        Self {
            options,
            service,
            times: Times::new(options.stream_idle_timeout),
            url,
            is_new: true,
            state: State::Idle,
            last_number: 0,
            failures: 0,
            first_wait: FIRST_WAIT,
            last_id: None,
            is_polling: false,
            status: ConnectionStatus::Disconnected,
            missed_changes: false,
            key_refusals: 0,
            refused_since: None,
            answered_at: None,
            absences: 0,
            was_open,
            reported_unauthorized: false,
            reported_no_stream: false,
            reported_declined: false,
            time_limit: TimeLimit::default(),
            reported_limit: false,
            notified: Notified::default(),
        }
    }

    /// Returns the time at which [`Input::DeadlineReached`] is due, unless another input comes first.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Waiting { until } => Some(*until),
            State::Unauthorized { until, look_at, .. } => Some(*until.min(look_at)),
            State::Open(open) => {
                let stable_at = open.current.stable_at(&self.times).filter(|_| self.failures > 0);
                let idle_at = open.current.received_at + self.options.stream_idle_timeout;
                let deadlines = [Some(idle_at), stable_at, open.next_at(&self.time_limit), open.previous_until()];
                deadlines.into_iter().flatten().min()
            }
            State::Idle | State::Connecting { .. } | State::Declined => None,
        }
    }

    /// Returns whether a connection is open.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Handles an input, and returns what to do. `random` is in [0, 1).
    pub(crate) fn input(&mut self, input: Input, now: Instant, random: f64) -> Vec<Action> {
        let mut actions = Vec::new();
        let todo = &mut actions;
        match (&mut self.state, input) {
            (State::Idle, Input::Start(at)) => self.connect_at(at, now, todo),
            (_, Input::Answered(at)) => self.answered_at = at,
            (State::Idle, _) => {}
            (_, Input::Connection(number, input)) => self.connection_input(number, input, now, random, todo),
            (State::Open(_), Input::DeadlineReached) => self.deadline_while_open(now, random, todo),
            (State::Open(_), Input::Refetched) => self.poll(false, todo),
            (State::Waiting { until }, Input::DeadlineReached) if now >= *until => self.connect(todo),
            (State::Unauthorized { since, until, look_at }, Input::DeadlineReached) => {
                let looks = now >= *look_at;
                if now >= *until || looks && self.answered_at.is_some_and(|at| at > *since) {
                    self.connect(todo);
                } else if looks {
                    *look_at = now + ANSWERED_WITHIN;
                }
            }
            // Polling with the same key would fail as well.
            (State::Unauthorized { .. }, Input::Unauthorized) => self.poll(false, todo),
            (State::Connecting { .. } | State::Waiting { .. }, Input::Unauthorized) if self.key_refusals == 0 => {
                (self.key_refusals, self.refused_since) = (1, Some(now));
            }
            (State::Open(_), Input::Reconnect) => {
                self.failures = 0;
                todo.extend([Action::Disconnect, Action::StreamClosed]);
                self.connect(todo);
            }
            (State::Open(_), Input::Resumed) => {
                tracing::info!(target: "flipswitch", "the clock jumped; reconnecting the stream of changes");
                self.failures = 0;
                self.missed_changes = true;
                // Flags age by the monotonic clock only, so without the stream they would count as fresh for a while.
                todo.extend([Action::Disconnect, Action::StreamClosed, Action::Invalidate(Cause::Missed)]);
                self.connect(todo);
            }
            (state, Input::Moved(url, at)) => {
                // The id belongs to the stream at the previous URL.
                (self.url, self.last_id, self.is_new) = (url, None, true);
                match state {
                    // The response that moves the stream may have been requested because the attempt failed.
                    State::Waiting { until } => *until = (*until).min(at + MAX_BACKOFF),
                    State::Open(_) => {
                        self.failures = 0;
                        todo.extend([Action::Disconnect, Action::StreamClosed]);
                        self.connect_at(at, now, todo);
                    }
                    _ => {
                        todo.push(Action::Disconnect);
                        self.connect_at(at, now, todo);
                    }
                }
            }
            // Also replaces an attempt in flight, which may have been sent with a different API key.
            (_, Input::Reconnect) => {
                (self.failures, self.key_refusals, self.absences) = (0, 0, 0);
                (self.reported_unauthorized, self.reported_no_stream) = (false, false);
                self.connect(todo);
            }
            _ => {}
        }
        actions
    }

    fn connection_input(
        &mut self,
        number: ConnectionNumber,
        input: ConnectionInput,
        now: Instant,
        random: f64,
        todo: &mut Vec<Action>,
    ) {
        match &mut self.state {
            State::Connecting { number: connecting, after_id } if *connecting == number => match input {
                ConnectionInput::Opened => self.opened(OpenConnection::new(number, now), todo),
                ConnectionInput::Refused(status, failure) => {
                    let after_id = *after_id;
                    self.refused(status, after_id, failure, now, random, todo);
                }
                _ => {}
            },
            State::Open(open) => match (&open.beside, input) {
                (Beside::Connecting { number: connecting, .. }, input) if *connecting == number => match input {
                    ConnectionInput::Opened => open.beside = Beside::Next(OpenConnection::new(number, now)),
                    ConnectionInput::Refused(_, failure) => {
                        next_failed(&Chain(&failure.error));
                        open.beside = Beside::Failed;
                    }
                    _ => {}
                },
                (_, input) => self.open_input(number, input, now, random, todo),
            },
            // The input is from a connection that has been dropped.
            _ => {}
        }
    }

    /// Handles an input of an open connection.
    fn open_input(
        &mut self,
        number: ConnectionNumber,
        input: ConnectionInput,
        now: Instant,
        random: f64,
        todo: &mut Vec<Action>,
    ) {
        let State::Open(open) = &mut self.state else { return };
        // Otherwise, the input is from a connection that has been dropped.
        let Some(connection) = open.connection(number) else { return };
        match input {
            ConnectionInput::Bytes => {
                (connection.received_at, connection.has_received) = (now, true);
                connection.has_event |= self.service == ServiceKind::Ofrep;
                if open.switch(now + self.time_limit.read_on(&self.times)) {
                    tracing::debug!(target: "flipswitch", "the next connection of the stream of changes is in use");
                }
                let current = &mut open.current;
                let shows_subscription = self.service == ServiceKind::Ofrep && current.number == number;
                if shows_subscription && !std::mem::replace(&mut current.is_subscribed, true) {
                    todo.push(Action::Invalidate(Cause::Missed));
                }
                if current.is_stable(&self.times, now) {
                    self.failures = 0;
                }
            }
            ConnectionInput::Retry(wait) => self.first_wait = wait.clamp(FIRST_WAIT, MAX_BACKOFF),
            ConnectionInput::LastId(id) => self.last_id = id,
            ConnectionInput::Event(event) => self.event(number, event, todo),
            ConnectionInput::Ended => self.ended(number, None, now, random, todo),
            ConnectionInput::Broken(error) => self.ended(number, Some(&error), now, random, todo),
            ConnectionInput::Opened | ConnectionInput::Refused(..) => {}
        }
    }

    fn event(&mut self, number: ConnectionNumber, event: StreamEvent, todo: &mut Vec<Action>) {
        let State::Open(open) = &mut self.state else { return };
        let Some(connection) = open.connection(number) else { return };
        let is_heartbeat = event == StreamEvent::Heartbeat;
        let Effect { invalidate, notify } = event.effect(!connection.is_subscribed);
        connection.has_event = true;
        connection.is_subscribed |= is_heartbeat;
        // This is done even if the event arrives a second time, because it may be a different event.
        todo.extend(invalidate.map(Action::Invalidate));
        let Some(notification) = notify.filter(|notification| !self.notified.is_repeated(number, notification)) else {
            return;
        };
        self.notified.remember(number, &notification);
        if let Notification::Changed(FlagChangeEvent { flag_key: None, .. }) = notification {
            // Finds out which flags changed.
            todo.push(Action::Refetch);
        }
        todo.push(Action::Notify(notification));
    }

    /// Handles the end of an open connection, which is orderly if there is no error.
    fn ended(
        &mut self,
        number: ConnectionNumber,
        error: Option<&Error>,
        now: Instant,
        random: f64,
        todo: &mut Vec<Action>,
    ) {
        let State::Open(open) = &mut self.state else { return };
        if number != open.current.number {
            todo.push(Action::Close(number));
            let beside = std::mem::replace(&mut open.beside, Beside::None);
            if let Beside::Next(_) = beside {
                open.beside = Beside::Failed;
                next_failed(&"closed before anything was received");
            } else if error.is_some() {
                // An event that was sent before the service subscribed the current connection may be lost.
                todo.push(Action::Invalidate(Cause::Missed));
            }
            return;
        }
        let beside = std::mem::replace(&mut open.beside, Beside::Failed);
        if let Beside::Previous { connection, .. } = beside {
            // The previous connection is still open, so nothing was missed.
            next_failed(&"closed soon after it was opened");
            todo.push(Action::Close(number));
            open.current = connection;
            return;
        }
        let (open_for, is_stable) = (now - open.current.since, open.current.is_stable(&self.times, now));
        let is_like_last = self.time_limit.ended(open_for, is_stable && open.current.has_event);
        if is_stable {
            self.failures = 0;
        }
        match beside {
            // This is a rotation, and the next connection is already being opened.
            Beside::Connecting { number: next, after_id } if is_stable => {
                self.close_rotated(number, open_for, todo);
                self.state = State::Connecting { number: next, after_id };
                return;
            }
            Beside::Next(next) if is_stable => {
                self.close_rotated(number, open_for, todo);
                return self.opened(next, todo);
            }
            _ => {}
        }
        match error {
            None if is_stable => {
                let wait = FIRST_WAIT.mul_f64(0.5 + random / 2.0);
                tracing::debug!(
                    target: "flipswitch", ?open_for, ?wait, "the service ended the stream of changes; reconnecting"
                );
                self.wait(wait, now, todo);
            }
            None => {
                self.log_end(&"the service ended the stream", open_for, is_like_last);
                self.failed(None, now, random, todo);
            }
            Some(error) => {
                self.log_end(&root_cause(error), open_for, is_like_last);
                self.failed(None, now, random, todo);
            }
        }
    }

    /// Closes the current connection, which has ended while the next one is being opened.
    fn close_rotated(&mut self, number: ConnectionNumber, open_for: Duration, todo: &mut Vec<Action>) {
        tracing::debug!(
            target: "flipswitch", ?open_for, "the stream of changes ended; the next connection is being opened"
        );
        todo.extend([Action::Close(number), Action::StreamClosed]);
        self.set_status(ConnectionStatus::Connecting, todo);
    }

    /// Connects at the given time, which may already have passed.
    fn connect_at(&mut self, at: Instant, now: Instant, todo: &mut Vec<Action>) {
        if at <= now {
            return self.connect(todo);
        }
        self.state = State::Waiting { until: at };
        self.set_status(ConnectionStatus::Disconnected, todo);
    }

    fn connect(&mut self, todo: &mut Vec<Action>) {
        let number = self.next_number();
        self.state = State::Connecting { number, after_id: self.last_id.is_some() };
        self.set_status(ConnectionStatus::Connecting, todo);
        todo.push(Action::Connect { number, last_id: self.last_id.clone() });
    }

    fn next_number(&mut self) -> ConnectionNumber {
        self.last_number += 1;
        self.last_number
    }

    fn opened(&mut self, connection: OpenConnection, todo: &mut Vec<Action>) {
        self.state = State::Open(Open::new(connection));
        self.notified.clear();
        (self.key_refusals, self.absences, self.was_open) = (0, 0, true);
        (self.reported_unauthorized, self.reported_no_stream, self.reported_declined) = (false, false, false);
        tracing::info!(target: "flipswitch", url = &*self.url, "the stream of changes is open");
        todo.push(Action::StreamOpened);
        self.set_status(ConnectionStatus::Connected, todo);
        if std::mem::take(&mut self.missed_changes) {
            // A missed change may concern contexts other than the start-up context.
            todo.push(Action::Notify(Notification::Changed(FlagChangeEvent::all())));
        }
        let is_new = std::mem::take(&mut self.is_new) && self.service == ServiceKind::Ofrep;
        todo.push(if is_new { Action::RefetchForNewStream } else { Action::Refetch });
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
        // The error page of a proxy cannot be read, and results in a different error.
        let is_own = matches!(error, Error::Status(_));
        let is_absent = is_own && matches!(status, Some(404 | 405 | 406 | 410 | 501)) && !self.was_open;
        self.key_refusals = if is_key_refused { self.key_refusals.saturating_add(1) } else { 0 };
        if self.key_refusals == 1 {
            self.refused_since = Some(now);
        }
        self.absences = if is_absent { self.absences.saturating_add(1) } else { 0 };
        if self.service == ServiceKind::Ofrep && matches!(status, Some(400 | 401 | 403 | 404 | 410)) {
            // The URL may have expired.
            todo.push(Action::RenewUrl);
        }
        match status {
            Some(204) => {
                if !std::mem::replace(&mut self.reported_declined, true) {
                    let url = &*self.url;
                    tracing::warn!(target: "flipswitch", url, "the service declines the stream of changes (204)");
                }
                self.state = State::Declined;
                todo.push(Action::NoStream);
                self.poll(true, todo);
                self.set_status(ConnectionStatus::Disconnected, todo);
            }
            _ if self.key_refusals >= CONFIRMED_REFUSALS && !self.is_key_answered(now) => {
                self.state = State::Unauthorized { since: now, until: now + wait, look_at: now + ANSWERED_WITHIN };
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
                    tracing::warn!(target: "flipswitch", code, url, ?wait, "the service has no stream of changes, or the base URL is wrong");
                }
                self.failures = 0;
                todo.push(Action::NoStream);
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

    /// Returns whether the service responds to requests with the API key that it refuses for the stream, either since the first
    /// of the refusals in a row or recently.
    fn is_key_answered(&self, now: Instant) -> bool {
        let is_recent = |at: Instant| {
            now.saturating_duration_since(at) <= ANSWERED_WITHIN || self.refused_since.is_some_and(|since| at >= since)
        };
        self.answered_at.is_some_and(is_recent)
    }

    fn deadline_while_open(&mut self, now: Instant, random: f64, todo: &mut Vec<Action>) {
        let State::Open(open) = &mut self.state else { return };
        if open.current.is_stable(&self.times, now) {
            self.failures = 0;
        }
        let idle = self.options.stream_idle_timeout;
        if now >= open.current.received_at + idle {
            self.log(format_args!(
                "nothing received for {idle:?}: a half-open connection, or a proxy that buffers (see X-Accel-Buffering)"
            ));
            return self.failed(None, now, random, todo);
        }
        match &open.beside {
            Beside::Previous { connection, until } if now >= *until => {
                todo.push(Action::Close(connection.number));
                open.beside = Beside::None;
            }
            Beside::None if open.next_at(&self.time_limit).is_some_and(|at| now >= at) => self.connect_beside(todo),
            _ => {}
        }
    }

    fn connect_beside(&mut self, todo: &mut Vec<Action>) {
        let (number, last_id) = (self.next_number(), self.last_id.clone());
        if let State::Open(open) = &mut self.state {
            self.time_limit.overlaps();
            self.notified.clear();
            open.beside = Beside::Connecting { number, after_id: last_id.is_some() };
            todo.push(Action::ConnectBeside { number, last_id });
        }
    }

    fn failed(&mut self, retry_after: Option<Duration>, now: Instant, random: f64, todo: &mut Vec<Action>) {
        self.failures = self.failures.saturating_add(1);
        self.missed_changes = true;
        let wait = backoff(self.first_wait, self.failures, random);
        let wait = retry_after.map_or(wait, |retry_after| wait.max(retry_after_wait(retry_after, random)));
        // Precedes the status, because a listener for the status may check whether the provider polls.
        if self.failures >= self.options.max_retries || wait > MAX_BACKOFF.mul_f64(1.1) {
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

    /// Logs that a connection ended early, or was cut. If connections repeatedly end after the same interval, this is logged as a
    /// warning once.
    fn log_end(&mut self, cause: &dyn fmt::Display, open_for: Duration, is_like_last: bool) {
        let is_limited = open_for >= self.times.shortest_limit && is_like_last;
        let seconds = open_for.as_secs_f64();
        match (is_limited, std::mem::replace(&mut self.reported_limit, is_limited)) {
            (false, _) => self.log(format_args!("closed after {seconds:.1} s: {cause}")),
            (true, false) => tracing::warn!(
                target: "flipswitch", %cause,
                "the stream of changes was closed after {seconds:.1} s, like the one before; does a proxy limit its duration?"
            ),
            (true, true) => tracing::debug!(
                target: "flipswitch", %cause, "the stream of changes was closed after {seconds:.1} s again"
            ),
        }
    }

    /// Logs a failure. The first failure in a row, and the failure after which polling begins, are logged as warnings.
    fn log(&self, error: impl fmt::Display) {
        let failures = self.failures.saturating_add(1);
        if failures == 1 || failures == self.options.max_retries {
            tracing::warn!(target: "flipswitch", url = &*self.url, %error, failures, "stream of changes failed; retrying");
        } else {
            tracing::debug!(target: "flipswitch", url = &*self.url, %error, failures, "stream of changes failed; retrying");
        }
    }
}

/// Logs that the next connection failed, which does not count as a failure while the current one is open.
fn next_failed(error: &dyn fmt::Display) {
    tracing::debug!(target: "flipswitch", %error, "the next connection of the stream of changes failed");
}

/// Returns the last source of an error. The sources in between only rephrase it.
fn root_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::wire::event_streams::ConfigVersion;

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
            Self {
                supervisor: Supervisor::new(options, ServiceKind::Flipswitch, URL.into(), false),
                now: Instant::now(),
                random: 1.0,
            }
        }

        /// Returns a stream that is connecting.
        fn connecting() -> Self {
            let mut stream = Self::new(OPTIONS);
            stream.does(Input::Start(stream.now), [status(ConnectionStatus::Connecting), connect(None)]);
            stream
        }

        /// Returns a stream that is open and has not failed before.
        fn open() -> Self {
            let mut stream = Self::connecting();
            stream.does(
                ConnectionInput::Opened,
                [Action::StreamOpened, status(ConnectionStatus::Connected), Action::Refetch],
            );
            stream
        }

        /// Passes an input. A connection input comes from the latest connection.
        fn gets(&mut self, input: impl Numbered, random: f64) -> Vec<Action> {
            self.supervisor.input(input.numbered(self.supervisor.last_number), self.now, random)
        }

        fn does(&mut self, input: impl Numbered, expected: impl IntoIterator<Item = Action>) {
            self.does_on(self.supervisor.last_number, input, expected);
        }

        /// Passes an input of the connection with this number.
        fn does_on(
            &mut self,
            number: ConnectionNumber,
            input: impl Numbered,
            expected: impl IntoIterator<Item = Action>,
        ) {
            let input = input.numbered(number);
            let case = format!("{input:?} in {:?}", self.supervisor.state);
            let mut actions = self.supervisor.input(input, self.now, self.random);
            for action in &mut actions {
                if let Action::Connect { number, .. } = action {
                    assert_eq!(*number, self.supervisor.last_number);
                    *number = 0;
                }
            }
            assert_eq!(actions, expected.into_iter().collect::<Vec<_>>(), "{case}");
        }

        /// Advances the time to the deadline, which must be `wait` from now, and expects the supervisor to connect.
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

    /// An input, or a connection input to which the number of the connection is added.
    trait Numbered {
        fn numbered(self, number: ConnectionNumber) -> Input;
    }

    impl Numbered for Input {
        fn numbered(self, _: ConnectionNumber) -> Input {
            self
        }
    }

    impl Numbered for ConnectionInput {
        fn numbered(self, number: ConnectionNumber) -> Input {
            Input::Connection(number, self)
        }
    }

    fn status(status: ConnectionStatus) -> Action {
        Action::Status(status)
    }

    fn connect(last_id: Option<&str>) -> Action {
        Action::Connect { number: 0, last_id: last_id.map(Arc::from) }
    }

    fn failure(retry_after: Option<Duration>) -> Failure {
        Failure { retry_after, ..Error::Timeout.into() }
    }

    fn refused(code: u16) -> ConnectionInput {
        let status = StatusCode::from_u16(code).unwrap();
        let error = if matches!(code, 401 | 403) { Error::Unauthorized } else { Error::Status(status) };
        ConnectionInput::Refused(Some(status), error.into())
    }

    /// A failure without a status, caused by name resolution, the connection, TLS, the deadline or a rejected redirect.
    fn unreachable() -> ConnectionInput {
        ConnectionInput::Refused(None, failure(None))
    }

    fn changed(key: Option<&str>) -> FlagChangeEvent {
        FlagChangeEvent { flag_key: key.map(str::to_owned), timestamp: None }
    }

    fn announced() -> Action {
        Action::Invalidate(Cause::Announced(ConfigVersion::default()))
    }

    fn notify(key: Option<&str>) -> Action {
        Action::Notify(Notification::Changed(changed(key)))
    }

    fn event(event: StreamEvent) -> ConnectionInput {
        ConnectionInput::Event(event)
    }

    const FAILED: [Action; 2] = [Action::Disconnect, Action::Status(ConnectionStatus::Error)];
    const BROKE: [Action; 3] = [Action::Disconnect, Action::StreamClosed, Action::Status(ConnectionStatus::Error)];

    #[test]
    fn before_the_start_nothing_happens() {
        let mut stream = Stream::new(OPTIONS);
        assert_eq!(stream.supervisor.deadline(), None);
        stream.does(ConnectionInput::Opened, []);
        for input in [Input::DeadlineReached, Input::Reconnect, Input::Resumed, Input::Refetched] {
            stream.does(input, []);
        }
    }

    #[test]
    fn waits_double_with_jitter_and_lead_to_polling() {
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
        stream.does(Input::Start(stream.now), [status(ConnectionStatus::Connecting), connect(None)]);
        stream.does(unreachable(), FAILED);
        stream.connects_after(SECOND);
        stream.refuse(204, [Action::NoStream, status(ConnectionStatus::Disconnected)]);
    }

    #[test]
    fn every_other_status_is_a_failure() {
        // Here, a response with 200 has a different media type: it is a page from a proxy.
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
            // Polled during a long wait.
            let is_long = wait > MAX_BACKOFF.mul_f64(1.1);
            let polls = if is_long { vec![Action::Polling(true)] } else { Vec::new() };
            let expected = [polls.as_slice(), &FAILED].concat();
            stream.does(ConnectionInput::Refused(Some(status), failure(Some(asked))), expected);
            stream.connects_after(wait);
        }
    }

    #[test]
    fn a_service_that_declines_connections_is_polled() {
        let mut stream = Stream::connecting();
        stream.refuse(204, [Action::NoStream, Action::Polling(true), status(ConnectionStatus::Disconnected)]);
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
                stream.attempts_again();
                stream.random = random;
                stream.refuse(code, [Action::Polling(true), status(ConnectionStatus::Error)]);
                assert_eq!(stream.seconds_before_attempt(), seconds);
                stream.does(Input::Unauthorized, [Action::Polling(false)]);
            }
            stream.does(Input::Reconnect, [status(ConnectionStatus::Connecting), connect(None)]);
            let all = notify(None);
            stream.does(
                ConnectionInput::Opened,
                [Action::StreamOpened, status(ConnectionStatus::Connected), all, Action::Refetch],
            );
            // After the key was accepted, a refusal is reported again.
            stream.does(ConnectionInput::Ended, BROKE);
            stream.connects_after(SECOND);
            // A refused request confirms the refusal.
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
        // The error page of a firewall does not refuse the key, and does not say that there is no stream.
        for code in [401, 403, 404] {
            let mut stream = Stream::connecting();
            for seconds in [1, 2, 4] {
                stream.does(ConnectionInput::Refused(Some(StatusCode::from_u16(code).unwrap()), failure(None)), FAILED);
                stream.connects_after(SECOND * seconds);
            }
        }
    }

    impl Stream {
        fn seconds_before_attempt(&self) -> u64 {
            let State::Unauthorized { until, .. } = self.supervisor.state else { panic!("the key is not refused") };
            (until - self.now).as_secs()
        }

        /// Advances the time to the next attempt after a refusal. Without a response, there is no earlier attempt.
        fn attempts_again(&mut self) {
            let State::Unauthorized { until, .. } = self.supervisor.state else { panic!("the key is not refused") };
            while self.supervisor.deadline() < Some(until) {
                self.now = self.supervisor.deadline().unwrap();
                self.does(Input::DeadlineReached, []);
            }
            self.now = until - SECOND;
            self.connects_after(SECOND);
        }
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
            let absent = [Action::Disconnect, status(ConnectionStatus::Disconnected)];
            stream.refuse(code, [[Action::NoStream, Action::Polling(true)], absent.clone()].concat());
            stream.connects_after(SECOND * 300);
            stream.refuse(code, [&[Action::NoStream], absent.as_slice()].concat());
            assert_eq!(stream.supervisor.failures, 0);
            stream.does(Input::Reconnect, [status(ConnectionStatus::Connecting), connect(None)]);
        }
    }

    #[test]
    fn a_stream_that_was_open_is_retried_with_the_ordinary_backoff() {
        let mut stream = Stream::open();
        stream.does(ConnectionInput::Ended, BROKE);
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
            stream.does(ConnectionInput::LastId(Some("7".into())), []);
            stream.does(ConnectionInput::Ended, BROKE);
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
        stream.does(ConnectionInput::LastId(Some("7".into())), []);
        stream.does(ConnectionInput::Broken(Error::Timeout), BROKE);
        stream.waits(SECOND);
        stream.does(Input::DeadlineReached, [status(ConnectionStatus::Connecting), connect(Some("7"))]);
        stream.gets(ConnectionInput::Opened, 0.0);
        stream.does(ConnectionInput::LastId(None), []);
        stream.does(
            Input::Reconnect,
            [Action::Disconnect, Action::StreamClosed, status(ConnectionStatus::Connecting), connect(None)],
        );
    }

    #[test]
    fn an_opened_stream_invalidates_everything_and_polling_ends_after_a_refetch() {
        let mut stream = Stream::connecting();
        for _ in 0..5 {
            stream.gets(unreachable(), 1.0);
            stream.now = stream.supervisor.deadline().unwrap();
            stream.gets(Input::DeadlineReached, 1.0);
        }
        // Responses to earlier polls do not count.
        stream.does(Input::Refetched, []);
        let all = notify(None);
        stream.does(
            ConnectionInput::Opened,
            [Action::StreamOpened, status(ConnectionStatus::Connected), all, Action::Refetch],
        );
        assert_eq!(stream.supervisor.failures, 5, "headers alone prove nothing");
        stream.does(Input::Refetched, [Action::Polling(false)]);
        stream.does(Input::Refetched, []);
        // The count of failures continues, so a service that accepts connections and closes them is eventually polled.
        stream.does(ConnectionInput::Ended, [&[Action::Polling(true)], BROKE.as_slice()].concat());
        stream.connects_after(SECOND * 30);
    }

    #[test]
    fn events_invalidate_before_anything_else() {
        let mut stream = Stream::open();
        let flag = || StreamEvent::Changed(changed(Some("f")), ConfigVersion::default());
        stream.does(event(flag()), [announced(), notify(Some("f"))]);
        let all = || StreamEvent::Changed(changed(None), ConfigVersion::default());
        stream.does(event(all()), [announced(), Action::Refetch, notify(None)]);
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
            stream.does(ConnectionInput::Bytes, []);
        }
        stream.waits(MINUTE);
        stream.does(Input::DeadlineReached, BROKE);
        stream.connects_after(SECOND);
        // If nothing arrives at all, the time is counted from the opening.
        let mut stream = Stream::open();
        stream.waits(MINUTE);
        stream.does(Input::DeadlineReached, BROKE);
    }

    #[test]
    fn a_stable_connection_resets_the_count_of_failures() {
        let mut stream = Stream::connecting();
        stream.supervisor.failures = 3;
        stream.gets(ConnectionInput::Opened, 0.0);
        stream.now += SECOND;
        stream.does(ConnectionInput::Bytes, []);
        stream.waits(MINUTE - SECOND);
        stream.does(Input::DeadlineReached, []);
        assert_eq!(stream.supervisor.failures, 0);
        // In that case, its end is a rotation, and not a failure.
        stream.does(
            ConnectionInput::Ended,
            [Action::Disconnect, Action::StreamClosed, status(ConnectionStatus::Disconnected)],
        );
        stream.connects_after(SECOND);
        stream.does(
            ConnectionInput::Opened,
            [Action::StreamOpened, status(ConnectionStatus::Connected), Action::Refetch],
        );
    }

    #[test]
    fn a_connection_with_an_event_is_stable_after_ten_seconds() {
        for first in [
            StreamEvent::Heartbeat,
            StreamEvent::Unknown,
            StreamEvent::Changed(changed(Some("f")), ConfigVersion::default()),
        ] {
            let mut stream = Stream::open();
            stream.supervisor.failures = 3;
            stream.does(ConnectionInput::Bytes, []);
            stream.gets(event(first), 0.0);
            stream.now += SECOND * 10;
            stream.gets(Input::DeadlineReached, 0.0);
            assert_eq!(stream.supervisor.failures, 0);
            let rotation = [Action::Disconnect, Action::StreamClosed, status(ConnectionStatus::Disconnected)];
            stream.does(ConnectionInput::Ended, rotation);
            stream.connects_after(SECOND);
            // The stream was closed only briefly, so the application is not notified of a change.
            stream.does(
                ConnectionInput::Opened,
                [Action::StreamOpened, status(ConnectionStatus::Connected), Action::Refetch],
            );
        }
        // Earlier, or without an event, an end is a failure.
        for (seconds, has_event) in [(9, true), (10, false)] {
            let mut stream = Stream::open();
            stream.does(ConnectionInput::Bytes, []);
            if has_event {
                stream.does(event(StreamEvent::Unknown), []);
            }
            stream.now += SECOND * seconds;
            stream.does(ConnectionInput::Ended, BROKE);
        }
    }

    #[test]
    fn a_time_limit_of_a_proxy_is_recognised() {
        let mut stream = Stream::open();
        let mut ends_after = |seconds, limited| {
            let open_for = Duration::from_secs_f64(seconds);
            let is_like_last = stream.supervisor.time_limit.ended(open_for, false);
            stream.supervisor.log_end(&"", open_for, is_like_last);
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
        stream.gets(Input::Start(stream.now), 0.0);
        stream.supervisor.failures = 3;
        stream.gets(ConnectionInput::Opened, 0.0);
        stream.now += MINUTE * 2;
        stream.does(Input::DeadlineReached, []);
        assert_eq!(stream.supervisor.failures, 3);
        stream.does(ConnectionInput::Bytes, []);
        assert_eq!(stream.supervisor.failures, 0);
    }

    #[test]
    fn an_early_end_a_broken_body_and_an_oversized_event_are_failures() {
        for input in
            [ConnectionInput::Ended, ConnectionInput::Broken(Error::TooLarge), ConnectionInput::Broken(Error::Timeout)]
        {
            let mut stream = Stream::open();
            stream.does(ConnectionInput::Bytes, []);
            stream.now += MINUTE - MILLISECOND;
            stream.does(input, BROKE);
            stream.connects_after(SECOND);
        }
        // An error is a failure even on a stable connection, where an orderly end is not.
        let mut stream = Stream::open();
        stream.does(ConnectionInput::Bytes, []);
        stream.now += MINUTE;
        stream.does(ConnectionInput::Bytes, []);
        stream.does(ConnectionInput::Broken(Error::Timeout), BROKE);
    }

    #[test]
    fn the_service_sets_the_first_wait_within_limits() {
        for (named, wait) in
            [(Duration::ZERO, SECOND), (SECOND * 5, SECOND * 5), (Duration::from_millis(u64::MAX), SECOND * 30)]
        {
            let mut stream = Stream::open();
            stream.does(ConnectionInput::Retry(named), []);
            stream.does(ConnectionInput::Ended, BROKE);
            stream.connects_after(wait);
        }
    }

    #[test]
    fn a_reconnect_is_possible_in_every_state() {
        let mut waiting = Stream::connecting();
        for _ in 0..2 {
            waiting.gets(unreachable(), 1.0);
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
            let change = event(StreamEvent::Changed(changed(None), ConfigVersion::default()));
            [
                ConnectionInput::Opened,
                ConnectionInput::Bytes,
                change,
                ConnectionInput::Ended,
                ConnectionInput::Broken(Error::Timeout),
            ]
        };
        let mut waiting = Stream::connecting();
        waiting.gets(unreachable(), 1.0);
        let mut unauthorized = Stream::connecting();
        unauthorized.gets(Input::Unauthorized, 1.0);
        unauthorized.gets(refused(401), 1.0);
        assert!(matches!(unauthorized.supervisor.state, State::Unauthorized { .. }));
        let mut parked = Stream::connecting();
        parked.gets(refused(204), 1.0);
        for mut stream in [waiting, unauthorized, parked] {
            for input in of_a_connection() {
                stream.does(input, []);
            }
            stream.does(Input::Refetched, []);
        }
        let mut open = Stream::open();
        open.does(unreachable(), []);
        open.does(ConnectionInput::Opened, []);
        let dropped = open.supervisor.last_number;
        open.gets(Input::Reconnect, 1.0);
        for input in of_a_connection() {
            open.does_on(dropped, input, []);
        }
        open.gets(ConnectionInput::Opened, 1.0);
        for input in of_a_connection() {
            open.does_on(dropped, input, []);
        }
    }

    /// Returns a stream whose connection was opened after two others had ended after `seconds`, and has received a heartbeat.
    fn limited(seconds: u64, ends: fn() -> ConnectionInput) -> Stream {
        let mut stream = Stream::open();
        for _ in 0..2 {
            stream.receives_a_heartbeat();
            stream.now += Duration::from_secs(seconds);
            stream.gets(ends(), 1.0);
            stream.now = stream.supervisor.deadline().unwrap();
            stream.gets(Input::DeadlineReached, 1.0);
            stream.gets(ConnectionInput::Opened, 1.0);
        }
        stream.receives_a_heartbeat();
        stream.supervisor.failures = 0;
        stream
    }

    impl Stream {
        fn receives_a_heartbeat(&mut self) {
            self.gets(ConnectionInput::Bytes, 1.0);
            self.gets(event(StreamEvent::Heartbeat), 1.0);
        }

        /// Advances the time until the next connection is opened alongside this one, and returns the numbers of both.
        fn opens_beside_after(&mut self, wait: Duration) -> (ConnectionNumber, ConnectionNumber) {
            let (old, last_id) = (self.supervisor.last_number, self.supervisor.last_id.clone());
            self.waits_with_bytes(wait);
            self.does(Input::DeadlineReached, [Action::ConnectBeside { number: old + 1, last_id }]);
            (old, old + 1)
        }

        /// Advances the time, and lets bytes arrive on the current connection so that it is not silent for too long.
        fn waits_with_bytes(&mut self, mut wait: Duration) {
            while wait > SECOND * 30 {
                (self.now, wait) = (self.now + SECOND * 30, wait - SECOND * 30);
                self.does(ConnectionInput::Bytes, []);
            }
            self.waits(wait);
        }
    }

    const ENDS: [fn() -> ConnectionInput; 2] = [|| ConnectionInput::Ended, || ConnectionInput::Broken(Error::Timeout)];

    #[test]
    fn the_next_connection_replaces_one_before_it_is_cut_without_other_effects() {
        for (seconds, ends) in [(30, ENDS[0]), (30, ENDS[1]), (300, ENDS[0])] {
            let limit = Duration::from_secs(seconds);
            let mut stream = limited(seconds, ends);
            let mut opened = stream.now;
            for _ in 0..10 {
                // The age of this connection is used, and not the age of the previous one.
                let age = stream.now - opened;
                let (old, new) = stream.opens_beside_after(limit.mul_f64(0.8) - age);
                // There is one attempt for each connection.
                stream.does(Input::DeadlineReached, []);
                stream.now += SECOND;
                stream.does(ConnectionInput::Opened, []);
                opened = stream.now;
                stream.now += SECOND;
                stream.does_on(old, ConnectionInput::Bytes, []);
                stream.does(ConnectionInput::Bytes, []);
                stream.does(event(StreamEvent::Heartbeat), []);
                // Events that were already on their way are still processed.
                stream.now += SECOND;
                stream.does_on(old, ConnectionInput::Bytes, []);
                let change = || event(StreamEvent::Changed(changed(Some("f")), ConfigVersion::default()));
                stream.does_on(old, change(), [announced(), notify(Some("f"))]);
                stream.waits(SECOND);
                stream.does(Input::DeadlineReached, [Action::Close(old)]);
                stream.does_on(old, change(), []);
                stream.does_on(old, ConnectionInput::Ended, []);
                stream.does(change(), [announced(), notify(Some("f"))]);
                assert_eq!(stream.supervisor.last_number, new);
            }
        }
    }

    #[test]
    fn connections_of_different_durations_show_no_time_limit() {
        for seconds in [[30, 40], [40, 30], [9, 9]] {
            let mut stream = Stream::open();
            for seconds in seconds {
                stream.receives_a_heartbeat();
                stream.now += Duration::from_secs(seconds);
                stream.gets(ConnectionInput::Ended, 1.0);
                stream.now = stream.supervisor.deadline().unwrap();
                stream.gets(Input::DeadlineReached, 1.0);
                stream.gets(ConnectionInput::Opened, 1.0);
            }
            stream.receives_a_heartbeat();
            stream.supervisor.failures = 0;
            stream.waits(MINUTE);
        }
        // Without an event.
        let mut stream = Stream::open();
        for _ in 0..2 {
            stream.gets(ConnectionInput::Bytes, 1.0);
            stream.now += MINUTE;
            stream.gets(ConnectionInput::Bytes, 1.0);
            stream.gets(ConnectionInput::Ended, 1.0);
            stream.now = stream.supervisor.deadline().unwrap();
            stream.gets(Input::DeadlineReached, 1.0);
            stream.gets(ConnectionInput::Opened, 1.0);
        }
        stream.waits(MINUTE);
    }

    #[test]
    fn an_event_on_both_connections_is_published_once() {
        let all = |second| {
            let timestamp = Some(datetime!(2025-06-01 0:00 UTC) + SECOND * second);
            FlagChangeEvent { flag_key: None, timestamp }
        };
        let changes = |second| event(StreamEvent::Changed(all(second), ConfigVersion::default()));
        let published = |second| [announced(), Action::Refetch, Action::Notify(Notification::Changed(all(second)))];
        let mut stream = limited(30, ENDS[0]);
        // Earlier events do not count towards the limit of remembered ones. On one connection, each event is published.
        for second in (100..200).chain([100]) {
            stream.does(changes(second), published(second));
        }
        let (old, _) = stream.opens_beside_after(SECOND * 24);
        stream.gets(ConnectionInput::Opened, 1.0);
        stream.does_on(old, changes(1), published(1));
        stream.does(ConnectionInput::Bytes, []);
        // Flags are still invalidated.
        stream.does(changes(1), [announced()]);
        stream.does(changes(1), published(1));
        stream.does(changes(2), published(2));
        stream.does_on(old, changes(2), [announced()]);
        stream.does_on(old, changes(3), published(3));
        let rotated = || event(StreamEvent::KeyRotated { valid_until: None });
        stream.does_on(old, rotated(), [Action::Notify(Notification::KeyRotated { valid_until: None })]);
        stream.does(rotated(), []);
        // Without a timestamp, it may be a different change.
        let any = || event(StreamEvent::Changed(changed(None), ConfigVersion::default()));
        let is_any = [announced(), Action::Refetch, notify(None)];
        stream.does_on(old, any(), is_any.clone());
        stream.does(any(), is_any);
        stream.now += SECOND * 2;
        stream.does(Input::DeadlineReached, [Action::Close(old)]);
        // It arrives late.
        stream.does(changes(3), [announced()]);
        stream.does(changes(4), published(4));
        // Events are compared only during an overlap. After a reconnect, it may be a different change.
        stream.gets(Input::Reconnect, 1.0);
        stream.gets(ConnectionInput::Opened, 1.0);
        stream.does(changes(4), published(4));
    }

    #[test]
    fn an_end_before_the_next_connection_receives_bytes_is_a_rotation_to_it() {
        for ends in ENDS {
            let reopened = [Action::StreamOpened, status(ConnectionStatus::Connected), Action::Refetch];
            let closed = |old| [Action::Close(old), Action::StreamClosed, status(ConnectionStatus::Connecting)];
            // Not open yet.
            let mut stream = limited(30, ENDS[0]);
            let (old, _) = stream.opens_beside_after(SECOND * 24);
            stream.does_on(old, ends(), closed(old));
            stream.does(ConnectionInput::Opened, reopened.clone());
            stream.does(ConnectionInput::Bytes, []);
            stream.does(event(StreamEvent::Heartbeat), [Action::Invalidate(Cause::Missed)]);
            stream.opens_beside_after(SECOND * 24);
            // Open, but no bytes have arrived.
            let mut stream = limited(30, ENDS[0]);
            let (old, _) = stream.opens_beside_after(SECOND * 24);
            stream.does(ConnectionInput::Opened, []);
            stream.does_on(old, ends(), [closed(old).as_slice(), &reopened].concat());
            stream.does(ConnectionInput::Bytes, []);
            stream.does(event(StreamEvent::Heartbeat), [Action::Invalidate(Cause::Missed)]);
            // Not open yet, and it fails later.
            let mut stream = limited(30, ENDS[0]);
            let (old, _) = stream.opens_beside_after(SECOND * 24);
            stream.does_on(old, ends(), closed(old));
            stream.does(unreachable(), FAILED);
            stream.connects_after(SECOND);
        }
    }

    #[test]
    fn the_end_of_an_unstable_connection_is_a_failure_even_beside_the_next_one() {
        for is_open in [false, true] {
            let mut stream = limited(11, ENDS[0]);
            let (old, _) = stream.opens_beside_after(SECOND.mul_f64(8.8));
            if is_open {
                stream.does(ConnectionInput::Opened, []);
            }
            stream.does_on(old, ConnectionInput::Ended, BROKE);
            stream.connects_after(SECOND);
        }
    }

    #[test]
    fn a_next_connection_that_fails_is_neither_a_failure_nor_retried() {
        let fails: [fn(&mut Stream, ConnectionNumber); 6] = [
            |stream, _| stream.does(unreachable(), []),
            |stream, _| stream.refuse(401, []),
            |stream, _| stream.refuse(204, []),
            |stream, new| {
                stream.does(ConnectionInput::Opened, []);
                stream.does(ConnectionInput::Ended, [Action::Close(new)]);
            },
            |stream, new| {
                stream.does(ConnectionInput::Opened, []);
                stream.does(ConnectionInput::Broken(Error::Timeout), [Action::Close(new)]);
            },
            // Bytes have already arrived on it.
            |stream, new| {
                stream.does(ConnectionInput::Opened, []);
                stream.does(ConnectionInput::Bytes, []);
                stream.does(ConnectionInput::Broken(Error::TooLarge), [Action::Close(new)]);
            },
        ];
        for fails in fails {
            let mut stream = limited(30, ENDS[0]);
            let (old, new) = stream.opens_beside_after(SECOND * 24);
            fails(&mut stream, new);
            assert_eq!((stream.supervisor.failures, stream.supervisor.key_refusals), (0, 0));
            stream.does_on(new, ConnectionInput::Opened, []);
            // The last byte was at the beginning.
            assert_eq!(stream.supervisor.deadline(), Some(stream.now + SECOND * 36));
            stream.now += SECOND * 6;
            let rotation = [Action::Disconnect, Action::StreamClosed, status(ConnectionStatus::Disconnected)];
            stream.does_on(old, ConnectionInput::Ended, rotation);
            stream.connects_after(SECOND);
            stream.gets(ConnectionInput::Opened, 1.0);
            stream.receives_a_heartbeat();
            stream.opens_beside_after(SECOND * 24);
        }
    }

    #[test]
    fn the_previous_connection_may_end_while_it_is_still_read() {
        // Only a cut may have lost an event.
        for (ends, invalidates) in [(ENDS[0], None), (ENDS[1], Some(Action::Invalidate(Cause::Missed)))] {
            let mut stream = limited(30, ENDS[0]);
            let (old, _) = stream.opens_beside_after(SECOND * 24);
            stream.gets(ConnectionInput::Opened, 1.0);
            stream.does(ConnectionInput::Bytes, []);
            stream.does_on(old, ends(), [Action::Close(old)].into_iter().chain(invalidates));
            stream.opens_beside_after(SECOND * 24);
        }
        // It is dropped well before it is cut, even if the limit is short.
        let mut stream = limited(10, ENDS[0]);
        let (old, _) = stream.opens_beside_after(SECOND * 8);
        stream.gets(ConnectionInput::Opened, 1.0);
        stream.does(ConnectionInput::Bytes, []);
        stream.waits(SECOND);
        stream.does(Input::DeadlineReached, [Action::Close(old)]);
    }

    #[test]
    fn a_reconnect_drops_both_connections() {
        for input in [Input::Reconnect, Input::Resumed] {
            let mut stream = limited(30, ENDS[0]);
            let (old, new) = stream.opens_beside_after(SECOND * 24);
            stream.gets(ConnectionInput::Opened, 1.0);
            stream.gets(input, 1.0);
            for number in [old, new] {
                stream.does_on(number, ConnectionInput::Bytes, []);
                stream.does_on(number, ConnectionInput::Ended, []);
            }
            assert!(matches!(stream.supervisor.state, State::Connecting { .. }));
        }
    }

    #[test]
    fn a_reconnect_continues_after_the_last_id_of_either_connection() {
        let mut stream = limited(30, ENDS[0]);
        stream.does(ConnectionInput::LastId(Some("7".into())), []);
        let (old, new) = stream.opens_beside_after(SECOND * 24);
        stream.does_on(new, ConnectionInput::LastId(Some("6".into())), []);
        assert_eq!(stream.supervisor.last_id.as_deref(), Some("7"), "that connection is not open yet");
        stream.gets(ConnectionInput::Opened, 1.0);
        stream.does_on(old, ConnectionInput::LastId(Some("8".into())), []);
        stream.does(ConnectionInput::Bytes, []);
        stream.does(ConnectionInput::LastId(Some("9".into())), []);
        stream.does(
            Input::Reconnect,
            [Action::Disconnect, Action::StreamClosed, status(ConnectionStatus::Connecting), connect(Some("9"))],
        );
    }

    #[test]
    fn cuts_of_stable_connections_never_lead_to_polling() {
        let mut stream = Stream::open();
        for cut in 0..10 {
            stream.receives_a_heartbeat();
            // Each after a different time, so that no time limit is recognised.
            stream.now += SECOND * (10 + 5 * cut);
            stream.does(ConnectionInput::Broken(Error::Timeout), BROKE);
            stream.connects_after(SECOND);
            let all = notify(None);
            stream.does(
                ConnectionInput::Opened,
                [Action::StreamOpened, status(ConnectionStatus::Connected), all, Action::Refetch],
            );
        }
    }

    #[test]
    fn times_are_scaled_by_the_idle_timeout() {
        let idle = SECOND * 6;
        let mut stream = Stream::new(StreamOptions { stream_idle_timeout: idle, ..OPTIONS });
        stream.gets(Input::Start(stream.now), 1.0);
        for _ in 0..2 {
            stream.gets(ConnectionInput::Opened, 1.0);
            stream.receives_a_heartbeat();
            stream.now += SECOND;
            let rotation = [Action::Disconnect, Action::StreamClosed, status(ConnectionStatus::Disconnected)];
            stream.does(ConnectionInput::Ended, rotation);
            stream.connects_after(SECOND);
        }
        stream.gets(ConnectionInput::Opened, 1.0);
        stream.receives_a_heartbeat();
        let (old, _) = stream.opens_beside_after(MILLISECOND * 800);
        stream.gets(ConnectionInput::Opened, 1.0);
        stream.gets(ConnectionInput::Bytes, 1.0);
        stream.waits(MILLISECOND * 100);
        stream.does(Input::DeadlineReached, [Action::Close(old)]);
    }

    #[test]
    fn everything_counts_as_missed_after_the_machine_was_asleep() {
        let mut stream = Stream::open();
        let closed = [Action::Disconnect, Action::StreamClosed, Action::Invalidate(Cause::Missed)];
        let connects = [status(ConnectionStatus::Connecting), connect(None)];
        stream.does(Input::Resumed, closed.into_iter().chain(connects));
        stream.does(
            ConnectionInput::Opened,
            [Action::StreamOpened, status(ConnectionStatus::Connected), notify(None), Action::Refetch],
        );
        let mut waiting = Stream::connecting();
        waiting.does(Input::Resumed, []);
        waiting.gets(unreachable(), 1.0);
        waiting.does(Input::Resumed, []);
    }

    #[test]
    fn a_refusal_of_the_key_is_a_failure_while_requests_are_answered_with_it() {
        // The service responded within half a minute before the refusals, or since the first of them.
        let mut stream = Stream::connecting();
        stream.does(Input::Answered(Some(stream.now)), []);
        stream.now += SECOND * 20;
        for seconds in [1, 2, 4] {
            stream.refuse(401, FAILED);
            stream.connects_after(SECOND * seconds);
        }
        stream.does(Input::Answered(Some(stream.now)), []);
        stream.now += SECOND * 31;
        stream.refuse(401, FAILED);
        stream.now += MINUTE * 10;
        let unauthorized = [Action::Unauthorized, Action::Polling(true), status(ConnectionStatus::Error)];
        stream.gets(Input::DeadlineReached, 1.0);
        // A refused request is also taken into account, and responses before it are ignored.
        stream.does(Input::Unauthorized, []);
        stream.does(Input::Answered(None), []);
        stream.refuse(
            401,
            [Action::Unauthorized, Action::Polling(true)].into_iter().chain([status(ConnectionStatus::Error)]),
        );
        // The response was too long before the first refusal.
        let mut stream = Stream::connecting();
        stream.does(Input::Answered(Some(stream.now)), []);
        stream.now += SECOND * 30;
        stream.refuse(403, FAILED);
        stream.connects_after(SECOND);
        stream.refuse(403, unauthorized);
    }

    #[test]
    fn an_answer_ends_the_refusal_of_the_key() {
        let mut stream = Stream::connecting();
        stream.does(Input::Answered(Some(stream.now)), []);
        stream.now += MINUTE;
        stream.refuse(401, FAILED);
        stream.connects_after(SECOND);
        stream.refuse(401, [Action::Unauthorized, Action::Polling(true), status(ConnectionStatus::Error)]);
        // Checked every 30 seconds. The earlier response is ignored.
        for _ in 0..3 {
            stream.waits(SECOND * 30);
            stream.does(Input::DeadlineReached, []);
        }
        stream.now += SECOND;
        stream.does(Input::Answered(Some(stream.now)), []);
        stream.connects_after(SECOND * 29);
        // The key does not count as refused again while requests receive responses.
        stream.refuse(401, FAILED);
        assert!(matches!(stream.supervisor.state, State::Waiting { .. }));
    }

    /// Returns an OFREP event stream that is connecting.
    fn advertised() -> Stream {
        let supervisor = Supervisor::new(OPTIONS, ServiceKind::Ofrep, URL.into(), false);
        let mut stream = Stream { supervisor, now: Instant::now(), random: 1.0 };
        stream.does(Input::Start(stream.now), [status(ConnectionStatus::Connecting), connect(None)]);
        stream
    }

    fn moved(stream: &Stream) -> Input {
        Input::Moved(URL.into(), stream.now)
    }

    const OPENED: [Action; 3] =
        [Action::StreamOpened, Action::Status(ConnectionStatus::Connected), Action::RefetchForNewStream];

    #[test]
    fn on_an_event_stream_any_bytes_show_that_the_service_sends() {
        let mut stream = advertised();
        stream.does(ConnectionInput::Opened, OPENED);
        // The service may have subscribed the connection to changes only now.
        stream.does(ConnectionInput::Bytes, [Action::Invalidate(Cause::Missed)]);
        stream.does(ConnectionInput::Bytes, []);
        stream.now += SECOND * 10;
        // A rotation, and not a failure.
        stream.does(
            ConnectionInput::Ended,
            [Action::Disconnect, Action::StreamClosed, status(ConnectionStatus::Disconnected)],
        );
    }

    #[test]
    fn a_refused_event_stream_may_have_another_url() {
        for code in [401, 403, 404, 410] {
            let mut stream = advertised();
            let all = [&[Action::RenewUrl], FAILED.as_slice()].concat();
            stream.does(ConnectionInput::Refused(StatusCode::from_u16(code).ok(), failure(None)), all);
        }
        let mut stream = advertised();
        stream.does(unreachable(), FAILED);
        let mut stream = advertised();
        stream.refuse(204, [Action::NoStream, Action::Polling(true), status(ConnectionStatus::Disconnected)]);
        stream.does(moved(&stream), [Action::Disconnect, status(ConnectionStatus::Connecting), connect(None)]);
    }

    #[test]
    fn the_first_connection_at_a_url_is_distinguished_from_later_ones() {
        let mut stream = advertised();
        stream.does(ConnectionInput::Opened, OPENED);
        stream.does(ConnectionInput::LastId(Some("7".into())), []);
        // Without the id, which belongs to the stream at the previous URL.
        let moves = [Action::Disconnect, Action::StreamClosed, status(ConnectionStatus::Connecting), connect(None)];
        stream.does(moved(&stream), moves);
        stream.does(ConnectionInput::Opened, OPENED);
        stream.does(ConnectionInput::Broken(Error::Timeout), BROKE);
        stream.connects_after(SECOND);
        let all = [Action::StreamOpened, status(ConnectionStatus::Connected), notify(None), Action::Refetch];
        stream.does(ConnectionInput::Opened, all);
    }

    #[test]
    fn a_stream_that_soon_moves_again_is_closed_and_waits() {
        let mut stream = advertised();
        stream.does(ConnectionInput::Opened, OPENED);
        let later = Input::Moved(URL.into(), stream.now + SECOND * 2);
        let closed = [Action::Disconnect, Action::StreamClosed, status(ConnectionStatus::Disconnected)];
        stream.does(later, closed);
        stream.connects_after(SECOND * 2);
        stream.does(
            Input::Moved(URL.into(), stream.now + SECOND),
            [Action::Disconnect, status(ConnectionStatus::Disconnected)],
        );
        stream.connects_after(SECOND);
    }

    #[test]
    fn a_stream_that_moves_while_it_waits_is_not_retried_sooner_than_others() {
        let mut stream = advertised();
        stream.does(unreachable(), FAILED);
        stream.does(moved(&stream), []);
        stream.connects_after(SECOND);
        // A long wait becomes an ordinary one.
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let refused = ConnectionInput::Refused(Some(status), failure(Some(MINUTE * 4)));
        stream.does(refused, [&[Action::Polling(true)], FAILED.as_slice()].concat());
        stream.does(moved(&stream), []);
        stream.connects_after(MAX_BACKOFF);
    }
}
