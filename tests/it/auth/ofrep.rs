//! The authentication and the headers of requests to OFREP services.

use flipswitch::{Auth, ConfigError, FlipswitchProvider, FlipswitchProviderBuilder, integration::Anonymous};
use flipswitch_axum::FlipswitchLayer;
use flipswitch_local::LocalServer;
use serde_json::json;
use tokio::runtime::Handle;

use crate::support::{
    Log, PATIENCE, in_time,
    scripted::{Reply, Scripted},
    user,
};

fn ofrep(service: &Scripted) -> FlipswitchProviderBuilder {
    FlipswitchProvider::ofrep(service.url()).miss_wait(PATIENCE)
}

async fn service() -> Scripted {
    Scripted::answering(Reply::json(json!({"flags": [{"key": "f", "value": true}]}))).await
}

/// Builds the provider, reads a flag, and returns the headers that were sent, except the headers of the HTTP client.
async fn sent(service: &Scripted, builder: FlipswitchProviderBuilder) -> Vec<String> {
    let before = service.received().len();
    let provider = builder.build().unwrap();
    assert!(in_time(provider.flags(user("u"))).await.bool("f", false));
    provider.shutdown().await;
    let usual = ["host:", "accept", "content-", "cache-control:", "user-agent:"];
    let mut sent: Vec<_> = service.received()[before].head.lines().skip(1).map(str::to_owned).collect();
    sent.retain(|line| !line.is_empty() && !usual.iter().any(|usual| line.starts_with(usual)));
    sent.sort_unstable();
    sent
}

#[tokio::test]
async fn requests_carry_only_the_chosen_credential_and_headers() {
    let service = service().await;
    assert_eq!(sent(&service, ofrep(&service)).await, [""; 0]);
    assert_eq!(sent(&service, ofrep(&service).auth(Auth::None).telemetry(true)).await, [""; 0]);
    let key = || Auth::ApiKey(" the-key ".into());
    assert_eq!(sent(&service, ofrep(&service).auth(key())).await, ["x-api-key: the-key"]);
    let bearer = ofrep(&service).auth(key()).auth(Auth::Bearer("a.b".into())).header("Flagd-Selector", "source=x");
    assert_eq!(sent(&service, bearer).await, ["authorization: bearer a.b", "flagd-selector: source=x"]);
    let basic = ofrep(&service).header("x-a", "1").header("X-A", " 2 ").header("authorization", "Basic eA==");
    assert_eq!(sent(&service, basic).await, ["authorization: basic ea==", "x-a: 2"]);
    // Flipswitch may be behind a gateway that requires a header.
    let flipswitch = FlipswitchProvider::builder("k").base_url(service.url()).telemetry(false).enable_realtime(false);
    assert_eq!(sent(&service, flipswitch.header("x-a", "1")).await, ["x-a: 1", "x-api-key: k"]);
}

#[test]
fn invalid_headers_are_rejected_with_their_name() {
    let builder = || FlipswitchProvider::ofrep("http://flags.example").auth(Auth::Bearer("token".into()));
    for (name, value, problem) in [
        ("x-a", "secret\r\nx-evil: 1", "cannot contain"),
        ("Content-Type", "secret", "the provider sets it"),
        ("if-none-match", "secret", "the provider sets it"),
        ("host", "secret", "the provider sets it"),
        ("User-Agent", "secret", "`http_client`"),
        ("X-Flipswitch-SDK", "secret", "the provider sets it"),
        ("authorization", "secret", "`Auth::None`"),
    ] {
        let error = builder().header(name, value).build().unwrap_err();
        assert!(matches!(error, ConfigError::Header { .. }), "{name}: {error}");
        let text = error.to_string();
        assert!(text.contains(&format!("{name:?}")) && text.contains(problem) && !text.contains("secret"), "{text}");
    }
    // An invalid name may be part of a secret, so the error does not contain it.
    for name in ["a-secret b", "", "secret/x"] {
        let error = builder().header(name, "secret").build().unwrap_err().to_string();
        assert!(error.contains("characters)") && error.contains("no header") && !error.contains("secret"), "{error}");
        assert!(!format!("{:?}", builder().header(name, "x")).contains("secret"));
    }
    for (token, problem) in
        [("", "is empty"), ("Bearer x", "begins with \"Bearer\""), ("a\nb", "position 2"), ("\"t\"", "quote")]
    {
        let error = FlipswitchProvider::ofrep("http://flags.example").auth(Auth::Bearer(token.into())).build();
        let text = error.unwrap_err().to_string();
        assert!(text.starts_with("the bearer token ") && text.contains(problem), "{text}");
    }
    let shown = format!("{:?}", builder().header("x-a", "secret"));
    assert!(shown.contains("Bearer(…)") && shown.contains("x-a") && !shown.contains("secret"), "{shown}");
    assert!(!shown.contains("token"), "{shown}");
}

#[tokio::test]
async fn a_token_can_be_replaced_at_run_time_but_not_added() {
    let service = LocalServer::builder().flags(json!({"f": true})).api_key("first-token").start().await.unwrap();
    let builder = || FlipswitchProvider::ofrep(service.url()).miss_wait(PATIENCE);
    let provider = builder().auth(Auth::Bearer("wrong".into())).build().unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap_err();
    provider.set_api_key("first-token").unwrap();
    in_time(provider.ready(PATIENCE)).await.unwrap();
    assert!(in_time(provider.flags(user("u"))).await.bool("f", false));
    let error = provider.set_api_key("a\nb").unwrap_err().to_string();
    assert!(error.contains("bearer token"), "{error}");
    let none = builder().build().unwrap();
    assert!(matches!(none.set_api_key("first-token"), Err(ConfigError::NoAuth)));
    provider.shutdown().await;
    none.shutdown().await;
}

#[tokio::test]
async fn a_redirect_to_another_origin_is_not_followed() {
    let elsewhere = service().await;
    let target = elsewhere.url();
    let moved = Scripted::answering(Reply::status(307, "").with("location", target)).await;
    let provider = ofrep(&moved).auth(Auth::Bearer("secret".into())).header("x-a", "secret").build().unwrap();
    assert!(in_time(provider.flags(user("u"))).await.error().is_some());
    assert!(elsewhere.received().is_empty());
    provider.shutdown().await;
}

/// Without a key or a secret, the key of cookies cannot be derived.
#[tokio::test]
async fn cookies_without_a_secret_cause_one_warning() {
    let build = |builder: FlipswitchProviderBuilder| builder.runtime(Handle::current()).build().unwrap();
    let ofrep = || FlipswitchProvider::ofrep("http://127.0.0.1:9");
    for (provider, is_warned) in [
        (build(ofrep()), true),
        (build(ofrep().header("authorization", "Basic eA==")), true),
        (build(ofrep().auth(Auth::ApiKey("key".into()))), false),
        (build(ofrep().secret("a secret of the whole fleet")), false),
        (FlipswitchProvider::in_memory(json!({})), false),
    ] {
        let log = Log::of_this_thread();
        for _ in 0..2 {
            drop(FlipswitchLayer::new(provider.clone()).with_anonymous(Anonymous::cookie()));
        }
        let warned = log.lines().iter().filter(|line| line.contains("set a `secret`")).count();
        assert_eq!(warned, usize::from(is_warned));
        provider.shutdown().await;
    }
}
