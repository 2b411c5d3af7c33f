//! The `OpenAPI` document: what the handlers say of themselves, and what holds for all of them.
//!
//! A handler's annotation names its own answers; a problem that is its own has the description `slug: when`. Who may ask
//! for it comes from the table of access, and with that the problems that the guard and the layers answer with.

use serde_json::{Map, Value, json};

use utoipa::PartialSchema;

use super::access::{Rate, Rule, Who, scopes};
use super::problem;

/// Problems that many operations share: status, the type's last part, when it happens.
const COMMON: &[(&str, &str, &str)] = &[
    ("400", "malformed", "The request is no HTTP, or its body no JSON"),
    ("401", "unauthenticated", "There is no session or token, or it has ended"),
    ("403", "cross-site", "A change with a cookie came from another site"),
    ("403", "insufficient-role", "The session is no admin's"),
    ("403", "insufficient-scope", "The token may not do this"),
    ("404", "not-found", "It does not exist, or is another's"),
    ("413", "body-too-large", "The body has more than a mebibyte"),
    ("415", "unsupported-media-type", "The body is said to be no JSON"),
    ("422", "invalid-input", "The input can be read, and breaks a rule"),
    ("429", "too-many-requests", "The limit is reached; `Retry-After` says how long to wait"),
    ("500", "internal", "Our own fault; `request_id` finds it in the log"),
    ("503", "overloaded", "Too many requests at a time; ask again in a moment"),
    ("503", "unavailable", "A resource is away, or the request took too long; ask again in a moment"),
];

/// Completes the document that the handlers' annotations give.
/// Errors: The annotations make no JSON.
pub fn complete(document: &utoipa::openapi::OpenApi, table: &[Rule]) -> serde_json::Result<Value> {
    let mut document = serde_json::to_value(document)?;
    document["components"]["securitySchemes"] = json!({
        "session": { "type": "apiKey", "in": "cookie", "name": "id", "description": "Set by a log-in; `__Host-id` over https. A change needs an `Origin` or `Sec-Fetch-Site` header too." },
        "token": { "type": "http", "scheme": "bearer", "description": "An API token with the scope that the operation names." },
    });
    document["components"]["schemas"]["Problem"] = serde_json::to_value(problem::Body::schema())?;
    if let Some(scope) = document["components"]["schemas"].get_mut("Scope") {
        scope["enum"] = json!(scopes(table));
    }
    for (method, path, who, rate) in table {
        let method_name = method.as_str().to_ascii_lowercase();
        if let Some(operation) = document["paths"].get_mut(path).and_then(|path| path.get_mut(method_name)) {
            describe(operation, method.is_safe(), *who, *rate);
        }
    }
    Ok(document)
}

fn describe(operation: &mut Value, safe: bool, who: Who, rate: Rate) {
    operation["security"] = match who {
        Who::Anyone => json!([]),
        Who::SignedIn | Who::Admin => json!([{ "session": [] }]),
        Who::Scope(scope) => json!([{ "session": [] }, { "token": [scope] }]),
    };
    let limit = if rate == Rate::Requests { "RATE_LIMIT_REQUESTS" } else { "RATE_LIMIT_LOGIN" };
    operation["x-rate-limit"] = limit.into();
    let body = operation.get("requestBody").is_some();
    let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    let has = |place: &str| parameters.iter().any(|parameter| parameter["in"] == place);
    let happens = |slug| match slug {
        "malformed" | "body-too-large" | "unsupported-media-type" => body,
        "cross-site" => !safe,
        "insufficient-role" => who == Who::Admin,
        "unauthenticated" | "insufficient-scope" => who != Who::Anyone,
        "not-found" => has("path"),
        "invalid-input" => body || has("query"),
        _ => true,
    };
    let mut responses = operation["responses"].take();
    if parameters.iter().any(|parameter| parameter["name"] == "cursor") {
        responses["200"]["headers"] = json!({ "Link": { "description": "The next page", "schema": { "type": "string" } } });
    }
    // What the annotation names itself.
    let mut problems: Vec<(String, String, String)> = Vec::new();
    for (status, response) in responses.as_object_mut().into_iter().flatten().filter(|(status, _)| status.as_str() >= "400") {
        for line in response["description"].as_str().unwrap_or_default().lines() {
            if let Some((slug, when)) = line.split_once(": ") {
                problems.push((status.clone(), slug.to_owned(), when.to_owned()));
            }
        }
    }
    let common = COMMON.iter().filter(|(_, slug, _)| happens(slug));
    problems.extend(common.map(|(status, slug, when)| ((*status).to_owned(), (*slug).to_owned(), (*when).to_owned())));
    for status in problems.iter().map(|problem| problem.0.clone()).collect::<std::collections::BTreeSet<_>>() {
        let here: Vec<_> = problems.iter().filter(|problem| problem.0 == status).collect();
        responses[&status] = response(&status, &here);
    }
    operation["responses"] = responses;
}

/// A problem response: its types and an example of each.
fn response(status: &str, problems: &[&(String, String, String)]) -> Value {
    let number: u16 = status.parse().unwrap_or_default();
    let title = axum::http::StatusCode::from_u16(number).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
    let examples: Map<_, _> = problems
        .iter()
        .map(|(_, slug, when)| {
            let mut example = json!({
                "type": format!("/problems/{slug}"), "title": title, "status": number, "detail": when,
                "request_id": "0b8f0c3e-6a7e-4b52-9a3c-2f8a6f0a7c11",
            });
            if slug == "invalid-input" {
                example["errors"] = json!([{ "field": "due_at", "detail": "must be in the future" }]);
            }
            (slug.clone(), json!({ "summary": when, "value": example }))
        })
        .collect();
    let types: Vec<_> = problems.iter().map(|(_, slug, _)| format!("/problems/{slug}")).collect();
    let when: Vec<_> = problems.iter().map(|(_, slug, when)| format!("`{slug}`: {when}")).collect();
    let schema = json!({ "allOf": [{ "$ref": "#/components/schemas/Problem" }, { "properties": { "type": { "enum": types } } }] });
    let mut response = json!({
        "description": when.join("\n\n"),
        "content": { "application/problem+json": { "schema": schema, "examples": examples } },
    });
    if matches!(number, 429 | 503) {
        response["headers"] =
            json!({ "Retry-After": { "description": "Seconds to wait", "required": true, "schema": { "type": "integer" } } });
    }
    response
}
