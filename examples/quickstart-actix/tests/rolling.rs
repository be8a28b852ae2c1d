//! Two instances behind nginx are restarted in turn, and no request fails.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use flipswitch_actix::flipswitch::reqwest::{self, Client};
use flipswitch_local::LocalServer;
use quickstart_common::testing::{Program, eventually, in_time};
use tempfile::TempDir;
use tokio::{net::TcpSocket, runtime::Runtime, task::JoinSet};

const PROGRAM: &str = env!("CARGO_BIN_EXE_quickstart-actix-demo");
const CLIENTS: usize = 8;
const ROUNDS: usize = 3;

#[test]
fn instances_are_restarted_in_turn_and_no_request_fails() {
    roll(|config| config);
}

#[test]
fn no_request_fails_when_nginx_opens_a_connection_for_each_request() {
    roll(|config| {
        let kept = ["keepalive 16;", "keepalive_timeout 4s;", "proxy_set_header Connection \"\";"];
        kept.iter().fold(config, |config, line| {
            assert!(config.contains(line));
            config.replace(line, "")
        })
    });
}

/// Restarts each of two instances in turn under load. nginx runs with `nginx.conf`, modified by `change`.
fn roll(change: impl FnOnce(String) -> String) {
    Runtime::new().unwrap().block_on(async {
        let flags = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("flags.json");
        let service = LocalServer::builder().flags_file(flags).api_key("key").start().await.unwrap();
        let mut programs = [0, 1].map(|_| Program::start_at(PROGRAM, reserved_port(), &service));
        let nginx = Nginx::start(programs.each_ref().map(Program::address), change);

        let mut load = Load::start(&nginx.url());
        load.continues().await;
        for _ in 0..ROUNDS {
            for program in &mut programs {
                assert_eq!(program.stop("TERM").code(), Some(0));
                // Only the other instance runs for a while.
                load.continues().await;
                *program = Program::start_at(PROGRAM, program.address(), &service);
                assert_eq!(request_flags(&Client::new(), &program.app, 0).await, Ok(()));
                eventually(async || service.streams() == 2).await;
                load.continues().await;
            }
        }
        load.stop().await;
    });
}

/// Clients that send requests without a pause, each on its own connection.
struct Load {
    clients: JoinSet<Result<(), String>>,
    responses: Arc<[AtomicUsize; CLIENTS]>,
    stopped: Arc<AtomicBool>,
}

impl Load {
    fn start(url: &str) -> Self {
        let (responses, stopped) = (Arc::<[AtomicUsize; CLIENTS]>::default(), Arc::<AtomicBool>::default());
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let (url, responses, stopped) = (url.to_owned(), Arc::clone(&responses), Arc::clone(&stopped));
            clients.spawn(async move {
                // Without retries, which would hide failures.
                let client = Client::builder().no_proxy().retry(reqwest::retry::never()).build().unwrap();
                while !stopped.load(Ordering::Relaxed) {
                    request_flags(&client, &url, number).await?;
                    responses[number].fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        Self { clients, responses, stopped }
    }

    /// Waits until every client has received 20 more responses.
    async fn continues(&mut self) {
        let before = self.responses();
        let more = |(now, before): (usize, usize)| now >= before + 20;
        eventually(async || {
            // A client that has ended had a failed request.
            assert_eq!(self.clients.try_join_next().map(Result::unwrap), None);
            self.responses().into_iter().zip(before).all(more)
        })
        .await;
    }

    async fn stop(mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        while let Some(client) = in_time(self.clients.join_next()).await {
            assert_eq!(client.unwrap(), Ok(()));
        }
    }

    fn responses(&self) -> [usize; CLIENTS] {
        self.responses.each_ref().map(|responses| responses.load(Ordering::Relaxed))
    }
}

/// Requests the flags for a user. Returns an error if they belong to a different user.
async fn request_flags(client: &Client, url: &str, user: usize) -> Result<(), String> {
    let (plan, projects) = if user.is_multiple_of(2) { ("premium", 100) } else { ("free", 3) };
    let request = client.get(format!("{url}/flags?user_id=user-{user}&plan={plan}"));
    let response = in_time(request.send()).await.map_err(|error| format!("{error:?}"))?;
    let status = response.status();
    let text = in_time(response.text()).await.map_err(|error| format!("{error:?}"))?;
    let right = status == 200 && text.contains(&format!(r#""max-projects":{projects}"#));
    if right { Ok(()) } else { Err(format!("{status}: {text}")) }
}

/// Returns an address for servers that are stopped and started again. On Linux, a server can listen on an address that a
/// different socket reserves, so the system gives the port to no other process.
fn reserved_port() -> SocketAddr {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    if cfg!(target_os = "linux") {
        std::mem::forget(socket);
    }
    address
}

/// An nginx process, which is killed when it is dropped.
struct Nginx {
    process: Child,
    listen: SocketAddr,
    directory: TempDir,
}

impl Nginx {
    fn start(application: [SocketAddr; 2], change: impl FnOnce(String) -> String) -> Self {
        let directory = TempDir::new().unwrap();
        let listen = reserved_port();
        let [first, second] = application.map(|address| address.to_string());
        let config = change(include_str!("nginx.conf").to_owned())
            .replace("DIRECTORY", directory.path().to_str().unwrap())
            .replace("LISTEN", &listen.to_string())
            .replace("FIRST", &first)
            .replace("SECOND", &second);
        let (file, log) = (directory.path().join("nginx.conf"), directory.path().join("error.log"));
        fs::write(&file, config).unwrap();
        let process = Command::new("nginx").arg("-e").arg(&log).arg("-c").arg(&file).spawn();
        let mut nginx = Self { process: process.expect("nginx is installed"), listen, directory };
        while TcpStream::connect(listen).is_err() {
            assert!(nginx.process.try_wait().unwrap().is_none(), "nginx did not start");
            thread::sleep(Duration::from_millis(5));
        }
        nginx
    }

    fn url(&self) -> String {
        format!("http://{}", self.listen)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        if thread::panicking() {
            let log = fs::read_to_string(self.directory.path().join("error.log"));
            // Shown with the failure of the test.
            let _ = io::Write::write_all(&mut io::stderr(), log.unwrap_or_default().as_bytes());
        }
    }
}
