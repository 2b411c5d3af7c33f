//! The web page at `/`: sign-up, log-in, the sections of the features, and the caller's sessions and tokens. And the page
//! at `/admin`: the features' sections for admins.
//!
//! They are the same for everybody. Their script calls the same API as every other client. So it takes neither Redis nor
//! Postgres to serve them, and they know no feature.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock, OnceLock};

use askama::Template;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{MethodRouter, get};

use crate::app::{App, Feature, LogInPage};
use crate::auth::rules::{self, Rate, Rule, Who};
use crate::config::Endpoint;
use crate::http::assets::{self, Asset};
use crate::http::{Problem, Result, html};
use crate::resources::storage::Storage;

pub const FEATURE: Feature = Feature { name: "pages", pages, access: ACCESS, ..Feature::EMPTY };

const ACCESS: &[Rule] = &[
    Rule::new(Method::GET, "/", Who::Anyone, Rate::Static),
    // The page holds no data. Its lists come from operations that refuse everybody but admins.
    Rule::new(Method::GET, "/admin", Who::Anyone, Rate::Static),
    Rule::new(Method::GET, "/scripts/{name}", Who::Anyone, Rate::Static),
];

static SCRIPT: LazyLock<Asset> = LazyLock::new(|| Asset::new("page.js", include_str!("page.js")));

fn pages() -> Router<App> {
    let script = get(async |Path(name): Path<String>| assets::serve([&*SCRIPT], &name));
    Router::new().route("/", page(home)).route("/admin", page(admin)).route("/scripts/{name}", script)
}

/// A rendered page and its content security policy.
struct Rendered {
    html: Bytes,
    policy: HeaderValue,
}

/// The route of a page. `render` gets whether the request has the cookie of a session. Nothing else about a page changes
/// while the process runs, so that each of the two is rendered once.
fn page(render: fn(&App, bool) -> Result<String>) -> MethodRouter<App> {
    let pages: Arc<[OnceLock<Rendered>; 2]> = Arc::default();
    get(async move |State(app): State<App>, headers: HeaderMap| -> Result<Response> {
        let has_cookie = app.sessions.id_in(&headers).is_some();
        let page = &pages[usize::from(has_cookie)];
        let Rendered { html, policy } = if let Some(rendered) = page.get() {
            rendered
        } else {
            let rendered = Rendered { html: render(&app, has_cookie)?.into(), policy: policy(&app)? };
            page.get_or_init(|| rendered)
        };
        Ok(html::with_policy(Html(html.clone()).into_response(), policy.clone()))
    })
}

#[derive(Template)]
#[template(path = "../src/features/pages/page.html")]
struct Home<'a> {
    host: &'a str,
    script: &'a str,
    features: &'a [&'static Feature],
    /// The scopes that a token may have.
    scopes: BTreeSet<&'static str>,
    /// Without the cookie of a session nobody is signed in. With it, only the API knows.
    has_cookie: bool,
    /// Whether strangers may sign up.
    sign_up: bool,
    mail_viewer: Option<&'a str>,
    /// The pages on which people log in without a password.
    log_in_pages: Vec<LogInPage>,
}

#[derive(Template)]
#[template(path = "../src/features/pages/admin.html")]
struct Admin<'a> {
    host: &'a str,
    script: &'a str,
    features: &'a [&'static Feature],
    has_cookie: bool,
    mail_viewer: Option<&'a str>,
    log_in_pages: Vec<LogInPage>,
}

fn home(app: &App, has_cookie: bool) -> Result<String> {
    let (origin, script) = (app.site.origin(), SCRIPT.name());
    let scopes = rules::scopes(app.on.iter().flat_map(|feature| feature.access));
    let (sign_up, mail_viewer, log_in_pages) = (app.flags.feature_sign_up, mail_viewer(app), log_in_pages(app));
    let page = Home { host: host(&origin), script: &script, features: &app.on, scopes, has_cookie, sign_up, mail_viewer, log_in_pages };
    page.render().map_err(Problem::internal)
}

fn admin(app: &App, has_cookie: bool) -> Result<String> {
    let (origin, script) = (app.site.origin(), SCRIPT.name());
    let (mail_viewer, log_in_pages) = (mail_viewer(app), log_in_pages(app));
    let page = Admin { host: host(&origin), script: &script, features: &app.on, has_cookie, mail_viewer, log_in_pages };
    page.render().map_err(Problem::internal)
}

fn log_in_pages(app: &App) -> Vec<LogInPage> {
    app.on.iter().filter_map(|feature| (feature.log_in)(app)).collect()
}

fn mail_viewer(app: &App) -> Option<&str> {
    app.mail_viewer.as_ref().map(|Endpoint(url)| url.as_str())
}

fn host(origin: &str) -> &str {
    origin.split_once("://").map_or(origin, |(_, host)| host)
}

/// Allows the page's own script and style sheet, requests to this site, and images of this site and of the object store.
/// The script may not turn text into HTML, and a form that it does not handle is not sent.
fn policy(app: &App) -> Result<HeaderValue> {
    let store = app.storage.as_ref().map(Storage::public_origin).unwrap_or_default();
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' {store}; connect-src 'self'; form-action 'none'; \
         frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    );
    HeaderValue::try_from(policy).map_err(Problem::internal)
}
