//! Code that the programs and the tests share.

pub mod conformance;
pub mod program;
