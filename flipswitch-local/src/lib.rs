#![doc = include_str!("../README.md")]

mod admin;
mod api;
mod faults;
mod flags;
mod keys;
mod mask;
mod request_log;
mod server;
mod time;

pub use crate::{
    faults::{
        fault::{Endpoint, Fault, FaultError, FaultOn},
        faults::{FaultId, Faults},
        registry::ActiveFault,
    },
    flags::definition::DefinitionError,
    keys::KeyRotation,
    request_log::RecordedRequest,
    server::{LocalServer, LocalServerBuilder},
};
