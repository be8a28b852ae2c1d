//! Cutting off a response in the middle of its body.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use axum::{
    body::{Body, BodyDataStream, Bytes, HttpBody},
    response::Response,
};
use futures_util::{Stream, StreamExt};
use http::header;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use crate::faults::handle::{ConnectionAction, ConnectionHandle};

/// Cuts off one response, and then acts on its connection.
#[derive(Debug)]
pub(crate) struct ResponseCutter {
    pub(crate) connection: ConnectionHandle,
    cut: Mutex<Cut>,
    /// Wakes the task that sends the body.
    waker: Mutex<Option<Waker>>,
}

#[derive(Debug)]
enum Cut {
    None,
    /// Due after this many more bytes of the body.
    After(u64, ConnectionAction),
    Scheduled(ScheduledEnd),
    Done(ConnectionAction),
    Finished,
}

/// The end of a response at a certain time.
#[derive(Debug)]
pub(crate) struct ScheduledEnd {
    pub(crate) due: Instant,
    /// The action on the connection. `None` if the response ends gracefully.
    pub(crate) action: Option<ConnectionAction>,
    /// Cancels the end.
    pub(crate) removed: CancellationToken,
}

impl ResponseCutter {
    pub(crate) fn new(connection: ConnectionHandle) -> Self {
        Self { connection, cut: Mutex::new(Cut::None), waker: Mutex::default() }
    }

    /// Cuts off the response after this many more bytes of its body. Returns `false` if it has already been cut off.
    pub(crate) fn cut_after(&self, bytes: u64, action: ConnectionAction) -> bool {
        let mut cut = self.cut.lock();
        if matches!(*cut, Cut::Done(_) | Cut::Finished) {
            return false;
        }
        *cut = Cut::After(bytes, action);
        true
    }

    /// Ends the response at a certain time, unless it has been cut off before.
    pub(crate) fn schedule(&self, end: ScheduledEnd) {
        let mut cut = self.cut.lock();
        if matches!(*cut, Cut::Done(_) | Cut::Finished) {
            return;
        }
        *cut = Cut::Scheduled(end);
        drop(cut);
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
    }

    /// Returns when the response is scheduled to end. Wakes the task when that changes.
    fn scheduled(&self, waker: &Waker) -> Option<Instant> {
        *self.waker.lock() = Some(waker.clone());
        match &*self.cut.lock() {
            Cut::Scheduled(end) => Some(end.due),
            _ => None,
        }
    }

    /// Ends the response if its end is scheduled, unless the fault has been removed.
    fn end_as_scheduled(&self) {
        let mut cut = self.cut.lock();
        let Cut::Scheduled(end) = &*cut else { return };
        let is_removed = end.removed.is_cancelled();
        match end.action {
            _ if is_removed => *cut = Cut::None,
            None => *cut = Cut::Finished,
            Some(action) => {
                *cut = Cut::Done(action);
                self.connection.act_now(action);
            }
        }
    }

    /// Returns whether the response has been cut off.
    pub(crate) fn is_cut(&self) -> bool {
        matches!(*self.cut.lock(), Cut::Done(_) | Cut::Finished)
    }

    /// Returns whether the response ends gracefully here.
    fn is_finished(&self) -> bool {
        matches!(*self.cut.lock(), Cut::Finished)
    }

    /// Silences the connection, even if there is no response yet.
    pub(crate) fn silence(&self) {
        *self.cut.lock() = Cut::Done(ConnectionAction::Silence);
        self.connection.silence();
    }

    /// Closes the connection if it has been silenced, or cancels the cut that would silence it later.
    pub(crate) fn release(&self) {
        let mut cut = self.cut.lock();
        match *cut {
            Cut::After(0, ConnectionAction::Silence) | Cut::Done(ConnectionAction::Silence) => {
                self.connection.act_now(ConnectionAction::Close);
            }
            Cut::After(_, ConnectionAction::Silence) => *cut = Cut::None,
            _ => {}
        }
    }

    /// Cuts off the response if that is due here, or if the body ends. Returns whether it has been cut off.
    fn cut_if_due(&self, at_end: bool) -> bool {
        let mut cut = self.cut.lock();
        if let Cut::After(left, action) = *cut
            && (left == 0 || at_end)
        {
            *cut = Cut::Done(action);
            self.connection.act_after_flush(action);
        }
        matches!(*cut, Cut::Done(_))
    }

    /// Counts bytes that are ready to be sent. Returns how many of them may be sent.
    fn admit(&self, bytes: usize) -> usize {
        match &mut *self.cut.lock() {
            Cut::None | Cut::Scheduled(_) => bytes,
            Cut::After(left, _) => {
                let admitted = usize::try_from(*left).map_or(bytes, |left| left.min(bytes));
                *left -= admitted as u64;
                admitted
            }
            Cut::Done(_) | Cut::Finished => 0,
        }
    }
}

/// Lets the cutter cut off a response.
pub(crate) fn cuttable(response: Response, cutter: Arc<ResponseCutter>) -> Response {
    let left = response.body().size_hint().exact();
    set_content_length(response)
        .map(|body| Body::from_stream(CuttableBody { body: body.into_data_stream(), cutter, left, timer: None }))
}

/// Sets the `Content-Length`. The server itself only does so for bodies whose length it knows.
pub(crate) fn set_content_length(mut response: Response) -> Response {
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    response
}

struct CuttableBody {
    body: BodyDataStream,
    cutter: Arc<ResponseCutter>,
    /// The bytes that remain of a body of known length.
    left: Option<u64>,
    /// Wakes the task when the response is scheduled to end.
    timer: Option<Pin<Box<Sleep>>>,
}

impl CuttableBody {
    fn is_end_due(&mut self, context: &mut Context<'_>) -> bool {
        let Some(due) = self.cutter.scheduled(context.waker()) else { return false };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(context).is_ready()
    }
}

impl Stream for CuttableBody {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.is_end_due(context) {
                self.cutter.end_as_scheduled();
            }
            if self.cutter.is_finished() {
                return Poll::Ready(None);
            }
            if self.cutter.cut_if_due(false) {
                // The body stays pending until the connection ends.
                return Poll::Pending;
            }
            match ready!(self.body.poll_next_unpin(context)) {
                Some(Ok(mut bytes)) => {
                    let admitted = self.cutter.admit(bytes.len());
                    bytes.truncate(admitted);
                    if let Some(left) = &mut self.left {
                        *left = left.saturating_sub(admitted as u64);
                    }
                    // A body that is complete is not polled again.
                    self.cutter.cut_if_due(self.left == Some(0));
                    if !bytes.is_empty() {
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                }
                None if self.cutter.cut_if_due(true) => return Poll::Pending,
                end => return Poll::Ready(end),
            }
        }
    }
}
