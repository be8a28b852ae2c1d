//! The HTTP client: proxies, and the client that the application configures.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use flipswitch::{
    ConnectionStatus, FlipswitchProvider,
    reqwest::{
        self,
        dns::{Addrs, Name, Resolve, Resolving},
    },
    serde_json::json,
};
use flipswitch_local::LocalServer;

use crate::support::{
    eventually, in_time,
    scripted::{Reply, Scripted},
    session::session,
    user,
};

#[tokio::test]
async fn requests_to_localhost_bypass_proxies() {
    let proxy = Scripted::answering(Reply::status(502, "")).await;
    let service = Scripted::answering(Reply::json(json!({"flags": [{"key": "f", "value": true}]}))).await;
    let environment = [("http_proxy", proxy.url()), ("HTTP_PROXY", proxy.url()), ("ALL_PROXY", proxy.url())];
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let (output, said) = session("key", vec![service.url()], &environment).await;
    assert!(output.status.success(), "{said}");
    assert!(proxy.received().is_empty() && !service.received().is_empty(), "{said}");
}

#[tokio::test]
async fn the_http_client_factory_is_used_for_requests_and_stream() {
    let service = Scripted::start(|request, _| {
        if request.method == "GET" {
            Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n".to_vec())
        } else {
            Reply::json(json!({"flags": []}))
        }
    })
    .await;
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let provider = FlipswitchProvider::builder("key")
        .base_url(service.url())
        .http_client(move || {
            count.fetch_add(1, Ordering::Relaxed);
            let headers = http::HeaderMap::from_iter([(http::header::FORWARDED, "for=proxy".parse().unwrap())]);
            // Time-outs of the factory do not cut the stream.
            reqwest::Client::builder().default_headers(headers).timeout(Duration::from_nanos(1))
        })
        .build()
        .unwrap();
    assert!(in_time(provider.flags(&user("u"))).await.error().is_none());
    eventually(async || service.received().iter().any(|request| request.method == "GET")).await;
    provider.shutdown().await;
    assert_eq!(made.load(Ordering::Relaxed), 2);
    for request in service.received() {
        assert_eq!(request.header("forwarded"), Some("for=proxy"), "{request:?}");
    }
}

/// Resolves every name to the service's address, after some panics.
#[derive(Debug)]
struct PanickingResolver {
    address: SocketAddr,
    panics: AtomicUsize,
}

impl Resolve for PanickingResolver {
    fn resolve(&self, _: Name) -> Resolving {
        let left = self.panics.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        let address = self.address;
        Box::pin(async move {
            assert!(left.is_err(), "the application's resolver panics");
            Ok(Box::new(std::iter::once(address)) as Addrs)
        })
    }
}

#[tokio::test]
async fn the_stream_and_the_requests_survive_panics_of_the_applications_resolver() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let address: SocketAddr = service.url().strip_prefix("http://").unwrap().parse().unwrap();
    // One client is for requests, the other one for the stream.
    let resolvers = [0; 2].map(|_| Arc::new(PanickingResolver { address, panics: AtomicUsize::new(2) }));
    let (made, unused) = (AtomicUsize::new(0), resolvers.clone());
    let provider = FlipswitchProvider::builder("key")
        .base_url(format!("http://flags.example:{}", address.port()))
        .http_client(move || {
            let resolver = Arc::clone(&unused[made.fetch_add(1, Ordering::AcqRel)]);
            reqwest::ClientBuilder::new().no_proxy().dns_resolver(resolver)
        })
        .build()
        .unwrap();
    eventually(async || provider.flags(&user("u")).await.bool("on", false)).await;
    eventually(async || provider.sse_status() == ConnectionStatus::Connected).await;
    assert!(resolvers.iter().all(|resolver| resolver.panics.load(Ordering::Acquire) == 0));
    provider.shutdown().await;
}
