//! Starts the shop on axum together with a flag service: `cargo run -p shop-axum`.

use flipswitch_axum::Lifespan;
use quickstart_common::{Failure, FlagSource, Options};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let Some(options) = Options::from_args()? else { return Ok(()) };
    quickstart_common::log();
    let listener = TcpListener::bind(options.app).await.map_err(|error| options.cannot_listen(&error))?;
    let address = listener.local_addr()?;
    let source = FlagSource::open_file(&options, &shop_common::flags_file()).await?;

    // Starts the provider before the server, and shuts it down after the server has drained.
    let lifespan = Lifespan::builder(source.provider.clone()).start().await?;
    let app = shop_axum::app(source.provider.clone());
    let server = axum::serve(listener, app).with_graceful_shutdown(lifespan.signal());
    shop_common::announce(&source, address);
    lifespan.run(server).await?;
    Ok(())
}
