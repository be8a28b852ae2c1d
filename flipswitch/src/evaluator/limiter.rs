//! Limits how many requests are in flight and how many are sent each second, and determines which one is next.

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::evaluator::{
    pacer::Pacer,
    queue::{Queue, Queued},
};

/// Permits for a service that has just recovered. They double with every [`ANSWERS_TO_DOUBLE`] responses.
const RECOVERY_PERMITS: usize = 4;
const ANSWERS_TO_DOUBLE: usize = 10;

/// The permits are halved at most once in this interval.
const HALVE_INTERVAL: Duration = Duration::from_secs(1);

/// How often the queue is checked while the rate is limited and all permits are in use.
const PACE: Duration = Duration::from_millis(5);

/// Maximum number of slow requests without a permit, if requests for other contexts are faster.
const MAX_SLOW: usize = 64;

/// Maximum number of slow requests without a permit, as a multiple of the permits, if all requests are slow. With the default
/// `request_timeout`, this allows each permit one slow request every two seconds.
const MAX_SLOW_PER_PERMIT: usize = 5;

/// Hands out permits for requests. Limits how many requests are in flight, and how fast they are sent.
#[derive(Clone)]
pub(crate) struct Limiter(Arc<Mutex<State>>);

struct State {
    max_permits: usize,
    /// Current number of permits: fewer than the maximum while the service is recovering.
    permits: usize,
    /// Responses since the number of permits last changed.
    answers: usize,
    halved_at: Option<Instant>,
    /// Permits in use.
    held: usize,
    /// Permits in use for contexts without flags.
    held_by_new: usize,
    /// Slow requests without a permit, the oldest first.
    slow: VecDeque<Slow>,
    /// When the latest request that received a response was sent: for contexts without flags, and for contexts with flags.
    answered_sent: [Option<Instant>; 2],
    queue: Queue<Waiting>,
    pacer: Pacer,
    /// Whether a task is waiting until the next request may be sent.
    is_paced: bool,
}

struct Waiting {
    grant: oneshot::Sender<Permit>,
    is_waited_for: Box<dyn Fn() -> bool + Send>,
}

struct Slow {
    id: u64,
    is_known: bool,
    since: Instant,
    /// Dropped to cancel the request.
    _cancel: oneshot::Sender<()>,
}

/// A request that needs a permit.
pub(crate) struct Ticket {
    /// Identifies the request.
    pub(crate) id: u64,
    /// Whether the context already has flags.
    pub(crate) is_known: bool,
    /// Bytes of the context.
    pub(crate) bytes: usize,
    /// Returns whether an evaluation is waiting for the request.
    pub(crate) is_waited_for: Box<dyn Fn() -> bool + Send>,
}

/// Permission for one request. Returned when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    limiter: Limiter,
    id: u64,
    is_known: bool,
    is_slow: bool,
}

/// Too many requests are waiting, or this one has waited for too long.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct QueueFull;

