//! Tests across the crates, over real sockets.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

/// Evaluations: values, caching, limits, and the life cycle of the provider.
mod evaluation {
    mod caching;
    mod declared_flags;
    mod http_client;
    mod lifecycle;
    mod limits;
    mod ofrep;
    mod open_feature;
    #[cfg(feature = "peers")]
    mod peers;
    mod telemetry;
    mod test_flags;
}

/// Changes in real time: the stream, polling, events.
mod stream {
    mod changes;
    mod event_stream_hosts;
    mod event_streams;
    mod events;
    mod malformed;
    mod oversized;
    mod panics;
    mod polling;
    mod rejected;
    mod rotation;
}

/// The flag service is slow, failing or down.
mod outage {
    mod cold_start;
    mod dead_connections;
    mod echo;
    mod failed_requests;
    mod failing_flags;
    mod lost_connections;
    mod matrix;
    mod one_context;
    mod rate_limit;
    mod recovery;
    mod rejected_tags;
    mod slow_service;
    mod stale_values;
    mod store;
}

/// API keys.
mod auth {
    mod api_key;
    mod key_rotation;
    mod ofrep;
    mod refused_keys;
}

/// axum, actix-web and other servers.
mod web {
    mod actix_workers;
    mod anonymous;
    #[cfg(feature = "browser")]
    mod browser;
    #[cfg(feature = "browser")]
    mod browser_example;
    #[cfg(feature = "browser")]
    mod browser_pages;
    mod environments;
    mod gates;
    mod guards;
    mod health;
    mod html;
    mod hyper_and_tonic;
    mod lifespan;
    mod long_lived;
    mod open_feature_client;
    mod overrides;
    mod page_changes;
    mod page_property;
    mod page_routes;
    mod passthrough;
    #[cfg(feature = "peers")]
    mod peers;
    mod requests;
    mod service_contract;
    mod setup_warnings;
}

/// The local flag service and its dashboard.
mod local {
    mod admin;
    #[cfg(feature = "browser")]
    mod browser;
    #[cfg(feature = "browser")]
    mod browser_accessibility;
    mod overrides;
    mod service;

    /// Clients of other projects.
    #[cfg(feature = "peers")]
    mod peers {
        mod common;
        mod event_source;
        mod python_client;
        mod vendor_client;
        mod web_client;
    }
}

/// Whether services conform to OFREP.
mod conformance {
    #[cfg(feature = "peers")]
    mod peers;
    mod services;
}

mod compile_fail;

/// Helpers of the tests.
mod support {
    pub(crate) mod apps;
    #[cfg(feature = "browser")]
    pub(crate) mod browser;
    mod common;
    #[cfg(feature = "peers")]
    pub(crate) mod driver;
    pub(crate) mod events;
    pub(crate) mod faults;
    #[cfg(feature = "peers")]
    pub(crate) mod json;
    #[cfg(feature = "browser")]
    pub(crate) mod nginx;
    pub(crate) mod page;
    #[cfg(feature = "peers")]
    pub(crate) mod peer;
    pub(crate) mod relay;
    pub(crate) mod scripted;
    pub(crate) mod session;

    pub(crate) use self::common::*;
}
