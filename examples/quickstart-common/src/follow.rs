//! The event stream that keeps an open page up to date.

use std::future::Future;

use flipswitch::{FlipswitchProvider, Subscription};
use futures_util::{
    FutureExt, Stream, StreamExt,
    future::{BoxFuture, Shared},
    stream,
};
use tokio::sync::watch;

/// Future that resolves when the application is asked to stop. Open streams must end at that point, because they would otherwise
/// delay the shutdown.
pub type Stop = Shared<BoxFuture<'static, ()>>;

/// Shares a signal between the streams of all pages.
pub fn stop(signal: impl Future<Output = ()> + Send + 'static) -> Stop {
    signal.boxed().shared()
}

/// Creates the event stream of a page. It sends an event at the beginning, when flags may have changed, and when the state of the
/// connection to the flag service changes. The data of each event is this state. The page requests the flags at each event.
pub fn follow(provider: FlipswitchProvider, stop: Stop) -> impl Stream<Item = String> + Send + use<> {
    let (sender, mut receiver) = watch::channel(());
    receiver.mark_changed();
    let subscriptions: [Subscription; 2] = [
        provider.add_flag_change_listener({
            let sender = sender.clone();
            move |_| {
                sender.send_replace(());
            }
        }),
        provider.add_connection_status_listener(move |_| {
            sender.send_replace(());
        }),
    ];
    stream::unfold((provider, receiver, subscriptions), async |(provider, mut receiver, subscriptions)| {
        receiver.changed().await.ok()?;
        let (status, polling) = (provider.sse_status(), provider.is_polling_active());
        let event = format!("data: {{\"status\":\"{status}\",\"polling\":{polling}}}\n\n");
        Some((event, (provider, receiver, subscriptions)))
    })
    .take_until(stop)
}
