//! Events about reads of flags, as received by OpenTelemetry's log bridge, and the usage of flags.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Extension, Router, body::Body, http::Request, routing::get};
use flipswitch::{
    Context, ContextId, EvaluationEvents, FlipswitchProvider, FlipswitchProviderBuilder, Lifespan, RequestScope,
    open_feature::{Client, EvaluationContext, OpenFeature},
    testing::override_cookie,
};
use flipswitch_axum::{FlagGate, Flags, FlipswitchLayer};
use flipswitch_local::{Endpoint, Fault, LocalServer};
use flipswitch_otel::EvaluationHook;
use opentelemetry::logs::AnyValue;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::logs::{InMemoryLogExporter, SdkLoggerProvider};
use serde_json::{Value, json};
use tower::ServiceExt;
use tracing::{Subscriber, subscriber::DefaultGuard};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, filter_fn},
    layer::{Context as LayerContext, SubscriberExt},
    registry,
};

use crate::support::{self, Log, PATIENCE, eventually, in_time};

const SECRET: &str = "the secret of the applications in these tests";

/// The events of this thread.
struct Events {
    exporter: InMemoryLogExporter,
    _subscribed: (SdkLoggerProvider, DefaultGuard),
}

type Event = BTreeMap<String, Value>;

impl Events {
    fn of_this_thread() -> Self {
        let exporter = InMemoryLogExporter::default();
        let logs = SdkLoggerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let bridge = OpenTelemetryTracingBridge::new(&logs);
        let subscribed = tracing::subscriber::set_default(registry().with(LevelFilter::INFO).with(bridge));
        Self { exporter, _subscribed: (logs, subscribed) }
    }

    /// Returns the evaluations since the last call, checked against the semantic conventions.
    fn take(&self) -> Vec<Event> {
        let logs = self.exporter.get_emitted_logs().unwrap();
        self.exporter.reset();
        let evaluations = logs
            .iter()
            .map(|log| &log.record)
            .filter(|log| log.target().is_some_and(|target| target == "flipswitch::evaluation"));
        evaluations
            .map(|log| {
                assert!(is_listed("event", log.event_name().unwrap()), "{log:?}");
                assert!(log.body().is_none() && log.severity_text() == Some("INFO"), "{log:?}");
                let attributes = log.attributes_iter().map(|(key, value)| {
                    assert!(is_listed("attribute", key.as_str()), "{key}");
                    let value = match value {
                        AnyValue::Boolean(value) => json!(value),
                        AnyValue::Int(value) => json!(value),
                        AnyValue::Double(value) => json!(value),
                        AnyValue::String(value) => json!(value.as_str()),
                        other => panic!("{key}: {other:?}"),
                    };
                    (key.as_str().to_owned(), value)
                });
                let event = attributes.collect::<Event>();
                assert!(is_listed("reason", event["feature_flag.result.reason"].as_str().unwrap()), "{event:?}");
                let error = event.get("error.type");
                assert!(error.is_none_or(|error| is_listed("error", error.as_str().unwrap())), "{event:?}");
                event
            })
            .collect()
    }

    /// Returns the only evaluation since the last call, without the attributes that all evaluations share.
    fn one(&self) -> Value {
        let events = self.take();
        let [event] = &events[..] else { panic!("{events:?}") };
        let mut event = event.clone();
        assert_eq!(event.remove("feature_flag.provider.name"), Some(json!("flipswitch")));
        event.remove("feature_flag.context.id");
        event.into_iter().map(|(key, value)| (key.trim_start_matches("feature_flag.").to_owned(), value)).collect()
    }

    fn keys(&self) -> Vec<String> {
        let key = |event: Event| event["feature_flag.key"].as_str().unwrap().to_owned();
        self.take().into_iter().map(key).collect()
    }
}

/// Returns whether the list of the conventions has a name or a value.
fn is_listed(kind: &str, name: &str) -> bool {
    let list = include_str!("feature_flag_attributes.txt");
    list.lines().any(|line| line.split_once(' ') == Some((kind, name)))
}

