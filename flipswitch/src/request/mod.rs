//! One request of a web application: its context, its flags, and what web frameworks need to connect them.

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
