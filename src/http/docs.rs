//! Serves the API's documentation: the `OpenAPI` document, a page that renders it, and a page for each problem type.

use std::collections::BTreeMap;
use std::sync::Arc;

use askama::Template;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use serde_json::Value;
use tokio::sync::OnceCell;
use utoipa_swagger_ui::{Config as SwaggerConfig, SwaggerUi};

use super::problem::{Problem, Result};
use super::{html, openapi};

/// Builds the document.
type Make = Arc<dyn Fn() -> serde_json::Result<Value> + Send + Sync>;

/// The rendered documentation. It is built at the first request, because it takes a megabyte and most processes never
/// need it.
struct Docs {
    json: Bytes,
    /// The problem types, each with its status and its descriptions of when it happens, one a line.
    problems: BTreeMap<String, (u16, String)>,
}

impl Docs {
    fn of(document: &Value) -> serde_json::Result<Self> {
        Ok(Self { json: serde_json::to_vec(document)?.into(), problems: openapi::problems(document) })
    }
}

/// The routes of the problem pages. With `all` also those of the document and the page that renders it.
pub fn routes(make: impl Fn() -> serde_json::Result<Value> + Send + Sync + 'static, all: bool) -> Router {
    let (docs, make): (_, Make) = (Arc::new(OnceCell::new()), Arc::new(make));
    let problems = Router::new().route(
        "/problems/{name}",
        get({
            let (docs, make) = (docs.clone(), make.clone());
            async move |Path(name): Path<String>| explain(&docs, &make, &name).await
        }),
    );
    if !all {
        return problems;
    }
    let page = Router::from(SwaggerUi::new("/docs").config(SwaggerConfig::from("/openapi.json")));
    let page = page.layer(middleware::map_response(html::allow_own_scripts));
    problems.merge(page).route("/openapi.json", get(async move || document(&docs, &make).await))
}

async fn docs<'a>(docs: &'a OnceCell<Docs>, make: &Make) -> Result<&'a Docs> {
    docs.get_or_try_init(async || Docs::of(&make()?)).await.map_err(Problem::internal)
}

async fn document(cell: &OnceCell<Docs>, make: &Make) -> Result<([(HeaderName, &'static str); 1], Bytes)> {
    Ok(([(header::CONTENT_TYPE, "application/json")], docs(cell, make).await?.json.clone()))
}

/// The page that explains a problem type.
#[derive(Template)]
#[template(path = "problem.html")]
struct ProblemPage<'a> {
    name: &'a str,
    status: u16,
    title: &'a str,
    when: &'a str,
}

async fn explain(cell: &OnceCell<Docs>, make: &Make, name: &str) -> Result<Response> {
    let Some((name, (status, when))) = docs(cell, make).await?.problems.get_key_value(name) else { return Err(Problem::not_found()) };
    let title = StatusCode::from_u16(*status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
    Ok(html::page(StatusCode::OK, &ProblemPage { name, status: *status, title, when })?.into_response())
}
