//! Measures the time from the start of an application's set-up of flags until it reads the first correct value, with
//! Flipswitch and with other SDKs. There are a hundred flags with one rule each. Every SDK has its default features, with
//! TLS, and receives the flags over HTTP on loopback, except flagd, which reads a file.
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

mod common;

use std::{
    fs,
    future::pending,
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::{get, post},
};
use common::{
    ATTRIBUTES, DEFAULT, KEY, USER, evaluation_context, flagd_flags, flipswitch_context, keys, launchdarkly_context,
    launchdarkly_flag, service, unleash_features, value,
};
use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use flipswitch::{
    FlipswitchProvider,
    open_feature::provider::FeatureProvider,
    serde_json::{Map, json},
};
use futures_util::{StreamExt, stream};
use launchdarkly_server_sdk::{Client, ConfigBuilder, ServiceEndpointsBuilder};
use open_feature_flagd::{FlagdOptions, FlagdProvider, ResolverType};
use open_feature_ofrep::{OfrepOptions, OfrepProvider};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
};
use unleash_api_client::{ClientBuilder, client::FeatureKey};

/// The interval at which the value is read from Unleash's SDK, which does not report when it has received the flags.
const READ_INTERVAL: Duration = Duration::from_micros(50);

/// Measures one SDK. `start` sets it up, and returns it with the first value. The time of `stop` is not measured.
fn measure<S>(criterion: &mut Criterion, sdk: &str, start: impl Fn() -> (S, bool), stop: impl Fn(S)) {
    let mut group = criterion.benchmark_group("start");
    group.sampling_mode(SamplingMode::Flat).sample_size(50);
    group.bench_function(sdk, |bencher| {
        bencher.iter_custom(|iterations| {
            let mut elapsed = Duration::ZERO;
            for _ in 0..iterations {
                let began = Instant::now();
                let (started, value) = start();
                elapsed += began.elapsed();
                assert!(value, "{sdk}: the first value must be correct");
                stop(started);
            }
            elapsed
        });
    });
}

/// Serves an application on a free port. Returns its address.
fn serve(runtime: &Runtime, app: Router) -> SocketAddr {
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
        address
    })
}

fn flipswitch(criterion: &mut Criterion, server: &Runtime, client: &Runtime) {
    let service = server.block_on(service(true));
    let (key, url) = (service.api_key(), service.url());
    let start = || {
        let provider = FlipswitchProvider::builder(&key).base_url(&url).build().unwrap();
        let flags = client.block_on(provider.flags(flipswitch_context(USER)));
        (provider, flags.bool(KEY, DEFAULT))
    };
    measure(criterion, "flipswitch", start, |provider| client.block_on(provider.shutdown()));
    server.block_on(service.shutdown());
}

fn ofrep(criterion: &mut Criterion, server: &Runtime, client: &Runtime) {
    let service = server.block_on(service(true));
    let start = || {
        client.block_on(async {
            let options = OfrepOptions { base_url: service.url(), ..OfrepOptions::default() };
            let provider = OfrepProvider::new(options).await.unwrap();
            let resolved = provider.resolve_bool_value(KEY, &evaluation_context(USER)).await;
            (provider, value(resolved))
        })
    };
    measure(criterion, "ofrep", start, drop);
    server.block_on(service.shutdown());
}

/// The flag that is read, in the form that Unleash's SDK needs.
#[derive(Clone, Copy, Debug)]
struct Feature;

impl FeatureKey for Feature {
    fn name(self) -> &'static str {
        KEY
    }
}

fn unleash(criterion: &mut Criterion, server: &Runtime, client: &Runtime) {
    let accepted = || post(async || StatusCode::ACCEPTED);
    let features = unleash_features(true);
    let app = Router::new()
        .route("/client/register", accepted())
        .route("/client/metrics", accepted())
        .route("/client/features", get(async || Json(features)));
    let url = format!("http://{}", serve(server, app));
    let start = || {
        let sdk = ClientBuilder::default().into_client::<Feature>(&url, "start", "start-1", None).unwrap();
        let sdk = Arc::new(sdk);
        client.block_on(sdk.register()).unwrap();
        let polling = client.spawn({
            let sdk = Arc::clone(&sdk);
            async move { sdk.poll_for_updates().await }
        });
        let context = unleash_api_client::Context {
            user_id: Some(USER.to_owned()),
            properties: ATTRIBUTES.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ..unleash_api_client::Context::default()
        };
        // The value is false until the flags have arrived.
        while !sdk.is_enabled(Feature, Some(&context), DEFAULT) {
            thread::sleep(READ_INTERVAL);
        }
        (polling, true)
    };
    measure(criterion, "unleash", start, |polling| polling.abort());
}

fn launchdarkly(criterion: &mut Criterion, server: &Runtime, client: &Runtime) {
    let flags: Map<_, _> = keys().map(|key| (key.clone(), json!(launchdarkly_flag(&key, true).build()))).collect();
    let put = format!("event: put\ndata: {}\n\n", json!({"path": "/", "data": {"flags": flags, "segments": {}}}));
    let stream = async move || {
        let events = stream::iter([Ok::<_, std::io::Error>(put)]).chain(stream::once(pending()));
        ([(CONTENT_TYPE, "text/event-stream")], axum::body::Body::from_stream(events)).into_response()
    };
    // All other requests send events, which are accepted.
    let app = Router::new().route("/all", get(stream)).fallback(async || StatusCode::ACCEPTED);
    let url = format!("http://{}", serve(server, app));
    let start = || {
        let config = ConfigBuilder::new("key")
            .service_endpoints(ServiceEndpointsBuilder::new().relay_proxy(&url))
            .build()
            .unwrap();
        let sdk = Client::build(config).unwrap();
        let started = client.block_on(async {
            sdk.start_with_default_executor();
            sdk.wait_for_initialization(Duration::from_secs(10)).await
        });
        assert_eq!(started, Some(true));
        let value = sdk.bool_variation(&launchdarkly_context(USER), KEY, DEFAULT);
        (sdk, value)
    };
    measure(criterion, "launchdarkly", start, |sdk| sdk.close());
}

fn flagd(criterion: &mut Criterion, client: &Runtime) {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("flags.json");
    fs::write(&file, flagd_flags(true).to_string()).unwrap();
    let start = || {
        client.block_on(async {
            let options = FlagdOptions {
                resolver_type: ResolverType::File,
                source_configuration: Some(file.to_str().unwrap().to_owned()),
                cache_settings: None,
                ..FlagdOptions::default()
            };
            let provider = FlagdProvider::new(options).await.unwrap();
            let resolved = provider.resolve_bool_value(KEY, &evaluation_context(USER)).await;
            (provider, value(resolved))
        })
    };
    measure(criterion, "flagd", start, drop);
}

/// Measures the SDKs one after the other. The servers share one runtime, and the SDKs another.
fn all(criterion: &mut Criterion) {
    rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap();
    let runtime = || Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (server, client) = (runtime(), runtime());
    flipswitch(criterion, &server, &client);
    ofrep(criterion, &server, &client);
    unleash(criterion, &server, &client);
    launchdarkly(criterion, &server, &client);
    flagd(criterion, &client);
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(5));
    targets = all
}
criterion_main!(benches);
