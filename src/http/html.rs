//! Renders HTML pages: those of mailed links, those that explain problems, and problems for people. They share one style
//! sheet.

use std::sync::LazyLock;

use askama::Template;
use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;

use super::assets::{self, Asset};
use super::problem::{Problem, Result};

/// Allows no scripts, no frames and nothing from other sites. Forms may post to this site only.
const CONTENT_POLICY: &str =
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

static STYLE: LazyLock<Asset> = LazyLock::new(|| Asset::new("style.css", include_str!("../../templates/style.css")));
static ICON: LazyLock<Asset> = LazyLock::new(|| Asset::new("icon.svg", include_str!("../../templates/icon.svg")));

/// The routes of the files that every page loads. They need no rule, because they are the same for everybody.
pub fn routes() -> Router {
    Router::new().route("/assets/{name}", get(async |Path(name): Path<String>| assets::serve([&*STYLE, &*ICON], &name)))
}

/// The path of the style sheet, for `base.html`.
pub fn style() -> String {
    format!("/assets/{}", STYLE.name())
}

/// The path of the icon, for `base.html`.
pub fn icon() -> String {
    format!("/assets/{}", ICON.name())
}

/// Renders a page.
///
/// # Errors
/// The template fails to render.
pub fn page(status: StatusCode, template: &impl Template) -> Result<Response> {
    let headers = [(header::CONTENT_SECURITY_POLICY, CONTENT_POLICY)];
    Ok((status, headers, Html(template.render().map_err(Problem::internal)?)).into_response())
}

/// A problem, for a person.
#[derive(Template)]
#[template(path = "refusal.html")]
struct Refusal<'a> {
    status: u16,
    title: &'a str,
    detail: &'a str,
    slug: &'a str,
    request_id: &'a str,
}

/// Renders a problem as a page.
///
/// # Errors
/// The template fails to render.
pub fn refusal(problem: &Problem, request_id: &str) -> Result<Response> {
    let title = problem.status.canonical_reason().unwrap_or("Error");
    let detail = problem.detail.as_deref().unwrap_or_default();
    page(problem.status, &Refusal { status: problem.status.as_u16(), title, detail, slug: problem.slug, request_id })
}

/// Whether a client prefers HTML to JSON, as a browser does that opens a page (RFC 9110, 12.5.1). Wildcards do not count,
/// because programs send them.
pub fn is_preferred(headers: &HeaderMap) -> bool {
    let (mut html, mut json) = (0.0_f32, 0.0_f32);
    let ranges = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    for range in ranges {
        let range = range.to_ascii_lowercase();
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
        match media_type {
            "text/html" => html = html.max(weight),
            "application/json" | "application/problem+json" => json = json.max(weight),
            _ => {}
        }
    }
    html > json
}

/// Sets the policy of pages that load scripts from this site.
pub async fn allow_own_scripts(response: Response) -> Response {
    let policy = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'";
    with_policy(response, HeaderValue::from_static(policy))
}

/// Sets a policy of the page's own.
pub fn with_policy(mut response: Response, policy: HeaderValue) -> Response {
    let name: HeaderName = header::CONTENT_SECURITY_POLICY;
    response.headers_mut().insert(name, policy);
    response
}
