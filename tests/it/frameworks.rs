//! One table of scenarios for both frameworks, with one set of expectations.

use std::thread;

use actix_web::{App as ActixApp, HttpMessage, HttpServer, dev::Service as _, web};
use axum::{Router, extract::Request, middleware, middleware::Next, response::Response, routing::get};
use flipswitch::{FlipswitchProvider, open_feature::EvaluationContext, serde_json::json};
use flipswitch_local::LocalServer;
use futures_util::{StreamExt, stream};
use tower::{ServiceExt, service_fn};

use crate::support::{self, in_time, provider, user};

/// The user, as an authentication layer would leave one in the request's extensions.
#[derive(Clone)]
struct User(String);

/// An application on loopback, in one of the frameworks.
struct App {
    url: String,
    _stop: tokio_util::sync::DropGuard,
}

#[derive(Clone, Copy, Debug)]
enum Framework {
    Axum,
    Actix,
}

flipswitch::flags! {
    Whoami: String = "whoami", default "default";
    Origin: String = "origin", default "default";
    /// There is none of this name.
    Limit: u16 = "limit", default 7;
}

/// The routes of both applications: `/free` reads no flag; `/flag` reads one, `/twice` two through two extractors,
/// `/typed` declared ones, `/optional` through `Option`; `/nested/..` are below a nested router or scope; `/single/flag` has its own layer;
/// `/bare/..` have none.
impl Framework {
    const ALL: [Self; 2] = [Self::Axum, Self::Actix];

    async fn serve(self, provider: FlipswitchProvider) -> App {
        let stop = tokio_util::sync::CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let address = match self {
            Self::Axum => {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap();
                let server = axum::serve(listener, axum_app(provider)).with_graceful_shutdown(stopped);
                tokio::spawn(server.into_future());
                address
            }
            Self::Actix => {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                let address = listener.local_addr().unwrap();
                thread::spawn(move || {
                    let server = HttpServer::new(move || ActixApp::new().configure(actix_app(provider.clone())))
                        .workers(2)
                        .shutdown_timeout(1)
                        .shutdown_signal(stopped)
                        .listen(listener)
                        .unwrap();
                    actix_web::rt::System::new().block_on(server.run()).unwrap();
                });
                address
            }
        };
        App { url: format!("http://{address}"), _stop: stop.drop_guard() }
    }
}

impl App {
    /// Sends a request as a user (or as nobody, if empty) with a plan; returns status and body.
    async fn get(&self, path: &str, user: &str, plan: &str) -> (u16, String) {
        let request = reqwest::Client::new().get(format!("{}{path}", self.url)).header("x-plan", plan);
        let request = if user.is_empty() { request } else { request.header("x-user", user) };
        let response = in_time(request.send()).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }
}

fn context_of_user(user: &User) -> EvaluationContext {
    support::user(&user.0).with_custom_field("origin", "user")
}

fn context_of_plan(plan: Option<&str>) -> Option<EvaluationContext> {
    let context = EvaluationContext::default().with_custom_field("origin", "request");
    plan.filter(|plan| !plan.is_empty()).map(|plan| context.with_custom_field("plan", plan))
}

fn axum_app(provider: FlipswitchProvider) -> Router {
    use flipswitch_axum::{Flag, Flags, FlipswitchLayer};

    async fn authenticate(mut request: Request, next: Next) -> Response {
        if let Some(user) = request.headers().get("x-user") {
            let user = User(user.to_str().unwrap().to_owned());
            request.extensions_mut().insert(user);
        }
        next.run(request).await
    }
    async fn flag(flags: Flags) -> String {
        describe(&flags)
    }
    async fn twice(one: Flags, other: Flags) -> String {
        assert_eq!(one.to_json(), other.to_json());
        describe(&one)
    }
    async fn typed(Flag(who): Flag<Whoami>, Flag(origin): Flag<Origin>, flags: Flags, limit: Flag<Limit>) -> String {
        assert_eq!((&who, limit.0), (&flags.get(Whoami), 7));
        format!("{who} {origin}")
    }
    async fn optional(flags: Option<Flags>) -> String {
        flags.map_or("none".to_owned(), |flags| describe(&flags))
    }
    let layer = FlipswitchLayer::new(provider)
        .with_user(context_of_user)
        .with_context(|parts| context_of_plan(parts.headers.get("x-plan").and_then(|plan| plan.to_str().ok())));
    let routes = Router::new()
        .route("/free", get(async || "free"))
        .route("/flag", get(flag))
        .route("/twice", get(twice))
        .route("/typed", get(typed))
        .route("/optional", get(optional));
    let bare = Router::new().route("/flag", get(flag)).route("/optional", get(optional)).route("/typed", get(typed));
    Router::new()
        .merge(routes.clone())
        .nest("/nested", routes)
        .layer(layer.clone())
        .route("/single/flag", get(flag).layer(layer))
        .nest("/bare", bare)
        .layer(middleware::from_fn(authenticate))
}