fn builder(service: &LocalServer) -> FlipswitchProviderBuilder {
    support::builder(service).secret(SECRET).evaluation_events(EvaluationEvents::PerRead)
}

async fn service() -> LocalServer {
    let flag =
        |variants: Value, default: &str| json!({"state": "ENABLED", "variants": variants, "defaultVariant": default});
    let mut targeted = flag(json!({"on": true, "off": false}), "off");
    targeted["targeting"] = json!({"if": [{"==": [{"var": "targetingKey"}, "alice"]}, "on"]});
    targeted["metadata"] = json!({"flagSetId": "shop/production", "version": 7});
    let flags = json!({"flags": {
        "targeted": targeted,
        "static": flag(json!({"blue": "#00f"}), "blue"),
        "disabled": {"state": "DISABLED", "variants": {"on": true}, "defaultVariant": "on"},
    }});
    LocalServer::start(flags).await.unwrap()
}

#[tokio::test]
async fn an_event_has_the_attributes_of_the_conventions() {
    let (events, service) = (Events::of_this_thread(), service().await);
    let provider = builder(&service).build().unwrap();
    let flags = in_time(provider.flags(Context::user("alice"))).await;
    events.take();

    assert!(flags.bool("targeted", false));
    let targeted = json!({
        "key": "targeted", "result.variant": "on", "result.reason": "targeting_match", "set.id": "shop/production", "version": "7",
    });
    assert_eq!(events.one(), targeted);

    assert_eq!(flags.string("static", "red"), "#00f");
    assert_eq!(events.one(), json!({"key": "static", "result.variant": "blue", "result.reason": "static"}));

    // The flag has a different type, so the read returns the default passed to the call, which has its own type.
    assert_eq!(flags.int("static", 3), 3);
    let expected = json!({"key": "static", "result.value": 3, "result.reason": "error", "error.type": "type_mismatch"});
    assert_eq!(events.one(), expected);

    assert!(flags.bool("disabled", true));
    assert_eq!(events.one(), json!({"key": "disabled", "result.value": true, "result.reason": "disabled"}));

    assert_eq!(flags.float("missing", 0.5), 0.5);
    let missing =
        json!({"key": "missing", "result.value": 0.5, "result.reason": "error", "error.type": "flag_not_found"});
    assert_eq!(events.one(), missing);

    assert!(flags.evaluation("targeted").is_ok());
    assert_eq!(events.one(), targeted);
    in_time(provider.shutdown()).await;
}

