//! Starts the quick start on actix-web together with a flag service: `cargo run -p quickstart-actix`.

use actix_web::{App, HttpServer};
use flipswitch_actix::Lifespan;
use quickstart_common::{Failure, FlagSource, Options};

#[actix_web::main]
async fn main() -> Result<(), Failure> {
    let Some(options) = Options::from_args()? else { return Ok(()) };
    quickstart_common::log();
    let source = FlagSource::open(&options).await?;

    let lifespan = Lifespan::builder(source.provider.clone()).start().await?;
    let (provider, stop) = (source.provider.clone(), quickstart_common::stop(lifespan.signal()));
    let server = HttpServer::new(move || App::new().configure(quickstart_actix::app(provider.clone(), stop.clone())))
        .shutdown_signal(lifespan.signal())
        .bind(options.app)
        .map_err(|error| options.cannot_listen(&error))?;
    source.announce(server.addrs()[0]);
    lifespan.run(server.run()).await?;
    Ok(())
}
