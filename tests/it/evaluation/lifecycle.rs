//! Evaluations in every state of a provider, and from every kind of caller.

use std::{thread, time::Duration};

use flipswitch::{
    Context, Error, FlagError, FlagType, FlipswitchProvider, ReadyError,
    open_feature::{EvaluationErrorCode, EvaluationReason, provider::FeatureProvider},
    serde_json::json,
    time::{OffsetDateTime, UtcOffset},
};
use flipswitch_local::LocalServer;
use tokio::{io::AsyncReadExt, net::TcpListener};

use crate::support::{self, Log, builder, in_time, provider, user};

#[tokio::test]
async fn a_flag_has_all_details_that_the_service_sends() {
    let service = LocalServer::start(json!({"flags": {
        "color": {
            "state": "ENABLED", "variants": {"v1": "red", "v2": "blue"}, "defaultVariant": "v1",
            "targeting": {"if": [{"==": [{"var": "plan"}, "premium"]}, "v2"]}, "metadata": {"owner": "web"},
        },
        "off": {"state": "DISABLED", "variants": {"on": true}, "defaultVariant": "on"},
        "broken": {"state": "ENABLED", "variants": {"on": true}, "defaultVariant": "on", "targeting": {"nonsense": []}},
    }}))
    .await
    .unwrap();
    let provider = provider(&service);
    let context = user("u").with_custom_field("plan", "premium");

    let color = provider.evaluate_flag("color", &context).await.unwrap().unwrap();
    assert_eq!(color.to_string(), r#"color (string): "blue" [reason=TARGETING_MATCH, variant=v2]"#);
    assert_eq!(color.metadata["owner"], "web");
    assert_eq!(provider.evaluate_flag("color", &user("u")).await.unwrap().unwrap().reason, "DEFAULT");

    let off = provider.evaluate_flag("off", &context).await.unwrap().unwrap();
    assert_eq!((off.value, off.reason.as_str(), off.flag_type), (json!(null), "DISABLED", FlagType::Boolean));

    assert!(provider.evaluate_flag("unknown", &context).await.unwrap().is_none());
    let broken = provider.evaluate_flag("broken", &context).await;
    assert!(matches!(broken, Err(Error::Evaluation { code, .. }) if code == "PARSE_ERROR"));

    let all = provider.evaluate_all_flags(&context).await.unwrap();
    assert_eq!(all.iter().map(|flag| flag.key.as_str()).collect::<Vec<_>>(), ["color", "off"]);
    provider.shutdown().await;
}

#[tokio::test]
async fn evaluation_before_ready_starts_the_provider() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let provider = provider(&service);
    assert!(service.requests().is_empty(), "a provider does nothing until it is used");
    let flags = in_time(provider.flags(&user("u"))).await;
    assert!(flags.bool("on", false) && flags.error().is_none());
    in_time(provider.ready(support::PATIENCE)).await.unwrap();
}

#[tokio::test]
async fn after_shutdown_evaluation_returns_last_values_or_defaults() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let provider = provider(&service);
    in_time(provider.ready(support::PATIENCE)).await.unwrap();
    assert!(!in_time(provider.flags(&user("known"))).await.is_stale());
    in_time(provider.shutdown()).await;
    in_time(provider.shutdown()).await;

    let flags = in_time(provider.flags(&user("u"))).await;
    assert!(!flags.bool("on", false));
    assert!(matches!(flags.error(), Some(Error::ShutDown)));
    assert!(matches!(flags.evaluation("on"), Err(FlagError::Unavailable(Error::ShutDown))));
    let known = in_time(provider.flags(&user("known"))).await;
    assert!(known.bool("on", false) && known.is_stale(), "the last values remain, and are stale");
    assert!(matches!(known.error(), Some(Error::ShutDown)));
    let error = in_time(provider.resolve_bool_value("on", &user("u"))).await.unwrap_err();
    assert_eq!(error.code, EvaluationErrorCode::ProviderNotReady);
    assert!(matches!(in_time(provider.ready(support::PATIENCE)).await, Err(ReadyError::ShutDown)));
}

#[tokio::test]
async fn shutdown_before_the_first_use_starts_nothing() {
    let provider = support::provider_of_nothing();
    in_time(provider.shutdown()).await;
    assert!(matches!(in_time(provider.flags(&user("u"))).await.error(), Some(Error::ShutDown)));
}

