//! The epoch: a counter that invalidates all cached flag sets together.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// The epoch of flag sets that are never fresh. The first epoch is higher.
pub(crate) const NEVER_FRESH: u64 = 0;

/// How long the service may use old rules after its own event.
pub(crate) const ECHO_WINDOW: Duration = Duration::from_secs(2);

/// The current epoch, and whether the stream of changes advances it.
///
/// The epoch is odd during the echo window after an event, and becomes even when the window ends. At that point, a flag set of
/// the odd epoch is also out of date. A flag set that was received within the window but certainly contains the change belongs to
/// the even epoch that follows.
#[derive(Debug)]
pub(crate) struct Epoch {
    /// The epoch, and whether the stream is open. Both are in one machine word, so that no reader sees the stream open together
    /// with the epoch from before it opened.
    word: AtomicU64,
    /// The time until which an open stream counts as open if nothing more is received, in nanoseconds since `origin`. Needed
    /// because the timer for a silent stream does not fire while the runtime is blocked or the process is frozen.
    heard_until: AtomicU64,
    /// When the echo window ends, in nanoseconds since `origin`, if the epoch is odd.
    echo_until: AtomicU64,
    origin: Instant,
}

/// A reading of the [`Epoch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EpochReading {
    pub(crate) epoch: u64,
    /// Whether the stream is open, and has not been silent for too long.
    pub(crate) streaming: bool,
}

impl Default for Epoch {
    fn default() -> Self {
        Self {
            word: AtomicU64::new(2 * Self::STEP),
            heard_until: AtomicU64::new(0),
            echo_until: AtomicU64::new(0),
            origin: Instant::now(),
        }
    }
}

impl Epoch {
    const STREAMING: u64 = 1;
    const STEP: u64 = 2;

    #[inline]
    pub(crate) fn read(&self, now: Instant) -> EpochReading {
        let word = self.word.load(Ordering::Acquire);
        let is_heard = || self.nanos(now) <= self.heard_until.load(Ordering::Relaxed);
        EpochReading { epoch: self.epoch(word, now), streaming: word & Self::STREAMING != 0 && is_heard() }
    }

    /// Returns the current epoch.
    pub(crate) fn current(&self, now: Instant) -> u64 {
        self.epoch(self.word.load(Ordering::Acquire), now)
    }

    #[inline]
    fn epoch(&self, word: u64, now: Instant) -> u64 {
        let epoch = word / Self::STEP;
        let is_over = is_in_echo_window(epoch) && self.nanos(now) > self.echo_until.load(Ordering::Relaxed);
        epoch + u64::from(is_over)
    }

    /// Marks every flag set that was requested so far as out of date.
    pub(crate) fn invalidate_all(&self) {
        self.word.fetch_add(2 * Self::STEP, Ordering::AcqRel);
    }

    /// Records an event. Marks every flag set that was requested so far as out of date. When the echo window ends, most flag sets
    /// that were requested within it also become out of date. Returns the epoch of the window.
    pub(crate) fn change_announced(&self, now: Instant) -> u64 {
        // An earlier window ends first. Otherwise it would seem to continue until the word changes.
        self.update(|word| if is_in_echo_window(word / Self::STEP) { word + Self::STEP } else { word });
        self.echo_until.store(self.nanos(now + ECHO_WINDOW), Ordering::Release);
        self.update(|word| word + Self::STEP) / Self::STEP
    }

    /// Returns the epoch after the next [`invalidate_all`](Self::invalidate_all). Only flag sets from before that call have an
    /// earlier epoch.
    pub(crate) fn after_next_invalidation(&self) -> u64 {
        self.word.load(Ordering::Acquire) / Self::STEP + 2
    }

    /// Records that the stream is open. It counts as open until `heard_until` if nothing is received. Invalidates everything,
    /// because changes may have been missed until now.
    pub(crate) fn stream_opened(&self, heard_until: Instant) {
        self.heard(heard_until);
        self.update(|word| (word + 2 * Self::STEP) | Self::STREAMING);
    }

    /// Records that something was received on the stream. It counts as open until `heard_until` if nothing more is received.
    pub(crate) fn heard(&self, heard_until: Instant) {
        self.heard_until.store(self.nanos(heard_until), Ordering::Relaxed);
    }

    /// Records that the stream is closed: flag sets age faster from now on.
    pub(crate) fn stream_closed(&self) {
        self.update(|word| word & !Self::STREAMING);
    }

    /// Changes the word, and returns the new one.
    fn update(&self, change: impl Fn(u64) -> u64) -> u64 {
        // Cannot fail: the change is never `None`.
        let (Ok(before) | Err(before)) =
            self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| Some(change(word)));
        change(before)
    }

    #[inline]
    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Returns whether an epoch is within the echo window after an event.
#[inline]
pub(crate) fn is_in_echo_window(epoch: u64) -> bool {
    epoch % 2 == 1
}

/// Returns whether nothing but an event, and the end of its echo window, has advanced the epoch since the event. `event` is
/// the epoch that the event began.
pub(crate) fn is_of_event(event: u64, epoch: u64) -> bool {
    is_in_echo_window(event) && (event..=event + 1).contains(&epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_stream_counts_as_open_only_for_a_while() {
        let (epoch, now) = (Epoch::default(), Instant::now());
        let limit = Duration::from_secs(60);
        assert_eq!(epoch.read(now), EpochReading { epoch: 2, streaming: false });
        epoch.stream_opened(now + limit);
        for (seconds, streaming) in [(0, true), (60, true), (61, false)] {
            assert_eq!(epoch.read(now + Duration::from_secs(seconds)), EpochReading { epoch: 4, streaming });
        }
        epoch.heard(now + 2 * limit);
        assert!(epoch.read(now + Duration::from_secs(61)).streaming);
        epoch.stream_closed();
        assert!(!epoch.read(now).streaming);
    }

    #[test]
    fn an_event_invalidates_everything_at_once_and_after_the_echo_window() {
        let (epoch, now) = (Epoch::default(), Instant::now());
        let at = |seconds| epoch.current(now + Duration::from_secs(seconds));
        epoch.change_announced(now);
        assert_eq!((at(0), at(2), at(3)), (3, 3, 4));
        epoch.change_announced(now + Duration::from_secs(2));
        assert_eq!((at(2), at(4), at(5)), (5, 5, 6), "the window begins again");
        assert!(is_of_event(5, 5) && is_of_event(5, 6) && !is_of_event(2, 2));
        epoch.invalidate_all();
        assert_eq!((at(4), at(5)), (7, 8), "the window continues");
        assert!(!is_of_event(5, 7) && !is_of_event(5, 8), "something else has happened");
        epoch.change_announced(now + Duration::from_secs(10));
        assert_eq!((at(10), at(13)), (9, 10), "a window that has ended is replaced by another one");
    }
}
