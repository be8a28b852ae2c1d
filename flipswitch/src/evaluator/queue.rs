//! Requests that wait to be sent, and which of them is next. No I/O.

use std::collections::{BTreeMap, HashMap};

/// Maximum size of the contexts of all waiting requests, in bytes.
const MAX_BYTES: usize = 16 << 20;

/// Requests in the order in which they are sent. Requests that an evaluation is waiting for come before all others, and among
/// them the newest come first, because the evaluations that are waiting for older ones will soon time out. Contexts with flags
/// get two turns for each turn of contexts without flags.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    kinds: [Kind<T>; 2],
    /// Where each request is, by its id.
    places: HashMap<u64, Place>,
    max_requests: usize,
    bytes: usize,
    last_number: u64,
    turn: u8,
}

/// The requests of one kind of context, by ascending numbers.
#[derive(Debug)]
struct Kind<T> {
    waited_for: BTreeMap<u64, Queued<T>>,
    /// Requests that no evaluation is waiting for any more.
    abandoned: BTreeMap<u64, Queued<T>>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    kind: usize,
    number: u64,
}

/// A waiting request.
#[derive(Debug)]
pub(crate) struct Queued<T> {
    pub(crate) id: u64,
    /// Whether the context already has flags.
    pub(crate) is_known: bool,
    /// Bytes of the context.
    pub(crate) bytes: usize,
    pub(crate) item: T,
}

impl<T> Queue<T> {
    pub(crate) fn new(max_requests: usize) -> Self {
        Self {
            kinds: [(); 2].map(|()| Kind { waited_for: BTreeMap::new(), abandoned: BTreeMap::new() }),
            places: HashMap::new(),
            max_requests,
            bytes: 0,
            last_number: 0,
            turn: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn contains(&self, id: u64) -> bool {
        self.places.contains_key(&id)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Adds a request. Returns the requests that it displaced: first the oldest requests that no evaluation waits for, then the
    /// oldest requests for contexts without flags. The new request itself may be displaced.
    pub(crate) fn push(&mut self, queued: Queued<T>) -> Vec<T> {
        self.bytes += queued.bytes;
        self.insert(queued);
        let mut displaced = Vec::new();
        while self.len() > self.max_requests || self.bytes > MAX_BYTES {
            let Some(oldest) = self.oldest() else { break };
            displaced.extend(self.remove(oldest));
        }
        displaced
    }

    /// Removes a request.
    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let Place { kind, number } = self.places.remove(&id)?;
        let kind = &mut self.kinds[kind];
        let queued = kind.waited_for.remove(&number).or_else(|| kind.abandoned.remove(&number))?;
        self.bytes -= queued.bytes;
        Some(queued.item)
    }

    /// Makes a request the newest one of its kind, because an evaluation is waiting for it again.
    pub(crate) fn renew(&mut self, id: u64) {
        let Some(Place { kind, number }) = self.places.get(&id).copied() else { return };
        let kind = &mut self.kinds[kind];
        if let Some(queued) = kind.waited_for.remove(&number).or_else(|| kind.abandoned.remove(&number)) {
            self.insert(queued);
        }
    }

    /// Removes and returns the next request. `is_waited_for` returns whether an evaluation is still waiting for a request.
    /// Requests for contexts without flags are considered only if `includes_new` is set.
    pub(crate) fn pop(&mut self, includes_new: bool, is_waited_for: impl Fn(&T) -> bool) -> Option<Queued<T>> {
        let kinds: &[usize] = match (includes_new, self.turn) {
            (false, _) => &[0],
            (true, 2) => &[1, 0],
            (true, _) => &[0, 1],
        };
        let abandoned = || kinds.iter().map(|kind| (*kind, true));
        let next = kinds.iter().map(|kind| (*kind, false)).chain(abandoned()).find_map(|(kind, is_abandoned)| {
            let Kind { waited_for, abandoned } = &mut self.kinds[kind];
            if !is_abandoned {
                while let Some(newest) = waited_for.last_entry() {
                    if is_waited_for(&newest.get().item) {
                        return Some(newest.remove());
                    }
                    let (number, queued) = newest.remove_entry();
                    abandoned.insert(number, queued);
                }
                return None;
            }
            abandoned.pop_last().map(|(_, queued)| queued)
        })?;
        self.turn = (self.turn + 1) % 3;
        self.places.remove(&next.id);
        self.bytes -= next.bytes;
        Some(next)
    }

    fn insert(&mut self, queued: Queued<T>) {
        self.last_number += 1;
        let place = Place { kind: usize::from(!queued.is_known), number: self.last_number };
        self.places.insert(queued.id, place);
        self.kinds[place.kind].waited_for.insert(place.number, queued);
    }

    /// Returns the request that is displaced next.
    fn oldest(&self) -> Option<u64> {
        let [known, new] = &self.kinds;
        let lists = [&new.abandoned, &known.abandoned, &new.waited_for, &known.waited_for];
        lists.into_iter().find_map(|requests| requests.first_key_value()).map(|(_, queued)| queued.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued(id: u64, is_known: bool) -> Queued<u64> {
        Queued { id, is_known, bytes: 10, item: id }
    }

    fn order(queue: &mut Queue<u64>, abandoned: &[u64]) -> Vec<u64> {
        std::iter::from_fn(|| queue.pop(true, |id| !abandoned.contains(id)).map(|queued| queued.id)).collect()
    }

    #[test]
    fn the_newest_awaited_request_goes_first_and_kinds_take_turns() {
        let mut queue = Queue::new(100);
        for id in 1..=6 {
            assert!(queue.push(queued(id, true)).is_empty());
            assert!(queue.push(queued(10 + id, false)).is_empty());
        }
        queue.renew(1);
        assert_eq!(order(&mut queue, &[6, 5, 16]), [1, 4, 15, 3, 2, 14, 13, 12, 11, 6, 5, 16]);
        assert!(queue.is_empty() && queue.bytes == 0);
    }

    #[test]
    fn contexts_without_flags_wait_while_none_of_them_may_be_sent() {
        let mut queue = Queue::new(100);
        queue.push(queued(1, false));
        assert!(queue.pop(false, |_| true).is_none());
        queue.push(queued(2, true));
        assert_eq!(queue.pop(false, |_| true).map(|queued| queued.id), Some(2));
        assert_eq!(queue.pop(true, |_| true).map(|queued| queued.id), Some(1));
    }

    #[test]
    fn a_full_queue_drops_the_least_useful_request() {
        let mut queue = Queue::new(3);
        for id in 1..=3 {
            assert!(queue.push(queued(id, id == 3)).is_empty());
        }
        assert_eq!(queue.push(queued(4, false)), [1], "the oldest without flags");
        assert_eq!(queue.push(queued(5, true)), [2]);
        assert_eq!(queue.push(queued(6, true)), [4]);
        assert_eq!(queue.push(queued(7, false)), [7], "it displaces no context with flags");
        assert_eq!(queue.push(queued(8, true)), [3], "the oldest");
        assert_eq!(queue.len(), 3);
        queue.push(Queued { bytes: MAX_BYTES, ..queued(9, true) });
        assert_eq!(queue.len(), 1, "bytes are limited as well");
    }

    #[test]
    fn a_removed_request_is_gone() {
        let mut queue = Queue::new(3);
        queue.push(queued(1, true));
        assert_eq!((queue.remove(1), queue.remove(1)), (Some(1), None));
        queue.renew(1);
        assert!(queue.pop(true, |_| true).is_none() && queue.is_empty());
    }
}
