//! Reports flags to OpenTelemetry: which variants a request received, in its span and as log records, and metrics of the provider
//! (axum). The example prints them. An application sends them with `opentelemetry-otlp` instead.
//!
//! ```text
//! $ cargo run -p examples --bin telemetry
//! $ curl http://127.0.0.1:3000/checkout
//! The new checkout
//! ```
//!
//! The example then prints a log record `feature_flag.evaluation` with the flag and its variant, and the span `GET /checkout`
//! with an event of the same name. It prints the metrics once a minute, and when Ctrl-C stops it.

use std::error::Error;

use axum::{Extension, Router, http::Request, routing::get};
use flipswitch_axum::{
    Context, EvaluationEvents, Flags, FlipswitchLayer, FlipswitchProvider, Lifespan,
    flipswitch::serde_json::{Value, json},
};
use flipswitch_local::LocalServer;
use opentelemetry::{metrics::MeterProvider as _, trace::TracerProvider as _};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::{logs::SdkLoggerProvider, metrics::SdkMeterProvider, trace::SdkTracerProvider};
use tokio::net::TcpListener;
use tower_http::trace::TraceLayer;
use tracing::{Subscriber, info_span, level_filters::LevelFilter};
use tracing_subscriber::{Layer, layer::SubscriberExt, util::SubscriberInitExt};

#[derive(Clone)]
struct User(String);

async fn checkout(flags: Flags) -> &'static str {
    if flags.bool("new-checkout", false) { "The new checkout\n" } else { "The old checkout\n" }
}

pub fn app(provider: FlipswitchProvider) -> Router {
    let span = |request: &Request<_>| {
        let name = format!("{} {}", request.method(), request.uri().path());
        info_span!("request", otel.name = name)
    };
    Router::new()
        .route("/checkout", get(checkout))
        .layer(FlipswitchLayer::new(provider).with_user(|user: &User| Context::user(&user.0)))
        // Stands in for authentication.
        .layer(Extension(User("alice".to_owned())))
        // Added last and runs first, so that all reads of flags are in the span.
        .layer(TraceLayer::new_for_http().make_span_with(span).on_request(()).on_response(()))
}

/// Turns spans of `tracing` into spans, and events into log records. Without the filters, exporters would report themselves.
pub fn subscriber(traces: &SdkTracerProvider, logs: &SdkLoggerProvider) -> impl Subscriber + Send + Sync + use<> {
    tracing_subscriber::registry()
        .with(tracing_opentelemetry::layer().with_tracer(traces.tracer("shop")).with_filter(LevelFilter::INFO))
        .with(OpenTelemetryTracingBridge::new(logs).with_filter(LevelFilter::INFO))
}

/// The flags of the service, in flagd's format: with variant names, as in other services.
pub fn flags() -> Value {
    json!({"flags": {"new-checkout": {
        "state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
        "targeting": {"if": [{"==": [{"var": "targetingKey"}, "alice"]}, "on"]},
    }}})
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let traces =
        SdkTracerProvider::builder().with_simple_exporter(opentelemetry_stdout::SpanExporter::default()).build();
    let logs = SdkLoggerProvider::builder().with_simple_exporter(opentelemetry_stdout::LogExporter::default()).build();
    let metrics =
        SdkMeterProvider::builder().with_periodic_exporter(opentelemetry_stdout::MetricExporter::default()).build();
    subscriber(&traces, &logs).init();

    // Starts a flag service for this example. In production, the builder gets the API key of the hosted service, and no URL.
    let service = LocalServer::start(flags()).await?;
    let provider = FlipswitchProvider::builder(service.api_key())
        .base_url(service.url())
        .evaluation_events(EvaluationEvents::PerRequest)
        .build()?;
    flipswitch_otel::observe(&metrics.meter("shop"), &provider);

    let lifespan = Lifespan::builder(provider.clone()).start().await?;
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("Application  http://{}/checkout", listener.local_addr()?);
    println!("Dashboard    {}", service.dashboard_url());
    lifespan.run(axum::serve(listener, app(provider)).with_graceful_shutdown(lifespan.signal())).await?;
    traces.shutdown()?;
    logs.shutdown()?;
    Ok(metrics.shutdown()?)
}
