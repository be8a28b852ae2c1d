//! Chromium and its driver, which stop with the test.

use std::{path::Path, process::Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::{ChromiumLikeCapabilities, DesiredCapabilities, Key, LoggingPrefsLogLevel, WebDriver};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use super::{PATIENCE, eventually, in_time};

/// Runs axe-core, and passes the lines of [`Browser::accessibility_violations`] to the last argument.
const AXE: &str = "
    const done = arguments[arguments.length - 1];
    const line = ({ id, impact, help, nodes }) => [`${impact} ${id}: ${help}`,
        ...nodes.map(({ target, html, failureSummary }) => `  ${target}: ${html}\\n    ${failureSummary}`)].join('\\n');
    axe.run(document, { resultTypes: ['violations'], rules: { 'target-size': { enabled: true } } })
        .then(({ violations }) => done(violations.map(line)), (error) => done([String(error)]));
";

/// Chromium, with its own profile.
pub(crate) struct Browser {
    // Dropped before the profile, which is in use until then.
    _driver: Driver,
    session: WebDriver,
    _profile: TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The session need not be closed: the driver and its browser are killed.
        self.session.clone().leak().ok();
    }
}

impl Browser {
    pub(crate) async fn start() -> Self {
        let driver = Driver::start().await;
        let profile = tempfile::tempdir().unwrap();
        let mut wanted = DesiredCapabilities::chrome();
        let folder = format!("--user-data-dir={}", profile.path().display());
        for argument in [
            "--headless",
            // As root, Chromium only starts without the sandbox. It opens only our own pages.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1400,900",
            // Subdomains of a site, on loopback.
            "--host-resolver-rules=MAP *.shop.test 127.0.0.1",
            &folder,
        ] {
            wanted.add_arg(argument).unwrap();
        }
        wanted.set_browser_log_level(LoggingPrefsLogLevel::All).unwrap();
        let session = in_time(WebDriver::new(&driver.url, wanted)).await.expect("Chromium starts");
        Self { _driver: driver, session, _profile: profile }
    }

    pub(crate) async fn open(&self, url: &str) {
        in_time(self.session.goto(url)).await.unwrap();
    }

    /// Opens a tab and switches to it. Returns the tab before.
    pub(crate) async fn open_beside(&self, url: &str) -> thirtyfour::WindowHandle {
        let before = self.session.window().await.unwrap();
        let tab = self.session.new_tab().await.unwrap();
        self.switch_to(tab).await;
        self.open(url).await;
        before
    }

    pub(crate) async fn switch_to(&self, tab: thirtyfour::WindowHandle) {
        self.session.switch_to_window(tab).await.unwrap();
    }

    /// Evaluates a JavaScript expression in the page; `argument` is its `it`.
    pub(crate) async fn look(&self, expression: &str, argument: impl Into<Value>) -> Value {
        let script = format!("const it = arguments[0]; return ({expression});");
        in_time(self.session.execute(script, vec![argument.into()])).await.expect(expression).json().clone()
    }

    /// Waits until an expression is true in the page.
    pub(crate) async fn until(&self, expression: &str, argument: impl Into<Value>) {
        let argument = argument.into();
        // The element may not exist yet.
        let guarded = format!("(() => {{ try {{ return ({expression}); }} catch {{ return false; }} }})()");
        let holds = eventually(async || self.look(&guarded, argument.clone()).await == true);
        if tokio::time::timeout(PATIENCE / 2, holds).await.is_err() {
            let page = self.look("document.body.innerText", Value::Null).await;
            panic!("never: {expression}, of {argument}, on\n{}", page.as_str().unwrap_or_default());
        }
    }

    /// Clicks on the first match of a selector.
    pub(crate) async fn click(&self, selector: &str) {
        self.session.find(thirtyfour::By::Css(selector)).await.expect(selector).click().await.expect(selector);
    }

    /// Types into the focused element.
    pub(crate) async fn keys(&self, keys: impl Into<thirtyfour::TypingData>) {
        self.session.action_chain().send_keys(keys).perform().await.unwrap();
    }

    /// Replaces the text of the focused field.
    pub(crate) async fn retype(&self, text: &str) {
        let select_all = self.session.action_chain().key_down(Key::Control).send_keys("a").key_up(Key::Control);
        select_all.send_keys(text).perform().await.unwrap();
    }

    /// Presses Tab until the match of a selector has the focus.
    pub(crate) async fn tab_to(&self, selector: &str) {
        for _ in 0..300 {
            if self.look("document.activeElement.matches(it)", selector).await == true {
                let shown = "getComputedStyle(document.activeElement).outlineStyle !== 'none'";
                assert_eq!(self.look(shown, Value::Null).await, true, "the focus is seen on {selector}");
                return;
            }
            self.keys(Key::Tab).await;
        }
        panic!("no way to {selector} by the keyboard");
    }

    /// Emulates a system theme, `light` or `dark`, without animations.
    pub(crate) async fn prefer(&self, scheme: &str) {
        let features = json!([
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]);
        self.tell("Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    /// Emulates a screen of this size.
    pub(crate) async fn resize(&self, width: u32, height: u32) {
        let mobile = width < 500;
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile});
        self.tell("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Returns the warnings and errors of the console, which include policy violations.
    pub(crate) async fn complaints(&self) -> Vec<String> {
        let log = self.session.browser_log().await.unwrap();
        log.into_iter()
            .filter(|entry| matches!(entry.level.as_str(), "WARNING" | "SEVERE"))
            .map(|entry| entry.message)
            .collect()
    }

    /// Checks the page with axe-core: the rules of WCAG 2.2, levels A and AA, and recommendations. Returns a line for each
    /// violation, with the rule, its impact and the elements.
    pub(crate) async fn accessibility_violations(&self) -> Vec<String> {
        // WebDriver runs scripts regardless of the policy of the page.
        if self.look("window.axe === undefined", Value::Null).await == true {
            let path =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers/npm/node_modules/axe-core/axe.min.js");
            let axe = std::fs::read_to_string(&path).expect("axe-core, which tests/peers/setup installs");
            in_time(self.session.execute(format!("{axe}; window.axe = axe;"), Vec::new())).await.unwrap();
        }
        let lines = in_time(self.session.execute_async(AXE, Vec::new())).await.unwrap();
        serde_json::from_value(lines.json().clone()).unwrap()
    }

    async fn tell(&self, command: &str, parameters: Value) {
        self.session.cdp().send_raw(command, parameters).await.expect(command);
    }
}

/// The program that drives the browser, at the head of a group of processes.
struct Driver {
    process: Child,
    url: String,
    /// Kept open, so that the driver can continue to write.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Driver {
    async fn start() -> Self {
        in_time(async {
            loop {
                // The driver ends if the port that it has chosen for IPv4 is in use for IPv6.
                if let Some(driver) = Self::try_start().await {
                    break driver;
                }
            }
        })
        .await
    }

    async fn try_start() -> Option<Self> {
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver, of Debian's packages chromium and chromium-driver");
        let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
        while let Some(line) = output.next_line().await.unwrap() {
            if let Some((_, port)) = line.split_once("successfully on port ") {
                let url = format!("http://127.0.0.1:{}", port.trim_end_matches('.'));
                return Some(Self { process, url, _output: output });
            }
        }
        None
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The whole group, since the browser survives if only the driver is killed.
        if let Some(id) = self.process.id() {
            std::process::Command::new("kill").args(["-KILL", "--", &format!("-{id}")]).status().ok();
        }
    }
}