impl Limiter {
    pub(crate) fn new(permits: usize, max_queued: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            max_permits: permits,
            permits,
            answers: 0,
            halved_at: None,
            held: 0,
            held_by_new: 0,
            slow: VecDeque::new(),
            answered_sent: [None; 2],
            queue: Queue::new(max_queued),
            pacer: Pacer::default(),
            is_paced: false,
        })))
    }

    /// Takes a permit, or returns a [`Wait`] for one. Dropping the wait removes the request from the queue.
    pub(crate) fn acquire(&self, ticket: Ticket, now: Instant) -> Result<Permit, Wait> {
        let Ticket { id, is_known, bytes, is_waited_for } = ticket;
        let mut state = self.0.lock();
        if state.queue.is_empty() && state.may_grant(is_known) && state.pacer.next(now) <= now {
            state.take(is_known, now);
            return Ok(Permit { limiter: self.clone(), id, is_known, is_slow: false });
        }
        let (grant, mut granted) = oneshot::channel();
        let displaced = state.queue.push(Queued { id, is_known, bytes, item: Waiting { grant, is_waited_for } });
        // A request for a context with flags may be sent even if others are waiting.
        let granted_now = self.grant(&mut state, now);
        drop(state);
        drop((displaced, granted_now));
        if let Ok(permit) = granted.try_recv() {
            return Ok(permit);
        }
        Err(Wait { limiter: self.clone(), id, granted })
    }

    /// Records that an evaluation is waiting again for a queued request.
    pub(crate) fn renew(&self, id: u64) {
        self.0.lock().queue.renew(id);
    }

    /// Returns whether a request is waiting to be sent.
    pub(crate) fn is_queued(&self, id: u64) -> bool {
        self.0.lock().queue.contains(id)
    }

    /// Records that a request received a response.
    pub(crate) fn answered(&self, now: Instant) {
        let mut state = self.0.lock();
        state.pacer.answered(now);
        if state.permits < state.max_permits {
            state.answers += 1;
            if state.answers >= ANSWERS_TO_DOUBLE {
                state.answers = 0;
                state.permits = (2 * state.permits).min(state.max_permits);
                let granted = self.grant(&mut state, now);
                drop(state);
                drop(granted);
            }
        }
    }

    /// Records that a request that was sent at `sent` received a response.
    pub(crate) fn answered_sent(&self, is_known: bool, sent: Instant) {
        let answered = &mut self.0.lock().answered_sent[usize::from(is_known)];
        *answered = (*answered).max(Some(sent));
    }

    /// Records that the service rate-limited a request. Returns when the next one may be sent.
    pub(crate) fn limited(&self, sent: Instant, now: Instant, retry_after: Option<Duration>) -> Duration {
        self.0.lock().pacer.limited(sent, now, retry_after)
    }

    /// Returns when the service's limit allows the next request. Returns `now` if it already allows one.
    pub(crate) fn blocked_until(&self, now: Instant) -> Instant {
        self.0.lock().pacer.blocked_until(now)
    }

    /// Begins with few permits, because the service has just recovered.
    pub(crate) fn recover(&self) {
        let mut state = self.0.lock();
        state.permits = RECOVERY_PERMITS.min(state.max_permits);
        state.answers = 0;
    }

    /// Discards the service's limits, because they may apply only to the previous API key.
    pub(crate) fn key_replaced(&self) {
        self.0.lock().pacer = Pacer::default();
    }

    /// Halves the permits, because the service does not respond.
    pub(crate) fn halve(&self, now: Instant) {
        let mut state = self.0.lock();
        if state.halved_at.is_none_or(|halved_at| now >= halved_at + HALVE_INTERVAL) {
            state.halved_at = Some(now);
            state.permits = (state.permits / 2).max(RECOVERY_PERMITS.min(state.max_permits));
            state.answers = 0;
        }
    }

    /// Returns whether the caller must call [`pace`](Self::pace) from now on, because no other task does so.
    pub(crate) fn needs_pacing(&self, now: Instant) -> bool {
        let mut state = self.0.lock();
        let is_needed = !state.queue.is_empty() && state.pacer.per_second(now).is_some();
        is_needed && !std::mem::replace(&mut state.is_paced, true)
    }

    /// Hands out the permits that the rate allows. Returns when to call this again, or `None` if no request is waiting.
    pub(crate) fn pace(&self, now: Instant) -> Option<Instant> {
        let mut state = self.0.lock();
        let granted = self.grant(&mut state, now);
        let next = state.pacer.next(now).max(now + PACE);
        state.is_paced = !state.queue.is_empty() && state.pacer.per_second(now).is_some();
        let next = state.is_paced.then_some(next);
        drop(state);
        drop(granted);
        next
    }

    /// Records that the task that called [`pace`](Self::pace) was dropped.
    pub(crate) fn pacing_dropped(&self) {
        self.0.lock().is_paced = false;
    }

    /// Returns how many requests are waiting to be sent.
    pub(crate) fn queued(&self) -> usize {
        self.0.lock().queue.len()
    }

    /// Returns the maximum number of requests that are sent per second.
    pub(crate) fn per_second(&self, now: Instant) -> Option<f64> {
        self.0.lock().pacer.per_second(now)
    }

    /// Hands out permits. Returns those whose requests have just been dropped. The caller must drop them without holding the
    /// lock.
    fn grant(&self, state: &mut State, now: Instant) -> Vec<Permit> {
        let mut unused = Vec::new();
        while state.may_grant(true) && state.pacer.next(now) <= now {
            let includes_new = state.may_grant(false);
            let Some(Queued { id, is_known, item, .. }) =
                state.queue.pop(includes_new, |waiting| (waiting.is_waited_for)())
            else {
                break;
            };
            state.take(is_known, now);
            let permit = Permit { limiter: self.clone(), id, is_known, is_slow: false };
            unused.extend(item.grant.send(permit).err());
        }
        unused
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter").finish_non_exhaustive()
    }
}

impl State {
    /// Returns whether a permit is free. Contexts without flags hold at most half of them.
    fn may_grant(&self, is_known: bool) -> bool {
        self.held < self.permits && (is_known || self.held_by_new < self.permits.div_ceil(2))
    }

    fn take(&mut self, is_known: bool, now: Instant) {
        self.held += 1;
        self.held_by_new += usize::from(!is_known);
        self.pacer.sent(now);
    }

