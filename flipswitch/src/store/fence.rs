//! Which changes a flag set is certain to contain, in terms that all instances understand. No I/O.
//!
//! Each instance counts its own epochs, which have no meaning for other instances. The ids of the stream's events have the same
//! meaning for all instances. The instance that requests a flag set records the newest event that it received before the request.
//! Another instance uses the flag set as fresh only if it has received no newer event. For changes without an id, the time at
//! which the request was sent is compared.

use std::time::{Duration, Instant};

use crate::cache::epoch::{ECHO_WINDOW, EpochReading, is_in_echo_window};

/// Minimum time, by the store's clock, by which a request must follow an invalidation without an id. Two instances do
/// not read this clock in exactly the same way. Flag sets that were requested within this time of each other are ordered by
/// their fences.
pub(crate) const MARGIN: Duration = Duration::from_millis(100);

/// The ids of events that an instance had received before it sent a request. Zero if there was none since the instance started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fence {
    /// The newest event that was received. The response may still be from before it.
    pub(crate) newest: u64,
    /// The newest event whose change the response certainly contains: its echo window ended before a newer event arrived, and
    /// before the request was sent.
    pub(crate) settled: u64,
}

impl Fence {
    /// Returns the fence of a response that is certain to contain the newest event.
    pub(crate) fn after_echo(self) -> Self {
        Self { settled: self.newest, ..self }
    }

    fn covers(&self, other: &Self) -> bool {
        self.newest >= other.newest && self.settled >= other.settled
    }
}

/// What an instance knows about changes.
#[derive(Debug)]
pub(crate) struct KnownEvents {
    newest: u64,
    /// The newest event that was received before the latest echo window began.
    settled: u64,
    /// When anything was last invalidated without an event.
    missed_at: Instant,
    /// When the last event without a usable id arrived.
    unnamed_at: Option<Instant>,
}

/// What a flag set from the store must contain to be fresh for an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Requirement {
    /// The epoch in which it is fresh.
    pub(super) epoch: u64,
    pub(crate) fence: Fence,
    /// The request must have been sent [`MARGIN`] later than this.
    after: Instant,
    /// The same for responses that stay fresh when the echo window ends.
    after_echo: Instant,
}

impl KnownEvents {
    pub(crate) fn new(now: Instant) -> Self {
        Self { newest: 0, settled: 0, missed_at: now, unnamed_at: None }
    }

    /// Records an event. `epoch` is the epoch before the event changes it. An id is usable only if it is greater than all earlier
    /// ids, because two events of the same millisecond may have the same id.
    pub(crate) fn event(&mut self, id: Option<u64>, epoch: u64, now: Instant) {
        self.settled = self.fence(epoch).settled;
        match id {
            Some(id) if id > self.newest => self.newest = id,
            _ => self.unnamed_at = Some(now),
        }
    }

    /// Records that flags were invalidated without an event.
    pub(crate) fn missed(&mut self, now: Instant) {
        self.missed_at = now;
    }

    /// Returns the fence of the response to a request that is sent in this epoch.
    fn fence(&self, epoch: u64) -> Fence {
        let settled = if is_in_echo_window(epoch) { self.settled } else { self.newest };
        Fence { newest: self.newest, settled }
    }

    /// Returns what a flag set from the store must contain to be fresh in this epoch, if the stream of changes is open and
    /// not silent.
    pub(crate) fn requirement(&self, reading: EpochReading) -> Option<Requirement> {
        let fence = self.fence(reading.epoch);
        let after = |window| self.unnamed_at.map_or(self.missed_at, |at| self.missed_at.max(at + window));
        let after_echo = after(ECHO_WINDOW);
        // As after an event with an id, most responses from the echo window are out of date when it ends.
        let after = if is_in_echo_window(reading.epoch) { after(Duration::ZERO) } else { after_echo };
        reading.streaming.then_some(Requirement { epoch: reading.epoch, fence, after, after_echo })
    }
}

impl Requirement {
    /// Returns the epoch of a flag set, if it is fresh. `sent_at` is the earliest time at which it may have been requested, and
    /// `known` is when the flag set in memory was requested, if there is one.
    pub(crate) fn epoch_of(&self, fence: Option<Fence>, sent_at: Instant, known: Option<Instant>) -> Option<u64> {
        let fence = fence.filter(|fence| fence.covers(&self.fence))?;
        // Two flag sets that were requested at about the same time are ordered by their fences.
        let is_latest = known.is_none_or(|known| sent_at + MARGIN >= known);
        // As in memory, a flag set that certainly contains the change stays fresh after the echo window.
        let is_certain = fence.settled >= self.fence.newest && sent_at >= self.after_echo + MARGIN;
        let is_final = is_in_echo_window(self.epoch) && is_certain;
        (is_latest && sent_at >= self.after + MARGIN).then_some(self.epoch + u64::from(is_final))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(epoch: u64) -> EpochReading {
        EpochReading { epoch, streaming: true }
    }

    #[test]
    fn ids_decide_for_events_and_times_for_other_changes() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut known = KnownEvents::new(start);
        assert!(known.requirement(EpochReading { epoch: 2, streaming: false }).is_none(), "the stream is closed");
        known.event(Some(5), 2, at(500));
        known.event(Some(7), 3, at(1_000));
        let during = known.requirement(reading(3)).unwrap();
        let over = known.requirement(reading(4)).unwrap();
        let fence = |newest, settled| Some(Fence { newest, settled });
        for (fence, sent, fresh) in [
            (fence(7, 0), 1_000, [true, false]),
            (fence(7, 5), 1_000, [true, false]),
            (fence(7, 7), 1_000, [true, true]),
            (fence(8, 0), 500, [true, false]),
            (fence(8, 7), 500, [true, true]),
            (fence(6, 6), 5_000, [false, false]),
            (None, 5_000, [false, false]),
            (fence(8, 8), 99, [false, false]),
        ] {
            let is_met = [during, over].map(|requirement| requirement.epoch_of(fence, at(sent), None).is_some());
            assert_eq!(is_met, fresh, "{fence:?} {sent}");
        }
        let later = [at(1_100), at(1_101)].map(|known| during.epoch_of(fence(7, 7), at(1_000), Some(known)));
        assert_eq!(later, [Some(4), None], "the epoch after the window, unless memory has a later flag set");
        // The same id again, an older id, and no id.
        for (id, time) in [(Some(7), 2_000), (Some(3), 3_000), (None, 4_000)] {
            known.event(id, 4, at(time));
            let (during, over) = (known.requirement(reading(5)).unwrap(), known.requirement(reading(6)).unwrap());
            assert_eq!((during.fence, during.after), (Fence { newest: 7, settled: 7 }, at(time)));
            assert_eq!(over.after, at(time) + ECHO_WINDOW);
        }
        known.missed(at(9_000));
        assert_eq!(known.requirement(reading(8)).unwrap().after, at(9_000));
    }
}
