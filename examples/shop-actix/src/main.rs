//! The shop on actix-web. `cargo run -p shop-actix`, then follow what it prints.

use std::{error::Error, process::ExitCode};

use actix_web::{App, HttpServer, cookie::Key};
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
    let source = FlagSource::open_file(&options, &shop_common::flags_file()).await?;

    // The provider starts before the server and is shut down after it.
    let lifespan = Lifespan::builder(source.provider.clone()).start().await?;
    // The closure below runs once for each worker, and all of them share these. With a key of its own, a worker would not
    // know the sessions of the others. A real shop keeps the key, so that sessions live longer than the process.
    let (provider, key) = (source.provider.clone(), Key::generate());
    let server = HttpServer::new(move || App::new().configure(shop_actix::app(provider.clone(), key.clone())))
        // actix's own handling of SIGINT would not let requests finish.
        .shutdown_signal(lifespan.signal())
        .bind(options.app)
        .map_err(|error| options.cannot_listen(&error))?;
    shop_common::announce(&source, server.addrs()[0]);
    lifespan.run(server.run()).await?;
    source.close().await;
    Ok(())
}
