//! Canaille from `PyPI`, a second provider that nobody here wrote. It asks for a password and for consent, its issuer ends with
//! a slash, and it says of no address that it was verified.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Client;
use tokio::process::Command;
use tokio::time::sleep;
use uuid::Uuid;

use super::{CALLBACK, Provider, account, begin, come_back, deploy, page};
use crate::support::clients::get;
use crate::support::deploy::client;
use crate::support::person::Person;
use crate::support::{Process, eventually, free_port};

const SCRIPT: &str = "tests/features/identity/canaille";

struct Canaille {
    url: String,
    folder: PathBuf,
    _process: Process,
}

impl Canaille {
    async fn start() -> Option<Self> {
        // The other provider's script installs both.
        Provider::start().await?;
        let (folder, port) = (std::env::temp_dir().join(format!("canaille-{}", Uuid::new_v4().simple())), free_port());
        let prepared = Command::new(SCRIPT).arg("prepare").arg(&folder).arg(CALLBACK).status().await.unwrap();
        assert!(prepared.success());
        let mut command = Command::new(SCRIPT);
        command.arg("run").arg(&folder).arg(port.to_string());
        let canaille = Self { url: format!("http://127.0.0.1:{port}/"), folder, _process: Process::spawn(command) };
        eventually("Canaille", async || get(&canaille.url).await.ok()).await;
        Some(canaille)
    }
}

impl Drop for Canaille {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Submits the form of a page, and returns the next page's address.
async fn submit(browser: &Client, at: &str, field: (&str, &str)) -> String {
    let form = browser.get(at).send().await.unwrap().text().await.unwrap();
    let (_, token) = form.split_once(r#"name="csrf_token" value=""#).unwrap_or_else(|| panic!("no form at {at}: {form}"));
    let token = token.split('"').next().unwrap();
    let response = browser.post(at).form(&[("csrf_token", token), field]).send().await.unwrap();
    assert_eq!(response.status(), 302, "{at}");
    response.headers()["location"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn second_provider_logs_people_in() {
    let Some(canaille) = Canaille::start().await else { return };
    let deploy = deploy(&canaille.url).await;
    let web = deploy.web().await;
    let browser = client();
    let absolute =
        |path: &str| if path.starts_with('/') { format!("{}{path}", canaille.url.trim_end_matches('/')) } else { path.to_owned() };
    let redirect = async |page: &str| {
        let response = browser.get(page).send().await.unwrap();
        response.headers().get("location").map(|location| absolute(location.to_str().unwrap()))
    };
    let answer = async |answer: &'static str| {
        let page = begin(&browser, &web).await;
        let mut leads_to = redirect(page.as_str()).await;
        if let Some(log_in) = leads_to.take_if(|location| !location.starts_with(CALLBACK)) {
            let password = submit(&browser, &log_in, ("login", "ada")).await;
            submit(&browser, &absolute(&password), ("password", "sekret")).await;
            leads_to = redirect(page.as_str()).await;
        }
        // It remembers the consent.
        let back = if let Some(back) = leads_to { back } else { submit(&browser, page.as_str(), ("answer", answer)).await };
        assert!(back.starts_with(CALLBACK), "{back}");
        come_back(&browser, &web, back.split_once('?').unwrap().1).await
    };
    page(answer("deny").await, 403, "did not log you in").await;
    // Its token is good, but says nothing of the address.
    page(answer("accept").await, 403, "has not verified your email address").await;
    let ada = Person::known(&deploy, &web).await;
    let link =
        "INSERT INTO identities (id, account_id, issuer, subject) SELECT gen_random_uuid(), id, $1, 'ada' FROM accounts WHERE email = $2";
    sqlx::query(link).bind(&canaille.url).bind(&ada.email).execute(&mut deploy.database().await).await.unwrap();
    // Canaille answers 500 if it makes two tokens for a person within one second, because the tokens are equal.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(answer("accept").await.status(), 303);
    assert_eq!(account(&browser, &web).await["email"], ada.email.as_str());
}
