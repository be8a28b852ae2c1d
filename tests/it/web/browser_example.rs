//! The example `browser` in Chromium, with the packages that `tests/peers/setup` has installed.

#[path = "../../../examples/browser.rs"]
#[expect(clippy::print_stdout, dead_code, unreachable_pub, reason = "a program, whose `main` is not called")]
mod example;

use std::{path::Path, time::Duration};

use flipswitch::{
    FlipswitchProvider, Lifespan,
    serde_json::{Value, json},
};
use flipswitch_local::LocalServer;
use tokio::net::TcpListener;

use crate::support::{browser::Browser, in_time};

#[tokio::test]
async fn the_example_greets_each_user_and_follows_changes() {
    let service = LocalServer::start(json!({"greeting": "Hello", "color": "teal"})).await.unwrap();
    let provider = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).build().unwrap();
    let lifespan = Lifespan::builder(provider.clone()).ready_timeout(Duration::from_secs(30)).require_ready(true);
    let lifespan = in_time(lifespan.start()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers/npm/node_modules");
    let app = example::app(provider.clone(), &packages);
    let server = axum::serve(listener, app).with_graceful_shutdown(lifespan.signal());
    let serving = tokio::spawn(async move { lifespan.run(server).await });

    let browser = Browser::start().await;
    let shows = async |text: &str| browser.until("document.getElementById('greeting').textContent === it", text).await;
    browser.open(&format!("{url}/login/alice")).await;
    shows("Hello").await;
    assert_eq!(browser.look("document.getElementById('server').textContent", Value::Null).await, "Hello");
    let for_bob = json!({
        "state": "ENABLED", "variants": {"all": "Good morning", "bob": "Hi Bob"}, "defaultVariant": "all",
        "targeting": {"if": [{"==": [{"var": "targetingKey"}, "bob"]}, "bob"]},
    });
    service.set_definition("greeting", for_bob).unwrap();
    shows("Good morning").await;
    browser.open(&format!("{url}/login/bob")).await;
    shows("Hi Bob").await;
    let complaints = browser.complaints().await;
    assert_eq!(complaints, [] as [String; 0]);
    in_time(provider.shutdown()).await;
    drop(browser);
    in_time(serving).await.unwrap().unwrap();
}
