//! Measures what it costs to read a flag, to compare two versions of the code: `read_path`. Takes about four seconds.
//!
//! Prints a line for each figure: its name, and nanoseconds for each of a fixed number of iterations. The figures are
//! those of `cargo bench -p flipswitch --bench read_path`, without the statistics: `tools/compare` runs two builds of
//! this program in turns, so that whatever else the machine does meanwhile affects both.
#![expect(clippy::expect_used, clippy::print_stdout, reason = "it prints what it measures, and fails by panicking")]

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use flipswitch::{
    FlipswitchProvider,
    open_feature::{EvaluationContext, OpenFeature, provider::FeatureProvider},
    serde_json::{Map, json},
};
use flipswitch_local::LocalServer;
use futures_util::FutureExt;
use tokio::runtime::Runtime;

/// Flags of the service.
const FLAGS: usize = 100;
const KEY: &str = "flag-50";

flipswitch::flags! {
    Declared: bool = "flag-50", default false;
}

/// Runs `read` some times to warm up, then `iterations` times, and prints how long each took.
fn measure(name: &str, iterations: u32, read: impl Fn()) {
    (0..iterations / 10).for_each(|_| read());
    let began = Instant::now();
    (0..iterations).for_each(|_| read());
    print(name, began.elapsed(), iterations);
}

/// Runs `read` as often on each of two threads at once.
fn measure_on_two_threads(name: &str, iterations: u32, read: impl Fn() + Sync) {
    (0..iterations / 10).for_each(|_| read());
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..iterations).for_each(|_| read()));
        }
    });
    print(name, began.elapsed(), iterations);
}

fn print(name: &str, elapsed: Duration, iterations: u32) {
    println!("{name} {:.3}", elapsed.as_nanos() as f64 / f64::from(iterations));
}

fn context(attributes: usize) -> EvaluationContext {
    let context = EvaluationContext::default().with_targeting_key("user-123456");
    (0..attributes).fold(context, |context, number| {
        context.with_custom_field(format!("attribute-{number}"), format!("value-{number}"))
    })
}

fn main() {
    let runtime = Runtime::new().expect("a runtime");
    let mut values: Map<_, _> = (0..FLAGS).map(|number| (format!("flag-{number}"), json!(true))).collect();
    values.insert("text".to_owned(), json!("a string value"));
    let service = runtime.block_on(LocalServer::start(values.into())).expect("the service starts");
    let provider = FlipswitchProvider::builder("key")
        .base_url(service.url())
        // Nothing changes and nothing grows old meanwhile.
        .enable_realtime(false)
        .polling_interval(Duration::from_secs(24 * 3600))
        .build()
        .expect("the provider is set up");
    let (three, ten) = (context(3), context(10));
    let flags = runtime.block_on(provider.flags(&three));
    assert!(flags.bool(KEY, false) && runtime.block_on(provider.flags(&ten)).bool(KEY, false), "flags are not cached");

    measure("flags/bool", 30_000_000, || {
        black_box(flags.bool(black_box(KEY), false));
    });
    measure("flags/string", 30_000_000, || {
        black_box(flags.string(black_box("text"), ""));
    });
    measure("flags/typed", 30_000_000, || {
        black_box(black_box(&flags).get(Declared));
    });
    measure_on_two_threads("flags/bool_two_threads", 20_000_000, || {
        black_box(flags.bool(black_box(KEY), false));
    });

    let cached = |context| {
        black_box(provider.flags(black_box(context)).now_or_never().expect("flags are cached"));
    };
    measure("provider/flags_cached", 2_000_000, || cached(&three));
    measure("provider/flags_cached_10", 1_000_000, || cached(&ten));
    measure_on_two_threads("provider/flags_cached_two_threads", 1_000_000, || cached(&three));
    measure("provider/resolve_bool_cached", 1_000_000, || {
        let details = provider.resolve_bool_value(KEY, black_box(&three)).now_or_never();
        black_box(details.expect("flags are cached").expect("the flag is boolean"));
    });

    let client = runtime.block_on(async {
        let mut api = OpenFeature::singleton_mut().await;
        api.set_named_provider("flipswitch", provider.clone()).await;
        api.create_named_client("flipswitch")
    });
    measure("openfeature/flipswitch", 500_000, || {
        let details = client.get_bool_details(KEY, Some(black_box(&three)), None).now_or_never();
        black_box(details.expect("flags are cached").expect("the flag is boolean"));
    });
}
