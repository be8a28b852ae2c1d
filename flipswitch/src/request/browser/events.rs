//! The streams that ask browsers to refetch.
//!
//! An event says that something may have changed, and nothing else. It therefore needs no identity, and all browsers receive
//! the same one, each at a time of its own. The browser asks for its flags again, and gets those of its own session.

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
use time::format_description::well_known::Rfc3339;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    cache::epoch::ECHO_WINDOW,
    provider::{
        browsers::{Change, OpenStream},
        provider::FlipswitchProvider,
    },
};

/// How long a stream is silent at most. Proxies close connections that are silent for longer, most of them after 60 seconds.
/// A new stream sends comments sooner, and then less and less often: actix-web notices only by two failing writes that a
/// browser has gone, and most pages are left soon.
const COMMENT_AFTER: Duration = Duration::from_secs(20);
const FIRST_COMMENT_AFTER: Duration = Duration::from_secs(1);

/// How long a stream lasts, before a random part of up to a quarter: load balancers get to balance again.
const MAX_AGE: Duration = Duration::from_secs(15 * 60);

/// After which time without changes a browser that reconnects has seen all that an event causes.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// How long a browser has to ask after an event.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Waits before a browser that got flags which are not settled is asked to refetch again. They double.
const FIRST_REPEAT: Duration = Duration::from_secs(5);
const LAST_REPEAT: Duration = Duration::from_secs(60);

/// While no stream of changes reaches the application, browsers refetch at this rate together, at most.
const REFETCHES_PER_SECOND: u32 = 10;

/// The kind of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The event stream of OFREP (ADR-0008).
    Ofrep,
    /// The stream that Flipswitch's own web provider opens.
    Flipswitch,
}

/// The body of a stream.
pub struct BrowserEvents(State);

/// Waits for the next bytes, and returns what it needs to go on.
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

/// One stream: which bytes it sends, and when. It ends with the process, the provider, or its own maximum age.
pub(super) struct EventLoop {
    stream: OpenStream,
    provider: FlipswitchProvider,
    changes: watch::Receiver<Change>,
    kind: Kind,
    spread: Duration,
    first: Option<Bytes>,
    /// When the next event is due, if one is.
    event_at: Option<Instant>,
    repeat: Option<Repeat>,
    comment_at: Instant,
    comment_after: Duration,
    refetched_at: Instant,
    ends_at: Instant,
}

/// Whether a browser must be asked to refetch once more.
struct Repeat {
    at: Instant,
    wait: Duration,
    /// Whether it was asked once more already.
    is_second: bool,
}

