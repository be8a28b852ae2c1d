//! Measures the cost of reading a flag, to compare two versions of the code: `read_path [NAME]`. Takes about ten seconds.
//! With an argument, it measures only figures whose names contain the argument.
//!
//! The program prints a line for each figure, with its name and the nanoseconds of one iteration. The figures are the same as in
//! `cargo bench -p flipswitch --bench read_path`, without the statistics. Further figures are for whole requests through the web
//! frameworks, without sockets. `tools/compare` runs two builds of this program in turn, so other load on the machine affects
//! both.
#![expect(clippy::expect_used, clippy::print_stdout, reason = "it prints what it measures, and fails by panicking")]

#[path = "../../../flipswitch/benches/cases/mod.rs"]
mod cases;

use std::{
    hint::black_box,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task, thread,
    time::{Duration, Instant},
};

use actix_web::{App, dev::Service as _, rt::System, test, web};
use axum::{Router, body::Body, extract::Request, routing};
use cases::{Measure, measure_all};
use flipswitch::{Context, FlipswitchProvider, serde_json::json};
use flipswitch_actix::FlipswitchMiddleware;
use flipswitch_axum::{Flags, FlipswitchLayer};
use flipswitch_local::LocalServer;
use futures_util::FutureExt;
use tokio::runtime::Runtime;
use tower::Service as _;

/// The number of users who send requests in turn.
const TURNS: usize = 16;

/// Prints the figures whose names contain this text.
struct Print(String);

impl Measure for Print {
    fn on_one_thread<T>(&mut self, name: &str, read: impl Fn(usize) -> T) {
        if !name.contains(&self.0) {
            return;
        }
        let iterations = iterations(name);
        run(iterations / 10, &read);
        let began = Instant::now();
        run(iterations, &read);
        print(name, began.elapsed(), iterations);
    }

    fn on_two_threads<T>(&mut self, name: &str, read: impl Fn(usize) -> T + Sync) {
        if !name.contains(&self.0) {
            return;
        }
        let iterations = iterations(name);
        run(iterations / 10, &read);
        let began = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| run(iterations, &read));
            scope.spawn(|| run(iterations, &read));
        });
        print(name, began.elapsed(), iterations);
    }
}

/// Returns the number of iterations of a read, which take about 0.2 seconds.
fn iterations(name: &str) -> usize {
    match name.split_once('/') {
        Some(("flags", _)) => 20_000_000,
        Some(("provider" | "request" | "events", _)) => 500_000,
        _ => 200_000,
    }
}

fn run<T>(iterations: usize, read: impl Fn(usize) -> T) {
    for number in 0..iterations {
        black_box(read(number));
    }
}

fn print(name: &str, elapsed: Duration, iterations: usize) {
    println!("{name} {:.3}", elapsed.as_nanos() as f64 / iterations as f64);
}

/// Measures requests whose handler reads one flag, with a `Context` and with a `PreparedContext`, the same requests with the
/// layer but without a read, and the same requests without flags. Several users send requests in turn.
fn measure_requests(measure: &mut impl Measure) {
    let runtime = Runtime::new().expect("a runtime");
    let service = runtime.block_on(LocalServer::start(json!({"flag-50": true}))).expect("the service starts");
    let builder = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).enable_realtime(false);
    let provider = builder.polling_interval(Duration::from_secs(24 * 3600)).build().expect("the provider is set up");
    let users: Vec<_> = (0..TURNS).map(|number| format!("user-{number}")).collect();
    let contexts: Vec<_> = users.iter().map(|user| context(user).prepared()).collect();
    for context in &contexts {
        assert!(runtime.block_on(provider.flags(context)).bool("flag-50", false), "flags are not cached");
    }
    let turn = Arc::new(AtomicUsize::new(0));
    let next = move || turn.fetch_add(1, Ordering::Relaxed) % TURNS;
    let built = {
        let next = next.clone();
        move || context(&users[next()])
    };
    let prepared = move || contexts[next()].clone();

    let layer = || FlipswitchLayer::new(provider.clone());
    let reading = async |flags: Flags| greeting(flags.bool("flag-50", false));
    let bare = || Router::new().route("/", routing::get(async || greeting(true)));
    let reader = || Router::new().route("/", routing::get(reading));
    let (make, take) = (built.clone(), prepared.clone());
    let apps = [
        ("request/axum_bare", bare()),
        ("request/axum_empty_layer", bare().layer(tower::layer::layer_fn(Empty))),
        ("request/axum_layer", bare().layer(layer())),
        ("request/axum_flags", reader().layer(layer().with_context(move |_: &_| make()))),
        ("request/axum_prepared", reader().layer(layer().with_context(move |_: &_| take()))),
    ];
    for (name, app) in apps {
        // `axum::serve` does the same for each connection.
        let app = Mutex::new(app.with_state::<()>(()));
        measure.on_one_thread(name, |_| {
            let request = Request::get("/").body(Body::empty()).expect("a request");
            let response = app.lock().expect("one thread").call(request).now_or_never();
            response.expect("the handler does not wait").expect("no request fails")
        });
    }

    let system = System::new();
    let middleware = FlipswitchMiddleware::new(provider);
    let reading = async |flags: flipswitch_actix::Flags| greeting(flags.bool("flag-50", false));
    let request = || test::TestRequest::get().uri("/").to_request();
    macro_rules! measure {
        ($name:literal, $app:expr) => {
            let app = system.block_on(test::init_service($app));
            measure.on_one_thread($name, |_| {
                app.call(request()).now_or_never().expect("the handler does not wait").expect("no request fails")
            });
        };
    }
    let bare = || App::new().route("/", web::get().to(async || greeting(true)));
    measure!("request/actix_bare", bare());
    measure!("request/actix_layer", bare().wrap(middleware.clone()));
    let reader = || App::new().route("/", web::get().to(reading));
    measure!("request/actix_flags", reader().wrap(middleware.clone().with_context(move |_: &_| built())));
    measure!("request/actix_prepared", reader().wrap(middleware.with_context(move |_: &_| prepared())));
}

/// A layer that does nothing. It measures the cost of a layer in axum itself.
#[derive(Clone)]
struct Empty<S>(S);

impl<S: tower::Service<Request>> tower::Service<Request> for Empty<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> task::Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> S::Future {
        self.0.call(request)
    }
}

fn context(user: &str) -> Context {
    Context::user(user).with("country", "de").with("plan", "premium")
}

fn greeting(on: bool) -> &'static str {
    if on { "Hello, world!" } else { "Hello?" }
}

fn main() {
    let mut print = Print(std::env::args().nth(1).unwrap_or_default());
    measure_all(&mut print);
    measure_requests(&mut print);
}
