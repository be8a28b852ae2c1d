//! The handle through which faults act on a connection that they do not own.

use std::{sync::Arc, task::Waker};

use parking_lot::Mutex;

/// What a fault does to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionAction {
    /// Keeps it open without sending or reading anything.
    Silence,
    /// Closes it with a FIN.
    Close,
    /// Closes it with a RST.
    Reset,
}

/// A handle to one connection. Clones are handles to the same connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionHandle(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    status: ConnectionStatus,
    /// Wakes the task of the connection.
    waker: Option<Waker>,
    closed: bool,
    /// Whether it was used for the dashboard or for `/local`.
    controls: bool,
}

/// The part of a connection's status that faults determine.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ConnectionStatus {
    pub(crate) silent: bool,
    /// The action that is due.
    pub(crate) action: Option<ConnectionAction>,
    /// Whether the action is due even while bytes cannot be sent.
    pub(crate) immediate: bool,
}

impl ConnectionHandle {
    /// Requests an action once everything written so far has been sent.
    pub(crate) fn act_after_flush(&self, action: ConnectionAction) {
        self.request(action, false);
    }

    /// Requests an action now. Only bytes that can be sent without delay are sent before it.
    pub(crate) fn act_now(&self, action: ConnectionAction) {
        self.request(action, true);
    }

    fn request(&self, action: ConnectionAction, immediate: bool) {
        let mut state = self.0.lock();
        // A connection that is about to end is not silenced.
        if action == ConnectionAction::Silence && state.status.action.is_some() {
            return;
        }
        state.status.action = Some(action);
        state.status.immediate |= immediate;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Silences the connection without waiting.
    pub(crate) fn silence(&self) {
        let mut state = self.0.lock();
        state.status.silent = true;
        if state.status.action == Some(ConnectionAction::Silence) {
            state.status.action = None;
        }
    }

    /// Returns the status, and registers the waker for the next requested action.
    pub(crate) fn watch(&self, waker: &Waker) -> ConnectionStatus {
        let mut state = self.0.lock();
        match &mut state.waker {
            Some(registered) => registered.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        state.status
    }

    /// Records that the connection has been closed.
    pub(crate) fn mark_closed(&self) {
        let mut state = self.0.lock();
        state.closed = true;
        state.waker = None;
    }

    /// Records that the connection is used for the dashboard or for `/local`, which faults must not disconnect.
    pub(crate) fn mark_control(&self) {
        self.0.lock().controls = true;
    }

    /// Returns whether the connection can be silenced: it is open, not silent yet, and not used for control.
    pub(crate) fn can_be_silenced(&self) -> bool {
        let state = self.0.lock();
        !state.closed && !state.controls && !state.status.silent
    }

    /// Returns whether the connection has been closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.lock().closed
    }
}
