//! Starts the quick start on axum together with a flag service: `cargo run`.

use flipswitch_axum::Lifespan;
use quickstart_common::{Failure, FlagSource, Options};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let Some(options) = Options::from_args()? else { return Ok(()) };
    quickstart_common::log();
    let listener = TcpListener::bind(options.app).await.map_err(|error| options.cannot_listen(&error))?;
    let address = listener.local_addr()?;
    let source = FlagSource::open(&options).await?;

    let lifespan = Lifespan::builder(source.provider.clone()).start().await?;
    let app = quickstart::app(source.provider.clone(), quickstart_common::stop(lifespan.signal()));
    let server = axum::serve(listener, app).with_graceful_shutdown(lifespan.signal());
    source.announce(address);
    lifespan.run(server).await?;
    Ok(())
}
