#![doc = include_str!("../README.md")]

mod access;
mod activity;
mod book;
mod connection;
mod control;
mod dashboard;
mod definition;
mod effect;
mod evaluate;
mod events;
mod fault;
mod faults;
mod file;
mod http_api;
mod keys;
mod line;
mod payload;
mod record;
mod rule;
mod server;
mod store;
mod strike;
mod wire;

pub use crate::{
    book::ActiveFault,
    definition::DefinitionError,
    fault::{Endpoint, Fault, FaultError, FaultOn},
    faults::{FaultId, Faults},
    keys::KeyRotation,
    record::RecordedRequest,
    server::{LocalServer, LocalServerBuilder},
};
