//! Flag sets by context, and when they count as fresh. No I/O; the time is passed in.

pub(crate) mod cache;
pub(crate) mod entry;
pub(crate) mod epoch;
pub(crate) mod memo;