#[tokio::test]
async fn with_the_service_down_evaluation_returns_defaults_and_the_error() {
    let provider = support::provider_of_nothing();
    let flags = in_time(provider.flags(&user("u"))).await;
    assert_eq!(flags.int("limit", 7), 7);
    assert!(matches!(flags.error(), Some(Error::Transport(_))), "{:?}", flags.error());
    assert!(matches!(provider.evaluate_all_flags(&user("u")).await, Err(Error::Transport(_))));
    assert!(matches!(provider.evaluate_flag("limit", &user("u")).await, Err(Error::Transport(_))));
    let error = provider.resolve_int_value("limit", &user("u")).await.unwrap_err();
    assert!(matches!(error.code, EvaluationErrorCode::General(_)));
    assert!(error.message.unwrap().contains("\"limit\""));
    let ready = in_time(provider.ready(Duration::from_millis(50))).await;
    assert!(matches!(ready, Err(ReadyError::Unreachable(Error::Transport(_)))), "{ready:?}");
}

#[tokio::test]
async fn bootstrap_values_are_used_until_the_service_responds() {
    let address = support::reserved_port();
    let provider = FlipswitchProvider::builder("key")
        .base_url(format!("http://{address}"))
        .bootstrap(json!({"on": true}))
        .build()
        .unwrap();
    let flags = in_time(provider.flags(&user("u"))).await;
    assert!(flags.bool("on", false) && flags.is_stale());
    assert!(matches!(flags.error(), Some(Error::Transport(_))));
    assert_eq!(flags.evaluation("on").unwrap().reason, "DEFAULT");
    let details = provider.resolve_bool_value("on", &user("u")).await.unwrap();
    assert_eq!(details.reason, Some(EvaluationReason::Other("STALE".into())));

    let _service = LocalServer::builder().listen(address).flags(json!({"on": false})).start().await.unwrap();
    support::eventually(async || !provider.flags(&user("u")).await.bool("on", true)).await;
    assert!(!provider.flags(&user("u")).await.is_stale());
}

#[tokio::test]
async fn the_provider_becomes_ready_when_the_service_comes_up() {
    let address = support::reserved_port();
    let provider = FlipswitchProvider::builder("key").base_url(format!("http://{address}")).build().unwrap();
    assert!(in_time(provider.ready(Duration::from_millis(20))).await.is_err());
    let _service = LocalServer::builder().listen(address).start().await.unwrap();
    // Without evaluations, only the start-up request is retried.
    in_time(provider.ready(support::PATIENCE)).await.unwrap();
}

#[tokio::test]
async fn a_rejected_key_fails_ready_immediately() {
    let service = LocalServer::builder().flags(json!({"on": true})).api_key("right").start().await.unwrap();
    let provider = FlipswitchProvider::builder("wrong").base_url(service.url()).build().unwrap();
    let ready = in_time(provider.ready(Duration::from_secs(600))).await;
    assert!(matches!(ready, Err(ReadyError::Unauthorized)));
    let flags = provider.flags(&user("u")).await;
    assert!(!flags.bool("on", false) && matches!(flags.error(), Some(Error::Unauthorized)));
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_service_that_never_responds() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let provider = FlipswitchProvider::builder("key")
        .base_url(format!("http://{}", silent.local_addr().unwrap()))
        // Within the time limit of the test, only the shutdown ends the request.
        .request_timeout(10 * support::PATIENCE)
        .build()
        .unwrap();
    let ready = in_time(provider.ready(Duration::from_millis(10))).await;
    assert!(matches!(ready, Err(ReadyError::Timeout)), "{ready:?}");
    let waiting = {
        let provider = provider.clone();
        tokio::spawn(async move { provider.flags(&user("u")).await })
    };
    let (mut connection, _) = in_time(silent.accept()).await.unwrap();
    in_time(provider.shutdown()).await;
    assert!(matches!(in_time(waiting).await.unwrap().error(), Some(Error::ShutDown)));
    in_time(connection.read_to_end(&mut Vec::new())).await.ok();
}

