//! Measures the time to read one of a hundred boolean flags, for a context with a targeting key and three attributes, with
//! Flipswitch and with other SDKs in the same situations. README.md describes what each SDK does in a read.
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

mod common;

use std::{
    fs,
    future::Future,
    hint::black_box,
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{
    ATTRIBUTES, DEFAULT, HEARTBEAT, KEY, USER, evaluation_context, flagd_flags, flipswitch_context, keys,
    launchdarkly_context, launchdarkly_flag, service, unleash_features, value,
};
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime};
use flipswitch::{
    ConnectionStatus, Context, FlipswitchProvider, open_feature::provider::FeatureProvider, serde_json::from_value,
};
use flipswitch_local::LocalServer;
use futures_util::FutureExt;
use launchdarkly_server_sdk::{Client, ConfigBuilder, NullEventProcessorBuilder, TestData};
use open_feature_flagd::{CacheSettings, FlagdOptions, FlagdProvider, ResolverType};
use open_feature_ofrep::{OfrepOptions, OfrepProvider};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use unleash_yggdrasil::EngineState;

/// The number of users whose flags are read in turn. A thread that uses Flipswitch remembers hardly any of them.
const USERS: usize = 1_000;
/// The number of these users in `few_users`. A thread that uses Flipswitch remembers most of them.
const FEW: usize = 16;

/// The number of users that have been seen so far in `new_user`.
static NEW_USERS: AtomicU64 = AtomicU64::new(0);

/// The benchmarks of one SDK.
type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// Returns the users whose flags are read in turn. `USER` is not among them, because a thread may remember it.
fn users() -> Vec<String> {
    (0..USERS).map(|number| format!("user-{}", 123_457 + number)).collect()
}

/// Returns a user that no SDK has seen before.
fn new_user() -> String {
    format!("user-{}", 1_000_000 + NEW_USERS.fetch_add(1, Ordering::Relaxed))
}

/// Measures one SDK in all situations except `new_user`. `at_hand` makes a context that an application keeps, `read` reads
/// a flag for such a context, and `built` builds a context for a user and reads a flag for it.
fn situations<C: Sync>(
    group: &mut Group<'_>,
    at_hand: impl Fn(&str) -> C,
    read: impl Fn(&str, &C) -> bool + Sync,
    built: impl Fn(&str, &str) -> bool + Sync,
) {
    let users = users();
    let (one, contexts) = (at_hand(USER), users.iter().map(|user| at_hand(user)).collect::<Vec<_>>());
    measure(group, "same_user", |key, _| read(key, black_box(&one)));
    measure(group, "few_users", |key, turn| read(key, black_box(&contexts[turn % FEW])));
    measure(group, "many_users", |key, turn| read(key, black_box(&contexts[turn])));
    measure(group, "built", |key, turn| built(key, black_box(&users[turn])));
    measure_on_two_threads(group, "same_user_two_threads", |key, _| read(key, black_box(&one)));
    measure_on_two_threads(group, "built_two_threads", |key, turn| built(key, black_box(&users[turn])));
}

/// Measures a read for a user that the SDK has never seen before. `built` builds the context of this user.
fn measure_new_user(group: &mut Group<'_>, built: impl Fn(&str, &str) -> bool) {
    measure(group, "new_user", |key, _| built(key, black_box(&new_user())));
}

/// Measures a read. The function gets the key of the flag and the number of the user.
fn measure(group: &mut Group<'_>, situation: &str, read: impl Fn(&str, usize) -> bool) {
    check(situation, &read);
    let mut turn = 0;
    group.bench_function(situation, |bencher| {
        bencher.iter(|| {
            turn = (turn + 1) % USERS;
            read(black_box(KEY), turn)
        });
    });
    check(situation, &read);
}

/// Measures a read on two threads at once, as the time of one read on each of them.
fn measure_on_two_threads(group: &mut Group<'_>, situation: &str, read: impl Fn(&str, usize) -> bool + Sync) {
    check(situation, &read);
    let run = |iterations, began: &Barrier| {
        began.wait();
        let mut turn = 0;
        for _ in 0..iterations {
            turn = (turn + 1) % USERS;
            black_box(read(black_box(KEY), turn));
        }
    };
    group.bench_function(situation, |bencher| {
        bencher.iter_custom(|iterations| {
            let barrier = Barrier::new(3);
            thread::scope(|scope| {
                let threads = [(); 2].map(|()| scope.spawn(|| run(iterations, &barrier)));
                barrier.wait();
                let began = Instant::now();
                for thread in threads {
                    thread.join().unwrap();
                }
                began.elapsed()
            })
        });
    });
    check(situation, &read);
}