fn actix_app(provider: FlipswitchProvider) -> impl FnOnce(&mut web::ServiceConfig) {
    use flipswitch_actix::{Flag, Flags, Flipswitch};

    async fn flag(flags: Flags) -> String {
        describe(&flags)
    }
    async fn twice(one: Flags, other: Flags) -> String {
        assert_eq!(one.to_json(), other.to_json());
        describe(&one)
    }
    async fn typed(Flag(who): Flag<Whoami>, Flag(origin): Flag<Origin>, flags: Flags, limit: Flag<Limit>) -> String {
        assert_eq!((&who, limit.0), (&flags.get(Whoami), 7));
        format!("{who} {origin}")
    }
    async fn optional(flags: Option<Flags>) -> String {
        flags.map_or("none".to_owned(), |flags| describe(&flags))
    }
    fn routes(config: &mut web::ServiceConfig) {
        config
            .route("/free", web::get().to(async || "free"))
            .route("/flag", web::get().to(flag))
            .route("/twice", web::get().to(twice))
            .route("/typed", web::get().to(typed))
            .route("/optional", web::get().to(optional));
    }
    let middleware = Flipswitch::new(provider)
        .with_user(context_of_user)
        .with_context(|request| context_of_plan(request.headers().get("x-plan").and_then(|plan| plan.to_str().ok())));
    move |config| {
        let bare = web::scope("/bare")
            .route("/flag", web::get().to(flag))
            .route("/optional", web::get().to(optional))
            .route("/typed", web::get().to(typed));
        let single = web::resource("/single/flag").wrap(middleware.clone()).route(web::get().to(flag));
        let covered =
            web::scope("").wrap(middleware).configure(routes).service(web::scope("/nested").configure(routes));
        let app = web::scope("").service(bare).service(single).service(covered).wrap_fn(|request, inner| {
            let user = request.headers().get("x-user").map(|user| User(user.to_str().unwrap().to_owned()));
            if let Some(user) = user {
                request.extensions_mut().insert(user);
            }
            inner.call(request)
        });
        config.service(app);
    }
}

fn describe(flags: &flipswitch::Flags) -> String {
    format!("{} {}", flags.string("whoami", "default"), flags.string("origin", "default"))
}

/// Flags that tell whom they were evaluated for, and where the context's field `origin` came from.
async fn service() -> LocalServer {
    let service = LocalServer::start(support::whoami(["alice".into(), "bob".into()])).await.unwrap();
    let origin = json!({
        "state": "ENABLED", "variants": {"user": "user", "request": "request", "nowhere": "nowhere"},
        "defaultVariant": "nowhere", "targeting": {"if": [{"var": "origin"}, {"var": "origin"}]},
    });
    service.set_definition("origin", origin).unwrap();
    service
}

#[tokio::test]
async fn scenarios() {
    // path, user, plan; status, body, requests to the flag service
    let scenarios = [
        ("/free", "alice", "", 200, "free", 0),
        ("/flag", "alice", "", 200, "alice user", 1),
        ("/flag", "bob", "", 200, "bob user", 1),
        ("/flag", "", "", 200, "nobody nowhere", 1),
        ("/flag", "", "premium", 200, "nobody request", 1),
        // Both sources: merged, and the user's fields win.
        ("/flag", "alice", "premium", 200, "alice user", 1),
        ("/twice", "alice", "", 200, "alice user", 1),
        ("/typed", "alice", "", 200, "alice user", 1),
        ("/typed", "", "premium", 200, "nobody request", 1),
        ("/optional", "alice", "", 200, "alice user", 1),
        ("/nested/free", "alice", "", 200, "free", 0),
        ("/nested/flag", "alice", "", 200, "alice user", 1),
        ("/single/flag", "alice", "", 200, "alice user", 1),
        ("/bare/optional", "alice", "", 200, "none", 0),
        ("/unknown", "alice", "", 404, "", 0),
    ];
    for framework in Framework::ALL {
        for (path, user, plan, status, body, requests) in scenarios {
            let service = service().await;
            // Without the stream, whose opening would count as a change in the middle.
            let provider = support::builder(&service).enable_realtime(false).build().unwrap();
            let app = framework.serve(provider.clone()).await;
            // However often it is asked: the same user costs one request.
            for _ in 0..3 {
                let answer = app.get(path, user, plan).await;
                assert_eq!(answer, (status, body.to_owned()), "{framework:?} {path} {user} {plan}");
            }
            assert_eq!(support::evaluations(&service), requests, "{framework:?} {path}");
            provider.shutdown().await;
        }
    }
}

