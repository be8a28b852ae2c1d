//! `Lifespan`: starting and stopping a provider with a server.

use std::{io, sync::Arc, time::Duration};

use flipswitch::{Error, FlipswitchProvider, HealthState, Lifespan, ReadyError, serde_json::json};
use flipswitch_local::{Endpoint, Fault, LocalServer};

use crate::support::{self, Log, in_time, provider, user};

/// Long enough for a busy machine, and shorter than the default drain timeout.
const SOON: Duration = Duration::from_secs(15);

#[tokio::test]
async fn the_provider_starts_before_the_server_and_ends_after_it() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let provider = provider(&service);
    let lifespan = in_time(Lifespan::builder(provider.clone()).start()).await.unwrap();
    assert!(service.requests().iter().any(|request| request.method == "POST"), "the start-up request must be sent");
    let server = {
        let provider = provider.clone();
        async move {
            assert!(provider.flags(&user("u")).await.bool("on", false));
            Err(io::ErrorKind::AddrInUse.into())
        }
    };
    let served = in_time(lifespan.run(server)).await;
    assert_eq!(served.unwrap_err().kind(), io::ErrorKind::AddrInUse, "the server's own error");
    assert!(matches!(provider.flags(&user("u")).await.error(), Some(Error::ShutDown)));
}

#[tokio::test]
async fn without_the_service_the_server_starts_with_defaults_unless_readiness_is_required() {
    let provider = support::provider_of_nothing();
    let lifespan = Lifespan::builder(provider.clone()).ready_timeout(Duration::from_millis(10));
    let started = in_time(lifespan.start()).await.unwrap();
    let server = async {
        assert_eq!(provider.flags(&user("u")).await.int("limit", 7), 7);
        Ok(())
    };
    in_time(started.run(server)).await.unwrap();

    let provider = support::provider_of_nothing();
    let lifespan = Lifespan::builder(provider.clone()).ready_timeout(Duration::from_millis(10)).require_ready(true);
    assert!(in_time(lifespan.start()).await.is_err());
    assert!(matches!(provider.flags(&user("u")).await.error(), Some(Error::ShutDown)), "nothing may be left running");
}

#[tokio::test]
async fn a_lifespan_starts_and_ends_all_its_providers() {
    let services =
        [LocalServer::start(json!({"on": true})).await.unwrap(), LocalServer::start(json!({})).await.unwrap()];
    let [shop, billing] = [&services[0], &services[1]].map(provider);
    let lifespan = in_time(Lifespan::builder(shop.clone()).and(billing.clone()).start()).await.unwrap();
    for service in &services {
        assert!(service.requests().iter().any(|request| request.method == "POST"), "the start-up request must be sent");
    }
    let server = async {
        assert!(shop.flags(&user("u")).await.bool("on", false));
        assert!(billing.flags(&user("u")).await.error().is_none());
        Ok(())
    };
    in_time(lifespan.run(server)).await.unwrap();
    for provider in [&shop, &billing] {
        assert_eq!(provider.health().state, HealthState::ShutDown);
    }

    // If readiness is required, one provider that is not ready makes startup fail. Both providers share one wait.
    for is_first in [true, false] {
        let (away, there) = (support::provider_of_nothing(), provider(&services[0]));
        let [first, second] = if is_first { [&away, &there] } else { [&there, &away] };
        let lifespan = Lifespan::builder(first.clone()).and(second.clone()).ready_timeout(Duration::from_millis(300));
        assert!(in_time(lifespan.clone().require_ready(true).start()).await.is_err());
        for provider in [away, there] {
            assert_eq!(provider.health().state, HealthState::ShutDown, "nothing may be left running");
        }
    }
}

#[tokio::test]
async fn main_prints_the_text_of_a_start_error() {
    let lifespan = Lifespan::builder(support::provider_of_nothing()).ready_timeout(SOON).require_ready(true);
    let error = in_time(lifespan.start()).await.unwrap_err();
    let text = format!("{error:?}");
    assert!(text.starts_with("no request to the flag service succeeded in time: "), "{text}");
    assert!(!text.contains('{') && !text.contains("Unreachable"), "{text}");
}

