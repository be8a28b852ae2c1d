//! A process with a [`Lifespan`]. A test sends it signals, and reads its output and its warnings.
//!
//! The first argument selects what happens after the first signal: with `forever` the server never drains, and with `stuck`
//! it is dropped soon. With `after` it drains, and the application continues after the lifespan. With `start` the signal
//! comes while the process waits for the flag service, whose URL is the second argument.
#![expect(clippy::print_stdout, reason = "what is printed is what is tested")]

use std::time::Duration;

use flipswitch::{FlipswitchProvider, HealthState, Lifespan};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::WARN).init();
    let mode = std::env::args().nth(1).unwrap_or_default();
    let provider = match std::env::args().nth(2) {
        Some(base_url) => FlipswitchProvider::builder("key").base_url(base_url).build(),
        None => Ok(FlipswitchProvider::in_memory(flipswitch::serde_json::json!({}))),
    };
    let Ok(provider) = provider else { return };
    if mode == "start" {
        println!("starting");
    }
    let lifespan = Lifespan::builder(provider.clone())
        .ready_timeout(Duration::from_secs(600))
        .drain_timeout(Duration::from_millis(if mode == "stuck" { 300 } else { 600_000 }))
        .start()
        .await;
    let Ok(lifespan) = lifespan else { return };
    println!("listening");
    let early = [lifespan.signal(), lifespan.signal()];
    let server = async {
        for signal in early {
            signal.await;
        }
        // A future that is created after the signal also resolves.
        lifespan.signal().await;
        println!("draining");
        match mode.as_str() {
            "after" | "start" => {
                println!("drained");
                Ok(())
            }
            _ => std::future::pending().await,
        }
    };
    if lifespan.run(server).await.is_err() {
        return;
    }
    if provider.health().state == HealthState::ShutDown {
        println!("shut down");
    }
    if mode == "after" {
        // The application continues without its provider, and must still stop when it is asked to.
        std::future::pending::<()>().await;
    }
}
