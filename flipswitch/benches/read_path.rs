//! What it costs to read a flag: from a `Flags`, from the provider's memory, and through OpenFeature's client, the last
//! beside the same client with a provider that does nothing but return the same details.
#![allow(missing_docs, reason = "criterion's macros make public items")]
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use criterion::{Bencher, Criterion, criterion_group, criterion_main};
use flipswitch::{
    FlipswitchProvider,
    open_feature::{
        Client, EvaluationContext, EvaluationReason, EvaluationResult, FlagMetadata, OpenFeature, StructValue,
        provider::{FeatureProvider, ProviderMetadata, ResolutionDetails},
    },
    serde_json::{Map, json},
};
use flipswitch_local::LocalServer;
use futures_util::FutureExt;
use tokio::runtime::Runtime;

/// A hundred flags, as the service has them.
const FLAGS: usize = 100;
const KEY: &str = "flag-50";

flipswitch::flags! {
    Declared: bool = "flag-50", default false;
}

/// Keeps the service running while it is measured.
struct World {
    runtime: Runtime,
    provider: FlipswitchProvider,
    _service: LocalServer,
}

impl World {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let flags: Map<_, _> = (0..FLAGS).map(|number| (format!("flag-{number}"), json!(true))).collect();
        let service = runtime.block_on(LocalServer::start(flags.into())).unwrap();
        service.set_flag("text", "a string value");
        let provider = FlipswitchProvider::builder("key")
            .base_url(service.url())
            // Nothing changes and nothing grows old meanwhile.
            .enable_realtime(false)
            .polling_interval(Duration::from_secs(24 * 3600))
            .build()
            .unwrap();
        Self { runtime, provider, _service: service }
    }

    /// A context whose answer is known.
    fn known(&self, attributes: usize) -> EvaluationContext {
        let mut context = EvaluationContext::default().with_targeting_key("user-123456");
        for (name, value) in (0..attributes).map(|number| (format!("attribute-{number}"), format!("value-{number}"))) {
            context.add_custom_field(name, value);
        }
        let flags = self.runtime.block_on(self.provider.flags(&context));
        assert!(flags.bool(KEY, false) && flags.error().is_none());
        context
    }
}

/// Runs the same on two threads at once; what is told is the time of one run on each.
fn on_two_threads(bencher: &mut Bencher<'_>, run: impl Fn() + Sync) {
    bencher.iter_custom(|iterations| {
        let began = Instant::now();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..iterations).for_each(|_| run()));
            }
        });
        began.elapsed()
    });
}

fn flags(criterion: &mut Criterion) {
    let world = World::new();
    let flags = world.runtime.block_on(world.provider.flags(&world.known(3)));
    let mut group = criterion.benchmark_group("flags");
    group.bench_function("bool", |bencher| bencher.iter(|| flags.bool(black_box(KEY), false)));
    group.bench_function("string", |bencher| {
        bencher.iter(|| {
            black_box(flags.string(black_box("text"), ""));
        });
    });
    group.bench_function("typed", |bencher| bencher.iter(|| black_box(&flags).get(Declared)));
    group.bench_function("bool_two_threads", |bencher| {
        on_two_threads(bencher, || {
            black_box(flags.bool(black_box(KEY), false));
        });
    });
    group.finish();
}

fn provider(criterion: &mut Criterion) {
    let world = World::new();
    let (three, ten) = (world.known(3), world.known(10));
    let hit = |context: &EvaluationContext| world.provider.flags(black_box(context)).now_or_never().unwrap();
    let mut group = criterion.benchmark_group("provider");
    group.bench_function("flags_cached", |bencher| bencher.iter(|| hit(&three)));
    group.bench_function("flags_cached_10", |bencher| bencher.iter(|| hit(&ten)));
    group
        .bench_function("flags_cached_two_threads", |bencher| on_two_threads(bencher, || drop(black_box(hit(&three)))));
    group.bench_function("resolve_bool_cached", |bencher| {
        bencher.iter(|| world.provider.resolve_bool_value(KEY, black_box(&three)).now_or_never().unwrap().unwrap());
    });
    group.finish();
}

/// Returns what the service would, at no cost.
struct Constant(ProviderMetadata);

#[async_trait::async_trait]
impl FeatureProvider for Constant {
    fn metadata(&self) -> &ProviderMetadata {
        &self.0
    }

    async fn resolve_bool_value(&self, _: &str, _: &EvaluationContext) -> EvaluationResult<ResolutionDetails<bool>> {
        let metadata = FlagMetadata::default().with_value("flagType", "boolean");
        Ok(ResolutionDetails {
            value: true,
            variant: None,
            reason: Some(EvaluationReason::Static),
            flag_metadata: Some(metadata),
        })
    }

    async fn resolve_int_value(&self, _: &str, _: &EvaluationContext) -> EvaluationResult<ResolutionDetails<i64>> {
        Ok(ResolutionDetails::new(1))
    }

    async fn resolve_float_value(&self, _: &str, _: &EvaluationContext) -> EvaluationResult<ResolutionDetails<f64>> {
        Ok(ResolutionDetails::new(1.0))
    }

    async fn resolve_string_value(
        &self,
        _: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<String>> {
        Ok(ResolutionDetails::new("1"))
    }

    async fn resolve_struct_value(
        &self,
        _: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<StructValue>> {
        Ok(ResolutionDetails::default())
    }
}

fn openfeature(criterion: &mut Criterion) {
    let world = World::new();
    let context = world.known(3);
    let client = |name: &str, provider: Option<FlipswitchProvider>| -> Client {
        world.runtime.block_on(async {
            let mut api = OpenFeature::singleton_mut().await;
            match provider {
                Some(provider) => api.set_named_provider(name, provider).await,
                None => api.set_named_provider(name, Constant(ProviderMetadata::new("constant"))).await,
            }
            api.create_named_client(name)
        })
    };
    let (floor, ours) = (client("floor", None), client("flipswitch", Some(world.provider.clone())));
    let read = |client: &Client| client.get_bool_details(KEY, Some(&context), None).now_or_never().unwrap().unwrap();
    let mut group = criterion.benchmark_group("openfeature");
    group.bench_function("floor", |bencher| bencher.iter(|| read(&floor)));
    group.bench_function("flipswitch", |bencher| bencher.iter(|| read(&ours)));
    group.finish();
}

criterion_group!(benches, flags, provider, openfeature);
criterion_main!(benches);