/// Checks that the flag is read, and that a flag that does not exist has the default. The check also reads the flags of all
/// users in turn, because a thread remembers users whose flags it has read several times.
fn check(situation: &str, read: impl Fn(&str, usize) -> bool) {
    for turn in 0..USERS {
        assert!(read(KEY, turn), "{situation}: the flag must be read");
    }
    for turn in 0..USERS {
        assert!(!read("no-such-flag", turn), "{situation}: a flag that does not exist must have the default");
    }
}

/// Returns the result of a read that does not wait.
fn ready<T>(read: impl Future<Output = T>) -> T {
    read.now_or_never().unwrap()
}

/// Returns a provider with default options.
fn provider(service: &LocalServer, runtime: &Runtime) -> FlipswitchProvider {
    let provider = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).build().unwrap();
    runtime.block_on(provider.ready(Duration::from_secs(10))).unwrap();
    // Flags are requested once more after the stream of changes has opened, and after its first heartbeat.
    while provider.sse_status() != ConnectionStatus::Connected {
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(3 * HEARTBEAT);
    provider
}

fn flipswitch(criterion: &mut Criterion, runtime: &Runtime) {
    let server = runtime.block_on(service(true));
    let provider = provider(&server, runtime);
    let wait = |context: Context| runtime.block_on(provider.flags(context));
    for user in users().iter().map(String::as_str).chain([USER]) {
        assert!(wait(flipswitch_context(user)).error().is_none());
    }
    let before = provider.stats();

    let mut group = criterion.benchmark_group("flipswitch");
    let flags = ready(provider.flags(flipswitch_context(USER)));
    measure(&mut group, "from_flags", |key, _| flags.bool(key, DEFAULT));
    situations(
        &mut group,
        |user| flipswitch_context(user).prepared(),
        |key, context| ready(provider.flags(context)).bool(key, DEFAULT),
        |key, user| ready(provider.flags(flipswitch_context(user))).bool(key, DEFAULT),
    );
    group.finish();
    let mut group = criterion.benchmark_group("flipswitch_evaluation_context");
    situations(
        &mut group,
        evaluation_context,
        |key, context| ready(provider.flags(context)).bool(key, DEFAULT),
        |key, user| ready(provider.flags(evaluation_context(user))).bool(key, DEFAULT),
    );
    group.finish();
    let mut group = criterion.benchmark_group("flipswitch_openfeature");
    situations(
        &mut group,
        evaluation_context,
        |key, context| value(ready(provider.resolve_bool_value(key, context))),
        |key, user| value(ready(provider.resolve_bool_value(key, &evaluation_context(user)))),
    );
    group.finish();
    let after = provider.stats();
    assert_eq!((after.requests, after.stale_served), (before.requests, 0), "every read was fresh and from memory");

    // New users are measured last, because they replace the others in the cache.
    let seen = NEW_USERS.load(Ordering::Relaxed);
    measure_new_user(&mut criterion.benchmark_group("flipswitch"), |key, user| {
        wait(flipswitch_context(user)).bool(key, DEFAULT)
    });
    measure_new_user(&mut criterion.benchmark_group("flipswitch_evaluation_context"), |key, user| {
        runtime.block_on(provider.flags(evaluation_context(user))).bool(key, DEFAULT)
    });
    measure_new_user(&mut criterion.benchmark_group("flipswitch_openfeature"), |key, user| {
        value(runtime.block_on(provider.resolve_bool_value(key, &evaluation_context(user))))
    });
    requested_once(&provider, before.requests, seen);
    stop(&provider, server, runtime);
}

/// Measures a new user with a service that has no rules to evaluate.
fn flipswitch_without_rules(criterion: &mut Criterion, runtime: &Runtime) {
    let server = runtime.block_on(service(false));
    let provider = provider(&server, runtime);
    let (requests, seen) = (provider.stats().requests, NEW_USERS.load(Ordering::Relaxed));
    measure(&mut criterion.benchmark_group("flipswitch"), "new_user_no_rule", |key, _| {
        runtime.block_on(provider.flags(flipswitch_context(black_box(&new_user())))).bool(key, DEFAULT)
    });
    requested_once(&provider, requests, seen);
    stop(&provider, server, runtime);
}

/// Checks that the flags of each new user were requested once, and were received.
fn requested_once(provider: &FlipswitchProvider, requests_before: u64, seen_before: u64) {
    let stats = provider.stats();
    let seen = NEW_USERS.load(Ordering::Relaxed) - seen_before;
    assert_eq!((stats.requests, stats.unavailable), (requests_before + seen, 0), "each new user was one request");
}

fn stop(provider: &FlipswitchProvider, server: LocalServer, runtime: &Runtime) {
    runtime.block_on(async {
        provider.shutdown().await;
        server.shutdown().await;
    });
}

