//! A process that lives as long as its [`Lifespan`] lets it; a test sends it signals and reads what it prints.
//!
//! Its only argument says what the server does after the first signal: `drain` ends it after a while, `stuck` never.
//! `after` prints once more when the life is over, and goes on. `start` is still starting when the signal comes.
#![expect(clippy::print_stdout, reason = "what is printed is what is tested")]

use std::time::Duration;

use flipswitch::{FlipswitchProvider, Lifespan};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mode = std::env::args().nth(1).unwrap_or_default();
    let provider = match std::env::args().nth(2) {
        Some(base_url) => FlipswitchProvider::builder("key").base_url(base_url).build(),
        None => Ok(FlipswitchProvider::in_memory(flipswitch::serde_json::json!({}))),
    };
    let Ok(provider) = provider else { return };
    if mode == "start" {
        println!("starting");
    }
    let lifespan = Lifespan::builder(provider)
        .ready_timeout(Duration::from_secs(600))
        .drain_timeout(Duration::from_millis(if mode == "stuck" { 300 } else { 600_000 }))
        .start()
        .await;
    let Ok(lifespan) = lifespan else { return };
    println!("listening");
    let signal = lifespan.signal();
    let server = async {
        signal.await;
        println!("draining");
        match mode.as_str() {
            "after" | "start" => {}
            _ => std::future::pending().await,
        }
    };
    let served = lifespan.run(server).await;
    println!("{}", if served.is_some() { "drained" } else { "given up" });
    if mode == "after" {
        // The application goes on without its provider, and must still end when it is asked to.
        std::future::pending::<()>().await;
    }
}
