#![doc = include_str!("../README.md")]

mod connection;
mod control;
mod definition;
mod evaluate;
mod events;
mod file;
mod http_api;
mod record;
mod server;
mod store;

pub use crate::{
    definition::DefinitionError,
    record::RecordedRequest,
    server::{LocalServer, LocalServerBuilder},
};
