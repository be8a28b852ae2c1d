//! A store outside the process: what is written to it, and when it is read.

mod availability;
mod clock;
pub(crate) mod fence;
#[cfg(test)]
mod interleavings;
pub(crate) mod sealed;
pub(crate) mod store;
