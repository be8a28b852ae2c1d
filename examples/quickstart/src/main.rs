//! The quick start on axum. `cargo run`, then follow what it prints.

use std::{error::Error, process::ExitCode};

use flipswitch_axum::Lifespan;
use quickstart_common::{FlagSource, Options};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => quickstart_common::failed(error.as_ref()),
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let Some(options) = Options::from_args()? else { return Ok(()) };
    quickstart_common::log();
    let listener = TcpListener::bind(options.app).await.map_err(|error| options.cannot_listen(&error))?;
    let address = listener.local_addr()?;
    let source = FlagSource::open(&options).await?;

    // The provider starts before the server and is shut down after it.
    let lifespan = Lifespan::builder(source.provider.clone()).start().await?;
    let app = quickstart::app(source.provider.clone(), quickstart_common::stop(lifespan.signal()));
    let server = axum::serve(listener, app).with_graceful_shutdown(lifespan.signal());
    source.announce(address);
    lifespan.run(server).await?;
    source.close().await;
    Ok(())
}
