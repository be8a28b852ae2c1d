//! The endpoints under `/local`, and the dashboard.

pub(crate) mod access;
pub(crate) mod activity;
pub(crate) mod control;
pub(crate) mod dashboard;
pub(crate) mod error;