#[tokio::test]
async fn values_without_variants_have_their_type() {
    let events = Events::of_this_thread();
    let service = LocalServer::start(json!({"b": true, "i": 7, "f": 0.5, "s": "x", "o": {"k": [1]}})).await.unwrap();
    let provider = builder(&service).build().unwrap();
    let flags = in_time(provider.flags(Context::user("alice"))).await;
    for (key, expected) in
        [("b", json!(true)), ("i", json!(7)), ("f", json!(0.5)), ("s", json!("x")), ("o", json!(r#"{"k":[1]}"#))]
    {
        events.take();
        assert!(flags.evaluation(key).is_ok());
        assert_eq!(events.one()["result.value"], expected, "{key}");
    }
    in_time(provider.shutdown()).await;
}

#[tokio::test]
async fn failed_flags_report_errors_and_last_known_values_report_stale() {
    let (events, service) = (Events::of_this_thread(), service().await);
    let failing = service.faults().add(Fault::on(Endpoint::Bulk).flag_error("static", "PARSE_ERROR")).unwrap();
    let provider = builder(&service).enable_realtime(false).enable_polling_fallback(false);
    let provider = provider.cache_ttl(Duration::from_millis(1)).miss_wait(Duration::from_millis(200)).build().unwrap();
    let flags = async |user: &str| in_time(provider.flags(Context::user(user))).await;
    eventually(async || flags("alice").await.error().is_none()).await;
    let known = flags("alice").await;
    events.take();
    assert_eq!(known.string("static", "red"), "red");
    let expected =
        json!({"key": "static", "result.value": "red", "result.reason": "error", "error.type": "parse_error"});
    assert_eq!(events.one(), expected);

    assert!(service.faults().remove(failing));
    service.faults().add(Fault::on(Endpoint::Bulk).status(503)).unwrap();
    eventually(async || flags("alice").await.is_stale()).await;
    let stale = flags("alice").await;
    events.take();
    assert!(stale.bool("targeted", false));
    assert_eq!(events.one()["result.reason"], "stale");

    let unknown = flags("bob").await;
    events.take();
    assert!(unknown.bool("targeted", true));
    let event = events.one();
    assert_eq!((&event["error.type"], &event["result.value"]), (&json!("general"), &json!(true)));
    assert!(event["error.message"].as_str().unwrap().starts_with("the flag service"), "{event}");
    in_time(provider.shutdown()).await;
}

#[tokio::test]
async fn a_request_reports_each_flag_once_or_each_read_or_nothing() {
    let (events, service) = (Events::of_this_thread(), service().await);
    let read = async |kind: EvaluationEvents| {
        let provider = builder(&service).evaluation_events(kind).build().unwrap();
        let scope = RequestScope::new(provider.clone(), Context::user("alice"));
        in_time(scope.flags()).await;
        events.take();
        for _ in 0..2 {
            let flags = in_time(scope.flags()).await;
            let _ = (flags.bool("targeted", false), flags.bool("targeted", false), flags.clone().int("static", 1));
            // None of these calls counts as a read.
            let _ = (flags.to_json(), flags.iter().count(), flags.why("disabled").to_string());
        }
        let reported = events.keys();
        in_time(provider.shutdown()).await;
        reported
    };
    let each = ["targeted", "targeted", "static"];
    assert_eq!(read(EvaluationEvents::PerRead).await, [each, each].concat());
    assert_eq!(read(EvaluationEvents::PerRequest).await, ["targeted", "static"]);
    assert_eq!(read(EvaluationEvents::Off).await, [""; 0]);
}

/// Counts the events of a target.
struct Count(&'static str, Arc<AtomicUsize>);

impl<S: Subscriber> Layer<S> for Count {
    fn on_event(&self, event: &tracing::Event<'_>, _: LayerContext<'_, S>) {
        if event.metadata().target() == self.0 {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Layers remember which of them are interested in the event that a thread is about to emit. A read that is not reported must
/// not leave such state behind.
#[tokio::test]
async fn a_read_that_is_not_reported_does_not_hide_other_events() {
    let service = service().await;
    let provider = builder(&service).evaluation_events(EvaluationEvents::PerRequest).build().unwrap();
    let flags = in_time(provider.flags(Context::user("alice"))).await;
    let counts = [(); 2].map(|()| Arc::<AtomicUsize>::default());
    let [console, other] = counts.each_ref().map(|count| Count("of the application", Arc::clone(count)));
    let console = console.with_filter(filter_fn(|metadata| !metadata.target().starts_with("flipswitch")));
    let _subscribed =
        tracing::subscriber::set_default(registry().with(console).with(other.with_filter(LevelFilter::INFO)));
    for number in 1..=3 {
        assert!(flags.bool("targeted", false));
        tracing::info!(target: "of the application", "an event");
        assert_eq!(counts.each_ref().map(|count| count.load(Ordering::Relaxed)), [number; 2]);
    }
    in_time(provider.shutdown()).await;
}

#[tokio::test]
async fn the_context_id_is_a_keyed_hash_by_default() {
    let (events, service) = (Events::of_this_thread(), service().await);
    let id = async |builder: FlipswitchProviderBuilder, context: Context| {
        let provider = builder.build().unwrap();
        let flags = in_time(provider.flags(context)).await;
        events.take();
        let _ = flags.bool("targeted", false);
        let id = events.take()[0].get("feature_flag.context.id").map(|id| id.as_str().unwrap().to_owned());
        in_time(provider.shutdown()).await;
        id
    };
    let alice = || Context::user("alice").with("plan", "premium");
    let code = id(builder(&service), alice()).await.unwrap();
    assert!(code.len() == 32 && code.bytes().all(|byte| byte.is_ascii_hexdigit()), "{code}");
    let same = id(builder(&service), Context::user("alice")).await;
    assert_eq!(same.as_ref(), Some(&code), "the id must be the same in another instance, with other attributes");
    assert_ne!(id(builder(&service), Context::user("bob")).await, same);
    assert_ne!(id(builder(&service).secret("another secret of this test"), alice()).await, same);
    assert_eq!(id(builder(&service), Context::anonymous()).await, None);
    let plain = builder(&service).evaluation_context_id(ContextId::Plain);
    assert_eq!(id(plain, alice()).await.as_deref(), Some("alice"));
    assert_eq!(id(builder(&service).evaluation_context_id(ContextId::Off), alice()).await, None);
}

#[tokio::test]
async fn gate_client_and_handler_report_a_flag_once_with_its_override() {
    // The application runs on this thread, whose events are collected.
    let (events, service) = (Events::of_this_thread(), service().await);
    let provider = builder(&service).evaluation_events(EvaluationEvents::PerRequest).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    let overrides = flipswitch::SignedOverrides::new(SECRET).allow(["targeted"]);
    let layer =
        FlipswitchLayer::new(provider.clone()).with_context(|_: &_| Context::user("bob")).with_overrides(overrides);
    let client = Arc::new(client("requests report", &provider).await);
    let read = async |Extension(client): Extension<Arc<Client>>, flags: Flags| {
        let of_client = client.get_bool_value("targeted", None, None).await.unwrap();
        format!("{} {of_client}", flags.bool("targeted", false))
    };
    let app =
        Router::new().route("/", get(read).layer(FlagGate::enabled("targeted"))).layer(layer).layer(Extension(client));
    let cookie = override_cookie(SECRET, json!({"targeted": true})).unwrap();
    for (cookie, status, variant, reason) in [("", 404, Some("off"), "default"), (&*cookie, 200, None, "override")] {
        let request = Request::get("/").header("cookie", cookie).body(Body::empty()).unwrap();
        events.take();
        let response = in_time(app.clone().oneshot(request)).await.unwrap();
        assert_eq!(response.status(), status);
        let event = events.one();
        assert_eq!(
            (event.get("result.variant").and_then(Value::as_str), &event["result.reason"]),
            (variant, &json!(reason))
        );
    }
    in_time(provider.shutdown()).await;
}

async fn client(name: &str, provider: &FlipswitchProvider) -> Client {
    let mut api = OpenFeature::singleton_mut().await;
    api.set_named_provider(name, provider.clone()).await;
    api.create_named_client(name)
}

#[tokio::test]
async fn a_hook_reports_the_evaluations_of_clients() {
    let (events, service) = (Events::of_this_thread(), service().await);
    let quiet = || support::builder(&service).secret(SECRET);
    let provider = quiet().build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    let client = client("a hook reports", &provider).await.with_hook(EvaluationHook::new(&provider));
    let alice = EvaluationContext::default().with_targeting_key("alice");
    in_time(provider.flags(&alice)).await;
    events.take();

    assert!(client.get_bool_value("targeted", Some(&alice), None).await.unwrap());
    let by_hook = events.take();
    assert!(client.get_int_value("static", Some(&alice), None).await.is_err());
    assert_eq!(events.one(), json!({"key": "static", "result.reason": "error", "error.type": "type_mismatch"}));

    // Within a request, the context is the context of the request.
    let scope = RequestScope::new(provider.clone(), Context::user("alice"));
    assert!(scope.run(client.get_bool_value("targeted", None, None)).await.unwrap());
    assert_eq!(events.take(), by_hook);

    // The hook reports exactly the same as the provider.
    let reporting = quiet().evaluation_events(EvaluationEvents::PerRead).build().unwrap();
    let flags = in_time(reporting.flags(&alice)).await;
    assert!(flags.bool("targeted", false));
    assert_eq!(events.take(), by_hook);
    in_time(provider.shutdown()).await;
    in_time(reporting.shutdown()).await;
}

#[tokio::test]
async fn a_hook_skips_flipswitch_evaluations_if_its_provider_reports_them() {
    let log = Log::of_this_thread();
    let service = service().await;
    let provider = builder(&service).build().unwrap();
    let hook = EvaluationHook::new(&provider);
    let warnings = log.lines().iter().filter(|line| line.contains("EvaluationHook leaves out")).count();
    assert_eq!(warnings, 1, "{:?}", log.lines());

    let events = Events::of_this_thread();
    let client = client("a hook and events", &provider).await.with_hook(hook);
    assert!(client.get_bool_value("targeted", Some(&support::user("alice")), None).await.unwrap());
    assert_eq!(events.keys(), ["targeted"]);
    in_time(provider.shutdown()).await;
}

flipswitch::flags! {
    static DECLARED;
    Targeted: bool = "targeted", default false;
    Unread: bool = "unread", default false;
}

#[tokio::test]
async fn usage_lists_flags_with_and_without_reads() {
    let service = service().await;
    let provider = builder(&service).build().unwrap();
    let lifespan = Lifespan::builder(provider.clone()).ready_timeout(PATIENCE).declared(DECLARED);
    let lifespan = in_time(lifespan.start()).await.unwrap();
    let flags = in_time(provider.flags(Context::user("alice"))).await;
    // Methods that return all flags do not count as reads.
    let _ = (flags.to_json(), in_time(provider.evaluate_all_flags(Context::user("alice"))).await.unwrap());
    let read = || -> Vec<_> {
        let usage = provider.usage();
        assert!(usage.is_complete);
        let flags = usage.flags.into_iter();
        flags.map(|flag| (flag.key, flag.last_read.is_some(), flag.is_declared, flag.is_known)).collect()
    };
    let row = |key: &str, was_read, is_declared, is_known| (key.to_owned(), was_read, is_declared, is_known);
    let unread = [
        row("disabled", false, false, true),
        row("static", false, false, true),
        row("targeted", false, true, true),
        row("unread", false, true, false),
    ];
    assert_eq!(read(), unread);

    let _ = (flags.get(Targeted), flags.int("missing", 1));
    let expected = [
        unread[0].clone(),
        row("missing", true, false, false),
        unread[1].clone(),
        row("targeted", true, true, true),
        unread[3].clone(),
    ];
    assert_eq!(read(), expected);
    let json = serde_json::to_value(provider.usage()).unwrap();
    assert!(json["flags"][3]["lastRead"].as_str().unwrap().ends_with(":00Z"), "{json}");

    // Reads also count in an outage and after shutdown.
    service.faults().add(Fault::on(Endpoint::Bulk).status(503)).unwrap();
    let _ = in_time(provider.flags(Context::user("bob"))).await.bool("in-an-outage", false);
    assert!(read().contains(&row("in-an-outage", true, false, false)));
    in_time(lifespan.shutdown()).await;
    let _ = flags.bool("after-shutdown", false);
    assert!(read().contains(&row("after-shutdown", true, false, false)));
}

/// A warning about declared flags follows the first response of a service that was not ready at startup.
#[tokio::test]
async fn declared_flags_are_checked_as_soon_as_the_service_responds() {
    let log = Log::of_this_thread();
    let service = service().await;
    service.faults().add(Fault::on(Endpoint::Bulk).status(503).times(2)).unwrap();
    // The provider runs on this thread, whose log is read.
    let provider = support::builder(&service).runtime(tokio::runtime::Handle::current()).build().unwrap();
    let lifespan = Lifespan::builder(provider).ready_timeout(Duration::from_millis(1)).declared(DECLARED);
    let lifespan = in_time(lifespan.start()).await.unwrap();
    let warnings = || log.lines().iter().filter(|line| line.contains("\\\"unread\\\" is missing")).count();
    assert_eq!(warnings(), 0, "{:?}", log.lines());
    eventually(async || warnings() == 1).await;
    in_time(lifespan.shutdown()).await;
    assert_eq!(warnings(), 1);
}

/// This holds even while the service fails, rejects users, and repeats the context in errors.
#[tokio::test]
async fn logs_events_and_usage_contain_no_targeting_keys_and_no_attributes() {
    const REQUESTS: usize = 10_000;
    let faults = Mutex::new(Vec::new());
    let service = service().await;
    let exporter = InMemoryLogExporter::default();
    let logs = SdkLoggerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let bridge = OpenTelemetryTracingBridge::new(&logs);
    let subscribed = tracing::subscriber::set_default(registry().with(LevelFilter::DEBUG).with(bridge));
    // Everything that logs runs on this thread.
    let provider = builder(&service).runtime(tokio::runtime::Handle::current()).build().unwrap();
    let client = client("nothing personal", &provider).await.with_hook(EvaluationHook::new(&provider));
    let fault = |fault: Fault| faults.lock().unwrap().push(service.faults().add(fault.times(3)).unwrap());
    for number in 0..REQUESTS {
        match number {
            1_000 => fault(Fault::on(Endpoint::Bulk).status(503)),
            3_000 => {
                let echo = "no rule for personal-key-3-0 with personal-value-0";
                let echo = json!({"errorCode": "INVALID_CONTEXT", "errorDetails": echo});
                fault(Fault::on(Endpoint::Bulk).status(400).json(echo).for_targeting_key("personal-key-3-0"));
            }
            5_000 => {
                let echo = "personal-key-5-0 has personal-value-0";
                let flag = json!({"key": "static", "errorCode": "GENERAL", "errorDetails": echo});
                let echo = Fault::on(Endpoint::Bulk).status(200).json(json!({"flags": [flag]}));
                fault(echo.for_targeting_key("personal-key-5-0"));
            }
            // Waits until the provider has recovered.
            2_000 | 4_000 | 6_000 => {
                let probe = || Context::user(format!("personal-key-{number}"));
                eventually(async || provider.flags(probe()).await.error().is_none()).await;
            }
            7_000 => service.set_flag("static", "another"),
            _ => {}
        }
        let context = Context::user(format!("personal-key-{}-{}", number / 1_000, number % 100))
            .with("name", format!("personal-value-{}", number % 100 % 3))
            .with("a name that is personal-name", 1);
        let scope = RequestScope::new(provider.clone(), context);
        scope
            .run(async {
                let flags = RequestScope::current().unwrap().flags().await;
                let _ = (flags.bool("targeted", false), flags.int("static", 1), flags.bool("missing", false));
                let _ = client.get_bool_value("targeted", None, None).await;
            })
            .await;
    }
    let faults = faults.into_inner().unwrap();
    assert!(
        faults.len() == 3 && faults.iter().all(|fault| service.faults().applied(*fault) > 0),
        "each fault must apply"
    );
    let stats = format!("{:?} {:?}", provider.stats(), provider.health());
    let usage = serde_json::to_string(&provider.usage()).unwrap();
    in_time(provider.shutdown()).await;
    drop(subscribed);
    let logs = exporter.get_emitted_logs().unwrap();
    let own =
        logs.iter().filter(|log| log.record.target().is_some_and(|target| !target.starts_with("flipswitch_local")));
    let left: Vec<_> = own.map(|log| format!("{:?}", log.record)).chain([stats, usage]).collect();
    assert!(left.len() > 3 * REQUESTS, "{}", left.len());
    let personal: Vec<_> = left.iter().filter(|text| text.contains("personal-")).take(5).collect();
    assert!(personal.is_empty(), "{personal:#?}");
}
