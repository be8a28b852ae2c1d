//! Anonymous visitors, who share one context, or are identified by a header or a cookie.

use flipswitch::{
    FlipswitchProvider,
    integration::{Anonymous, ScopeBuilder},
    serde_json::json,
    testing::visitor_cookie,
};
use flipswitch_actix::FlipswitchMiddleware;
use flipswitch_axum::FlipswitchLayer;
use flipswitch_local::KeyRotation;
use reqwest::Response;

use crate::support::{
    self,
    apps::{App, Framework, Setup, provider, service},
};

const NUMBER: &str = "0123456789abcdef0123456789abcdef";

/// Returns the cookie of the visitor with this number.
fn cookie_of(provider: &FlipswitchProvider) -> String {
    visitor_cookie(provider, u128::from_str_radix(NUMBER, 16).unwrap())
}

fn cookies_set(response: &Response) -> Vec<String> {
    response.headers().get_all("set-cookie").iter().map(|value| value.to_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn by_default_visitors_share_one_context() {
    for framework in Framework::ALL {
        let service = service().await;
        let provider = provider(&service);
        let app = framework.serve(provider.clone()).await;
        for value in ["one", "two"] {
            let cookie = cookie_of(&provider);
            let headers: [(&str, &[u8]); 2] = [("x-device-id", value.as_bytes()), ("cookie", cookie.as_bytes())];
            let response = app.send("/me", &headers).await;
            assert!(cookies_set(&response).is_empty(), "{framework:?}");
            assert_eq!(response.text().await.unwrap(), "nobody", "{framework:?}");
        }
        assert_eq!(support::evaluations(&service), 1, "{framework:?}: they share one answer");
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_header_identifies_visitors() {
    let longer = [b'x'; 257];
    let cases: [(&[&[u8]], &str, &str); 8] = [
        (&[b"device-7"], "", "device-7"),
        (&["gerät".as_bytes()], "", "gerät"),
        (&[&longer[..256]], "", std::str::from_utf8(&longer[..256]).unwrap()),
        (&[], "", "nobody"),
        (&[&longer], "", "nobody"),
        (&[b"\xff\xfe"], "", "nobody"),
        (&[b"device-7", b"device-8"], "", "nobody"),
        // A logged-in visitor is a user.
        (&[b"device-7"], "alice", "alice"),
    ];
    for framework in Framework::ALL {
        let service = service().await;
        let setup = Setup { anonymous: Anonymous::header("X-Device-Id").unwrap(), ..provider(&service).into() };
        let app = framework.serve(setup.clone()).await;
        for (values, user, expected) in cases {
            let mut headers: Vec<_> = values.iter().map(|value| ("x-device-id", *value)).collect();
            if !user.is_empty() {
                headers.push(("x-user", user.as_bytes()));
            }
            let response = app.send("/me", &headers).await;
            assert!(cookies_set(&response).is_empty(), "{framework:?}");
            assert_eq!(response.text().await.unwrap(), expected, "{framework:?} {values:?}");
        }
        setup.provider.shutdown().await;
    }
}

/// Starts an application that sets cookies for its visitors, with its flag service.
async fn with_cookies(framework: Framework) -> (App, Setup, flipswitch_local::LocalServer) {
    let service = service().await;
    let setup = Setup { anonymous: Anonymous::cookie().into(), ..provider(&service).into() };
    (framework.serve(setup.clone()).await, setup, service)
}

#[tokio::test]
async fn a_cookie_is_set_only_when_a_flag_is_read() {
    for framework in Framework::ALL {
        let (app, setup, service) = with_cookies(framework).await;
        for (path, cookies) in [
            ("/free", 0),
            ("/unknown", 0),
            ("/health", 0),
            ("/bare/optional", 0),
            ("/flag", 1),
            ("/typed", 1),
            ("/optional", 1),
            ("/together", 1),
            ("/single/flag", 1),
            ("/gate/requires", 1),
            ("/gate/requires-not", 1),
            ("/gated/free", 1),
        ] {
            let response = app.send(path, &[]).await;
            assert_eq!(cookies_set(&response).len(), cookies, "{framework:?} {path}");
        }
        assert_eq!(support::evaluations(&service), 1, "{framework:?}: robots without cookies share one answer");
        // Users who are logged in get no cookie, even if the application does not name them.
        for user in ["alice", "member"] {
            let response = app.send("/flag", &[("x-user", user.as_bytes())]).await;
            assert!(cookies_set(&response).is_empty(), "{framework:?} {user}");
        }
        // Attributes of a visitor's request are not an identity, and are combined with one.
        assert_eq!(cookies_set(&app.send("/flag", &[("x-plan", b"premium")]).await).len(), 1, "{framework:?}");
        let cookie = cookie_of(&setup.provider);
        let visitor = app.send("/me", &[("x-plan", b"premium"), ("cookie", cookie.as_bytes())]).await;
        assert_eq!(visitor.text().await.unwrap(), format!("anonymous-{NUMBER}, premium"), "{framework:?}");
        // A targeting key of the request takes precedence over the cookie.
        for cookie in [cookie.as_str(), "none=0"] {
            let named = app.send("/me", &[("x-plan", b"keyed"), ("cookie", cookie.as_bytes())]).await;
            assert!(cookies_set(&named).is_empty(), "{framework:?} {cookie}");
            assert_eq!(named.text().await.unwrap(), "from-the-request, keyed", "{framework:?} {cookie}");
        }
        setup.provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_guard_sets_the_cookie_and_prefetching_does_not() {
    let service = service().await;
    let anonymous = Anonymous::from(Anonymous::cookie());
    for prefetch in [true, false] {
        let setup = Setup { anonymous: anonymous.clone(), prefetch, ..provider(&service).into() };
        let app = Framework::Actix.serve(setup.clone()).await;
        assert!(cookies_set(&app.send("/free", &[]).await).is_empty(), "{prefetch}");
        assert_eq!(cookies_set(&app.send("/guarded", &[]).await).len(), 1, "{prefetch}");
        setup.provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_cookie_identifies_a_returning_visitor() {
    for framework in Framework::ALL {
        let (app, setup, _service) = with_cookies(framework).await;
        let first = app.send("/me", &[]).await;
        let cookie = cookies_set(&first).pop().unwrap();
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        assert_eq!(attributes, "Path=/; Max-Age=31536000; HttpOnly; Secure; SameSite=Lax", "{framework:?}");
        let number = &pair.strip_prefix("__Host-flipswitch-anonymous=").unwrap()[..32];
        assert_eq!(
            first.text().await.unwrap(),
            "nobody",
            "{framework:?}: the first request is evaluated without a targeting key"
        );
        for path in ["/me", "/nested/me"] {
            let again = app.send(path, &[("cookie", format!("a=b; {pair}").as_bytes())]).await;
            assert!(cookies_set(&again).is_empty(), "{framework:?}");
            assert_eq!(again.text().await.unwrap(), format!("anonymous-{number}"), "{framework:?}");
        }
        // The visitor logs in and out within the session.
        let alice = app.send("/me", &[("cookie", pair.as_bytes()), ("x-user", b"alice")]).await;
        assert_eq!(alice.text().await.unwrap(), "alice", "{framework:?}");
        let bob = app.send("/me", &[("cookie", pair.as_bytes()), ("x-user", b"bob")]).await;
        assert_eq!(bob.text().await.unwrap(), "bob", "{framework:?}");
        let visitor = app.send("/me", &[("cookie", pair.as_bytes())]).await;
        assert_eq!(visitor.text().await.unwrap(), format!("anonymous-{number}"), "{framework:?}");
        // The next visitor gets another identifier.
        assert_ne!(cookies_set(&app.send("/me", &[]).await), [cookie], "{framework:?}");
        setup.provider.shutdown().await;
    }
}

#[tokio::test]
async fn tampered_and_foreign_cookies_are_replaced() {
    let cookies = [
        "__Host-flipswitch-anonymous=alice",
        "__Host-flipswitch-anonymous=",
        "__Host-flipswitch-anonymous",
        "__Host-flipswitch-anonymous=0123456789ABCDEF0123456789ABCDEF",
        "__Host-flipswitch-anonymous=\"0123456789abcdef0123456789abcdef\"",
        "__Host-flipswitch-anonymous=0123456789abcdef0123456789abcde",
        "__Host-flipswitch-anonymous=0123456789abcdef0123456789abcdeff",
        // A cookie of an earlier release, and one with an invented authentication code.
        "__Host-flipswitch-anonymous=0123456789abcdef0123456789abcdef",
        "__Host-flipswitch-anonymous=0123456789abcdef0123456789abcdef.0123456789abcdef0123456789abcdef",
        "flipswitch-anonymous=0123456789abcdef0123456789abcdef",
        "__host-flipswitch-anonymous=0123456789abcdef0123456789abcdef",
        "\u{ff};=; ;__Host-flipswitch-anonymous=\u{ff}",
    ];
    for framework in Framework::ALL {
        let (app, setup, service) = with_cookies(framework).await;
        for cookie in cookies {
            let unread = app.send("/free", &[("cookie", cookie.as_bytes())]).await;
            assert!(cookies_set(&unread).is_empty(), "{framework:?} {cookie}: the visitor was not needed");
            let response = app.send("/me", &[("cookie", cookie.as_bytes())]).await;
            let set = cookies_set(&response).pop().unwrap_or_default();
            assert!(set.starts_with("__Host-flipswitch-anonymous="), "{framework:?} {cookie}: {set}");
            assert_eq!(response.text().await.unwrap(), "nobody", "{framework:?} {cookie}");
        }
        assert_eq!(support::evaluations(&service), 1, "{framework:?}: none of them is anybody");
        setup.provider.shutdown().await;
    }
}

#[tokio::test]
async fn invented_cookies_do_not_create_contexts() {
    let service = service().await;
    let provider = provider(&service);
    let scopes = ScopeBuilder::new(provider.clone()).with_anonymous(Anonymous::cookie());
    for number in 0..20_000_u128 {
        let made_up = number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let cookie = format!("__Host-flipswitch-anonymous={number:032x}.{made_up:032x}");
        let (mut head, ()) = http::Request::builder().header("cookie", cookie).body(()).unwrap().into_parts();
        scopes.open(&mut head).flags().await;
    }
    assert_eq!(support::evaluations(&service), 1);
    assert!(provider.stats().contexts <= 2, "there must be only the shared context and the start-up context");
    provider.shutdown().await;
}

#[tokio::test]
async fn with_a_secret_visitors_keep_their_identity_when_the_api_key_is_replaced() {
    const SECRET: &str = "a secret of the whole fleet";
    for framework in Framework::ALL {
        let service = service().await;
        let builder = |key: &str| {
            FlipswitchProvider::builder(key).base_url(service.url()).enable_realtime(false).miss_wait(support::PATIENCE)
        };
        let old = service.api_key();
        let new = service.rotate_api_key(KeyRotation::new());
        // the instance before; the instance after; whether it knows the visitor
        let rollouts = [
            (builder(&old).secret(SECRET), builder(&new).secret(SECRET), true),
            (builder(&old), builder(&new), false),
            (builder(&old), builder(&new).secret_before(old.as_str()), true),
            (builder(&old), builder(&new).secret(SECRET).secret_before(old.as_str()), true),
            (builder(&old).secret(SECRET), builder(&new).secret("another secret of the fleet"), false),
        ];
        for (at, (before, after, is_kept)) in rollouts.into_iter().enumerate() {
            let (before, after) = (before.build().unwrap(), after.build().unwrap());
            let cookie = cookie_of(&before);
            let setup = Setup { anonymous: Anonymous::cookie().into(), ..after.clone().into() };
            let app = framework.serve(setup).await;
            let response = app.send("/me", &[("cookie", cookie.as_bytes())]).await;
            assert_eq!(cookies_set(&response).is_empty(), is_kept, "{framework:?} {at}");
            let expected = if is_kept { format!("anonymous-{NUMBER}") } else { "nobody".to_owned() };
            assert_eq!(response.text().await.unwrap(), expected, "{framework:?} {at}");
            // A key that is set while the process runs has no effect on cookies.
            after.set_api_key(new.clone()).unwrap();
            let own = cookie_of(&after);
            let response = app.send("/me", &[("cookie", own.as_bytes())]).await;
            assert_eq!(response.text().await.unwrap(), format!("anonymous-{NUMBER}"), "{framework:?} {at}");
            after.shutdown().await;
        }
    }
}

#[tokio::test]
async fn a_response_that_shared_caches_may_store_sets_no_cookie() {
    for framework in Framework::ALL {
        let (app, setup, _service) = with_cookies(framework).await;
        for (path, cookies) in [("/public", 0), ("/unchanged", 0), ("/private", 1), ("/flag", 1)] {
            assert_eq!(cookies_set(&app.send(path, &[]).await).len(), cookies, "{framework:?} {path}");
        }
        // If the application does not set `Cache-Control`, a response with a cookie is private.
        let cache_control = async |headers| app.send("/flag", headers).await.headers().get("cache-control").cloned();
        assert_eq!(cache_control(&[]).await.unwrap(), "private", "{framework:?}");
        assert_eq!(cache_control(&[("x-user", b"alice")]).await, None, "{framework:?}: no cookie, nothing to add");
        // A visitor who has the cookie also gets their flags there.
        let cookie = cookie_of(&setup.provider);
        assert!(cookies_set(&app.send("/public", &[("cookie", cookie.as_bytes())]).await).is_empty(), "{framework:?}");
        setup.provider.shutdown().await;
    }
}

#[tokio::test]
async fn without_consent_there_is_no_cookie() {
    for framework in Framework::ALL {
        let service = service().await;
        let cookie = Anonymous::cookie().consent(|request| {
            request
                .header_values("cookie")
                .flat_map(|line| line.split(|byte| *byte == b';'))
                .any(|cookie| cookie.trim_ascii() == b"consent=yes")
        });
        let setup = Setup { anonymous: cookie.build().unwrap(), ..provider(&service).into() };
        let app = framework.serve(setup.clone()).await;
        let known = cookie_of(&setup.provider);
        let cases = [
            (String::new(), "nobody".to_owned(), 0),
            (known.clone(), "nobody".to_owned(), 0),
            ("consent=yes".to_owned(), "nobody".to_owned(), 1),
            (format!("consent=yes; {known}"), format!("anonymous-{NUMBER}"), 0),
        ];
        for (cookies, expected, set) in cases {
            let response = app.send("/me", &[("cookie", cookies.as_bytes())]).await;
            assert_eq!(cookies_set(&response).len(), set, "{framework:?} {cookies}");
            assert_eq!(response.text().await.unwrap(), expected, "{framework:?} {cookies}");
        }
        setup.provider.shutdown().await;
    }
}

#[tokio::test]
async fn the_applications_cookies_are_kept() {
    for framework in Framework::ALL {
        let (app, setup, _service) = with_cookies(framework).await;
        let cookies = cookies_set(&app.send("/cookie", &[]).await);
        assert_eq!(cookies.len(), 2, "{framework:?} {cookies:?}");
        assert!(cookies.contains(&"own=1".to_owned()), "{framework:?} {cookies:?}");
        setup.provider.shutdown().await;
    }
}

#[tokio::test]
async fn without_https_the_cookie_has_no_secure_attribute_and_no_prefix() {
    for framework in Framework::ALL {
        let service = service().await;
        let setup = Setup { anonymous: Anonymous::cookie().secure(false).into(), ..provider(&service).into() };
        let app = framework.serve(setup.clone()).await;
        let cookie = cookies_set(&app.send("/me", &[]).await).pop().unwrap();
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        assert_eq!(attributes, "Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax", "{framework:?}");
        let number = &pair.strip_prefix("flipswitch-anonymous=").unwrap()[..32];
        let again = app.send("/me", &[("cookie", pair.as_bytes())]).await;
        assert_eq!(again.text().await.unwrap(), format!("anonymous-{number}"), "{framework:?}");
        setup.provider.shutdown().await;
    }
}

#[actix_web::test]
async fn two_layers_set_one_cookie() {
    use tower::ServiceExt;

    let provider = FlipswitchProvider::in_memory(json!({"on": true}));
    let read = async |flags: flipswitch_axum::Flags| flags.bool("on", false).to_string();
    let layer = FlipswitchLayer::new(provider.clone()).with_anonymous(Anonymous::cookie());
    let gate = flipswitch_axum::FlagGate::enabled("on");
    let app = axum::Router::new().route("/", axum::routing::get(read)).layer(layer.clone()).layer(gate).layer(layer);
    let response = app.oneshot(http::Request::new(axum::body::Body::empty())).await.unwrap();
    assert_eq!(response.headers().get_all("set-cookie").iter().count(), 1);

    let read = async |flags: flipswitch_actix::Flags| flags.bool("on", false).to_string();
    let middleware = FlipswitchMiddleware::new(provider).with_anonymous(Anonymous::cookie());
    let gate = flipswitch_actix::FlagGate::enabled("on");
    let app = actix_web::App::new()
        .route("/", actix_web::web::get().to(read))
        .wrap(middleware.clone())
        .wrap(gate)
        .wrap(middleware);
    let app = actix_web::test::init_service(app).await;
    let response = actix_web::test::call_service(&app, actix_web::test::TestRequest::get().to_request()).await;
    assert_eq!(response.headers().get_all("set-cookie").count(), 1);
}
