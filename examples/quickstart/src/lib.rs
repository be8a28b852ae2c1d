//! The application: a few routes, and the flags of whoever asks.

use std::convert::Infallible;

use axum::{
    Json, Router,
    body::Body,
    extract::Query,
    http::{header, request::Parts},
    response::{Html, IntoResponse},
    routing::get,
};
use flipswitch_axum::{
    Flags, FlipswitchLayer,
    flipswitch::{FlipswitchProvider, open_feature::EvaluationContext},
};
use futures_util::StreamExt;
use quickstart_common::Stop;
use serde::Deserialize;
use serde_json::{Value, json};

/// The application. `provider` may be shared with other parts of the process; at `stop` open streams end.
pub fn app(provider: FlipswitchProvider, stop: Stop) -> Router {
    let events = {
        let provider = provider.clone();
        async move || events(provider, stop)
    };
    Router::new()
        .route("/feature", get(feature))
        .route("/flags", get(flags))
        // A layer covers the routes above it, so that the page below is served without it.
        .layer(FlipswitchLayer::new(provider).with_context(user))
        .route("/", get(async || Html(quickstart_common::PAGE)))
        .route("/events", get(events))
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

/// Tells an open page when to read its flags again.
fn events(provider: FlipswitchProvider, stop: Stop) -> impl IntoResponse {
    let events = quickstart_common::follow(provider, stop).map(Ok::<_, Infallible>);
    ([(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")], Body::from_stream(events))
}
