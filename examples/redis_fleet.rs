//! Two instances of an application that share their flags in Redis: after a change, one of them asks the flag service for a
//! user, and the other one takes the answer from Redis (axum). `REDIS_URL` has the URL of the server:
//!
//! ```text
//! $ docker run --rm --publish 6379:6379 redis
//! $ REDIS_URL=redis://127.0.0.1:6379 cargo run -p examples --bin redis-fleet
//! $ curl http://127.0.0.1:3000/
//! The new checkout: false. From the flag service: 1, from Redis: 0.
//! $ curl http://127.0.0.1:3001/
//! The new checkout: false. From the flag service: 0, from Redis: 1.
//! ```
//!
//! Flip `new-checkout` in the dashboard, whose URL the example prints, and repeat the requests.

use std::error::Error;

use axum::{Extension, Router, extract::State, routing::get};
use flipswitch_axum::{Context, Flags, FlipswitchLayer, FlipswitchProvider, Lifespan, flipswitch::serde_json::json};
use flipswitch_local::LocalServer;
use flipswitch_redis::RedisStore;
use tokio::net::TcpListener;

#[derive(Clone)]
struct User(String);

async fn home(State(provider): State<FlipswitchProvider>, flags: Flags) -> String {
    let is_on = flags.bool("new-checkout", false);
    let stats = provider.stats();
    format!("The new checkout: {is_on}. From the flag service: {}, from Redis: {}.\n", stats.requests, stats.store_hits)
}

fn app(provider: FlipswitchProvider) -> Router {
    Router::new()
        .route("/", get(home))
        .layer(FlipswitchLayer::new(provider.clone()).with_user(|user: &User| Context::user(&user.0)))
        // Stands for the authentication.
        .layer(Extension(User("alice".to_owned())))
        .with_state(provider)
}

/// Creates the provider of an instance. In production, each instance is a process of its own.
fn provider(service: &LocalServer, redis_url: &str) -> Result<FlipswitchProvider, Box<dyn Error>> {
    Ok(FlipswitchProvider::builder(service.api_key())
        .base_url(service.url())
        // What is in Redis is encrypted with this secret, which must be the same in all instances.
        .secret("a secret of 16 bytes or more")
        .store(RedisStore::connect(redis_url)?)
        .build()?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let Ok(redis_url) = std::env::var("REDIS_URL") else {
        return Err(
            "REDIS_URL is not set. Start Redis with `docker run --rm --publish 6379:6379 redis` or `redis-server`, \
            and set REDIS_URL=redis://127.0.0.1:6379"
                .into(),
        );
    };
    // A flag service for this example. Production has the API key of the hosted service, and no base URL.
    let service = LocalServer::start(json!({"new-checkout": false})).await?;
    let (first, second) = (provider(&service, &redis_url)?, provider(&service, &redis_url)?);

    let lifespan = Lifespan::builder(first.clone()).and(second.clone()).start().await?;
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:3000".to_owned());
    let first_listener = TcpListener::bind(address).await?;
    let address = std::env::args().nth(2).unwrap_or("127.0.0.1:3001".to_owned());
    let second_listener = TcpListener::bind(address).await?;
    println!("Application  http://{}/", first_listener.local_addr()?);
    println!("Application  http://{}/", second_listener.local_addr()?);
    println!("Dashboard    {}", service.dashboard_url());
    let first_server = axum::serve(first_listener, app(first)).with_graceful_shutdown(lifespan.signal());
    let second_server = axum::serve(second_listener, app(second)).with_graceful_shutdown(lifespan.signal());
    let servers = async { tokio::try_join!(first_server.into_future(), second_server.into_future()).map(|_| ()) };
    Ok(lifespan.run(servers).await?)
}
