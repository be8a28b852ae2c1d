//! The epoch: a counter that invalidates every cached flag set at once.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

/// The current epoch, and whether the stream of changes advances it.
#[derive(Debug)]
pub(crate) struct Epoch {
    /// The epoch, and whether the stream is open. One word, so that no reader sees the stream open together with the epoch
    /// from before it opened.
    word: AtomicU64,
    /// Until when an open stream counts, unless more is received, in nanoseconds since `origin`. The timer for a silent
    /// stream does not fire while the runtime is blocked or the process is frozen.
    heard_until: AtomicU64,
    origin: Instant,
}

/// A reading of the [`Epoch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EpochReading {
    pub(crate) epoch: u64,
    /// Whether the stream is open, and was heard of recently.
    pub(crate) streaming: bool,
}

impl Default for Epoch {
    fn default() -> Self {
        Self { word: AtomicU64::new(0), heard_until: AtomicU64::new(0), origin: Instant::now() }
    }
}

impl Epoch {
    const STREAMING: u64 = 1;
    const STEP: u64 = 2;

    #[inline]
    pub(crate) fn read(&self, now: Instant) -> EpochReading {
        let word = self.word.load(Ordering::Acquire);
        let is_heard = || self.nanos(now) <= self.heard_until.load(Ordering::Relaxed);
        EpochReading { epoch: word / Self::STEP, streaming: word & Self::STREAMING != 0 && is_heard() }
    }

    /// Returns the current epoch.
    pub(crate) fn current(&self) -> u64 {
        self.word.load(Ordering::Acquire) / Self::STEP
    }

    /// Marks every flag set that was requested so far as out of date.
    pub(crate) fn invalidate_all(&self) {
        self.word.fetch_add(Self::STEP, Ordering::AcqRel);
    }

    /// Notes that the stream is open, and counts until `heard_until` if it is silent. Invalidates everything: changes may
    /// have been missed until now.
    pub(crate) fn stream_opened(&self, heard_until: Instant) {
        self.heard(heard_until);
        self.update(|word| (word + Self::STEP) | Self::STREAMING);
    }

    /// Notes that something was received on the stream, which counts until `heard_until` without more.
    pub(crate) fn heard(&self, heard_until: Instant) {
        self.heard_until.store(self.nanos(heard_until), Ordering::Relaxed);
    }

    /// Notes that the stream is closed: flag sets age faster from now on.
    pub(crate) fn stream_closed(&self) {
        self.update(|word| word & !Self::STREAMING);
    }

    fn update(&self, change: impl Fn(u64) -> u64) {
        // Cannot fail: the change is never `None`.
        let _ = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| Some(change(word)));
    }

    #[inline]
    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_silent_stream_counts_for_a_while_only() {
        let (epoch, now) = (Epoch::default(), Instant::now());
        let limit = Duration::from_secs(60);
        assert_eq!(epoch.read(now), EpochReading { epoch: 0, streaming: false });
        epoch.stream_opened(now + limit);
        for (seconds, streaming) in [(0, true), (60, true), (61, false)] {
            assert_eq!(epoch.read(now + Duration::from_secs(seconds)), EpochReading { epoch: 1, streaming });
        }
        epoch.heard(now + 2 * limit);
        assert!(epoch.read(now + Duration::from_secs(61)).streaming);
        epoch.stream_closed();
        assert!(!epoch.read(now).streaming);
    }
}
