//! An axum application with feature flags, in one file. It expects `FLIPSWITCH_API_KEY` in the environment; `cargo run`
//! starts the same application together with a flag service (`demo.rs`).

use std::error::Error;

use axum::{Json, Router, extract::Query, http::request::Parts, routing::get};
use flipswitch_axum::{Context, Flag, FlagGate, Flags, FlipswitchLayer, FlipswitchProvider, Lifespan};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

flipswitch_axum::flags! {
    /// Whether the new feature is enabled.
    NewFeature: bool = "new-feature", default false;
    /// Whether the user has access to the dashboard.
    PremiumDashboard: bool = "premium-dashboard", default false;
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Shows what the provider logs.
    tracing_subscriber::fmt().init();
    // Reads FLIPSWITCH_API_KEY and, if it is set, FLIPSWITCH_BASE_URL.
    let provider = FlipswitchProvider::from_env()?;
    // Starts the provider before the server, and shuts it down after the server has drained.
    let lifespan = Lifespan::builder(provider.clone()).start().await?;
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    let server = axum::serve(listener, app(provider)).with_graceful_shutdown(lifespan.signal());
    lifespan.run(server).await?;
    Ok(())
}

/// Creates the application.
pub fn app(provider: FlipswitchProvider) -> Router {
    Router::new()
        .route("/feature", get(feature))
        .route("/flags", get(flags))
        // Responds with 404 unless the flag is on for the user.
        .route("/dashboard", get(dashboard).layer(FlagGate::enabled(PremiumDashboard)))
        // Applies to the routes above it.
        .layer(FlipswitchLayer::new(provider).with_context(user))
}

#[derive(Deserialize)]
struct User {
    user_id: String,
    plan: Option<String>,
}

/// Builds the context from the user of a request. The user is in the query here, for simplicity. A real application takes
/// it from a session or token, and uses `with_user`.
fn user(parts: &Parts) -> Option<Context> {
    let Query(User { user_id, plan }) = Query::try_from_uri(&parts.uri).ok()?;
    // Without a plan, the context has no such attribute.
    Some(Context::user(user_id).with("plan", plan))
}

/// Reads a declared flag.
async fn feature(Flag(enabled): Flag<NewFeature>) -> Json<Value> {
    Json(json!({"feature_enabled": enabled}))
}

/// Returns all flags of the user.
async fn flags(flags: Flags) -> Json<Value> {
    Json(flags.to_json())
}

/// Reads a flag by its key.
async fn dashboard(flags: Flags) -> String {
    format!("Up to {} projects", flags.int("max-projects", 3))
}
