//! Instances of an application that share flags in Redis (axum). After a change, one instance requests the flags for a user from
//! the flag service, and the others find them in Redis.
//!
//! Start Redis with `docker run --rm --publish 6379:6379 redis` or `redis-server`. `REDIS_URL` is its URL:
//!
//! ```text
//! $ REDIS_URL=redis://127.0.0.1:6379 cargo run -p examples --bin redis-fleet
//! ```
//!
//! Start a second instance in another terminal, with the command that the first one prints. Then compare the two:
//!
//! ```text
//! $ curl http://127.0.0.1:3000/
//! new-checkout is false, found in Redis: 0
//! $ curl http://127.0.0.1:3001/
//! new-checkout is false, found in Redis: 1
//! ```
//!
//! The first instance has sent a request to the flag service, and the second one has found the flags in Redis. Flip the flag in
//! the dashboard, and repeat the commands.

use std::{env, error::Error};

use axum::{Extension, Router, extract::State, routing::get};
use flipswitch_axum::{Context, Flags, FlipswitchLayer, FlipswitchProvider, Lifespan, flipswitch::serde_json::json};
use flipswitch_local::LocalServer;
use flipswitch_redis::RedisStore;
use tokio::net::TcpListener;

#[derive(Clone)]
struct User(String);

async fn home(State(provider): State<FlipswitchProvider>, flags: Flags) -> String {
    let is_on = flags.bool("new-checkout", false);
    format!("new-checkout is {is_on}, found in Redis: {}\n", provider.stats().store_hits)
}

fn app(provider: FlipswitchProvider) -> Router {
    Router::new()
        .route("/", get(home))
        .layer(FlipswitchLayer::new(provider.clone()).with_user(|user: &User| Context::user(&user.0)))
        // Stands in for authentication.
        .layer(Extension(User("alice".to_owned())))
        .with_state(provider)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let redis = env::var("REDIS_URL").map_err(|_| {
        "REDIS_URL is not set. Start Redis with `docker run --rm --publish 6379:6379 redis` or `redis-server`, \
         and set REDIS_URL=redis://127.0.0.1:6379"
    })?;
    // Starts a flag service for this example. The second instance uses the service of the first one. In production, all instances
    // use the hosted service: the builder gets its API key, and no URL.
    let service = LocalServer::builder().flags(json!({"new-checkout": false})).api_key("key").start().await?;
    let service_url = env::var("FLIPSWITCH_BASE_URL").unwrap_or_else(|_| service.url());
    let provider = FlipswitchProvider::builder("key")
        .base_url(&service_url)
        .store(RedisStore::connect(&redis)?)
        // Flags are encrypted in Redis, with the same secret in all instances. In production, read it from the environment.
        .secret("only for this example")
        .build()?;

    let lifespan = Lifespan::builder(provider.clone()).start().await?;
    let address = env::args().nth(1).unwrap_or("127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("Application  http://{}/", listener.local_addr()?);
    println!("Dashboard    {service_url}/");
    println!("Second instance");
    println!(
        "  REDIS_URL=$REDIS_URL FLIPSWITCH_BASE_URL={service_url} cargo run -p examples --bin redis-fleet -- 127.0.0.1:3001"
    );
    let server = axum::serve(listener, app(provider)).with_graceful_shutdown(lifespan.signal());
    Ok(lifespan.run(server).await?)
}
