//! The application, without a server or a flag service.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use actix_web::{
    App,
    body::{MessageBody, to_bytes},
    http::StatusCode,
    test::{TestRequest, call_service, init_service},
};
use flipswitch_actix::{FlipswitchProvider, flipswitch::testing::TestFlags};
use quickstart_actix::application::app;
use serde_json::json;

async fn get(provider: FlipswitchProvider, path: &str) -> (StatusCode, String) {
    let app = init_service(App::new().configure(app(provider))).await;
    let response = call_service(&app, TestRequest::get().uri(path).to_request()).await;
    let status = response.status();
    let body = to_bytes(response.into_body().boxed()).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[actix_web::test]
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

#[actix_web::test]
async fn the_context_of_a_user_has_the_plan() {
    let flags = TestFlags::new(json!({"new-feature": false}));
    get(flags.provider(), "/feature?user_id=alice&plan=premium").await;
    let contexts = flags.reads("new-feature").contexts;
    assert_eq!(contexts.len(), 1);
    assert_eq!(contexts[0].custom_fields["plan"].as_str(), Some("premium"));
}

#[actix_web::test]
async fn the_dashboard_is_not_found_unless_its_flag_is_on() {
    for (on, status, body) in [(true, StatusCode::OK, "Up to 100 projects"), (false, StatusCode::NOT_FOUND, "")] {
        let provider = FlipswitchProvider::in_memory(json!({"premium-dashboard": on, "max-projects": 100}));
        assert_eq!(get(provider, "/dashboard?user_id=alice").await, (status, body.to_owned()));
    }
}
