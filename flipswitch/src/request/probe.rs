//! HTTP health probes.

use http::StatusCode;

use crate::events::health::Health;

/// A probe of a provider's health over HTTP. The query selects the kind of probe: `ready`, or `live`, which is the
/// default.
#[derive(Clone, Debug)]
pub struct HealthProbe {
    health: Health,
    ready: bool,
}

impl HealthProbe {
    /// Creates the probe for a request with this query.
    #[must_use]
    pub fn new(health: Health, query: Option<&str>) -> Self {
        let mut names = query.into_iter().flat_map(|query| query.split('&')).filter_map(|pair| pair.split('=').next());
        Self { health, ready: names.any(|name| name == "ready") }
    }

    /// Returns the status of the response: 200, or 503 if the probe fails.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        let is_passed = self.health.is_live() && (self.health.is_ready() || !self.ready);
        if is_passed { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    }

    /// Returns the body of the response.
    #[must_use]
    pub fn json(&self) -> String {
        // Cannot fail: the structure consists of strings and booleans.
        serde_json::to_string(&self.health).unwrap_or_default()
    }
}
