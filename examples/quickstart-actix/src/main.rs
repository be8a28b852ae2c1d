//! An actix-web application with feature flags, in one file. It expects `FLIPSWITCH_API_KEY` in the environment; `cargo run
//! -p quickstart-actix` starts the same application together with a flag service (`demo.rs`).

use std::error::Error;

use actix_web::{App, HttpServer, Responder, dev::ServiceRequest, web};
use flipswitch_actix::{Context, Flag, FlagGate, Flags, FlipswitchMiddleware, FlipswitchProvider, Lifespan};
use serde::Deserialize;
use serde_json::json;

flipswitch_actix::flags! {
    /// Whether the new feature is enabled.
    NewFeature: bool = "new-feature", default false;
    /// Whether the user has access to the dashboard.
    PremiumDashboard: bool = "premium-dashboard", default false;
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Shows what the provider logs.
    tracing_subscriber::fmt().init();
    // Reads FLIPSWITCH_API_KEY and, if it is set, FLIPSWITCH_BASE_URL. The closure below runs once per worker, so the
    // provider is created outside of it: all workers share it.
    let provider = FlipswitchProvider::from_env()?;
    // Starts the provider before the server, and shuts it down after the server has drained.
    let lifespan = Lifespan::builder(provider.clone()).start().await?;
    let server = HttpServer::new(move || App::new().configure(app(provider.clone())))
        // Replaces actix's own handling of signals, which does not let requests finish on SIGINT.
        .shutdown_signal(lifespan.signal())
        .bind("127.0.0.1:3000")?;
    lifespan.run(server.run()).await?;
    Ok(())
}

/// Configures the application.
pub fn app(provider: FlipswitchProvider) -> impl FnOnce(&mut web::ServiceConfig) {
    move |config| {
        config.service(
            web::scope("")
                .route("/feature", web::get().to(feature))
                .route("/flags", web::get().to(flags))
                // Responds with 404 unless the flag is on for the user.
                .service(web::resource("/dashboard").get(dashboard).wrap(FlagGate::enabled(PremiumDashboard)))
                .wrap(FlipswitchMiddleware::new(provider).with_context(user)),
        );
    }
}

#[derive(Deserialize)]
struct User {
    user_id: String,
    plan: Option<String>,
}

/// Builds the context from the user of a request. The user is in the query here, for simplicity. A real application takes
/// it from a session or token, and uses `with_user`.
fn user(request: &ServiceRequest) -> Option<Context> {
    let web::Query(User { user_id, plan }) = web::Query::from_query(request.query_string()).ok()?;
    // Without a plan, the context has no such attribute.
    Some(Context::user(user_id).with("plan", plan))
}

/// Reads a declared flag.
async fn feature(Flag(enabled): Flag<NewFeature>) -> impl Responder {
    web::Json(json!({"feature_enabled": enabled}))
}

/// Returns all flags of the user.
async fn flags(flags: Flags) -> impl Responder {
    web::Json(flags.to_json())
}

/// Reads a flag by its key.
async fn dashboard(flags: Flags) -> String {
    format!("Up to {} projects", flags.int("max-projects", 3))
}
