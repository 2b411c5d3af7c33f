//! A browser: Chromium, as a person uses it.

use std::path::PathBuf;

use serde_json::{Value, json};
use thirtyfour::{By, ChromeCapabilities, ChromiumLikeCapabilities, LoggingPrefsLogLevel, TypingData, WebDriver, WebElement};
use tokio::process::Command;
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};
use uuid::Uuid;

use super::balancer::{found_or_skipped, is_installed};
use super::person::{PASSWORD, Person};
use super::{Process, clients, eventually, free_port};

/// How many browsers run at a time. Each takes a core for a while.
const MAX_BROWSERS: usize = 2;

/// A browser with a profile of its own. A test ends it with [`Browser::end`].
pub struct Browser {
    pub driver: WebDriver,
    profile: PathBuf,
    _chromedriver: Process,
    _turn: SemaphorePermit<'static>,
}

impl Browser {
    /// Opens the page of a service. Returns `None` if this machine has no browser, or if the service has no page.
    pub async fn open(url: &str) -> Option<Self> {
        static TURNS: Semaphore = Semaphore::const_new(MAX_BROWSERS);
        // A project may delete the page and keep the features that it shows.
        if clients::get(url).await.expect("web answers").status() == 404 {
            println!("skipped: needs a page at /");
            return None;
        }
        // Debian's package is named differently, and brings the browser, too.
        if !found_or_skipped(is_installed("chromedriver"), "chromium-driver") {
            return None;
        }
        let turn = TURNS.acquire().await.expect("it is never closed");
        let port = free_port();
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}"));
        let chromedriver = Process::spawn(command);
        chromedriver.line("chromedriver", |line| line.contains("was started successfully")).await;
        let mut chrome = ChromeCapabilities::new();
        let arguments = [
            "--headless=new",
            // The browser ends with chromedriver, however that ends.
            "--remote-debugging-pipe",
            // Chromium refuses to run as root with its sandbox.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-breakpad",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--lang=en-US",
            "--window-size=1280,800",
        ];
        for argument in arguments {
            chrome.add_arg(argument).expect("an argument");
        }
        let profile = std::env::temp_dir().join(format!("browser-{}", Uuid::new_v4().simple()));
        chrome.add_arg(&format!("--user-data-dir={}", profile.display())).expect("an argument");
        chrome.set_browser_log_level(LoggingPrefsLogLevel::All).expect("a level");
        let driver = WebDriver::new(format!("http://127.0.0.1:{port}"), chrome).await.expect("a browser");
        let browser = Self { driver, profile, _chromedriver: chromedriver, _turn: turn };
        browser.go(url).await;
        Some(browser)
    }

    /// Shows pages at this size, in light or dark colors.
    pub async fn look(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        for (method, parameters) in [("Emulation.setDeviceMetricsOverride", size), ("Emulation.setEmulatedMedia", media)] {
            self.driver.cdp().send_raw(method, parameters).await.expect("a look");
        }
    }

    pub async fn go(&self, url: &str) {
        self.driver.goto(url).await.expect("a page");
    }

    /// Waits for a visible element.
    pub async fn shown(&self, css: &str) -> WebElement {
        eventually(&format!("{css} on the page"), async || {
            for element in self.driver.find_all(By::Css(css)).await.ok()? {
                if element.is_displayed().await.ok()? {
                    return Some(element);
                }
            }
            None
        })
        .await
    }

    /// Waits until the visible elements are so many.
    pub async fn shows(&self, css: &str, count: usize) {
        eventually(&format!("{count} of {css}"), async || {
            let mut shown = 0;
            for element in self.driver.find_all(By::Css(css)).await.ok()? {
                shown += usize::from(element.is_displayed().await.ok()?);
            }
            (shown == count).then_some(())
        })
        .await;
    }

    /// Waits until an element shows a text, and returns all that it shows.
    pub async fn says(&self, css: &str, text: &str) -> String {
        eventually(&format!("{css} that says `{text}`"), async || {
            for element in self.driver.find_all(By::Css(css)).await.ok()? {
                let said = element.text().await.ok()?;
                if said.contains(text) {
                    return Some(said);
                }
            }
            None
        })
        .await
    }

    pub async fn press(&self, css: &str) {
        let element = self.shown(css).await;
        // As a person does, out from under the foot of the page.
        self.run("arguments[0].scrollIntoView({ block: 'center' })", vec![element.to_json().expect("JSON")]).await;
        element.click().await.expect("a click");
    }

    /// Presses a button that asks for a second click.
    pub async fn press_twice(&self, css: &str) {
        self.press(css).await;
        self.press(css).await;
    }

    /// Presses a key, wherever the focus is.
    pub async fn key(&self, key: impl Into<TypingData>) {
        self.driver.action_chain().send_keys(key).perform().await.expect("a key");
    }

    /// Fills the fields of a form by their names.
    pub async fn fill(&self, form: &str, fields: &[(&str, &str)]) {
        for (name, value) in fields {
            let field = self.shown(&format!("{form} [name={name}]")).await;
            if field.attr("type").await.expect("an attribute").as_deref() == Some("datetime-local") {
                // How it is typed depends on the language.
                self.run("arguments[0].value = arguments[1]", vec![field.to_json().expect("JSON"), json!(value)]).await;
            } else {
                field.clear().await.expect("an empty field");
                field.send_keys(*value).await.expect("a filled field");
            }
        }
    }

    /// Fills a form and submits it.
    pub async fn submit(&self, form: &str, fields: &[(&str, &str)]) {
        self.fill(form, fields).await;
        self.press(&format!("{form} button:not([type=button])")).await;
    }

    /// Runs a script in the page.
    pub async fn run(&self, script: &str, arguments: Vec<Value>) -> Value {
        let ran = self.driver.execute(script, arguments).await.unwrap_or_else(|e| panic!("{script}: {e}"));
        ran.json().clone()
    }

    /// Logs in on the page that is open.
    pub async fn log_in(&self, person: &Person) {
        self.submit("#log-in", &[("email", &person.email), ("password", PASSWORD)]).await;
        self.says("#me", &person.email).await;
    }

    /// Lets a page load again what it shows, as if the person came back to it from another tab.
    pub async fn come_back(&self) {
        self.run("document.dispatchEvent(new Event('visibilitychange'))", Vec::new()).await;
    }

    /// Returns what the browser logged since the last call: script errors, violations of the content policy and failed
    /// requests.
    pub async fn faults(&self) -> Vec<String> {
        let log = self.driver.browser_log().await.expect("the browser's log");
        log.into_iter().filter(|entry| entry.level == "SEVERE" || entry.level == "WARNING").map(|entry| entry.message).collect()
    }

    /// Ends the browser, after a look for faults. Failed requests that contain one of these texts are the test's own doing.
    pub async fn end(self, expected: &[&str]) {
        let faults = self.faults().await;
        let unexpected: Vec<_> = faults.iter().filter(|fault| !expected.iter().any(|text| fault.contains(text))).collect();
        assert!(unexpected.is_empty(), "the browser reports {unexpected:#?}");
        self.driver.clone().quit().await.expect("an end");
    }

    /// Looks for what keeps people from using the page, with axe-core. Without axe-core it finds nothing.
    pub async fn assert_accessible(&self, what: &str) {
        let Some(axe) = axe().await else { return };
        self.driver.execute(axe, Vec::new()).await.expect("axe-core");
        let look = "const done = arguments[arguments.length - 1];
            axe.run({ resultTypes: ['violations'] }).then(({ violations }) =>
                done(violations.map(({ id, help, nodes }) => [id, help, ...nodes.map(({ html, any }) => [html, ...any.map(({ message }) => message)])])));";
        let found = self.driver.execute_async(look, Vec::new()).await.expect("axe-core's findings");
        assert_eq!(found.json(), &json!([]), "{what} has faults: {:#}", found.json());
    }

    /// How many pixels the page is wider than the window.
    pub async fn overflow(&self) -> i64 {
        let width = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
        self.run(width, Vec::new()).await.as_i64().expect("a number")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // In a test that fails, the browser ends with chromedriver. Otherwise the driver would wait for an answer that nobody
        // reads.
        let _ = self.driver.clone().leak();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

/// The script of axe-core, or `None` if this machine cannot get it.
async fn axe() -> Option<&'static str> {
    static SCRIPT: OnceCell<Option<String>> = OnceCell::const_new();
    let script = SCRIPT.get_or_init(async || {
        let mut command = Command::new("tests/support/axe");
        let brought = command.arg(".local/axe").output().await.expect("tests/support/axe runs");
        assert!(brought.status.success(), "{}", String::from_utf8_lossy(&brought.stderr));
        let path = String::from_utf8(brought.stdout).expect("UTF-8");
        found_or_skipped(!path.is_empty(), "axe-core").then(|| std::fs::read_to_string(path.trim()).expect("a script"))
    });
    script.await.as_deref()
}
