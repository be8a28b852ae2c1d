//! Evaluation contexts in the form in which they are sent and compared.

pub(crate) mod attribute;
pub(crate) mod canonical;
pub(crate) mod context;
pub(crate) mod fields;
pub(crate) mod into_context;
pub(crate) mod left_out;
pub(crate) mod redact;
