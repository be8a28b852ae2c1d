//! What the example `telemetry` reports about a request.

#[path = "../telemetry.rs"]
#[expect(dead_code, reason = "`main` belongs to the program")]
mod example;

use std::collections::BTreeMap;

use axum::{body::Body, http::Request};
use flipswitch_axum::{EvaluationEvents, FlipswitchProvider, Lifespan};
use flipswitch_local::LocalServer;
use opentelemetry::{logs::AnyValue, trace::TraceId};
use opentelemetry_sdk::{
    logs::{InMemoryLogExporter, SdkLoggerProvider},
    trace::{InMemorySpanExporter, SdkTracerProvider},
};
use tower::ServiceExt;
use tracing::instrument::WithSubscriber;

#[tokio::test]
async fn a_request_is_one_span_with_its_evaluations() {
    let (spans, records) = (InMemorySpanExporter::default(), InMemoryLogExporter::default());
    let traces = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
    let logs = SdkLoggerProvider::builder().with_simple_exporter(records.clone()).build();
    let service = LocalServer::start(example::flags()).await.unwrap();
    let provider = FlipswitchProvider::builder(service.api_key())
        .base_url(service.url())
        .secret("the secret of this test")
        .evaluation_events(EvaluationEvents::PerRequest)
        .build()
        .unwrap();
    let lifespan = Lifespan::builder(provider.clone()).require_ready(true).start().await.unwrap();

    let request = Request::get("/checkout").body(Body::empty()).unwrap();
    let answered =
        example::app(provider).oneshot(request).with_subscriber(example::subscriber(&traces, &logs)).await.unwrap();
    let body = axum::body::to_bytes(answered.into_body(), 1_000).await.unwrap();
    assert_eq!(body, "The new checkout\n");
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
