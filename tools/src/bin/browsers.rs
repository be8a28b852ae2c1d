//! Measures the cost of browsers for an application: `browsers [STREAMS]`, with 10 000 event streams by default. Linux only.
//!
//! The application runs in another process, `browsers axum|actix SERVICE`, and the flag service runs in this one. Each
//! stream belongs to a different user, and has its own connection. Both processes need an open file for each stream
//! (`ulimit -n`). For each framework, the program prints the memory of a stream, the CPU time while nothing changes, the
//! time until a change has reached the last stream, the responses per second while the streams are open, relative to an empty
//! handler, and the time of a graceful shutdown.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "it prints what it measured, and fails by panicking")]

use std::{
    env, fs,
    io::{BufRead, BufReader as SyncReader, Error, Result},
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use flipswitch::{
    Context, FlipswitchProvider, Lifespan,
    serde_json::{Value, json},
};
use flipswitch_local::LocalServer;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    runtime::Runtime,
    sync::Semaphore,
    task::JoinSet,
};

/// The flags that browsers may read, ten of a hundred.
const PUBLIC: [&str; 10] =
    ["flag-0", "flag-1", "flag-2", "flag-3", "flag-4", "flag-5", "flag-6", "flag-7", "flag-8", "flag-9"];

/// The number of concurrent requests.
const CONNECTIONS: usize = 32;

/// The time for which responses are counted, and how many times this is repeated.
const TURN: Duration = Duration::from_secs(2);
const TURNS: usize = 5;

/// The time for which the application is observed while nothing changes.
const IDLE: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["axum", service] => Runtime::new()?.block_on(axum_application(service)),
        ["actix", service] => actix_web::rt::System::new().block_on(actix_application(service)),
        [] => Runtime::new()?.block_on(measure(10_000)),
        [streams] => Runtime::new()?.block_on(measure(streams.parse().map_err(Error::other)?)),
        _ => Err(Error::other("usage: browsers [STREAMS]")),
    }
}

async fn provider(service: &str) -> (FlipswitchProvider, Lifespan) {
    let provider = FlipswitchProvider::builder("key").base_url(service).cache_capacity(100_000).build().unwrap();
    let lifespan = Lifespan::builder(provider.clone()).require_ready(true).start().await.unwrap();
    (provider, lifespan)
}

/// Binds a port, and prints its address.
fn listen() -> Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    Ok(listener)
}

async fn axum_application(service: &str) -> Result<()> {
    use axum::{Router, routing::post};
    use flipswitch_axum::FlipswitchLayer;

    let (provider, lifespan) = provider(service).await;
    let browsers =
        flipswitch_axum::browser(provider.clone()).public(PUBLIC).spread(Duration::ZERO).max_streams(100_000);
    let layer = FlipswitchLayer::new(provider).with_context(|parts| {
        Context::user(parts.headers.get("x-user").and_then(|user| user.to_str().ok()).unwrap_or(""))
    });
    let app = Router::new()
        .nest("/flags", browsers.into_router())
        .layer(layer)
        .route("/bare", post(async |_: axum::body::Bytes| "hello"));
    let listener = listen()?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    lifespan.run(axum::serve(listener, app).with_graceful_shutdown(lifespan.signal())).await
}

async fn actix_application(service: &str) -> Result<()> {
    use actix_web::{App, HttpServer, web};
    use flipswitch_actix::FlipswitchMiddleware;

    let (provider, lifespan) = provider(service).await;
    let browsers =
        flipswitch_actix::browser(provider.clone()).public(PUBLIC).spread(Duration::ZERO).max_streams(100_000);
    let middleware = FlipswitchMiddleware::new(provider).with_context(|request| {
        Context::user(request.headers().get("x-user").and_then(|user| user.to_str().ok()).unwrap_or(""))
    });
    let server = HttpServer::new(move || {
        let flags = web::scope("/flags").service(browsers.clone()).wrap(middleware.clone());
        App::new().service(flags).route("/bare", web::post().to(async |_: web::Bytes| "hello"))
    });
    let server = server.workers(2).max_connections(50_000).backlog(8_192).shutdown_signal(lifespan.signal());
    lifespan.run(server.listen(listen()?)?.run()).await
}

/// The process of the application. Dropping it kills the process.
struct Application {
    process: Child,
    address: String,
}

