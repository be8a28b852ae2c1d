//! The HTTP client: proxies, and the client that the application configures.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use flipswitch::{FlipswitchProvider, reqwest, serde_json::json};
use flipswitch_local::LocalServer;

use crate::support::{
    chain, closed_port, eventually, in_time,
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
async fn the_log_and_the_errors_name_the_proxy() {
    let page = Scripted::answering(Reply::status(403, "<html><title>Forbidden</title></html>")).await;
    let closed = closed_port();
    let cases = [
        (page.url(), format!("the proxy {} or a firewall has responded", page.url())),
        (format!("http://{closed}"), format!("through the proxy http://{closed}")),
    ];
    for (url, error) in cases {
        let with_credentials = url.replace("//", "//user:secret@");
        let environment = [("http_proxy", &*with_credentials), ("no_proxy", ""), ("NO_PROXY", "")];
        let (output, said) = session("key", vec!["http://flags.example".to_owned()], &environment).await;
        assert!(output.status.success(), "{said}");
        let start = format!("base_url=http://flags.example proxy=\"{url}\"");
        for part in [&start, &error] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("secret"), "{said}");
    }
}

#[tokio::test]
async fn an_https_url_with_a_port_without_tls_is_explained() {
    let service = LocalServer::start(json!({})).await.unwrap();
    let url = service.url().replace("http://", "https://");
    let provider = FlipswitchProvider::builder("key").base_url(url).build().unwrap();
    let flags = in_time(provider.flags(&user("u"))).await;
    let text = chain(flags.error().unwrap());
    assert!(text.contains("does not use TLS") && text.contains("http?"), "{text}");
    provider.shutdown().await;
}

#[tokio::test]
async fn the_provider_sends_its_user_agent_unless_the_factory_sets_another() {
    let ours = concat!("flipswitch-rust/", env!("CARGO_PKG_VERSION"));
    let headers = || [(reqwest::header::ACCEPT_LANGUAGE, "de".parse().unwrap())].into_iter().collect();
    type Factory = fn() -> reqwest::ClientBuilder;
    let factories: [(&str, Factory); 2] =
        [(ours, || reqwest::ClientBuilder::new()), ("shop/1", || reqwest::ClientBuilder::new().user_agent("shop/1"))];
    for (expected, factory) in factories {
        let service = Scripted::answering(Reply::json(json!({"flags": []}))).await;
        let provider = FlipswitchProvider::builder("key")
            .base_url(service.url())
            .http_client(move || factory().default_headers(headers()))
            .build()
            .unwrap();
        in_time(provider.flags(&user("u"))).await;
        eventually(async || service.received().len() >= 2).await;
        for request in service.received() {
            assert_eq!(request.header("user-agent"), Some(expected), "{} {}", request.method, request.path);
        }
        provider.shutdown().await;
    }
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
            // A timeout that the factory sets does not end the stream.
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
