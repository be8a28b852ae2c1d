//! The reads that are measured, for the benchmark `read_path` and for the program of the same name in `tools`.

use std::{array, hint::black_box, time::Duration};

use async_trait::async_trait;
use flipswitch::{
    Context, EvaluationEvents, Flags, FlipswitchProvider, IntoContext,
    open_feature::{
        Client, EvaluationContext, EvaluationReason, EvaluationResult, FlagMetadata, OpenFeature, StructValue,
        provider::{FeatureProvider, ProviderMetadata, ResolutionDetails},
    },
    serde_json::{Map, json},
};
use flipswitch_local::LocalServer;
use futures_util::FutureExt;
use tokio::runtime::Runtime;
use tracing::{Event, Metadata, Subscriber, span};

/// Number of flags of the service.
const FLAGS: usize = 100;
const KEY: &str = "flag-50";

/// Number of users whose contexts are read in turn. A thread remembers about as many.
const TURNS: usize = 16;
/// Number of users, of whom a thread remembers only a small part.
const MANY: usize = 1_000;

flipswitch::flags! {
    Declared: bool = "flag-50", default false;
}

/// Measures reads. A read gets the number of the iteration.
pub(crate) trait Measure {
    fn on_one_thread<T>(&mut self, name: &str, read: impl Fn(usize) -> T);

    /// Measures a read on two threads at the same time, as the time of one read on each of them.
    fn on_two_threads<T>(&mut self, name: &str, read: impl Fn(usize) -> T + Sync);

    fn on_one_and_two_threads<T>(&mut self, name: &str, read: impl Fn(usize) -> T + Sync) {
        self.on_one_thread(name, &read);
        self.on_two_threads(&format!("{name}_two_threads"), &read);
    }
}

/// Measures all reads.
pub(crate) fn measure_all(measure: &mut impl Measure) {
    let runtime = Runtime::new().expect("a runtime");
    let mut values: Map<_, _> = (0..FLAGS).map(|number| (format!("flag-{number}"), json!(true))).collect();
    values.insert("text".to_owned(), json!("a string value"));
    let service = runtime.block_on(LocalServer::start(values.into())).expect("the service starts");
    let provider = |events| {
        FlipswitchProvider::builder("key")
            .base_url(service.url())
            // Nothing changes and nothing becomes stale during the measurement.
            .enable_realtime(false)
            .polling_interval(Duration::from_secs(24 * 3600))
            .evaluation_events(events)
            .build()
            .expect("the provider is set up")
    };
    let reporting = provider(EvaluationEvents::PerRequest);
    let provider = provider(EvaluationEvents::Off);

    let users: [User; TURNS] = array::from_fn(User::new);
    let turns = users.each_ref().map(User::map);
    let prepared_turns = users.each_ref().map(|user| user.context().prepared());
    // Another user, whose flag set the thread remembers.
    let user = User::new(TURNS);
    let (three, context, prepared) = (&user.map(), &user.context(), &user.context().prepared());
    let ten = ten_attributes();
    let many: Vec<_> = (0..MANY).map(|number| User::new(2 * TURNS + number)).collect();
    let many_maps: Vec<_> = many.iter().map(User::map).collect();
    for context in turns.iter().chain(&many_maps).chain([three, &ten]) {
        let flags = runtime.block_on(provider.flags(context));
        assert!(flags.bool(KEY, false) && flags.error().is_none(), "flags are not cached");
    }

    let flags = cached(&provider, three);
    measure.on_one_and_two_threads("flags/bool", |_| flags.bool(black_box(KEY), false));
    measure.on_one_and_two_threads("flags/string", |_| {
        black_box(flags.string(black_box("text"), ""));
    });
    measure.on_one_and_two_threads("flags/typed", |_| black_box(&flags).get(Declared));

    // One context repeatedly, in each of its forms.
    measure.on_one_and_two_threads("provider/flags_cached", |_| cached(&provider, three));
    measure.on_one_and_two_threads("provider/flags_cached_10", |_| cached(&provider, &ten));
    measure.on_one_and_two_threads("provider/flags_context", |_| cached(&provider, context));
    measure.on_one_and_two_threads("provider/flags_prepared", |_| cached(&provider, prepared));
    // Several contexts in turn.
    measure.on_one_and_two_threads("provider/flags_in_turns", |turn| cached(&provider, &turns[turn % TURNS]));
    measure.on_one_and_two_threads("provider/flags_prepared_in_turns", |turn| {
        cached(&provider, &prepared_turns[turn % TURNS])
    });
    // A context that is built for each read, for several users in turn.
    let user = |turn: usize| black_box(&users[turn % TURNS]);
    measure.on_one_and_two_threads("provider/flags_many", |turn| cached(&provider, &many_maps[turn % MANY]));
    measure.on_one_and_two_threads("provider/flags_many_built", |turn| {
        cached(&provider, black_box(&many[turn % MANY]).context())
    });
    measure.on_one_and_two_threads("provider/flags_map_built", |turn| cached(&provider, user(turn).map()));
    measure.on_one_and_two_threads("provider/flags_built", |turn| cached(&provider, user(turn).context()));
    measure.on_one_and_two_threads("provider/flags_built_out_of_order", |turn| {
        cached(&provider, user(turn).context_out_of_order())
    });
    measure.on_one_and_two_threads("provider/resolve_bool_cached", |_| {
        let details = provider.resolve_bool_value(KEY, black_box(three)).now_or_never();
        details.expect("flags are cached").expect("the flag is boolean")
    });

    let floor = runtime.block_on(client("floor", Constant(ProviderMetadata::new("constant"))));
    let ours = runtime.block_on(client("flipswitch", provider.clone()));
    let read = |client: &Client| {
        let details = client.get_bool_details(KEY, Some(black_box(three)), None).now_or_never();
        details.expect("flags are cached").expect("the flag is boolean")
    };
    measure.on_one_and_two_threads("openfeature/floor", |_| read(&floor));
    measure.on_one_and_two_threads("openfeature/flipswitch", |_| read(&ours));

    // A request that reads one flag: without events, with events that no subscriber wants, and with a subscriber that receives
    // them.
    assert!(runtime.block_on(reporting.flags(three)).bool(KEY, false), "flags are not cached");
    let request = |provider| cached(provider, three).bool(black_box(KEY), false);
    measure.on_one_thread("events/off", |_| request(&provider));
    measure.on_one_thread("events/unwanted", |_| request(&reporting));
    tracing::subscriber::with_default(Discard, || {
        measure.on_one_thread("events/per_request", |_| request(&reporting));
        let flags = cached(&reporting, three);
        measure.on_one_thread("events/second_read", |_| flags.bool(black_box(KEY), false));
    });
}

