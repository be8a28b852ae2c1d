//! Flags and a store for the tests of an application, which need no service. Flags can change while a test runs, and their reads
//! are recorded. The store fails on demand.
//!
//! Nothing here is global, so tests can run in parallel. For tests that use sockets or simulate outages, use the service in
//! `flipswitch-local`.

mod flags;
mod memory_store;

pub use self::{
    flags::{FlagReads, TestFlags, combinations, override_cookie, visitor_cookie},
    memory_store::MemoryStore,
};
