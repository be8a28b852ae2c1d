//! An example on loopback, with a local flag service.

use std::{io, net::TcpListener, thread};

use actix_web::{App, HttpServer, cookie::Key};
use flipswitch::FlipswitchProvider;
use flipswitch_local::{Endpoint, Fault, LocalServer};
use futures_util::FutureExt;
use quickstart_common::{Stop, testing::in_time};
use tokio::{runtime, sync::oneshot};

use crate::browser::Browser;

#[path = "../../sessions_actix.rs"]
mod on_actix;
#[path = "../../sessions_axum.rs"]
#[expect(dead_code, reason = "`main` belongs to the program")]
mod on_axum;

#[derive(Clone, Copy)]
pub enum Framework {
    Axum,
    Actix,
}

impl Framework {
    async fn serve(self, listener: TcpListener, provider: FlipswitchProvider, stop: Stop) -> io::Result<()> {
        match self {
            Self::Axum => {
                listener.set_nonblocking(true)?;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                axum::serve(listener, on_axum::app(provider)).with_graceful_shutdown(stop).await
            }
            Self::Actix => {
                let key = Key::generate();
                HttpServer::new(move || App::new().configure(on_actix::app(provider.clone(), key.clone())))
                    // More than one, so that sessions and visitors reach workers that have not seen them before.
                    .workers(2)
                    .shutdown_timeout(1)
                    .shutdown_signal(stop)
                    .listen(listener)?
                    .run()
                    .await
            }
        }
    }
}

/// A running application, which stops when it is dropped.
pub struct Application {
    pub service: LocalServer,
    pub provider: FlipswitchProvider,
    url: String,
    _running: oneshot::Sender<()>,
}

impl Application {
    /// Starts an application with the flags of its example, and runs a test.
    pub fn run(framework: Framework, test: impl AsyncFnOnce(Self)) {
        runtime::Runtime::new().unwrap().block_on(async {
            assert_eq!(on_axum::flags(), on_actix::flags());
            let service = LocalServer::start(on_axum::flags()).await.unwrap();
            let provider = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).build().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let (running, stopped) = oneshot::channel();
            let stop = quickstart_common::stop(stopped.map(drop));
            // On its own runtime, as in a process.
            thread::spawn({
                let provider = provider.clone();
                move || {
                    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(framework.serve(listener, provider, stop)).unwrap();
                }
            });
            in_time(test(Self { service, provider, url, _running: running })).await;
        });
    }

    /// Makes the flag service unreachable.
    pub fn disconnect_service(&self) {
        self.service.faults().add(Fault::on(Endpoint::Connections).reset()).unwrap();
    }

    /// Creates a browser without cookies.
    pub fn browser(&self) -> Browser {
        Browser::new(self.url.clone())
    }

    /// Creates a browser, and logs a user in.
    pub async fn browser_of(&self, name: &str) -> Browser {
        let mut browser = self.browser();
        browser.log_in(name).await;
        browser
    }
}
