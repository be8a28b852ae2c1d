//! Requests and bodies that pass through the layers unchanged, and requests that fail or are cancelled.

use std::{convert::Infallible, sync::Arc};

use flipswitch::integration::Anonymous;
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use crate::support::{
    self,
    apps::{Framework, Setup, provider, service},
    eventually, in_time,
    scripted::{Reply, Scripted},
};

#[tokio::test]
async fn websockets_are_upgraded() {
    for framework in Framework::ALL {
        let service = service().await;
        let setup = Setup { anonymous: Anonymous::cookie().into(), ..provider(&service).into() };
        let app = framework.serve(setup.clone()).await;
        // The upgrade also works behind a gate.
        for (path, user) in [("/socket", "bob"), ("/gated/socket", "alice"), ("/socket", "")] {
            let mut request = format!("{}{path}", app.url.replace("http", "ws")).into_client_request().unwrap();
            if !user.is_empty() {
                request.headers_mut().insert("x-user", user.parse().unwrap());
            }
            let (mut socket, response) = in_time(tokio_tungstenite::connect_async(request)).await.unwrap();
            // The response to the upgrade is like any other response.
            assert_eq!(response.headers().contains_key("set-cookie"), user.is_empty(), "{framework:?} {path} {user}");
            let whose = if user.is_empty() { "nobody nowhere".to_owned() } else { format!("{user} user") };
            for text in ["one", "two"] {
                socket.send(Message::text(text)).await.unwrap();
                let answer = in_time(socket.next()).await.unwrap().unwrap();
                assert_eq!(answer.into_text().unwrap(), format!("{text} {whose}"), "{framework:?} {path}");
            }
            socket.close(None).await.unwrap();
        }
        setup.provider.shutdown().await;
    }
}

#[tokio::test]
async fn bodies_stream_in_both_directions() {
    for framework in Framework::ALL {
        let service = service().await;
        let provider = provider(&service);
        let app = framework.serve(provider.clone()).await;
        for path in ["/echo", "/gated/echo"] {
            let (chunks, body) = mpsc::channel::<&str>(1);
            let body = futures_util::stream::unfold(body, async |mut body| {
                Some((Ok::<_, Infallible>(body.recv().await?), body))
            });
            chunks.send("first").await.unwrap();
            let request = app.client.post(format!("{}{path}", app.url)).header("x-user", "alice");
            let response = in_time(request.body(reqwest::Body::wrap_stream(body)).send()).await.unwrap();
            let mut echo = response.bytes_stream();
            assert_eq!(in_time(echo.next()).await.unwrap().unwrap(), "first", "{framework:?} {path}");
            // The second part is sent once the first has come back, so nothing waits for the whole body.
            chunks.send("second").await.unwrap();
            assert_eq!(in_time(echo.next()).await.unwrap().unwrap(), "second", "{framework:?} {path}");
            drop(chunks);
            assert!(in_time(echo.next()).await.is_none(), "{framework:?} {path}");
        }
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_panicking_handler_does_not_affect_other_requests() {
    for framework in Framework::ALL {
        let service = service().await;
        let provider = provider(&service);
        let app = framework.serve(provider.clone()).await;
        for _ in 0..2 {
            let request = app.client.get(format!("{}/panic", app.url)).header("x-user", "alice");
            assert!(in_time(request.send()).await.is_err(), "{framework:?}: the connection breaks");
            assert_eq!(app.get("/flag", "alice", "").await, (200, "alice user".to_owned()), "{framework:?}");
        }
        assert_eq!(support::evaluations(&service), 1, "{framework:?}");
        provider.shutdown().await;
    }
}

/// Starts a flag service whose responses are held back.
async fn held() -> (Scripted, Arc<Semaphore>, flipswitch::FlipswitchProvider) {
    let release = Arc::new(Semaphore::new(0));
    let answer = Reply::json(json!({"flags": [{"key": "whoami", "value": "known"}, {"key": "beta", "value": true}]}));
    let reply = Reply::Held(Arc::clone(&release), Box::new(answer));
    let service = Scripted::answering(reply).await;
    let provider = support::unattended(service.url(), support::PATIENCE * 100).build().unwrap();
    (service, release, provider)
}

fn evaluations_of(service: &Scripted, user: &str) -> usize {
    service.received().iter().filter(|request| request.body.contains(&format!("\"{user}\""))).count()
}

#[tokio::test]
async fn the_response_for_a_cancelled_request_is_cached() {
    for framework in Framework::ALL {
        for path in ["/flag", "/gated/flag"] {
            let (service, release, provider) = held().await;
            let app = framework.serve(provider.clone()).await;
            let given_up = tokio::spawn({
                let request = app.client.get(format!("{}{path}", app.url)).header("x-user", "alice");
                async move { request.send().await }
            });
            eventually(async || evaluations_of(&service, "alice") == 1).await;
            given_up.abort();
            assert!(given_up.await.unwrap_err().is_cancelled());
            release.add_permits(100);
            let answer = app.get(path, "alice", "").await;
            assert_eq!(answer, (200, "known default".to_owned()), "{framework:?} {path}");
            assert_eq!(evaluations_of(&service, "alice"), 1, "{framework:?} {path}");
            provider.shutdown().await;
        }
    }
}

#[tokio::test]
async fn requests_during_shutdown_get_defaults() {
    for framework in Framework::ALL {
        let (service, _release, provider) = held().await;
        let app = Arc::new(framework.serve(provider.clone()).await);
        let waiting = ["/flag", "/gate/requires", "/gate/requires-not"].map(|path| {
            let app = Arc::clone(&app);
            tokio::spawn(async move { app.get(path, "alice", "").await })
        });
        eventually(async || evaluations_of(&service, "alice") == 1).await;
        in_time(provider.shutdown()).await;
        let expected = [(200, "default default"), (404, ""), (200, "open")];
        for (answer, (status, body)) in waiting.into_iter().zip(expected) {
            assert_eq!(in_time(answer).await.unwrap(), (status, body.to_owned()), "{framework:?}");
        }
        assert_eq!(app.get("/flag", "alice", "").await, (200, "default default".to_owned()), "{framework:?} after");
    }
}

#[tokio::test]
async fn concurrent_extractors_and_gates_share_one_evaluation() {
    for framework in Framework::ALL {
        let (service, release, provider) = held().await;
        let app = Arc::new(framework.serve(provider.clone()).await);
        let paths = ["/flag", "/twice", "/together", "/gate/many", "/gated/flag", "/optional"];
        let answers = paths.map(|path| {
            let app = Arc::clone(&app);
            tokio::spawn(async move { app.get(path, "alice", "").await })
        });
        eventually(async || evaluations_of(&service, "alice") == 1).await;
        release.add_permits(100);
        for answer in answers {
            assert_eq!(in_time(answer).await.unwrap(), (200, "known default".to_owned()), "{framework:?}");
        }
        assert_eq!(evaluations_of(&service, "alice"), 1, "{framework:?}");
        provider.shutdown().await;
    }
}