/// Builds a context of Unleash's engine.
fn unleash_context(user: &str) -> unleash_yggdrasil::Context {
    unleash_yggdrasil::Context {
        user_id: Some(user.to_owned()),
        properties: Some(ATTRIBUTES.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
        ..unleash_yggdrasil::Context::default()
    }
}

fn unleash(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unleash");
    for rule in [true, false] {
        let engine = EngineState::default();
        let warnings = engine.apply_client_features(from_value(unleash_features(rule)).unwrap());
        assert!(warnings.is_none(), "{warnings:?}");
        let read = |key: &str, context: &_| engine.is_enabled(key, context, &None);
        if rule {
            let built = |key: &str, user: &str| read(key, &unleash_context(user));
            situations(&mut group, unleash_context, read, built);
            measure_new_user(&mut group, built);
        } else {
            let context = unleash_context(USER);
            measure(&mut group, "no_rule", |key, _| read(key, black_box(&context)));
        }
    }
}

fn launchdarkly(criterion: &mut Criterion, runtime: &Runtime) {
    let mut group = criterion.benchmark_group("launchdarkly");
    for rule in [true, false] {
        let flags = TestData::new();
        for key in keys() {
            flags.update(launchdarkly_flag(&key, rule));
        }
        let config = ConfigBuilder::new("key")
            .data_source(&flags)
            // Each evaluation still builds an event, which is dropped. No setting avoids this.
            .event_processor(&NullEventProcessorBuilder::new())
            .build()
            .unwrap();
        let client = Client::build(config).unwrap();
        let started = runtime.block_on(async {
            client.start_with_default_executor();
            client.wait_for_initialization(Duration::from_secs(10)).await
        });
        assert_eq!(started, Some(true));
        let read = |key: &str, context: &_| client.bool_variation(context, key, DEFAULT);
        if rule {
            let built = |key: &str, user: &str| read(key, &launchdarkly_context(user));
            situations(&mut group, launchdarkly_context, read, built);
            measure_new_user(&mut group, built);
        } else {
            let context = launchdarkly_context(USER);
            measure(&mut group, "no_rule", |key, _| read(key, black_box(&context)));
        }
        client.close();
    }
}

fn flagd(criterion: &mut Criterion, runtime: &Runtime) {
    // The documentation says that this mode has no cache, but shows a set-up with one, so both are measured. The cache is
    // only for flags without rules.
    for (sdk, rule, cache_settings) in
        [("flagd", true, None), ("flagd", false, None), ("flagd_cached", false, Some(CacheSettings::default()))]
    {
        // The provider reads the file again whenever something in its directory changes.
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("flags.json");
        fs::write(&file, flagd_flags(rule).to_string()).unwrap();
        let options = FlagdOptions {
            resolver_type: ResolverType::File,
            source_configuration: Some(file.to_str().unwrap().to_owned()),
            cache_settings,
            ..FlagdOptions::default()
        };
        let provider = runtime.block_on(FlagdProvider::new(options)).unwrap();
        let mut group = criterion.benchmark_group(sdk);
        let read = |key: &str, context: &_| value(ready(provider.resolve_bool_value(key, context)));
        if rule {
            let built = |key: &str, user: &str| read(key, &evaluation_context(user));
            situations(&mut group, evaluation_context, read, built);
            measure_new_user(&mut group, built);
        } else {
            let context = evaluation_context(USER);
            measure(&mut group, "no_rule", |key, _| read(key, black_box(&context)));
        }
    }
}

fn ofrep(criterion: &mut Criterion, runtime: &Runtime) {
    let server = runtime.block_on(service(true));
    // The waiting thread drives the connection itself, which is fastest. On a runtime with several threads, the threads
    // would wake each other for each request.
    let client = Builder::new_current_thread().enable_all().build().unwrap();
    let options = OfrepOptions { base_url: server.url(), ..OfrepOptions::default() };
    let provider = client.block_on(OfrepProvider::new(options)).unwrap();
    let read = |key: &str, context: &_| value(client.block_on(provider.resolve_bool_value(key, context)));
    let built = |key: &str, user: &str| read(key, &evaluation_context(user));
    let context = evaluation_context(USER);
    assert!(read(KEY, &context) && read(KEY, &context));
    assert_eq!(server.requests().len(), 2, "each evaluation is a request");
    let mut group = criterion.benchmark_group("ofrep");
    situations(&mut group, evaluation_context, read, built);
    measure_new_user(&mut group, built);
    group.finish();
    runtime.block_on(server.shutdown());
}

/// Measures the SDKs one after the other. Each SDK is stopped before the next one starts.
fn all(criterion: &mut Criterion) {
    // This runtime is for background work: the local service and the tasks of the SDKs.
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    flipswitch(criterion, &runtime);
    flipswitch_without_rules(criterion, &runtime);
    unleash(criterion);
    launchdarkly(criterion, &runtime);
    flagd(criterion, &runtime);
    ofrep(criterion, &runtime);
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    targets = all
}
criterion_main!(benches);
