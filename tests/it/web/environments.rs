//! Several environments in one application: two providers, each with its own layer, name and log lines.

use std::{convert::Infallible, sync::Arc};

use actix_web::{App, middleware::Condition, test::TestRequest, web};
use axum::{Router, body::Body, extract::Request, routing::get};
use flipswitch::{
    Context, FlipswitchProvider, InRequest,
    integration::Anonymous,
    open_feature::{Client, OpenFeature},
    serde_json::json,
    testing::{TestFlags, visitor_cookie},
};
use flipswitch_actix::FlipswitchMiddleware;
use flipswitch_axum::FlipswitchLayer;
use flipswitch_local::LocalServer;
use tokio::runtime::Handle;
use tower::ServiceExt;

use crate::support::{Log, apps::Framework, apps::clients::whoami, in_time, user};

/// Returns the provider of an environment that names the user it evaluates for, and a client.
async fn environment(name: &str, user: &'static str) -> (FlipswitchProvider, Arc<Client>) {
    let flags = TestFlags::new(json!({"whoami": "nobody"}));
    flags
        .set_when("whoami", format!("{user} at {name}"), move |context| context.targeting_key.as_deref() == Some(user));
    let mut api = OpenFeature::default();
    api.set_provider(flags.provider()).await;
    (flags.provider(), Arc::new(api.create_client()))
}

/// Returns what clients find, in the handler and in a task that it spawns.
async fn read(clients: Vec<Arc<Client>>) -> String {
    let mut found = Vec::new();
    for client in clients {
        found.push(whoami(&client).await);
        found.push(tokio::spawn(async move { whoami(&client).await }.with_current_scope()).await.unwrap());
    }
    found.join(", ")
}

