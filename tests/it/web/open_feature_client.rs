//! OpenFeature clients inside the layer, which evaluate flags for the user of the request without an explicit context.

use std::{convert::Infallible, sync::Arc};

use actix_web::test::TestRequest;
use axum::{body::Body, extract::Request};
use flipswitch::{
    FlipswitchProvider, InRequest, RequestScope,
    open_feature::{Client, EvaluationContext, EvaluationErrorCode, OpenFeature},
    testing::TestFlags,
};
use flipswitch_local::LocalServer;
use futures_util::{StreamExt, stream};
use tower::ServiceExt;

use crate::support::{
    self, Log,
    apps::{self, Framework, Setup, clients::whoami, on_actix, on_axum},
    in_time, user,
};

/// Returns a client. The registry of OpenFeature belongs to the process, so each test uses its own name.
async fn client(name: &str, provider: &FlipswitchProvider) -> Arc<Client> {
    OpenFeature::singleton_mut().await.set_named_provider(name, provider.clone()).await;
    Arc::new(OpenFeature::singleton().await.create_named_client(name))
}

/// Returns the set-up of an application with a client, and a flag service with the users `user-0` to `user-99` and `alice`.
async fn setup(name: &str) -> (Setup, LocalServer) {
    let users = (0..100).map(|number| format!("user-{number}")).chain(["alice".to_owned()]);
    let service = LocalServer::start(support::whoami(users)).await.unwrap();
    let provider = apps::provider(&service);
    let client = client(name, &provider).await;
    (Setup { client: Some(client), ..provider.into() }, service)
}

#[tokio::test]
async fn a_client_evaluates_for_the_user_of_the_request() {
    for framework in Framework::ALL {
        let (setup, service) = setup(&format!("plain {framework:?}")).await;
        let app = framework.serve(setup.clone()).await;
        for (path, user, body) in [
            ("/plain", "alice", "alice"),
            ("/plain", "", "nobody"),
            ("/deep", "alice", "alice"),
            ("/streamed", "alice", "alice.nobody."),
        ] {
            assert_eq!(app.get(path, user, "").await, (200, body.to_owned()), "{framework:?} {path} {user}");
        }
        // One request for alice and one for the anonymous visitors.
        assert_eq!(support::evaluations(&service), 2, "{framework:?}");
        setup.provider.shutdown().await;
        assert_eq!(app.get("/plain", "alice", "").await, (200, "alice".to_owned()), "{framework:?}: the last known");
    }
}

#[tokio::test]
async fn a_client_reads_the_flags_of_the_request() {
    let service = LocalServer::start(support::whoami(["alice".to_owned()])).await.unwrap();
    let provider = apps::provider(&service);
    let client = client("own answer", &provider).await;
    let scope = RequestScope::new(provider.clone(), user("alice"));
    assert!(!scope.was_read());
    assert_eq!(scope.clone().run(whoami(&client)).await, "alice");
    assert!(scope.was_read() && scope.try_flags().is_some());
    // All known flags are out of date. The request keeps its flags, and carried work gets new ones.
    service.shutdown().await;
    provider.shutdown().await;
    assert!(!scope.flags().await.is_stale());
    let context = EvaluationContext::default().with_targeting_key("alice");
    let reason = async |given: Option<EvaluationContext>| {
        client.get_string_details("whoami", given.as_ref(), None).await.unwrap().reason.unwrap()
    };
    assert_eq!(scope.clone().run(reason(None)).await.to_string(), "TARGETING_MATCH");
    // An equal context counts as the context of the request, regardless of how it was built.
    assert_eq!(scope.clone().run(reason(Some(context))).await.to_string(), "TARGETING_MATCH");
    assert_eq!(reason(None).with_scope(&scope).await.to_string(), "STALE");
}

#[tokio::test]
async fn the_callers_context_overrides_the_context_of_the_request() {
    let service = apps::service().await;
    let provider = apps::provider(&service);
    let client = client("merging", &provider).await;
    let evaluate = async |given: EvaluationContext| {
        let whose = client.get_string_value("whoami", Some(&given), None).await.unwrap();
        (whose, client.get_string_value("origin", Some(&given), None).await.unwrap())
    };
    let none = EvaluationContext::default;
    for (given, whose, origin) in [
        (none(), "alice", "user"),
        (user("alice"), "alice", "user"),
        (user("bob"), "bob", "user"),
        (none().with_custom_field("origin", "request"), "alice", "request"),
        (user("bob").with_custom_field("origin", "request"), "bob", "request"),
        (none().with_custom_field("other", 1), "alice", "user"),
    ] {
        let scope = RequestScope::new(provider.clone(), user("alice").with_custom_field("origin", "user"));
        let log = Log::of_this_thread();
        let evaluated = scope.clone().run(evaluate(given.clone())).await;
        assert_eq!(evaluated, (whose.to_owned(), origin.to_owned()), "{given:?}");
        assert!(scope.was_read(), "{given:?}");
        let warned =
            log.lines().iter().filter(|line| line.contains("a targeting key that is not the request's")).count();
        // All evaluations share one request.
        let first = given == user("bob");
        assert_eq!(warned, usize::from(first), "{given:?}");
    }
    provider.shutdown().await;
}

