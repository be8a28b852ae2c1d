//! The shop on actix-web keeps what both shops promise.

use std::{io, net::TcpListener};

use actix_web::{App, HttpServer, cookie::Key};
use flipswitch_actix::flipswitch::FlipswitchProvider;
use shop_common::testing::Stop;

shop_common::keeps_its_promises!(serve);

async fn serve(listener: TcpListener, provider: FlipswitchProvider, stop: Stop) -> io::Result<()> {
    let key = Key::generate();
    HttpServer::new(move || App::new().configure(shop_actix::app(provider.clone(), key.clone())))
        // More than one, so that a session and a visitor are met by workers that have not seen them before.
        .workers(2)
        .shutdown_timeout(1)
        .shutdown_signal(stop)
        .listen(listener)?
        .run()
        .await
}