#[tokio::test]
async fn a_missing_layer_is_told_with_its_remedy() {
    let remedies = [
        (Framework::Axum, "add `.layer(FlipswitchLayer::new(provider))`"),
        (Framework::Actix, "add `.wrap(Flipswitch::new(provider))`"),
    ];
    for (framework, remedy) in remedies {
        let app = framework.serve(FlipswitchProvider::in_memory(json!({}))).await;
        for path in ["/bare/flag", "/bare/typed"] {
            let (status, body) = app.get(path, "alice", "").await;
            assert_eq!(status, 500, "{framework:?} {path}");
            assert!(body.contains(remedy), "{framework:?} {path}: {body}");
        }
    }
}

#[tokio::test]
async fn with_the_flag_service_away_requests_succeed_with_defaults() {
    for framework in Framework::ALL {
        let provider = support::provider_of_nothing();
        let app = framework.serve(provider.clone()).await;
        assert_eq!(app.get("/flag", "alice", "").await, (200, "default default".to_owned()), "{framework:?}");
        provider.shutdown().await;
        assert_eq!(app.get("/flag", "alice", "").await, (200, "default default".to_owned()), "{framework:?} after");
    }
}

/// This many requests, half for each of two users, this many at once.
const INTERLEAVED: usize = 10_000;
const AT_ONCE: usize = 64;

fn user_of(request: usize) -> &'static str {
    if request.is_multiple_of(2) { "alice" } else { "bob" }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_users_in_parallel_are_never_mixed_in_axum() {
    let service = service().await;
    let provider = provider(&service);
    let app = axum_app(provider.clone());
    stream::iter(0..INTERLEAVED)
        .for_each_concurrent(AT_ONCE, |number| {
            let app = app.clone();
            // Each on a task of its own, so that both threads are busy with both users.
            let task = tokio::spawn(async move {
                let user = user_of(number);
                let request = Request::get("/flag").header("x-user", user).body(axum::body::Body::empty()).unwrap();
                let response = app.oneshot(request).await.unwrap();
                let body = axum::body::to_bytes(response.into_body(), 1_000).await.unwrap();
                assert_eq!(body, format!("{user} user"));
            });
            async move { task.await.unwrap() }
        })
        .await;
    provider.shutdown().await;
}

#[actix_web::test]
async fn two_users_in_parallel_are_never_mixed_in_actix() {
    let service = service().await;
    let provider = provider(&service);
    let app = actix_web::test::init_service(ActixApp::new().configure(actix_app(provider.clone()))).await;
    stream::iter(0..INTERLEAVED)
        .for_each_concurrent(AT_ONCE, |number| {
            let user = user_of(number);
            let request = actix_web::test::TestRequest::get().uri("/flag").insert_header(("x-user", user)).to_request();
            let response = actix_web::test::call_and_read_body(&app, request);
            async move { assert_eq!(response.await, format!("{user} user")) }
        })
        .await;
    provider.shutdown().await;
}

#[tokio::test]
async fn the_layer_serves_any_tower_service() {
    use flipswitch_axum::{FlagsExt, FlipswitchLayer};
    use tower::Layer;

    let provider = FlipswitchProvider::in_memory(json!({"on": true}));
    let inner = service_fn(async |request: http::Request<&'static str>| {
        let scope = request.scope().expect("the layer's scope");
        let seen = (*request.body(), scope.context().clone(), scope.flags().await.bool("on", false));
        Ok::<_, std::convert::Infallible>(http::Response::new(seen))
    });
    let service = FlipswitchLayer::new(provider).with_context(|_| user("u")).layer(inner);
    let outcome = service.oneshot(http::Request::new("any body")).await.unwrap();
    assert_eq!(*outcome.body(), ("any body", user("u"), true));
}
