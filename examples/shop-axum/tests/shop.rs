//! The scenarios of both shops, on axum.

use std::{io, net::TcpListener};

use flipswitch_axum::FlipswitchProvider;
use shop_common::testing::Stop;

shop_common::test_scenarios!(serve);

async fn serve(listener: TcpListener, provider: FlipswitchProvider, stop: Stop) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    axum::serve(listener, shop_axum::app(provider)).with_graceful_shutdown(stop).await
}
