//! [OpenTelemetry](https://docs.rs/opentelemetry) for the provider of [Flipswitch](https://flipswitch.io) feature flags, and of
//! every other service that speaks OFREP.
//!
//! [`observe`] reports the numbers and the state of a provider as metrics. [`EvaluationHook`] reports the evaluations of
//! OpenFeature clients as events, for applications that use several providers.
//!
//! # Example
//!
//! ```
//! use flipswitch::{Context, FlipswitchProvider, serde_json::json};
//! use opentelemetry_sdk::metrics::{InMemoryMetricExporter, SdkMeterProvider};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // Stands for the exporter of your application, such as that of `opentelemetry-otlp`.
//!     let exporter = InMemoryMetricExporter::default();
//!     let meters = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
//!     // Before the meter is obtained. A meter that was obtained earlier reports nothing.
//!     opentelemetry::global::set_meter_provider(meters.clone());
//!
//!     // Stands for a provider with an API key. Providers in memory report their numbers as well.
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
//! | Events about the evaluations of OpenFeature clients | [`EvaluationHook`] |
//! | The versions of the crates in these signatures | [`opentelemetry`], [`flipswitch`] |
//!
//! # Events about reads
//!
//! Events that say which flags a request has read need nothing from this crate. The provider emits them with `tracing` if
//! [`evaluation_events`](flipswitch::FlipswitchProviderBuilder::evaluation_events) is set, and the bridges
//! [`opentelemetry-appender-tracing`](https://docs.rs/opentelemetry-appender-tracing) and
//! [`tracing-opentelemetry`](https://docs.rs/tracing-opentelemetry) turn them into log records and events of spans. The guide
//! `docs/telemetry.md` in the repository shows this with a complete example.
//!
//! # Features and versions
//!
//! This crate has no features. The TLS library of the provider is chosen with the features of `flipswitch`, `flipswitch-axum` or
//! `flipswitch-actix`.
//!
//! The application must use the same version of `opentelemetry` as this crate, which is 0.33. A newer 0.x version of it is a
//! breaking change of this crate.

// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod hook;
mod metrics;

pub use flipswitch;
pub use opentelemetry;

pub use crate::{hook::EvaluationHook, metrics::observe};
