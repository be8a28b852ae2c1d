//! Measures from outside what flags cost a whole server: `hello [PAIRS]`. Needs `wrk`, `taskset` and two cores.
//!
//! Each server says hello over real sockets, once without flags and once with the layer, the extractor, one read, and a
//! context of three attributes. It has one thread on one core, and `wrk` has the other. The two servers are measured in
//! turns, so that other load on the machine affects both. Such load still shows in the requests a second, and hardly in
//! the CPU time of a request, which is printed as well.

use std::{
    env,
    error::Error,
    fmt, fs,
    io::{self, BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use axum::{Router, routing::get};
use flipswitch::{
    FlipswitchProvider,
    open_feature::EvaluationContext,
    serde_json::{Map, Value},
};
use flipswitch_local::LocalServer;
use tokio::{net::TcpListener, runtime};

/// Flags of the service.
const FLAGS: usize = 100;
/// The time that each server is under load in each turn.
const TURN: Duration = Duration::from_secs(6);

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => compare(5),
        ["axum", what] => runtime::Builder::new_current_thread().enable_all().build()?.block_on(axum_server(what)),
        ["actix", what] => actix_web::rt::System::new().block_on(actix_server(what)),
        [pairs] => compare(pairs.parse()?),
        _ => Err("usage: hello [PAIRS] | hello axum|actix bare|flags".into()),
    }
}

/// Measures both frameworks, in turns without and with flags.
fn compare(pairs: usize) -> Outcome {
    for framework in ["axum", "actix"] {
        let (mut rates, mut costs) = (Vec::new(), Vec::new());
        for pair in 1..=pairs {
            let (bare, flags) = (turn(framework, "bare")?, turn(framework, "flags")?);
            print(&format!("{framework:<5} {pair:>2}: {bare} bare, {flags} with flags"));
            rates.push(flags.rate / bare.rate);
            costs.push(bare.cost / flags.cost);
        }
        print(&format!("{framework:<5} with flags: {} of the requests a second", Spread(rates)));
        print(&format!("{framework:<5} with flags: {} by time on the core", Spread(costs)));
    }
    Ok(())
}

/// The result of one server in one turn.
struct Turn {
    /// Requests a second.
    rate: f64,
    /// Microseconds of CPU time for a request.
    cost: f64,
}

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6.0}/s, {:>5.2} µs each", self.rate, self.cost)
    }
}

/// Ratios, shown as their median, minimum and maximum.
struct Spread(Vec<f64>);

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match &sorted[..] {
            [] => f.write_str("-"),
            [least, ..] => {
                let median = f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
                let most = sorted[sorted.len() - 1];
                write!(f, "{median:.3} ({least:.3} to {most:.3})")
            }
        }
    }
}

fn turn(framework: &str, what: &str) -> Outcome<Turn> {
    let (server, url) = Server::start(framework, what)?;
    // Connections and caches are warm when it counts.
    load(&url, Duration::from_secs(1))?;
    let before = server.time_on_core()?;
    let (rate, requests) = load(&url, TURN)?;
    let cost = (server.time_on_core()? - before) * 1e6 / requests;
    Ok(Turn { rate, cost })
}

/// Puts a server under load. Returns requests a second and the number of requests.
fn load(url: &str, duration: Duration) -> Outcome<(f64, f64)> {
    let duration = format!("-d{}s", duration.as_secs());
    let output = Command::new("taskset").args(["-c", "1", "wrk", "-t1", "-c32", &duration, url]).output()?;
    let report = String::from_utf8(output.stdout)?;
    if !output.status.success() || report.contains("Non-2xx") || report.contains("Socket errors") {
        return Err(format!("wrk: {report}{}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let rate = report.lines().find_map(|line| line.strip_prefix("Requests/sec:")).ok_or("wrk reports no rate")?;
    let number = report.lines().find_map(|line| line.split_once(" requests in ")).ok_or("wrk reports no requests")?.0;
    Ok((rate.trim().parse()?, number.trim().parse()?))
}

/// A server in its own process, which ends when this is dropped.
struct Server(Child);

impl Server {
    fn start(framework: &str, what: &str) -> Outcome<(Self, String)> {
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]).arg(env::current_exe()?).args([framework, what]).stdout(Stdio::piped());
        let mut server = Self(command.spawn()?);
        let mut url = String::new();
        BufReader::new(server.0.stdout.take().ok_or("no standard output")?).read_line(&mut url)?;
        Ok((server, url.trim().to_owned()))
    }

    /// Returns how long its threads have run so far, in seconds.
    fn time_on_core(&self) -> Outcome<f64> {
        let mut nanoseconds = 0.0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let scheduled = fs::read_to_string(thread?.path().join("schedstat"))?;
            nanoseconds += scheduled.split(' ').next().unwrap_or_default().parse::<f64>()?;
        }
        Ok(nanoseconds / 1e9)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

async fn axum_server(what: &str) -> Outcome {
    use flipswitch_axum::{Flags, FlipswitchLayer};

    let (_service, provider) = provider().await?;
    let app = match what {
        "flags" => {
            let layer = FlipswitchLayer::new(provider).with_context(|_: &_| context());
            Router::new().route("/", get(async |flags: Flags| greeting(flags.bool("flag-50", false)))).layer(layer)
        }
        _ => Router::new().route("/", get(async || greeting(true))),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    print(&format!("http://{}/", listener.local_addr()?));
    Ok(axum::serve(listener, app).await?)
}

async fn actix_server(what: &str) -> Outcome {
    use actix_web::{App, HttpServer, web};
    use flipswitch_actix::{Flags, FlipswitchMiddleware};

    let (_service, provider) = provider().await?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    print(&format!("http://{}/", listener.local_addr()?));
    let server = match what {
        "flags" => {
            let middleware = FlipswitchMiddleware::new(provider).with_context(|_: &_| context());
            let reading = async |flags: Flags| greeting(flags.bool("flag-50", false));
            let app = move || App::new().wrap(middleware.clone()).route("/", web::get().to(reading));
            HttpServer::new(app).workers(1).listen(listener)?.run()
        }
        _ => {
            let app = || App::new().route("/", web::get().to(async || greeting(true)));
            HttpServer::new(app).workers(1).listen(listener)?.run()
        }
    };
    Ok(server.await?)
}

/// Starts a flag service and a provider. Both servers have one, so that they differ only in what a request does.
async fn provider() -> Outcome<(LocalServer, FlipswitchProvider)> {
    let flags: Map<_, _> = (0..FLAGS).map(|number| (format!("flag-{number}"), (number % 2 == 0).into())).collect();
    let service = LocalServer::start(Value::Object(flags)).await?;
    let provider = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).build()?;
    provider.ready(Duration::from_secs(30)).await?;
    Ok((service, provider))
}

fn context() -> EvaluationContext {
    EvaluationContext::default()
        .with_targeting_key("user-123")
        .with_custom_field("plan", "premium")
        .with_custom_field("country", "de")
}

fn greeting(on: bool) -> &'static str {
    if on { "Hello, world!" } else { "Hello?" }
}

fn print(line: &str) {
    use io::Write;

    let mut out = io::stdout();
    // The reader may have exited; the server goes on.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
