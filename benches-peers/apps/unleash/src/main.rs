//! An axum application with Unleash's SDK. A handler reads one flag for the user of a header.

use std::{env, error::Error, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::get,
};
use tokio::net::TcpListener;
use unleash_api_client::{Client, ClientBuilder, Context, client::FeatureKey};

#[derive(Clone, Copy, Debug)]
struct NewCheckout;

impl FeatureKey for NewCheckout {
    fn name(self) -> &'static str {
        "new-checkout"
    }
}

async fn checkout(
    State(client): State<Arc<Client<NewCheckout>>>,
    headers: HeaderMap,
) -> Result<&'static str, StatusCode> {
    let user = headers.get("x-user").and_then(|user| user.to_str().ok()).ok_or(StatusCode::BAD_REQUEST)?;
    let context = Context { user_id: Some(user.to_owned()), ..Context::default() };
    Ok(if client.is_enabled(NewCheckout, Some(&context), false) { "new" } else { "old" })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let client = ClientBuilder::default().into_client::<NewCheckout>(
        &env::var("UNLEASH_API_URL")?,
        "footprint",
        "footprint-1",
        Some(env::var("UNLEASH_CLIENT_SECRET")?),
    )?;
    let client = Arc::new(client);
    client.register().await?;
    let polling = tokio::spawn({
        let client = Arc::clone(&client);
        async move { client.poll_for_updates().await }
    });
    let app = Router::new().route("/", get(checkout)).with_state(Arc::clone(&client));
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    axum::serve(listener, app).await?;
    client.stop_poll().await;
    polling.await?;
    Ok(())
}
