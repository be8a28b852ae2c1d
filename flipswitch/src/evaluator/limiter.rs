//! How many requests may be on the wire, and who is next.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::{Mutex, MutexGuard};

use tokio::sync::oneshot;

/// At most this many wait for a slot.
const WAITING: usize = 1_024;

/// A number of slots. Those who wait are served in order, contexts that are known before those that are not.
#[derive(Clone)]
pub(crate) struct Slots(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    known: VecDeque<oneshot::Sender<Slot>>,
    unknown: VecDeque<oneshot::Sender<Slot>>,
}

/// A slot; free again when dropped.
#[derive(Debug)]
pub(crate) struct Slot(Option<Arc<Mutex<State>>>);

/// Too many wait already.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Crowded;

impl Slots {
    pub(crate) fn new(free: usize) -> Self {
        Self(Arc::new(Mutex::new(State { free, known: VecDeque::new(), unknown: VecDeque::new() })))
    }

    /// Waits for a slot.
    ///
    /// # Errors
    ///
    /// [`Crowded`] at once if 1 024 wait already, or later if it had to give way to a context that is known.
    pub(crate) async fn acquire(&self, known: bool) -> Result<Slot, Crowded> {
        let granted = {
            let mut state = lock(&self.0);
            if state.free > 0 {
                state.free -= 1;
                return Ok(Slot(Some(Arc::clone(&self.0))));
            }
            // Those who gave up are still in the queues; they do not count.
            if state.known.len() + state.unknown.len() >= WAITING {
                state.known.retain(|waiter| !waiter.is_closed());
                state.unknown.retain(|waiter| !waiter.is_closed());
            }
            // The last of the unknown gives way to a known one; its sender is dropped, which it hears.
            if state.known.len() + state.unknown.len() >= WAITING && !(known && state.unknown.pop_back().is_some()) {
                return Err(Crowded);
            }
            let (grant, granted) = oneshot::channel();
            if known {
                state.known.push_back(grant);
            } else {
                state.unknown.push_back(grant);
            }
            granted
        };
        granted.await.map_err(|_| Crowded)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(state) = self.0.take() else { return };
        loop {
            let mut locked = lock(&state);
            let waiter = locked.known.pop_front();
            let Some(waiter) = waiter.or_else(|| locked.unknown.pop_front()) else {
                locked.free += 1;
                return;
            };
            drop(locked);
            match waiter.send(Slot(Some(Arc::clone(&state)))) {
                Ok(()) => return,
                // Whoever waited gave up: the next one then.
                Err(mut slot) => slot.0 = None,
            }
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock()
}

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task::spawn};

    use super::*;

    #[test]
    fn known_contexts_go_first_and_each_kind_in_order() {
        let slots = Slots::new(1);
        let slot = assert_ready_ok!(spawn(slots.acquire(false)).poll());
        let mut waiting = [false, false, true, true].map(|known| spawn(slots.acquire(known)));
        for waiter in &mut waiting {
            assert_pending!(waiter.poll());
        }
        let (mut held, mut served) = (Some(slot), Vec::new());
        for next in [2, 3, 0, 1] {
            drop(held.take());
            // Everybody else still waits.
            for (other, waiter) in waiting.iter_mut().enumerate().filter(|(other, _)| served.iter().all(|s| s != other))
            {
                if other == next {
                    held = Some(assert_ready_ok!(waiter.poll()));
                } else {
                    assert_pending!(waiter.poll());
                }
            }
            served.push(next);
        }
    }

    #[test]
    fn who_gives_up_loses_no_slot() {
        let slots = Slots::new(1);
        let slot = assert_ready_ok!(spawn(slots.acquire(true)).poll());
        let mut gives_up = spawn(slots.acquire(true));
        assert_pending!(gives_up.poll());
        drop(gives_up);
        drop(slot);
        let slot = assert_ready_ok!(spawn(slots.acquire(true)).poll());
        // Granted, and dropped before it was looked at.
        let mut granted = spawn(slots.acquire(true));
        assert_pending!(granted.poll());
        drop(slot);
        drop(granted);
        assert_ready_ok!(spawn(slots.acquire(true)).poll());
    }

    #[test]
    fn the_queue_is_bounded_and_the_unknown_give_way() {
        let slots = Slots::new(1);
        let _slot = assert_ready_ok!(spawn(slots.acquire(true)).poll());
        let mut waiting: Vec<_> = (0..WAITING).map(|_| spawn(slots.acquire(false))).collect();
        for waiter in &mut waiting {
            assert_pending!(waiter.poll());
        }
        assert!(matches!(spawn(slots.acquire(false)).poll(), std::task::Poll::Ready(Err(Crowded))));
        let mut known = spawn(slots.acquire(true));
        assert_pending!(known.poll());
        assert!(assert_ready_err!(waiting[WAITING - 1].poll()) == Crowded);
        // One that gave up makes room.
        drop(waiting.remove(0));
        assert_pending!(spawn(slots.acquire(false)).poll());
    }
}
