//! Flags for the browsers of an application: the responses of the routes of the web crates, over OFREP.

mod answer;
mod events;
mod options;
mod request;
pub(crate) mod service;
