//! The streams that ask browsers to refetch.
//!
//! An event only says that something may have changed. It is therefore the same for all browsers, and needs no identity. Each
//! browser receives it at a different time, requests its flags again, and gets the flags of its own session.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_core::Stream;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    cache::epoch::ECHO_WINDOW,
    events::bus::LastChange,
    provider::{browsers::OpenStream, provider::FlipswitchProvider},
};

/// Maximum time for which a stream stays silent. Proxies close connections that are silent for longer, most of them after 60
/// seconds. A new stream sends comments more often at first, because actix-web notices that a browser has disconnected only when
/// two writes fail, and most pages are left soon after they are opened.
const COMMENT_AFTER: Duration = Duration::from_secs(20);
const FIRST_COMMENT_AFTER: Duration = Duration::from_secs(1);

/// Maximum age of a stream, before up to a quarter of it is added at random. Reconnecting lets load balancers distribute streams
/// again.
const MAX_AGE: Duration = Duration::from_secs(15 * 60);

/// How long a browser may take to request flags after an event.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Maximum number of repeats while this process has not responded to any request after a change.
const MAX_UNSEEN: u32 = 3;

/// First wait before a browser is asked to refetch again because its flags are not settled. Each further wait is twice as long.
const FIRST_REPEAT: Duration = Duration::from_secs(5);
const LAST_REPEAT: Duration = Duration::from_secs(60);

/// While no stream of changes reaches the application, all browsers together refetch at this rate, unless each of them would have
/// to wait for more than this number of polling intervals.
const REFETCHES_PER_SECOND: u32 = 10;
const MAX_POLL_FACTOR: u32 = 10;

/// The kind of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The OFREP event stream (ADR-0008).
    Ofrep,
    /// The stream that the web provider of Flipswitch opens.
    Flipswitch,
}

/// The body of a stream.
pub struct BrowserEvents(State);

/// Waits for the next bytes. Returns them together with the loop, so that it can continue later.
type Next = dyn Future<Output = (Option<Bytes>, Box<EventLoop>)> + Send;

enum State {
    Idle(Box<EventLoop>),
    Running(Pin<Box<Next>>),
    Ended,
}

impl BrowserEvents {
    pub(super) fn new(events: EventLoop) -> Self {
        Self(State::Idle(Box::new(events)))
    }
}

impl fmt::Debug for BrowserEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrowserEvents").finish_non_exhaustive()
    }
}

impl Stream for BrowserEvents {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match std::mem::replace(&mut self.0, State::Ended) {
                State::Idle(mut events) => {
                    self.0 = State::Running(Box::pin(async move { (events.next().await, events) }));
                }
                State::Running(mut running) => match running.as_mut().poll(cx) {
                    Poll::Pending => {
                        self.0 = State::Running(running);
                        return Poll::Pending;
                    }
                    Poll::Ready((Some(bytes), events)) => {
                        self.0 = State::Idle(events);
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                    Poll::Ready((None, _)) => return Poll::Ready(None),
                },
                State::Ended => return Poll::Ready(None),
            }
        }
    }
}

/// One stream, which determines which bytes to send, and when. It ends with the process, with the provider, or at its own maximum
/// age.
pub(super) struct EventLoop {
    stream: OpenStream,
    provider: FlipswitchProvider,
    changes: watch::Receiver<LastChange>,
    kind: Kind,
    spread: Duration,
    first: Option<Bytes>,
    /// When the next event is due, if there is one.
    event_at: Option<Instant>,
    repeat: Option<Repeat>,
    comment_at: Instant,
    comment_after: Duration,
    refetched_at: Instant,
    /// When it was noticed that no stream of changes reaches the application.
    polled_from: Option<Instant>,
    ends_at: Instant,
}

/// When to check whether a browser must be asked to refetch once more.
struct Repeat {
    at: Instant,
    wait: Duration,
    /// How many times the browser has been asked since the change.
    asked: u32,
    /// Whether the service may have used old rules when the browser requested flags.
    is_echo: bool,
}

impl EventLoop {
    /// Opens a stream. It begins with a request to refetch, because browsers do not refetch by themselves when a stream opens,
    /// and flags may have changed in the meantime.
    pub(super) fn new(stream: OpenStream, provider: FlipswitchProvider, kind: Kind, spread: Duration) -> Self {
        let now = Instant::now();
        let mut changes = stream.browsers.changes();
        changes.mark_unchanged();
        let mut events = Self {
            stream,
            provider,
            changes,
            kind,
            spread,
            first: None,
            event_at: None,
            repeat: None,
            comment_at: now + FIRST_COMMENT_AFTER,
            comment_after: FIRST_COMMENT_AFTER,
            refetched_at: now,
            polled_from: None,
            ends_at: now + MAX_AGE.mul_f64(1.0 + fastrand::f64() / 4.0),
        };
        let first = events.refetch(now);
        events.first = Some(match kind {
            // Browsers reconnect after this time. It is random, so that they do not all reconnect at the same time.
            Kind::Ofrep => [format!("retry: {}\n", fastrand::u64(1_000..4_000)).as_bytes(), &first].concat().into(),
            Kind::Flipswitch => first,
        });
        events
    }

