//! Requests in both frameworks: their values, their number of evaluations, and a missing layer.

use std::convert::Infallible;

use actix_web::test::TestRequest;
use axum::{Router, body::Body, extract::Request, response::Response, routing::get};
use flipswitch::{Context, FlipswitchProvider, PreparedContext, serde_json::json};
use flipswitch_axum::FlipswitchLayer;
use futures_util::{FutureExt, StreamExt, stream};
use tower::{Layer, Service, ServiceExt};

use crate::support::{
    self,
    apps::{Framework, on_actix, on_axum, provider, service},
};

#[tokio::test]
async fn both_frameworks_respond_in_the_same_way() {
    // path, user, plan; status, body, requests to the flag service
    let scenarios = [
        ("/free", "alice", "", 200, "free", 0),
        ("/flag", "alice", "", 200, "alice user", 1),
        ("/flag", "bob", "", 200, "bob user", 1),
        ("/flag", "", "", 200, "nobody nowhere", 1),
        ("/flag", "", "premium", 200, "nobody request", 1),
        // Both sources are merged, and the user's fields take precedence.
        ("/flag", "alice", "premium", 200, "alice user", 1),
        // There is a user without a context.
        ("/flag", "guest", "", 200, "nobody nowhere", 1),
        ("/flag", "guest", "premium", 200, "nobody request", 1),
        // If one function panics, the other one is used.
        ("/flag", "panic", "", 200, "nobody nowhere", 1),
        ("/flag", "panic", "premium", 200, "nobody request", 1),
        ("/flag", "alice", "panic", 200, "alice user", 1),
        ("/me", "alice", "", 200, "alice", 1),
        ("/me", "alice", "premium", 200, "alice, premium", 1),
        ("/me", "", "premium", 200, "nobody, premium", 1),
        // A targeting key of the request is kept.
        ("/me", "", "keyed", 200, "from-the-request, keyed", 1),
        ("/me", "alice", "keyed", 200, "alice, keyed", 1),
        ("/me", "member", "premium", 200, "nobody, premium", 1),
        ("/twice", "alice", "", 200, "alice user", 1),
        ("/typed", "alice", "", 200, "alice user", 1),
        ("/typed", "", "premium", 200, "nobody request", 1),
        ("/optional", "alice", "", 200, "alice user", 1),
        ("/together", "alice", "", 200, "alice user", 1),
        ("/nested/free", "alice", "", 200, "free", 0),
        ("/nested/flag", "alice", "", 200, "alice user", 1),
        ("/single/flag", "alice", "", 200, "alice user", 1),
        ("/bare/optional", "alice", "", 200, "none", 0),
        ("/gate/many", "alice", "", 200, "alice user", 1),
        ("/gated/flag", "alice", "", 200, "alice user", 1),
        ("/gated/flag", "bob", "", 404, "", 1),
        ("/gated/free", "bob", "", 404, "", 1),
        ("/unknown", "alice", "", 404, "", 0),
    ];
    for framework in Framework::ALL {
        for (path, user, plan, status, body, requests) in scenarios {
            let service = service().await;
            let provider = provider(&service);
            let app = framework.serve(provider.clone()).await;
            // The same user costs one request, regardless of the number of reads.
            for _ in 0..3 {
                let answer = app.get(path, user, plan).await;
                assert_eq!(answer, (status, body.to_owned()), "{framework:?} {path} {user} {plan}");
            }
            assert_eq!(support::evaluations(&service), requests, "{framework:?} {path}");
            provider.shutdown().await;
        }
    }
}

#[tokio::test]
async fn a_missing_layer_is_an_error_that_names_the_remedy() {
    let remedies = [
        (Framework::Axum, "add `.layer(FlipswitchLayer::new(provider))`"),
        (Framework::Actix, "add `.wrap(FlipswitchMiddleware::new(provider))`"),
    ];
    for (framework, remedy) in remedies {
        let app = framework.serve(FlipswitchProvider::in_memory(json!({}))).await;
        for path in ["/bare/flag", "/bare/typed", "/bare/gate"] {
            let (status, body) = app.get(path, "alice", "").await;
            assert_eq!(status, 500, "{framework:?} {path}");
            assert!(body.contains(remedy), "{framework:?} {path}: {body}");
        }
    }
}

