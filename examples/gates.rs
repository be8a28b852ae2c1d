//! Declares flags with their types and defaults, reads them in handlers, and restricts routes with gates (axum).
//!
//! ```text
//! $ cargo run -p examples --bin gates
//! $ curl http://127.0.0.1:3000/cart
//! A cart holds 10 items.
//! $ curl -w '%{http_code}\n' http://127.0.0.1:3000/checkout/new
//! 404
//! $ curl http://127.0.0.1:3000/sale
//! The sale is over.
//! ```
//!
//! Change the flags in the dashboard, whose URL the example prints, or with `curl`. PORT is the port of the dashboard:
//!
//! ```text
//! $ curl -X PUT http://127.0.0.1:PORT/local/flags/max-items -d '{"value": 20}'
//! $ curl -X PUT http://127.0.0.1:PORT/local/flags/new-checkout -d '{"value": true}'
//! $ curl -X PUT http://127.0.0.1:PORT/local/flags/sale -d '{"value": true}'
//! $ curl http://127.0.0.1:3000/cart
//! A cart holds 20 items.
//! $ curl http://127.0.0.1:3000/checkout/new
//! The new checkout
//! $ curl http://127.0.0.1:3000/sale
//! Everything at half the price
//! ```

use std::error::Error;

use axum::{Router, http::StatusCode, routing::get};
use flipswitch_axum::{Flag, FlagGate, FlipswitchLayer, FlipswitchProvider, Lifespan, flipswitch::serde_json::json};
use flipswitch_local::LocalServer;
use tokio::net::TcpListener;

flipswitch_axum::flags! {
    /// Whether the checkout has one page.
    NewCheckout: bool = "new-checkout", default false;
    /// How many items a cart holds.
    MaxItems: i64 = "max-items", default 5;
    /// Whether the sale is on.
    Sale: bool = "sale", default false;
}

/// Reads a declared flag. The default is used while the flag is unknown, or if its value is not an integer.
async fn cart(Flag(max_items): Flag<MaxItems>) -> String {
    format!("A cart holds {max_items} items.\n")
}

fn app(provider: FlipswitchProvider) -> Router {
    // Responds with 410 and a message, instead of 404.
    let sale = FlagGate::enabled(Sale).fallback((StatusCode::GONE, "The sale is over.\n"));
    Router::new()
        .route("/cart", get(cart))
        // Responds with 404 unless the flag is on.
        .route("/checkout/new", get(async || "The new checkout\n").layer(FlagGate::enabled(NewCheckout)))
        .route("/sale", get(async || "Everything at half the price\n").layer(sale))
        // Applies to the routes above it.
        .layer(FlipswitchLayer::new(provider))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // Starts a flag service for this example. In production, `FlipswitchProvider::from_env()?` replaces these two lines.
    let service = LocalServer::start(json!({"new-checkout": false, "max-items": 10, "sale": false})).await?;
    let provider = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).build()?;

    let lifespan = Lifespan::builder(provider.clone()).start().await?;
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("Application  http://{}/cart", listener.local_addr()?);
    println!("Dashboard    {}", service.dashboard_url());
    let server = axum::serve(listener, app(provider)).with_graceful_shutdown(lifespan.signal());
    Ok(lifespan.run(server).await?)
}
