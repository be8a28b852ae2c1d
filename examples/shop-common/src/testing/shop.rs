//! A shop on loopback, with a flag service behind it.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    thread,
};

use flipswitch::FlipswitchProvider;
use flipswitch_local::{Endpoint, Fault, LocalServer};
use futures_util::FutureExt;
pub(crate) use quickstart_common::testing::eventually;
use quickstart_common::testing::in_time;
use tokio::{runtime, sync::oneshot};

use super::{Stop, browser::Browser};

/// Serves a shop until it is to stop.
pub trait Serve: AsyncFnOnce(TcpListener, FlipswitchProvider, Stop) -> io::Result<()> + Send + 'static {}

impl<S: AsyncFnOnce(TcpListener, FlipswitchProvider, Stop) -> io::Result<()> + Send + 'static> Serve for S {}

/// A shop that is open until it is dropped.
pub(crate) struct Shop {
    pub(crate) service: LocalServer,
    pub(crate) provider: FlipswitchProvider,
    address: SocketAddr,
    _open: oneshot::Sender<()>,
}

impl Shop {
    /// Opens a shop with the flags of its file, and visits it.
    pub(crate) fn visit(serve: impl Serve, visit: impl AsyncFnOnce(Self)) {
        runtime::Runtime::new().unwrap().block_on(async {
            let service = LocalServer::builder().flags_file(crate::flags_file()).start().await.unwrap();
            let provider = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).build().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let (open, closed) = oneshot::channel();
            let stop = quickstart_common::stop(closed.map(drop));
            // On a runtime of its own, as a process would have it.
            thread::spawn({
                let provider = provider.clone();
                move || {
                    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(serve(listener, provider, stop)).unwrap();
                }
            });
            in_time(visit(Self { service, provider, address, _open: open })).await;
        });
    }

    /// From now on the flag service cannot be reached.
    pub(crate) fn lose_service(&self) {
        self.service.faults().add(Fault::on(Endpoint::Connections).reset()).unwrap();
    }

    /// Somebody with a browser that was never here.
    pub(crate) fn browser(&self) -> Browser {
        Browser::new(format!("http://{}", self.address))
    }

    /// The same, logged in.
    pub(crate) async fn browser_of(&self, name: &str) -> Browser {
        let mut browser = self.browser();
        browser.log_in(name).await;
        browser
    }
}
