//! Where changes are learned from: the stream of changes, and polling while it is away.

pub(crate) mod polling;
pub(crate) mod stream;
