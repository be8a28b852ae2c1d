//! Two environments in one application: the shop's flags and those of billing, each with its own provider.

use std::error::Error;

use axum::{Extension, Router, extract::State, routing::get};
use flipswitch_axum::{
    Context, Flags, FlipswitchLayer, FlipswitchProvider, Lifespan, RequestScope, flipswitch::serde_json::json,
};
use flipswitch_local::LocalServer;
use tokio::net::TcpListener;
use tracing_subscriber::filter::LevelFilter;

#[derive(Clone)]
struct User(String);

/// The flags of the shop, whose layer is around the route.
async fn home(flags: Flags) -> &'static str {
    if flags.bool("new-home", false) { "the new home page\n" } else { "the home page\n" }
}

/// A flag of billing, for the same user.
async fn invoice(State(billing): State<FlipswitchProvider>, Extension(scope): Extension<RequestScope>) -> String {
    let flags = billing.flags(scope.context()).await;
    format!("payable within {} days\n", flags.int("days", 14))
}

fn app(shop: FlipswitchProvider, billing: FlipswitchProvider) -> Router {
    let user = |user: &User| Context::user(&user.0);
    Router::new()
        .route("/", get(home))
        .route("/invoice", get(invoice))
        .layer(FlipswitchLayer::new(shop).with_user(user))
        // OpenFeature clients of billing find the user of the request with a layer of their own.
        .layer(FlipswitchLayer::new(billing.clone()).with_user(user))
        // Stands for the authentication.
        .layer(Extension(User("alice".to_owned())))
        .with_state(billing)
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "says what to do next")]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_max_level(LevelFilter::INFO).init();
    // In production, these are two environments of the service, with two API keys.
    let services =
        [LocalServer::start(json!({"new-home": true})).await?, LocalServer::start(json!({"days": 30})).await?];
    let [shop, billing] = [("shop", &services[0]), ("billing", &services[1])].map(|(name, service)| {
        FlipswitchProvider::builder(service.api_key()).base_url(service.url()).name(name).build()
    });
    let (shop, billing) = (shop?, billing?);

    let lifespan = Lifespan::builder(shop.clone()).and(billing.clone()).start().await?;
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("try: curl http://{0} http://{0}/invoice", listener.local_addr()?);
    let server = axum::serve(listener, app(shop, billing)).with_graceful_shutdown(lifespan.signal());
    Ok(lifespan.run(server).await?)
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn each_route_has_the_flags_of_its_environment() {
        let shop = FlipswitchProvider::in_memory(json!({"new-home": true, "days": 1}));
        let billing = FlipswitchProvider::in_memory(json!({"new-home": false, "days": 30}));
        let app = app(shop, billing);
        for (path, expected) in [("/", "the new home page\n"), ("/invoice", "payable within 30 days\n")] {
            let response = app.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
            let body = axum::body::to_bytes(response.into_body(), 1_000).await.unwrap();
            assert_eq!(body, expected);
        }
    }
}
