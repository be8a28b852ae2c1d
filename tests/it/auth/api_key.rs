//! The API key stays secret: it is not sent to another origin, and does not appear in logs or errors.

use flipswitch::{Error, FlipswitchProvider, serde_json::json};
use futures_util::future::join_all;

use crate::support::{
    self, eventually, in_time,
    scripted::{Received, Reply, Scripted},
    session::session,
    user,
};

fn redirect(status: u16, to: impl ToString) -> Reply {
    Reply::status(status, "").with("location", to)
}

fn provider(service: &Scripted) -> FlipswitchProvider {
    FlipswitchProvider::builder("the-key").base_url(service.url()).build().unwrap()
}

#[tokio::test]
async fn redirects_to_another_origin_are_refused() {
    for status in [301, 302, 303, 307, 308] {
        let other = Scripted::answering(Reply::json(json!({"flags": [{"key": "f", "value": true}]}))).await;
        let url = other.url();
        let service = Scripted::start(move |request, _| redirect(status, format!("{url}{}", request.path))).await;
        let provider = provider(&service);
        let flags = in_time(provider.flags(&user("u"))).await;
        assert!(!flags.bool("f", false), "{status}");
        assert!(flags.error().is_some(), "{status}");
        // Both the request and the stream were redirected.
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
async fn a_different_scheme_host_or_port_is_a_different_origin() {
    for location in
        ["https://127.0.0.1:1/", "http://localhost:1/", "//127.0.0.1:1/", "http://[::1]:1/", "ftp://127.0.0.1/"]
    {
        let service = Scripted::answering(redirect(307, location)).await;
        let error = in_time(provider(&service).evaluate_all_flags(&user("u"))).await.unwrap_err();
        assert!(matches!(error, Error::Transport(_)), "{location}: {error:?}");
    }
}

#[tokio::test]
async fn redirects_within_the_origin_are_followed_if_they_keep_the_method() {
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
async fn redirect_loops_end() {
    let service = Scripted::start(|request, _| redirect(307, format!("{}/x", request.path))).await;
    let provider = FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false).build().unwrap();
    let error = in_time(provider.evaluate_all_flags(&user("u"))).await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
    let of_user = service.received().iter().filter(|request| request.body.contains("\"u\"")).count();
    assert!(of_user <= 6, "at most five redirects: {of_user} requests");
}

#[tokio::test]
async fn the_key_does_not_appear_in_output_logs_or_errors() {
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
        assert!(said.contains(expected), "the session did not print {expected}: {said}");
    }
    assert!(services[0].received().iter().any(|request| request.header("x-api-key") == Some(KEY)), "it is sent");
    let shown: Vec<_> = said.lines().filter(|line| line.contains("5f0d1c7e9a3b")).collect();
    assert!(shown.is_empty(), "{shown:#?}");
}

#[tokio::test]
async fn missing_certificates_and_empty_keys_are_explained() {
    let secure = vec!["https://api.flipswitch.io".to_owned()];
    let nothing = [("SSL_CERT_FILE", "/dev/null"), ("SSL_CERT_DIR", "/dev/null"), ("FLIPSWITCH_BASE_URL", "")];
    let (_, said) = session("key", secure, &nothing).await;
    assert!(said.contains("install the system's CA certificates") && said.contains("`rustls`"), "{said}");
    let (_, said) = session(" ", vec![], &[]).await;
    assert!(said.contains("api_key is empty"), "{said}");
}