#[test]
fn two_single_threaded_runtimes_share_a_provider() {
    let service_runtime = tokio::runtime::Runtime::new().unwrap();
    let service = service_runtime.block_on(LocalServer::start(support::whoami(["a".into(), "b".into()]))).unwrap();
    let provider = provider(&service);
    thread::scope(|scope| {
        for id in ["a", "b"] {
            let provider = provider.clone();
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                for _ in 0..200 {
                    let flags = runtime.block_on(in_time_of(provider.flags(&user(id))));
                    assert_eq!(flags.string("whoami", "default"), id);
                    // The other runtime must not depend on this one, which does nothing between two calls.
                    thread::yield_now();
                }
            });
        }
    });
    service_runtime.block_on(provider.shutdown());
}

async fn in_time_of<T>(future: impl Future<Output = T>) -> T {
    in_time(future).await
}

#[test]
fn evaluation_needs_no_runtime() {
    let service_runtime = tokio::runtime::Runtime::new().unwrap();
    let service = service_runtime.block_on(LocalServer::start(json!({"on": true}))).unwrap();
    let provider = provider(&service);
    pollster::block_on(async {
        provider.ready(support::PATIENCE).await.unwrap();
        assert!(provider.flags(&user("u")).await.bool("on", false));
        assert!(provider.resolve_bool_value("on", &user("u")).await.unwrap().value);
        provider.shutdown().await;
        assert!(provider.flags(&user("u")).await.is_stale());
        assert!(!provider.flags(&user("other")).await.bool("on", false));
    });
}

#[test]
fn a_configured_runtime_is_used_and_may_end() {
    let service_runtime = tokio::runtime::Runtime::new().unwrap();
    let service = service_runtime.block_on(LocalServer::start(json!({"on": true}))).unwrap();
    let given = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let provider = builder(&service).runtime(given.handle().clone()).build().unwrap();
    pollster::block_on(async {
        assert!(provider.flags(&user("u")).await.bool("on", false));
        given.shutdown_background();
        assert!(provider.flags(&user("u")).await.bool("on", false), "flags are in memory");
        let flags = provider.flags(&user("other")).await;
        assert!(matches!(flags.error(), Some(Error::ShutDown)), "{:?}", flags.error());
        provider.shutdown().await;
    });
}

#[tokio::test]
async fn dropping_the_last_handle_shuts_the_provider_down() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let provider =
        FlipswitchProvider::builder("key").base_url(url).request_timeout(10 * support::PATIENCE).build().unwrap();
    let other = provider.clone();
    assert!(in_time(provider.ready(Duration::from_millis(10))).await.is_err());
    let (mut connection, _) = in_time(silent.accept()).await.unwrap();
    drop(provider);
    let ready = in_time(other.ready(Duration::from_millis(10))).await;
    assert!(matches!(ready, Err(ReadyError::Timeout)), "there is still a handle: {ready:?}");
    drop(other);
    in_time(connection.read_to_end(&mut Vec::new())).await.ok();
}

#[tokio::test]
async fn in_memory_values_need_no_service() {
    let provider = FlipswitchProvider::in_memory(json!({"on": true, "limit": 5, "none": null}));
    provider.ready(Duration::ZERO).await.unwrap();
    let flags = provider.flags(&user("u")).await;
    assert!(flags.bool("on", false));
    assert_eq!((flags.int("limit", 0), flags.int("none", 3), flags.int("unknown", 4)), (5, 3, 4));
    assert_eq!(flags.evaluation("on").unwrap().reason, "STATIC");
    assert_eq!(flags.context(), user("u"));
    provider.shutdown().await;
    assert!(provider.flags(&user("u")).await.bool("on", false));
    assert_eq!(FlipswitchProvider::in_memory(json!(7)).flags(&user("u")).await.iter().count(), 0);
}

#[tokio::test]
async fn a_targeting_key_that_cannot_be_sent_is_rejected_without_a_request() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let provider = provider(&service);
    let key = "k".repeat(70_000);
    for flags in [provider.flags(user(&key)).await, provider.flags(Context::user(&key).with("plan", "free")).await] {
        let Some(Error::InvalidContext(text)) = flags.error() else { panic!("rejected: {:?}", flags.error()) };
        assert!(text.contains("the targeting key is 70017 bytes"), "{text}");
        assert!(!flags.bool("on", false) && flags.context().targeting_key.is_none());
    }
    let error = provider.resolve_bool_value("on", &user(&key)).await.unwrap_err();
    assert_eq!(error.code, EvaluationErrorCode::InvalidContext);
    assert!(service.requests().is_empty());
}