#[tokio::test]
async fn ready_timeout_limits_the_wait_for_the_service() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    // The service responds within the default time limit, so startup would succeed if it ignored its own limit.
    service.faults().add(Fault::on(Endpoint::Bulk).delay(Duration::from_secs(3))).unwrap();
    let lifespan = Lifespan::builder(provider(&service)).ready_timeout(Duration::from_millis(1)).require_ready(true);
    let error = in_time(lifespan.start()).await.unwrap_err();
    assert!(matches!(error, ReadyError::Timeout), "{error:?}");

    let provider = provider(&service);
    let lifespan = Lifespan::builder(provider.clone()).ready_timeout(Duration::from_millis(1));
    let lifespan = in_time(lifespan.start()).await.unwrap();
    assert_eq!(provider.health().state, HealthState::Starting);
    in_time(lifespan.shutdown()).await;
    assert_eq!(provider.health().state, HealthState::ShutDown);
}

#[tokio::test]
async fn a_rejected_key_fails_a_start_that_requires_readiness() {
    let service = LocalServer::builder().api_key("right").start().await.unwrap();
    let provider = FlipswitchProvider::builder("wrong").base_url(service.url()).build().unwrap();
    let lifespan = Lifespan::builder(provider).ready_timeout(Duration::from_secs(600)).require_ready(true);
    assert!(matches!(in_time(lifespan.start()).await, Err(ReadyError::Unauthorized)));
}

#[tokio::test]
async fn shutting_the_provider_down_ends_the_lifespan() {
    let provider = FlipswitchProvider::in_memory(json!({}));
    let lifespan = Lifespan::builder(provider.clone()).start().await.unwrap();
    let early = lifespan.signal();
    let (drain, drained) = tokio::sync::oneshot::channel();
    let server = async {
        early.await;
        drain.send(()).unwrap();
        Ok(())
    };
    let (served, ()) = in_time(async { tokio::join!(lifespan.run(server), provider.shutdown()) }).await;
    served.unwrap();
    drained.await.expect("the server drained");
    in_time(lifespan.signal()).await;
    assert!(matches!(Lifespan::builder(provider).start().await, Err(ReadyError::ShutDown)));
}

#[test]
fn a_lifespan_needs_no_runtime_of_the_caller() {
    let provider = FlipswitchProvider::in_memory(json!({"on": true}));
    pollster::block_on(async {
        let lifespan = Lifespan::builder(provider).start().await.unwrap();
        assert!(lifespan.provider().flags(&user("u")).await.bool("on", false));
        lifespan.shutdown().await;
    });
}

#[tokio::test]
async fn drain_timeout_applies_after_the_provider_was_shut_down() {
    for shut_down_before in [false, true] {
        let provider = FlipswitchProvider::in_memory(json!({}));
        let lifespan =
            Lifespan::builder(provider.clone()).drain_timeout(Duration::from_millis(50)).start().await.unwrap();
        // Here, the shutdown of the provider acts as the signal.
        let server = std::future::pending::<io::Result<()>>();
        let end = async {
            if shut_down_before {
                provider.shutdown().await;
            }
            lifespan.run(server).await
        };
        let end = async { tokio::join!(end, provider.shutdown()) };
        let log = Log::of_this_thread();
        let (served, ()) =
            tokio::time::timeout(SOON, end).await.expect("the server must end before the default timeout");
        served.unwrap();
        assert!(log.lines().iter().any(|line| line.contains("did not drain within 0.05 seconds")), "{:?}", log.lines());
    }
}

/// actix-web has its own drain timeout. Both timeouts begin with the signal.
#[test]
fn on_actix_the_shorter_drain_timeout_applies() {
    use actix_web::{App, HttpServer, web};
    use tokio::{io::AsyncWriteExt, net::TcpStream, sync::Notify};

    for (drain_timeout, shutdown_timeout, is_dropped) in
        [(Duration::from_millis(50), 600, true), (Duration::from_secs(600), 0, false)]
    {
        actix_web::rt::System::new().block_on(async {
            let provider = FlipswitchProvider::in_memory(json!({}));
            let lifespan = Lifespan::builder(provider.clone()).drain_timeout(drain_timeout).start().await.unwrap();
            let asked = Arc::new(Notify::new());
            let stuck = {
                let asked = Arc::clone(&asked);
                move || {
                    asked.notify_one();
                    std::future::pending::<String>()
                }
            };
            let server = HttpServer::new(move || App::new().route("/", web::get().to(stuck.clone())))
                .workers(1)
                .shutdown_timeout(shutdown_timeout)
                .shutdown_signal(lifespan.signal())
                .bind("127.0.0.1:0")
                .unwrap();
            let mut visitor = TcpStream::connect(server.addrs()[0]).await.unwrap();
            visitor.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
            // Here, the shutdown of the provider acts as the signal.
            let end = async {
                asked.notified().await;
                provider.shutdown().await;
            };
            let run = async { tokio::join!(lifespan.run(server.run()), end) };
            let log = Log::of_this_thread();
            let (served, ()) =
                tokio::time::timeout(SOON, run).await.expect("the server must end before the default timeout");
            served.unwrap();
            let lines = log.lines();
            assert_eq!(lines.iter().any(|line| line.contains("did not drain")), is_dropped, "{lines:?}");
        });
    }
}

