//! Tests a handler with both variants of a flag, without a flag service (axum).
//!
//! `cargo test -p examples --bin testing` runs the tests at the end of this file. To run the application itself:
//!
//! ```text
//! $ cargo run -p examples --bin testing
//! $ curl -H 'x-user: alice' http://127.0.0.1:3000/checkout
//! The old checkout
//! ```

use std::error::Error;

use axum::{Router, http::request::Parts, routing::get};
use flipswitch_axum::{Context, Flags, FlipswitchLayer, FlipswitchProvider, Lifespan, flipswitch::serde_json::json};
use flipswitch_local::LocalServer;
use tokio::net::TcpListener;

async fn checkout(flags: Flags) -> &'static str {
    if flags.bool("new-checkout", false) { "The new checkout\n" } else { "The old checkout\n" }
}

/// Builds the context from a header, which clients can forge. `with_user` builds it from the user of your authentication.
fn user(parts: &Parts) -> Option<Context> {
    let id = parts.headers.get("x-user")?.to_str().ok()?;
    Some(Context::user(id))
}

fn app(provider: FlipswitchProvider) -> Router {
    Router::new().route("/checkout", get(checkout)).layer(FlipswitchLayer::new(provider).with_context(user))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // Starts a flag service for this example. In production, `FlipswitchProvider::from_env()?` replaces these two lines.
    let service = LocalServer::start(json!({"new-checkout": false})).await?;
    let provider = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).build()?;

    let lifespan = Lifespan::builder(provider.clone()).start().await?;
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("Application  http://{}/checkout", listener.local_addr()?);
    println!("Dashboard    {}", service.dashboard_url());
    let server = axum::serve(listener, app(provider)).with_graceful_shutdown(lifespan.signal());
    Ok(lifespan.run(server).await?)
}

#[cfg(test)]
mod tests {
    use axum::{
        body::{Body, to_bytes},
        http::Request,
    };
    use flipswitch_axum::flipswitch::testing::TestFlags;
    use tower::ServiceExt;

    use super::*;

    async fn checkout_of(user: &str, provider: FlipswitchProvider) -> String {
        let request = Request::get("/checkout").header("x-user", user).body(Body::empty()).unwrap();
        let response = app(provider).oneshot(request).await.unwrap();
        String::from_utf8(to_bytes(response.into_body(), 1_000).await.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn both_variants_of_the_checkout_work() {
        for (is_on, expected) in [(true, "The new checkout\n"), (false, "The old checkout\n")] {
            let provider = FlipswitchProvider::in_memory(json!({"new-checkout": is_on}));
            assert_eq!(checkout_of("alice", provider).await, expected);
        }
    }

    /// `TestFlags` can have different values for some users, can change, and can count reads.
    #[tokio::test]
    async fn the_flag_is_read_once_for_the_user_of_the_request() {
        let flags = TestFlags::new(json!({"new-checkout": false}));
        flags.set_when("new-checkout", true, |context| context.targeting_key.as_deref() == Some("alice"));
        assert_eq!(checkout_of("bob", flags.provider()).await, "The old checkout\n");
        assert_eq!(checkout_of("alice", flags.provider()).await, "The new checkout\n");
        assert_eq!(flags.reads("new-checkout").count, 2);
    }
}
