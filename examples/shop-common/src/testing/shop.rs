//! A shop on loopback, with a local flag service.

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

/// Function that serves a shop until the stop signal resolves.
pub trait Serve: AsyncFnOnce(TcpListener, FlipswitchProvider, Stop) -> io::Result<()> + Send + 'static {}

impl<S: AsyncFnOnce(TcpListener, FlipswitchProvider, Stop) -> io::Result<()> + Send + 'static> Serve for S {}

/// A running shop, which stops when it is dropped.
pub(crate) struct Shop {
    pub(crate) service: LocalServer,
    pub(crate) provider: FlipswitchProvider,
    address: SocketAddr,
    _running: oneshot::Sender<()>,
}

impl Shop {
    /// Starts a shop with the flags of its file, and runs a test.
    pub(crate) fn run(serve: impl Serve, test: impl AsyncFnOnce(Self)) {
        runtime::Runtime::new().unwrap().block_on(async {
            let service = LocalServer::builder().flags_file(crate::flags_file()).start().await.unwrap();
            let provider = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).build().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let (running, stopped) = oneshot::channel();
            let stop = quickstart_common::stop(stopped.map(drop));
            // On its own runtime, as in a process.
            thread::spawn({
                let provider = provider.clone();
                move || {
                    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(serve(listener, provider, stop)).unwrap();
                }
            });
            in_time(test(Self { service, provider, address, _running: running })).await;
        });
    }

    /// Makes the flag service unreachable.
    pub(crate) fn disconnect_service(&self) {
        self.service.faults().add(Fault::on(Endpoint::Connections).reset()).unwrap();
    }

    /// Creates a browser without cookies.
    pub(crate) fn browser(&self) -> Browser {
        Browser::new(format!("http://{}", self.address))
    }

    /// Creates a browser, and logs a user in.
    pub(crate) async fn browser_of(&self, name: &str) -> Browser {
        let mut browser = self.browser();
        browser.log_in(name).await;
        browser
    }
}
