//! The error of an invalid fault.

use std::fmt;

/// The error of a fault that cannot be added. It names the field as it is called in JSON, and the problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultError {
    field: &'static str,
    problem: String,
}

impl FaultError {
    pub(crate) fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for FaultError {}
