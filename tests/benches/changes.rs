//! Measures how long a change takes to reach a reader: from the `PUT` of a flag until a listener was called and an
//! evaluation has the new value. A bare request for all flags is measured in turn with it. The change arrives over
//! Flipswitch's own stream, or over an OFREP event stream.
//!
//! The bench reports percentiles, which criterion does not, and is therefore a separate program.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench prints what it measured, and fails by panicking"
)]

use std::{
    env, thread,
    time::{Duration, Instant},
};

use flipswitch::{FlipswitchProvider, open_feature::EvaluationContext, reqwest::Client, serde_json::json};
use flipswitch_local::LocalServer;
use tokio::{
    runtime::Builder,
    sync::{mpsc, oneshot},
    task::JoinSet,
};

const CHANGES: i64 = 1_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// A service on its own thread, which acts like a separate process.
async fn service(event_streams: bool) -> LocalServer {
    let (started, service) = oneshot::channel();
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let flags = (0..100).map(|number| (format!("flag-{number}"), json!(false))).collect();
            let builder = LocalServer::builder().flags(flags).event_streams(event_streams);
            started.send(builder.start().await.unwrap()).unwrap();
            std::future::pending::<()>().await;
        });
    });
    service.await.unwrap()
}

fn user(number: usize) -> EvaluationContext {
    EvaluationContext::default().with_targeting_key(format!("user-{number}")).with_custom_field("plan", "premium")
}

/// Evaluates contexts, so the provider knows them.
async fn know(provider: &FlipswitchProvider, contexts: usize) {
    let mut asked = JoinSet::new();
    for number in 0..contexts {
        let provider = provider.clone();
        asked.spawn(async move { assert!(provider.flags(&user(number)).await.error().is_none()) });
        if asked.len() == 64 {
            asked.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(asked) = asked.join_next().await {
        asked.unwrap();
    }
}

async fn measure(contexts: usize, event_streams: bool) {
    let service = service(event_streams).await;
    let provider = match event_streams {
        true => FlipswitchProvider::ofrep(service.url()),
        false => FlipswitchProvider::builder(service.api_key()).base_url(service.url()),
    };
    // All contexts are known before the measurement, even on a busy machine.
    let provider = provider.miss_wait(PATIENCE).build().unwrap();
    provider.ready(PATIENCE).await.unwrap();
    while provider.sse_status().to_string() != "connected" {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    know(&provider, contexts).await;
    let client = Client::builder().no_proxy().build().unwrap();
    let (flag, bulk) =
        (format!("{}/local/flags/counter", service.url()), format!("{}/ofrep/v1/evaluate/flags", service.url()));
    let put = async |value: i64| {
        let body = format!("{{\"value\":{value}}}");
        client.put(&flag).body(body).send().await.unwrap().error_for_status().unwrap();
    };
    let request = async || {
        let began = Instant::now();
        let body = r#"{"context":{"targetingKey":"user-0","plan":"premium"}}"#;
        let request =
            client.post(&bulk).header("x-api-key", service.api_key()).header("content-type", "application/json");
        request.body(body).send().await.unwrap().error_for_status().unwrap().bytes().await.unwrap();
        began.elapsed()
    };
    let (news, mut heard) = mpsc::unbounded_channel();
    let _subscription = provider.add_flag_change_listener_for("counter", move |_| news.send(()).unwrap());
    let context = user(0);
    let mut changes = Vec::new();
    let mut requests = Vec::new();
    for value in 1..=CHANGES {
        requests.push(request().await);
        let began = Instant::now();
        put(value).await;
        heard.recv().await.unwrap();
        assert_eq!(provider.flags(&context).await.int("counter", 0), value);
        changes.push(began.elapsed());
    }
    let bare = shown("one bare request", contexts, requests);
    let seen = shown("from PUT to a new value", contexts, changes);
    println!("  its 99th percentile is {:.1} bare requests\n", seen[1].as_secs_f64() / bare[0].as_secs_f64());
    provider.shutdown().await;
}

/// Shows median, 99th percentile and maximum, and returns them.
fn shown(what: &str, contexts: usize, mut times: Vec<Duration>) -> [Duration; 3] {
    times.sort_unstable();
    let [median, high, most] = [times.len() / 2, times.len() * 99 / 100, times.len() - 1].map(|at| times[at]);
    println!("{what:<26} {contexts:>6} contexts: p50 {median:>9.1?}  p99 {high:>9.1?}  max {most:>9.1?}");
    [median, high, most]
}

fn main() {
    // `cargo test` runs benches for one turn, whose figures mean nothing.
    if env::args().any(|argument| argument == "--test") {
        return;
    }
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    for (what, event_streams) in [("Flipswitch's stream", false), ("an event stream of OFREP", true)] {
        println!("{what}");
        for contexts in [1, 10_000] {
            runtime.block_on(measure(contexts, event_streams));
        }
    }
}