    fn give_back(&mut self, is_known: bool) {
        self.held -= 1;
        self.held_by_new -= usize::from(!is_known);
    }
}

/// A request that waits for its permit.
pub(crate) struct Wait {
    limiter: Limiter,
    id: u64,
    granted: oneshot::Receiver<Permit>,
}

impl Wait {
    /// Waits for the permit.
    ///
    /// # Errors
    ///
    /// [`QueueFull`] if the request is displaced from the queue.
    pub(crate) async fn granted(&mut self) -> Result<Permit, QueueFull> {
        (&mut self.granted).await.map_err(|_| QueueFull)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let waiting = self.limiter.0.lock().queue.remove(self.id);
        drop(waiting);
    }
}

impl Permit {
    /// Returns the permit because no request was sent with it.
    pub(crate) fn unused(self, now: Instant) {
        self.limiter.0.lock().pacer.unsent(now);
    }

    /// Returns the permit early, because the request is slow. The request continues until the receiver resolves.
    ///
    /// If there are too many such requests, the oldest ones are cancelled, beginning with those for contexts without flags. A
    /// slow request is cancelled only if it was overtaken: a request for a context of the same kind was sent after it had become
    /// slow, and has received a response. If all requests are slow, cancelling them would only repeat them, and none would ever
    /// receive a response.
    ///
    /// Keeps the permit and returns `None` if there are too many slow requests and none can be cancelled.
    pub(crate) fn release_slow(&mut self, now: Instant) -> Option<oneshot::Receiver<()>> {
        let mut state = self.limiter.0.lock();
        let mut cancelled = None;
        if state.slow.len() >= MAX_SLOW {
            let answered = state.answered_sent;
            let is_overtaken = |slow: &Slow| Some(slow.since) < answered[usize::from(slow.is_known)];
            let of_kind = |is_known| state.slow.iter().position(|slow| slow.is_known == is_known && is_overtaken(slow));
            match of_kind(false).or_else(|| of_kind(true)) {
                Some(overtaken) => cancelled = state.slow.remove(overtaken),
                None if state.slow.len() < MAX_SLOW_PER_PERMIT * state.max_permits => {}
                None => return None,
            }
        }
        let (cancel, is_cancelled) = oneshot::channel();
        state.slow.push_back(Slow { id: self.id, is_known: self.is_known, since: now, _cancel: cancel });
        self.is_slow = true;
        state.give_back(self.is_known);
        let granted = self.limiter.grant(&mut state, now);
        drop(state);
        drop((cancelled, granted));
        Some(is_cancelled)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.limiter.0.lock();
        if self.is_slow {
            state.slow.retain(|slow| slow.id != self.id);
            return;
        }
        state.give_back(self.is_known);
        let granted = self.limiter.grant(&mut state, Instant::now());
        drop(state);
        drop(granted);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task::spawn};

    use super::*;

    fn ticket(is_known: bool) -> Ticket {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let id = LAST_ID.fetch_add(1, Ordering::Relaxed);
        Ticket { id, is_known, bytes: 10, is_waited_for: Box::new(|| true) }
    }

    fn granted(limiter: &Limiter, is_known: bool) -> Permit {
        limiter.acquire(ticket(is_known), Instant::now()).ok().unwrap()
    }

    fn waits(limiter: &Limiter, is_known: bool) -> Wait {
        limiter.acquire(ticket(is_known), Instant::now()).err().unwrap()
    }

    #[test]
    fn a_returned_permit_goes_to_the_newest_request() {
        let limiter = Limiter::new(1, 100);
        let permit = granted(&limiter, true);
        let (mut first, mut second) = (waits(&limiter, true), waits(&limiter, true));
        drop(permit);
        let permit = assert_ready_ok!(spawn(second.granted()).poll());
        assert_pending!(spawn(first.granted()).poll());
        drop(permit);
        assert_ready_ok!(spawn(first.granted()).poll());
    }

    #[test]
    fn a_dropped_wait_loses_no_permit() {
        let limiter = Limiter::new(1, 100);
        let permit = granted(&limiter, true);
        drop(waits(&limiter, true));
        drop(permit);
        let permit = granted(&limiter, true);
        // Granted, and dropped before it was polled.
        let waiting = waits(&limiter, true);
        drop(permit);
        drop(waiting);
        granted(&limiter, true);
    }

    #[test]
    fn contexts_without_flags_hold_half_of_the_permits() {
        let limiter = Limiter::new(4, 100);
        let new = [granted(&limiter, false), granted(&limiter, false)];
        let mut third = waits(&limiter, false);
        let _known = [granted(&limiter, true), granted(&limiter, true)];
        assert_pending!(spawn(third.granted()).poll());
        drop(new);
        assert_ready_ok!(spawn(third.granted()).poll());
    }

