//! Measures the cost of flags for a whole server: `hello [ROUNDS]`. Linux only. Needs `wrk`, `taskset` and two cores.
//!
//! Three servers respond with a greeting over real sockets. `bare` has only a handler. `flags` has the layer, the extractor,
//! one read, and a context of three fields. `layer` has a layer of the framework that adds one value to each request, and an
//! extractor for this value. Each server has one thread on one core, and `wrk` has the other core. The servers of a round
//! run at the same time, and each of them in turn is under load for a second, so other load on the machine affects all of
//! them. Such load still affects the requests per second, but hardly the CPU time of a request, which is also printed.

use std::{env, error::Error, fmt, io, process::Command, sync::Arc, time::Duration};

use axum::{Extension, Router, routing::get};
use flipswitch::{
    Context, FlipswitchProvider,
    serde_json::{Map, Value},
};
use flipswitch_local::LocalServer;
use flipswitch_tools::program::Program;
use tokio::{net::TcpListener, runtime};

/// The number of flags of the service.
const FLAGS: usize = 100;
/// How many times each server of a round is under load for a second.
const TURNS: usize = 6;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => compare(9),
        ["axum", what] => runtime::Builder::new_current_thread().enable_all().build()?.block_on(axum_server(what)),
        ["actix", what] => actix_web::rt::System::new().block_on(actix_server(what)),
        [rounds] => compare(rounds.parse()?),
        _ => Err("usage: hello [ROUNDS] | hello axum|actix bare|layer|flags".into()),
    }
}

/// The kinds of servers: without anything; with a layer (middleware) that adds a value to each request, and an extractor
/// for this value; with flags.
const SERVERS: [&str; 3] = ["bare", "layer", "flags"];

/// Measures both frameworks, with the servers in turn.
fn compare(rounds: usize) -> Outcome {
    for framework in ["axum", "actix"] {
        let (mut rates, mut costs) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
        for number in 1..=rounds {
            let work = round(framework)?;
            let figures = SERVERS.iter().zip(&work).map(|(server, work)| format!("{work} {server}"));
            print(&format!("{framework:<5} {number:>2}: {}", figures.collect::<Vec<_>>().join(", ")));
            let [bare, others @ ..] = work;
            for (place, other) in others.iter().enumerate() {
                rates[place].push(other.rate() / bare.rate());
                costs[place].push(bare.cost() / other.cost());
            }
        }
        for ((server, rates), costs) in SERVERS.iter().skip(1).zip(rates).zip(costs) {
            print(&format!("{framework:<5} {server}: {} of the requests per second of bare", Spread(rates)));
            print(&format!("{framework:<5} {server}: {} by CPU time", Spread(costs)));
        }
    }
    Ok(())
}

/// The work of one server in all of its turns.
#[derive(Default)]
struct Work {
    requests: f64,
    seconds: f64,
    seconds_on_core: f64,
}

impl Work {
    /// Returns the number of requests per second.
    fn rate(&self) -> f64 {
        self.requests / self.seconds
    }

