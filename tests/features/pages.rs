//! The web page, without a browser: what is served, to whom, and how it is kept.

mod admin;
mod in_browser;
mod screenshots;

use std::collections::BTreeSet;

use crate::support::access::{Things, prove_table};
use crate::support::deploy::Web;
use crate::support::person::Person;
use crate::support::{Deploy, free_port};

/// Which callers may use which operations, written by hand. `tests/support/access.rs` explains the letters.
const ACCESS_TABLE: &str = "
    GET    /                  n t s u a
    GET    /admin             n t s u a
    GET    /scripts/{name}    n t s u a
";

/// The most bytes that the page and all that it loads may have.
const MAX_BYTES: usize = 60_000;

#[tokio::test]
async fn pages_follow_the_access_table() {
    prove_table(ACCESS_TABLE, async |_, _| Things { ids: Vec::new(), texts: Vec::new() }).await;
}

/// The paths of the files that a page loads.
fn files_of(page: &str) -> BTreeSet<String> {
    let parts = page.split(['"', '\'']).filter(|part| part.starts_with("/assets/") || part.starts_with("/scripts/"));
    parts.map(str::to_owned).collect()
}

async fn page_and_files(web: &Web, path: &str) -> (String, BTreeSet<String>) {
    let page = web.get(path).await;
    assert_eq!((page.status().as_u16(), &page.headers()["cache-control"]), (200, &"no-store".parse().unwrap()));
    let page = page.text().await.unwrap();
    let files = files_of(&page);
    let kinds: BTreeSet<_> = files.iter().filter_map(|file| file.rsplit('.').next()).collect();
    assert_eq!(kinds, ["css", "js", "svg"].into(), "{files:?}");
    (page, files)
}

#[tokio::test]
async fn page_needs_neither_redis_nor_postgres() {
    let closed = free_port();
    let deploy = Deploy::new().await.with("REDIS_URL", format!("redis://127.0.0.1:{closed}/0"));
    let web = deploy.with("DATABASE_URL", format!("postgres://nobody:nothing@127.0.0.1:{closed}/none")).web_unready().await;
    let (_, files) = page_and_files(&web, "/").await;
    for file in files {
        assert_eq!(web.get(&file).await.status(), 200, "{file}");
    }
    // The request is not counted either.
    assert!(!web.get("/").await.headers().contains_key("ratelimit"));
    assert_eq!(web.get("/api/v1/session").await.status(), 401, "the API answers, too, as far as it can");
}

#[tokio::test]
async fn page_hides_sign_up_that_is_off() {
    let deploy = Deploy::new().await;
    for (flag, is_shown) in [("true", true), ("false", false)] {
        let page = deploy.clone_with("FEATURE_SIGN_UP", flag).web().await.get("/").await.text().await.unwrap();
        assert_eq!((page.contains("Sign up</h2>"), page.contains("Log in</h2>")), (is_shown, true));
    }
}

#[tokio::test]
async fn files_are_kept_and_the_page_is_not() {
    let web = Deploy::new().await.web().await;
    for file in page_and_files(&web, "/").await.1 {
        let answer = web.get(&file).await;
        assert_eq!(answer.headers()["cache-control"], "public, max-age=31536000, immutable", "{file}");
        let content = answer.text().await.unwrap();
        // In a rolling release, the page may come from a process that has another version of the file.
        let (stem, hash) = file.split_once('-').unwrap();
        let (hash, extension) = hash.split_once('.').unwrap();
        let other = web.get(&format!("{stem}-{}.{extension}", "0".repeat(hash.len()))).await;
        assert_eq!((other.status().as_u16(), &other.headers()["cache-control"]), (200, &"no-store".parse().unwrap()));
        assert_eq!(other.text().await.unwrap(), content);
        for unknown in [format!("{stem}.{extension}"), format!("{stem}-x.{extension}"), format!("{stem}-{hash}.html"), format!("{file}x")] {
            assert_eq!(web.get(&unknown).await.status(), 404, "{unknown}");
        }
    }
}

#[tokio::test]
async fn page_and_its_files_are_small() {
    let web = Deploy::new().await.web().await;
    for path in ["/", "/admin"] {
        let (page, files) = page_and_files(&web, path).await;
        let mut sizes = vec![(path.to_owned(), page.len())];
        for file in files {
            let size = web.get(&file).await.bytes().await.unwrap().len();
            sizes.push((file, size));
        }
        assert!(sizes.iter().map(|(_, size)| size).sum::<usize>() < MAX_BYTES, "{sizes:?}");
    }
}

#[tokio::test]
async fn policy_allows_only_own_scripts_and_styles() {
    let deploy = Deploy::new().await.with("STORAGE_PUBLIC_URL", "https://files.example.com/store");
    let web = deploy.web().await;
    let page = web.get("/").await;
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    for part in ["default-src 'none'", "script-src 'self';", "style-src 'self';", "connect-src 'self';", "form-action 'none'"] {
        assert!(policy.contains(part), "{part}: {policy}");
    }
    assert!(policy.contains("img-src 'self' https://files.example.com;"), "{policy}");
    let page = page.text().await.unwrap();
    for inline in ["<style", " style=", "<script>", " onclick=", "javascript:"] {
        assert!(!page.contains(inline), "{inline}");
    }
    let without = deploy.without("STORAGE_URL").web().await.get("/").await;
    assert!(without.headers()["content-security-policy"].to_str().unwrap().contains("img-src 'self' ;"));
}

#[tokio::test]
async fn only_a_cookie_hides_the_forms() {
    let web = Deploy::new().await.web().await;
    let ada = Person::unverified(&web).await;
    for (client, has_cookie) in [(&ada.client, true), (&ada.elsewhere().client, false)] {
        let page = client.get(&web.url).send().await.unwrap().text().await.unwrap();
        assert!(page.contains(&format!("data-cookie=\"{has_cookie}\"")), "{page}");
        assert_eq!(page.contains("data-when=\"out\" hidden"), has_cookie, "{page}");
        assert!(!page.contains(&ada.email), "the page itself is the same for everybody");
    }
}
