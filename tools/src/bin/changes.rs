//! Measures the cost of flag changes for the requests of an application: `changes [SECONDS]`. Linux only. Needs `wrk`.
//!
//! An application on axum handles the requests of 5 000 users over 32 connections, first without changes, and then with one
//! change a second, each for 10 seconds by default. A change makes the flags of all users out of date. The flag service, the
//! application and `wrk` are separate processes on the same cores. The program prints the latency of requests, the number of
//! requests per second, and the CPU time of application and service as a share of a core.

use std::{env, error::Error, fs, io, process::Command, time::Duration};

use axum::{Router, extract::Query, http::request::Parts, routing::get};
use flipswitch::{
    Context, FlipswitchProvider,
    serde_json::{Map, Value, json},
};
use flipswitch_axum::{Flags, FlipswitchLayer};
use flipswitch_local::LocalServer;
use flipswitch_tools::program::Program;
use tokio::{net::TcpListener, time};

const FLAGS: usize = 100;
const USERS: usize = 5_000;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => measure(10).await,
        ["service"] => service().await,
        ["application", url] => application(url).await,
        [seconds] => measure(seconds.parse()?).await,
        _ => Err("usage: changes [SECONDS]".into()),
    }
}

async fn measure(seconds: u64) -> Outcome {
    let itself = env::current_exe()?;
    let (service, url) = Program::start(Command::new(&itself).arg("service"))?;
    let (application, address) = Program::start(Command::new(&itself).args(["application", &url]))?;
    let script = env::temp_dir().join(format!("flipswitch-changes-{}.lua", std::process::id()));
    let request = format!("return wrk.format(nil, '/?user=' .. math.random({USERS}))");
    fs::write(&script, format!("math.randomseed(os.time())\nrequest = function() {request} end\n"))?;
    let load = |seconds: u64| {
        let mut wrk = tokio::process::Command::new("wrk");
        wrk.args(["-t1", "-c32", "--latency", &format!("-d{seconds}s"), "-s"]).arg(&script).arg(&address);
        wrk
    };

    // A first run, which is not measured, fills the cache with the flags of all users.
    load(seconds).output().await?;
    for changes in [false, true] {
        let before = [application.time_on_core()?, service.time_on_core()?];
        let flipping = async {
            let client = reqwest::Client::new();
            let mut ticks = time::interval(Duration::from_secs(1));
            let mut is_on = false;
            loop {
                ticks.tick().await;
                is_on = !is_on;
                let value = json!({"value": is_on}).to_string();
                client.put(format!("{url}/local/flags/flag-1")).body(value).send().await?.error_for_status()?;
            }
        };
        let output = tokio::select! {
            output = async { load(seconds).output().await } => output?,
            stopped = flipping, if changes => {
                let stopped: reqwest::Result<()> = stopped;
                return Err(stopped.err().map_or_else(|| "no changes".into(), Into::into));
            }
        };
        let report = String::from_utf8(output.stdout)?;
        if !output.status.success() || report.contains("Non-2xx") || report.contains("Socket errors") {
            return Err(format!("wrk: {report}{}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let value = |name: &str| {
            let line = report.lines().find_map(|line| line.trim().strip_prefix(name));
            line.map(|value| value.trim().to_owned()).ok_or_else(|| format!("wrk reports no {name}"))
        };
        let [on_application, on_service] =
            [application.time_on_core()? - before[0], service.time_on_core()? - before[1]]
                .map(|time| time / seconds as f64);
        print(&format!(
            "{}: p50 {}, p99 {}, {} requests/s; share of a core: application {on_application:.2}, service {on_service:.2}",
            if changes { "one change a second" } else { "no changes" },
            value("50%")?,
            value("99%")?,
            value("Requests/sec:")?,
        ));
    }
    fs::remove_file(script)?;
    Ok(())
}

async fn service() -> Outcome {
    let flags: Map<_, _> = (0..FLAGS).map(|number| (format!("flag-{number}"), Value::Bool(false))).collect();
    let service = LocalServer::start(Value::Object(flags)).await?;
    print(&service.url());
    std::future::pending().await
}

async fn application(service: &str) -> Outcome {
    let provider = FlipswitchProvider::builder("key").base_url(service).build()?;
    provider.ready(Duration::from_secs(30)).await?;
    let layer = FlipswitchLayer::new(provider).with_context(|parts: &Parts| {
        let Query(user) = Query::<Map<String, Value>>::try_from_uri(&parts.uri).ok()?;
        Some(Context::user(user.get("user")?.as_str()?).with("country", "de").with("plan", "premium"))
    });
    let app = Router::new().route("/", get(async |flags: Flags| flags.bool("flag-1", false).to_string())).layer(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    print(&format!("http://{}/", listener.local_addr()?));
    Ok(axum::serve(listener, app).await?)
}

fn print(line: &str) {
    use io::Write;

    let mut out = io::stdout();
    // The reader may have exited. The server continues.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
