//! A page whose flags come from the application that serves it, with the OpenFeature web SDK (axum). The page and the server
//! have the same values for a user, and open pages follow changes.
//!
//! ```text
//! $ npm install --prefix examples/browser
//! $ cargo run -p examples --bin browser
//! ```
//!
//! Open `http://127.0.0.1:3000/` in a browser, and change `greeting` or `color` in the dashboard, whose URL the example prints.
//! The page is in `browser/page.html`. The server puts values into it, and responds to the SDK at `/flags`:
//!
//! ```text
//! $ curl http://127.0.0.1:3000/ | grep 'The server says'
//! <p>The server says: <q id="server">Hello</q></p>
//! $ curl http://127.0.0.1:3000/flags/ofrep/v1/evaluate/flags -H 'content-type: application/json' -d '{}' | grep -o Hello
//! Hello
//! ```

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

/// Flags that anyone may see. The others stay in the application.
const PUBLIC: [&str; 2] = ["greeting", "color"];

#[derive(Clone)]
struct User(String);

/// The page: one value from the server, and the values with which its script starts.
async fn page(flags: Flags) -> Html<String> {
    // A value is text, not markup.
    let greeting = flags.string("greeting", "Hello").replace('&', "&amp;").replace('<', "&lt;");
    // The JSON comes last, because a value could contain the other placeholder.
    let page = include_str!("browser/page.html").replace("{server}", &greeting);
    Html(page.replacen("{start}", &flags.to_ofrep_json(PUBLIC), 1))
}

/// Stands in for a login. A real one would check a password.
async fn log_in(extract::Path(user): extract::Path<String>) -> Response {
    match user.as_str() {
        "alice" | "bob" => {
            ([(header::SET_COOKIE, format!("user={user}; Path=/; HttpOnly"))], Redirect::to("/")).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Stands in for a session: puts the user into the request. Anyone can forge this cookie.
async fn authenticate(mut request: Request, next: Next) -> Response {
    let cookies = request.headers().get(header::COOKIE).and_then(|cookies| cookies.to_str().ok()).unwrap_or_default();
    let user = cookies.split("; ").find_map(|cookie| cookie.strip_prefix("user=")).map(|user| User(user.to_owned()));
    if let Some(user) = user {
        request.extensions_mut().insert(user);
    }
    next.run(request).await
}

pub fn app(provider: FlipswitchProvider, packages: &Path) -> Router {
    Router::new()
        .route("/", get(page))
        .nest("/flags", flipswitch_axum::browser(provider.clone()).public(PUBLIC).into_router())
        .layer(FlipswitchLayer::new(provider).with_user(|user: &User| Context::user(&user.0)))
        // Added after the flags, and therefore runs before them.
        .layer(from_fn(authenticate))
        .route("/login/{user}", get(log_in))
        // The packages of the SDK. A bundler can make them part of the page's own script instead.
        .nest_service("/npm", ServeDir::new(packages))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // Starts a flag service for this example. In production, the builder gets the API key of the hosted service, and no URL.
    let service = LocalServer::start(json!({"greeting": "Hello", "color": "teal"})).await?;
    let provider = FlipswitchProvider::builder(service.api_key())
        .base_url(service.url())
        // Pages know the user by an opaque name, which is made with this secret. In production, read it from the environment.
        .secret("only for this example")
        .build()?;

    let lifespan = Lifespan::builder(provider.clone()).start().await?;
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("Application  http://{}/", listener.local_addr()?);
    println!("Dashboard    {}", service.dashboard_url());
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser/node_modules");
    let server = axum::serve(listener, app(provider, &packages)).with_graceful_shutdown(lifespan.signal());
    Ok(lifespan.run(server).await?)
}
