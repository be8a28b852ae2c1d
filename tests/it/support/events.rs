//! Providers with an open stream, and waiting for their events.

use flipswitch::{ConnectionStatus, FlipswitchProvider, FlipswitchProviderBuilder, ProviderEvent, ProviderEvents};
use flipswitch_local::LocalServer;
use futures_util::StreamExt;

use super::{PATIENCE, builder, eventually, in_time};

pub(crate) const CONNECTED: ProviderEvent = ProviderEvent::Status(ConnectionStatus::Connected);

/// Returns a provider whose stream is open.
pub(crate) async fn connected(service: &LocalServer) -> FlipswitchProvider {
    streaming(builder(service).stale_wait(PATIENCE)).await
}

/// Builds a provider, and waits until its stream is open.
pub(crate) async fn streaming(builder: FlipswitchProviderBuilder) -> FlipswitchProvider {
    let provider = builder.build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;
    provider
}

/// Waits for an event and returns those before it.
pub(crate) async fn until(events: &mut ProviderEvents, wanted: impl Fn(&ProviderEvent) -> bool) -> Vec<ProviderEvent> {
    let mut before = Vec::new();
    loop {
        // Uses the `Stream` implementation, because other tests use `recv`.
        let event = in_time(events.next()).await.expect("the provider is running");
        if wanted(&event) {
            return before;
        }
        before.push(event);
    }
}

pub(crate) fn is(wanted: ProviderEvent) -> impl Fn(&ProviderEvent) -> bool {
    move |event| *event == wanted
}

pub(crate) fn is_change_of(key: &str) -> impl Fn(&ProviderEvent) -> bool {
    move |event| matches!(event, ProviderEvent::ConfigurationChanged(change) if change.flag_key.as_deref() == Some(key))
}

pub(crate) fn is_error(fatal: bool) -> impl Fn(&ProviderEvent) -> bool {
    move |event| matches!(event, ProviderEvent::Error { fatal: told, .. } if *told == fatal)
}
