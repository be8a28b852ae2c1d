//! How the quick starts shut down: open requests are finished, and nothing delays the exit after that.

use std::{io, net::TcpStream, os::unix::process::ExitStatusExt, time::Instant};

use flipswitch::{
    reqwest::{Client, Response},
    serde_json::json,
};
use flipswitch_local::{Endpoint, Fault, FaultId, LocalServer};
use tokio::{runtime::Runtime, task::JoinHandle};

use super::{Program, eventually, in_time, program::DRAIN_TIMEOUT};

/// The page that reads a flag which is not cached.
const PAGE: &str = "/feature?user_id=alice";

/// Content of that page with flags from the service, and not with the defaults.
const CONTENT: &str = r#"{"feature_enabled":true}"#;

/// A program with a request that waits for flags, and an open event stream.
struct Busy {
    program: Program,
    service: LocalServer,
    /// Fault that delays the response from the service.
    delay: FaultId,
    page: JoinHandle<flipswitch::reqwest::Result<(u16, String)>>,
    events: Response,
    /// Holds an idle connection, as browsers and proxies do.
    _idle: Client,
}

impl Busy {
    async fn start(path: &str) -> Self {
        let service = LocalServer::builder().flags(json!({"new-feature": true})).api_key("key").start().await.unwrap();
        let program = Program::start_with(path, &service);
        let idle = client();
        let response = in_time(idle.get(format!("{}/", program.app)).send()).await.unwrap();
        assert_eq!(response.status(), 200);
        in_time(response.text()).await.unwrap();
        let mut events = in_time(client().get(format!("{}/events", program.app)).send()).await.unwrap();
        assert!(in_time(events.chunk()).await.unwrap().is_some(), "a first event");
        // Longer than the test: the delay ends when the fault is removed, and the service responds normally then.
        let before = evaluations(&service);
        let delay = service.faults().add(Fault::on(Endpoint::Bulk).delay(DRAIN_TIMEOUT * 10)).unwrap();
        let request = client().get(format!("{}{PAGE}", program.app));
        let page = tokio::spawn(async {
            let response = request.send().await?;
            Ok((response.status().as_u16(), response.text().await?))
        });
        eventually(async || evaluations(&service) > before).await;
        Self { program, service, delay, page, events, _idle: idle }
    }

    /// Sends SIGTERM, and waits until the program accepts no new connections.
    async fn terminate(&self) {
        self.program.signal("TERM");
        let is_refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        eventually(async || TcpStream::connect(self.program.address()).is_err_and(is_refused)).await;
    }
}

/// After SIGTERM, a program accepts no new connections, ends its streams, and responds to open requests with the flags that
/// they wait for. Then it exits without delay.
pub fn requests_finish_during_shutdown(path: &str) {
    Runtime::new().unwrap().block_on(async {
        let mut busy = Busy::start(path).await;
        let began = Instant::now();
        busy.terminate().await;
        // A broken connection would be an error.
        while in_time(busy.events.chunk()).await.unwrap().is_some() {}
        assert!(!busy.page.is_finished());
        assert_eq!(busy.service.streams(), 1, "the provider is shut down last");

        busy.service.faults().remove(busy.delay);
        let (status, page) = in_time(busy.page).await.unwrap().unwrap();
        assert_eq!((status, page.as_str()), (200, CONTENT));
        assert_eq!(busy.program.wait().code(), Some(0));
        // Otherwise the drain timeout could have ended the program.
        assert!(began.elapsed() < DRAIN_TIMEOUT, "{:?}", began.elapsed());
        eventually(async || busy.service.streams() == 0).await;
    });
}

/// A second signal terminates a program immediately.
pub fn a_second_signal_ends_it_immediately(path: &str) {
    Runtime::new().unwrap().block_on(async {
        let mut busy = Busy::start(path).await;
        busy.terminate().await;
        assert!(!busy.page.is_finished());
        busy.program.signal("TERM");
        assert_eq!(busy.program.wait().signal(), Some(15));
        assert!(in_time(busy.page).await.unwrap().is_err());
    });
}

/// Ctrl-C shuts a program down as well.
pub fn ctrl_c_ends_it(path: &str) {
    assert_eq!(Program::start(path).stop("INT").code(), Some(0));
}

/// A client with its own connection.
fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

/// Returns the number of evaluations that the service received, not including those for the start-up context.
fn evaluations(service: &LocalServer) -> usize {
    let is_users = |body: &[u8]| !String::from_utf8_lossy(body).contains(r#""_init_""#);
    service.requests().iter().filter(|request| request.method == "POST" && is_users(&request.body)).count()
}
