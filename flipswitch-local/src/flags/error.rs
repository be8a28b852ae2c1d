//! The error of an invalid flag definition.

use std::fmt;

use crate::json::NotAnObject;

/// The error of an invalid flag definition. It names the flag, the field, and the problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefinitionError {
    flag: Option<String>,
    /// Field of the flag or of the document.
    place: String,
    problem: String,
}

impl DefinitionError {
    pub(crate) fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { flag: None, place: place.into(), problem: problem.into() }
    }

    /// Sets the flag that the error is about.
    pub(crate) fn with_flag(mut self, flag: &str) -> Self {
        self.flag = Some(flag.to_owned());
        self
    }

    /// Appends what to write instead.
    pub(crate) fn with_hint(mut self, hint: &str) -> Self {
        self.problem = format!("{}; {hint}", self.problem);
        self
    }
}

impl From<NotAnObject> for DefinitionError {
    fn from(error: NotAnObject) -> Self {
        Self::new(error.place, error.problem())
    }
}

impl fmt::Display for DefinitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(flag) = &self.flag {
            write!(f, "flag {flag:?}: ")?;
        }
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for DefinitionError {}
