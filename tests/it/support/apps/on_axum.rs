//! The application on axum.

use std::{convert::Infallible, pin::pin, sync::Arc};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{
        Path, RawQuery, Request,
        ws::{WebSocket, WebSocketUpgrade},
    },
    http::{
        StatusCode,
        header::{CACHE_CONTROL, SET_COOKIE},
    },
    middleware::{self, Next},
    response::{
        Html, IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::{any, get},
};
use flipswitch::{RequestScope, open_feature::Client};
use flipswitch_axum::{Flag, FlagGate, Flags, FlagsExt, FlipswitchLayer, Unknown};
use futures_util::{StreamExt, stream};
use tower_http::compression::CompressionLayer;

use super::{
    Beta, Limit, Missing, Order, Origin, Setup, Theme, User, Whoami,
    browsers::{self, set_up},
    clients, long_lived,
};

pub(crate) fn app(setup: &Setup) -> Router {
    let layer = FlipswitchLayer::new(setup.provider.clone())
        .with_user(super::context_of_user)
        .with_context(|parts| super::context_of_plan(parts.headers.get("x-plan").and_then(|plan| plan.to_str().ok())))
        .with_anonymous(setup.anonymous.clone());
    let layer = match &setup.overrides {
        Some(overrides) => layer.with_overrides(overrides.clone()),
        None => layer,
    };
    let layer = match setup.inspects {
        true => layer.with_inspection(|parts| parts.headers.contains_key("x-staff")),
        false => layer,
    };
    let covered = Router::new()
        .merge(routes())
        .merge(setup.client.as_ref().map(clients).unwrap_or_default())
        .nest("/nested", routes())
        .nest("/gate", gates())
        .route_service("/inspection", flipswitch_axum::inspection(setup.provider.clone()))
        .nest("/gated", routes().layer(FlagGate::enabled("beta")));
    let browsers = || set_up!(flipswitch_axum::browser(setup.provider.clone()), &setup.browsers).into_router();
    let covered = covered
        .nest("/flags", browsers())
        .nest("/deep", Router::new().nest("/flags", browsers()))
        .nest("/compressed", Router::new().nest("/flags", browsers()).layer(CompressionLayer::new()))
        .route("/page", get(page));
    let covered = match setup.order {
        Order::AsItShould => covered,
        Order::AuthenticationInside => covered.layer(middleware::from_fn(authenticate)),
        Order::Twice => {
            let inner = FlipswitchLayer::new(setup.provider.clone()).with_context(|_| crate::support::user("inner"));
            covered.layer(inner).layer(middleware::from_fn(authenticate))
        }
    };
    let bare = Router::new()
        .route("/flag", get(flag))
        .route("/optional", get(optional))
        .route("/typed", get(typed))
        .route("/gate", get(open).layer(FlagGate::enabled("beta")))
        .nest("/flags", browsers());
    let app = covered
        .layer(layer.clone())
        .route("/single/flag", get(flag).layer(layer))
        .nest("/bare", bare)
        .route("/npm/{*path}", get(package_file))
        .route_service("/health", flipswitch_axum::health(setup.provider.clone()));
    if setup.order == Order::AsItShould { app.layer(middleware::from_fn(authenticate)) } else { app }
}

async fn authenticate(mut request: Request, next: Next) -> Response {
    let user = {
        let header = |name| request.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
        User::of(header("x-user").as_deref(), header("cookie").as_deref())
    };
    if let Some(user) = user {
        request.extensions_mut().insert(user);
    }
    next.run(request).await
}

async fn page(flags: Flags, RawQuery(query): RawQuery) -> Html<String> {
    Html(browsers::page(&flags, query.as_deref() != Some("bare")))
}

async fn package_file(Path(path): Path<String>) -> impl IntoResponse {
    browsers::package_file(&path).map(|file| ([("content-type", "text/javascript")], file)).ok_or(StatusCode::NOT_FOUND)
}

fn routes() -> Router {
    Router::new()
        .route("/free", get(async || "free"))
        .route("/flag", get(flag))
        .route("/twice", get(twice))
        .route("/typed", get(typed))
        .route("/optional", get(optional))
        .route("/me", get(async |flags: Flags| super::subject(&flags)))
        .route("/together", get(together))
        .route("/cookie", get(async |_: Flags| ([(SET_COOKIE, "own=1")], "cookie")))
        .route("/panic", get(panic))
        .route("/socket", get(socket))
        .route("/unchanged", get(async |_: Flags| StatusCode::NOT_MODIFIED))
        .route("/public", get(async |_: Flags| ([(CACHE_CONTROL, "public, max-age=60")], "public")))
        .route("/public-flag", get(public_flag))
        .route("/overridden", get(async |flags: Flags| super::overridden(&flags)))
        .route("/private", get(async |_: Flags| ([(CACHE_CONTROL, "private, max-age=60")], "private")))
        .route("/agree", get(async |flags: Flags| Body::from_stream(long_lived::agree(&flags).await)))
        .route("/live/socket", get(live_socket))
        .route("/live/events", get(live_events))
        .route("/live/body", get(live_body))
        .route("/echo", get(echo).post(echo))
}

