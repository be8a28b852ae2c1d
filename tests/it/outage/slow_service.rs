//! Services that are slow, wrong or gone, or that would have the API key.

use std::{
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use flipswitch::{Error, FlipswitchProvider, open_feature::EvaluationContext, serde_json::json};
use flipswitch_local::LocalServer;
use futures_util::future::join_all;

use crate::{
    scripted::{Received, Reply, Scripted},
    support::{self, eventually, in_time, user},
};

fn redirect(status: u16, to: impl ToString) -> Reply {
    Reply::status(status, "").with("location", to)
}

fn provider(service: &Scripted) -> FlipswitchProvider {
    FlipswitchProvider::builder("the-key").base_url(service.url()).build().unwrap()
}

#[tokio::test]
async fn no_redirect_takes_the_key_to_another_origin() {
    for status in [301, 302, 303, 307, 308] {
        let other = Scripted::answering(Reply::json(json!({"flags": [{"key": "f", "value": true}]}))).await;
        let url = other.url();
        let service = Scripted::start(move |request, _| redirect(status, format!("{url}{}", request.path))).await;
        let provider = provider(&service);
        let flags = in_time(provider.flags(&user("u"))).await;
        assert!(!flags.bool("f", false), "{status}");
        assert!(flags.error().is_some(), "{status}");
        // Both the request and the stream have been sent away.
        eventually(async || {
            let received = service.received();
            received.iter().any(Received::is_bulk) && received.iter().any(|request| request.method == "GET")
        })
        .await;
        provider.shutdown().await;
        assert!(other.received().is_empty(), "{status}: {:?}", other.received());
    }
}

#[tokio::test]
async fn another_scheme_host_or_port_is_another_origin() {
    for location in
        ["https://127.0.0.1:1/", "http://localhost:1/", "//127.0.0.1:1/", "http://[::1]:1/", "ftp://127.0.0.1/"]
    {
        let service = Scripted::answering(redirect(307, location)).await;
        let error = in_time(provider(&service).evaluate_all_flags(&user("u"))).await.unwrap_err();
        assert!(matches!(error, Error::Transport(_)), "{location}: {error:?}");
    }
}

#[tokio::test]
async fn redirects_within_the_origin_are_followed_where_they_keep_the_method() {
    for (status, followed) in [(307, true), (308, true), (301, false), (302, false), (303, false)] {
        let service = Scripted::start(move |request, _| {
            if request.path == "/moved" {
                assert_eq!(request.header("x-api-key"), Some("the-key"));
                Reply::json(json!({"flags": [{"key": "f", "value": request.method == "POST"}]}))
            } else {
                redirect(status, "/moved")
            }
        })
        .await;
        let provider =
            FlipswitchProvider::builder("the-key").base_url(service.url()).enable_realtime(false).build().unwrap();
        let flags = in_time(provider.flags(&user("u"))).await;
        assert_eq!(flags.bool("f", false), followed, "{status}: {:?}", flags.error());
        assert_eq!(service.received().iter().any(|request| request.path == "/moved"), followed, "{status}");
    }
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let service = Scripted::start(|request, _| redirect(307, format!("{}/x", request.path))).await;
    let provider = FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false).build().unwrap();
    let error = in_time(provider.evaluate_all_flags(&user("u"))).await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
    let of_user = service.received().iter().filter(|request| request.body.contains("\"u\"")).count();
    assert!(of_user <= 6, "at most five redirects: {of_user} requests");
}

/// Runs the program `session` against services.
async fn session(key: &'static str, base_urls: Vec<String>, environment: &[(&str, &str)]) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_session"));
    command.args(base_urls).env("FLIPSWITCH_API_KEY", key).envs(environment.iter().copied());
    let output = in_time(tokio::task::spawn_blocking(move || command.output().unwrap())).await.unwrap();
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    (output, said)
}

#[tokio::test]
async fn the_key_is_never_shown() {
    const KEY: &str = "sk-5f0d1c7e9a3b-do-not-show";
    let elsewhere = Scripted::answering(Reply::status(200, "")).await;
    let services = [
        Reply::json(json!({"flags": [{"key": "f", "value": true}]})).with("set-cookie", "a=b"),
        Reply::status(401, json!({"errorDetails": "no"})),
        Reply::status(429, "").with("retry-after", 1),
        Reply::status(500, "down"),
        Reply::status(400, json!({"errorCode": "PARSE_ERROR", "errorDetails": "odd"})),
        Reply::status(200, "<html>"),
        Reply::Raw(vec![]),
        Reply::Raw(b"nonsense\r\n\r\n".to_vec()),
        Reply::Silence,
        redirect(307, elsewhere.url()),
        redirect(307, format!("/x?k={KEY}")),
    ];
    let services = join_all(services.map(Scripted::answering)).await;
    let mut urls: Vec<_> = services.iter().map(Scripted::url).collect();
    urls.push(format!("http://{}", support::closed_port()));
    urls.push("http://user:sk-5f0d1c7e9a3b-do-not-show@127.0.0.1:1".to_owned());
    let (output, said) = session(KEY, urls, &[("FLIPSWITCH_BASE_URL", &services[0].url())]).await;
    assert!(output.status.success(), "{said}");
    for expected in [
        "TRACE",
        "starting base_url=http://127.0.0.1:",
        "api_key=…show",
        "hyper",
        "Unauthorized",
        "RateLimited",
        "Timeout",
        "Decode",
        "credentials",
        "from the environment: FlipswitchProvider",
    ] {
        assert!(said.contains(expected), "the session did not come to {expected}: {said}");
    }
    assert!(services[0].received().iter().any(|request| request.header("x-api-key") == Some(KEY)), "it is sent");
    let shown: Vec<_> = said.lines().filter(|line| line.contains("5f0d1c7e9a3b")).collect();
    assert!(shown.is_empty(), "{shown:#?}");
}