#[tokio::test]
async fn equal_attributes_are_one_context_however_they_are_passed() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let provider = builder(&service).enable_realtime(false).build().unwrap();
    let since = OffsetDateTime::from_unix_timestamp(1_768_991_400).unwrap();
    let elsewhere = since.to_offset(UtcOffset::from_hms(2, 0, 0).unwrap());
    let context = Context::user("u").with("since", elsewhere).with("plan", "free").with("n", 1);
    let prepared = context.clone().prepared();
    let fields =
        user("u").with_custom_field("n", 1).with_custom_field("plan", "free").with_custom_field("since", since);
    let all = [
        provider.flags(&context).await,
        provider.flags(context).await,
        provider.flags(&prepared).await,
        provider.flags(Some(prepared)).await,
        provider.flags(&fields).await,
        provider.flags(fields).await,
    ];
    let expected = user("u")
        .with_custom_field("n", 1)
        .with_custom_field("plan", "free")
        .with_custom_field("since", "2026-01-21T10:30:00Z");
    for flags in all {
        assert!(flags.bool("on", false));
        assert_eq!(flags.context(), expected);
    }
    assert_eq!(support::evaluations(&service), 1);
    let stats = provider.stats();
    assert_eq!((stats.hits, stats.attributes_left_out), (5, 0));
}

#[tokio::test]
async fn remembered_flags_are_replaced_after_a_new_key_and_stale_after_shutdown() {
    let service = LocalServer::start(json!({"version": 1})).await.unwrap();
    let provider = builder(&service).enable_realtime(false).build().unwrap();
    let context = user("u");
    for _ in 0..5 {
        assert_eq!(provider.flags(&context).await.int("version", 0), 1);
    }
    service.set_flag("version", 2);
    for _ in 0..5 {
        assert_eq!(provider.flags(&context).await.int("version", 0), 1, "the change is not announced");
    }
    provider.set_api_key(service.api_key()).unwrap();
    for _ in 0..5 {
        assert_eq!(provider.flags(&context).await.int("version", 0), 2);
    }
    provider.shutdown().await;
    for _ in 0..5 {
        let flags = provider.flags(&context).await;
        assert!(flags.is_stale() && flags.int("version", 0) == 2, "{flags:?}");
    }
}

#[tokio::test]
async fn each_attribute_that_cannot_be_sent_is_reported_once() {
    let log = Log::of_this_thread();
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let provider = builder(&service).enable_realtime(false).build().unwrap();
    let prepared = Context::user("u").with("lat", f64::NAN).with("targetingKey", "admin").prepared();
    let fields = user("u").with_custom_field("lat", f64::INFINITY);
    for _ in 0..3 {
        assert!(provider.flags(&prepared).await.bool("on", false));
        assert!(provider.flags(&fields).await.bool("on", false));
    }
    // The prepared context is evaluated twice, and each of the others once.
    assert_eq!(provider.stats().attributes_left_out, 5);
    drop(provider.flags(Context::from(prepared).with("lat", f64::NAN)).await);
    assert_eq!(provider.stats().attributes_left_out, 6, "only new contexts count");
    let warnings = log.lines();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    for (name, reason) in [("lat", "JSON cannot express NaN"), ("targetingKey", "it would replace the targeting key")] {
        assert!(warnings.iter().any(|line| line.contains(name) && line.contains(reason)), "{warnings:?}");
    }
    for number in 0..100 {
        drop(provider.flags(Context::user("u").with(format!("odd {number}"), f64::NAN)).await);
    }
    let warnings = log.lines();
    assert_eq!(warnings.len(), 33, "{warnings:?}");
    assert!(warnings[32].contains("more than 32 different context attributes are not sent"), "{warnings:?}");
    assert_eq!(support::evaluations(&service), 1, "all of them are the same context");
}

#[test]
fn public_types_are_send_and_sync() {
    fn shared<T: Send + Sync + 'static>(_: Option<T>) {}
    fn sent<T: Send>(_: T) {}
    shared::<FlipswitchProvider>(None);
    shared::<flipswitch::Flags>(None);
    shared::<flipswitch::RequestScope>(None);
    shared::<Error>(None);
    shared::<flipswitch::Lifespan>(None);
    let provider = FlipswitchProvider::in_memory(json!({}));
    sent(provider.flags(&user("u")));
    sent(provider.ready(Duration::ZERO));
    sent(provider.shutdown());
}
