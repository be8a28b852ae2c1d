//! The demo that `cargo run` starts: the application of `main.rs`, and a page that shows the flags of two users and follows
//! their changes.

use std::convert::Infallible;

use axum::{
    Router,
    body::Body,
    http::header,
    response::{Html, IntoResponse},
    routing::get,
};
use flipswitch_axum::FlipswitchProvider;
use futures_util::StreamExt;
use quickstart_common::Stop;

#[path = "main.rs"]
#[expect(dead_code, reason = "`main` belongs to the program")]
pub mod application;

/// Adds the page to the application. Its event streams end at `stop`.
pub fn app(provider: FlipswitchProvider, stop: Stop) -> Router {
    application::app(provider.clone())
        .route("/", get(async || Html(quickstart_common::PAGE)))
        .route("/events", get(async move || events(provider, stop)))
}

/// Responds with an event stream that tells the page when to request the flags again.
fn events(provider: FlipswitchProvider, stop: Stop) -> impl IntoResponse {
    let events = quickstart_common::follow(provider, stop).map(Ok::<_, Infallible>);
    ([(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")], Body::from_stream(events))
}
