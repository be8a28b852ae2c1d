//! Two environments in one application, each with its own provider: flags for a shop, and flags for billing (axum).
//!
//! ```text
//! $ cargo run -p examples --bin environments
//! $ curl http://127.0.0.1:3000/
//! The new home page
//! $ curl http://127.0.0.1:3000/invoice
//! Payable within 30 days
//! ```
//!
//! Each environment has a dashboard, whose URL the example prints. A change in one environment does not affect the other one.

use std::error::Error;

use axum::{Extension, Router, extract::State, routing::get};
use flipswitch_axum::{
    Context, Flags, FlipswitchLayer, FlipswitchProvider, Lifespan, RequestScope, flipswitch::serde_json::json,
};
use flipswitch_local::LocalServer;
use tokio::net::TcpListener;

#[derive(Clone)]
struct User(String);

/// Reads a flag of the shop, whose layer is the inner one.
async fn home(flags: Flags) -> &'static str {
    if flags.bool("new-home", false) { "The new home page\n" } else { "The home page\n" }
}

/// Reads a flag of billing, for the same user.
async fn invoice(State(billing): State<FlipswitchProvider>, Extension(scope): Extension<RequestScope>) -> String {
    let flags = billing.flags(scope.context()).await;
    format!("Payable within {} days\n", flags.int("days", 14))
}

fn app(shop: FlipswitchProvider, billing: FlipswitchProvider) -> Router {
    let user = |user: &User| Context::user(&user.0);
    Router::new()
        .route("/", get(home))
        .route("/invoice", get(invoice))
        .layer(FlipswitchLayer::new(shop).with_user(user))
        // Only needed for OpenFeature clients of billing, which take the user from the request.
        .layer(FlipswitchLayer::new(billing.clone()).with_user(user))
        // Stands in for authentication. It is added last and runs first, because the flags need the user.
        .layer(Extension(User("alice".to_owned())))
        .with_state(billing)
}

/// Creates the provider of an environment. Its name is in each line that it logs.
fn provider(name: &str, service: &LocalServer) -> Result<FlipswitchProvider, Box<dyn Error>> {
    Ok(FlipswitchProvider::builder(service.api_key()).base_url(service.url()).name(name).build()?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // Starts two flag services for this example. In production, these are environments of the hosted service, each with its own
    // API key: `FlipswitchProvider::builder(shop_key).name("shop").build()?`.
    let shop_service = LocalServer::start(json!({"new-home": true})).await?;
    let billing_service = LocalServer::start(json!({"days": 30})).await?;
    let shop = provider("shop", &shop_service)?;
    let billing = provider("billing", &billing_service)?;

    let lifespan = Lifespan::builder(shop.clone()).and(billing.clone()).start().await?;
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("Application  http://{}/", listener.local_addr()?);
    println!("Dashboard    {} (shop)", shop_service.dashboard_url());
    println!("Dashboard    {} (billing)", billing_service.dashboard_url());
    let server = axum::serve(listener, app(shop, billing)).with_graceful_shutdown(lifespan.signal());
    Ok(lifespan.run(server).await?)
}
