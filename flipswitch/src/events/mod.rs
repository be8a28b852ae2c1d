//! What an application can observe of its provider: events, the connection status and the health.

pub(crate) mod bus;
pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod notifier;