/// Returns what clients find inside layers that give requests their users. The last layer is the innermost.
async fn found(
    framework: Framework,
    layers: &[(&FlipswitchProvider, &'static str)],
    clients: &[&Arc<Client>],
) -> String {
    let clients: Vec<_> = clients.iter().map(|client| Arc::clone(client)).collect();
    let read = move || read(clients.clone());
    match framework {
        Framework::Axum => {
            let app = layers.iter().rev().fold(Router::new().route("/", get(read)), |app, &(provider, user)| {
                app.layer(FlipswitchLayer::new(provider.clone()).with_context(move |_| Context::user(user)))
            });
            let response = app.oneshot(Request::get("/").body(Body::empty()).unwrap()).await;
            let body = response.map_err(|error: Infallible| error).unwrap().into_body();
            String::from_utf8(axum::body::to_bytes(body, 1_000).await.unwrap().to_vec()).unwrap()
        }
        Framework::Actix => {
            let middleware = |at: usize| {
                let (provider, user) = layers[at.min(layers.len() - 1)];
                let middleware = FlipswitchMiddleware::new(provider.clone()).with_context(move |_| Context::user(user));
                Condition::new(at < layers.len(), middleware)
            };
            let app =
                App::new().route("/", web::get().to(read)).wrap(middleware(2)).wrap(middleware(1)).wrap(middleware(0));
            let app = actix_web::test::init_service(app).await;
            let response = actix_web::test::call_service(&app, TestRequest::get().to_request()).await;
            String::from_utf8(actix_web::test::read_body(response).await.to_vec()).unwrap()
        }
    }
}

#[actix_web::test]
async fn a_client_gets_the_user_of_its_own_environment() {
    for framework in Framework::ALL {
        let log = Log::of_this_thread();
        let (shop, shops) = environment("shop", "alice").await;
        let (billing, billings) = environment("billing", "bob").await;
        for layers in [[(&shop, "alice"), (&billing, "bob")], [(&billing, "bob"), (&shop, "alice")]] {
            let found = found(framework, &layers, &[&shops, &billings]).await;
            let expected = "alice at shop, alice at shop, bob at billing, bob at billing";
            assert_eq!(found, expected, "{framework:?}");
        }
        assert!(log.lines().is_empty(), "{framework:?}: {:?}", log.lines());

        // A layer that is added twice does not hide another layer.
        let layers = [(&billing, "bob"), (&shop, "nobody"), (&shop, "alice")];
        let expected = "alice at shop, alice at shop, bob at billing, bob at billing";
        assert_eq!(found(framework, &layers, &[&shops, &billings]).await, expected, "{framework:?}");
        assert!(log.lines().iter().all(|line| line.contains("two Flipswitch layers of the same provider")));
        let log = Log::of_this_thread();

        for _ in 0..2 {
            let found = found(framework, &[(&billing, "alice")], &[&shops]).await;
            assert_eq!(
                found, "nobody, nobody",
                "{framework:?}: the user of another environment is not that of this one"
            );
        }
        let lines = log.lines();
        assert_eq!(lines.len(), 1, "{framework:?}: {lines:?}");
        assert!(lines[0].contains("a request of another Flipswitch provider"), "{framework:?}: {lines:?}");
    }
}

#[tokio::test]
async fn every_log_line_has_the_name_of_its_provider() {
    let log = Log::of_this_thread();
    let service = LocalServer::builder().api_key("right").start().await.unwrap();
    let build = |name: Option<&str>| {
        // On this thread, whose log is read.
        let builder = FlipswitchProvider::builder("your-api-key").base_url(service.url()).runtime(Handle::current());
        name.map_or(builder.clone(), |name| builder.name(name)).build().unwrap()
    };
    for (name, start) in [(Some("billing"), "WARN flipswitch{provider=\"billing\"}: "), (None, "WARN flipswitch: ")] {
        let (before, provider) = (log.lines().len(), build(name));
        assert_eq!(provider.name(), name);
        // The service refuses the key, which a task reports, and the caller reports an attribute that cannot be sent.
        in_time(provider.flags(Context::user("u").with("lat", f64::NAN))).await;
        provider.shutdown().await;
        let lines = log.lines().split_off(before);
        for text in ["looks like a placeholder", "a context attribute is not sent"] {
            let line = lines.iter().rfind(|line| line.contains(text)).unwrap_or_else(|| panic!("{text}: {lines:?}"));
            assert!(line.trim_start().starts_with(start), "{line}");
        }
        let refused = lines.iter().rfind(|line| line.contains("refused")).unwrap_or_else(|| panic!("{lines:?}"));
        assert_eq!(refused.contains("provider=\"billing\""), name.is_some(), "{refused}");
    }
    let error = FlipswitchProvider::builder("key").name("a b").build().unwrap_err();
    assert!(error.to_string().contains("name is \"a b\""), "{error}");
}

#[tokio::test]
async fn a_second_provider_of_the_same_environment_causes_a_warning() {
    let log = Log::of_this_thread();
    let count = || log.lines().iter().filter(|line| line.contains("another provider with the same base URL")).count();
    let service = LocalServer::start(json!({})).await.unwrap();
    let build = |key: &str| FlipswitchProvider::builder(key).base_url(service.url()).build().unwrap();
    let (first, other_key) = (build("one-key"), build("another-key"));
    for provider in [&first, &other_key] {
        in_time(provider.flags(user("u"))).await;
    }
    first.shutdown().await;
    let second = build("one-key");
    in_time(second.flags(user("u"))).await;
    assert_eq!(count(), 0, "the first one was shut down, and the other one has another key");
    let built_only = build("one-key");
    assert_eq!(count(), 0, "it has no stream yet");
    let workers: Vec<_> = (0..4).map(|_| build("one-key")).collect();
    for worker in &workers {
        in_time(worker.flags(user("u"))).await;
    }
    assert_eq!(count(), 1, "{:?}", log.lines());
    for provider in workers.iter().chain([&second, &other_key, &built_only]) {
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn the_cookies_of_two_environments_have_two_names() {
    let service = LocalServer::start(json!({"on": true})).await.unwrap();
    let builder = || FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false);
    let (shop, billing) = (builder().build().unwrap(), builder().name("billing").build().unwrap());
    assert!(visitor_cookie(&shop, 1).starts_with("__Host-flipswitch-anonymous="));
    assert!(visitor_cookie(&billing, 1).starts_with("__Host-flipswitch-anonymous-billing="));
    let read = async |flags: flipswitch_axum::Flags| flags.bool("on", false).to_string();
    let layer =
        |provider: &FlipswitchProvider| FlipswitchLayer::new(provider.clone()).with_anonymous(Anonymous::cookie());
    let read_shop = shop.clone();
    let app = Router::new()
        .route("/", get(read))
        .layer(axum::middleware::from_fn(move |request: Request, next: axum::middleware::Next| {
            let shop = flipswitch::RequestScope::current().unwrap();
            assert_eq!(shop.provider().name(), read_shop.name());
            async move {
                shop.flags().await;
                next.run(request).await
            }
        }))
        .layer(layer(&shop));
    let app = Router::new().merge(app).layer(layer(&billing));
    let response = app.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    let set = response.headers().get_all("set-cookie").iter().map(|value| value.to_str().unwrap());
    let names: Vec<_> = set.map(|cookie| cookie.split('=').next().unwrap()).collect();
    assert_eq!(names, ["__Host-flipswitch-anonymous"], "that of the environment whose flags were read");
    shop.shutdown().await;
    billing.shutdown().await;
}
