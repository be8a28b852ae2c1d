//! Requests of a web application: their context, their flags, and the parts that web frameworks need to connect them.

pub(crate) mod browser;
pub(crate) mod gate;
mod inspection;
pub mod integration;
pub(crate) mod overrides;
pub(crate) mod probe;
pub(crate) mod scope;
pub(crate) mod task_local;
pub(crate) mod visitor;
pub(crate) mod warnings;
