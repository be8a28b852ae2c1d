//! Work that continues after the response head was sent: WebSockets, event streams, streamed bodies, spawned tasks.

use std::sync::Arc;

use flipswitch::{InRequest, open_feature::OpenFeature, serde_json::json, testing::TestFlags};
use flipswitch_axum::FlipswitchLayer;
use futures_util::StreamExt;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{
    self, Log,
    apps::{Framework, clients::whoami, service},
    eventually, in_time,
};

#[tokio::test]
async fn a_websocket_an_event_stream_and_a_body_follow_a_kill_switch() {
    for framework in Framework::ALL {
        let service = service().await;
        let provider = support::provider(&service);
        let app = framework.serve(provider.clone()).await;
        in_time(provider.ready(support::PATIENCE)).await.unwrap();
        eventually(async || provider.sse_status() == flipswitch::ConnectionStatus::Connected).await;
        service.set_flag("beta", true);
        eventually(async || provider.flags(support::user("bob")).await.bool("beta", false)).await;

        let mut request = format!("{}/live/socket", app.url.replace("http", "ws")).into_client_request().unwrap();
        request.headers_mut().insert("x-user", "bob".parse().unwrap());
        let (mut socket, _) = in_time(tokio_tungstenite::connect_async(request)).await.unwrap();
        assert_eq!(in_time(socket.next()).await.unwrap().unwrap().to_text().unwrap(), "on", "{framework:?}");
        let mut bodies = Vec::new();
        for path in ["/live/events", "/live/body"] {
            let mut body = app.send(path, &[("x-user", b"bob")]).await.bytes_stream();
            let first = in_time(body.next()).await.unwrap().unwrap();
            assert!(first.ends_with(b"on") || first.starts_with(b"data: on"), "{framework:?} {path}: {first:?}");
            bodies.push(body);
        }

        service.set_flag("beta", false);
        // The same change may have been announced twice before, so texts that were sent in the meantime are ignored.
        in_time(async {
            while let Some(Ok(message)) = socket.next().await
                && !message.is_close()
            {}
        })
        .await;
        for body in bodies {
            in_time(body.for_each(|chunk| async { drop(chunk.unwrap()) })).await;
        }
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn spawned_work_has_the_flags_of_its_handler_until_the_response_head_was_sent() {
    for framework in Framework::ALL {
        let flags = TestFlags::new(json!({"theme": "old"}));
        let app = framework.serve(flags.provider()).await;
        let turn = async {
            eventually(async || flags.reads("theme").count > 0).await;
            flags.set("theme", "new");
        };
        let ((status, body), ()) = tokio::join!(app.get("/agree", "alice", ""), turn);
        assert_eq!((status, body.as_str()), (200, "old old new"), "{framework:?}");
    }
}

#[tokio::test]
async fn a_client_in_spawned_work_without_a_scope_causes_one_warning() {
    let log = Log::of_this_thread();
    let flags = TestFlags::new(json!({"whoami": "somebody"}));
    let mut api = OpenFeature::default();
    api.set_provider(flags.provider()).await;
    let client = Arc::new(api.create_client());
    let remedy = "carry the request along";
    let count = |text: &str| log.lines().iter().filter(|line| line.contains(text)).count();

    // A program without layers evaluates anonymously on purpose.
    whoami(&client).await;
    assert_eq!(count(remedy), 0);
    let _layer = FlipswitchLayer::new(flags.provider());
    let with_key = support::user("alice");
    client.get_string_value("whoami", Some(&with_key), None).await.unwrap();
    assert_eq!(count(remedy), 0, "a targeting key must suppress the warning");
    for _ in 0..3 {
        // This runs on this thread, whose log is read, but outside any request.
        let client = Arc::clone(&client);
        tokio::spawn(async move { whoami(&client).await }).await.unwrap();
    }
    assert_eq!(count(remedy), 1, "{:?}", log.lines());

    // The closure of an upgrade runs when the handler has returned.
    for _ in 0..3 {
        whoami(&client).with_current_scope().await;
    }
    assert_eq!(count("with_scope(&scope)` of"), 1, "only the first warning may explain the remedy");
    assert_eq!(count("web/long_lived.rs"), 1, "there must be one warning for this place: {:?}", log.lines());
    whoami(&client).with_current_scope().await;
    assert_eq!(count("web/long_lived.rs"), 2, "there must be one warning for the other place: {:?}", log.lines());
}
