//! The report: its rows, as text and as JSON.

use std::fmt;

use serde_json::{Value, json};

use super::table::{Level, Rule};

/// The result of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The service meets the requirement.
    Holds,
    /// The service does not meet the requirement. Contains what it did instead.
    Fails(String),
    /// The requirement cannot be checked with this service. Contains the reason.
    NotApplicable(String),
}

/// One row of a report.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Row {
    /// The requirement.
    pub rule: &'static Rule,
    /// The result.
    pub outcome: Outcome,
}

/// The result of [`check`](super::check). Its `Display` output is a table.
#[derive(Clone, Debug)]
pub struct Report {
    pub(crate) rows: Vec<Row>,
}

impl Report {
    /// Returns all rows, always in the same order.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Returns whether the service meets all `MUST` requirements that apply.
    #[must_use]
    pub fn conforms(&self) -> bool {
        !self.rows.iter().any(|row| row.rule.level == Level::Must && matches!(row.outcome, Outcome::Fails(_)))
    }

    /// Returns the names of the rows that fail.
    #[must_use]
    pub fn failures(&self) -> Vec<&'static str> {
        self.names(|outcome| matches!(outcome, Outcome::Fails(_)))
    }

    /// Returns the names of the rows that do not apply.
    #[must_use]
    pub fn not_applicable(&self) -> Vec<&'static str> {
        self.names(|outcome| matches!(outcome, Outcome::NotApplicable(_)))
    }

    /// Returns the report as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let rows: Vec<_> = self.rows.iter().map(Row::to_json).collect();
        json!({"conforms": self.conforms(), "rows": rows})
    }

    fn names(&self, is_wanted: impl Fn(&Outcome) -> bool) -> Vec<&'static str> {
        self.rows.iter().filter(|row| is_wanted(&row.outcome)).map(|row| row.rule.name).collect()
    }
}

impl Row {
    fn to_json(&self) -> Value {
        let (outcome, seen) = match &self.outcome {
            Outcome::Holds => ("holds", None),
            Outcome::Fails(seen) => ("fails", Some(seen)),
            Outcome::NotApplicable(why) => ("notApplicable", Some(why)),
        };
        let Rule { name, level, source, demand, .. } = self.rule;
        json!({
            "name": name, "demand": demand, "level": level.to_string(), "source": source,
            "outcome": outcome, "seen": seen,
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holds => f.write_str("holds"),
            Self::Fails(seen) => write!(f, "fails: {seen}"),
            Self::NotApplicable(why) => write!(f, "not applicable: {why}"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Row { rule: Rule { name, level, source, demand, .. }, outcome } in &self.rows {
            writeln!(f, "{level:<6} {name:<26} {outcome}")?;
            if matches!(outcome, Outcome::Fails(_)) {
                writeln!(f, "{:<33} required: {demand} ({source})", "")?;
            }
        }
        let (failures, not_applicable) = (self.failures().len(), self.not_applicable().len());
        let holding = self.rows.len() - failures - not_applicable;
        let conforms = if self.conforms() { "conforms" } else { "does not conform" };
        writeln!(f, "{holding} met, {failures} failed, {not_applicable} not applicable: the service {conforms}")
    }
}