impl Application {
    fn start(framework: &str, service: &str) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        let mut process = command.args([framework, service]).stdout(Stdio::piped()).spawn()?;
        let mut address = String::new();
        SyncReader::new(process.stdout.take().unwrap()).read_line(&mut address)?;
        Ok(Self { process, address: address.trim().to_owned() })
    }

    /// Returns the resident memory in bytes.
    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        kilobytes.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
    }

    /// Returns the CPU time of all threads of the process so far.
    fn time_on_core(&self) -> Duration {
        let threads = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let nanoseconds = threads.map(|thread| {
            let scheduled = fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap_or_default();
            scheduled.split(' ').next().and_then(|time| time.parse::<u64>().ok()).unwrap_or_default()
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    /// Asks the process to stop, and waits until it has stopped. Returns the time that this took.
    fn shut_down(&mut self) -> Duration {
        let began = Instant::now();
        Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().unwrap();
        assert!(self.process.wait().unwrap().success(), "the application must shut down gracefully");
        began.elapsed()
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

async fn measure(streams: usize) -> Result<()> {
    let flags: Vec<_> = (0..100).map(|number| (format!("flag-{number}"), (number % 2 == 0).into())).collect();
    for framework in ["axum", "actix"] {
        let values = flags.iter().cloned().collect();
        let service = LocalServer::builder().flags(Value::Object(values)).api_key("key");
        let service = service.start().await?;
        let mut application = Application::start(framework, &service.url())?;
        let address: Arc<str> = application.address.as_str().into();
        let bare = throughput(&address, "/bare").await;
        let before = application.memory();
        let began = Instant::now();
        let mut open = open_streams(&address, streams).await;
        println!("{framework}: {streams} streams opened in {:.2?}", began.elapsed());
        assert_eq!(service.streams(), 1, "the application must have one stream to the flag service");
        let bytes = application.memory().saturating_sub(before) as f64 / streams as f64;
        println!("{framework}: {:.1} KiB for each stream", bytes / 1_024.0);

        let before = application.time_on_core();
        tokio::time::sleep(IDLE).await;
        let busy = (application.time_on_core() - before).as_secs_f64() / IDLE.as_secs_f64();
        println!("{framework}: {:.1} % of a core while nothing changes", 100.0 * busy);

        let began = Instant::now();
        service.set_flag("flag-99", json!("changed"));
        let (mut notified, mut times) = (JoinSet::new(), Vec::new());
        for stream in open {
            notified.spawn(async move { (until_event(stream).await, began.elapsed()) });
        }
        open = Vec::new();
        while let Some(Ok((stream, time))) = notified.join_next().await {
            open.push(stream);
            times.push(time);
        }
        times.sort_unstable();
        println!(
            "{framework}: a change reached half of the streams after {:.2?}, and the last one after {:.2?}",
            times[streams / 2],
            times[streams - 1]
        );

        // Both are measured in turn, so other load on the machine affects both.
        let mut ratios = Vec::new();
        for _ in 0..TURNS {
            let (bare, flags) =
                (throughput(&address, "/bare").await, throughput(&address, "/flags/ofrep/v1/evaluate/flags").await);
            ratios.push(flags / bare);
        }
        ratios.sort_by(f64::total_cmp);
        println!(
            "{framework}: with open streams, {:.2} of the throughput of an empty handler ({bare:.0}/s without streams)",
            ratios[TURNS / 2]
        );
        println!("{framework}: a graceful shutdown took {:.2?}", application.shut_down());
        service.shutdown().await;
        drop(open);
    }
    Ok(())
}

async fn open_streams(address: &Arc<str>, streams: usize) -> Vec<BufReader<TcpStream>> {
    let (mut opening, at_once) = (JoinSet::new(), Arc::new(Semaphore::new(200)));
    for number in 0..streams {
        let (address, at_once) = (Arc::clone(address), Arc::clone(&at_once));
        opening.spawn(async move {
            let _permit = at_once.acquire().await.unwrap();
            let mut connection = TcpStream::connect(&*address).await.unwrap();
            let request =
                format!("GET /flags/ofrep/v1/events HTTP/1.1\r\nhost: {address}\r\nx-user: user-{number}\r\n\r\n");
            connection.write_all(request.as_bytes()).await.unwrap();
            until_event(BufReader::with_capacity(512, connection)).await
        });
    }
    opening.join_all().await
}

/// Reads a stream until an event arrives.
async fn until_event(mut stream: BufReader<TcpStream>) -> BufReader<TcpStream> {
    let mut line = String::new();
    while !line.contains("refetchEvaluation") {
        line.clear();
        assert_ne!(stream.read_line(&mut line).await.unwrap(), 0, "a stream ended");
    }
    stream
}

/// Returns the number of responses per second. Each connection repeats the request of one user.
async fn throughput(address: &Arc<str>, path: &'static str) -> f64 {
    let (began, mut work) = (Instant::now(), JoinSet::new());
    for connection in 0..CONNECTIONS {
        let address = Arc::clone(address);
        work.spawn(async move {
            let stream = TcpStream::connect(&*address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (mut reader, mut body, mut responses) = (BufReader::new(stream), Vec::new(), 0_usize);
            let request = format!(
                "POST {path} HTTP/1.1\r\nhost: {address}\r\nx-user: user-{connection}\r\ncontent-length: 14\r\n\r\n{{\"context\":{{}}}}"
            );
            while began.elapsed() < TURN {
                reader.get_mut().write_all(request.as_bytes()).await.unwrap();
                body.resize(head(&mut reader).await, 0);
                reader.read_exact(&mut body).await.unwrap();
                responses += 1;
            }
            responses
        });
    }
    let responses: usize = work.join_all().await.into_iter().sum();
    responses as f64 / began.elapsed().as_secs_f64()
}

/// Reads the head of a response, and returns the length of its body.
async fn head(reader: &mut BufReader<TcpStream>) -> usize {
    let (mut length, mut line) = (0, String::new());
    reader.read_line(&mut line).await.unwrap();
    assert!(line.contains(" 200 "), "{line}");
    loop {
        line.clear();
        reader.read_line(&mut line).await.unwrap();
        match line.trim_end().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", bytes)) => length = bytes.parse().unwrap(),
            None => return length,
            _ => {}
        }
    }
}
