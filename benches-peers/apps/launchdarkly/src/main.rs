//! An axum application with LaunchDarkly's SDK. A handler reads one flag for the user of a header.

use std::{env, error::Error, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::get,
};
use launchdarkly_server_sdk::{Client, ConfigBuilder, ContextBuilder, ServiceEndpointsBuilder};
use tokio::net::TcpListener;

async fn checkout(State(client): State<Arc<Client>>, headers: HeaderMap) -> Result<&'static str, StatusCode> {
    let user = headers.get("x-user").and_then(|user| user.to_str().ok()).ok_or(StatusCode::BAD_REQUEST)?;
    let context = ContextBuilder::new(user).build().map_err(|_| StatusCode::BAD_REQUEST)?;
    Ok(if client.bool_variation(&context, "new-checkout", false) { "new" } else { "old" })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let config = ConfigBuilder::new(&env::var("LAUNCHDARKLY_SDK_KEY")?)
        .service_endpoints(ServiceEndpointsBuilder::new().relay_proxy(&env::var("LAUNCHDARKLY_URL")?));
    // Without TLS, the SDK has no transport of its own.
    #[cfg(not(feature = "sdk-default"))]
    let config = {
        use launchdarkly_sdk_transport::HyperTransport;
        use launchdarkly_server_sdk::{EventProcessorBuilder, StreamingDataSourceBuilder};

        let transport = HyperTransport::new()?;
        config
            .data_source(StreamingDataSourceBuilder::new().transport(transport.clone()))
            .event_processor(EventProcessorBuilder::new().transport(transport))
    };
    let client = Arc::new(Client::build(config.build()?)?);
    client.start_with_default_executor();
    if client.wait_for_initialization(Duration::from_secs(10)).await != Some(true) {
        return Err("no flags".into());
    }
    let app = Router::new().route("/", get(checkout)).with_state(Arc::clone(&client));
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    axum::serve(listener, app).await?;
    client.close();
    Ok(())
}
