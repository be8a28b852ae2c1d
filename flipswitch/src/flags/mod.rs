//! Flags as values: one evaluation, the set of all flags for a context, and declarations of flags as types.

pub(crate) mod declare;
pub(crate) mod evaluation;
pub(crate) mod failing;
pub(crate) mod flag_set;
pub(crate) mod intern;
pub(crate) mod override_file;
pub(crate) mod usage;