impl EventLoop {
    /// Opens a stream. It begins with a request to refetch, unless the browser has received the last event before, and that
    /// is long ago: browsers do not refetch by themselves when a stream opens, and a change may have come meanwhile.
    pub(super) fn new(
        stream: OpenStream,
        provider: FlipswitchProvider,
        kind: Kind,
        spread: Duration,
        last_event_id: &str,
    ) -> Self {
        let mut changes = stream.browsers.changes();
        let latest = *changes.borrow_and_update();
        let now = Instant::now();
        let is_known = last_event_id == stream.browsers.id(latest) && latest.heard_at.elapsed() > SETTLED_AFTER;
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
            ends_at: now + MAX_AGE.mul_f64(1.0 + fastrand::f64() / 4.0),
        };
        let retry = fastrand::u64(1_000..4_000);
        events.first = Some(match (kind, is_known) {
            (Kind::Ofrep, true) => format!("retry: {retry}\n:\n\n").into(),
            (Kind::Ofrep, false) => {
                events.repeat = Some(events.repeat_after(latest, now));
                format!("retry: {retry}\n{}", refetch(&events.stream.browsers.id(latest), None)).into()
            }
            (Kind::Flipswitch, _) => {
                events.repeat = Some(events.repeat_after(latest, now));
                config_updated(latest)
            }
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

    /// Returns an event after a change, and plans to look whether it had an effect.
    fn refetch(&mut self, now: Instant) -> Bytes {
        let latest = *self.changes.borrow();
        self.repeat = Some(self.repeat_after(latest, now));
        self.event(now)
    }

    fn event(&mut self, now: Instant) -> Bytes {
        (self.comment_at, self.refetched_at) = (now + self.comment_after, now);
        let latest = *self.changes.borrow();
        match self.kind {
            Kind::Ofrep => {
                let at = latest.at.format(&Rfc3339).ok().filter(|_| latest.is_known());
                refetch(&self.stream.browsers.id(latest), at.as_deref()).into()
            }
            Kind::Flipswitch => config_updated(latest),
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

    /// Plans the look after an event: once the service no longer evaluates with old rules, and the browser has had time.
    fn repeat_after(&self, latest: Change, now: Instant) -> Repeat {
        let after_echo = Instant::from_std(latest.heard_at) + ECHO_WINDOW;
        let jitter = self.spread.mul_f64(fastrand::f64());
        let echo_over = if latest.is_known() && after_echo > now { after_echo } else { now };
        Repeat { at: echo_over + ANSWER_WITHIN + jitter, wait: FIRST_REPEAT, is_second: false }
    }

    /// Returns whether the browser must be asked once more: its last answer was not settled, or another process gave it.
    fn is_repeat_due(&mut self, now: Instant) -> bool {
        let Some(Repeat { wait, is_second, .. }) = self.repeat.take_if(|repeat| repeat.at <= now) else {
            return false;
        };
        let (change, progress) = (self.changes.borrow().number, self.stream.progress());
        let is_due = progress.settled < change && (progress.answered >= change || !is_second);
        if is_due {
            self.repeat = Some(Repeat { at: now + wait, wait: (2 * wait).min(LAST_REPEAT), is_second: true });
        }
        is_due
    }

    /// Returns whether flags may be out of date because no stream of changes reaches the application.
    fn is_poll_due(&self, now: Instant) -> bool {
        let Some(age) = self.provider.polling_age() else { return false };
        let streams = u32::try_from(self.stream.browsers.open_streams()).unwrap_or(u32::MAX);
        let fair = Duration::from_secs(1) * streams / REFETCHES_PER_SECOND;
        now - self.refetched_at >= age.max(fair)
    }
}

/// Formats an event of OFREP. One write, and lines that end with LF only: some parsers need both.
fn refetch(id: &str, last_modified: Option<&str>) -> String {
    let last_modified = last_modified.map(|at| format!(r#","lastModified":"{at}""#)).unwrap_or_default();
    format!("id: {id}\ndata: {{\"type\":\"refetchEvaluation\"{last_modified}}}\n\n")
}

/// Formats an event of Flipswitch. It names neither flag nor reason: not every flag is public.
fn config_updated(change: Change) -> Bytes {
    let at = change.at.format(&Rfc3339).unwrap_or_default();
    format!("event: config-updated\ndata: {{\"timestamp\":\"{at}\"}}\n\n").into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        context::context::Context as FlagContext,
        provider::browsers::{Browsers, ContextId, StreamLimits},
        secret::{BrowserKeys, Secret},
    };

    fn browsers() -> Arc<Browsers> {
        let keys = BrowserKeys::new(&Secret::new(b"a secret of this test"));
        Arc::new(Browsers::new(keys, CancellationToken::new()))
    }

    fn open(browsers: &Arc<Browsers>, last_event_id: &str) -> EventLoop {
        let id = ContextId::of(&FlagContext::user("alice"));
        let stream = browsers.open(id, StreamLimits { total: 10, per_context: 10 }).unwrap();
        let provider = FlipswitchProvider::in_memory(json!({}));
        EventLoop::new(stream, provider, Kind::Ofrep, Duration::ZERO, last_event_id)
    }

    fn has_event(bytes: Option<Bytes>) -> bool {
        str::from_utf8(&bytes.unwrap()).unwrap().contains("refetchEvaluation")
    }

    #[tokio::test]
    async fn a_stream_begins_with_an_event_unless_the_last_one_is_known_and_long_ago() {
        let browsers = browsers();
        let known = browsers.id(browsers.latest());
        assert!(has_event(open(&browsers, &known).next().await), "answers may not be settled yet");
        browsers.heard_before(2 * SETTLED_AFTER);
        assert!(!has_event(open(&browsers, &known).next().await));
        for other in ["", "1.1", "x"] {
            assert!(has_event(open(&browsers, other).next().await), "{other}");
        }
        browsers.changed(None);
        browsers.heard_before(2 * SETTLED_AFTER);
        assert!(has_event(open(&browsers, &known).next().await));
    }

    #[tokio::test(start_paused = true)]
    async fn comments_become_rarer_and_a_stream_ends() {
        let (browsers, began) = (browsers(), Instant::now());
        let mut events = open(&browsers, "");
        browsers.answered(ContextId::of(&FlagContext::user("alice")), 1, true);
        assert!(has_event(events.next().await));
        let mut comments = Vec::new();
        while let Some(bytes) = events.next().await {
            assert_eq!(bytes, ":\n\n");
            comments.push(began.elapsed().as_secs());
        }
        assert_eq!(comments[..7], [1, 3, 7, 15, 31, 51, 71], "{comments:?}");
        assert!((MAX_AGE..=MAX_AGE.mul_f64(1.25) + COMMENT_AFTER).contains(&began.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_browser_without_a_settled_answer_is_asked_again_and_again_and_one_that_is_elsewhere_once() {
        let times = async |answers: bool| {
            let (browsers, began) = (browsers(), Instant::now());
            let mut events = open(&browsers, "");
            let mut times = Vec::new();
            while began.elapsed() < Duration::from_secs(250) {
                if has_event(events.next().await) {
                    times.push(began.elapsed().as_secs());
                    if answers {
                        browsers.answered(ContextId::of(&FlagContext::user("alice")), 1, false);
                    }
                }
            }
            times
        };
        assert_eq!(times(false).await, [0, 1]);
        assert_eq!(times(true).await, [0, 1, 6, 16, 36, 76, 136, 196, 256]);
    }

    #[tokio::test]
    async fn draining_ends_a_stream_and_counts_it_no_more() {
        let browsers = browsers();
        let mut events = open(&browsers, "");
        events.next().await;
        browsers.drain();
        assert_eq!(events.next().await, None);
        drop(events);
        assert_eq!(browsers.open_streams(), 0);
    }
}
