//! How the examples end: what they have begun is finished, and then nothing keeps them.

use std::{io, net::TcpStream, os::unix::process::ExitStatusExt, time::Instant};

use flipswitch::{
    reqwest::{Client, Response},
    serde_json::Value,
};
use flipswitch_local::{Endpoint, Fault, FaultId, LocalServer};
use tokio::{runtime::Runtime, task::JoinHandle};

use super::{Program, eventually, in_time, program::DRAIN};

/// What an example is asked for while it is to end.
#[derive(Clone, Debug)]
pub struct Visit {
    /// The flags of the service.
    pub flags: Value,
    /// A page that reads no flag.
    pub plain: &'static str,
    /// A page that reads flags which nobody has asked for before.
    pub page: &'static str,
    /// What that page has with these flags, and not with the defaults.
    pub answer: &'static str,
    /// A stream of events, if there is one.
    pub events: Option<&'static str>,
}

/// A program that is visited: a request waits for flags, and a stream of events is open.
struct Visited {
    program: Program,
    service: LocalServer,
    /// Keeps the service from answering.
    hold: FaultId,
    page: JoinHandle<flipswitch::reqwest::Result<(u16, String)>>,
    events: Option<Response>,
    /// Has a connection that nothing is asked on any more, as browsers and proxies do.
    _idle: Client,
}

impl Visited {
    async fn new(path: &str, visit: &Visit) -> Self {
        let service = LocalServer::builder().flags(visit.flags.clone()).api_key("key").start().await.unwrap();
        let program = Program::start_with(path, &service);
        let idle = client();
        let there = in_time(idle.get(format!("{}{}", program.app, visit.plain)).send()).await.unwrap();
        assert_eq!(there.status(), 200);
        in_time(there.text()).await.unwrap();
        let events = match visit.events {
            Some(events) => {
                let mut events = in_time(client().get(format!("{}{events}", program.app)).send()).await.unwrap();
                assert!(in_time(events.chunk()).await.unwrap().is_some(), "a first event");
                Some(events)
            }
            None => None,
        };
        // A delay that is longer than the test, so that it ends with the fault, and the answer is as ever then.
        let before = evaluations(&service);
        let hold = service.faults().add(Fault::on(Endpoint::Bulk).delay(DRAIN * 10)).unwrap();
        let request = client().get(format!("{}{}", program.app, visit.page));
        let page = tokio::spawn(async {
            let response = request.send().await?;
            Ok((response.status().as_u16(), response.text().await?))
        });
        eventually(async || evaluations(&service) > before).await;
        Self { program, service, hold, page, events, _idle: idle }
    }

    /// Asks the program to end, and waits until it has heard that.
    async fn asked_to_end(&self) {
        self.program.signal("TERM");
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        eventually(async || TcpStream::connect(self.program.address()).is_err_and(refused)).await;
    }
}

/// A program that is asked to end takes no new connections, ends its streams, answers the requests that have come in, with
/// the flags that they wait for, and is gone as soon as it has.
pub fn finishes_what_it_began(path: &str, visit: &Visit) {
    Runtime::new().unwrap().block_on(async {
        let mut visited = Visited::new(path, visit).await;
        let asked = Instant::now();
        visited.asked_to_end().await;
        if let Some(events) = &mut visited.events {
            // In good order: a connection that is cut would be an error.
            while in_time(events.chunk()).await.unwrap().is_some() {}
        }
        assert!(!visited.page.is_finished());
        assert_eq!(visited.service.streams(), 1, "the provider goes last");

        visited.service.faults().remove(visited.hold);
        let (status, page) = in_time(visited.page).await.unwrap().unwrap();
        assert!(status == 200 && page.contains(visit.answer), "{status}: {page}");
        assert_eq!(visited.program.ended().code(), Some(0));
        // Giving up looks the same from outside, but for the time.
        assert!(asked.elapsed() < DRAIN, "{:?}", asked.elapsed());
        eventually(async || visited.service.streams() == 0).await;
    });
}

/// A program that is asked to end a second time does not wait for anything.
pub fn ends_at_once_when_asked_twice(path: &str, visit: &Visit) {
    Runtime::new().unwrap().block_on(async {
        let mut visited = Visited::new(path, visit).await;
        visited.asked_to_end().await;
        assert!(!visited.page.is_finished());
        visited.program.signal("TERM");
        assert_eq!(visited.program.ended().signal(), Some(15));
        assert!(in_time(visited.page).await.unwrap().is_err());
    });
}

/// Ctrl-c ends a program in order, too.
pub fn ends_at_ctrl_c(path: &str) {
    assert_eq!(Program::start(path).end("INT").code(), Some(0));
}

/// A visitor with a connection of their own.
fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

/// How many evaluations the service was asked for, those of the start-up context not counted.
fn evaluations(service: &LocalServer) -> usize {
    let is_users = |body: &[u8]| !String::from_utf8_lossy(body).contains(r#""_init_""#);
    service.requests().iter().filter(|request| request.method == "POST" && is_users(&request.body)).count()
}
