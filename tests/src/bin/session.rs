//! A session with a service at each base URL, some of which fail: everything that a provider returns goes to standard output, and
//! everything that is logged, at TRACE and by every crate, goes to standard error. A test reads both.
#![expect(clippy::print_stdout, reason = "what is printed is what is tested")]

use std::{error::Error, time::Duration};

use flipswitch::{
    Auth, ConnectionStatus, FlipswitchProvider, FlipswitchProviderBuilder, ProviderEvent,
    open_feature::{EvaluationContext, provider::FeatureProvider},
    reqwest::Client as HttpClient,
};
use tracing_subscriber::filter::LevelFilter;

#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_ansi(false).with_writer(std::io::stderr).init();
    let key = std::env::var("FLIPSWITCH_API_KEY").unwrap_or_default();
    match FlipswitchProvider::from_env() {
        Ok(provider) => println!("from the environment: {provider:?}"),
        Err(error) => println!("from the environment: {error} {error:?}"),
    }
    match FlipswitchProviderBuilder::from_ofrep_env() {
        Ok(builder) => println!("from the environment: {builder:?} {:?}", builder.clone().build()),
        Err(error) => println!("from the environment: {error} {error:?}"),
    }
    for base_url in std::env::args().skip(1) {
        if let Some(base_url) = base_url.strip_prefix("ofrep+") {
            let builder = FlipswitchProvider::ofrep(base_url).auth(Auth::Bearer(key.clone())).header("x-secret", &key);
            println!("{builder:?}");
            match builder.request_timeout(Duration::from_millis(300)).build() {
                Ok(provider) => session(&provider, true).await,
                Err(error) => println!("{error} {error:?}"),
            }
            continue;
        }
        if base_url.starts_with("https") {
            println!("{:?}", FlipswitchProvider::new(&key).map_err(|error| error.to_string()));
            continue;
        }
        let builder = FlipswitchProvider::builder(&key)
            .base_url(&base_url)
            .request_timeout(Duration::from_millis(300))
            .connect_timeout(Duration::from_millis(300));
        // Requests to a service with a name go through the proxy of the provider's own client. Other requests use a client that
        // would log every byte.
        let builder = match base_url.contains("//127.0.0.1") {
            true => builder.http_client(|| HttpClient::builder().connection_verbose(true)),
            false => builder,
        };
        println!("{builder:?}");
        match builder.build() {
            Ok(provider) => session(&provider, false).await,
            Err(error) => println!("{error} {error:?}"),
        }
    }
}

async fn session(provider: &FlipswitchProvider, is_ofrep: bool) {
    println!("{provider:?}");
    let user = EvaluationContext::default().with_targeting_key("user-123");
    let mut events = provider.events();
    if let Err(error) = provider.ready(Duration::from_millis(500)).await {
        println!("{error} {error:?} {:?}", error.source());
    }
    if is_ofrep {
        // Until the streams, if there are any, have failed or are open.
        let is_over = async {
            while let Some(event) = events.recv().await {
                println!("{event:?}");
                if matches!(event, ProviderEvent::Status(status) if status != ConnectionStatus::Connecting) {
                    break;
                }
            }
        };
        if tokio::time::timeout(Duration::from_secs(5), is_over).await.is_err() {
            println!("no stream: {:?}", provider.health());
        }
    }
    let flags = provider.flags(&user).await;
    println!("{flags:?} {:?} {:?}", flags.error(), flags.evaluation("f"));
    println!("{:?}", provider.resolve_bool_value("f", &user).await);
    match provider.evaluate_all_flags(&user).await {
        Ok(flags) => println!("{flags:?}"),
        Err(error) => {
            println!("{error} {error:?}");
            let mut source = error.source();
            while let Some(error) = source {
                println!("because {error} {error:?}");
                source = error.source();
            }
        }
    }
    println!("{:?}", provider.stats());
    provider.shutdown().await;
    println!("{provider:?} {:?}", provider.flags(&user).await.error());
}