/// A subscriber that receives every event about a flag, and does nothing with it.
struct Discard;

impl Subscriber for Discard {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "flipswitch::evaluation"
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        black_box(event);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Returns flags from memory.
fn cached(provider: &FlipswitchProvider, context: impl IntoContext) -> Flags {
    provider.flags(black_box(context)).now_or_never().expect("flags are cached")
}

async fn client(name: &str, provider: impl FeatureProvider) -> Client {
    let mut api = OpenFeature::singleton_mut().await;
    api.set_named_provider(name, provider).await;
    api.create_named_client(name)
}

/// What an application knows of its user, and its context in each form.
struct User {
    id: String,
    values: [String; 3],
}

impl User {
    fn new(number: usize) -> Self {
        Self {
            id: format!("user-{}", 123_456 + number),
            values: array::from_fn(|attribute| format!("value-{attribute}")),
        }
    }

    fn map(&self) -> EvaluationContext {
        let [first, second, third] = &self.values;
        EvaluationContext::default()
            .with_targeting_key(&self.id)
            .with_custom_field("attribute-0", first.as_str())
            .with_custom_field("attribute-1", second.as_str())
            .with_custom_field("attribute-2", third.as_str())
    }

    fn context(&self) -> Context {
        let [first, second, third] = &self.values;
        Context::user(&self.id).with("attribute-0", first).with("attribute-1", second).with("attribute-2", third)
    }

    fn context_out_of_order(&self) -> Context {
        let [first, second, third] = &self.values;
        Context::user(&self.id).with("attribute-2", third).with("attribute-0", first).with("attribute-1", second)
    }
}

fn ten_attributes() -> EvaluationContext {
    let context = EvaluationContext::default().with_targeting_key("user-123456");
    (0..10).fold(context, |context, number| {
        context.with_custom_field(format!("attribute-{number}"), format!("value-{number}"))
    })
}

/// A provider that returns what the service would, at no cost.
struct Constant(ProviderMetadata);

#[async_trait]
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
