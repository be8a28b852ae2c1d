//! One provider for all workers of an actix-web server.

use std::{collections::HashSet, net::TcpListener, thread};

use actix_web::{App, HttpServer, web};
use flipswitch::{ConnectionStatus, serde_json::json};
use flipswitch_actix::{Flags, FlipswitchMiddleware};
use flipswitch_local::LocalServer;

use crate::support::{PATIENCE, evaluations, eventually, in_time, provider, user};

const WORKERS: usize = 4;

#[tokio::test]
async fn all_workers_share_one_stream_and_one_request_for_a_user() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let provider = provider(&service);
    in_time(provider.ready(PATIENCE)).await.unwrap();
    // From now on, no flags become stale.
    eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = thread::spawn({
        let provider = provider.clone();
        move || {
            let who_and_what = async |flags: Flags| format!("{:?} {}", thread::current().id(), flags.bool("on", false));
            let server = HttpServer::new(move || {
                let flags = FlipswitchMiddleware::new(provider.clone()).with_context(|_: &_| user("alice"));
                App::new().wrap(flags).route("/", web::get().to(who_and_what))
            })
            .workers(WORKERS)
            .shutdown_signal(async { drop(stopped.await) })
            .listen(listener)
            .unwrap();
            actix_web::rt::System::new().block_on(server.run()).unwrap();
        }
    });

    // Connections are distributed among the workers, so each request uses a new one.
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let mut met = HashSet::new();
    eventually(async || {
        let answer = client.get(&url).send().await.unwrap().text().await.unwrap();
        let worker = answer.strip_suffix(" true").expect("the flag is on");
        met.insert(worker.to_owned());
        met.len() == WORKERS
    })
    .await;
    assert_eq!(evaluations(&service), 1);
    assert_eq!(service.streams(), 1);
    assert_eq!(
        service.requests().iter().filter(|request| request.method == "GET").count(),
        1,
        "there must be only one stream"
    );

    drop(stop);
    in_time(tokio::task::spawn_blocking(|| server.join().unwrap())).await.unwrap();
    provider.shutdown().await;
}
