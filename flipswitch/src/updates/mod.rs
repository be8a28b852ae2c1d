//! Where changes come from: the stream of changes, and polling while it is closed.

pub(crate) mod changes;
pub(crate) mod polling;
mod sources;
pub(crate) mod stream;
pub(crate) mod updates;
