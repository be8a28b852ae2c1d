//! Gates: when they are open, and how they respond when they are closed.

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Method, Request, StatusCode, header::CACHE_CONTROL},
    routing::get,
};
use flipswitch::{
    FlipswitchProvider,
    integration::Anonymous,
    serde_json::{Value, json},
    testing::TestFlags,
};
use flipswitch_axum::{FlagGate, FlipswitchLayer};
use tower::{Layer, ServiceExt};

use crate::support::{
    self,
    apps::{Framework, Setup, provider, service},
    in_time,
};

#[tokio::test]
async fn an_attribute_that_cannot_be_sent_does_not_open_a_gate() {
    for framework in Framework::ALL {
        let service = service().await;
        let provider = provider(&service);
        let app = framework.serve(provider.clone()).await;
        for plan in ["nan", "inf", "long", "key"] {
            let closed = app.get("/gate/requires-not", "alice", plan).await;
            assert_eq!(closed, (404, String::new()), "{framework:?} {plan}");
            assert_eq!(app.get("/gate/requires", "alice", plan).await.0, 200, "{framework:?} {plan}");
            assert_eq!(app.get("/me", "alice", plan).await, (200, format!("alice, {plan}")), "{framework:?}");
            let request = service.requests().pop().unwrap();
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            assert_eq!(
                body["context"],
                json!({"targetingKey": "alice", "origin": "user", "plan": plan}),
                "{framework:?}"
            );
        }
        assert_eq!(provider.stats().attributes_left_out, 12, "each request must count one attribute");
        // Without a user, the attribute does not name a user.
        assert_eq!(app.get("/me", "", "key").await, (200, "nobody, key".to_owned()), "{framework:?}");
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn caches_do_not_store_the_response_of_a_closed_gate() {
    for framework in Framework::ALL {
        let service = service().await;
        let provider = provider(&service);
        let app = framework.serve(provider.clone()).await;
        for (path, expected) in [("requires", Some("no-store")), ("fallback", None), ("response", None)] {
            let response = app.send(&format!("/gate/{path}"), &[("x-user", b"bob")]).await;
            let found = response.headers().get("cache-control").map(|value| value.to_str().unwrap());
            assert_eq!(found, expected, "{framework:?} {path}: another response is the application's");
        }
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn gates_refuse_preflights_without_reading_flags() {
    let preflight = [("origin", "https://other.example"), ("access-control-request-method", "PUT")];
    for framework in Framework::ALL {
        for prefetch in [false, true] {
            let service = service().await;
            // The flags are on, so the gates are open for all users.
            service.set_flag("beta", true);
            let anonymous = Anonymous::cookie().into();
            let setup = Setup { prefetch, anonymous, ..provider(&service).into() };
            let app = framework.serve(setup.clone()).await;
            let options = async |path: &str, headers: &[(&str, &str)]| {
                let mut request = app.client.request(Method::OPTIONS, format!("{}{path}", app.url));
                for (name, value) in headers {
                    request = request.header(*name, *value);
                }
                in_time(request.send()).await.unwrap()
            };
            for path in ["/gate/requires", "/gate/any"] {
                let response = options(path, &preflight).await;
                assert_eq!(response.status(), 404, "{framework:?} {path}");
                assert!(!response.headers().contains_key("set-cookie"), "{framework:?} {path}");
            }
            if matches!(framework, Framework::Actix) {
                // A guard has the default of its flag.
                let response = options("/guarded-any", &preflight).await;
                assert!(!response.headers().contains_key("set-cookie"));
                assert_eq!(in_time(response.text()).await.unwrap(), "old");
            }
            assert_eq!(support::evaluations(&service), 0, "{framework:?}");
            // Any other request passes, including one that has only one header of a preflight.
            for headers in [&[][..], &preflight[..1], &preflight[1..]] {
                assert_eq!(options("/gate/any", headers).await.status(), 200, "{framework:?} {headers:?}");
            }
            setup.provider.shutdown().await;
        }
    }
}

#[tokio::test]
async fn gates_open_when_their_rule_matches() {
    // path; for alice, for bob
    let gates = [
        ("requires", true, false),
        ("requires-not", false, true),
        ("typed", true, false),
        ("typed-not", false, true),
        // The flag is unknown: by key it is off, and a declared flag has its default.
        ("missing", false, false),
        ("missing-not", true, true),
        ("missing-typed", true, true),
        ("missing-typed-not", false, false),
        // A flag that is not a boolean is off.
        ("other-type", false, false),
        ("other-type-not", true, true),
        ("variant", true, false),
        ("variant-typed", true, false),
        ("variant-missing", false, false),
        ("variant-none", false, false),
        ("when", true, false),
        ("when-not", false, false),
        ("either", true, true),
        // The flags are known, so the rule is used.
        ("unknown-closed", false, true),
        ("unknown-open", true, false),
    ];
    for framework in Framework::ALL {
        let service = service().await;
        let provider = provider(&service);
        let app = framework.serve(provider.clone()).await;
        for (path, alice, bob) in gates {
            for (user, open) in [("alice", alice), ("bob", bob)] {
                let expected = if open { (200, "open".to_owned()) } else { (404, String::new()) };
                let answer = app.get(&format!("/gate/{path}"), user, "").await;
                assert_eq!(answer, expected, "{framework:?} {path} {user}");
            }
        }
        assert_eq!(support::evaluations(&service), 2, "{framework:?}: one for each user");
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn with_the_service_down_gates_use_the_defaults_of_their_flags() {
    for framework in Framework::ALL {
        let provider = support::provider_of_nothing();
        let app = framework.serve(provider.clone()).await;
        let gates = [
            ("requires", 404),
            ("requires-not", 200),
            ("typed", 404),
            ("missing-typed", 200),
            ("missing-typed-not", 404),
            ("variant", 404),
            ("when", 404),
            ("unknown-closed", 404),
            ("unknown-open", 200),
        ];
        for (path, status) in gates {
            assert_eq!(app.get(&format!("/gate/{path}"), "alice", "").await.0, status, "{framework:?} {path}");
        }
        provider.shutdown().await;
        for (path, status) in gates {
            assert_eq!(app.get(&format!("/gate/{path}"), "alice", "").await.0, status, "{framework:?} {path} after");
        }
    }
}

#[tokio::test]
async fn a_closed_gate_responds_as_configured() {
    for framework in Framework::ALL {
        let service = service().await;
        let provider = provider(&service);
        let app = framework.serve(provider.clone()).await;
        for (path, status, body) in
            [("/gate/requires", 404, ""), ("/gate/fallback", 403, ""), ("/gate/response", 410, "not for you")]
        {
            assert_eq!(app.get(path, "bob", "").await, (status, body.to_owned()), "{framework:?} {path}");
            assert_eq!(app.get(path, "alice", "").await, (200, "open".to_owned()), "{framework:?} {path}");
        }
        let closed = app.send("/gate/response", &[]).await;
        assert_eq!(closed.headers()["x-closed"], "yes", "{framework:?}");
        let closed = app.send("/gate/requires", &[]).await;
        assert_eq!(closed.headers().get("content-length").unwrap(), "0", "{framework:?}");
        assert!(closed.headers().get("content-type").is_none(), "{framework:?}: nothing tells that there is something");
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_closed_gate_hides_every_method() {
    for framework in Framework::ALL {
        let service = service().await;
        let provider = provider(&service);
        let app = framework.serve(provider.clone()).await;
        for (user, get, post) in [("alice", 200, 405), ("bob", 404, 404)] {
            assert_eq!(app.get("/gate/requires", user, "").await.0, get, "{framework:?} {user}");
            let request = app.client.post(format!("{}/gate/requires", app.url)).header("x-user", user);
            let status = in_time(request.send()).await.unwrap().status().as_u16();
            assert_eq!(status, post, "{framework:?} {user}");
        }
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_gate_opens_and_closes_when_its_flag_changes() {
    for framework in Framework::ALL {
        let service = service().await;
        let provider = support::provider(&service);
        let app = framework.serve(provider.clone()).await;
        assert_eq!(app.get("/gated/free", "bob", "").await.0, 404, "{framework:?}");
        service.set_flag("beta", true);
        support::eventually(async || app.get("/gated/free", "bob", "").await.0 == 200).await;
        service.remove_flag("beta");
        support::eventually(async || app.get("/gated/free", "bob", "").await.0 == 404).await;
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn on_axum_a_gate_hides_the_routes_it_is_added_to() {
    let gate = || FlagGate::enabled("beta").fallback(StatusCode::FORBIDDEN);
    let beta = || Router::new().route("/beta", get(async || "open"));
    // how the gate is added; the path; the responses to GET and POST there, and to a path that does not exist
    let ways = [
        ("route_layer, merged", beta().route_layer(gate()), "/beta", [403, 403, 404]),
        ("route_layer, nested", Router::new().nest("/in", beta().route_layer(gate())), "/in/beta", [403, 403, 404]),
        ("layer, nested", Router::new().nest("/in", beta().layer(gate())), "/in/beta", [403, 403, 404]),
        (
            "layer, one route",
            Router::new().route("/beta", get(async || "open").layer(gate())),
            "/beta",
            [403, 403, 404],
        ),
        // The documentation warns about this.
        ("layer, merged", beta().layer(gate()), "/beta", [403, 403, 403]),
        (
            "route_layer, one route",
            Router::new().route("/beta", get(async || "open").route_layer(gate())),
            "/beta",
            [403, 405, 404],
        ),
    ];
    for (way, gated, path, statuses) in ways {
        let flags = FlipswitchLayer::new(FlipswitchProvider::in_memory(json!({})));
        let app = Router::new().route("/", get(async || "home")).merge(gated).layer(flags);
        let status = async |method: Method, path: &str| {
            let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
            app.clone().oneshot(request).await.unwrap().status().as_u16()
        };
        assert_eq!(status(Method::GET, "/").await, 200, "{way}");
        let answers =
            [status(Method::GET, path).await, status(Method::POST, path).await, status(Method::GET, "/nowhere").await];
        assert_eq!(answers, statuses, "{way}");
    }
}

#[tokio::test]
async fn on_axum_a_closed_gate_around_a_service_looks_like_a_missing_route() {
    let beta = || get(async || "open");
    let gate = || FlagGate::enabled("beta");
    let flags = TestFlags::new(json!({"beta": false}));
    let app = Router::new()
        .route_service("/route", gate().layer(beta()))
        .nest_service("/nested", gate().layer(Router::new().route("/in", beta())))
        .route("/layer", beta().layer(gate()))
        .layer(FlipswitchLayer::new(flags.provider()));
    let ask = async |method: &Method, path: &str| {
        let request = Request::builder().method(method.clone()).uri(path).body(Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        (response.status().as_u16(), response.headers().clone())
    };
    // No cache may keep the response, because the flag may be on later. This is the only difference.
    let no_store = HeaderValue::from_static("no-store");
    for method in [Method::GET, Method::HEAD, Method::POST, Method::OPTIONS] {
        let nothing = ask(&method, "/nowhere").await;
        for path in ["/route", "/nested/in", "/nested/nowhere"] {
            let mut closed = ask(&method, path).await;
            assert_eq!(closed.1.remove(CACHE_CONTROL).as_ref(), Some(&no_store), "{method} {path}");
            assert_eq!(closed, nothing, "{method} {path}");
        }
    }
    // The documentation describes the other ways.
    assert!(ask(&Method::POST, "/layer").await.1.contains_key("allow"));
    flags.set("beta", true);
    for path in ["/route", "/nested/in", "/layer"] {
        assert_eq!(ask(&Method::GET, path).await.0, 200, "{path}");
        assert_eq!(ask(&Method::POST, path).await.0, 405, "{path}");
    }
}
