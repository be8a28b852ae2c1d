//! Warnings that are logged once.

use std::sync::atomic::{AtomicU16, Ordering};

/// A set of up to 16 kinds of warnings that have been logged.
#[derive(Debug, Default)]
pub(crate) struct WarnOnce(AtomicU16);

impl WarnOnce {
    /// Adds a kind of warning, given as one bit. Returns whether it is new, that is, whether to log the warning.
    pub(crate) fn is_first(&self, kind: u16) -> bool {
        self.0.fetch_or(kind, Ordering::Relaxed) & kind == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_new_once() {
        let warned = WarnOnce::default();
        for kind in (0..16).map(|bit| 1 << bit) {
            assert!(warned.is_first(kind));
            assert!(!warned.is_first(kind));
        }
    }
}
