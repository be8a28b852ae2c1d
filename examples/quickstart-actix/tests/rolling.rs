//! Two instances behind nginx are restarted in turn, and nobody notices.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, TcpStream},
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
use tokio::{runtime::Runtime, task::JoinSet};

const PROGRAM: &str = env!("CARGO_BIN_EXE_quickstart-actix-demo");
const CLIENTS: usize = 8;
const ROUNDS: usize = 3;

#[test]
fn instances_are_restarted_in_turn_and_no_request_fails() {
    roll(|config| config);
}

#[test]
fn the_same_holds_when_nginx_makes_a_connection_for_each_request() {
    roll(|config| {
        let kept = ["keepalive 16;", "keepalive_timeout 4s;", "proxy_set_header Connection \"\";"];
        kept.iter().fold(config, |config, line| {
            assert!(config.contains(line));
            config.replace(line, "")
        })
    });
}

/// Restarts each of two instances in turn under load; nginx has the config that lies beside this file, but for a change.
fn roll(change: impl FnOnce(String) -> String) {
    Runtime::new().unwrap().block_on(async {
        let flags = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("flags.json");
        let service = LocalServer::builder().flags_file(flags).api_key("key").start().await.unwrap();
        let mut programs = [0, 1].map(|_| Program::start_with(PROGRAM, &service));
        let nginx = Nginx::start(programs.each_ref().map(Program::address), change);

        let mut load = Load::start(&nginx.url());
        load.goes_on().await;
        for _ in 0..ROUNDS {
            for program in &mut programs {
                assert_eq!(program.end("TERM").code(), Some(0));
                // For a while there is only the other one.
                load.goes_on().await;
                *program = Program::start_at(PROGRAM, program.address(), &service);
                assert_eq!(ask(&Client::new(), &program.app, 0).await, Ok(()));
                eventually(async || service.streams() == 2).await;
                load.goes_on().await;
            }
        }
        load.stop().await;
    });
}

/// Clients that ask without a pause, each on a connection that it keeps.
struct Load {
    clients: JoinSet<Result<(), String>>,
    answered: Arc<[AtomicUsize; CLIENTS]>,
    enough: Arc<AtomicBool>,
}

impl Load {
    fn start(url: &str) -> Self {
        let (answered, enough) = (Arc::<[AtomicUsize; CLIENTS]>::default(), Arc::<AtomicBool>::default());
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let (url, answered, enough) = (url.to_owned(), Arc::clone(&answered), Arc::clone(&enough));
            clients.spawn(async move {
                // No proxy of the environment's, and no second try that nobody sees.
                let client = Client::builder().no_proxy().retry(reqwest::retry::never()).build().unwrap();
                while !enough.load(Ordering::Relaxed) {
                    ask(&client, &url, number).await?;
                    answered[number].fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        Self { clients, answered, enough }
    }

    /// Waits until every client had some more answers.
    async fn goes_on(&mut self) {
        let before = self.answered();
        let more = |(now, before): (usize, usize)| now >= before + 20;
        eventually(async || {
            // None ends before it is told to, unless its request failed.
            assert_eq!(self.clients.try_join_next().map(Result::unwrap), None);
            self.answered().into_iter().zip(before).all(more)
        })
        .await;
    }

    async fn stop(mut self) {
        self.enough.store(true, Ordering::Relaxed);
        while let Some(client) = in_time(self.clients.join_next()).await {
            assert_eq!(client.unwrap(), Ok(()));
        }
    }

    fn answered(&self) -> [usize; CLIENTS] {
        self.answered.each_ref().map(|answered| answered.load(Ordering::Relaxed))
    }
}

/// Asks for the flags of one of several users; an error if they are not that user's.
async fn ask(client: &Client, url: &str, user: usize) -> Result<(), String> {
    let (plan, projects) = if user.is_multiple_of(2) { ("premium", 100) } else { ("free", 3) };
    let request = client.get(format!("{url}/flags?user_id=user-{user}&plan={plan}"));
    let response = in_time(request.send()).await.map_err(|error| format!("{error:?}"))?;
    let status = response.status();
    let text = in_time(response.text()).await.map_err(|error| format!("{error:?}"))?;
    let right = status == 200 && text.contains(&format!(r#""max-projects":{projects}"#));
    if right { Ok(()) } else { Err(format!("{status}: {text}")) }
}

/// A proxy that ends with the test.
struct Nginx {
    process: Child,
    listen: SocketAddr,
    directory: TempDir,
}

impl Nginx {
    fn start(application: [SocketAddr; 2], change: impl FnOnce(String) -> String) -> Self {
        let directory = TempDir::new().unwrap();
        // It cannot choose a port by itself.
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
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
            // Taken by the test's own output, and so shown with the failure.
            let _ = io::Write::write_all(&mut io::stderr(), log.unwrap_or_default().as_bytes());
        }
    }
}
