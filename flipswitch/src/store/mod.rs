//! A store outside of the process: what is written to it, and when it is asked.

mod availability;
mod clock;
pub(crate) mod fence;
#[cfg(test)]
mod interleavings;
pub(crate) mod sealed;
pub(crate) mod store;
