//! Flags for the browsers of an application: what the routes of the web crates respond, over OFREP.

mod answer;
mod events;
mod options;
mod request;
pub(crate) mod service;
