//! Work that continues after the response head was sent, written as in the guides.

use std::convert::Infallible;

use flipswitch::{InRequest, RequestScope};
use futures_util::{FutureExt, Stream, stream};

use super::Beta;

/// Returns a stream that has an item at the beginning and after each change, and ends when the flag is off.
pub(crate) fn while_on(scope: RequestScope) -> impl Stream<Item = &'static str> + Send + 'static {
    let events = scope.provider().events();
    stream::unfold((scope, events, true), async |(scope, mut events, is_first)| {
        if !is_first {
            events.recv().await?;
        }
        scope.latest_flags().await.get(Beta).then_some(("on", (scope, events, false)))
    })
}

/// Returns three themes: of the handler, of work that it spawns, after the theme has changed, and of the body.
pub(crate) async fn agree(
    flags: &flipswitch::Flags,
) -> impl Stream<Item = Result<String, Infallible>> + Send + 'static {
    let scope = RequestScope::current().unwrap();
    let theme = async || RequestScope::current().unwrap().flags().await.string("theme", "").to_owned();
    let own = flags.string("theme", "").to_owned();
    while scope.latest_flags().await.string("theme", "") == own {
        tokio::task::yield_now().await;
    }
    let spawned = tokio::spawn(theme().with_current_scope()).await.unwrap();
    let in_body = async move { Ok(theme().await) }.with_scope(&scope).into_stream();
    stream::select(stream::iter([Ok(format!("{own} {spawned} "))]), in_body)
}