    /// Waits for the next bytes. Returns `None` at the end of the stream.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let draining = self.stream.browsers.draining().clone();
        loop {
            let now = Instant::now();
            if now >= self.ends_at {
                return None;
            }
            if self.event_at.is_some_and(|at| at <= now) {
                self.event_at = None;
                return Some(self.refetch(now));
            }
            if self.is_repeat_due(now) {
                return Some(self.event(now));
            }
            if self.comment_at <= now {
                return Some(if self.is_poll_due(now) { self.refetch(now) } else { self.comment(now) });
            }
            let repeat_at = self.repeat.as_ref().map(|repeat| repeat.at);
            let timers = [self.event_at, repeat_at, Some(self.comment_at), Some(self.ends_at)];
            let wakes_at = timers.into_iter().flatten().min().unwrap_or(now);
            tokio::select! {
                biased;
                () = draining.cancelled() => return None,
                changed = self.changes.changed() => {
                    changed.ok()?;
                    self.changes.mark_unchanged();
                    self.event_at.get_or_insert_with(|| Instant::now() + self.spread.mul_f64(fastrand::f64()));
                }
                () = sleep_until(wakes_at) => {}
            }
        }
    }

    /// Returns an event after a change, and plans a check of whether it had an effect.
    fn refetch(&mut self, now: Instant) -> Bytes {
        let latest = *self.changes.borrow();
        let echo_over = latest.heard_at + ECHO_WINDOW;
        let is_echo = latest.is_known() && echo_over > now;
        let at = if is_echo { echo_over } else { now } + ANSWER_WITHIN + self.spread.mul_f64(fastrand::f64());
        self.repeat = Some(Repeat { at, wait: FIRST_REPEAT, asked: 1, is_echo });
        self.event(now)
    }

    fn event(&mut self, now: Instant) -> Bytes {
        (self.comment_at, self.refetched_at) = (now + self.comment_after, now);
        let at = self.changes.borrow().at.and_then(|at| at.format(&Rfc3339).ok());
        match self.kind {
            Kind::Ofrep => refetch(at.as_deref()).into(),
            Kind::Flipswitch => config_updated(at.as_deref()),
        }
    }

    fn comment(&mut self, now: Instant) -> Bytes {
        self.comment_after = (2 * self.comment_after).min(COMMENT_AFTER);
        self.comment_at = now + self.comment_after;
        Bytes::from_static(match self.kind {
            Kind::Ofrep => b":\n\n",
            Kind::Flipswitch => b"event: heartbeat\ndata: {}\n\n",
        })
    }

    /// Returns whether the browser must be asked once more, because the flags that it received since the last event may be out of
    /// date. Only the responses for its context are known, and other browsers may have received them.
    fn is_repeat_due(&mut self, now: Instant) -> bool {
        let Some(Repeat { wait, asked, is_echo, .. }) = self.repeat.take_if(|repeat| repeat.at <= now) else {
            return false;
        };
        let change = self.changes.borrow().number;
        let (progress, is_shared) = self.stream.progress();
        let is_unsettled = progress.unsettled_at.is_some_and(|at| at >= self.refetched_at);
        // Another process has responded, or the response is late or was lost.
        let is_unseen = progress.answered < change && asked <= MAX_UNSEEN;
        let is_due = is_unsettled || is_unseen || is_echo && is_shared;
        if is_due {
            let at = now + wait + self.spread.mul_f64(fastrand::f64());
            self.repeat = Some(Repeat { at, wait: (2 * wait).min(LAST_REPEAT), asked: asked + 1, is_echo: false });
        }
        is_due
    }

    /// Returns whether flags may be out of date because no stream of changes reaches the application.
    fn is_poll_due(&mut self, now: Instant) -> bool {
        let Some(age) = self.provider.polling_age() else {
            self.polled_from = None;
            return false;
        };
        let began = *self.polled_from.get_or_insert(now);
        let streams = u32::try_from(self.stream.browsers.open_streams()).unwrap_or(u32::MAX);
        let fair = Duration::from_secs(1) * streams / REFETCHES_PER_SECOND;
        now - began.max(self.refetched_at) >= age.max(fair.min(MAX_POLL_FACTOR * age))
    }
}

