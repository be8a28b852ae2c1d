//! Visitors in Chromium: who keeps their cookie, and who gets none.

use std::{net::TcpListener, process::Stdio};

use flipswitch::{
    FlipswitchProvider,
    integration::{Anonymous, AnonymousCookie},
    serde_json::Value,
};
use flipswitch_local::LocalServer;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::support::{
    apps::{App, Framework, Setup, provider, service},
    browser::Browser,
    eventually,
};

/// An application whose visitors have a cookie.
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

    /// Returns the URL of the page that says whose flags it has, on a host.
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
async fn a_visitor_keeps_their_number_over_reloads() {
    for framework in Framework::ALL {
        let site = Site::start(framework, Anonymous::cookie()).await;
        let [browser, other] = [Browser::start().await, Browser::start().await];
        // Browsers accept a cookie that is `Secure` from localhost over plain HTTP.
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
        // Consent that is withdrawn counts at once.
        browser.look("document.cookie = 'consent=; Max-Age=0'", Value::Null).await;
        assert_eq!(read(&browser, &me).await, "nobody", "{framework:?}");
        site.provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_shared_cache_hands_no_visitor_the_cookie_of_another() {
    // By default, nginx stores no response that sets a cookie. It can be told to.
    for ignored in ["", "proxy_ignore_headers Set-Cookie;"] {
        for framework in Framework::ALL {
            let site = Site::start(framework, Anonymous::cookie()).await;
            let nginx = Nginx::start(&site.app.url, ignored).await;
            let [first, second] = [Browser::start().await, Browser::start().await];
            let page = |path: &str| format!("http://localhost:{}{path}", nginx.port);
            for path in ["/public", "/private"] {
                read(&first, &page(path)).await;
                read(&second, &page(path)).await;
            }
            // `/private` has set each visitor's cookie, and nginx has stored `/public` without one.
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

/// nginx as a shared cache before an application.
struct Nginx {
    port: u16,
    _process: Child,
    _folder: TempDir,
}

impl Nginx {
    async fn start(application: &str, directives: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display().to_string();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "daemon off; worker_processes 1; pid {at}/pid; error_log {at}/error.log;
            events {{}}
            http {{
                access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;
                uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
                proxy_cache_path {at}/cache keys_zone=pages:1m;
                server {{
                    listen 127.0.0.1:{port};
                    location /nested {{ proxy_pass {application}; }}
                    location / {{
                        proxy_pass {application}; proxy_cache pages; {directives}
                        add_header X-Cache $upstream_cache_status;
                    }}
                }}
            }}"
        );
        let path = folder.path().join("nginx.conf");
        std::fs::write(&path, config).unwrap();
        let mut process = Command::new("nginx")
            .args(["-e", &format!("{at}/start.log"), "-p", &at, "-c"])
            .arg(path)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("nginx is installed");
        eventually(async || {
            assert!(process.try_wait().unwrap().is_none(), "nginx has ended");
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        Self { port, _process: process, _folder: folder }
    }
}
