//! The meaning of a bulk response with status 404. No I/O; the time is passed in.

use std::time::{Duration, Instant};

use crate::config::ServiceKind;

/// Number of responses with 404, and the minimum time since the first of them, after which the service counts as having no flags.
/// A rollout usually takes less time.
const RESPONSES: u32 = 3;
const DURATION: Duration = Duration::from_secs(60);

/// Counts responses with 404. OFREP defines no 404 for bulk requests. Services that have no flags yet send it, and proxies
/// send it while a service is unavailable.
#[derive(Debug, Default)]
pub(crate) struct NotFound {
    /// When the first response with 404 since the last flags arrived.
    first: Option<Instant>,
    /// Number of responses with 404 since the last flags.
    responses: u32,
    /// Whether it was reported that there are no flags.
    is_reported: bool,
}

impl NotFound {
    /// Records that the service has sent flags. Returns whether it was reported to have no flags.
    pub(crate) fn answered(&mut self) -> bool {
        std::mem::take(self).is_reported
    }

    /// Returns whether to report that the service has no flags.
    pub(crate) fn must_report(&mut self) -> bool {
        !std::mem::replace(&mut self.is_reported, true)
    }

    /// Records a response with 404, and returns whether it means that there are no flags. Otherwise it is a failure.
    pub(crate) fn means_no_flags(&mut self, now: Instant) -> bool {
        let first = *self.first.get_or_insert(now);
        self.responses = self.responses.saturating_add(1);
        self.responses >= RESPONSES && now.saturating_duration_since(first) >= DURATION
    }
}

/// Returns whether a response with 404 may come from a service without flags. Only Flipswitch sends such a response. If real-time
/// updates are enabled, the stream of changes must be open. Otherwise, a proxy may have responded instead of the service.
pub(crate) fn may_lack_flags(service: ServiceKind, is_realtime: bool, is_streaming: bool) -> bool {
    service == ServiceKind::Flipswitch && (!is_realtime || is_streaming)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flipswitch_may_lack_flags() {
        for (is_realtime, is_streaming, expected) in [(true, true, true), (true, false, false), (false, false, true)] {
            assert_eq!(may_lack_flags(ServiceKind::Flipswitch, is_realtime, is_streaming), expected);
            assert!(!may_lack_flags(ServiceKind::Ofrep, is_realtime, is_streaming));
        }
    }

    #[test]
    fn a_service_has_no_flags_after_a_minute_of_404() {
        let (mut not_found, start) = (NotFound::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!not_found.means_no_flags(start));
        not_found.answered();
        for (seconds, none) in [(1, false), (2, false), (3, false), (60, false), (61, true), (62, true)] {
            assert_eq!(not_found.means_no_flags(at(seconds)), none, "after {seconds} s");
        }
        not_found.answered();
        for (seconds, none) in [(100, false), (200, false), (201, true)] {
            assert_eq!(not_found.means_no_flags(at(seconds)), none, "three responses: {seconds} s");
        }
    }
}
