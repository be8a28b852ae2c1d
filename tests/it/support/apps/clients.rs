//! Handlers that evaluate with an OpenFeature client, without passing it a context.

use std::{convert::Infallible, sync::Arc};

use flipswitch::{InRequest, RequestScope, open_feature::Client};
use futures_util::{Stream, StreamExt, stream};
use tokio::task::{JoinSet, yield_now};

/// Returns the user that a client without a context evaluates for.
pub(crate) async fn whoami(client: &Client) -> String {
    client.get_string_value("whoami", None, None).await.unwrap_or_else(|error| format!("{error:?}"))
}

/// Evaluates in nested futures and spawned tasks, and checks that the user is the same everywhere.
pub(crate) async fn deep(client: Arc<Client>) -> String {
    let here = whoami(&client).await;
    let later = async || {
        yield_now().await;
        whoami(&client).await
    };
    let nested = async { tokio::join!(later(), async { tokio::join!(later(), later()) }) };
    let (one, (two, three)) = nested.await;
    let own = |client: &Arc<Client>| {
        let client = Arc::clone(client);
        async move {
            yield_now().await;
            whoami(&client).await
        }
    };
    let spawned = tokio::spawn(own(&client).with_current_scope()).await.unwrap();
    let mut set = JoinSet::new();
    for _ in 0..2 {
        set.spawn(own(&client).with_current_scope());
    }
    let in_set = set.join_all().await;
    // A task starts outside any request.
    let client = &client;
    let twice = async { tokio::spawn(own(client)).await.unwrap() }.with_current_scope().await;
    assert_eq!(twice, "nobody");
    for other in [one, two, three, spawned].iter().chain(&in_set) {
        assert_eq!(*other, here);
    }
    here
}

/// Returns a body that evaluates while it is streamed, first in the scope of the request and then outside.
pub(crate) fn streamed(client: Arc<Client>) -> impl Stream<Item = Result<String, Infallible>> + Send + 'static {
    let scope = RequestScope::current().unwrap();
    stream::iter([true, false]).then(move |carried| {
        let (client, scope) = (Arc::clone(&client), scope.clone());
        async move {
            let whose = async move { whoami(&client).await };
            Ok(if carried { whose.with_scope(&scope).await } else { whose.await } + ".")
        }
    })
}
