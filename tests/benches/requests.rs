//! What flags cost a request: a handler as it is, below the layer, and with an extractor and one read.
//!
//! `cargo bench -p flipswitch-tests --bench requests`. All in process, without a socket, so that what is measured is
//! the framework and ours; the context has three attributes and is known.
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::time::Duration;

use actix_web::{App, dev::Service as _, test::TestRequest, web};
use axum::{Router, body::Body, extract::Request, routing::get};
use criterion::{BatchSize, Criterion};
use flipswitch::{
    FlipswitchProvider,
    open_feature::{Client, EvaluationContext, OpenFeature},
};
use flipswitch_local::LocalServer;
use futures_util::FutureExt;
use tower::Service;

/// Who asks, as an authentication would leave it in the request.
#[derive(Clone)]
struct User {
    id: &'static str,
    plan: &'static str,
    country: &'static str,
}

const USER: User = User { id: "user-123", plan: "premium", country: "de" };

fn context(user: &User) -> EvaluationContext {
    EvaluationContext::default()
        .with_targeting_key(user.id)
        .with_custom_field("plan", user.plan)
        .with_custom_field("country", user.country)
}

async fn bare() -> &'static str {
    "old"
}

fn word(on: bool) -> &'static str {
    if on { "new" } else { "old" }
}

fn on_axum(criterion: &mut Criterion, provider: &FlipswitchProvider, client: &'static Client) {
    use flipswitch_axum::{Flags, FlipswitchLayer};

    let layer = FlipswitchLayer::new(provider.clone()).with_user(context);
    let reading = async |flags: Flags| word(flags.bool("flag-50", false));
    let asking = async || word(client.get_bool_value("flag-50", None, None).await.unwrap());
    let apps = [
        ("bare", Router::new().route("/", get(bare)), "old"),
        ("layer", Router::new().route("/", get(bare)).layer(layer.clone()), "old"),
        ("flipswitch", Router::new().route("/", get(reading)).layer(layer.clone()), "new"),
        ("client", Router::new().route("/", get(asking)).layer(layer), "new"),
    ];
    let mut group = criterion.benchmark_group("axum");
    for (name, mut app, expected) in apps {
        let request = || {
            let mut request = Request::get("/").body(Body::empty()).unwrap();
            request.extensions_mut().insert(USER);
            request
        };
        let body = axum::body::to_bytes(app.call(request()).now_or_never().unwrap().unwrap().into_body(), 100);
        assert_eq!(body.now_or_never().unwrap().unwrap(), expected);
        group.bench_function(name, |bencher| {
            bencher.iter_batched(request, |request| app.call(request).now_or_never().unwrap(), BatchSize::SmallInput);
        });
    }
}

fn on_actix(criterion: &mut Criterion, provider: &FlipswitchProvider, client: &'static Client) {
    use actix_web::HttpMessage;
    use flipswitch_actix::{Flags, FlipswitchMiddleware};

    let system = actix_web::rt::System::new();
    let mut group = criterion.benchmark_group("actix");
    let middleware = FlipswitchMiddleware::new(provider.clone()).with_user(context);
    let reading = async |flags: Flags| word(flags.bool("flag-50", false));
    let asking = async move || word(client.get_bool_value("flag-50", None, None).await.unwrap());
    macro_rules! measure {
        ($name:literal, $app:expr, $expected:literal) => {
            let app = system.block_on(actix_web::test::init_service($app));
            let request = || {
                let request = TestRequest::get().uri("/").to_request();
                request.extensions_mut().insert(USER);
                request
            };
            let body = system.block_on(actix_web::test::call_and_read_body(&app, request()));
            assert_eq!(body, $expected);
            group.bench_function($name, |bencher| {
                bencher.iter_batched(
                    request,
                    |request| app.call(request).now_or_never().unwrap().unwrap(),
                    BatchSize::SmallInput,
                );
            });
        };
    }
    measure!("bare", App::new().route("/", web::get().to(bare)), "old");
    measure!("layer", App::new().wrap(middleware.clone()).route("/", web::get().to(bare)), "old");
    measure!("flipswitch", App::new().wrap(middleware.clone()).route("/", web::get().to(reading)), "new");
    measure!("client", App::new().wrap(middleware).route("/", web::get().to(asking)), "new");
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_service, provider, client) = runtime.block_on(async {
        let values = (0..100).map(|number| (format!("flag-{number}"), (number % 2 == 0).into())).collect();
        let service = LocalServer::start(serde_json::Value::Object(values)).await.unwrap();
        // Nothing makes answers old meanwhile.
        let builder = FlipswitchProvider::builder(service.api_key()).base_url(service.url());
        let builder =
            builder.enable_realtime(false).enable_polling_fallback(false).cache_ttl(Duration::from_secs(3_600));
        let provider = builder.build().unwrap();
        provider.ready(Duration::from_secs(30)).await.unwrap();
        assert!(provider.flags(&context(&USER)).await.error().is_none());
        OpenFeature::singleton_mut().await.set_provider(provider.clone()).await;
        let client = OpenFeature::singleton().await.create_client();
        (service, provider, &*Box::leak(Box::new(client)))
    });
    let mut criterion = Criterion::default().configure_from_args();
    on_axum(&mut criterion, &provider, client);
    on_actix(&mut criterion, &provider, client);
    criterion.final_summary();
    runtime.block_on(provider.shutdown());
}