#[tokio::test]
async fn an_extended_context_is_evaluated_once_in_a_request() {
    let flags = TestFlags::new(flipswitch::serde_json::json!({"whoami": "before"}));
    let client = client("additions", &flags.provider()).await;
    let visitor = EvaluationContext::default().with_custom_field("plan", "free");
    let ask = async |given: &EvaluationContext| client.get_string_value("whoami", Some(given), None).await.unwrap();
    let log = Log::of_this_thread();
    RequestScope::new(flags.provider(), visitor)
        .run(async {
            let region = EvaluationContext::default().with_custom_field("region", "eu");
            assert_eq!(ask(&region).await, "before");
            flags.set("whoami", "after");
            assert_eq!(ask(&region).await, "before");
            // A different addition results in a different context. It may name a user if the request names none.
            assert_eq!(ask(&user("alice")).await, "after");
        })
        .await;
    assert!(log.lines().is_empty(), "{:?}", log.lines());
}

#[tokio::test]
async fn additions_with_different_request_bodies_are_evaluated_separately() {
    let service = LocalServer::start(support::whoami(["alice".to_owned()])).await.unwrap();
    let provider = support::builder(&service).enable_realtime(false).build().unwrap();
    let client = client("numbers", &provider).await;
    let number = |value: f64| EvaluationContext::default().with_custom_field("number", value);
    let scope = RequestScope::new(provider.clone(), user("alice").with_custom_field("number", 0.0));
    scope
        .run(async {
            for addition in [number(0.0), number(-0.0), number(1.0), number(-0.0), number(f64::NAN)] {
                client.get_string_value("whoami", Some(&addition), None).await.unwrap();
            }
        })
        .await;
    let mut sent: Vec<_> =
        service.requests().into_iter().map(|request| String::from_utf8(request.body.to_vec()).unwrap()).collect();
    sent.retain(|body| body.contains("alice"));
    let body = |number: &str| format!(r#"{{"context":{{"targetingKey":"alice"{number}}}}}"#);
    let expected = [body(r#","number":0.0"#), body(r#","number":-0.0"#), body(r#","number":1.0"#), body("")];
    assert_eq!(sent, expected, "a number that cannot be sent must not replace the number of the request");
}

#[tokio::test]
async fn additions_that_cannot_be_sent_are_reported() {
    let service = LocalServer::start(support::whoami(["alice".to_owned()])).await.unwrap();
    let provider = support::builder(&service).enable_realtime(false).build().unwrap();
    let client = client("unsendable additions", &provider).await;
    let log = Log::of_this_thread();
    let too_long = user(&"k".repeat(70_000));
    let plan = EvaluationContext::default().with_custom_field("plan", "free");
    let mut too_long_with_plan = plan.clone();
    too_long_with_plan.merge_missing(&too_long);
    RequestScope::new(provider.clone(), user("alice"))
        .run(async {
            for _ in 0..2 {
                let lost = EvaluationContext::default().with_custom_field("lat", f64::NAN);
                assert_eq!(client.get_string_value("whoami", Some(&lost), None).await.unwrap(), "alice");
                for context in [&too_long, &too_long_with_plan] {
                    let error = client.get_string_value("whoami", Some(context), None).await.unwrap_err();
                    assert_eq!(error.code, EvaluationErrorCode::InvalidContext);
                }
                assert_eq!(client.get_string_value("whoami", Some(&plan), None).await.unwrap(), "alice");
            }
        })
        .await;
    assert_eq!(provider.stats().attributes_left_out, 2);
    let lines = log.lines();
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!((count("attribute=\"lat\""), count("a targeting key that is not the request's")), (1, 1), "{lines:?}");
}

#[tokio::test]
async fn a_read_in_a_spawned_task_counts_for_the_request() {
    let flags = TestFlags::new(flipswitch::serde_json::json!({"whoami": "known"}));
    let client = client("carried", &flags.provider()).await;
    let scope = RequestScope::new(flags.provider(), EvaluationContext::default());
    let unread = scope.clone();
    let spawned = async move { tokio::spawn(async move { whoami(&client).await }.with_current_scope()).await.unwrap() };
    assert_eq!(scope.clone().run(spawned).await, "known");
    assert!(unread.was_read() && scope.was_read());
}

#[tokio::test]
async fn a_failed_read_counts_as_an_evaluation() {
    let provider = support::provider_of_nothing();
    provider.shutdown().await;
    let scope = RequestScope::new(provider.clone(), user("alice"));
    assert!(scope.try_flags().unwrap().error().is_some());
    assert_eq!(provider.stats().evaluations, 1);
}

#[tokio::test]
async fn only_the_provider_of_a_scope_uses_its_context() {
    let (ours, theirs) = (apps::service().await, apps::service().await);
    let (our_provider, their_provider) = (apps::provider(&ours), apps::provider(&theirs));
    let (our_client, their_client) = (client("ours", &our_provider).await, client("theirs", &their_provider).await);
    let outer = RequestScope::new(our_provider.clone(), user("alice"));
    let inner = RequestScope::new(our_provider.clone(), user("bob"));
    assert_eq!(whoami(&our_client).await, "nobody");
    outer
        .run(async {
            assert_eq!(whoami(&our_client).await, "alice");
            assert_eq!(whoami(&their_client).await, "nobody");
            inner.clone().run(async { assert_eq!(whoami(&our_client).await, "bob") }).await;
            assert_eq!(inner.clone().run_sync(RequestScope::current).unwrap().context(), &user("bob"));
            assert_eq!(whoami(&our_client).await, "alice");
        })
        .await;
    assert!(RequestScope::current().is_none());
    assert_eq!(
        whoami(&our_client).with_current_scope().await,
        "nobody",
        "outside a request, the function must have no effect"
    );
    our_provider.shutdown().await;
    their_provider.shutdown().await;
}

#[tokio::test]
async fn a_global_targeting_key_causes_a_warning() {
    use flipswitch::open_feature::provider::FeatureProvider;

    let mut provider = FlipswitchProvider::in_memory(flipswitch::serde_json::json!({}));
    let log = Log::of_this_thread();
    provider.initialize(&EvaluationContext::default().with_custom_field("region", "eu")).await;
    assert!(log.lines().is_empty());
    for _ in 0..2 {
        provider.initialize(&user("everybody")).await;
    }
    let lines = log.lines();
    let [warning] = lines.as_slice() else { panic!("{lines:?}") };
    assert!(warning.contains("global context has a targeting key") && !warning.contains("everybody"), "{warning}");
}

/// The number of requests, of users, and of concurrent requests.
const REQUESTS: usize = 10_000;
const USERS: usize = 100;
const AT_ONCE: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_never_mix_users_in_axum() {
    let (setup, service) = setup("interleaved in axum").await;
    let app = on_axum::app(&setup);
    let requests = stream::iter(0..REQUESTS).for_each_concurrent(AT_ONCE, |number| {
        let app = app.clone();
        let task = tokio::spawn(async move {
            let user = format!("user-{}", number % USERS);
            let request = Request::get("/deep").header("x-user", &user).body(Body::empty()).unwrap();
            let response = in_time(app.oneshot(request)).await.unwrap();
            assert_eq!(axum::body::to_bytes(response.into_body(), 1_000).await.unwrap(), user);
        });
        async move { task.await.unwrap() }
    });
    requests.await;
    assert_eq!(
        support::evaluations(&service),
        USERS + 1,
        "each user and the anonymous visitors must cause one request"
    );
    setup.provider.shutdown().await;
}

#[actix_web::test]
async fn clients_never_mix_users_in_actix() {
    let (setup, service) = setup("interleaved in actix").await;
    let app = actix_web::test::init_service(actix_web::App::new().configure(on_actix::app(&setup))).await;
    let requests = stream::iter(0..REQUESTS).for_each_concurrent(AT_ONCE, |number| {
        let user = format!("user-{}", number % USERS);
        let request = TestRequest::get().uri("/deep").insert_header(("x-user", user.as_str())).to_request();
        let body = actix_web::test::call_and_read_body(&app, request);
        async move { assert_eq!(in_time(body).await, user) }
    });
    requests.await;
    assert_eq!(
        support::evaluations(&service),
        USERS + 1,
        "each user and the anonymous visitors must cause one request"
    );
    setup.provider.shutdown().await;
}

#[actix_web::test]
async fn inner_services_are_in_the_scope_before_their_future_is_polled() {
    use actix_web::dev::Service as _;
    use flipswitch_actix::FlipswitchMiddleware;
    use flipswitch_axum::FlipswitchLayer;
    use tower::Layer;

    let provider = FlipswitchProvider::in_memory(flipswitch::serde_json::json!({}));
    let current = || RequestScope::current().and_then(|scope| scope.context().targeting_key.clone());
    let eager = tower::service_fn(|_: Request| std::future::ready(Ok::<_, Infallible>(http::Response::new(current()))));
    let layered = FlipswitchLayer::new(provider.clone()).with_context(|_| user("alice")).layer(eager);
    let seen = layered.oneshot(Request::new(Body::empty())).await.unwrap().into_body();
    assert_eq!(seen.as_deref(), Some("alice"));

    let (sender, seen) = std::sync::mpsc::channel();
    for prefetch in [true, false] {
        let sender = sender.clone();
        let app = actix_web::App::new()
            .wrap_fn(move |request, inner| {
                sender.send(current()).unwrap();
                inner.call(request)
            })
            .wrap(FlipswitchMiddleware::new(provider.clone()).with_context(|_| user("alice")).prefetch(prefetch));
        let app = actix_web::test::init_service(app).await;
        actix_web::test::call_service(&app, TestRequest::get().to_request()).await;
        assert_eq!(seen.recv().unwrap().as_deref(), Some("alice"), "{prefetch}");
    }
}
