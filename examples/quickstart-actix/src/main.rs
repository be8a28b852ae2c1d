//! The quick start on actix-web. `cargo run -p quickstart-actix`, then follow what it prints.

use std::{error::Error, process::ExitCode};

use actix_web::{App, HttpServer};
use flipswitch_actix::Lifespan;
use quickstart_common::{FlagSource, Options};

#[actix_web::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => quickstart_common::failed(error.as_ref()),
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let Some(options) = Options::from_args()? else { return Ok(()) };
    quickstart_common::log();
    let source = FlagSource::open(&options).await?;

    // The provider starts before the server and is shut down after it.
    let lifespan = Lifespan::builder(source.provider.clone()).start().await?;
    // The closure below runs once for each worker. The provider is made outside of it: they all share this one.
    let (provider, stop) = (source.provider.clone(), quickstart_common::stop(lifespan.signal()));
    let server = HttpServer::new(move || App::new().configure(quickstart_actix::app(provider.clone(), stop.clone())))
        // actix's own handling of SIGINT would not let requests finish.
        .shutdown_signal(lifespan.signal())
        .bind(options.app)
        .map_err(|error| options.cannot_listen(&error))?;
    source.announce(server.addrs()[0]);
    lifespan.run(server.run()).await?;
    source.close().await;
    Ok(())
}
