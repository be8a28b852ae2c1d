//! [OpenTelemetry](https://docs.rs/opentelemetry) metrics and events for the provider of [`flipswitch`], which evaluates
//! feature flags from [Flipswitch](https://flipswitch.io) and from any other service that speaks OFREP.
//!
//! [`observe`] reports the counters and the state of a provider as metrics. [`EvaluationHook`] reports the evaluations by
//! OpenFeature clients as events, for applications that also use other providers.
//!
//! # Example
//!
//! ```
//! use flipswitch::{Context, FlipswitchProvider, serde_json::json};
//! use opentelemetry_sdk::metrics::{InMemoryMetricExporter, SdkMeterProvider};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // Stands in for the exporter of your application, such as the one from `opentelemetry-otlp`.
//!     let exporter = InMemoryMetricExporter::default();
//!     let meters = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
//!     // Must be set before the meter is obtained. A meter that was obtained earlier reports nothing.
//!     opentelemetry::global::set_meter_provider(meters.clone());
//!
//!     // Stands in for a provider with an API key. In-memory providers report their counters as well.
//!     let provider = FlipswitchProvider::in_memory(json!({"new-checkout": true}));
//!     flipswitch_otel::observe(&opentelemetry::global::meter("my-application"), &provider);
//!
//!     assert!(provider.flags(Context::user("user-123")).await.bool("new-checkout", false));
//!     // The SDK collects the metrics every 60 seconds, and when it shuts down.
//!     meters.force_flush()?;
//!     assert!(!exporter.get_finished_metrics()?.is_empty());
//!     meters.shutdown()?;
//!     Ok(())
//! }
//! ```
//!
//! # Items by purpose
//!
//! | purpose | items |
//! |---|---|
//! | Metrics of a provider | [`observe`], which lists the instruments |
//! | Events about evaluations by OpenFeature clients | [`EvaluationHook`] |
//! | The versions of the crates in these signatures | [`opentelemetry`], [`flipswitch`] |
//!
//! # Events about reads
//!
//! Events that say which flags a request has read do not need this crate. The provider emits them with `tracing` if
//! [`evaluation_events`](flipswitch::FlipswitchProviderBuilder::evaluation_events) is set, and the bridges
//! [`opentelemetry-appender-tracing`](https://docs.rs/opentelemetry-appender-tracing) and
//! [`tracing-opentelemetry`](https://docs.rs/tracing-opentelemetry) turn them into log records and span events. The guide
//! `docs/telemetry.md` in the repository contains a complete example.
//!
//! # Features and versions
//!
//! This crate has no features. The TLS library of the provider is chosen with the features of `flipswitch`, `flipswitch-axum` or
//! `flipswitch-actix`.
//!
//! The application must use the same version of `opentelemetry` as this crate, which is 0.33. An update to a newer 0.x version is
//! a breaking change to this crate.

// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod hook;
mod metrics;

pub use flipswitch;
pub use opentelemetry;

pub use crate::{hook::EvaluationHook, metrics::observe};
