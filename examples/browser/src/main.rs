//! A page whose flags come from the application that serves it: the same user, the same answer, and changes at once.
//!
//! `npm install --prefix examples/browser`, then `cargo run -p browser-example`.

use std::{error::Error, path::Path};

use axum::{
    Router,
    extract::{self, Request},
    http::{StatusCode, header},
    middleware::{Next, from_fn},
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};
use flipswitch_axum::{Context, Flags, FlipswitchLayer, FlipswitchProvider, Lifespan, flipswitch::serde_json::json};
use flipswitch_local::LocalServer;
use tokio::net::TcpListener;
use tower_http::services::ServeDir;
use tracing_subscriber::filter::LevelFilter;

/// Flags that anyone may see. The others stay in the application.
const PUBLIC: [&str; 2] = ["greeting", "color"];

#[derive(Clone)]
struct User(String);

/// The page: one value from the server, and the values with which its script starts.
async fn page(flags: Flags) -> Html<String> {
    let page = include_str!("page.html").replace("{start}", &flags.to_ofrep_json(PUBLIC));
    // A value is text, and no markup.
    let greeting = flags.string("greeting", "Hello").replace('&', "&amp;").replace('<', "&lt;");
    Html(page.replace("{server}", &greeting))
}

/// Stands for a login. A real one would check a password.
async fn log_in(extract::Path(user): extract::Path<String>) -> Response {
    match user.as_str() {
        "alice" | "bob" => {
            ([(header::SET_COOKIE, format!("user={user}; Path=/; HttpOnly"))], Redirect::to("/")).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Stands for a session: puts the user into the request.
async fn authenticate(mut request: Request, next: Next) -> Response {
    let cookies = request.headers().get(header::COOKIE).and_then(|cookies| cookies.to_str().ok()).unwrap_or_default();
    let user = cookies.split("; ").find_map(|cookie| cookie.strip_prefix("user=")).map(|user| User(user.to_owned()));
    if let Some(user) = user {
        request.extensions_mut().insert(user);
    }
    next.run(request).await
}

pub(crate) fn app(provider: FlipswitchProvider, packages: &Path) -> Router {
    Router::new()
        .route("/", get(page))
        .nest("/flags", flipswitch_axum::browser(provider.clone()).public(PUBLIC).into_router())
        .layer(FlipswitchLayer::new(provider).with_user(|user: &User| Context::user(&user.0)))
        .layer(from_fn(authenticate))
        .route("/login/{user}", get(log_in))
        .nest_service("/npm", ServeDir::new(packages))
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "says what to do next")]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_max_level(LevelFilter::INFO).init();
    // In production, this is the flag service.
    let service = LocalServer::start(json!({"greeting": "Hello", "color": "teal"})).await?;
    let provider = FlipswitchProvider::builder(service.api_key()).base_url(service.url());
    // Without a secret, an API key of at least 16 bytes is used.
    let provider = provider.secret("only for this example").build()?;
    let lifespan = Lifespan::builder(provider.clone()).start().await?;
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("page: http://{}\ndashboard: {}", listener.local_addr()?, service.dashboard_url());
    let packages = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/node_modules"));
    let server = axum::serve(listener, app(provider, packages)).with_graceful_shutdown(lifespan.signal());
    Ok(lifespan.run(server).await?)
}
