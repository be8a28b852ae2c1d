//! Guards of actix-web, which cannot wait for flags.

use actix_web::{App, test, web};
use flipswitch::{FlipswitchProvider, serde_json::json};
use flipswitch_actix::{FlipswitchMiddleware, flag_on};

use crate::support::{
    self, Log,
    apps::{Framework, Missing, Setup, provider, service},
};

#[tokio::test]
async fn with_prefetch_a_guard_reads_fresh_flags() {
    let service = service().await;
    let setup = Setup { prefetch: true, ..provider(&service).into() };
    let app = Framework::Actix.serve(setup.clone()).await;
    for (user, body) in [("alice", "new"), ("bob", "old"), ("", "old")] {
        assert_eq!(app.get("/guarded", user, "").await, (200, body.to_owned()), "{user}");
    }
    assert_eq!(app.get("/guarded-typed", "alice", "").await.1, "new", "a declared flag must have its default");
    assert_eq!(support::evaluations(&service), 3);
    setup.provider.shutdown().await;
}

#[tokio::test]
async fn without_prefetch_a_guard_reads_cached_flags() {
    let service = service().await;
    let provider = provider(&service);
    let app = Framework::Actix.serve(provider.clone()).await;
    assert_eq!(app.get("/guarded", "alice", "").await.1, "old");
    assert_eq!(app.get("/guarded-typed", "alice", "").await.1, "new", "a declared flag must have its default");
    assert_eq!(support::evaluations(&service), 0, "a guard must not send requests");
    assert_eq!(app.get("/flag", "alice", "").await.1, "alice user");
    assert_eq!(app.get("/guarded", "alice", "").await.1, "new");
    assert_eq!(app.get("/guarded", "bob", "").await.1, "old");
    assert_eq!(support::evaluations(&service), 1);
    provider.shutdown().await;
    assert_eq!(app.get("/guarded", "alice", "").await.1, "new", "the last known value");
}

#[tokio::test]
async fn without_prefetch_a_guard_reads_stale_flags_and_refreshes_them() {
    let service = service().await;
    let provider = support::provider(&service);
    let app = Framework::Actix.serve(provider.clone()).await;
    assert_eq!(app.get("/flag", "alice", "").await.1, "alice user");
    assert_eq!(app.get("/guarded", "alice", "").await.1, "new");
    // A change of any flag makes all flags stale. Nothing else reads alice's flags in the meantime.
    let (heard, changed) = std::sync::mpsc::channel();
    let _subscription = provider.add_flag_change_listener_for("plain", move |_| heard.send(()).unwrap());
    service.set_flag("plain", "light");
    tokio::task::spawn_blocking(move || changed.recv().unwrap()).await.unwrap();
    assert_eq!(app.get("/guarded", "alice", "").await.1, "new");
    // The guarded flag itself has its last known value at first, and soon the new value.
    service.set_flag("beta", false);
    support::eventually(async || app.get("/guarded", "alice", "").await.1 == "old").await;
    provider.shutdown().await;
}

#[actix_web::test]
async fn a_guard_without_the_middleware_uses_the_default_and_warns_once() {
    let log = Log::of_this_thread();
    let app = App::new()
        .service(web::resource("/key").guard(flag_on("on")).get(async || "new"))
        .service(web::resource("/key").get(async || "old"))
        // Middleware of a resource runs after its guards.
        .service(
            web::resource("/typed")
                .guard(flag_on(Missing))
                .get(async || "new")
                .wrap(FlipswitchMiddleware::new(FlipswitchProvider::in_memory(json!({"missing": false})))),
        );
    let app = test::init_service(app).await;
    for _ in 0..2 {
        for (path, expected) in [("/key", "old"), ("/typed", "new")] {
            let body = test::call_and_read_body(&app, test::TestRequest::get().uri(path).to_request()).await;
            assert_eq!(body, expected, "{path}");
        }
    }
    let lines = log.lines();
    assert_eq!(lines.len(), 2, "there must be one warning for each guard: {lines:?}");
    assert!(
        lines.iter().all(|line| line.contains("ERROR") && line.contains("a scope around the guarded one")),
        "{lines:?}"
    );
}

#[tokio::test]
async fn with_the_service_down_a_guard_uses_the_default() {
    for prefetch in [true, false] {
        let setup = Setup { prefetch, ..support::provider_of_nothing().into() };
        let app = Framework::Actix.serve(setup.clone()).await;
        for _ in 0..2 {
            assert_eq!(app.get("/guarded", "alice", "").await, (200, "old".to_owned()), "{prefetch}");
            assert_eq!(app.get("/guarded-typed", "alice", "").await, (200, "new".to_owned()), "{prefetch}");
        }
        setup.provider.shutdown().await;
        assert_eq!(app.get("/guarded", "alice", "").await, (200, "old".to_owned()), "{prefetch}, after");
    }
}

#[tokio::test]
async fn prefetching_is_opt_in_and_covers_all_requests() {
    for (prefetch, requests) in [(true, 1), (false, 0)] {
        let service = service().await;
        let setup = Setup { prefetch, ..provider(&service).into() };
        let app = Framework::Actix.serve(setup.clone()).await;
        for _ in 0..2 {
            assert_eq!(app.get("/free", "alice", "").await.1, "free");
        }
        assert_eq!(support::evaluations(&service), requests);
        setup.provider.shutdown().await;
    }
}