#[cfg(unix)]
mod signals {
    use std::{
        io::{BufRead, BufReader},
        os::unix::process::ExitStatusExt,
        process::{Child, Command, ExitStatus, Stdio},
        sync::mpsc::{self, Receiver, RecvTimeoutError},
        thread,
        time::Instant,
    };

    use crate::support::{
        PATIENCE,
        scripted::{Reply, Scripted},
    };

    /// The program `life`, and the lines that it prints.
    struct Life(Child, Receiver<String>);

    impl Life {
        fn start(arguments: &[&str]) -> Self {
            let program = env!("CARGO_BIN_EXE_life");
            let mut child = Command::new(program).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let (sender, printed) = mpsc::channel();
            thread::spawn(move || lines.map(Result::unwrap).try_for_each(|line| sender.send(line)));
            Self(child, printed)
        }

        fn prints(&mut self, line: &str) {
            assert_eq!(self.1.recv_timeout(PATIENCE).as_deref(), Ok(line));
        }

        fn prints_a_line_with(&mut self, text: &str) {
            let line = self.1.recv_timeout(PATIENCE).unwrap();
            assert!(line.contains(text), "{line}");
        }

        fn signal(&self, name: &str) {
            let sent = Command::new("kill").args([&format!("-{name}"), &self.0.id().to_string()]).status().unwrap();
            assert!(sent.success());
        }

        fn ended(&mut self) -> ExitStatus {
            assert_eq!(
                self.1.recv_timeout(PATIENCE),
                Err(RecvTimeoutError::Disconnected),
                "the process must print nothing more, and end"
            );
            self.0.wait().unwrap()
        }
    }

    impl Drop for Life {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    #[test]
    fn a_second_signal_ends_the_process_immediately() {
        for (first, second, number) in [("TERM", "TERM", 15), ("INT", "TERM", 15), ("TERM", "INT", 2)] {
            let mut life = Life::start(&["forever"]);
            life.prints("listening");
            life.signal(first);
            life.prints("draining");
            life.signal(second);
            assert_eq!(life.ended().signal(), Some(number));
        }
    }

    #[test]
    fn a_server_that_does_not_drain_is_dropped_after_drain_timeout() {
        let mut life = Life::start(&["stuck"]);
        life.prints("listening");
        life.signal("TERM");
        life.prints("draining");
        let draining = Instant::now();
        life.prints_a_line_with("the server did not drain within 0.3 seconds");
        assert!(draining.elapsed() < super::SOON, "{:?}", draining.elapsed());
        life.prints("shut down");
        assert!(life.ended().success());
    }

    #[test]
    fn after_the_lifespan_signals_have_their_default_effect() {
        let mut life = Life::start(&["after"]);
        life.prints("listening");
        life.signal("INT");
        life.prints("draining");
        life.prints("drained");
        life.prints("shut down");
        life.signal("TERM");
        assert_eq!(life.ended().signal(), Some(15));
    }

    #[tokio::test]
    async fn a_signal_ends_the_wait_for_the_service() {
        let silent = Scripted::answering(Reply::Silence).await;
        let url = silent.url();
        let mut life = Life::start(&["start", &url]);
        life.prints("starting");
        // The first request is sent after the process has begun to listen for signals.
        crate::support::eventually(async || !silent.received().is_empty()).await;
        life.signal("TERM");
        let ended = tokio::task::spawn_blocking(move || {
            life.prints("listening");
            life.prints("draining");
            life.prints("drained");
            life.prints("shut down");
            life.ended()
        });
        assert!(ended.await.unwrap().success());
    }
}
