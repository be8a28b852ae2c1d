//! Evaluation contexts in the form in which they are sent and compared.

pub(crate) mod buffer;
pub(crate) mod canonical;
pub(crate) mod into_context;
