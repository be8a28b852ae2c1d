//! What it costs to read one boolean flag out of a hundred, for a context with a targeting key and three attributes: from
//! Flipswitch, and from SDKs that others wrote, each set up so that it does as little as it can. README.md says what each
//! of them does in an evaluation.
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::{
    array, fs,
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime};
use flipswitch::{
    Context, Flags, FlipswitchProvider, IntoContext,
    open_feature::{
        EvaluationContext, EvaluationResult,
        provider::{FeatureProvider, ResolutionDetails},
    },
    serde_json::{Map, Value, from_value, json},
};
use flipswitch_local::LocalServer;
use futures_util::FutureExt;
use launchdarkly_server_sdk::{
    Client, ConfigBuilder, ContextBuilder, FlagBuilder, NullEventProcessorBuilder, TestData,
};
use open_feature_flagd::{CacheSettings, FlagdOptions, FlagdProvider, ResolverType};
use open_feature_ofrep::{OfrepOptions, OfrepProvider};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use unleash_yggdrasil::EngineState;

const FLAGS: usize = 100;
const KEY: &str = "flag-50";
const USER: &str = "user-123456";

/// Number of users whose contexts are read in turns, so that no thread remembers one of them.
const TURNS: usize = 16;

const ATTRIBUTES: [(&str, &str); 3] = [("attribute-0", "value-0"), (ATTRIBUTE, VALUE), ("attribute-2", "value-2")];

/// What a rule asks for, where there is one: the context has it, and everyone else gets `false`.
const ATTRIBUTE: &str = "attribute-1";
const VALUE: &str = "value-1";

/// What a reader gets if there is no such flag; all flags are `true` for this context.
const DEFAULT: bool = false;

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn keys() -> impl Iterator<Item = String> {
    (0..FLAGS).map(|number| format!("flag-{number}"))
}

/// The users who are read in turns. `USER` is none of them, because a thread may remember it.
fn users() -> [String; TURNS] {
    array::from_fn(|number| format!("user-{}", 123_457 + number))
}

/// The context of those who speak OpenFeature.
fn context(user: &str) -> EvaluationContext {
    let mut context = EvaluationContext::default().with_targeting_key(user);
    for (name, value) in ATTRIBUTES {
        context.add_custom_field(name, value);
    }
    context
}

/// The context as Flipswitch has it.
fn flipswitch_context(user: &str) -> Context {
    let [first, second, third] = black_box(ATTRIBUTES);
    Context::user(black_box(user)).with(first.0, first.1).with(second.0, second.1).with(third.0, third.1)
}

/// The context as Unleash has it.
fn unleash_context(user: &str) -> unleash_yggdrasil::Context {
    let [first, second, third] = black_box(ATTRIBUTES);
    let properties = [first, second, third].map(|(name, value)| (name.to_owned(), value.to_owned()));
    unleash_yggdrasil::Context {
        user_id: Some(black_box(user).to_owned()),
        properties: Some(properties.into()),
        ..unleash_yggdrasil::Context::default()
    }
}

/// What a caller of OpenFeature makes of a resolution.
fn value(resolved: EvaluationResult<ResolutionDetails<bool>>) -> bool {
    resolved.map_or(DEFAULT, |details| details.value)
}

/// The local flag service, where everyone gets `true` for each flag.
async fn service() -> LocalServer {
    let flags: Map<_, _> = keys().map(|key| (key, Value::Bool(true))).collect();
    LocalServer::start(flags.into()).await.unwrap()
}

fn measure(group: &mut Group<'_>, who: &str, read: impl Fn(&str) -> bool) {
    measure_in_turns(group, who, |key, _| read(key));
}

/// Measures a read for several users. A read gets the number of its user.
fn measure_in_turns(group: &mut Group<'_>, who: &str, read: impl Fn(&str, usize) -> bool) {
    check(who, &read);
    let mut turn = 0;
    group.bench_function(who, |bencher| {
        bencher.iter(|| {
            turn = (turn + 1) % TURNS;
            read(black_box(KEY), turn)
        });
    });
    check(who, &read);
}

/// Measures a read on two threads at once, as the time of one read on each of them.
fn measure_on_two_threads(group: &mut Group<'_>, who: &str, read: impl Fn(&str) -> bool + Sync) {
    measure_in_turns_on_two_threads(group, who, |key, _| read(key));
}

