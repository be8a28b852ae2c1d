//! Flag overrides in a signed cookie, and the inspection of requests.

use std::{sync::Arc, time::Duration};

use flipswitch::{
    FlipswitchProvider, SignedOverrides,
    integration::{self, InspectionPage, ScopeBuilder},
    open_feature::{EvaluationContext, OpenFeature, provider::FeatureProvider},
};
use flipswitch_local::LocalServer;
use reqwest::{Method, Response, redirect::Policy};
use serde_json::{Value, json};

use crate::support::{
    self, Log,
    apps::{self, App, Framework, Setup, service},
    eventually, in_time,
};

const KEY: &str = "the key of overrides in these tests";

fn overrides() -> SignedOverrides {
    SignedOverrides::new(KEY).allow(["whoami", "beta", "theme", "new"])
}

fn cookie(values: Value) -> String {
    overrides().mint(values).cookie().unwrap()
}

/// Sends a request without following redirects.
async fn send(app: &App, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let client = reqwest::Client::builder().redirect(Policy::none()).no_proxy().build().unwrap();
    let mut request = client.request(method, format!("{}{path}", app.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    in_time(request.send()).await.unwrap()
}

async fn get(app: &App, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let response = send(app, Method::GET, path, headers).await;
    (response.status().as_u16(), in_time(response.text()).await.unwrap())
}

fn header<'a>(response: &'a Response, name: &str) -> Vec<&'a str> {
    response.headers().get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

/// An application with a flag service, whose flags can be overridden and whose requests can be inspected.
async fn start(framework: Framework) -> (App, FlipswitchProvider, LocalServer) {
    let service = service().await;
    // No flags become out of date, so each request to the service has a cause in the test.
    let builder = support::builder(&service).enable_realtime(false).polling_interval(Duration::from_secs(3_600));
    let provider = builder.build().unwrap();
    let name = format!("overrides {framework:?} {}", service.url());
    OpenFeature::singleton_mut().await.set_named_provider(&name, provider.clone()).await;
    let client = Some(Arc::new(OpenFeature::singleton().await.create_named_client(&name)));
    let setup = Setup { overrides: Some(overrides()), inspects: true, client, ..provider.clone().into() };
    (framework.serve(setup).await, provider, service)
}

#[tokio::test]
async fn overrides_apply_to_all_parts_of_the_request_and_to_nothing_else() {
    for framework in Framework::ALL {
        let (app, provider, service) = start(framework).await;
        let bob = ("x-user", "bob");
        // The user is known before, so every request from here on is caused by the overrides.
        assert_eq!(get(&app, "/flag", &[bob]).await, (200, "bob user".to_owned()), "{framework:?}");
        assert_eq!(get(&app, "/gate/requires", &[bob]).await.0, 404, "{framework:?}");
        // The routes also include reads outside the request.
        get(&app, "/deep", &[bob]).await;
        let before = support::evaluations(&service);
        let cookie = cookie(json!({"whoami": "overridden", "beta": true, "theme": "#123", "new": 7}));
        let cookie = format!("other=1; {cookie}; more=2");
        let tester = [bob, ("cookie", &cookie)];
        for (path, expected) in [
            ("/flag", "overridden user"),
            ("/twice", "overridden user"),
            ("/typed", "overridden user"),
            ("/together", "overridden user"),
            ("/optional", "overridden user"),
            ("/nested/flag", "overridden user"),
            ("/single/flag", "overridden user"),
            // An OpenFeature client, including a spawned task and a streamed body.
            ("/plain", "overridden"),
            ("/deep", "overridden"),
        ] {
            assert_eq!(get(&app, path, &tester).await, (200, expected.to_owned()), "{framework:?} {path}");
        }
        for gate in ["/gate/requires", "/gated/free"] {
            assert_eq!(get(&app, gate, &tester).await.0, 200, "{framework:?} {gate}");
        }
        assert_eq!(get(&app, "/gate/requires-not", &tester).await.0, 404, "{framework:?}");
        // The same user in another browser, and routes outside the layer.
        assert_eq!(get(&app, "/flag", &[bob]).await, (200, "bob user".to_owned()), "{framework:?}");
        assert_eq!(get(&app, "/gate/requires", &[bob]).await.0, 404, "{framework:?}");
        assert_eq!(get(&app, "/bare/flag", &tester).await.0, 500, "{framework:?}");
        let asked: Vec<_> =
            service.requests().iter().map(|it| String::from_utf8_lossy(&it.body).into_owned()).collect();
        assert_eq!(support::evaluations(&service), before, "{framework:?}: no request to the service: {asked:?}");
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_guard_reads_the_overrides() {
    let (app, provider, _service) = start(Framework::Actix).await;
    let cookie = cookie(json!({"beta": true}));
    // After this, the flags are in memory.
    get(&app, "/flag", &[("x-user", "bob")]).await;
    for (headers, expected) in [(&[("x-user", "bob")][..], "old"), (&[("x-user", "bob"), ("cookie", &cookie)], "new")] {
        eventually(async || get(&app, "/guarded", headers).await.1 == expected).await;
    }
    provider.shutdown().await;
}

/// Tests the attempts of an attacker who has the source code and valid tokens for other purposes.
#[tokio::test]
async fn tokens_for_another_purpose_key_provider_or_user_are_ignored() {
    for framework in Framework::ALL {
        let (app, provider, _service) = start(framework).await;
        let values = || json!({"whoami": "overridden"});
        let name = "__Host-flipswitch-overrides";
        let minted = |overrides: SignedOverrides| overrides.mint(values());
        let valid = minted(overrides()).cookie().unwrap();
        let link = minted(overrides()).link().unwrap().replace("flipswitch=", &format!("{name}="));
        let long = format!("{name}={}", "A".repeat(6_000));
        let many = format!("{}; {valid}", vec![format!("{name}=x.y"); 4].join("; "));
        let cookies = [
            minted(SignedOverrides::new("another key of these tests")).cookie().unwrap(),
            minted(overrides()).provider_name("other").cookie().unwrap(),
            minted(overrides()).for_context("alice").cookie().unwrap(),
            // A flag that is not allowed, and a value of a different type.
            overrides().mint(json!({"origin": "overridden", "plain": "x"})).cookie().unwrap(),
            overrides().mint(json!({"whoami": 7, "beta": "yes"})).cookie().unwrap(),
            // A token for another purpose.
            link,
            valid.replace('.', ".A"),
            valid.replace("__Host-", ""),
            valid.replace("__Host-", "__host-"),
            format!("{valid}x"),
            format!("{name}="),
            format!("{name}=."),
            format!("{name}=\"{}\"", valid.split_once('=').unwrap().1),
            format!("{name}=%00%0d%0a.%ff"),
            long,
            many,
        ];
        for cookie in &cookies {
            let (status, body) = get(&app, "/flag", &[("x-user", "bob"), ("cookie", cookie)]).await;
            assert_eq!((status, body.as_str()), (200, "bob user"), "{framework:?} {cookie}");
            let (status, _) = get(&app, "/gate/requires", &[("x-user", "bob"), ("cookie", cookie)]).await;
            assert_eq!(status, 404, "{framework:?} {cookie}");
        }
        let response =
            app.send("/flag", &[("x-user", b"bob"), ("cookie", b"__Host-flipswitch-overrides=\xff\xfe.\x80")]).await;
        assert_eq!(response.status(), 200);
        // Overrides for a context apply only to this context.
        let for_bob = minted(overrides()).for_context("bob").cookie().unwrap();
        assert_eq!(get(&app, "/flag", &[("x-user", "bob"), ("cookie", &for_bob)]).await.1, "overridden user");
        assert_eq!(get(&app, "/flag", &[("cookie", &for_bob)]).await.1, "nobody nowhere");
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn an_ignored_token_logs_one_warning() {
    let log = Log::of_this_thread();
    let provider = FlipswitchProvider::in_memory(json!({"whoami": "service"}));
    let setup = Setup { overrides: Some(overrides()), ..provider.clone().into() };
    let app = apps::on_axum::app(&setup);
    for cookie in ["__Host-flipswitch-overrides=x.y", "__Host-flipswitch-overrides=secret"] {
        let request = http::Request::get("/flag").header("cookie", cookie).body(axum::body::Body::empty()).unwrap();
        let response = tower::ServiceExt::oneshot(app.clone(), request).await.unwrap();
        assert_eq!(response.status(), 200);
    }
    let lines = log.lines();
    let [line] = &lines[..] else { panic!("there must be one warning: {lines:?}") };
    assert!(line.contains("flag overrides in a request are ignored") && !line.contains("x.y"), "{line}");
}

#[tokio::test]
async fn a_response_with_overrides_stays_out_of_shared_caches() {
    for framework in Framework::ALL {
        let (app, provider, _service) = start(framework).await;
        let cookie = cookie(json!({"beta": true}));
        for path in ["/public", "/private", "/flag", "/free", "/unchanged", "/no-such-page"] {
            let plain = send(&app, Method::GET, path, &[]).await;
            assert!(header(&plain, "vary").is_empty(), "{framework:?} {path}");
            let response = send(&app, Method::GET, path, &[("cookie", &cookie)]).await;
            assert_eq!(response.status(), plain.status(), "{framework:?} {path}");
            let control = if path == "/private" { "private, max-age=60" } else { "private" };
            assert_eq!(header(&response, "cache-control"), [control], "{framework:?} {path}");
            assert_eq!(header(&response, "vary"), ["Cookie"], "{framework:?} {path}");
        }
        let public = send(&app, Method::GET, "/public", &[("cookie", "__Host-flipswitch-overrides=x.y")]).await;
        assert_eq!(header(&public, "cache-control"), ["public, max-age=60"], "{framework:?}: nothing is overridden");
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_link_sets_the_cookie_and_redirects_to_the_page_without_the_token() {
    for framework in Framework::ALL {
        let (app, provider, service) = start(framework).await;
        let link = overrides().mint(json!({"whoami": "overridden"})).link().unwrap();
        let before = support::evaluations(&service);
        for (path, location) in [
            (format!("/flag?{link}"), "/flag"),
            (format!("/flag?a=1&{link}&b=%2F"), "/flag?a=1&b=%2F"),
            (format!("/nested/flag?{link}"), "/nested/flag"),
            (format!("/single/flag?{link}"), "/single/flag"),
            (format!("/gate/requires?{link}"), "/gate/requires"),
            (format!("//evil.example/%5c?{link}"), "/evil.example/%5c"),
            (format!("/nested//evil.example?{link}"), "/nested//evil.example"),
            (format!("/%2F/evil.example?{link}&next=//evil.example"), "/%2F/evil.example?next=//evil.example"),
        ] {
            let response =
                send(&app, Method::GET, &path, &[("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")]).await;
            assert_eq!(response.status(), 303, "{framework:?} {path}");
            assert_eq!(header(&response, "location"), [location], "{framework:?} {path}");
            assert_eq!(header(&response, "cache-control"), ["no-store"], "{framework:?} {path}");
            assert_eq!(header(&response, "referrer-policy"), ["no-referrer"], "{framework:?} {path}");
            assert_eq!(header(&response, "clear-site-data"), ["\"cache\""], "{framework:?} {path}");
            let [cookie] = header(&response, "set-cookie")[..] else {
                panic!("there must be one cookie: {response:?}")
            };
            let (pair, attributes) = cookie.split_once("; ").unwrap();
            assert_eq!(attributes, "Path=/; Max-Age=28800; Secure; HttpOnly; SameSite=Lax", "{framework:?}");
            let read = get(&app, "/flag", &[("x-user", "bob"), ("cookie", pair)]).await;
            assert_eq!(read.1, "overridden user", "{framework:?}");
        }
        let off = send(&app, Method::GET, "/flag?flipswitch=off&a=1", &[]).await;
        assert_eq!((off.status().as_u16(), header(&off, "location")), (303, vec!["/flag?a=1"]), "{framework:?}");
        let cleared = "__Host-flipswitch-overrides=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Lax";
        assert_eq!(header(&off, "set-cookie"), [cleared], "{framework:?}");
        // Only the requests for bob that read flags are counted.
        assert_eq!(support::evaluations(&service), before + 1, "{framework:?}");
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn other_requests_set_no_cookie() {
    for framework in Framework::ALL {
        let (app, provider, _service) = start(framework).await;
        let link = overrides().mint(json!({"whoami": "overridden"})).link().unwrap();
        let for_alice = overrides().mint(json!({"whoami": "overridden"})).for_context("alice").link().unwrap();
        let cookie = cookie(json!({"whoami": "overridden"}));
        let other_purpose = format!("flipswitch={}", cookie.split_once('=').unwrap().1);
        let other_name = overrides().mint(json!({"whoami": 1})).provider_name("other").link().unwrap();
        let page = |query: &str| format!("/flag?{query}");
        let get = Method::GET;
        for (method, path, headers) in [
            (Method::POST, format!("/echo?{link}"), vec![]),
            (Method::HEAD, page(&link), vec![]),
            (Method::POST, "/echo?flipswitch=off".to_owned(), vec![]),
            // Requests for an image, for a frame, and of a script of another page.
            (get.clone(), page(&link), vec![("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image")]),
            (get.clone(), page(&link), vec![("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")]),
            (get.clone(), page("flipswitch=off"), vec![("sec-fetch-mode", "cors"), ("sec-fetch-dest", "empty")]),
            (get.clone(), page("flipswitch=off"), vec![("sec-purpose", "prefetch")]),
            (get.clone(), page(&for_alice), vec![("x-user", "bob")]),
            (get.clone(), page(&for_alice), vec![]),
            (get.clone(), page(&other_purpose), vec![]),
            (get.clone(), page(&other_name), vec![]),
            (get.clone(), page(&format!("{link}x")), vec![]),
            (get.clone(), page("flipswitch="), vec![]),
            (get.clone(), page("flipswitch=x.y"), vec![]),
            (get.clone(), format!("/bare/optional?{link}"), vec![]),
        ] {
            let response = send(&app, method.clone(), &path, &headers).await;
            assert_ne!(response.status(), 303, "{framework:?} {method} {path} {headers:?}");
            assert!(header(&response, "set-cookie").is_empty(), "{framework:?} {method} {path} {headers:?}");
        }
        let alice = send(&app, Method::GET, &page(&for_alice), &[("x-user", "alice")]).await;
        assert_eq!(alice.status(), 303, "{framework:?}");
        provider.shutdown().await;
    }
}

/// If the service is unavailable, overrides still apply, and only to their own flags.
#[tokio::test]
async fn overrides_apply_without_the_service() {
    for framework in Framework::ALL {
        let provider = support::provider_of_nothing();
        let setup = Setup { overrides: Some(overrides()), ..provider.clone().into() };
        let app = framework.serve(setup).await;
        let cookie = cookie(json!({"whoami": "overridden", "beta": true}));
        let read = get(&app, "/flag", &[("x-user", "bob"), ("cookie", &cookie)]).await;
        assert_eq!(read, (200, "overridden default".to_owned()), "{framework:?}");
        assert_eq!(get(&app, "/gate/requires", &[("cookie", &cookie)]).await.0, 200, "{framework:?}");
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn an_inspected_request_lists_the_flags_that_it_has_read() {
    for framework in Framework::ALL {
        let (app, provider, service) = start(framework).await;
        service.set_flag("whoami", "<b>\"quoted\\\"</b>\r\nx-evil: 1 é");
        let is_set = |timing: &[&str]| timing.len() == 1 && timing[0].contains("evil");
        let staff = [("x-user", "<i>bob</i>"), ("x-staff", "1")];
        eventually(async || is_set(&header(&send(&app, Method::GET, "/flag", &staff).await, "server-timing"))).await;
        let response = send(&app, Method::GET, "/flag?secret=1", &staff).await;
        assert!(!response.headers().contains_key("x-evil"), "{framework:?}");
        assert_eq!(header(&response, "cache-control"), ["private"], "{framework:?}");
        let timing = header(&response, "server-timing")[0].to_owned();
        assert!(timing.starts_with("flag;desc=\"whoami=\\\"<b>"), "{framework:?}: {timing}");
        assert!(timing.contains("(service, ") && timing.contains("flag;desc=\"origin="), "{framework:?}: {timing}");
        // One flag has an override, and the other its default.
        let cookie = cookie(json!({"whoami": "overridden"}));
        let overridden = send(&app, Method::GET, "/flag", &[staff[1], ("cookie", &cookie)]).await;
        let timing = header(&overridden, "server-timing")[0];
        assert!(timing.contains("whoami=\\\"overridden\\\" (override)"), "{framework:?}: {timing}");
        send(&app, Method::GET, "/gate/missing-typed", &staff).await;

        let response = send(&app, Method::GET, "/inspection", &staff).await;
        assert_eq!((response.status().as_u16(), header(&response, "cache-control")), (200, vec!["no-store"]));
        let policy = header(&response, "content-security-policy")[0].to_owned();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{framework:?}: {policy}");
        let page = in_time(response.text()).await.unwrap();
        for expected in [
            "&lt;b&gt;",
            "<td>service<td>",
            "<td>override<td>",
            "<td>default<td>",
            "<code>/flag</code>",
            "attributes: origin",
        ] {
            assert!(page.contains(expected), "{framework:?}: {expected} in {page}");
        }
        for hidden in ["<b>", "<i>", "bob", "secret", "<script"] {
            assert!(!page.contains(hidden), "{framework:?}: {hidden} in {page}");
        }
        // Other requests get no information.
        for headers in [&[][..], &[("x-user", "bob")], &[("cookie", &*cookie)]] {
            assert_eq!(get(&app, "/inspection", headers).await.0, 404, "{framework:?} {headers:?}");
            let response = send(&app, Method::GET, "/flag", headers).await;
            assert!(header(&response, "server-timing").is_empty(), "{framework:?} {headers:?}");
        }
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn the_page_names_the_source_of_each_value() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, json!({"theme": "mine"}).to_string()).unwrap();
    let closed = FlipswitchProvider::builder("key").base_url(format!("http://{}", support::closed_port()));
    let closed = closed.bootstrap(json!({"limit": "low"})).override_file(file.path()).build().unwrap();
    for (key, expected) in [("theme", "file"), ("limit", "bootstrap"), ("missing", "default")] {
        let page = page_after(&closed, key).await;
        assert!(page.contains(&format!("<td>{expected}<td>")), "{key}: {expected} in {page}");
    }
    closed.shutdown().await;

    let service = LocalServer::start(json!({"limit": "high"})).await.unwrap();
    let provider = support::builder(&service).polling_interval(Duration::from_millis(1)).build().unwrap();
    in_time(provider.ready(support::PATIENCE)).await.unwrap();
    assert!(page_after(&provider, "limit").await.contains("<td>service<td>"));
    in_time(service.shutdown()).await;
    eventually(async || page_after(&provider, "limit").await.contains("<td>stale<td>")).await;
    provider.shutdown().await;
}

/// The part of the inspection page for a request that reads one flag.
async fn page_after(provider: &FlipswitchProvider, key: &str) -> String {
    let scopes = ScopeBuilder::<http::request::Parts>::new(provider.clone()).with_inspection(|_| true);
    let (mut parts, ()) = http::Request::get("/").body(()).unwrap().into_parts();
    let scope = scopes.open(&mut parts);
    let _ = in_time(scope.flags()).await.string(key, "-");
    integration::finish(&scope, 200, &mut http::HeaderMap::new());
    let page = InspectionPage::new(Some(&scope), provider).unwrap();
    page.html().split("<h2>").nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn the_page_and_the_header_are_bounded() {
    let values: serde_json::Map<_, _> =
        (0..300).map(|number| (format!("flag-{number}"), json!("x".repeat(500)))).collect();
    let provider = FlipswitchProvider::in_memory(Value::Object(values));
    let scopes = ScopeBuilder::<http::request::Parts>::new(provider.clone()).with_inspection(|_| true);
    let mut last = None;
    for number in 0..120 {
        let (mut parts, ()) = http::Request::get(format!("/{number}?secret")).body(()).unwrap().into_parts();
        let scope = scopes.open(&mut parts);
        let flags = in_time(scope.flags()).await;
        for flag in 0..if number == 119 { 300 } else { 1 } {
            assert_eq!(flags.string(&format!("flag-{flag}"), "default").len(), 500);
        }
        last = Some(scope);
    }
    let scope = last.unwrap();
    let mut headers = http::HeaderMap::new();
    integration::finish(&scope, 200, &mut headers);
    let timing = headers["server-timing"].to_str().unwrap();
    assert!((500..=1_024).contains(&timing.len()) && timing.contains("flag-0="));
    let page = InspectionPage::new(Some(&scope), &provider).unwrap();
    let page = page.html();
    assert_eq!(page.matches("<h2>").count(), 100);
    assert!(
        page.contains("<code>/119</code>") && page.contains("<code>/20</code>") && !page.contains("<code>/19</code>")
    );
    assert!(!page.contains("secret") && page.contains("…") && !page.contains(&"x".repeat(200)));
    let latest = page.split("<h2>").nth(1).unwrap();
    assert_eq!(latest.matches("<td>service<td>").count(), 200, "of 300");
    assert!(latest.contains("<td><code>default</code><td>1</tr>"));
}

#[tokio::test]
async fn overrides_and_inspection_are_off_by_default() {
    for framework in Framework::ALL {
        let service = service().await;
        let provider = apps::provider(&service);
        let app = framework.serve(provider.clone()).await;
        let link = overrides().mint(json!({"whoami": "overridden"})).link().unwrap();
        let cookie = cookie(json!({"whoami": "overridden"}));
        let headers = [("x-user", "bob"), ("x-staff", "1"), ("cookie", &*cookie)];
        for path in [format!("/flag?{link}"), "/flag?flipswitch=off".to_owned()] {
            let response = send(&app, Method::GET, &path, &headers).await;
            assert_eq!(response.status(), 200, "{framework:?} {path}");
            for name in ["server-timing", "vary", "set-cookie", "cache-control"] {
                assert!(header(&response, name).is_empty(), "{framework:?} {path} {name}");
            }
            assert_eq!(in_time(response.text()).await.unwrap(), "bob user", "{framework:?} {path}");
        }
        assert_eq!(get(&app, "/inspection", &headers).await.0, 404, "{framework:?}");
        provider.shutdown().await;
    }
}

/// A request may evaluate the flags of other users, for example for an administrator.
#[tokio::test]
async fn overrides_are_for_the_user_of_the_request() {
    let (_, provider, _service) = start(Framework::Axum).await;
    let scopes = ScopeBuilder::<http::request::Parts>::new(provider.clone())
        .with_context(|_| support::user("bob"))
        .with_overrides(overrides());
    for (subject, own, other) in [(None, "overridden", "alice"), (Some("alice"), "bob", "overridden")] {
        let token = overrides().mint(json!({"whoami": "overridden"}));
        let cookie = subject.map_or(token.clone(), |subject| token.for_context(subject)).cookie().unwrap();
        let (mut parts, ()) = http::Request::get("/").header("cookie", cookie).body(()).unwrap().into_parts();
        let scope = scopes.open(&mut parts);
        let read = async |context| provider.resolve_string_value("whoami", &context).await.unwrap().value;
        let reads = async { (read(EvaluationContext::default()).await, read(support::user("alice")).await) };
        assert_eq!(in_time(scope.clone().run(reads)).await, (own.to_owned(), other.to_owned()));
        assert!(scope.has_overrides());
    }
    provider.shutdown().await;
}

#[test]
fn headers_for_caches_are_replaced_regardless_of_the_application() {
    let provider = FlipswitchProvider::in_memory(json!({}));
    let scopes = ScopeBuilder::<http::request::Parts>::new(provider).with_overrides(overrides());
    let cookie = cookie(json!({"whoami": "overridden"}));
    let (mut parts, ()) = http::Request::get("/").header("cookie", cookie).body(()).unwrap().into_parts();
    let scope = scopes.open(&mut parts);
    for (set, control, vary) in [
        (&[][..], "private", "Cookie"),
        (&[("cache-control", "public"), ("cache-control", "S-MaxAge=60")], "private", "Cookie"),
        (
            &[("cache-control", "no-cache, must-revalidate"), ("expires", "0")],
            "private, no-cache, must-revalidate",
            "Cookie",
        ),
        (
            &[("cache-control", "private, max-age=60"), ("vary", "accept, COOKIE")],
            "private, max-age=60",
            "accept, COOKIE",
        ),
        (&[("cache-control", "No-Store"), ("vary", "*")], "No-Store", "*"),
        (&[("cache-control", "private, s-maxage=60")], "private", "Cookie"),
        (&[("cache-control", "no-store, s-maxage=0")], "private, no-store", "Cookie"),
        (&[("cache-control", "public, max-age=0")], "private, max-age=0", "Cookie"),
        (&[("expires", "0")], "private, no-cache", "Cookie"),
        (&[("expires", "Thu, 01 Jan 1970 00:00:00 GMT")], "private, no-cache", "Cookie"),
        (
            &[
                ("cdn-cache-control", "public"),
                ("cloudflare-cdn-cache-control", "public"),
                ("x-litespeed-cache-control", "public"),
                ("surrogate-control", "max-age=60"),
                ("edge-control", "max-age=60"),
                ("x-accel-expires", "60"),
                ("expires", "Thu, 01 Jan 2099 00:00:00 GMT"),
            ],
            "private",
            "Cookie",
        ),
    ] {
        let mut headers = http::HeaderMap::new();
        for (name, value) in set {
            headers.append(*name, value.parse().unwrap());
        }
        integration::finish(&scope, 200, &mut headers);
        let mut left: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        left.sort_unstable();
        assert_eq!(left, [("cache-control", control), ("vary", vary)], "{set:?}");
    }
}

/// An error of a middleware is not yet a response when it passes the scope.
#[actix_web::test]
async fn on_actix_an_error_stays_out_of_shared_caches() {
    use actix_web::{App, error::ErrorNotFound, middleware::from_fn, test, web};
    use flipswitch_actix::FlipswitchMiddleware;

    let provider = FlipswitchProvider::in_memory(json!({"beta": false}));
    let app = App::new()
        .wrap(from_fn(
            async |request: actix_web::dev::ServiceRequest,
                   _: actix_web::middleware::Next<actix_web::body::BoxBody>| {
                drop(request);
                Err::<actix_web::dev::ServiceResponse, _>(ErrorNotFound("none"))
            },
        ))
        .wrap(FlipswitchMiddleware::new(provider).with_overrides(overrides()))
        .route("/", web::get().to(async || "page"));
    let app = test::init_service(app).await;
    let request = test::TestRequest::get().insert_header(("cookie", cookie(json!({"beta": true})))).to_request();
    let error = test::try_call_service(&app, request).await.err().unwrap();
    let response = error.error_response();
    assert_eq!(response.status().as_u16(), 404);
    assert_eq!(response.headers().get("cache-control").unwrap(), "private");
    assert_eq!(response.headers().get("vary").unwrap(), "Cookie");
}
