//! An axum application with Flipswitch. A handler reads one flag for the user of a header.

use std::error::Error;

use axum::{Router, http::request::Parts, routing::get};
use flipswitch_axum::{Context, Flags, FlipswitchLayer, FlipswitchProvider, Lifespan};
use tokio::net::TcpListener;

async fn checkout(flags: Flags) -> &'static str {
    if flags.bool("new-checkout", false) { "new" } else { "old" }
}

fn user(parts: &Parts) -> Option<Context> {
    Some(Context::user(parts.headers.get("x-user")?.to_str().ok()?))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let provider = FlipswitchProvider::from_env()?;
    let app: Router =
        Router::new().route("/", get(checkout)).layer(FlipswitchLayer::new(provider.clone()).with_context(user));
    let lifespan = Lifespan::builder(provider).start().await?;
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    let server = axum::serve(listener, app).with_graceful_shutdown(lifespan.signal());
    lifespan.run(server).await?;
    Ok(())
}
