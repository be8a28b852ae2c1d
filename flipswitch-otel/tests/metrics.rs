//! The instruments of a provider, read with an exporter of the SDK.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, time::Duration};

use flipswitch::{Context, FlipswitchProvider, Stats};
use flipswitch_local::{Endpoint, Fault, LocalServer};
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, SdkMeterProvider,
    data::{AggregatedMetrics, MetricData, ResourceMetrics, ScopeMetrics},
};
use serde_json::json;

/// By the name of an instrument: its unit, and its values with their attributes.
type Reported = BTreeMap<String, (String, Vec<(BTreeMap<String, String>, f64)>)>;

struct Metrics {
    exporter: InMemoryMetricExporter,
    provider: SdkMeterProvider,
}

impl Metrics {
    fn new() -> Self {
        let exporter = InMemoryMetricExporter::default();
        let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
        Self { exporter, provider }
    }

    fn observe(&self, provider: &FlipswitchProvider) {
        flipswitch_otel::observe(&self.provider.meter("test"), provider);
    }

    fn collect(&self) -> Reported {
        self.exporter.reset();
        self.provider.force_flush().unwrap();
        let collected = self.exporter.get_finished_metrics().unwrap();
        let metrics = collected.iter().flat_map(ResourceMetrics::scope_metrics).flat_map(ScopeMetrics::metrics);
        let mut reported = Reported::new();
        for metric in metrics {
            let (_, values) =
                reported.entry(metric.name().to_owned()).or_insert((metric.unit().to_owned(), Vec::new()));
            macro_rules! points {
                ($points:expr) => {
                    values.extend($points.map(|point| {
                        let attributes = point.attributes().map(|one| (one.key.to_string(), one.value.to_string()));
                        (attributes.collect(), point.value() as f64)
                    }))
                };
            }
            match metric.data() {
                AggregatedMetrics::U64(MetricData::Sum(sum)) if sum.is_monotonic() => points!(sum.data_points()),
                AggregatedMetrics::I64(MetricData::Sum(sum)) if !sum.is_monotonic() => points!(sum.data_points()),
                AggregatedMetrics::F64(MetricData::Gauge(gauge)) => points!(gauge.data_points()),
                other => panic!("{}: {other:?}", metric.name()),
            }
        }
        reported
    }
}

/// Returns the only value of an instrument.
fn one(reported: &Reported, name: &str) -> f64 {
    let (_, values) = reported.get(name).unwrap_or_else(|| panic!("{name} in {:?}", reported.keys()));
    let [(_, value)] = &values[..] else { panic!("{name}: {values:?}") };
    *value
}

/// Returns the state that is 1.
fn state(reported: &Reported, name: &str) -> String {
    let (_, values) = &reported[name];
    assert!(values.iter().all(|(_, value)| *value == 0.0 || *value == 1.0), "{values:?}");
    let present: Vec<_> = values.iter().filter(|(_, value)| *value == 1.0).collect();
    let [(attributes, _)] = &present[..] else { panic!("{name}: {values:?}") };
    attributes[name].clone()
}

