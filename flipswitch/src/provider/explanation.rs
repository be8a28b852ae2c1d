//! Explanations of why a flag has its value.

use std::{
    fmt,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    error::{Chain, Error, FlagError},
    flags::evaluation::FlagEvaluation,
    provider::flags::FlagSource,
    sanitize::printable,
};

/// Maximum length, in bytes, and minimum length, in characters, of keys that are compared with others.
const MAX_COMPARED: usize = 200;
const MIN_COMPARED: usize = 3;

/// Explains why a flag has its value. Returned by [`Flags::why`](crate::Flags::why). The text is for people, and contains no part
/// of the context.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explanation {
    /// The key of the flag.
    pub key: String,
    /// The value. `None` if the default passed to the call is used.
    pub value: Option<Value>,
    /// The variant, if the service named one.
    pub variant: Option<String>,
    /// The reason as the service sent it, or the reason of an override.
    pub reason: Option<String>,
    /// Where the value comes from.
    pub source: FlagSource,
    /// How long ago the value was requested, if it comes from the service.
    pub age: Option<Duration>,
    /// Why there is no value, or no newer one.
    pub error: Option<FlagError>,
    /// A similar key, if the service does not have the flag.
    pub suggestion: Option<String>,
}

impl Explanation {
    pub(crate) fn new(
        key: &str,
        flag: Result<&FlagEvaluation, FlagError>,
        (source, since): (FlagSource, Option<Instant>),
        stale: Option<&Error>,
        known: impl Iterator<Item = impl AsRef<str>>,
    ) -> Self {
        let suggestion = matches!(flag, Err(FlagError::NotFound)).then(|| similar(key, known)).flatten();
        let (flag, error) = match flag {
            Ok(flag) => (Some(flag), stale.map(|error| FlagError::Unavailable(error.clone()))),
            Err(error) => (None, Some(error)),
        };
        Self {
            key: key.to_owned(),
            value: flag.map(|flag| flag.value.clone()).filter(|value| !value.is_null()),
            variant: flag.and_then(|flag| flag.variant.clone()),
            reason: flag.map(|flag| flag.reason.clone()),
            source,
            age: since.map(|since| since.elapsed()),
            error,
            suggestion,
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = printable(&self.key);
        let Some(value) = &self.value else {
            return match (&self.error, &self.reason) {
                (Some(FlagError::NotFound), _) => {
                    write!(f, "\"{key}\" uses the default in code: the flag service does not have this flag")?;
                    match &self.suggestion {
                        Some(suggestion) => write!(f, "; did you mean \"{}\"?", printable(suggestion)),
                        None => Ok(()),
                    }
                }
                (Some(error), _) => write!(f, "\"{key}\" uses the default in code: {}", Chain(error)),
                (None, reason) => {
                    let reason = printable(reason.as_deref().unwrap_or("UNKNOWN"));
                    write!(
                        f,
                        "\"{key}\" uses the default in code: the flag service defers to this default (reason {reason})"
                    )
                }
            };
        };
        write!(f, "\"{key}\" is {}", printable(&value.to_string()))?;
        match self.source {
            FlagSource::Override => return f.write_str(", from an override in this browser"),
            FlagSource::File => return f.write_str(", from the override file of the provider"),
            FlagSource::Bootstrap => f.write_str(", from the bootstrap values of the provider")?,
            FlagSource::Service | FlagSource::Stale | FlagSource::Default => {
                if let Some(variant) = &self.variant {
                    write!(f, ", from the variant \"{}\"", printable(variant))?;
                }
                write!(f, ", with the reason {}", printable(self.reason.as_deref().unwrap_or("UNKNOWN")))?;
                if let Some(age) = self.age {
                    write!(f, "; requested {} s ago", age.as_secs())?;
                }
            }
        }
        if self.source == FlagSource::Stale {
            f.write_str(", and may be out of date")?;
        }
        match &self.error {
            Some(error) => write!(f, ": {}", Chain(error)),
            None => Ok(()),
        }
    }
}

/// Returns the known key that is most similar to a key, if one is similar enough to suggest a typo.
pub(crate) fn similar(key: &str, known: impl Iterator<Item = impl AsRef<str>>) -> Option<String> {
    let length = key.chars().count();
    if key.len() > MAX_COMPARED || length < MIN_COMPARED {
        return None;
    }
    let tolerance = (length / 3).clamp(1, 4);
    // Services and code may separate words in different ways.
    let plain = |key: &str| key.replace(['_', '.', ' '], "-").to_lowercase();
    let wanted = plain(key);
    let distances = known.filter_map(|other| {
        let other = other.as_ref();
        let distance = (other.len() <= MAX_COMPARED).then(|| strsim::osa_distance(&wanted, &plain(other)))?;
        (distance <= tolerance).then(|| (distance, other.to_owned()))
    });
    distances.min().map(|(_, other)| other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_are_recognized() {
        let known = ["new-checkout", "theme", "max-items", "dark-mode", "f"];
        let cases = [
            ("new-chekout", Some("new-checkout")),
            ("newCheckout", Some("new-checkout")),
            ("NEW_CHECKOUT", Some("new-checkout")),
            ("max.items", Some("max-items")),
            ("thmee", Some("theme")),
            ("them", Some("theme")),
            ("banner", None),
            ("x", None),
            ("", None),
        ];
        for (key, expected) in cases {
            assert_eq!(similar(key, known.iter()).as_deref(), expected, "{key}");
        }
        assert_eq!(similar(&"x".repeat(10_000), known.iter()), None);
    }
}
