//! Guards, which actix alone has: they cannot wait.

use super::{Framework, Setup, provider, service};
use crate::support;

#[tokio::test]
async fn with_prefetch_a_guard_knows_the_flags() {
    let service = service().await;
    let setup = Setup { prefetch: true, ..provider(&service).into() };
    let app = Framework::Actix.serve(setup.clone()).await;
    for (user, body) in [("alice", "new"), ("bob", "old"), ("", "old")] {
        assert_eq!(app.get("/guarded", user, "").await, (200, body.to_owned()), "{user}");
    }
    assert_eq!(app.get("/guarded-typed", "alice", "").await.1, "new", "the default of a declared flag");
    assert_eq!(support::evaluations(&service), 3);
    setup.provider.shutdown().await;
}

#[tokio::test]
async fn without_prefetch_a_guard_knows_what_is_in_memory() {
    let service = service().await;
    let provider = provider(&service);
    let app = Framework::Actix.serve(provider.clone()).await;
    assert_eq!(app.get("/guarded", "alice", "").await.1, "old");
    assert_eq!(app.get("/guarded-typed", "alice", "").await.1, "new", "the default of a declared flag");
    assert_eq!(support::evaluations(&service), 0, "a guard asks for nothing");
    assert_eq!(app.get("/flag", "alice", "").await.1, "alice user");
    assert_eq!(app.get("/guarded", "alice", "").await.1, "new");
    assert_eq!(app.get("/guarded", "bob", "").await.1, "old");
    assert_eq!(support::evaluations(&service), 1);
    provider.shutdown().await;
    assert_eq!(app.get("/guarded", "alice", "").await.1, "new", "the last known value");
}

#[tokio::test]
async fn with_the_flag_service_away_a_guard_takes_the_default() {
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
async fn prefetching_is_for_all_requests_and_only_on_demand() {
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
