//! Connections that are dead although the service is healthy.

use std::time::{Duration, Instant};

use flipswitch_local::{Endpoint, Fault, LocalServer};
use futures_util::future::poll_immediate;
use reqwest::{Client, Response, Version};

use crate::support::{BULK, End, STREAM, Socket, assert_responds, eventually, in_time, service};

/// A client that speaks HTTP/2 from the first byte.
fn http2() -> Client {
    Client::builder().http2_prior_knowledge().build().unwrap()
}

async fn evaluate(client: &Client, service: &LocalServer) -> reqwest::Result<Response> {
    client.post(format!("{}{BULK}", service.url())).body("{}").send().await
}

#[tokio::test]
async fn connections_over_http2_die_and_new_ones_work() {
    let (service, faults) = service().await;
    let client = http2();
    let mut stream = in_time(client.get(format!("{}{STREAM}", service.url())).send()).await.unwrap();
    assert_eq!(stream.version(), Version::HTTP_2);
    service.set_flag("a", 1);
    assert!(in_time(stream.chunk()).await.unwrap().is_some());
    assert_eq!(in_time(evaluate(&client, &service)).await.unwrap().status(), 200);

    let id = faults.add(Fault::on(Endpoint::Connections).half_open()).unwrap();
    assert_eq!(faults.applied(id), 1, "both requests used one connection");
    let received = service.requests().len();
    let mut dead = Box::pin(evaluate(&client, &service));
    let mut event = Box::pin(stream.chunk());
    for value in 2..5 {
        // Each request uses a new connection.
        service.set_flag("a", value);
        assert_eq!(in_time(evaluate(&http2(), &service)).await.unwrap().status(), 200);
        assert!(poll_immediate(&mut dead).await.is_none(), "the request has no response");
        assert!(poll_immediate(&mut event).await.is_none(), "the stream has no event");
    }
    assert_eq!(service.requests().len(), received + 3, "the request was not read");
    assert_eq!((faults.applied(id), service.streams()), (1, 1));

    faults.clear();
    assert!(in_time(event).await.is_err(), "the connection is closed with its fault");
    in_time(dead).await.unwrap_err();
    assert_eq!(in_time(evaluate(&client, &service)).await.unwrap().status(), 200);
    eventually(|| service.streams() == 0).await;
}

#[tokio::test]
async fn streams_over_http2_end_after_a_time() {
    let (service, faults) = service().await;
    let on = Fault::on(Endpoint::Stream);
    let time = Duration::from_millis(20);
    for (fault, is_graceful) in [(on.finish(), true), (on.close(), false), (on.reset(), false)] {
        let client = http2();
        let mut stream = in_time(client.get(format!("{}{STREAM}", service.url())).send()).await.unwrap();
        let id = faults.add(fault.after_time(time)).unwrap();
        assert_eq!(faults.applied(id), 1);
        let mut end = in_time(stream.chunk()).await;
        // The last frame of a stream can be empty.
        while matches!(&end, Ok(Some(bytes)) if bytes.is_empty()) {
            end = in_time(stream.chunk()).await;
        }
        assert_eq!(matches!(end, Ok(None)), is_graceful, "{end:?}");
        eventually(|| service.streams() == 0).await;
        assert_eq!(in_time(evaluate(&client, &service)).await.unwrap().status(), 200);
        faults.remove(id);
    }
}

#[tokio::test]
async fn dead_connections_acknowledge_what_they_receive() {
    let (service, faults) = service().await;
    let [mut idle, mut dead] = [Socket::open_stream(&service).await, Socket::open_stream(&service).await];
    faults.add(Fault::on(Endpoint::Connections).half_open().after(1).times(1)).unwrap();
    // More than the buffers of a socket hold.
    dead.send_bytes(&vec![b'x'; 16 << 20]).await;
    service.set_flag("a", 1);
    idle.until("flag-updated").await;
    assert_responds(&service, BULK).await;
    dead.assert_quiet();
    faults.clear();
    assert_eq!(dead.end().await, (vec![], End::Closed));
    service.set_flag("a", 2);
    idle.until("flag-updated").await;
}

#[tokio::test]
async fn connections_that_control_the_service_stay_alive() {
    let (service, faults) = service().await;
    let dead = Socket::open_stream(&service).await;
    let client = Client::new();
    let mut url = format!("{}/local/faults", service.url());
    let fault = r#"{"on": "connections", "effect": "halfOpen"}"#;
    // The fault applies to all connections except the connection of this request.
    let added = in_time(client.post(&url).body(fault).send()).await.unwrap();
    assert_eq!(added.status(), 201);
    in_time(added.bytes()).await.unwrap();
    assert_eq!(faults.active()[0].applied, 1);
    service.set_flag("a", 1);
    url.push_str("/1");
    assert_eq!(in_time(client.delete(&url).send()).await.unwrap().status(), 204);
    assert_eq!(dead.end().await, (vec![], End::Closed));
}

#[tokio::test]
async fn dead_connections_do_not_delay_shutdown() {
    let (service, faults) = service().await;
    let stream = Socket::open_stream(&service).await;
    let id = faults.add(Fault::on(Endpoint::Connections).half_open()).unwrap();
    assert_eq!(faults.applied(id), 1);
    let began = Instant::now();
    in_time(service.shutdown()).await;
    // Connections that do not end by themselves are aborted after 2 s.
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(stream.end().await, (vec![], End::Closed));
}
