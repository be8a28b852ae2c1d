//! Starts the shop on actix-web together with a flag service: `cargo run -p shop-actix`.

use actix_web::{App, HttpServer, cookie::Key};
use flipswitch_actix::Lifespan;
use quickstart_common::{Failure, FlagSource, Options};

#[actix_web::main]
async fn main() -> Result<(), Failure> {
    let Some(options) = Options::from_args()? else { return Ok(()) };
    quickstart_common::log();
    let source = FlagSource::open_file(&options, &shop_common::flags_file()).await?;

    // Starts the provider before the server, and shuts it down after the server has drained.
    let lifespan = Lifespan::builder(source.provider.clone()).start().await?;
    // The closure below runs once per worker. The provider and the key are created outside of it, so that all workers share
    // them and accept the same sessions. A real shop stores the key, so that sessions outlive the process.
    let (provider, key) = (source.provider.clone(), Key::generate());
    let server = HttpServer::new(move || App::new().configure(shop_actix::app(provider.clone(), key.clone())))
        // Replaces actix's own handling of signals, which does not let requests finish on SIGINT.
        .shutdown_signal(lifespan.signal())
        .bind(options.app)
        .map_err(|error| options.cannot_listen(&error))?;
    shop_common::announce(&source, server.addrs()[0]);
    lifespan.run(server.run()).await?;
    Ok(())
}
