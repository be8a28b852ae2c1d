//! A provider's life beside a server: started before it, shut down after it.

pub(crate) mod lifespan;
pub(crate) mod signals;
