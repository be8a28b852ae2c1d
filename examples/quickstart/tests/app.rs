//! The application, without a server or a flag service.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use flipswitch_axum::{FlipswitchProvider, flipswitch::testing::TestFlags};
use quickstart::application::app;
use serde_json::json;
use tower::ServiceExt;

async fn get(provider: FlipswitchProvider, path: &str) -> (StatusCode, String) {
    let response = app(provider).oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status();
    let body = to_bytes(response.into_body(), 1_000).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_declared_flag_is_read_for_the_user_of_the_request() {
    let flags = TestFlags::new(json!({"new-feature": false}));
    flags.set_when("new-feature", true, |context| context.targeting_key.as_deref() == Some("alice"));
    for (path, expected) in [
        ("/feature?user_id=alice", r#"{"feature_enabled":true}"#),
        ("/feature?user_id=bob", r#"{"feature_enabled":false}"#),
        ("/feature", r#"{"feature_enabled":false}"#),
    ] {
        assert_eq!(get(flags.provider(), path).await, (StatusCode::OK, expected.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn the_context_of_a_user_has_the_plan() {
    let flags = TestFlags::new(json!({"new-feature": false}));
    get(flags.provider(), "/feature?user_id=alice&plan=premium").await;
    let contexts = flags.reads("new-feature").contexts;
    assert_eq!(contexts.len(), 1);
    assert_eq!(contexts[0].custom_fields["plan"].as_str(), Some("premium"));
}

#[tokio::test]
async fn the_dashboard_is_not_found_unless_its_flag_is_on() {
    for (on, status, body) in [(true, StatusCode::OK, "Up to 100 projects"), (false, StatusCode::NOT_FOUND, "")] {
        let provider = FlipswitchProvider::in_memory(json!({"premium-dashboard": on, "max-projects": 100}));
        assert_eq!(get(provider, "/dashboard?user_id=alice").await, (status, body.to_owned()));
    }
}
