//! Flags: how they are defined, evaluated, stored, and read from a file.

pub(crate) mod definition;
pub(crate) mod error;
pub(crate) mod evaluate;
pub(crate) mod file;
pub(crate) mod rule;
pub(crate) mod store;