    #[test]
    fn a_displaced_request_fails() {
        let limiter = Limiter::new(1, 1);
        let _permit = granted(&limiter, true);
        let (mut first, mut second) = (waits(&limiter, false), waits(&limiter, true));
        assert!(assert_ready!(spawn(first.granted()).poll()).err() == Some(QueueFull));
        assert_pending!(spawn(second.granted()).poll());
    }

    /// Sends slow requests that return their permits. The one with the number `new` is for a context without flags.
    fn slow(limiter: &Limiter, count: usize, new: usize, now: Instant) -> Vec<(Permit, oneshot::Receiver<()>)> {
        let send = |number| {
            let mut permit = granted(limiter, number != new);
            let cancelled = permit.release_slow(now).unwrap();
            (permit, cancelled)
        };
        (0..count).map(send).collect()
    }

    #[test]
    fn slow_requests_return_their_permits_and_the_oldest_overtaken_one_is_cancelled() {
        let (limiter, now) = (Limiter::new(1, 100), Instant::now());
        let mut slow = slow(&limiter, MAX_SLOW, 3, now);
        limiter.answered_sent(false, now);
        assert!(granted(&limiter, true).release_slow(now).is_none(), "none was overtaken");
        limiter.answered_sent(false, now + Duration::from_millis(1));
        let mut next = granted(&limiter, true);
        let cancelled = next.release_slow(now);
        assert!(cancelled.is_some());
        for (number, (_, cancelled)) in slow.iter_mut().enumerate() {
            let mut cancelled = spawn(cancelled);
            if number == 3 {
                assert_ready_err!(cancelled.poll());
            } else {
                assert_pending!(cancelled.poll());
            }
        }
        assert!(granted(&limiter, true).release_slow(now).is_none(), "all are for contexts that have flags");
        limiter.answered_sent(true, now + Duration::from_millis(1));
        assert!(granted(&limiter, true).release_slow(now).is_some(), "a later request for such a context was answered");
        assert_ready_err!(spawn(&mut slow[0].1).poll());
        drop(slow);
        assert!(granted(&limiter, true).release_slow(now).is_some());
    }

    #[test]
    fn more_slow_requests_may_be_in_flight_if_all_are_slow() {
        const PERMITS: usize = MAX_SLOW;
        let (limiter, now) = (Limiter::new(PERMITS, 100), Instant::now());
        let mut slow = slow(&limiter, MAX_SLOW_PER_PERMIT * PERMITS, 0, now);
        assert!(granted(&limiter, false).release_slow(now).is_none(), "there is a limit");
        for (_, cancelled) in &mut slow {
            assert_pending!(spawn(cancelled).poll());
        }
    }

    #[test]
    fn the_permits_of_a_recovered_service_double() {
        let (limiter, now) = (Limiter::new(16, 100), Instant::now());
        limiter.recover();
        let mut held: Vec<_> = (0..4).map(|_| granted(&limiter, true)).collect();
        let mut waiting: Vec<_> = (0..20).map(|_| waits(&limiter, true)).collect();
        for expected in [8, 16, 16] {
            (0..ANSWERS_TO_DOUBLE).for_each(|_| limiter.answered(now));
            waiting.retain_mut(|waiting| match spawn(waiting.granted()).poll() {
                std::task::Poll::Ready(permit) => {
                    held.extend(permit.ok());
                    false
                }
                std::task::Poll::Pending => true,
            });
            assert_eq!(held.len(), expected);
        }
        limiter.halve(now);
        limiter.halve(now);
        assert_eq!(limiter.0.lock().permits, 8, "at most once a second");
        (1..5).for_each(|seconds| limiter.halve(now + Duration::from_secs(seconds)));
        assert_eq!(limiter.0.lock().permits, RECOVERY_PERMITS);
    }

    #[test]
    fn permits_are_handed_out_at_the_limited_rate() {
        let (limiter, now) = (Limiter::new(16, 100), Instant::now());
        limiter.limited(now, now, Some(Duration::from_secs(2)));
        let mut waiting = limiter.acquire(ticket(true), now).err().unwrap();
        assert!(limiter.needs_pacing(now) && !limiter.needs_pacing(now));
        assert_eq!(limiter.pace(now), Some(now + Duration::from_secs(2)));
        assert_pending!(spawn(waiting.granted()).poll());
        assert_eq!(limiter.pace(now + Duration::from_secs(2)), None);
        assert_ready_ok!(spawn(waiting.granted()).poll());
    }
}
