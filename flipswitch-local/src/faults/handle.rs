//! What a fault tells a connection, from wherever in the service it strikes.

use std::{sync::Arc, task::Waker};

use parking_lot::Mutex;

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// No byte is sent any more and none is read, and the connection stays.
    Silence,
    /// It is closed, with a FIN.
    Close,
    /// It is closed, with a RST.
    Reset,
}

/// A handle on one connection, for those who do not own it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wire(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    now: Now,
    /// The task of the connection.
    waker: Option<Waker>,
    gone: bool,
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Now {
    pub(crate) silent: bool,
    pub(crate) order: Option<Order>,
    /// The order does not wait for bytes that cannot be sent.
    pub(crate) at_once: bool,
}

impl Wire {
    /// Gives an order that is carried out as soon as everything written so far has been sent.
    pub(crate) fn after_flush(&self, order: Order) {
        self.give(order, false);
    }

    /// Gives an order that waits only for bytes that can be sent right away.
    pub(crate) fn at_once(&self, order: Order) {
        self.give(order, true);
    }

    fn give(&self, order: Order, at_once: bool) {
        let mut state = self.0.lock();
        // Of a connection that is to end nothing else is wanted.
        if order == Order::Silence && state.now.order.is_some() {
            return;
        }
        state.now.order = Some(order);
        state.now.at_once |= at_once;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Silences a connection without waiting for anything.
    pub(crate) fn silence(&self) {
        let mut state = self.0.lock();
        state.now.silent = true;
        if state.now.order == Some(Order::Silence) {
            state.now.order = None;
        }
    }

    /// How the connection stands; `waker` hears of the next order.
    pub(crate) fn watch(&self, waker: &Waker) -> Now {
        let mut state = self.0.lock();
        match &mut state.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        state.now
    }

    /// Tells that the connection is no more.
    pub(crate) fn end(&self) {
        let mut state = self.0.lock();
        state.gone = true;
        state.waker = None;
    }

    /// Whether the connection is no more.
    pub(crate) fn is_gone(&self) -> bool {
        self.0.lock().gone
    }
}