#[tokio::test]
async fn with_the_service_down_requests_succeed_with_defaults() {
    for framework in Framework::ALL {
        let provider = support::provider_of_nothing();
        let app = framework.serve(provider.clone()).await;
        assert_eq!(app.get("/flag", "alice", "").await, (200, "default default".to_owned()), "{framework:?}");
        provider.shutdown().await;
        assert_eq!(app.get("/flag", "alice", "").await, (200, "default default".to_owned()), "{framework:?} after");
    }
}

/// Returns the number of allocations of a service in a request of this user.
fn allocations<S: Service<Request>>(mut service: S, user: &PreparedContext) -> u64 {
    let mut answer = || {
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(user.clone());
        let call =
            || assert!(service.call(request).now_or_never().expect("the service must respond immediately").is_ok());
        allocation_counter::measure(call).count_total
    };
    // Allocations that are made only once do not count.
    answer();
    answer()
}

#[test]
fn a_request_that_reads_no_flag_costs_two_allocations() {
    let user = Context::user("alice").with("plan", "premium").prepared();
    let provider = FlipswitchProvider::in_memory(json!({}));
    let layer = FlipswitchLayer::new(provider).with_user(|user: &PreparedContext| user.clone());

    // One allocation for the scope, and one for its place in the extensions.
    let bare = tower::service_fn(async |_: Request| Ok::<_, Infallible>(Response::new(Body::empty())));
    let (without, with) = (allocations(bare, &user), allocations(layer.layer(bare), &user));
    assert!(with <= without + 2, "{with} allocations instead of {without}");

    // In a router, every layer costs allocations of axum: one more than a layer that only adds an extension.
    let app = Router::new().route("/", get(async || "free"));
    let extension = allocations(app.clone().layer(axum::Extension(1)), &user);
    let with = allocations(app.layer(layer), &user);
    assert!(with <= extension + 1, "{with} allocations instead of {extension}");
}

/// The number of requests, half of them for each of two users, and of concurrent requests.
const INTERLEAVED: usize = 10_000;
const AT_ONCE: usize = 64;

fn user_of(request: usize) -> &'static str {
    if request.is_multiple_of(2) { "alice" } else { "bob" }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_requests_never_mix_users_in_axum() {
    let service = service().await;
    let provider = support::provider(&service);
    let app = on_axum::app(&provider.clone().into());
    stream::iter(0..INTERLEAVED)
        .for_each_concurrent(AT_ONCE, |number| {
            let app = app.clone();
            // Each request has its own task, so both threads handle both users.
            let task = tokio::spawn(async move {
                let user = user_of(number);
                let request = Request::get("/flag").header("x-user", user).body(Body::empty()).unwrap();
                let response = support::in_time(app.oneshot(request)).await.unwrap();
                let body = axum::body::to_bytes(response.into_body(), 1_000).await.unwrap();
                assert_eq!(body, format!("{user} user"));
            });
            async move { task.await.unwrap() }
        })
        .await;
    provider.shutdown().await;
}

#[actix_web::test]
async fn parallel_requests_never_mix_users_in_actix() {
    let service = service().await;
    let provider = support::provider(&service);
    let app = actix_web::App::new().configure(on_actix::app(&provider.clone().into()));
    let app = actix_web::test::init_service(app).await;
    stream::iter(0..INTERLEAVED)
        .for_each_concurrent(AT_ONCE, |number| {
            let user = user_of(number);
            let request = TestRequest::get().uri("/flag").insert_header(("x-user", user)).to_request();
            let response = actix_web::test::call_and_read_body(&app, request);
            async move { assert_eq!(support::in_time(response).await, format!("{user} user")) }
        })
        .await;
    provider.shutdown().await;
}
