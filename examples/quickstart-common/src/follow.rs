//! What keeps an open page up to date.

use std::future::Future;

use flipswitch::{FlipswitchProvider, Subscription};
use futures_util::{
    FutureExt, Stream, StreamExt,
    future::{BoxFuture, Shared},
    stream,
};
use tokio::sync::watch;

/// When the application is asked to end. A stream that is still open then would hold it up.
pub type Stop = Shared<BoxFuture<'static, ()>>;

/// Shares a signal among the streams of all pages.
pub fn stop(signal: impl Future<Output = ()> + Send + 'static) -> Stop {
    signal.boxed().shared()
}

/// An event stream for a page: an event at once, and one whenever flags may have changed or the connection to the flag
/// service is in another state, which is its data. The page reads its flags anew at each.
pub fn follow(provider: FlipswitchProvider, stop: Stop) -> impl Stream<Item = String> + Send + use<> {
    let (news, mut heard) = watch::channel(());
    heard.mark_changed();
    let subscriptions: [Subscription; 2] = [
        provider.add_flag_change_listener({
            let news = news.clone();
            move |_| {
                news.send_replace(());
            }
        }),
        provider.add_connection_status_listener(move |_| {
            news.send_replace(());
        }),
    ];
    stream::unfold((provider, heard, subscriptions), async |(provider, mut heard, subscriptions)| {
        heard.changed().await.ok()?;
        let (status, polling) = (provider.sse_status(), provider.is_polling_active());
        let event = format!("data: {{\"status\":\"{status}\",\"polling\":{polling}}}\n\n");
        Some((event, (provider, heard, subscriptions)))
    })
    .take_until(stop)
}
