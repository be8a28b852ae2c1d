//! Accessibility of the dashboard and of the quick start's page: with axe-core, and by keyboard.

use std::net::SocketAddr;

use flipswitch_local::{Endpoint, Fault, LocalServer};
use reqwest::Client;
use serde_json::{Value, json};
use thirtyfour::Key;
use tokio::net::TcpListener;

use crate::support::{browser::Browser, in_time, provider};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/flags.json");

async fn dashboard(service: &LocalServer) -> Browser {
    let browser = Browser::start().await;
    browser.open(&service.dashboard_url()).await;
    browser.until("document.querySelector('#connection').textContent === 'Live'", Value::Null).await;
    browser
}

/// Checks a state of the page in both colour schemes.
async fn is_accessible(browser: &Browser, state: &str) {
    for scheme in ["light", "dark"] {
        browser.prefer(scheme).await;
        let violations = browser.accessibility_violations().await;
        assert!(violations.is_empty(), "{state}, {scheme}:\n{}", violations.join("\n"));
    }
}

#[tokio::test]
async fn an_empty_dashboard_is_accessible_and_says_what_to_do() {
    let service = LocalServer::builder().api_key("a-key-that-is-long-0815").start().await.unwrap();
    let browser = dashboard(&service).await;
    browser.until("document.querySelector('#no-flags').checkVisibility()", Value::Null).await;
    browser.until("document.querySelector('#wanted-key').textContent.endsWith('0815')", Value::Null).await;
    let text = browser.look("document.body.innerText", Value::Null).await;
    for part in ["flipswitch-local --flags FILE", "Add a fault", "No open streams", &service.url(), "No requests yet"] {
        assert!(text.as_str().unwrap().contains(part), "{part} in {text}");
    }
    is_accessible(&browser, "no flags").await;
}

#[tokio::test]
async fn the_dashboard_is_accessible_in_every_state() {
    let service = LocalServer::builder().flags_file(EXAMPLE).start().await.unwrap();
    service.set_flag("plain", "text");
    let broken = json!({
        "state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "on", "targeting": {"cat": ["no", "variant"]},
    });
    service.set_definition("broken", broken).unwrap();
    service.faults().add(Fault::on(Endpoint::Bulk).status(503).times(1)).unwrap();
    service.faults().add(Fault::on(Endpoint::Stream).no_heartbeats()).unwrap();
    for _ in 0..2 {
        let request = Client::new().post(format!("{}/ofrep/v1/evaluate/flags", service.url()));
        in_time(request.body(r#"{"context": {"targetingKey": "alice"}}"#).send()).await.unwrap();
    }
    let stream = in_time(reqwest::get(format!("{}/api/v1/flags/events", service.url()))).await.unwrap();

    let browser = dashboard(&service).await;
    let complete =
        "['.flag', '.fault', '.stream', '.request'].map((it) => document.querySelectorAll(it).length).join() === it";
    browser.until(complete, "9,2,1,3").await;
    is_accessible(&browser, "flags, faults, streams and requests").await;

    for (opener, dialog) in [
        ("#add", "#editor"),
        ("[aria-label='Edit max-projects']", "#editor"),
        ("[aria-label='Delete max-projects']", "#remover"),
        ("#rotate", "#rotator"),
    ] {
        browser.click(opener).await;
        browser.until("document.querySelector(it).open", dialog).await;
        is_accessible(&browser, opener).await;
        browser.click(&format!("{dialog} [data-close]")).await;
    }

    // Errors at fields, and a message.
    browser.click("#add").await;
    browser.click("#editor .primary").await;
    browser.until("document.querySelector('#editor-error').textContent !== ''", Value::Null).await;
    is_accessible(&browser, "the editor with an error").await;
    browser.click("#editor [data-close]").await;
    browser.click("#rotate").await;
    browser.click("#rotator .primary").await;
    browser.until("!document.querySelector('#rotated').hidden", Value::Null).await;
    is_accessible(&browser, "a new API key").await;
    browser.click("#rotator [data-close]").await;
    browser.click("#filter").await;
    browser.keys("no such flag").await;
    browser.until("document.querySelector('#no-match').checkVisibility()", Value::Null).await;
    is_accessible(&browser, "no flag that matches").await;
    browser.retype(" ").await;
    browser.keys(Key::Backspace).await;

    // Also at 400 % of a window that is 1280 pixels wide.
    browser.click("summary").await;
    browser.resize(320, 256).await;
    browser.until("document.documentElement.scrollWidth <= it", 320).await;
    is_accessible(&browser, "a narrow window").await;
    browser.resize(1_400, 900).await;

    drop(stream);
    in_time(service.shutdown()).await;
    browser.until("!document.querySelector('#offline').hidden", Value::Null).await;
    is_accessible(&browser, "offline").await;
}

#[tokio::test]
async fn the_page_of_the_quick_start_is_accessible() {
    let service = LocalServer::builder().flags_file(EXAMPLE).start().await.unwrap();
    let provider = provider(&service);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let page: SocketAddr = listener.local_addr().unwrap();
    let application = quickstart::app(provider.clone(), quickstart_common::stop(std::future::pending()));
    let serving = tokio::spawn(async move { axum::serve(listener, application).await });

    let browser = Browser::start().await;
    browser.open(&format!("http://{page}/")).await;
    browser.until("document.querySelectorAll('dt').length === it", 14).await;
    is_accessible(&browser, "with flags").await;
    let keys = browser
        .look("[...document.querySelectorAll('section:first-of-type dt')].map((key) => key.textContent)", Value::Null)
        .await;
    let keys = keys.as_array().unwrap();
    assert!(!keys.is_empty());
    for key in keys {
        assert!(service.remove_flag(key.as_str().unwrap()), "{key}");
    }
    browser
        .until("[...document.querySelectorAll('.empty')].filter((text) => text.checkVisibility()).length === it", 2)
        .await;
    is_accessible(&browser, "without flags").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    serving.abort();
    provider.shutdown().await;
}

/// The accessible name of the focused element, for the kinds of elements on this page.
const FOCUSED: &str = "(() => {
    const element = document.activeElement;
    return element.ariaLabel ?? (element.labels?.[0] ?? element).textContent.trim().replaceAll(/\\s+/g, ' ');
})()";

