//! HTTP health probes.

use crate::events::health::Health;

/// A probe of a provider's health over HTTP. The query selects the kind of probe: `ready`, or `live`, which is the
/// default.
#[derive(Clone, Debug)]
pub struct HealthProbe {
    health: Health,
    ready: bool,
}

impl HealthProbe {
    /// Makes the probe of a request with this query.
    #[must_use]
    pub fn new(health: Health, query: Option<&str>) -> Self {
        let mut names = query.into_iter().flat_map(|query| query.split('&')).filter_map(|pair| pair.split('=').next());
        Self { health, ready: names.any(|name| name == "ready") }
    }

    /// Returns whether the probe passes: respond with 200, otherwise with 503.
    #[must_use]
    pub fn is_passed(&self) -> bool {
        self.health.is_live() && (self.health.is_ready() || !self.ready)
    }

    /// Returns the body of the response.
    #[must_use]
    pub fn json(&self) -> String {
        // Cannot fail: the structure consists of strings and booleans.
        serde_json::to_string(&self.health).unwrap_or_default()
    }
}
