//! Writes the screenshots of the docs: `bin/screenshots`.

use std::path::Path;
use std::time::Duration;

use image::RgbImage;
use serde_json::json;
use thirtyfour::By;

use crate::support::Deploy;
use crate::support::browser::Browser;
use crate::support::person::Person;

const FOLDER: &str = "docs/screenshots";

/// What a person would type, in turn.
const TEXTS: [&str; 3] = ["Water the plants", "Renew the passport,\nand bring two photographs", "Ask Grace about the compiler"];

/// How long the page may take to show what was done.
const PAUSE: Duration = Duration::from_secs(1);

async fn shoot(browser: &Browser, name: &str, (width, height): (u32, u32), scheme: &str) {
    browser.look(width, height, scheme).await;
    browser.run("scrollTo(0, 0); document.activeElement.blur()", Vec::new()).await;
    browser.driver.screenshot(Path::new(&format!("{FOLDER}/{name}.png"))).await.unwrap();
}

/// A picture of some colors.
fn picture(path: &Path) {
    let color = |x: u32, y: u32| image::Rgb([120 + x / 4, 90 + y / 4, 200 - x / 4].map(|value| u8::try_from(value).unwrap()));
    RgbImage::from_fn(480, 320, color).save(path).unwrap();
}

/// Fills every form of every feature, whichever there are.
async fn fill(browser: &Browser) {
    let form = "[data-feature] > form[data-post]";
    for (day, text) in TEXTS.iter().enumerate() {
        let fill = "for (const field of document.querySelectorAll(arguments[0] + ' :is(textarea, [type=datetime-local])'))
                field.value = field.type === 'textarea' ? arguments[1] : arguments[2];
            for (const form of document.querySelectorAll(arguments[0])) form.requestSubmit();";
        let due = format!("2030-0{}-01T09:00", 3 + 2 * day);
        browser.run(fill, vec![json!(form), json!(text), json!(due)]).await;
        tokio::time::sleep(PAUSE).await;
    }
    let picture_path = std::env::temp_dir().join("sunset.png");
    picture(&picture_path);
    let inputs = browser.driver.find_all(By::Css("[data-upload] input")).await.unwrap();
    for input in &inputs {
        for path in [Path::new("README.md").canonicalize().unwrap(), picture_path.clone()] {
            input.send_keys(path.to_str().unwrap()).await.unwrap();
        }
    }
    browser.shows("[data-list] img", inputs.len()).await;
    tokio::time::sleep(PAUSE).await;
}

#[tokio::test]
#[ignore = "bin/screenshots runs it"]
async fn write_screenshots() {
    let deploy = Deploy::new().await.with("RELEASE_VERSION", "v12");
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person { email: "ada@example.com".to_owned(), ..Person::stranger(&web) };
    ada.sign_up().await;
    sqlx::query("UPDATE accounts SET verified_at = now()").execute(&mut deploy.database().await).await.unwrap();
    ada.log_in().await;
    let token = json!({ "name": "backup script", "scopes": ["tokens:read"], "expires_in_days": 90 });
    ada.post("/tokens", token).await;
    let browser = Browser::open(&web.url).await.expect("a browser and a page");
    std::fs::create_dir_all(FOLDER).unwrap();
    shoot(&browser, "signed-out", (1280, 760), "light").await;
    browser.log_in(&ada).await;
    fill(&browser).await;
    shoot(&browser, "signed-in", (1280, 1040), "light").await;
    shoot(&browser, "phone", (390, 844), "dark").await;
    browser.end(&[]).await;
}
