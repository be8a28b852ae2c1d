//! Attributes that cannot be sent, and are left out of a context.

use std::{
    collections::HashSet,
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;
use time::OffsetDateTime;

use crate::{error::Error, sanitize::printable};

/// Deepest nesting of an attribute that is sent. Services have limits as well, most of them 128.
pub(crate) const MAX_DEPTH: usize = 64;

/// Largest context that is sent, in bytes. It takes as much memory while it is cached.
pub(crate) const MAX_BYTES: usize = 64 << 10;

/// Why an attribute is left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unsendable {
    /// The application has no value.
    Absent,
    /// JSON has no such number.
    Number(f64),
    /// RFC 3339 has no such date.
    Date(OffsetDateTime),
    /// A structure of a type that is not known.
    Opaque,
    /// Structures in structures, more than [`MAX_DEPTH`].
    Nested,
    /// It would replace the targeting key.
    TargetingKey,
    /// The context has more than [`MAX_BYTES`] with it.
    Size {
        /// Size of the attribute.
        bytes: usize,
    },
}

impl fmt::Display for Unsendable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("it has no value"),
            Self::Number(value) => write!(f, "JSON cannot express {value}"),
            Self::Date(value) => write!(f, "RFC 3339 cannot express the date {value} (years 0 to 9999)"),
            Self::Opaque => f.write_str(
                "it is a structure of a type that cannot be sent; use open_feature's StructValue or a serde_json::Value",
            ),
            Self::Nested => write!(f, "it is nested more than {MAX_DEPTH} deep"),
            Self::TargetingKey => f.write_str("it would replace the targeting key; set the targeting key itself"),
            Self::Size { bytes } => {
                write!(f, "it has {bytes} bytes, and at most {MAX_BYTES} are sent for the whole context")
            }
        }
    }
}

/// What is left out of a context.
#[derive(Debug, Default)]
pub(crate) struct LeftOut {
    attributes: Vec<(String, Unsendable)>,
    /// Size of a targeting key that cannot be sent.
    targeting_key_bytes: Option<usize>,
    was_reported: AtomicBool,
}

impl LeftOut {
    pub(crate) fn add(&mut self, name: &str, reason: Unsendable) {
        self.attributes.push((name.to_owned(), reason));
    }

    /// Removes an attribute that was set again.
    pub(crate) fn remove(&mut self, name: &str) {
        self.attributes.retain(|(other, _)| other != name);
    }

    pub(crate) fn set_targeting_key(&mut self, bytes: usize) {
        self.targeting_key_bytes = Some(bytes);
    }

    /// Notes that the targeting key is that of another context, which is merged into this one.
    pub(crate) fn keep_targeting_key(&mut self) {
        self.targeting_key_bytes = None;
    }

    /// Adds what another context lacks, which is merged into this one.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.attributes.extend_from_slice(&other.attributes);
        // What is new was not reported.
        *self.was_reported.get_mut() = false;
        self.targeting_key_bytes = self.targeting_key_bytes.or(other.targeting_key_bytes);
    }

    /// Returns the error of an evaluation, if the targeting key is left out.
    pub(crate) fn targeting_key_error(&self) -> Option<Error> {
        let bytes = self.targeting_key_bytes?;
        Some(Error::InvalidContext(format!(
            "the targeting key has {bytes} bytes, and at most {MAX_BYTES} are sent for the whole context"
        )))
    }

    pub(crate) fn attributes(&self) -> &[(String, Unsendable)] {
        &self.attributes
    }

    /// Returns whether nothing is left out.
    pub(crate) fn is_empty(&self) -> bool {
        self.attributes.is_empty() && self.targeting_key_bytes.is_none()
    }

    /// Returns whether this is the first call.
    pub(crate) fn is_first_report(&self) -> bool {
        !self.was_reported.swap(true, Ordering::Relaxed)
    }
}

impl Clone for LeftOut {
    fn clone(&self) -> Self {
        Self {
            attributes: self.attributes.clone(),
            targeting_key_bytes: self.targeting_key_bytes,
            was_reported: AtomicBool::new(self.was_reported.load(Ordering::Relaxed)),
        }
    }
}

/// How many names are logged.
const MAX_NAMES: usize = 32;

/// Warnings of attributes that are left out: one for each name, until there are too many.
#[derive(Debug, Default)]
pub(crate) struct LeftOutWarnings(Mutex<HashSet<String>>);

impl LeftOutWarnings {
    pub(crate) fn log(&self, left_out: &LeftOut) {
        for (name, reason) in left_out.attributes() {
            let attribute = printable(name);
            let names = {
                let mut names = self.0.lock();
                if names.len() > MAX_NAMES || !names.insert(attribute.clone()) {
                    continue;
                }
                names.len()
            };
            if names <= MAX_NAMES {
                tracing::warn!(target: "flipswitch", attribute, %reason, "an attribute of a context is not sent");
            } else {
                tracing::warn!(
                    target: "flipswitch",
                    "more than {MAX_NAMES} attributes of contexts are not sent; no further ones are logged"
                );
            }
        }
    }
}
