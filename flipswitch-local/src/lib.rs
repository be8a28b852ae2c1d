#![doc = include_str!("../README.md")]

mod admin;
mod api;
mod broadcast;
mod faults;
mod flags;
mod json;
mod keys;
mod mask;
mod request_log;
mod serve;
mod server;
mod state;
mod time;

pub use crate::{
    faults::{
        error::FaultError,
        fault::{Endpoint, Fault, FaultOn},
        faults::Faults,
        registry::{ActiveFault, FaultId},
    },
    flags::error::DefinitionError,
    keys::KeyRotation,
    request_log::RecordedRequest,
    server::{LocalServer, LocalServerBuilder},
};
