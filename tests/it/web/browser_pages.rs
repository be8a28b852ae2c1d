//! Pages with the official OpenFeature web provider in Chromium, which request flags from the application.

use std::time::Duration;

use flipswitch::{
    FlipswitchProvider, SignedOverrides,
    serde_json::{Value, json},
};
use flipswitch_local::{Endpoint, Fault, LocalServer};
use reqwest::Method;

use crate::support::{
    apps::{App, Framework, Setup, browsers::Browsers, provider, service},
    browser::Browser,
    events::connected,
    eventually,
    nginx::Nginx,
    page::{EVENTS, ask, send},
};

/// An application with a page, and a browser.
struct Site {
    service: LocalServer,
    provider: FlipswitchProvider,
    app: App,
    browser: Browser,
}

impl Site {
    async fn start(framework: Framework) -> Self {
        let service = service().await;
        let provider = connected(&service).await;
        let app = framework.serve(provider.clone()).await;
        Self { service, provider, app, browser: Browser::start().await }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.app.url)
    }

    async fn log_in(&self, user: &str) {
        log_in(&self.browser, &self.app.url, user).await;
    }

    async fn open(&self, path: &str) {
        open(&self.browser, &self.url(path)).await;
    }

    async fn look(&self, expression: &str) -> Value {
        self.browser.look(expression, Value::Null).await
    }
}

/// Logs a user in with a cookie.
async fn log_in(browser: &Browser, url: &str, user: &str) {
    browser.open(&format!("{url}/free")).await;
    browser.look("document.cookie = `user=${it}; path=/`", user).await;
}

/// Opens a page, and waits until its script has run.
async fn open(browser: &Browser, url: &str) {
    browser.open(url).await;
    browser.until("document.body.dataset.ready === 'yes'", Value::Null).await;
}

/// Returns what the server and the page show.
async fn shown(browser: &Browser) -> [Value; 2] {
    let text = async |id: &str| browser.look("document.getElementById(it).textContent", id).await;
    [text("server").await, text("page").await]
}