    /// Returns the microseconds of CPU time for a request.
    fn cost(&self) -> f64 {
        self.seconds_on_core * 1e6 / self.requests
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6.0}/s, {:>5.2} µs each", self.rate(), self.cost())
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

/// Starts the servers, and puts them under load in turn.
fn round(framework: &str) -> Outcome<[Work; SERVERS.len()]> {
    let servers = SERVERS.iter().map(|server| start(framework, server)).collect::<Result<Vec<_>, _>>()?;
    let mut work = SERVERS.map(|_| Work::default());
    for turn in 0..TURNS {
        for number in 0..servers.len() {
            // Each server is equally often the first one, and equally often after each other one.
            let number = (turn + if turn % 2 == 0 { number } else { servers.len() - number }) % servers.len();
            let (server, url) = &servers[number];
            if turn == 0 {
                // Warms up connections and caches before the measurement.
                load(url)?;
            }
            let before = server.time_on_core()?;
            let (rate, requests) = load(url)?;
            work[number].requests += requests;
            work[number].seconds += requests / rate;
            work[number].seconds_on_core += server.time_on_core()? - before;
        }
    }
    Ok(work)
}

/// Puts a server under load for a second. Returns the requests per second and the number of requests.
fn load(url: &str) -> Outcome<(f64, f64)> {
    let output = Command::new("taskset").args(["-c", "1", "wrk", "-t1", "-c32", "-d1s", url]).output()?;
    let report = String::from_utf8(output.stdout)?;
    if !output.status.success() || report.contains("Non-2xx") || report.contains("Socket errors") {
        return Err(format!("wrk: {report}{}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let rate = report.lines().find_map(|line| line.strip_prefix("Requests/sec:")).ok_or("wrk reports no rate")?;
    let number = report.lines().find_map(|line| line.split_once(" requests in ")).ok_or("wrk reports no requests")?.0;
    Ok((rate.trim().parse()?, number.trim().parse()?))
}

/// Starts a server. Returns it with its URL.
fn start(framework: &str, what: &str) -> Outcome<(Program, String)> {
    Ok(Program::start(Command::new("taskset").args(["-c", "0"]).arg(env::current_exe()?).args([framework, what]))?)
}

async fn axum_server(what: &str) -> Outcome {
    use flipswitch_axum::{Flags, FlipswitchLayer};

    let (_service, provider) = provider().await?;
    let app = match what {
        "flags" => {
            let layer = FlipswitchLayer::new(provider).with_context(|_: &_| context());
            Router::new().route("/", get(async |flags: Flags| greeting(flags.bool("flag-50", false)))).layer(layer)
        }
        "layer" => {
            let reading = async |Extension(Given(on)): Extension<Given>| greeting(*on);
            Router::new().route("/", get(reading)).layer(Extension(Given(Arc::new(true))))
        }
        _ => Router::new().route("/", get(async || greeting(true))),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    print(&format!("http://{}/", listener.local_addr()?));
    Ok(axum::serve(listener, app).await?)
}

async fn actix_server(what: &str) -> Outcome {
    use actix_web::{
        App, HttpMessage, HttpServer,
        dev::{Service, ServiceRequest},
        web,
    };
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
        "layer" => {
            let reading = async |value: web::ReqData<Given>| greeting(*value.into_inner().0);
            let app = move || {
                let value = Given(Arc::new(true));
                let adding = move |request: ServiceRequest, app: &_| {
                    request.extensions_mut().insert(value.clone());
                    Service::call(app, request)
                };
                App::new().wrap_fn(adding).route("/", web::get().to(reading))
            };
            HttpServer::new(app).workers(1).listen(listener)?.run()
        }
        _ => {
            let app = || App::new().route("/", web::get().to(async || greeting(true)));
            HttpServer::new(app).workers(1).listen(listener)?.run()
        }
    };
    Ok(server.await?)
}

/// Starts a flag service and a provider. All servers have both, so they differ only in what a request does.
async fn provider() -> Outcome<(LocalServer, FlipswitchProvider)> {
    let flags: Map<_, _> = (0..FLAGS).map(|number| (format!("flag-{number}"), (number % 2 == 0).into())).collect();
    let service = LocalServer::start(Value::Object(flags)).await?;
    let provider = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).build()?;
    provider.ready(Duration::from_secs(30)).await?;
    Ok((service, provider))
}

fn context() -> Context {
    Context::user("user-123").with("country", "de").with("plan", "premium")
}

/// The value that the layer without flags adds to a request.
#[derive(Clone)]
struct Given(Arc<bool>);

fn greeting(on: bool) -> &'static str {
    if on { "Hello, world!" } else { "Hello?" }
}

fn print(line: &str) {
    use io::Write;

    let mut out = io::stdout();
    // The reader may have exited. The server continues.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
