//! Measures what it costs to read a flag, to compare two versions of the code: `read_path [NAME]`. Takes about ten
//! seconds. With an argument, it measures the figures whose names contain it.
//!
//! Prints a line for each figure: its name, and nanoseconds for each of a fixed number of iterations. The figures are
//! those of `cargo bench -p flipswitch --bench read_path`, without the statistics, and those of whole requests through
//! the web frameworks, without sockets. `tools/compare` runs two builds of this program in turns, so that whatever else
//! the machine does meanwhile affects both.
#![expect(clippy::expect_used, clippy::print_stdout, reason = "it prints what it measures, and fails by panicking")]

#[path = "../../../flipswitch/benches/cases/mod.rs"]
mod cases;

use std::{
    hint::black_box,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use actix_web::{App, dev::Service as _, rt::System, test, web};
use axum::{Router, body::Body, extract::Request, routing};
use cases::{Measure, measure_all};
use flipswitch::{Context, FlipswitchProvider, serde_json::json};
use flipswitch_actix::FlipswitchMiddleware;
use flipswitch_axum::{Flags, FlipswitchLayer};
use futures_util::FutureExt;
use tower::Service as _;

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

/// Returns how often a read is measured: for about 0.2 seconds.
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

/// Measures requests whose handler reads one flag, and the same requests without flags.
fn measure_requests(measure: &mut impl Measure) {
    let provider = FlipswitchProvider::in_memory(json!({"flag-50": true}));
    let context = || Context::user("user-123").with("country", "de").with("plan", "premium");

    let layer = FlipswitchLayer::new(provider.clone()).with_context(move |_: &_| context());
    let reading = async |flags: Flags| greeting(flags.bool("flag-50", false));
    let bare = Router::new().route("/", routing::get(async || greeting(true)));
    let flags = Router::new().route("/", routing::get(reading)).layer(layer);
    for (name, app) in [("request/axum_bare", bare), ("request/axum_flags", flags)] {
        let app = Mutex::new(app);
        measure.on_one_thread(name, |_| {
            let request = Request::get("/").body(Body::empty()).expect("a request");
            let answered = app.lock().expect("one thread").call(request).now_or_never();
            answered.expect("nothing is waited for").expect("no request fails")
        });
    }

    let system = System::new();
    let middleware = FlipswitchMiddleware::new(provider).with_context(move |_: &_| context());
    let reading = async |flags: flipswitch_actix::Flags| greeting(flags.bool("flag-50", false));
    let bare = test::init_service(App::new().route("/", web::get().to(async || greeting(true))));
    let bare = system.block_on(bare);
    let flags = system.block_on(test::init_service(App::new().wrap(middleware).route("/", web::get().to(reading))));
    let request = || test::TestRequest::get().uri("/").to_request();
    measure.on_one_thread("request/actix_bare", |_| {
        bare.call(request()).now_or_never().expect("nothing is waited for").expect("no request fails")
    });
    measure.on_one_thread("request/actix_flags", |_| {
        flags.call(request()).now_or_never().expect("nothing is waited for").expect("no request fails")
    });
}

fn greeting(on: bool) -> &'static str {
    if on { "Hello, world!" } else { "Hello?" }
}

fn main() {
    let mut print = Print(std::env::args().nth(1).unwrap_or_default());
    measure_all(&mut print);
    measure_requests(&mut print);
}
