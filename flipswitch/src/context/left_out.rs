//! Attributes that are left out of a context because they cannot be sent.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use time::OffsetDateTime;

use crate::{error::Error, sanitize::printable};

/// Maximum nesting depth of an attribute that is sent. Services have their own limits, usually 128.
pub(crate) const MAX_DEPTH: usize = 64;

/// Maximum size of a context that is sent, in bytes. A cached context takes the same amount of memory.
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
    /// It is a structure of an unknown type.
    Opaque,
    /// It is nested more than [`MAX_DEPTH`] deep.
    Nested,
    /// It would replace the targeting key.
    TargetingKey,
    /// With it, the context would be larger than [`MAX_BYTES`].
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
            Self::Nested => write!(f, "it is nested more than {MAX_DEPTH} levels deep"),
            Self::TargetingKey => f.write_str(
                "it would replace the targeting key; set the key with `Context::user` or `with_targeting_key`",
            ),
            Self::Size { bytes } => {
                write!(f, "it would make the context larger than {MAX_BYTES} bytes ({bytes} bytes)")
            }
        }
    }
}

/// What is left out of a context.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeftOut {
    attributes: BTreeMap<String, Reason>,
    /// Size of a targeting key that cannot be sent.
    targeting_key_bytes: Option<usize>,
}

/// Why an attribute is left out, and whether this was reported.
#[derive(Debug)]
struct Reason(Unsendable, AtomicBool);

impl Clone for Reason {
    fn clone(&self) -> Self {
        Self(self.0, AtomicBool::new(self.1.load(Ordering::Relaxed)))
    }
}

impl LeftOut {
    pub(crate) fn add(&mut self, name: &str, reason: Unsendable) {
        self.attributes.insert(name.to_owned(), Reason(reason, AtomicBool::new(false)));
    }

    /// Removes an attribute that has been set again.
    pub(crate) fn remove(&mut self, name: &str) {
        self.attributes.remove(name);
    }

    pub(crate) fn set_targeting_key(&mut self, bytes: usize) {
        self.targeting_key_bytes = Some(bytes);
    }

    /// Records that the targeting key comes from another context, which is being merged into this one.
    pub(crate) fn keep_targeting_key(&mut self) {
        self.targeting_key_bytes = None;
    }

    /// Adds what was left out of another context, which is being merged into this one.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.attributes.extend(other.attributes.clone());
        self.targeting_key_bytes = self.targeting_key_bytes.or(other.targeting_key_bytes);
    }

    /// Returns the error of an evaluation, if the targeting key is left out.
    pub(crate) fn targeting_key_error(&self) -> Option<Error> {
        let bytes = self.targeting_key_bytes?;
        Some(Error::InvalidContext(format!(
            "the targeting key is {bytes} bytes long, but the whole context can be at most {MAX_BYTES} bytes"
        )))
    }

    /// Returns the names of the attributes.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.attributes.keys().map(String::as_str)
    }

    /// Returns the attributes that no earlier call has returned, with the reasons.
    pub(crate) fn take_unreported(&self) -> impl Iterator<Item = (&str, Unsendable)> {
        let unreported =
            self.attributes.iter().filter(|(_, Reason(_, was_reported))| !was_reported.swap(true, Ordering::Relaxed));
        unreported.map(|(name, Reason(reason, _))| (name.as_str(), *reason))
    }

    /// Returns `None` if nothing is left out.
    pub(crate) fn into_shared(self) -> Option<Arc<Self>> {
        (!self.is_empty()).then(|| Arc::new(self))
    }

    /// Returns whether nothing is left out.
    pub(crate) fn is_empty(&self) -> bool {
        self.attributes.is_empty() && self.targeting_key_bytes.is_none()
    }
}

/// Maximum number of names that are logged.
const MAX_NAMES: usize = 32;

/// Warnings about attributes that are left out: one for each name, until there are too many.
#[derive(Debug, Default)]
pub(crate) struct LeftOutWarnings(Mutex<HashSet<String>>);

impl LeftOutWarnings {
    /// Logs what was not logged before. Returns the number of attributes that are reported for the first time.
    pub(crate) fn log(&self, left_out: &LeftOut) -> u64 {
        let mut reported = 0;
        for (name, reason) in left_out.take_unreported() {
            reported += 1;
            let names = self.0.lock().len();
            if names > MAX_NAMES {
                continue;
            }
            let attribute = printable(name);
            let names = {
                let mut names = self.0.lock();
                if !names.insert(attribute.clone()) {
                    continue;
                }
                names.len()
            };
            if names <= MAX_NAMES {
                tracing::warn!(target: "flipswitch", attribute, %reason, "a context attribute is not sent, so rules do not see it");
            } else if names == MAX_NAMES + 1 {
                tracing::warn!(
                    target: "flipswitch",
                    "more than {MAX_NAMES} different context attributes are not sent; further attributes are not logged. \
                     `Stats::attributes_left_out` counts them"
                );
            }
        }
        reported
    }
}