async fn flag(flags: Flags) -> String {
    super::describe(&flags)
}

async fn public_flag(flags: Flags) -> impl IntoResponse {
    ([("cache-control", "public, max-age=60"), ("x-accel-expires", "60")], super::describe(&flags))
}

async fn twice(one: Flags, other: Flags) -> String {
    assert_eq!(one.to_json(), other.to_json());
    super::describe(&one)
}

async fn typed(Flag(who): Flag<Whoami>, Flag(origin): Flag<Origin>, flags: Flags, limit: Flag<Limit>) -> String {
    assert_eq!((&who, limit.0), (&flags.get(Whoami), 7));
    format!("{who} {origin}")
}

async fn optional(flags: Option<Flags>) -> String {
    flags.map_or("none".to_owned(), |flags| super::describe(&flags))
}

/// Reads in several futures at the same time.
async fn together(request: Request) -> String {
    let scope = request.flag_scope().unwrap();
    let read = stream::iter(0..10).map(|_| scope.flags()).buffer_unordered(10);
    let flags: Vec<_> = read.map(|flags| super::describe(&flags)).collect().await;
    assert!(flags.iter().all(|each| *each == flags[0]));
    flags[0].clone()
}

async fn panic(_: Flags) {
    panic!("a handler panics");
}

async fn socket(flags: Flags, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async move |mut socket: WebSocket| {
        while let Some(Ok(message)) = socket.recv().await {
            let Ok(text) = message.to_text() else { return };
            let answer = format!("{text} {}", super::describe(&flags));
            if socket.send(answer.into()).await.is_err() {
                return;
            }
        }
    })
}

async fn live_socket(Extension(scope): Extension<RequestScope>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async move |mut socket: WebSocket| {
        let mut on = pin!(long_lived::while_on(scope));
        while let Some(text) = on.next().await {
            if socket.send(text.into()).await.is_err() {
                return;
            }
        }
    })
}

async fn live_events(Extension(scope): Extension<RequestScope>) -> Response {
    Sse::new(long_lived::while_on(scope).map(|text| Ok::<_, Infallible>(Event::default().data(text)))).into_response()
}

async fn live_body(Extension(scope): Extension<RequestScope>) -> Body {
    Body::from_stream(long_lived::while_on(scope).map(Ok::<_, Infallible>))
}

/// Streams the body of the request back.
async fn echo(_: Flags, body: Body) -> Response {
    Body::from_stream(body.into_data_stream()).into_response()
}

fn clients(client: &Arc<Client>) -> Router {
    let [plain, deep, streamed] = [0; 3].map(|_| Arc::clone(client));
    Router::new()
        .route("/plain", get(async move || clients::whoami(&plain).await))
        .route("/deep", get(async move || clients::deep(deep).await))
        .route("/streamed", get(async move || Body::from_stream(clients::streamed(streamed))))
}

async fn open() -> &'static str {
    "open"
}

fn gates() -> Router {
    let behind = |gate: FlagGate| get(open).layer(gate);
    let message = (StatusCode::GONE, [("x-closed", "yes")], Bytes::from_static(b"not for you"));
    let either = || FlagGate::when(|flags| flags.bool("beta", false) || flags.bool("staff", false));
    Router::new()
        .route("/requires", behind(FlagGate::enabled("beta")))
        .route("/any", any(open).layer(FlagGate::enabled("beta")))
        .route("/requires-not", behind(FlagGate::disabled("beta")))
        .route("/typed", behind(FlagGate::enabled(Beta)))
        .route("/typed-not", behind(FlagGate::disabled(Beta)))
        .route("/missing", behind(FlagGate::enabled("missing")))
        .route("/missing-not", behind(FlagGate::disabled("missing")))
        .route("/missing-typed", behind(FlagGate::enabled(Missing)))
        .route("/missing-typed-not", behind(FlagGate::disabled(Missing)))
        .route("/other-type", behind(FlagGate::enabled("whoami")))
        .route("/other-type-not", behind(FlagGate::disabled("whoami")))
        .route("/variant", behind(FlagGate::variant("theme", "dark")))
        .route("/variant-typed", behind(FlagGate::variant(Theme, "dark".to_owned())))
        .route("/variant-missing", behind(FlagGate::variant("missing", "dark")))
        .route("/variant-none", behind(FlagGate::variant("plain", "dark")))
        .route("/when", behind(FlagGate::when(|flags| flags.get(Beta) && flags.string("theme", "") == "#000")))
        .route("/when-not", behind(FlagGate::when(|flags| flags.get(Beta) && flags.bool("staff", false))))
        .route("/either", behind(either()))
        .route("/unknown-closed", behind(FlagGate::disabled("beta").unknown(Unknown::Closed)))
        .route("/unknown-open", behind(FlagGate::enabled("beta").unknown(Unknown::Open)))
        .route("/fallback", behind(FlagGate::enabled("beta").fallback(StatusCode::FORBIDDEN)))
        .route("/response", behind(FlagGate::enabled("beta").fallback(message)))
        .route("/many", get(twice).layer::<_, Infallible>(FlagGate::enabled("beta")).layer(either()))
}
