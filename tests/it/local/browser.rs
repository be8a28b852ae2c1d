//! The dashboard in Chromium, and a page of an application in another tab.

use flipswitch_local::{Endpoint, Fault, LocalServer};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use thirtyfour::Key;

use crate::support::{browser::Browser, eventually, in_time, provider, reserved_port, user};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/flags.json");
const LIVE: &str = "document.querySelector('#connection').textContent === 'Live'";

/// The text of a cell in the row of a flag: `it` is `[key, selector]`.
const CELL: &str = "[...document.querySelectorAll('.flag')]
    .find((row) => row.querySelector('.flag-key').textContent === it[0])?.querySelector(it[1]).textContent";

/// Opens the dashboard of a service and waits until it is live.
async fn dashboard(service: &LocalServer) -> Browser {
    let browser = Browser::start().await;
    browser.open(&service.dashboard_url()).await;
    browser.until(LIVE, Value::Null).await;
    browser
}

/// Waits until a cell in the row of a flag shows this text.
async fn shows(browser: &Browser, key: &str, cell: &str, text: &str) {
    let holds = format!("(({CELL}) === it[2])");
    browser.until(&holds, json!([key, cell, text])).await;
}

async fn is_well(browser: &Browser) {
    assert_eq!(browser.complaints().await, Vec::<String>::new(), "no errors, and no violations of the policy");
}

async fn definition(service: &LocalServer, key: &str) -> Value {
    let answer = in_time(reqwest::get(format!("{}/local/flags", service.url()))).await.unwrap();
    let flags: Value = answer.json().await.unwrap();
    flags["flags"][key].clone()
}

#[tokio::test]
async fn toggling_a_flag_updates_an_applications_page() {
    let service = LocalServer::builder().flags_file(EXAMPLE).start().await.unwrap();
    let provider = provider(&service);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let page = format!("http://{}/", listener.local_addr().unwrap());
    let application = quickstart::app(provider.clone(), quickstart_common::stop(std::future::pending()));
    let serving = tokio::spawn(async move { axum::serve(listener, application).await });

    let browser = Browser::start().await;
    browser.open(&page).await;
    let new_feature = "[...document.querySelectorAll('dt')].filter((term) => term.textContent === 'new-feature')
        .map((term) => term.nextElementSibling.textContent).join() === it";
    browser.until(new_feature, "false,false").await;
    browser.look("window.same = true", Value::Null).await;
    is_well(&browser).await;

    let application = browser.open_beside(&service.dashboard_url()).await;
    browser.until("document.querySelectorAll('.flag').length === it", 7).await;
    shows(&browser, "new-feature", ".value code", "false").await;
    shows(&browser, "max-projects", ".about", "integer · targeting").await;
    shows(&browser, "old-checkout", ".pill", "Disabled").await;
    browser.click("[role=switch][aria-label='new-feature']").await;
    shows(&browser, "new-feature", ".value code", "true").await;
    browser.until("document.querySelector('[aria-label=new-feature]').ariaChecked === 'true'", Value::Null).await;
    browser.until("document.querySelector('#message').textContent === it", "new-feature is on now.").await;
    is_well(&browser).await;

    browser.switch_to(application).await;
    browser.until(new_feature, "true,true").await;
    assert_eq!(browser.look("window.same", Value::Null).await, true, "the same page, not loaded again");
    serving.abort();
    provider.shutdown().await;
}

