//! HTML pages: few and small, for people who follow a mailed link.

use askama::Template;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};

use super::problem::{Problem, Result};

/// No script, no frame, nothing from elsewhere; forms post back to this site alone.
const CONTENT_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Renders a page.
///
/// # Errors
/// The template fails to render.
pub fn page(status: StatusCode, template: &impl Template) -> Result<Response> {
    let headers = [(header::CONTENT_SECURITY_POLICY, CONTENT_POLICY)];
    Ok((status, headers, Html(template.render().map_err(Problem::internal)?)).into_response())
}

/// The policy of pages that bring scripts of their own, from this site.
pub async fn allow_own_scripts(mut response: Response) -> Response {
    let policy = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'";
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, axum::http::HeaderValue::from_static(policy));
    response
}
