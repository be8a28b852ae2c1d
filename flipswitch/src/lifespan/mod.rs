//! A provider's lifespan alongside a server: started before it, shut down after it.

pub(crate) mod lifespan;
pub(crate) mod signals;
