//! The report: its rows, as text and as JSON.

use std::fmt;

use serde_json::{Value, json};

/// Whether a row is a demand or a recommendation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A demand of a specification.
    Must,
    /// A recommendation, or the practice of clients and proxies.
    Should,
}

/// What became of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The service does what the row demands.
    Holds,
    /// It does not. Says what was seen instead.
    Fails(String),
    /// The row cannot be checked with this service. Says why.
    NotApplicable(String),
}

/// One row of a report.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Row {
    /// Name of the row, which stays the same between versions.
    pub name: &'static str,
    /// What the row demands.
    pub demand: &'static str,
    /// Whether it is a demand or a recommendation.
    pub level: Level,
    /// Where the demand comes from.
    pub source: &'static str,
    /// What became of it.
    pub outcome: Outcome,
}

/// What [`check`](super::check) found. Its `Display` is a table for people.
#[derive(Clone, Debug)]
pub struct Report {
    pub(crate) rows: Vec<Row>,
}

impl Report {
    /// Returns the rows, always all of them and in the same order.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Returns whether all demands hold that apply. Recommendations do not matter.
    #[must_use]
    pub fn conforms(&self) -> bool {
        !self.rows.iter().any(|row| row.level == Level::Must && matches!(row.outcome, Outcome::Fails(_)))
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
        self.rows.iter().filter(|row| is_wanted(&row.outcome)).map(|row| row.name).collect()
    }
}

impl Row {
    fn to_json(&self) -> Value {
        let (outcome, seen) = match &self.outcome {
            Outcome::Holds => ("holds", None),
            Outcome::Fails(seen) => ("fails", Some(seen)),
            Outcome::NotApplicable(why) => ("notApplicable", Some(why)),
        };
        json!({
            "name": self.name, "demand": self.demand, "level": self.level.to_string(), "source": self.source,
            "outcome": outcome, "seen": seen,
        })
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Must => "MUST",
            Self::Should => "SHOULD",
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
        for Row { name, demand, level, source, outcome } in &self.rows {
            writeln!(f, "{level:<6} {name:<26} {outcome}")?;
            if matches!(outcome, Outcome::Fails(_)) {
                writeln!(f, "{:<33} demanded: {demand} ({source})", "")?;
            }
        }
        let (failures, not_applicable) = (self.failures().len(), self.not_applicable().len());
        let holding = self.rows.len() - failures - not_applicable;
        let conforms = if self.conforms() { "conforms" } else { "does not conform" };
        writeln!(f, "{holding} hold, {failures} fail, {not_applicable} do not apply: the service {conforms}")
    }
}
