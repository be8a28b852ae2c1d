//! Visitors and overrides in Chromium: cookies, caches and links.

use flipswitch::{
    FlipswitchProvider, SignedOverrides,
    integration::{Anonymous, AnonymousCookie},
    serde_json::{Value, json},
};
use flipswitch_local::LocalServer;

use crate::support::{
    apps::{App, Framework, Setup, provider, service},
    browser::Browser,
    nginx::Nginx,
};

/// An application that sets cookies for visitors.
struct Site {
    app: App,
    provider: FlipswitchProvider,
    _service: LocalServer,
}

impl Site {
    async fn start(framework: Framework, cookie: AnonymousCookie) -> Self {
        let service = service().await;
        let setup = Setup { anonymous: cookie.build().unwrap(), ..provider(&service).into() };
        Self { app: framework.serve(setup.clone()).await, provider: setup.provider, _service: service }
    }

    /// Returns the URL, on a host, of the page that shows the user of its flags.
    fn me(&self, host: &str) -> String {
        format!("{}/me", self.app.url.replace("127.0.0.1", host))
    }
}

/// Opens a page, and returns its text.
async fn read(browser: &Browser, url: &str) -> String {
    browser.open(url).await;
    browser.look("document.body.innerText.trim()", Value::Null).await.as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_visitor_keeps_their_identifier_across_reloads() {
    for framework in Framework::ALL {
        let site = Site::start(framework, Anonymous::cookie()).await;
        let [browser, other] = [Browser::start().await, Browser::start().await];
        // Browsers accept a `Secure` cookie from localhost over plain HTTP.
        let me = site.me("localhost");
        assert_eq!(read(&browser, &me).await, "nobody", "{framework:?}: the request that gets the cookie");
        let visitor = read(&browser, &me).await;
        assert!(visitor.starts_with("anonymous-"), "{framework:?}: {visitor}");
        assert_eq!(read(&browser, &me).await, visitor, "{framework:?}");
        assert_eq!(browser.look("document.cookie", Value::Null).await, "", "{framework:?}: no script reads it");
        read(&other, &me).await;
        assert_ne!(read(&other, &me).await, visitor, "{framework:?}: another visitor");
        site.provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_visitor_is_the_same_on_a_subdomain_if_the_cookie_has_the_domain() {
    let cookie = || Anonymous::cookie().secure(false);
    for framework in Framework::ALL {
        for (cookie, is_shared) in [(cookie().domain("shop.test"), true), (cookie(), false)] {
            let site = Site::start(framework, cookie).await;
            let browser = Browser::start().await;
            let [www, api] = ["www.shop.test", "api.shop.test"].map(|host| site.me(host));
            read(&browser, &www).await;
            let visitor = read(&browser, &www).await;
            assert!(visitor.starts_with("anonymous-"), "{framework:?}: {visitor}");
            let there = read(&browser, &api).await;
            assert_eq!(there, if is_shared { &*visitor } else { "nobody" }, "{framework:?}");
            site.provider.shutdown().await;
        }
    }
}

#[tokio::test]
async fn a_visitor_has_no_cookie_before_consent() {
    for framework in Framework::ALL {
        let cookie = Anonymous::cookie().consent(|request| {
            let mut cookies = request.header_values("cookie").flat_map(|line| line.split(|byte| *byte == b';'));
            cookies.any(|cookie| cookie.trim_ascii() == b"consent=yes")
        });
        let site = Site::start(framework, cookie).await;
        let browser = Browser::start().await;
        let me = site.me("localhost");
        for _ in 0..3 {
            assert_eq!(read(&browser, &me).await, "nobody", "{framework:?}");
        }
        browser.look("document.cookie = 'consent=yes'", Value::Null).await;
        assert_eq!(read(&browser, &me).await, "nobody", "{framework:?}: the request that gets the cookie");
        assert!(read(&browser, &me).await.starts_with("anonymous-"), "{framework:?}");
        // Withdrawn consent takes effect immediately.
        browser.look("document.cookie = 'consent=; Max-Age=0'", Value::Null).await;
        assert_eq!(read(&browser, &me).await, "nobody", "{framework:?}");
        site.provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_shared_cache_does_not_give_a_visitor_the_cookie_of_another() {
    // By default, nginx does not store responses that set a cookie. Here, it is configured to do so.
    for ignored in ["", "proxy_ignore_headers Set-Cookie;"] {
        for framework in Framework::ALL {
            let site = Site::start(framework, Anonymous::cookie()).await;
            let nginx = shared_cache(&site.app.url, ignored).await;
            let [first, second] = [Browser::start().await, Browser::start().await];
            let page = |path: &str| format!("http://localhost:{}{path}", nginx.port);
            for path in ["/public", "/private"] {
                read(&first, &page(path)).await;
                read(&second, &page(path)).await;
            }
            // `/private` has set the cookie of each visitor, and nginx has stored `/public` without a cookie.
            let visitors = [read(&first, &page("/nested/me")).await, read(&second, &page("/nested/me")).await];
            assert!(visitors.iter().all(|visitor| visitor.starts_with("anonymous-")), "{framework:?}: {visitors:?}");
            assert_ne!(visitors[0], visitors[1], "{framework:?} {ignored}");
            let cached = reqwest::get(page("/public")).await.unwrap();
            assert_eq!(cached.headers()["x-cache"], "HIT", "{framework:?}: it is a cache");
            assert!(!cached.headers().contains_key("set-cookie"), "{framework:?}");
            site.provider.shutdown().await;
        }
    }
}

/// Returns overrides, and the query of a link that overrides a flag of the application.
fn overrides() -> (SignedOverrides, String) {
    let overrides = SignedOverrides::new("the key of overrides in these tests").allow(["whoami"]);
    let link = overrides.mint(json!({"whoami": "overridden"})).link().unwrap();
    (overrides, link)
}

#[tokio::test]
async fn a_link_overrides_a_flag_in_one_browser() {
    for framework in Framework::ALL {
        let (overrides, link) = overrides();
        let service = service().await;
        let setup = Setup { overrides: Some(overrides), ..provider(&service).into() };
        let app = framework.serve(setup.clone()).await;
        let [browser, other] = [Browser::start().await, Browser::start().await];
        let page = |path: &str| format!("{}{path}", app.url.replace("127.0.0.1", "localhost"));
        assert_eq!(read(&browser, &page("/flag?a=1")).await, "nobody nowhere", "{framework:?}");
        // The browser stores this page, and must not show it after the link.
        assert_eq!(read(&browser, &page("/public-flag")).await, "nobody nowhere", "{framework:?}");
        assert_eq!(read(&browser, &page(&format!("/public-flag?{link}"))).await, "overridden nowhere", "{framework:?}");
        assert_eq!(read(&browser, &page(&format!("/flag?a=1&{link}"))).await, "overridden nowhere", "{framework:?}");
        // The URL no longer has a token, and scripts cannot read the cookie.
        let look = async |script: &str| browser.look(script, Value::Null).await;
        assert_eq!(look("location.pathname + location.search").await, "/flag?a=1", "{framework:?}");
        assert_eq!(look("document.cookie").await, "", "{framework:?}");
        assert_eq!(read(&browser, &page("/nested/flag")).await, "overridden nowhere", "{framework:?}");
        assert_eq!(read(&browser, &page("/overridden")).await, "whoami", "{framework:?}: a page can say so");
        assert_eq!(read(&other, &page("/flag")).await, "nobody nowhere", "{framework:?}");
        // An image on a page of another site does not remove the overrides.
        browser.open(&page("/free")).await;
        let image = page("/flag?flipswitch=off");
        look(&format!(
            "new Promise(done => {{ const i = new Image(); i.onerror = done; i.src = '{image}'; }}).then(() => 1)"
        ))
        .await;
        assert_eq!(read(&browser, &page("/flag")).await, "overridden nowhere", "{framework:?}");
        assert_eq!(read(&browser, &page("/flag?flipswitch=off")).await, "nobody nowhere", "{framework:?}");
        assert_eq!(look("location.pathname + location.search").await, "/flag", "{framework:?}");
        assert_eq!(read(&browser, &page("/overridden")).await, "", "{framework:?}");
        setup.provider.shutdown().await;
    }
}

/// The page of a tester must not be stored by a shared cache, regardless of the application's headers.
#[tokio::test]
async fn a_shared_cache_stores_no_page_with_overrides() {
    for framework in Framework::ALL {
        let (overrides, link) = overrides();
        let service = service().await;
        let setup = Setup { overrides: Some(overrides), ..provider(&service).into() };
        let app = framework.serve(setup.clone()).await;
        let nginx = shared_cache(&app.url, "").await;
        let page = |path: &str| format!("http://localhost:{}{path}", nginx.port);
        let [tester, other] = [Browser::start().await, Browser::start().await];
        read(&tester, &page(&format!("/flag?{link}"))).await;
        for _ in 0..2 {
            assert_eq!(read(&tester, &page("/public-flag")).await, "overridden nowhere", "{framework:?}");
        }
        assert_eq!(read(&other, &page("/public-flag")).await, "nobody nowhere", "{framework:?}");
        let cached = reqwest::get(page("/public-flag")).await.unwrap();
        assert_eq!(cached.headers()["x-cache"], "HIT", "{framework:?}: it is a cache");
        assert_eq!(cached.text().await.unwrap(), "nobody nowhere", "{framework:?}");
        setup.provider.shutdown().await;
    }
}

/// Starts nginx as a shared cache in front of an application.
async fn shared_cache(application: &str, directives: &str) -> Nginx {
    Nginx::start(|folder, port| {
        format!(
            "proxy_cache_path {folder}/cache keys_zone=pages:1m;
            server {{
                listen 127.0.0.1:{port};
                location /nested {{ proxy_pass {application}; }}
                location / {{
                    proxy_pass {application}; proxy_cache pages; {directives}
                    add_header X-Cache $upstream_cache_status;
                }}
            }}"
        )
    })
    .await
}
