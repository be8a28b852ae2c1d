//! Reports flags to OpenTelemetry: the variants of each request in its span and as log records, and metrics of the provider.
//! Prints them; an application exports them with `opentelemetry-otlp` instead.

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
    if flags.bool("new-checkout", false) { "the new checkout\n" } else { "the checkout\n" }
}

/// The flags of the service, in flagd's format: with names of variants, as other services have them.
fn flags() -> Value {
    json!({"flags": {"new-checkout": {
        "state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
        "targeting": {"if": [{"==": [{"var": "targetingKey"}, "alice"]}, "on"]},
    }}})
}

fn app(provider: FlipswitchProvider) -> Router {
    let span = |request: &Request<_>| {
        let name = format!("{} {}", request.method(), request.uri().path());
        info_span!("request", otel.name = name)
    };
    Router::new()
        .route("/checkout", get(checkout))
        .layer(FlipswitchLayer::new(provider).with_user(|user: &User| Context::user(&user.0)))
        // Stands for the authentication.
        .layer(Extension(User("alice".to_owned())))
        .layer(TraceLayer::new_for_http().make_span_with(span).on_request(()).on_response(()))
}

/// Makes spans of the spans of `tracing`, and log records of its events. Without filters, spans and exporters log about
/// themselves.
fn subscriber(traces: &SdkTracerProvider, logs: &SdkLoggerProvider) -> impl Subscriber + Send + Sync + use<> {
    tracing_subscriber::registry()
        .with(tracing_opentelemetry::layer().with_tracer(traces.tracer("shop")).with_filter(LevelFilter::INFO))
        .with(OpenTelemetryTracingBridge::new(logs).with_filter(LevelFilter::INFO))
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "says what to do next")]
async fn main() -> Result<(), Box<dyn Error>> {
    let traces =
        SdkTracerProvider::builder().with_simple_exporter(opentelemetry_stdout::SpanExporter::default()).build();
    let logs = SdkLoggerProvider::builder().with_simple_exporter(opentelemetry_stdout::LogExporter::default()).build();
    let metrics =
        SdkMeterProvider::builder().with_periodic_exporter(opentelemetry_stdout::MetricExporter::default()).build();
    subscriber(&traces, &logs).init();

    let service = LocalServer::start(flags()).await?;
    let provider = FlipswitchProvider::builder(service.api_key())
        .base_url(service.url())
        .evaluation_events(EvaluationEvents::PerRequest)
        .build()?;
    flipswitch_otel::observe(&metrics.meter("shop"), &provider);

    let lifespan = Lifespan::builder(provider.clone()).start().await?;
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("try: curl http://{}/checkout", listener.local_addr()?);
    lifespan.run(axum::serve(listener, app(provider)).with_graceful_shutdown(lifespan.signal())).await?;
    traces.shutdown()?;
    logs.shutdown()?;
    Ok(metrics.shutdown()?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use axum::body::Body;
    use opentelemetry::{logs::AnyValue, trace::TraceId};
    use opentelemetry_sdk::{logs::InMemoryLogExporter, trace::InMemorySpanExporter};
    use tower::ServiceExt;
    use tracing::instrument::WithSubscriber;

    use super::*;

    #[tokio::test]
    async fn a_request_is_one_span_with_its_evaluations() {
        let (spans, records) = (InMemorySpanExporter::default(), InMemoryLogExporter::default());
        let traces = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
        let logs = SdkLoggerProvider::builder().with_simple_exporter(records.clone()).build();
        let service = LocalServer::start(flags()).await.unwrap();
        let provider = FlipswitchProvider::builder(service.api_key())
            .base_url(service.url())
            .secret("the secret of this test")
            .evaluation_events(EvaluationEvents::PerRequest)
            .build()
            .unwrap();
        let lifespan = Lifespan::builder(provider.clone()).require_ready(true).start().await.unwrap();

        let request = Request::get("/checkout").body(Body::empty()).unwrap();
        let answered = app(provider).oneshot(request).with_subscriber(subscriber(&traces, &logs)).await.unwrap();
        let body = axum::body::to_bytes(answered.into_body(), 1_000).await.unwrap();
        assert_eq!(body, "the new checkout\n");
        lifespan.shutdown().await;

        let expected = BTreeMap::from([
            ("feature_flag.key", "new-checkout"),
            ("feature_flag.result.variant", "on"),
            ("feature_flag.result.reason", "targeting_match"),
            ("feature_flag.context.id", CODE_OF_ALICE),
            ("feature_flag.provider.name", "flipswitch"),
        ]);
        let spans = spans.get_finished_spans().unwrap();
        let [span] = &spans[..] else { panic!("{spans:?}") };
        let [event] = &span.events.events[..] else { panic!("{:?}", span.events) };
        let own = ["level", "target", "code.file.path", "code.module.name", "code.line.number"];
        let attributes = event.attributes.iter().filter(|attribute| !own.contains(&attribute.key.as_str()));
        let attributes: BTreeMap<_, _> =
            attributes.map(|attribute| (attribute.key.as_str(), attribute.value.as_str().into_owned())).collect();
        assert_eq!(event.name, "feature_flag.evaluation");
        assert!(attributes.iter().map(|(key, value)| (*key, value.as_str())).eq(expected.clone()), "{attributes:?}");

        let records = records.get_emitted_logs().unwrap();
        let evaluations: Vec<_> =
            records.iter().filter(|log| log.record.event_name() == Some("feature_flag.evaluation")).collect();
        let [log] = &evaluations[..] else { panic!("{records:?}") };
        let trace = log.record.trace_context().map_or(TraceId::INVALID, |context| context.trace_id);
        assert_eq!(trace, span.span_context.trace_id());
        let text = |value: &AnyValue| match value {
            AnyValue::String(text) => text.to_string(),
            other => panic!("{other:?}"),
        };
        let attributes: BTreeMap<_, _> =
            log.record.attributes_iter().map(|(key, value)| (key.as_str().to_owned(), text(value))).collect();
        assert!(attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())).eq(expected), "{attributes:?}");
    }

    /// HMAC-SHA-256 of the targeting key, with a key derived from the secret; computed with `hmac` and `hashlib` of Python.
    const CODE_OF_ALICE: &str = "f7b759da808f6e8ae7cad00b7ffdbd1d";
}
