//! Warnings about mistakes in the set-up of an application. Each is logged once, with a remedy.

use actix_web::test::TestRequest;
use axum::{body::Body, extract::Request};
use flipswitch::{FlipswitchProvider, integration::Anonymous, serde_json::json};
use tower::ServiceExt;

use crate::support::{
    Log,
    apps::{Framework, Order, Setup, on_actix, on_axum, provider, service},
};

/// Sends each request twice to an application on this thread. Returns the warnings that were logged.
async fn warnings(framework: Framework, setup: &Setup, requests: &[(&str, &str)]) -> Vec<String> {
    let log = Log::of_this_thread();
    let axum = on_axum::app(setup);
    let actix = actix_web::test::init_service(actix_web::App::new().configure(on_actix::app(setup))).await;
    for (path, user) in requests.iter().chain(requests) {
        match framework {
            Framework::Axum => {
                let request = Request::get(*path).header("x-user", *user).body(Body::empty()).unwrap();
                assert!(axum.clone().oneshot(request).await.unwrap().status().is_success());
            }
            Framework::Actix => {
                let request = TestRequest::get().uri(path).insert_header(("x-user", *user)).to_request();
                assert!(actix_web::test::call_service(&actix, request).await.status().is_success());
            }
        }
    }
    log.lines()
}

fn setup(order: Order) -> Setup {
    Setup { order, ..FlipswitchProvider::in_memory(json!({"whoami": "known", "beta": false})).into() }
}

fn assert_one(warnings: &[String], framework: Framework, texts: &[&str]) {
    let [warning] = warnings else { panic!("{framework:?}: {warnings:?}") };
    for text in texts {
        assert!(warning.contains(text), "{framework:?}: {warning}");
    }
}

#[actix_web::test]
async fn a_correct_application_causes_no_warnings() {
    for framework in Framework::ALL {
        let paths = ["/free", "/flag", "/nested/flag", "/single/flag", "/typed", "/optional", "/bare/optional"];
        let requests: Vec<_> = paths.iter().flat_map(|path| [(*path, "alice"), (*path, "guest")]).collect();
        let warnings = warnings(framework, &setup(Order::AsItShould), &requests).await;
        assert!(warnings.is_empty(), "{framework:?}: {warnings:?}");
    }
}

#[actix_web::test]
async fn authentication_inside_the_layer_causes_a_warning() {
    for framework in Framework::ALL {
        let unread = warnings(framework, &setup(Order::AuthenticationInside), &[("/free", "alice")]).await;
        assert!(unread.is_empty(), "{framework:?}: {unread:?}");
        let mut paths = vec!["/flag", "/typed", "/optional", "/together", "/gate/requires-not"];
        if matches!(framework, Framework::Actix) {
            paths.push("/guarded");
        }
        for path in paths {
            let warnings = warnings(framework, &setup(Order::AuthenticationInside), &[(path, "alice")]).await;
            assert_one(
                &warnings,
                framework,
                &[
                    "WARN",
                    "User`",
                    "actix-web's `App::wrap`, add it after Flipswitch",
                    "`tower::ServiceBuilder`, add it before",
                ],
            );
        }
    }
}

#[actix_web::test]
async fn a_gate_on_a_missing_or_non_boolean_flag_causes_a_warning() {
    for framework in Framework::ALL {
        for (path, key, told) in [
            ("/gate/missing-not", "missing", "the flag service does not have the flag"),
            ("/gate/other-type-not", "whoami", "the flag is not a boolean"),
        ] {
            let warnings = warnings(framework, &setup(Order::AsItShould), &[(path, "alice")]).await;
            assert_one(&warnings, framework, &["WARN", told, key]);
        }
        // Without any flags, it is unknown whether this flag exists.
        let away: Setup = crate::support::provider_of_nothing().into();
        away.provider.shutdown().await;
        let warnings = warnings(framework, &away, &[("/gate/missing-not", "alice")]).await;
        assert!(warnings.is_empty(), "{framework:?}: {warnings:?}");
    }
}

