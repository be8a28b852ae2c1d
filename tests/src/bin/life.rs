//! A process that lives as long as its [`Lifespan`] lets it; a test sends it signals and reads what it prints.
//!
//! Its first argument says what happens after the first signal: with `forever` the server never ends and is waited for,
//! with `stuck` it never ends and is given up soon. With `after` it ends, and the application goes on when the life is
//! over; with `start` the signal comes while the flag service, which is the second argument, is still waited for.
#![expect(clippy::print_stdout, reason = "what is printed is what is tested")]

use std::time::Duration;

use flipswitch::{FlipswitchProvider, HealthState, Lifespan};

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
        // One that comes late hears of it as well.
        lifespan.signal().await;
        println!("draining");
        match mode.as_str() {
            "after" | "start" => Ok(()),
            _ => std::future::pending().await,
        }
    };
    let served = lifespan.run(server).await;
    println!("{}", if served.is_some() { "drained" } else { "given up" });
    if provider.health().state == HealthState::ShutDown {
        println!("shut down");
    }
    if mode == "after" {
        // The application goes on without its provider, and must still end when it is asked to.
        std::future::pending::<()>().await;
    }
}
