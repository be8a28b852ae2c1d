//! What an application can observe about its provider: events, the status of the connection, and the health.

pub(crate) mod bus;
pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod notifier;
