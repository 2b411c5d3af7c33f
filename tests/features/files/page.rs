//! Files on the web page.

use serde_json::json;
use thirtyfour::By;

use super::{photo, stored};
use crate::support::Deploy;
use crate::support::browser::Browser;
use crate::support::events::EventStream;
use crate::support::person::Person;

const INPUT: &str = "[data-feature=files] input[type=file]";
const ITEM: &str = "[data-feature=files] [data-list] li";

#[tokio::test]
async fn uploaded_image_gets_its_thumbnail() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
    std::fs::create_dir(&folder).unwrap();
    let name = "<img src=x onerror=alert(1)>.jpg";
    std::fs::write(folder.join(name), photo(300, 200)).unwrap();
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.log_in(&ada).await;
    browser.says("[data-feature=files]", "No files yet.").await;
    let input = browser.driver.find(By::Css(INPUT)).await.unwrap();
    input.send_keys(folder.join(name).to_str().unwrap()).await.unwrap();
    browser.says(ITEM, name).await;
    std::fs::remove_dir_all(&folder).unwrap();
    crate::support::eventually("a thumbnail", async || {
        let width = browser.run("return document.querySelector(arguments[0])?.naturalWidth", vec![json!(format!("{ITEM} img"))]).await;
        (width == 160).then_some(())
    })
    .await;
    assert_eq!(browser.driver.find_all(By::Css(format!("{ITEM} img"))).await.unwrap().len(), 1, "the name is text");
    browser.assert_accessible("files").await;

    browser.press_twice(&format!("{ITEM} [data-delete]")).await;
    browser.says("[data-feature=files]", "No files yet.").await;
    browser.end(&[]).await;
}

#[tokio::test]
async fn thumbnail_of_another_device_shows_without_reload() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    if !EventStream::are_served(&web).await {
        return;
    }
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.log_in(&ada).await;
    browser.says("[data-feature=files]", "No files yet.").await;
    stored(&ada, "photo.jpg", photo(300, 200)).await;
    browser.shown(&format!("{ITEM} img")).await;
    browser.end(&[]).await;
}

#[tokio::test]
async fn dropped_file_is_uploaded() {
    let deploy = Deploy::new().await.with("FILE_SIZE_LIMIT", "1KiB");
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let Some(browser) = Browser::open(&web.url).await else { return };
    browser.log_in(&ada).await;
    let drop = "const data = new DataTransfer();
        for (const [name, size] of [['large.txt', 2000], ['small.txt', 7]]) data.items.add(new File(['x'.repeat(size)], name));
        document.querySelector('[data-feature=files] .drop').dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }));";
    browser.run(drop, Vec::new()).await;
    browser.says(ITEM, "small.txt").await;
    browser.says(".uploads li", "large.txt").await;
    browser.says(".uploads .problem", "1024 bytes").await;
    browser.end(&["status of 413"]).await;
}

#[tokio::test]
async fn missing_content_is_said_in_place() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    stored(&ada, "note.txt", "a note").await;
    let store = crate::support::store::Store::start().await;
    // Its objects are in another store.
    let other = store.of(&deploy).web().await;
    let Some(browser) = Browser::open(&other.url).await else { return };
    browser.log_in(&ada).await;
    browser.press(&format!("{ITEM} a")).await;
    browser.says(&format!("{ITEM} .problem"), "unavailable").await;
    browser.says("#me", &ada.email).await;
    browser.end(&["status of 503"]).await;
}