/// Measures a read for several users on two threads at once.
fn measure_in_turns_on_two_threads(group: &mut Group<'_>, who: &str, read: impl Fn(&str, usize) -> bool + Sync) {
    check(who, &read);
    let run = |iterations| {
        let mut turn = 0;
        for _ in 0..iterations {
            turn = (turn + 1) % TURNS;
            black_box(read(black_box(KEY), turn));
        }
    };
    group.bench_function(who, |bencher| {
        bencher.iter_custom(|iterations| {
            let began = Instant::now();
            thread::scope(|scope| {
                scope.spawn(|| run(iterations));
                scope.spawn(|| run(iterations));
            });
            began.elapsed()
        });
    });
    check(who, &read);
}

/// The flag differs from the default, so that a failing read is noticed. The users are read in turns here too, because
/// a thread remembers the one that it reads several times in succession.
fn check(who: &str, read: impl Fn(&str, usize) -> bool) {
    for turn in 0..TURNS {
        assert!(read(KEY, turn), "{who} must read the flag");
    }
    for turn in 0..TURNS {
        assert!(!read("no-such-flag", turn), "{who} must give the default for a flag that is not there");
    }
}

/// Returns flags from memory.
fn cached(provider: &FlipswitchProvider, context: impl IntoContext) -> Flags {
    provider.flags(black_box(context)).now_or_never().unwrap()
}

fn flipswitch(group: &mut Group<'_>, runtime: &Runtime) {
    let service = runtime.block_on(service());
    let provider = FlipswitchProvider::builder(service.api_key())
        .base_url(service.url())
        // Nothing changes and nothing becomes stale during the measurement.
        .enable_realtime(false)
        .polling_interval(Duration::from_secs(24 * 3600))
        .build()
        .unwrap();
    let (one, prepared) = (context(USER), flipswitch_context(USER).prepared());
    let users = users();
    let turns = users.each_ref().map(|user| context(user));
    let prepared_turns = users.each_ref().map(|user| flipswitch_context(user).prepared());
    let flags = runtime.block_on(async {
        // Otherwise its first request, which is for no user, might still be in flight.
        provider.ready(Duration::from_secs(10)).await.unwrap();
        for context in &turns {
            assert!(provider.flags(context).await.error().is_none());
        }
        provider.flags(&one).await
    });
    let asked = service.requests().len();
    measure(group, "flipswitch_flags", |key| flags.bool(key, DEFAULT));
    measure(group, "flipswitch_provider", |key| cached(&provider, &one).bool(key, DEFAULT));
    measure_on_two_threads(group, "flipswitch_two_threads", |key| cached(&provider, &one).bool(key, DEFAULT));
    measure(group, "flipswitch_prepared", |key| cached(&provider, &prepared).bool(key, DEFAULT));
    measure_on_two_threads(group, "flipswitch_prepared_two_threads", |key| {
        cached(&provider, &prepared).bool(key, DEFAULT)
    });
    measure_in_turns(group, "flipswitch_in_turns", |key, turn| cached(&provider, &turns[turn]).bool(key, DEFAULT));
    measure_in_turns(group, "flipswitch_prepared_in_turns", |key, turn| {
        cached(&provider, &prepared_turns[turn]).bool(key, DEFAULT)
    });
    let built = |key: &str, turn: usize| cached(&provider, flipswitch_context(&users[turn])).bool(key, DEFAULT);
    measure_in_turns(group, "flipswitch_built", built);
    measure_in_turns_on_two_threads(group, "flipswitch_built_two_threads", built);
    measure(group, "flipswitch_resolve", |key| {
        value(provider.resolve_bool_value(key, black_box(&one)).now_or_never().unwrap())
    });
    assert_eq!(service.requests().len(), asked, "all of it came from memory");
    runtime.block_on(async {
        provider.shutdown().await;
        service.shutdown().await;
    });
}

fn unleash(group: &mut Group<'_>) {
    let rule = json!({"contextName": ATTRIBUTE, "operator": "IN", "values": [VALUE]});
    for (who, constraints) in [("unleash", json!([])), ("unleash_rule", json!([rule]))] {
        let strategy = json!({"name": "default", "constraints": constraints});
        let features: Vec<_> =
            keys().map(|key| json!({"name": key, "enabled": true, "strategies": [strategy]})).collect();
        let engine = EngineState::default();
        let warnings = engine.apply_client_features(from_value(json!({"version": 2, "features": features})).unwrap());
        assert!(warnings.is_none(), "{warnings:?}");
        let context = unleash_context(USER);
        let read = |key: &str| engine.is_enabled(key, black_box(&context), &None);
        measure(group, who, read);
        if who == "unleash_rule" {
            measure_on_two_threads(group, "unleash_rule_two_threads", read);
            let users = users();
            let built =
                |key: &str, turn: usize| engine.is_enabled(key, black_box(&unleash_context(&users[turn])), &None);
            measure_in_turns(group, "unleash_rule_built", built);
            measure_in_turns_on_two_threads(group, "unleash_rule_built_two_threads", built);
        }
    }
}