#[tokio::test]
async fn requests_to_this_machine_go_through_no_proxy() {
    let proxy = Scripted::answering(Reply::status(502, "")).await;
    let service = Scripted::answering(Reply::json(json!({"flags": [{"key": "f", "value": true}]}))).await;
    let environment = [("http_proxy", proxy.url()), ("HTTP_PROXY", proxy.url()), ("ALL_PROXY", proxy.url())];
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let (output, said) = session("key", vec![service.url()], &environment).await;
    assert!(output.status.success(), "{said}");
    assert!(proxy.received().is_empty() && !service.received().is_empty(), "{said}");
}

#[tokio::test]
async fn without_certificates_or_a_key_the_remedy_is_named() {
    let secure = vec!["https://api.flipswitch.io".to_owned()];
    let nothing = [("SSL_CERT_FILE", "/dev/null"), ("SSL_CERT_DIR", "/dev/null"), ("FLIPSWITCH_BASE_URL", "")];
    let (_, said) = session("key", secure, &nothing).await;
    assert!(said.contains("install the system's CA certificates") && said.contains("`rustls`"), "{said}");
    let (_, said) = session(" ", vec![], &[]).await;
    assert!(said.contains("api_key is empty"), "{said}");
}

#[tokio::test]
async fn a_service_that_is_silent_costs_one_timeout_and_then_nothing() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    let service = Scripted::answering(Reply::Silence).await;
    let provider = FlipswitchProvider::builder("key")
        .base_url(service.url())
        .enable_realtime(false)
        .request_timeout(TIMEOUT)
        .build()
        .unwrap();
    let first = join_all((0..20).map(|id| {
        let provider = provider.clone();
        async move { provider.flags(&user(&format!("first-{id}"))).await }
    }));
    let began = Instant::now();
    for flags in in_time(first).await {
        assert!(matches!(flags.error(), Some(Error::Timeout)), "{:?}", flags.error());
    }
    assert!(began.elapsed() < 10 * TIMEOUT, "they wait together, and once: {:?}", began.elapsed());

    let before = service.received().len();
    let began = Instant::now();
    for id in 0..1_000 {
        let flags = provider.flags(&user(&format!("later-{id}"))).await;
        assert_eq!(flags.int("limit", 7), 7);
    }
    let each = began.elapsed() / 1_000;
    assert!(each < Duration::from_millis(1), "{each:?} each");
    assert!(service.received().len() - before <= 2, "only probes are sent meanwhile");
}

#[tokio::test]
async fn one_slow_user_harms_no_other() {
    let service = Scripted::start(|request, _| {
        if request.body.contains("slow") {
            Reply::Silence
        } else {
            Reply::json(json!({"flags": [{"key": "f", "value": true}]}))
        }
    })
    .await;
    let provider = FlipswitchProvider::builder("key")
        .base_url(service.url())
        .enable_realtime(false)
        .request_timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    let slow = tokio::spawn({
        let provider = provider.clone();
        async move { provider.flags(&user("slow")).await }
    });
    eventually(async || service.received().iter().any(|request| request.body.contains("slow"))).await;
    let mut id = 0;
    while !slow.is_finished() || id < 200 {
        id += 1;
        let flags = in_time(provider.flags(&user(&id.to_string()))).await;
        assert!(flags.bool("f", false), "user {id}: {:?}", flags.error());
    }
    assert!(matches!(slow.await.unwrap().error(), Some(Error::Timeout)));
}

#[tokio::test]
async fn after_a_failure_nobody_gets_the_old_error_for_long() {
    let service = Scripted::start(|_, before| match before {
        0 | 1 => Reply::status(503, ""),
        _ => Reply::json(json!({"flags": [{"key": "f", "value": true}]})),
    })
    .await;
    let provider = FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false).build().unwrap();
    assert!(in_time(provider.flags(&user("first"))).await.error().is_some());
    // Nobody evaluates meanwhile: the provider tries on by itself.
    in_time(provider.ready(support::PATIENCE)).await.unwrap();
    assert!(in_time(provider.flags(&user("first"))).await.bool("f", false), "the very next evaluation is answered");
}

