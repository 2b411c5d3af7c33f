//! Renders HTML pages for people who follow a mailed link.

use askama::Template;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};

use super::problem::{Problem, Result};

/// Allows no scripts, no frames and nothing from other sites. Forms may post to this site only.
const CONTENT_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Renders a page.
///
/// # Errors
/// The template fails to render.
pub fn page(status: StatusCode, template: &impl Template) -> Result<Response> {
    let headers = [(header::CONTENT_SECURITY_POLICY, CONTENT_POLICY)];
    Ok((status, headers, Html(template.render().map_err(Problem::internal)?)).into_response())
}

/// Sets the policy of pages that load scripts from this site.
pub async fn allow_own_scripts(mut response: Response) -> Response {
    let policy = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'";
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, axum::http::HeaderValue::from_static(policy));
    response
}
