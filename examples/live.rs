//! A WebSocket and an event stream that follow their flags while they are open (axum).
//!
//! ```text
//! $ cargo run -p examples --bin live
//! $ curl --no-buffer http://127.0.0.1:3000/discount
//! data: The discount is 10 percent.
//! ```
//!
//! Set `discount` to 20 in the dashboard, whose URL the example prints, and `curl` prints the next event immediately.
//!
//! Then connect to the WebSocket in a browser console, or in Node.js 22. Set `chat` to `false` in the dashboard, and the
//! application closes the WebSocket:
//!
//! ```js
//! const chat = new WebSocket("ws://127.0.0.1:3000/chat");
//! chat.onopen = () => chat.send("Good morning");
//! chat.onmessage = (message) => console.log(message.data);
//! chat.onclose = () => console.log("closed");
//! ```

use std::{convert::Infallible, error::Error, sync::Arc};

use axum::{
    Extension, Router,
    extract::{
        State,
        ws::{WebSocket, WebSocketUpgrade},
    },
    response::{
        Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use flipswitch_axum::{FlipswitchLayer, FlipswitchProvider, Lifespan, RequestScope, flipswitch::serde_json::json};
use flipswitch_local::LocalServer;
use futures_util::{Stream, StreamExt, stream};
use tokio::net::TcpListener;

/// Passes the scope of the request to the WebSocket. Its `latest_flags` returns the current flags for the same user.
async fn chat(Extension(scope): Extension<RequestScope>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async move |socket| talk(socket, scope).await)
}

/// Sends each message back, until the flag is turned off.
async fn talk(mut socket: WebSocket, scope: RequestScope) {
    let mut events = scope.provider().events();
    while scope.latest_flags().await.bool("chat", false) {
        tokio::select! {
            message = socket.recv() => {
                let Some(Ok(message)) = message else { return };
                if socket.send(message).await.is_err() {
                    return;
                }
            }
            // Flags may have changed. `None` means that the provider was shut down.
            event = events.recv() => if event.is_none() { return },
        }
    }
}

/// Sends the discount, and each new one.
async fn discount(
    State(lifespan): State<Arc<Lifespan>>,
    Extension(scope): Extension<RequestScope>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let events = scope.provider().events();
    let discounts = stream::unfold((scope, events, None), async |(scope, mut events, sent)| {
        loop {
            let discount = scope.latest_flags().await.int("discount", 0);
            if sent != Some(discount) {
                let event = Event::default().data(format!("The discount is {discount} percent."));
                return Some((Ok(event), (scope, events, Some(discount))));
            }
            events.recv().await?;
        }
    });
    // An open response would delay the shutdown.
    Sse::new(discounts.take_until(lifespan.signal())).keep_alive(KeepAlive::default())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // Starts a flag service for this example. In production, `FlipswitchProvider::from_env()?` replaces these two lines.
    let service = LocalServer::start(json!({"chat": true, "discount": 10})).await?;
    let provider = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).build()?;

    let lifespan = Arc::new(Lifespan::builder(provider.clone()).start().await?);
    let app = Router::new()
        .route("/chat", get(chat))
        .route("/discount", get(discount))
        .layer(FlipswitchLayer::new(provider))
        .with_state(lifespan.clone());
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("Application  http://{}/discount", listener.local_addr()?);
    println!("Dashboard    {}", service.dashboard_url());
    let server = axum::serve(listener, app).with_graceful_shutdown(lifespan.signal());
    Ok(lifespan.run(server).await?)
}
