//! The scenarios of both shops, on actix-web.

use std::{io, net::TcpListener};

use actix_web::{App, HttpServer, cookie::Key};
use flipswitch_actix::FlipswitchProvider;
use shop_common::testing::Stop;

shop_common::test_scenarios!(serve);

async fn serve(listener: TcpListener, provider: FlipswitchProvider, stop: Stop) -> io::Result<()> {
    let key = Key::generate();
    HttpServer::new(move || App::new().configure(shop_actix::app(provider.clone(), key.clone())))
        // More than one, so that sessions and visitors reach workers that have not seen them before.
        .workers(2)
        .shutdown_timeout(1)
        .shutdown_signal(stop)
        .listen(listener)?
        .run()
        .await
}
