//! An answer on its way, which a fault may cut off.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{
    body::{Body, BodyDataStream, Bytes, HttpBody},
    response::Response,
};
use futures_util::{Stream, StreamExt};
use http::header;
use parking_lot::Mutex;

use crate::faults::handle::{ConnectionAction, ConnectionHandle};

/// One answer and the connection it is sent on.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) connection: ConnectionHandle,
    cut: Mutex<Cut>,
}

#[derive(Debug)]
enum Cut {
    No,
    /// To be cut off after this many bytes more of the body.
    After(u64, ConnectionAction),
    /// Cut off.
    Done(ConnectionAction),
}

impl Line {
    pub(crate) fn new(connection: ConnectionHandle) -> Self {
        Self { connection, cut: Mutex::new(Cut::No) }
    }

    /// Lets the answer be cut off after this many bytes more of its body; `false` if it has been cut off already.
    pub(crate) fn cut(&self, after: u64, action: ConnectionAction) -> bool {
        let mut cut = self.cut.lock();
        if matches!(*cut, Cut::Done(_)) {
            return false;
        }
        *cut = Cut::After(after, action);
        true
    }

    /// Whether the answer has been cut off.
    pub(crate) fn is_cut_off(&self) -> bool {
        matches!(*self.cut.lock(), Cut::Done(_))
    }

    /// Silences the connection, whether an answer is on its way or not.
    pub(crate) fn silence(&self) {
        *self.cut.lock() = Cut::Done(ConnectionAction::Silence);
        self.connection.silence();
    }

    /// Closes the connection if it has been silenced; if there were bytes to come before that, it is called off.
    pub(crate) fn release(&self) {
        let mut cut = self.cut.lock();
        match *cut {
            Cut::After(0, ConnectionAction::Silence) | Cut::Done(ConnectionAction::Silence) => {
                self.connection.act_now(ConnectionAction::Close)
            }
            Cut::After(_, ConnectionAction::Silence) => *cut = Cut::No,
            _ => {}
        }
    }

    /// Cuts the answer off if this is the place, as the end is if it comes earlier; returns whether it is cut off.
    fn cuts_off(&self, at_the_end: bool) -> bool {
        let mut cut = self.cut.lock();
        if let Cut::After(left, action) = *cut
            && (left == 0 || at_the_end)
        {
            *cut = Cut::Done(action);
            self.connection.act_after_flush(action);
        }
        matches!(*cut, Cut::Done(_))
    }

    /// Counts bytes that are to be sent; returns how many of them may be.
    fn pass(&self, bytes: usize) -> usize {
        match &mut *self.cut.lock() {
            Cut::No => bytes,
            Cut::After(left, _) => {
                let passed = usize::try_from(*left).map_or(bytes, |left| left.min(bytes));
                *left -= passed as u64;
                passed
            }
            Cut::Done(_) => 0,
        }
    }
}

/// The body of an answer, as far as its line lets it pass.
struct Gate {
    body: BodyDataStream,
    line: Arc<Line>,
    /// What is still to come of a body whose length was told.
    left: Option<u64>,
}

/// Sends an answer over a line.
pub(crate) fn over(line: Arc<Line>, response: Response) -> Response {
    let left = response.body().size_hint().exact();
    tell_length(response).map(|body| Body::from_stream(Gate { body: body.into_data_stream(), line, left }))
}

/// Writes the length of the body into the head, as the server would if it could see it through what is put around it.
pub(crate) fn tell_length(mut response: Response) -> Response {
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    response
}

impl Stream for Gate {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.line.cuts_off(false) {
                // The body neither goes on nor ends, until the connection does.
                return Poll::Pending;
            }
            match ready!(self.body.poll_next_unpin(context)) {
                Some(Ok(mut bytes)) => {
                    let passed = self.line.pass(bytes.len());
                    bytes.truncate(passed);
                    if let Some(left) = &mut self.left {
                        *left = left.saturating_sub(passed as u64);
                    }
                    // Nobody asks for more of a body that is complete.
                    self.line.cuts_off(self.left == Some(0));
                    if !bytes.is_empty() {
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                }
                None if self.line.cuts_off(true) => return Poll::Pending,
                end => return Poll::Ready(end),
            }
        }
    }
}
