//! Measures the cost of flags in a request: for a bare handler, inside the layer, and with an extractor and one read.
//!
//! `cargo bench -p flipswitch-tests --bench requests`. Everything runs in one process without a socket, so only the framework
//! and the provider are measured. The requests come from several users in turn, whose flag sets the thread remembers.
//! Their contexts have a targeting key and two attributes.
//!
//! In `layer`, `flipswitch` and `client`, the layer's function returns an `EvaluationContext`. In `context`, it returns a
//! `Context`, and in `prepared` a `PreparedContext` that the user has. In `anonymous`, the layer has no function, so all
//! requests have the same context.
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::{array, cell::Cell, time::Duration};

use actix_web::{App, dev::Service as _, test::TestRequest, web};
use axum::{Router, body::Body, extract::Request, routing::get};
use criterion::{BatchSize, Criterion};
use flipswitch::{
    Context, FlipswitchProvider, PreparedContext,
    open_feature::{Client, EvaluationContext, OpenFeature},
};
use flipswitch_local::LocalServer;
use futures_util::FutureExt;
use tower::Service;

/// The number of users.
const TURNS: usize = 16;

/// The user of a request, which an authentication layer would add to the request.
#[derive(Clone)]
struct User {
    id: String,
    plan: &'static str,
    country: &'static str,
    prepared: PreparedContext,
}

impl User {
    fn new(number: usize) -> Self {
        let (id, plan, country) = (format!("user-{}", 123 + number), "premium", "de");
        let prepared = Context::user(&id).with("country", country).with("plan", plan).prepared();
        Self { id, plan, country, prepared }
    }
}

/// The users, in turn.
struct Users {
    users: [User; TURNS],
    turn: Cell<usize>,
}

impl Users {
    fn new() -> Self {
        Self { users: array::from_fn(User::new), turn: Cell::new(0) }
    }

    fn next(&self) -> User {
        let turn = self.turn.get();
        self.turn.set((turn + 1) % TURNS);
        self.users[turn].clone()
    }
}

fn fields(user: &User) -> EvaluationContext {
    EvaluationContext::default()
        .with_targeting_key(&user.id)
        .with_custom_field("plan", user.plan)
        .with_custom_field("country", user.country)
}

fn context(user: &User) -> Context {
    Context::user(&user.id).with("country", user.country).with("plan", user.plan)
}

fn prepared(user: &User) -> PreparedContext {
    user.prepared.clone()
}

async fn bare() -> &'static str {
    "old"
}

fn word(on: bool) -> &'static str {
    if on { "new" } else { "old" }
}

fn on_axum(criterion: &mut Criterion, provider: &FlipswitchProvider, client: &'static Client) {
    use flipswitch_axum::{Flags, FlipswitchLayer};

    let anonymous = FlipswitchLayer::new(provider.clone());
    let layer = anonymous.clone().with_user(fields);
    let reading = async |flags: Flags| word(flags.bool("flag-50", false));
    let asking = async || word(client.get_bool_value("flag-50", None, None).await.unwrap());
    let app = || Router::new().route("/", get(bare));
    let reader = || Router::new().route("/", get(reading));
    let apps = [
        ("bare", app(), "old"),
        ("layer", app().layer(layer.clone()), "old"),
        ("flipswitch", reader().layer(layer.clone()), "new"),
        ("context", reader().layer(anonymous.clone().with_user(context)), "new"),
        ("prepared", reader().layer(anonymous.clone().with_user(prepared)), "new"),
        ("anonymous", reader().layer(anonymous), "new"),
        ("client", Router::new().route("/", get(asking)).layer(layer), "new"),
    ];
    let users = Users::new();
    let mut group = criterion.benchmark_group("axum");
    for (name, mut app, expected) in apps {
        let request = || {
            let mut request = Request::get("/").body(Body::empty()).unwrap();
            request.extensions_mut().insert(users.next());
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
    let users = Users::new();
    let anonymous = FlipswitchMiddleware::new(provider.clone());
    let middleware = anonymous.clone().with_user(fields);
    let reading = async |flags: Flags| word(flags.bool("flag-50", false));
    let asking = async move || word(client.get_bool_value("flag-50", None, None).await.unwrap());
    macro_rules! measure {
        ($name:literal, $app:expr, $expected:literal) => {
            let app = system.block_on(actix_web::test::init_service($app));
            let request = || {
                let request = TestRequest::get().uri("/").to_request();
                request.extensions_mut().insert(users.next());
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
    let [with_context, with_prepared] = [anonymous.clone().with_user(context), anonymous.clone().with_user(prepared)];
    measure!("context", App::new().wrap(with_context).route("/", web::get().to(reading)), "new");
    measure!("prepared", App::new().wrap(with_prepared).route("/", web::get().to(reading)), "new");
    measure!("anonymous", App::new().wrap(anonymous).route("/", web::get().to(reading)), "new");
    measure!("client", App::new().wrap(middleware).route("/", web::get().to(asking)), "new");
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_service, provider, client) = runtime.block_on(async {
        let values = (0..100).map(|number| (format!("flag-{number}"), (number % 2 == 0).into())).collect();
        let service = LocalServer::start(serde_json::Value::Object(values)).await.unwrap();
        // No flags become stale during the measurement.
        let builder = FlipswitchProvider::builder(service.api_key()).base_url(service.url());
        let builder =
            builder.enable_realtime(false).enable_polling_fallback(false).cache_ttl(Duration::from_secs(3_600));
        let provider = builder.build().unwrap();
        provider.ready(Duration::from_secs(30)).await.unwrap();
        for context in Users::new().users.iter().map(context).chain([Context::anonymous()]) {
            assert!(provider.flags(context).await.error().is_none());
        }
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
