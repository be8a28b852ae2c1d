//! The handles that an application holds: the provider, its builder, and the flags that it returns.

pub(crate) mod browsers;
pub(crate) mod builder;
pub(crate) mod evaluation_events;
pub(crate) mod explanation;
pub(crate) mod flags;
pub(crate) mod in_memory;
pub(crate) mod inspection;
mod ofrep_env;
pub(crate) mod provider;
mod twins;
