//! How many requests may be in flight, and which one is next.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// How many requests may wait for a permit.
const MAX_WAITING: usize = 1_024;

/// A number of permits. Waiting requests are served in order, those of cached contexts before all others.
#[derive(Clone)]
pub(crate) struct Limiter(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    /// Waiting requests for contexts that are cached.
    cached: VecDeque<oneshot::Sender<Permit>>,
    /// Waiting requests for all other contexts.
    uncached: VecDeque<oneshot::Sender<Permit>>,
}

/// Permission for one request. Returned when dropped.
#[derive(Debug)]
pub(crate) struct Permit(Option<Arc<Mutex<State>>>);

/// Too many requests are waiting.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct QueueFull;

impl Limiter {
    pub(crate) fn new(permits: usize) -> Self {
        Self(Arc::new(Mutex::new(State { free: permits, cached: VecDeque::new(), uncached: VecDeque::new() })))
    }

    /// Waits for a permit.
    ///
    /// # Errors
    ///
    /// [`QueueFull`] immediately if 1 024 requests are waiting, or later if this one is displaced by one for a cached
    /// context.
    pub(crate) async fn acquire(&self, is_cached: bool) -> Result<Permit, QueueFull> {
        let granted = {
            let mut state = self.0.lock();
            if state.free > 0 {
                state.free -= 1;
                return Ok(Permit(Some(Arc::clone(&self.0))));
            }
            // Requests that gave up are still queued, and do not count.
            if state.cached.len() + state.uncached.len() >= MAX_WAITING {
                state.cached.retain(|waiter| !waiter.is_closed());
                state.uncached.retain(|waiter| !waiter.is_closed());
            }
            // Dropping the sender tells the displaced request.
            let is_full = state.cached.len() + state.uncached.len() >= MAX_WAITING;
            if is_full && !(is_cached && state.uncached.pop_back().is_some()) {
                return Err(QueueFull);
            }
            let (grant, granted) = oneshot::channel();
            if is_cached {
                state.cached.push_back(grant);
            } else {
                state.uncached.push_back(grant);
            }
            granted
        };
        granted.await.map_err(|_| QueueFull)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(state) = self.0.take() else { return };
        loop {
            let mut locked = state.lock();
            let waiter = locked.cached.pop_front();
            let Some(waiter) = waiter.or_else(|| locked.uncached.pop_front()) else {
                locked.free += 1;
                return;
            };
            drop(locked);
            match waiter.send(Permit(Some(Arc::clone(&state)))) {
                Ok(()) => return,
                // That request gave up, so the next one is tried.
                Err(mut permit) => permit.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task::spawn};

    use super::*;

    #[test]
    fn cached_contexts_go_first_and_each_kind_in_order() {
        let limiter = Limiter::new(1);
        let permit = assert_ready_ok!(spawn(limiter.acquire(false)).poll());
        let mut waiting = [false, false, true, true].map(|is_cached| spawn(limiter.acquire(is_cached)));
        for waiter in &mut waiting {
            assert_pending!(waiter.poll());
        }
        let (mut held, mut served) = (Some(permit), Vec::new());
        for next in [2, 3, 0, 1] {
            drop(held.take());
            // All others still wait.
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
    fn giving_up_loses_no_permit() {
        let limiter = Limiter::new(1);
        let permit = assert_ready_ok!(spawn(limiter.acquire(true)).poll());
        let mut gives_up = spawn(limiter.acquire(true));
        assert_pending!(gives_up.poll());
        drop(gives_up);
        drop(permit);
        let permit = assert_ready_ok!(spawn(limiter.acquire(true)).poll());
        // Granted, and dropped before it was polled.
        let mut granted = spawn(limiter.acquire(true));
        assert_pending!(granted.poll());
        drop(permit);
        drop(granted);
        assert_ready_ok!(spawn(limiter.acquire(true)).poll());
    }

    #[test]
    fn the_queue_is_bounded_and_uncached_contexts_give_way() {
        let limiter = Limiter::new(1);
        let _permit = assert_ready_ok!(spawn(limiter.acquire(true)).poll());
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| spawn(limiter.acquire(false))).collect();
        for waiter in &mut waiting {
            assert_pending!(waiter.poll());
        }
        assert!(matches!(spawn(limiter.acquire(false)).poll(), std::task::Poll::Ready(Err(QueueFull))));
        let mut cached = spawn(limiter.acquire(true));
        assert_pending!(cached.poll());
        assert!(assert_ready_err!(waiting[MAX_WAITING - 1].poll()) == QueueFull);
        // A request that gave up makes room.
        drop(waiting.remove(0));
        assert_pending!(spawn(limiter.acquire(false)).poll());
    }
}