#[tokio::test]
async fn the_keyboard_reaches_every_control_in_order() {
    let service = LocalServer::start(json!({"a": false})).await.unwrap();
    let theme = json!({"state": "ENABLED", "variants": {"dark": "#000", "light": "#fff"}, "defaultVariant": "dark"});
    service.set_definition("theme", theme).unwrap();
    let browser = dashboard(&service).await;
    browser.until("document.querySelectorAll('.flag').length === it", 2).await;

    let mut reached = Vec::new();
    while reached.last().is_none_or(|last| last != "Custom fault") {
        browser.keys(Key::Tab).await;
        reached.push(browser.look(FOCUSED, Value::Null).await.as_str().unwrap().to_owned());
        assert!(reached.len() < 50, "{reached:?}");
    }
    let expected = [
        "Rotate …",
        "Find a flag",
        "Add a flag",
        "Targeting key",
        "Attributes",
        "Evaluate",
        "Anonymous",
        "a",
        "Edit a",
        "Delete a",
        "theme is enabled: disable it",
        "Variant of theme",
        "Edit theme",
        "Delete theme",
        "Evaluations: 503",
    ];
    assert_eq!(reached[..expected.len()], expected);

    browser.tab_to("[role=switch][aria-label=a]").await;
    for (key, checked) in [(Key::Space, "true"), (Key::Enter, "false")] {
        browser.keys(key).await;
        browser.until("document.querySelector('[role=switch][aria-label=a]').ariaChecked === it", checked).await;
        browser.until("document.activeElement.role === 'switch'", Value::Null).await;
    }

    for (opener, dialog) in [
        ("#add", "#editor"),
        ("[aria-label='Edit theme']", "#editor"),
        ("[aria-label='Delete theme']", "#remover"),
        ("#rotate", "#rotator"),
    ] {
        browser.tab_to(opener).await;
        browser.keys(Key::Enter).await;
        browser
            .until("document.querySelector(it).open && document.activeElement.closest('dialog')?.open", dialog)
            .await;
        browser.keys(Key::Escape).await;
        browser.until("!document.querySelector('dialog[open]') && document.activeElement.matches(it)", opener).await;
    }
}