fn builder(service: &LocalServer) -> flipswitch::FlipswitchProviderBuilder {
    let builder = FlipswitchProvider::builder(service.api_key()).base_url(service.url());
    builder.miss_wait(Duration::from_secs(30))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_number_of_a_provider_is_reported() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let provider = builder(&service).name("shop").build().unwrap();
    let metrics = Metrics::new();
    metrics.observe(&provider);
    for _ in 0..5 {
        assert!(provider.flags(Context::user("alice")).await.bool("on", false));
    }
    // Waits until no background work is left.
    let (reported, Stats { evaluations, hits, requests, contexts, bytes, .. }) = loop {
        let (before, reported, after) = (provider.stats(), metrics.collect(), provider.stats());
        if before == after && after.contexts == 2 && state(&reported, "flipswitch.stream.state") == "connected" {
            break (reported, after);
        }
    };
    for (name, expected) in [
        ("flipswitch.evaluations", evaluations),
        ("flipswitch.evaluation.hits", hits),
        ("flipswitch.requests", requests),
        ("flipswitch.cache.contexts", contexts),
        ("flipswitch.cache.size", bytes),
        ("flipswitch.health.ready", 1),
        ("flipswitch.throttling.circuit_open", 0),
    ] {
        assert_eq!(one(&reported, name), expected as f64, "{name}");
    }
    assert!(evaluations >= 5 && requests > 0 && contexts == 2 && bytes > 0);
    assert!((0.0..60.0).contains(&one(&reported, "flipswitch.health.last_success.age")));
    assert_eq!(state(&reported, "flipswitch.health.state"), "streaming");
    let attributes = reported.values().flat_map(|(_, values)| values).map(|(attributes, _)| attributes);
    assert!(attributes.into_iter().all(|attributes| attributes["flipswitch.provider"] == "shop"));

    // The next collection has the new values.
    assert!(provider.flags(Context::user("alice")).await.bool("on", false));
    assert_eq!(one(&metrics.collect(), "flipswitch.evaluations"), (evaluations + 1) as f64);

    provider.shutdown().await;
    let reported = metrics.collect();
    assert_eq!(state(&reported, "flipswitch.health.state"), "shut_down");
    assert_eq!(state(&reported, "flipswitch.stream.state"), "disconnected");
    drop(provider);
    assert!(
        metrics.collect().values().all(|(_, values)| values.is_empty()),
        "the instruments do not keep the provider alive"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_visible() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    service.faults().add(Fault::on(Endpoint::Bulk).status(503)).unwrap();
    let provider = builder(&service).miss_wait(Duration::from_millis(1)).build().unwrap();
    let metrics = Metrics::new();
    metrics.observe(&provider);
    assert!(provider.flags(Context::user("alice")).await.bool("on", true));
    let reported = metrics.collect();
    // The check at startup is also counted.
    assert!(one(&reported, "flipswitch.evaluation.unavailable") >= 1.0);
    assert_eq!(one(&reported, "flipswitch.health.ready"), 0.0);
    assert_eq!(state(&reported, "flipswitch.health.state"), "starting");
    assert!(!reported.contains_key("flipswitch.health.last_success.age"), "there was no success");
    provider.shutdown().await;
}

/// The documentation of `observe` lists every instrument with its unit, and the names follow OpenTelemetry's rules.
#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_instruments_is_complete_and_their_names_are_valid() {
    let service = LocalServer::builder().heartbeat(Duration::from_millis(50)).start().await.unwrap();
    let provider = builder(&service).build().unwrap();
    let metrics = Metrics::new();
    metrics.observe(&provider);
    provider.ready(Duration::from_secs(30)).await.unwrap();
    let (mut events, mut reported) = (provider.events(), metrics.collect());
    // Waits for the first event of the stream.
    while !reported.contains_key("flipswitch.health.last_event.age") {
        drop(tokio::time::timeout(Duration::from_millis(50), events.recv()).await);
        reported = metrics.collect();
    }
    let rows = include_str!("../src/metrics.rs").lines().filter_map(|line| line.strip_prefix("/// | `"));
    let mut listed: BTreeMap<_, _> = rows
        .map(|row| {
            let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`'));
            (cells.next().unwrap().to_owned(), cells.nth(1).unwrap().to_owned())
        })
        .collect();
    // It is reported only while the service limits the rate.
    assert_eq!(listed.remove("flipswitch.throttling.request_limit").as_deref(), Some("{request}/s"));
    let units: BTreeMap<_, _> = reported.iter().map(|(name, (unit, _))| (name.clone(), unit.clone())).collect();
    assert_eq!(units, listed);
    for name in listed.keys() {
        let is_valid = |character: char| character.is_ascii_lowercase() || "._".contains(character);
        assert!(name.starts_with("flipswitch.") && name.chars().all(is_valid) && !name.ends_with("_total"), "{name}");
        assert!(!listed.keys().any(|other| other.starts_with(&format!("{name}."))), "{name} is also a namespace");
    }
    provider.shutdown().await;
}