#[tokio::test]
async fn flags_can_be_added_edited_and_deleted_by_keyboard() {
    let service = LocalServer::start(json!({"a": {"list": [9_007_199_254_740_993_u64]}, "z": true})).await.unwrap();
    let browser = dashboard(&service).await;
    shows(&browser, "a", ".value code", r#"{"list":[9007199254740993]}"#).await;

    browser.tab_to("#add").await;
    browser.keys(Key::Enter).await;
    browser.until("document.querySelector('#editor').open", Value::Null).await;
    browser.keys(Key::Escape).await;
    browser.until("!document.querySelector('#editor').open && document.activeElement.id === 'add'", Value::Null).await;

    // An invalid value is reported at its field.
    browser.keys(Key::Enter).await;
    browser.keys("limit").await;
    browser.tab_to("select[name=type]").await;
    browser.keys("number").await;
    browser.tab_to("textarea[name=text]").await;
    browser.keys("ten").await;
    browser.tab_to("#editor button.primary").await;
    browser.keys(Key::Enter).await;
    browser.until("document.activeElement.getAttribute('aria-describedby') === 'editor-error'", Value::Null).await;
    browser.retype("10").await;
    browser.tab_to("#editor button.primary").await;
    browser.keys(Key::Enter).await;
    shows(&browser, "limit", ".value code", "10").await;
    assert_eq!(definition(&service, "limit").await, json!({"value": 10}));

    // The service reports mistakes in a definition.
    browser.tab_to("[aria-label='Edit limit']").await;
    browser.keys(Key::Enter).await;
    browser.tab_to("input[name=kind]").await;
    browser.keys(Key::Right).await;
    browser.tab_to("textarea[name=definition]").await;
    for (text, reason) in [
        ("{", "not JSON: EOF"),
        (
            r#"{"state": "ENABLED", "variants": {"few": 3}, "defaultVariant": "many"}"#,
            "defaultVariant: \"many\" is not one of",
        ),
    ] {
        browser.retype(text).await;
        browser.tab_to("#editor button.primary").await;
        browser.keys(Key::Enter).await;
        browser.until("document.querySelector('#editor-error').textContent.includes(it)", reason).await;
    }
    browser.retype(r#"{"state": "ENABLED", "variants": {"few": 3, "many": 100}, "defaultVariant": "many"}"#).await;
    browser.tab_to("#editor button.primary").await;
    browser.keys(Key::Enter).await;
    shows(&browser, "limit", ".value code", "100").await;
    browser.until("document.activeElement.ariaLabel === it", "Edit limit").await;

    // Numbers that do not fit a double are kept.
    browser.tab_to("[aria-label='Edit a']").await;
    browser.keys(Key::Enter).await;
    browser.tab_to("#editor button.primary").await;
    browser.keys(Key::Enter).await;
    browser.until("!document.querySelector('#editor').open", Value::Null).await;
    assert_eq!(definition(&service, "a").await, json!({"value": {"list": [9_007_199_254_740_993_u64]}}));

    browser.tab_to("[aria-label='Delete limit']").await;
    browser.keys(Key::Enter).await;
    browser.tab_to("#remover button.danger").await;
    browser.keys(Key::Enter).await;
    browser.until("document.querySelectorAll('.flag').length === it", 2).await;
    browser.until("document.activeElement.ariaLabel === it", "Edit z").await;
    assert_eq!(definition(&service, "limit").await, Value::Null);

    browser.tab_to("[role=switch][aria-label=z]").await;
    browser.keys(" ").await;
    shows(&browser, "z", ".value code", "false").await;
    browser.until("document.activeElement.ariaLabel === it", "z").await;
    let complaints = browser.complaints().await;
    assert!(
        complaints.iter().all(|line| line.contains("/local/flags/limit") && line.contains("400")),
        "{complaints:?}"
    );
}

#[tokio::test]
async fn flags_are_evaluated_for_a_context() {
    let service = LocalServer::builder().flags_file(EXAMPLE).start().await.unwrap();
    let browser = dashboard(&service).await;
    shows(&browser, "max-projects", ".value code", "3").await;
    for (key, attributes) in
        [("alice", "plan=premium, age=18"), ("", r#"{"targetingKey": "alice", "plan": "premium"}"#)]
    {
        browser.click("#context [name=targetingKey]").await;
        browser.keys(key).await;
        browser.click("#context [name=attributes]").await;
        browser.keys(attributes).await;
        browser.keys(Key::Enter).await;
        shows(&browser, "max-projects", ".value code", "100").await;
        shows(&browser, "max-projects", ".why", "many · TARGETING_MATCH").await;
        shows(&browser, "premium-dashboard", ".value code", "true").await;
        // Changes are evaluated for the same context.
        service.set_flag("new-feature", key);
        shows(&browser, "new-feature", ".value code", &json!(key).to_string()).await;
        browser.until("document.querySelector('#evaluated-for').textContent.includes(it)", "alice").await;
        browser.click("#context [type=reset]").await;
        shows(&browser, "max-projects", ".value code", "3").await;
    }
    is_well(&browser).await;
    for (attributes, reason) in [("plan", "write name=value"), ("{", "JSON"), ("targetingKey=1", "must be a string")] {
        browser.click("#context [name=attributes]").await;
        browser.retype(attributes).await;
        browser.keys(Key::Enter).await;
        browser.until("document.querySelector('#context-error').textContent.includes(it)", reason).await;
    }
}

#[tokio::test]
async fn streams_requests_and_faults_are_shown_and_changed_live() {
    let service =
        LocalServer::builder().flags(json!({"a": 1})).api_key("a-key-not-to-be-seen-0815").start().await.unwrap();
    let browser = dashboard(&service).await;
    let streams = "document.querySelector('#stream-count').textContent === it";
    browser.until(streams, "0").await;
    let provider = provider(&service);
    provider.flags(&user("alice")).await;
    browser.until(streams, "1").await;
    browser.until("document.querySelector('#streams code').textContent.startsWith(it)", "rust/").await;
    browser.until("document.querySelector('#requests').textContent.includes(it)", r#""targetingKey":"alice""#).await;
    browser.click("[data-end=finish]").await;
    eventually(async || provider.stats().reconnects > 0).await;
    provider.shutdown().await;
    browser.until(streams, "0").await;
    is_well(&browser).await;

    let asked = async || {
        let request = Client::new().post(format!("{}/ofrep/v1/evaluate/flags", service.url()));
        in_time(request.header("x-api-key", service.api_key()).body("{}").send()).await.unwrap().status()
    };
    browser.click("#presets button").await;
    browser.until("document.querySelector('#faults code').textContent === it", "status · code 503").await;
    assert_eq!(asked().await, StatusCode::SERVICE_UNAVAILABLE);
    browser.until("document.querySelector('.applied').textContent === it", "applied 1").await;
    browser.until("document.querySelector('.status').textContent === it", "503").await;
    browser.click("[aria-label='Remove fault 1']").await;
    browser.until("document.querySelector('#faults').children.length === it", 0).await;
    assert_eq!(asked().await, StatusCode::OK);

    // A custom fault, at first with a mistake.
    browser.click("summary").await;
    browser.click("#fault [name=parameter]").await;
    for (code, outcome) in [("7", "effect.status.code: 7 is not between"), ("418", "")] {
        browser.retype(code).await;
        browser.keys(Key::Enter).await;
        browser.until("document.querySelector('#fault-error').textContent.startsWith(it)", outcome).await;
    }
    eventually(async || asked().await == StatusCode::IM_A_TEAPOT).await;
    assert_eq!(service.faults().active()[0].fault, Fault::on(Endpoint::Bulk).status(418));
    browser.click("#clear-faults").await;
    eventually(async || service.faults().active().is_empty()).await;

    // A fault for some contexts only, at first on an endpoint without contexts.
    for (name, text) in [("targetingKeys", "bob, eve"), ("attributes", "plan=premium, age=18, beta")] {
        browser.click(&format!("#fault [name={name}]")).await;
        browser.retype(text).await;
    }
    for (on, outcome) in [("stream", "when: requires evaluations"), ("bulk", "")] {
        browser.look(&format!("document.querySelector('#fault').elements.on.value = '{on}'"), Value::Null).await;
        browser.keys(Key::Enter).await;
        browser.until("document.querySelector('#fault-error').textContent.startsWith(it)", outcome).await;
        browser.click("#fault [name=attributes]").await;
    }
    eventually(async || !service.faults().active().is_empty()).await;
    let expected = Fault::on(Endpoint::Bulk).status(418).for_targeting_key("bob").for_targeting_key("eve");
    let expected = expected.for_attribute_value("plan", "premium").for_attribute_value("age", 18).for_attribute("beta");
    assert_eq!(service.faults().active()[0].fault, expected);
    assert_eq!(asked().await, StatusCode::OK);
    let listed = r#"targetingKeys ["bob","eve"]"#;
    browser.until("document.querySelector('#faults code').textContent.includes(it)", listed).await;
    browser.click("#clear-faults").await;
    eventually(async || service.faults().active().is_empty()).await;

    let seen = "document.documentElement.outerHTML";
    browser.click("#rotate").await;
    browser.click("#rotator .primary").await;
    browser.until("!document.querySelector('#rotated').hidden", Value::Null).await;
    let page = browser.look(seen, Value::Null).await;
    let (key, page) = (service.api_key(), page.as_str().unwrap());
    assert!(key.starts_with("local-") && page.contains(&key[key.len() - 4..]), "{key}");
    assert!(!page.contains(&key) && !page.contains("a-key-not-to-be-seen"), "{page}");
}

#[tokio::test]
async fn hostile_text_is_shown_as_text() {
    const KEY: &str = r#"<img src=x onerror="window.hurt = 1; alert(1)">"#;
    const VALUE: &str = "</script><script>window.hurt = 2</script><b>bold</b>";
    let service = LocalServer::start(json!({"__proto__": {"hurt": 1}, "constructor": true})).await.unwrap();
    service.set_flag(KEY, VALUE);
    service.set_definition("</b>", json!({
        "state": "ENABLED", "variants": {KEY: VALUE}, "defaultVariant": KEY, "targeting": {"if": [true, {"cat": [KEY, "!"]}]},
    }))
    .unwrap();
    let browser = dashboard(&service).await;
    shows(&browser, KEY, ".value code", &json!(VALUE).to_string()).await;
    shows(&browser, "__proto__", ".value code", r#"{"hurt":1}"#).await;
    shows(&browser, "</b>", ".value code", "GENERAL").await;
    // As the name of a client, in a request, in a fault, and in messages of the service.
    let agent = Client::builder().user_agent(KEY).build().unwrap();
    let stream = agent.get(format!("{}/api/v1/flags/events", service.url())).send().await.unwrap();
    let context = json!({"context": {"targetingKey": KEY}}).to_string();
    agent
        .post(format!("{}/ofrep/v1/evaluate/flags/%3Cb%3E?{}", service.url(), "<b>"))
        .body(context)
        .send()
        .await
        .unwrap();
    service.faults().add(Fault::on(Endpoint::All).garbage(KEY)).unwrap();
    browser.until("document.querySelector('#streams').textContent.includes(it)", KEY).await;
    browser.until("document.querySelector('#requests').textContent.includes(it)", "window.hurt").await;
    browser.until("document.querySelector('#faults').textContent.includes(it)", "window.hurt").await;
    drop(stream);

    let button = "[...document.querySelectorAll('.edit')].find((button) => button.ariaLabel === 'Edit ' + it).click()";
    browser.look(button, KEY).await;
    browser.until("document.querySelector('#editor [name=key]').value === it", KEY).await;
    browser.click("#editor .primary").await;
    browser.until("document.querySelector('#message').textContent.includes(it)", KEY).await;
    let remove =
        "[...document.querySelectorAll('.delete')].find((button) => button.ariaLabel === 'Delete ' + it).click()";
    browser.look(remove, KEY).await;
    browser.until("document.querySelector('#flag-to-delete').textContent === it", KEY).await;
    browser.click("#remover .danger").await;
    browser.until("document.querySelectorAll('.flag').length === it", 3).await;
    let harm = "window.hurt !== undefined || ({}).hurt !== undefined || document.querySelector('[src=x], main script, td b') !== null";
    assert_eq!(browser.look(harm, Value::Null).await, false);
    is_well(&browser).await;
}

/// The lowest contrast of any visible text against its background.
const CONTRAST: &str = "(() => {
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
        .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
    const behind = (element) => {
        const colour = parts(getComputedStyle(element).backgroundColor);
        return colour[3] === 0 ? behind(element.parentElement) : colour;
    };
    let least = [99];
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || !element.checkVisibility() || element.disabled) continue;
        const [a, b] = [light(parts(getComputedStyle(element).color)), light(behind(element))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < least[0]) least = [contrast, element.outerHTML.slice(0, 200)];
    }
    return least;
})()";

#[tokio::test]
async fn the_dashboard_is_readable_in_light_and_dark_and_on_a_phone() {
    let service = LocalServer::builder().flags_file(EXAMPLE).start().await.unwrap();
    let long = "a-long-key-".repeat(30);
    service.set_flag(&long, json!({"list": (0..1_000).collect::<Vec<_>>(), "text": "x".repeat(5_000)}));
    service.set_flag("unbroken", "y".repeat(500));
    (0..100).for_each(|index| service.set_flag(&format!("flag-{index}"), index % 2 == 0));
    service.faults().add(Fault::on(Endpoint::Bulk).garbage("z".repeat(500))).unwrap();
    let path = format!("{}/ofrep/v1/evaluate/flags/{}", service.url(), "p".repeat(500));
    in_time(Client::new().post(path).body("q".repeat(500)).send()).await.unwrap();

    let browser = dashboard(&service).await;
    browser.until("document.querySelectorAll('.flag').length === it", 109).await;
    browser.until("document.querySelectorAll('.request, .fault').length === it", 2).await;
    let mut pages = Vec::new();
    for scheme in ["light", "dark"] {
        browser.prefer(scheme).await;
        let least = browser.look(CONTRAST, Value::Null).await;
        assert!(least[0].as_f64().unwrap() >= 4.5, "{scheme}: {least}");
        pages.push(browser.look("getComputedStyle(document.body).backgroundColor", Value::Null).await);
    }
    assert_ne!(pages[0], pages[1]);

    let fits = "document.documentElement.scrollWidth <= it && innerWidth === it";
    for width in [390, 760, 1_000, 1_400] {
        browser.resize(width, 844).await;
        browser.until(fits, width).await;
        for (open, close) in [("#add", "#editor [data-close]"), ("#rotate", "#rotator [data-close]")] {
            browser.click(open).await;
            browser.until("document.querySelector('dialog[open]').getBoundingClientRect().right <= it", width).await;
            browser.click(close).await;
        }
        let labels = "[...document.querySelectorAll('button, input, select, textarea')].every((field) =>
            field.ariaLabel || field.textContent.trim() || field.labels?.length)";
        assert_eq!(browser.look(labels, Value::Null).await, true, "every control has a name");
    }
    is_well(&browser).await;
}

#[tokio::test]
async fn the_dashboard_reconnects_to_a_restarted_service() {
    let address = reserved_port();
    let service = LocalServer::builder().flags(json!({"a": 1})).listen(address).start().await.unwrap();
    let browser = dashboard(&service).await;
    shows(&browser, "a", ".value code", "1").await;
    is_well(&browser).await;
    in_time(service.shutdown()).await;
    browser.until("!document.querySelector('#offline').hidden", Value::Null).await;
    browser.click("#presets button").await;
    browser.until("document.querySelector('#message').textContent === it", "The server is not responding.").await;
    shows(&browser, "a", ".value code", "1").await;
    let service = LocalServer::builder().flags(json!({"a": 2})).listen(address).start().await.unwrap();
    shows(&browser, "a", ".value code", "2").await;
    browser.until("document.querySelector('#offline').hidden", Value::Null).await;
    drop(service);
}
