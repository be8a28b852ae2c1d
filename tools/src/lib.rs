//! What programs share with tests.

pub mod conformance;