#[tokio::test]
async fn a_page_starts_with_its_values_and_without_a_request() {
    for framework in Framework::ALL {
        let site = Site::start(framework).await;
        site.log_in("alice").await;
        // The page has no icon.
        site.browser.complaints().await;
        site.open("/page").await;
        assert_eq!(shown(&site.browser).await, ["alice", "alice #000"], "{framework:?}");
        assert_eq!(site.look("started.requests").await, 0, "{framework:?}");
        // The stream causes one request, and no change was missed.
        site.browser.until("requests.length >= 1", Value::Null).await;
        assert_eq!(site.look("requests[0]").await, 304, "{framework:?}: the tag is that of the answer");
        assert_eq!(site.look("seen").await, json!(["alice"]), "{framework:?}: no flicker");
        assert_eq!(site.browser.complaints().await, [] as [String; 0], "{framework:?}");

        // Without values in the page, there is one request.
        site.open("/page?bare").await;
        assert_eq!(shown(&site.browser).await, ["alice", "alice #000"], "{framework:?}");
        assert_eq!(site.look("started.requests").await, 1, "{framework:?}");
        site.provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_change_reaches_all_tabs_of_a_browser() {
    for framework in Framework::ALL {
        let site = Site::start(framework).await;
        site.log_in("alice").await;
        site.open("/page").await;
        let first = site.browser.open_beside(&site.url("/page?bare")).await;
        for theme in ["#111", "#222"] {
            site.service.set_flag("theme", theme);
            site.browser.until("document.getElementById('page').textContent === it", format!("alice {theme}")).await;
        }
        site.browser.switch_to(first).await;
        site.browser.until("document.getElementById('page').textContent === 'alice #222'", Value::Null).await;
        assert_eq!(site.look("client.getBooleanDetails('staff', false).errorCode").await, "FLAG_NOT_FOUND");
        site.provider.shutdown().await;
    }
}

#[tokio::test]
async fn no_page_shows_the_values_of_another_user() {
    for framework in Framework::ALL {
        let site = Site::start(framework).await;
        let stored = async || site.look("Object.values(localStorage)").await.to_string();
        site.log_in("alice").await;
        site.open("/page").await;
        site.open("/page?bare").await;
        assert_eq!(stored().await, "[]", "{framework:?}: the script stores nothing");
        site.open("/page?own").await;
        assert!(stored().await.contains("alice"), "{framework:?}: the provider by itself does");

        for path in ["/page", "/page?bare", "/page?own", "/page?own"] {
            site.log_in("bob").await;
            site.open(path).await;
            site.browser.until("document.getElementById('page').textContent === 'bob #fff'", Value::Null).await;
            assert_eq!(site.look("seen").await, json!(["bob"]), "{framework:?} {path}");
        }
        // Values that are stored for bob are not shown to the next user, even if the application has no flags.
        site.service.faults().add(Fault::on(Endpoint::Bulk).status(500)).unwrap();
        site.log_in("carol").await;
        for path in ["/page", "/page?bare", "/page?own"] {
            site.open(path).await;
            assert_eq!(shown(&site.browser).await, ["default", "default default"], "{framework:?} {path}");
            assert_eq!(site.look("seen").await, json!(["default"]), "{framework:?} {path}");
        }
        site.provider.shutdown().await;
    }
}

#[tokio::test]
async fn an_open_page_shows_the_flags_of_the_user_who_is_logged_in() {
    for framework in Framework::ALL {
        for is_told in [true, false] {
            let site = Site::start(framework).await;
            site.log_in("alice").await;
            site.open("/page").await;
            site.browser.until("requests.length >= 1", Value::Null).await;
            // The user changes by a request of the page, or in another tab.
            site.look("document.cookie = 'user=bob; path=/'").await;
            match is_told {
                true => drop(site.look("refresh()").await),
                false => site.service.set_flag("plain", "a change that asks all pages"),
            }
            site.browser.until("document.getElementById('page').textContent === 'bob #fff'", Value::Null).await;
            assert_eq!(site.look("seen").await, json!(["alice", "bob"]), "{framework:?} {is_told}");
            site.look("document.cookie = 'user=alice; path=/'").await;
            site.open("/page").await;
            assert_eq!(site.look("seen").await, json!(["alice"]), "{framework:?} {is_told}");
            site.provider.shutdown().await;
        }
    }
}

#[tokio::test]
async fn a_page_shows_no_flags_of_the_previous_user_while_the_new_user_has_none() {
    for framework in Framework::ALL {
        let site = Site::start(framework).await;
        site.log_in("alice").await;
        site.open("/page").await;
        site.browser.until("requests.length >= 1", Value::Null).await;
        site.service.faults().add(Fault::on(Endpoint::Bulk).status(500).for_targeting_key("bob")).unwrap();
        site.look("document.cookie = 'user=bob; path=/'").await;
        site.look("refresh()").await;
        site.browser.until("document.getElementById('page').textContent === 'default default'", Value::Null).await;
        site.service.faults().clear();
        site.browser.until("document.getElementById('page').textContent === 'bob #fff'", Value::Null).await;
        assert_eq!(site.look("seen").await, json!(["alice", "default", "bob"]), "{framework:?}");
        site.provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_hidden_tab_closes_its_stream_and_refetches_when_it_becomes_visible() {
    for framework in Framework::ALL {
        let service = service().await;
        let provider = connected(&service).await;
        let browsers =
            Browsers { inactivity: Duration::from_secs(1), max_streams_per_context: 1, ..Browsers::default() };
        let app = framework.serve(Setup { browsers, ..provider.clone().into() }).await;
        let browser = Browser::start().await;
        log_in(&browser, &app.url, "alice").await;
        open(&browser, &format!("{}/page", app.url)).await;
        // With a limit of one stream, the response advertises none while the page has it.
        let is_open = async || ask(&app, "alice", &[]).await.json().get("eventStreams").is_none();
        eventually(async || is_open().await).await;
        let set_visibility = async |state: &str| {
            let script = "Object.defineProperty(document, 'visibilityState', {value: it, configurable: true}), \
                          document.dispatchEvent(new Event('visibilitychange'))";
            browser.look(script, state).await;
        };
        set_visibility("hidden").await;
        eventually(async || !is_open().await).await;
        service.set_flag("theme", "#111");
        let asked = browser.look("requests.length", Value::Null).await;
        set_visibility("visible").await;
        browser.until("document.getElementById('page').textContent === 'alice #111'", Value::Null).await;
        assert!(browser.look("requests.length", Value::Null).await.as_u64() > asked.as_u64(), "{framework:?}");
        service.set_flag("theme", "#222");
        browser.until("document.getElementById('page').textContent === 'alice #222'", Value::Null).await;
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_page_recovers_after_its_application_restarts() {
    for framework in Framework::ALL {
        let Site { service, provider, app, browser } = Site::start(framework).await;
        log_in(&browser, &app.url, "alice").await;
        open(&browser, &format!("{}/page", app.url)).await;
        browser.until("requests.length >= 1", Value::Null).await;
        let address = app.url.trim_start_matches("http://").parse().unwrap();
        provider.shutdown().await;
        drop(app);
        // The application is down at this time.
        service.set_flag("theme", "#111");
        assert_eq!(shown(&browser).await[1], "alice #000", "{framework:?}");
        let provider = connected(&service).await;
        let _app = framework.serve_at(provider.clone(), address).await;
        browser.until("document.getElementById('page').textContent === 'alice #111'", Value::Null).await;
        service.set_flag("theme", "#222");
        browser.until("document.getElementById('page').textContent === 'alice #222'", Value::Null).await;
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_page_behind_two_instances_gets_a_change_that_only_one_has_received() {
    for [hearing, deaf] in [[Framework::Axum, Framework::Actix], [Framework::Actix, Framework::Axum]] {
        let service = service().await;
        let hears = hearing.serve(connected(&service).await).await;
        // The page has no stream, and does not poll within the time limit.
        let does_not = deaf.serve(provider(&service)).await;
        let nginx = Nginx::start(|_, port| {
            format!(
                "server {{
                    listen 127.0.0.1:{port};
                    location /flags{EVENTS} {{ proxy_pass {}; proxy_http_version 1.1; }}
                    location / {{ proxy_pass {}; }}
                }}",
                hears.url, does_not.url
            )
        })
        .await;
        let (browser, url) = (Browser::start().await, format!("http://127.0.0.1:{}", nginx.port));
        log_in(&browser, &url, "alice").await;
        open(&browser, &format!("{url}/page")).await;
        browser.until("requests.length >= 1", Value::Null).await;
        for theme in ["#111", "#222"] {
            service.set_flag("theme", theme);
            browser.until("document.getElementById('page').textContent === it", format!("alice {theme}")).await;
        }
    }
}

#[tokio::test]
async fn a_page_keeps_its_values_while_the_service_is_unavailable() {
    for framework in Framework::ALL {
        let Site { service, provider, app, browser } = Site::start(framework).await;
        log_in(&browser, &app.url, "alice").await;
        let url = |path: &str| format!("{}{path}", app.url);
        open(&browser, &url("/page")).await;
        service.shutdown().await;
        for path in ["/page", "/page?bare"] {
            open(&browser, &url(path)).await;
            assert_eq!(shown(&browser).await, ["alice", "alice #000"], "{framework:?} {path}");
        }
        let answer = send(&app, Method::POST, "/flags/ofrep/v1/evaluate/flags", &[("x-user", "alice")], "{}").await;
        assert_eq!(answer.status, 200, "{framework:?}");
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_page_that_found_no_flags_gets_them_later() {
    for framework in Framework::ALL {
        let site = Site::start(framework).await;
        site.service.faults().add(Fault::on(Endpoint::Bulk).status(500)).unwrap();
        site.log_in("alice").await;
        site.open("/page?bare").await;
        assert_eq!(shown(&site.browser).await, ["default", "default default"], "{framework:?}");
        site.service.faults().clear();
        site.browser.until("document.getElementById('page').textContent === 'alice #000'", Value::Null).await;
        site.provider.shutdown().await;
    }
}

#[tokio::test]
async fn overrides_apply_to_the_server_and_to_the_page() {
    for framework in Framework::ALL {
        let service = service().await;
        let provider = connected(&service).await;
        let overrides = SignedOverrides::new("the key of overrides in these tests").allow(["whoami"]);
        let link = overrides.mint(json!({"whoami": "overridden"})).link().unwrap();
        let app = framework.serve(Setup { overrides: Some(overrides), ..provider.clone().into() }).await;
        let browser = Browser::start().await;
        let url = app.url.replace("127.0.0.1", "localhost");
        log_in(&browser, &url, "alice").await;
        open(&browser, &format!("{url}/page?{link}")).await;
        for path in ["/page", "/page?bare"] {
            open(&browser, &format!("{url}{path}")).await;
            assert_eq!(shown(&browser).await, ["overridden", "overridden #000"], "{framework:?} {path}");
            assert_eq!(browser.look("seen", Value::Null).await, json!(["overridden"]), "{framework:?} {path}");
        }
        open(&browser, &format!("{url}/page?flipswitch=off")).await;
        assert_eq!(shown(&browser).await, ["alice", "alice #000"], "{framework:?}");
        provider.shutdown().await;
    }
}