/// Formats an OFREP event. Some parsers need it in one write, with lines that end with LF only.
fn refetch(last_modified: Option<&str>) -> String {
    let last_modified = last_modified.map(|at| format!(r#","lastModified":"{at}""#)).unwrap_or_default();
    format!("data: {{\"type\":\"refetchEvaluation\"{last_modified}}}\n\n")
}

/// Formats a Flipswitch event. It names neither a flag nor a reason, because not every flag is public.
fn config_updated(timestamp: Option<&str>) -> Bytes {
    let now = || OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let timestamp = timestamp.map_or_else(now, str::to_owned);
    format!("event: config-updated\ndata: {{\"timestamp\":\"{timestamp}\"}}\n\n").into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        context::context::Context as FlagContext,
        provider::browsers::{BrowserId, Browsers, StreamLimits},
        secret::{BrowserKeys, Secret},
    };

    /// The state that streams share, and the changes that they follow.
    struct Fixture {
        browsers: Arc<Browsers>,
        changes: watch::Sender<LastChange>,
    }

    impl Fixture {
        fn new() -> Self {
            let keys = BrowserKeys::new(&Secret::new(b"a secret of this test"));
            let (changes, receiver) = watch::channel(LastChange::default());
            Self { browsers: Arc::new(Browsers::new(keys, false, receiver, CancellationToken::new())), changes }
        }

        fn open(&self) -> EventLoop {
            let stream = self.browsers.open(alice(), StreamLimits { total: 10, per_context: 10 }).unwrap();
            let provider = FlipswitchProvider::in_memory(json!({}));
            EventLoop::new(stream, provider, Kind::Ofrep, Duration::ZERO)
        }

        fn answered(&self, is_settled: bool) {
            self.browsers.answered(alice(), self.browsers.latest().number, is_settled);
        }
    }

    fn alice() -> BrowserId {
        BrowserId::of(&FlagContext::user("alice"), false)
    }

    fn has_event(bytes: &Option<Bytes>) -> bool {
        str::from_utf8(bytes.as_ref().unwrap()).unwrap().contains("refetchEvaluation")
    }

    /// Reads a stream for a while. Returns the seconds at which there were events.
    async fn events(events: &mut EventLoop, time: Duration, mut on_event: impl FnMut()) -> Vec<u64> {
        let (began, mut times) = (Instant::now(), Vec::new());
        while let Ok(bytes) = tokio::time::timeout_at(began + time, events.next()).await {
            if has_event(&bytes) {
                times.push(began.elapsed().as_secs());
                on_event();
            }
        }
        times
    }

    #[tokio::test(start_paused = true)]
    async fn comments_become_rarer_and_a_stream_ends() {
        let (fixture, began) = (Fixture::new(), Instant::now());
        let mut stream = fixture.open();
        let first = stream.next().await.unwrap();
        assert!(first.starts_with(b"retry: ") && has_event(&Some(first)));
        fixture.answered(true);
        let mut comments = Vec::new();
        while let Some(bytes) = stream.next().await {
            assert_eq!(bytes, ":\n\n");
            comments.push(began.elapsed().as_secs());
        }
        assert_eq!(comments[..7], [1, 3, 7, 15, 31, 51, 71], "{comments:?}");
        assert!((MAX_AGE..=MAX_AGE.mul_f64(1.25) + COMMENT_AFTER).contains(&began.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_browser_is_asked_again_until_its_answer_is_settled() {
        let time = Duration::from_secs(250);
        let fixture = Fixture::new();
        let mut stream = fixture.open();
        assert_eq!(events(&mut stream, time, || fixture.answered(true)).await, [0]);
        let mut stream = fixture.open();
        let unsettled = events(&mut stream, time, || fixture.answered(false)).await;
        assert_eq!(unsettled, [0, 1, 6, 16, 36, 76, 136, 196]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_browser_whose_answers_are_not_seen_is_asked_a_few_times() {
        let fixture = Fixture::new();
        let mut stream = fixture.open();
        assert_eq!(events(&mut stream, Duration::from_secs(250), || {}).await, [0, 1, 6, 16]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_settled_answer_to_one_tab_does_not_hide_an_unsettled_one_to_another() {
        let fixture = Fixture::new();
        let [mut first, _second] = [fixture.open(), fixture.open()];
        let mut asked = 0;
        let times = events(&mut first, Duration::from_secs(60), || {
            asked += 1;
            fixture.answered(asked > 1);
            fixture.answered(true);
        });
        assert_eq!(times.await, [0, 1]);
        // With several tabs, each is asked once more after the time during which the service may still use old rules.
        fixture.changes.send_modify(|change| change.advance(None));
        let times = events(&mut first, Duration::from_secs(60), || fixture.answered(true)).await;
        assert_eq!(times.len(), 2, "{times:?}");
    }

    #[tokio::test]
    async fn a_stream_that_draining_ends_is_no_longer_counted() {
        let fixture = Fixture::new();
        let mut stream = fixture.open();
        stream.next().await;
        fixture.browsers.drain();
        assert_eq!(stream.next().await, None);
        drop(stream);
        assert_eq!(fixture.browsers.open_streams(), 0);
    }
}
