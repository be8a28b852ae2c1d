#![doc = include_str!("../README.md")]

mod backend;
mod file;
mod store;

pub use flipswitch;

pub use crate::store::DiskStore;