#[actix_web::test]
async fn a_missing_layer_causes_a_warning() {
    let log = Log::of_this_thread();
    let axum = on_axum::app(&setup(Order::AsItShould));
    let app = actix_web::App::new().configure(on_actix::app(&setup(Order::AsItShould)));
    let actix = actix_web::test::init_service(app).await;
    for path in ["/bare/flag", "/bare/typed", "/bare/gate"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        assert_eq!(axum.clone().oneshot(request).await.unwrap().status(), 500);
        let request = TestRequest::get().uri(path).to_request();
        assert_eq!(actix_web::test::call_service(&actix, request).await.status(), 500);
    }
    let lines = log.lines();
    for remedy in [".layer(FlipswitchLayer::new(provider))", ".wrap(FlipswitchMiddleware::new(provider))"] {
        let told = lines.iter().filter(|line| line.contains("ERROR") && line.contains(remedy)).count();
        assert_eq!(told, 3, "{lines:?}");
    }
}

#[actix_web::test]
async fn two_layers_cause_a_warning_and_the_inner_one_applies() {
    for framework in Framework::ALL {
        let setup = setup(Order::Twice);
        let warnings = warnings(framework, &setup, &[("/flag", "alice"), ("/me", "bob")]).await;
        assert_one(&warnings, framework, &["WARN", "two Flipswitch layers"]);
        let app = framework.serve(setup).await;
        assert_eq!(app.get("/me", "alice", "").await.1, "inner", "{framework:?}");
    }
}

#[actix_web::test]
async fn a_panicking_context_function_causes_a_warning() {
    for framework in Framework::ALL {
        let warnings = warnings(framework, &setup(Order::AsItShould), &[("/flag", "panic"), ("/me", "panic")]).await;
        assert_one(&warnings, framework, &["WARN", "`with_context` or `consent` panicked"]);
    }
}

#[actix_web::test]
async fn a_cookie_that_shared_caches_could_store_causes_a_warning() {
    for framework in Framework::ALL {
        let mut setup = setup(Order::AsItShould);
        setup.anonymous = Anonymous::cookie().into();
        let warnings = warnings(framework, &setup, &[("/public", "guest"), ("/private", "guest")]).await;
        assert_one(&warnings, framework, &["WARN", "a visitor received no cookie", "`private` or `no-store`"]);
    }
}

#[actix_web::test]
async fn a_preflight_at_a_gate_causes_a_warning() {
    for framework in Framework::ALL {
        let (log, setup) = (Log::of_this_thread(), setup(Order::AsItShould));
        let axum = on_axum::app(&setup);
        let actix = actix_web::test::init_service(actix_web::App::new().configure(on_actix::app(&setup))).await;
        let headers = [("origin", "https://other.example"), ("access-control-request-method", "PUT")];
        for _ in 0..2 {
            match framework {
                Framework::Axum => {
                    let request = Request::options("/gate/any");
                    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
                    let response = axum.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
                    assert_eq!(response.status(), 404);
                }
                Framework::Actix => {
                    let request = TestRequest::with_uri("/gate/any").method(actix_web::http::Method::OPTIONS);
                    let request = headers.into_iter().fold(request, TestRequest::insert_header);
                    assert_eq!(actix_web::test::call_service(&actix, request.to_request()).await.status(), 404);
                }
            }
        }
        assert_one(&log.lines(), framework, &["WARN", "CORS preflight", "add the CORS layer after the gate"]);
    }
}

#[actix_web::test]
async fn a_guard_without_flags_causes_a_warning() {
    for (prefetch, told) in [(true, false), (false, true)] {
        let service = service().await;
        let setup = Setup { prefetch, ..provider(&service).into() };
        let warnings = warnings(Framework::Actix, &setup, &[("/guarded", "alice")]).await;
        if told {
            assert_one(&warnings, Framework::Actix, &["WARN", "`flag_on`", "\"beta\"", "prefetch(true)"]);
        } else {
            assert!(warnings.is_empty(), "{warnings:?}");
        }
        setup.provider.shutdown().await;
    }
}
