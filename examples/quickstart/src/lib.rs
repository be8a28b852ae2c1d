//! The application: three routes, and the flags of whoever asks.

use axum::{Json, Router, extract::Query, http::request::Parts, response::Html, routing::get};
use flipswitch_axum::{
    Flags, FlipswitchLayer,
    flipswitch::{FlipswitchProvider, open_feature::EvaluationContext},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// The application. `provider` may be shared with other parts of the process.
pub fn app(provider: FlipswitchProvider) -> Router {
    Router::new()
        .route("/feature", get(feature))
        .route("/flags", get(flags))
        // A layer covers the routes above it, so that the page below is served without it.
        .layer(FlipswitchLayer::new(provider).with_context(user))
        .route("/", get(async || Html(quickstart_common::PAGE)))
}

#[derive(Deserialize)]
struct User {
    user_id: String,
    plan: Option<String>,
}

/// Finds the user of a request. A real application takes it from its session or token, with `with_user`.
fn user(parts: &Parts) -> Option<EvaluationContext> {
    let Query(User { user_id, plan }) = Query::try_from_uri(&parts.uri).ok()?;
    Some(quickstart_common::context(&user_id, plan.as_deref()))
}

async fn feature(flags: Flags) -> Json<Value> {
    Json(json!({"feature_enabled": flags.bool("new-feature", false)}))
}

async fn flags(flags: Flags) -> Json<Value> {
    Json(flags.to_json())
}