#[tokio::test]
async fn a_connection_closed_under_a_request_is_tried_again() {
    let closed = Arc::new(AtomicBool::new(false));
    let service = Scripted::start(move |request, _| {
        if request.body.contains("\"u\"") && !closed.swap(true, Ordering::Relaxed) {
            Reply::Raw(vec![])
        } else {
            Reply::json(json!({"flags": [{"key": "f", "value": true}]}))
        }
    })
    .await;
    let provider = FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false).build().unwrap();
    assert!(in_time(provider.flags(&user("u"))).await.bool("f", false));
    assert_eq!(service.received().iter().filter(|request| request.body.contains("\"u\"")).count(), 2);
}

#[tokio::test]
async fn the_time_for_a_request_does_not_cut_the_stream() {
    const TIMEOUT: Duration = Duration::from_millis(50);
    let service = LocalServer::builder().heartbeat(Duration::from_millis(10)).start().await.unwrap();
    let provider = support::builder(&service)
        .request_timeout(TIMEOUT)
        .http_client(|| reqwest::Client::builder().timeout(TIMEOUT).read_timeout(TIMEOUT))
        .build()
        .unwrap();
    provider.flags(&user("u")).await;
    eventually(async || service.streams() == 1).await;
    let opened = Instant::now();
    eventually(async || opened.elapsed() > 6 * TIMEOUT).await;
    let connections = service.requests().iter().filter(|request| request.method == "GET").count();
    assert_eq!((connections, service.streams()), (1, 1));
}

#[tokio::test]
async fn a_failing_service_is_asked_by_the_schedule_whoever_wants_to_know() {
    let service = Scripted::answering(Reply::status(503, "")).await;
    let provider = FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false).build().unwrap();
    let mut id = 0;
    eventually(async || {
        for _ in 0..50 {
            id += 1;
            provider.flags(&user(&id.to_string())).await;
        }
        service.received().len() > 4
    })
    .await;
    let times: Vec<_> = service.received().iter().map(|request| request.at).collect();
    // The start-up check and the first evaluation may meet; after them it is one at a time.
    let last = times.len() - 1;
    assert!(times[last] - times[last - 1] >= Duration::from_secs(1), "{times:?}");
    assert!(times[last - 1] - times[last - 2] >= Duration::from_millis(500), "{times:?}");
}

#[tokio::test]
async fn a_limit_of_the_service_is_kept_and_known_users_keep_their_values() {
    let service = Scripted::start(|request, _| {
        if request.body.contains("known") || request.body.contains("_init_") {
            Reply::json(json!({"flags": [{"key": "f", "value": true}]}))
        } else {
            Reply::status(429, "").with("retry-after", 100)
        }
    })
    .await;
    let provider = FlipswitchProvider::builder("key")
        .base_url(service.url())
        .enable_realtime(false)
        .polling_interval(Duration::from_millis(1))
        .max_wait(Duration::ZERO)
        .build()
        .unwrap();
    assert!(in_time(provider.flags(&user("known"))).await.bool("f", false));
    assert!(matches!(in_time(provider.flags(&user("new"))).await.error(), Some(Error::RateLimited { .. })));
    let before = service.received().len();
    eventually(async || {
        let flags = provider.flags(&user("known")).await;
        assert!(flags.bool("f", false));
        flags.is_stale() && matches!(flags.error(), Some(Error::RateLimited { .. }))
    })
    .await;
    assert_eq!(service.received().len(), before, "no request before its time");

    // Another provider is not concerned: the pause is nobody else's.
    let other = FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false).build().unwrap();
    assert!(in_time(other.flags(&user("known"))).await.bool("f", false));
}

#[tokio::test]
async fn a_context_that_is_refused_harms_no_other_and_is_not_asked_for_at_once_again() {
    let service = Scripted::start(|request, _| {
        if request.body.contains("targetingKey") {
            Reply::json(json!({"flags": [{"key": "f", "value": true}]}))
        } else {
            Reply::status(400, json!({"errorCode": "TARGETING_KEY_MISSING"}))
        }
    })
    .await;
    let provider = FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false).build().unwrap();
    let anonymous = EvaluationContext::default();
    for _ in 0..100 {
        let flags = in_time(provider.flags(&anonymous)).await;
        assert!(matches!(flags.error(), Some(Error::Evaluation { code, .. }) if code == "TARGETING_KEY_MISSING"));
    }
    assert!(in_time(provider.flags(&user("u"))).await.bool("f", false));
    let asked = service.received().iter().filter(|request| !request.body.contains("targetingKey")).count();
    assert!(asked <= 2, "{asked} requests for a context that is refused");
}

#[tokio::test]
async fn one_factory_makes_every_client() {
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
