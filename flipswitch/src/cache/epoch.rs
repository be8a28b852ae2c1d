//! The epoch: a counter that invalidates every cached flag set at once.

use std::sync::atomic::{AtomicU64, Ordering};

/// The current epoch, and whether the stream of changes that advances it is open.
///
/// Both are one word, so that no reader sees the stream open together with the epoch from before it opened.
#[derive(Debug, Default)]
pub(crate) struct Epoch(AtomicU64);

/// A reading of the [`Epoch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EpochReading {
    pub(crate) epoch: u64,
    pub(crate) streaming: bool,
}

impl Epoch {
    const STREAMING: u64 = 1;
    const STEP: u64 = 2;

    #[inline]
    pub(crate) fn read(&self) -> EpochReading {
        let word = self.0.load(Ordering::Acquire);
        EpochReading { epoch: word / Self::STEP, streaming: word & Self::STREAMING != 0 }
    }

    /// Marks every flag set that was requested so far as out of date.
    pub(crate) fn invalidate_all(&self) {
        self.0.fetch_add(Self::STEP, Ordering::AcqRel);
    }

    /// Notes that the stream is open, and invalidates everything: changes may have been missed until now.
    pub(crate) fn stream_opened(&self) {
        self.update(|word| (word + Self::STEP) | Self::STREAMING);
    }

    /// Notes that the stream is closed: flag sets age faster from now on.
    pub(crate) fn stream_closed(&self) {
        self.update(|word| word & !Self::STREAMING);
    }

    fn update(&self, change: impl Fn(u64) -> u64) {
        // Cannot fail: the change is never `None`.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| Some(change(word)));
    }
}