fn launchdarkly(group: &mut Group<'_>, runtime: &Runtime) {
    type Define = fn(FlagBuilder) -> FlagBuilder;
    let cases: [(_, Define); 2] = [
        ("launchdarkly", |flag| flag.variation_for_all(true)),
        ("launchdarkly_rule", |flag| {
            flag.fallthrough_variation(false).if_match(ATTRIBUTE, vec![VALUE.into()]).then_return(true)
        }),
    ];
    for (who, define) in cases {
        let flags = TestData::new();
        for key in keys() {
            flags.update(define(FlagBuilder::new(key)));
        }
        let config = ConfigBuilder::new("key")
            .data_source(&flags)
            // An event is still made in each evaluation, and thrown away: no setting that evaluates flags avoids it.
            .event_processor(&NullEventProcessorBuilder::new())
            .build()
            .unwrap();
        let client = Client::build(config).unwrap();
        let started = runtime.block_on(async {
            client.start_with_default_executor();
            client.wait_for_initialization(Duration::from_secs(10)).await
        });
        assert_eq!(started, Some(true));
        let mut context = ContextBuilder::new(USER);
        for (name, value) in ATTRIBUTES {
            context.set_value(name, value.into());
        }
        let context = context.build().unwrap();
        measure(group, who, |key| client.bool_variation(black_box(&context), key, DEFAULT));
        client.close();
    }
}

fn flagd(group: &mut Group<'_>, runtime: &Runtime) {
    let everyone = json!({"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "on"});
    let mut rule = everyone.clone();
    rule["defaultVariant"] = json!("off");
    rule["targeting"] = json!({"if": [{"==": [{"var": ATTRIBUTE}, VALUE]}, "on", "off"]});
    let context = context(USER);
    // Its documentation says that this mode has no cache, and shows a set-up that has one: here are both.
    let cache = Some(CacheSettings::default());
    for (who, flag, cache_settings) in
        [("flagd", &everyone, None), ("flagd_cached", &everyone, cache), ("flagd_rule", &rule, None)]
    {
        // In a directory of its own: the provider reads the file again whenever something changes beside it.
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("flags.json");
        let flags: Map<_, _> = keys().map(|key| (key, flag.clone())).collect();
        fs::write(&file, json!({"flags": flags}).to_string()).unwrap();
        let options = FlagdOptions {
            resolver_type: ResolverType::File,
            source_configuration: Some(file.to_str().unwrap().to_owned()),
            cache_settings,
            ..FlagdOptions::default()
        };
        let provider = runtime.block_on(FlagdProvider::new(options)).unwrap();
        measure(group, who, |key| value(provider.resolve_bool_value(key, black_box(&context)).now_or_never().unwrap()));
    }
}

fn ofrep(group: &mut Group<'_>, runtime: &Runtime) {
    let service = runtime.block_on(service());
    // On the thread that waits, which suits it best: on a runtime with several threads they wake each other for each
    // request.
    let client = Builder::new_current_thread().enable_all().build().unwrap();
    let options = OfrepOptions { base_url: service.url(), ..OfrepOptions::default() };
    let provider = client.block_on(OfrepProvider::new(options)).unwrap();
    let context = context(USER);
    let read = |key: &str| value(client.block_on(provider.resolve_bool_value(key, &context)));
    assert!(read(KEY) && read(KEY));
    assert_eq!(service.requests().len(), 2, "each evaluation is a request");
    measure(group, "ofrep", read);
    runtime.block_on(service.shutdown());
}

/// Measures one after the other; each is ended before the next begins.
fn bool(criterion: &mut Criterion) {
    // For what goes on beside the reading: the local service, the SDKs' own tasks.
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut group = criterion.benchmark_group("bool");
    flipswitch(&mut group, &runtime);
    unleash(&mut group);
    launchdarkly(&mut group, &runtime);
    flagd(&mut group, &runtime);
    ofrep(&mut group, &runtime);
    group.finish();
}

criterion_group!(benches, bool);
criterion_main!(benches);
