#![doc = include_str!("../README.md")]

mod admin;
mod api;
mod faults;
mod flags;
mod keys;
mod request_log;
mod server;

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
