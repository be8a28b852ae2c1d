//! Reads a flag for a user and follows its changes, without a web framework.
//!
//! ```text
//! $ cargo run -p examples --bin first-flag
//! new-checkout for alice: false
//! ```
//!
//! Flip the flag with the command that the example prints, or in the dashboard. The example prints the new value immediately:
//!
//! ```text
//! new-checkout for alice: true
//! ```

use std::error::Error;

use flipswitch::{Context, FlipswitchProvider, Lifespan, serde_json::json};
use flipswitch_local::LocalServer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Prints what the provider logs.
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // Starts a flag service for this example. In production, `FlipswitchProvider::from_env()?` replaces these two lines. It
    // reads the API key of the hosted service from FLIPSWITCH_API_KEY.
    let service = LocalServer::start(json!({"new-checkout": false})).await?;
    let provider = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).build()?;
    println!("Dashboard    {}", service.dashboard_url());
    println!("Flip a flag  curl -X PUT {}/local/flags/new-checkout -d '{{\"value\": true}}'", service.url());

    // Waits at most 5 seconds until the provider has flags.
    let lifespan = Lifespan::builder(provider.clone()).start().await?;
    tokio::select! {
        () = follow(&provider) => {}
        // Ctrl-C, or SIGTERM.
        () = lifespan.signal() => {}
    }
    lifespan.shutdown().await;
    Ok(())
}

/// Prints the value of the flag, and each new value.
async fn follow(provider: &FlipswitchProvider) {
    let mut events = provider.events();
    let mut printed = None;
    loop {
        // One request returns all flags for a user. The provider keeps them in memory until a flag changes.
        let flags = provider.flags(Context::user("alice").with("plan", "premium")).await;
        // Returns the second argument if the flag is unknown, for example because the service could not be reached.
        let is_on = flags.bool("new-checkout", false);
        if printed != Some(is_on) {
            println!("new-checkout for alice: {is_on}");
            printed = Some(is_on);
        }
        // Events say that flags may have changed. `None` means that the provider was shut down.
        if events.recv().await.is_none() {
            return;
        }
    }
}
