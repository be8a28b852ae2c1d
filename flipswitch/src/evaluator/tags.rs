//! Whether requests may be conditional: some proxies and services reject a request because of its tag.

use std::time::{Duration, Instant};

use http::StatusCode;

use crate::context::canonical::CanonicalContext;

/// Number of contexts in a row whose tags are rejected before tags are switched off.
const MAX_REJECTED: usize = 3;

/// How long tags stay switched off.
const OFF: Duration = Duration::from_secs(300);

/// Counts rejected tags. No I/O; the time is passed in.
#[derive(Debug, Default)]
pub(crate) struct Tags {
    /// Contexts in a row whose tags were rejected.
    rejected: Vec<CanonicalContext>,
    off_until: Option<Instant>,
}

impl Tags {
    /// Returns whether a request may carry a tag.
    pub(crate) fn are_sent(&self, now: Instant) -> bool {
        self.off_until.is_none_or(|until| now >= until)
    }

    /// Records that a request with a tag succeeded.
    pub(crate) fn accepted(&mut self) {
        self.rejected.clear();
    }

    /// Records that a request succeeded only without its tag. Returns whether this switches tags off.
    pub(crate) fn rejected(&mut self, context: &CanonicalContext, now: Instant) -> bool {
        if !self.rejected.contains(context) {
            self.rejected.push(context.clone());
        }
        let is_off = self.rejected.len() >= MAX_REJECTED;
        if is_off {
            self.rejected.clear();
            self.off_until = Some(now + OFF);
        }
        is_off
    }
}

/// Returns whether two tags identify the same flags. A proxy may have marked one of them as weak.
pub(crate) fn is_same_tag(one: &[u8], other: &[u8]) -> bool {
    strong(one) == strong(other)
}

/// Returns a tag without the prefix of weak tags.
fn strong(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Returns whether the tag may be the reason for a status. The request is then repeated without it.
pub(crate) fn may_reject_tag(status: StatusCode) -> bool {
    status.is_client_error()
        && !matches!(
            status,
            StatusCode::UNAUTHORIZED
                | StatusCode::NOT_FOUND
                | StatusCode::REQUEST_TIMEOUT
                | StatusCode::TOO_EARLY
                | StatusCode::TOO_MANY_REQUESTS
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(name: &str) -> CanonicalContext {
        CanonicalContext::from_bytes(name.as_bytes())
    }

    #[test]
    fn tags_are_off_for_five_minutes_after_three_contexts_in_a_row() {
        let (mut tags, now) = (Tags::default(), Instant::now());
        for name in ["a", "a", "b"] {
            assert!(!tags.rejected(&context(name), now));
        }
        tags.accepted();
        assert!(!tags.rejected(&context("c"), now) && !tags.rejected(&context("d"), now));
        assert!(tags.are_sent(now));
        assert!(tags.rejected(&context("e"), now));
        assert!(!tags.are_sent(now) && !tags.are_sent(now + OFF - Duration::from_millis(1)));
        assert!(tags.are_sent(now + OFF));
        assert!(!tags.rejected(&context("a"), now + OFF), "the count starts over");
    }

    #[test]
    fn a_weak_tag_equals_the_strong_one() {
        assert!(is_same_tag(b"\"a\"", b"W/\"a\"") && is_same_tag(b"\"a\"", b"\"a\""));
        assert!(!is_same_tag(b"\"a\"", b"\"b\""));
    }

    #[test]
    fn statuses_about_the_key_the_path_or_the_rate_do_not_reject_the_tag() {
        for (status, expected) in
            [(400, true), (403, true), (409, true), (412, true), (428, true), (401, false), (404, false), (408, false)]
        {
            assert_eq!(may_reject_tag(StatusCode::from_u16(status).unwrap()), expected, "{status}");
        }
        for status in [200, 304, 425, 429, 500, 503] {
            assert!(!may_reject_tag(StatusCode::from_u16(status).unwrap()), "{status}");
        }
    }
}
