//! Builds the `OpenAPI` document from the handlers' annotations.
//!
//! An annotation names an operation's own responses. The description of its own problem is `slug: when`. The access
//! rules add who may call the operation, and this module adds the problems that every operation shares. Parts that
//! several operations share stand once, under `components`. It works on JSON, because there one function shares parts
//! of any kind. utoipa's `Modify` hands out a type for each kind.

use std::collections::{BTreeMap, BTreeSet};

use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use utoipa::PartialSchema;

use super::problem;

/// A problem as the document describes it: its status, the last part of its `type`, and when it happens.
#[derive(Debug, Clone, Copy)]
pub struct DocumentedProblem {
    pub status: &'static str,
    pub slug: &'static str,
    pub when: &'static str,
}

impl DocumentedProblem {
    pub const fn new(status: &'static str, slug: &'static str, when: &'static str) -> Self {
        Self { status, slug, when }
    }
}

/// Who may call an operation, in the document's terms.
pub struct Access {
    /// In lower case, as the document writes it.
    pub method: String,
    pub path: &'static str,
    /// The operation's `security`.
    pub security: Value,
    /// The environment variable that sets its rate limit.
    pub limit: &'static str,
    /// The environment variable that turns it on and off.
    pub flag: Option<&'static str>,
    /// Whether its body is any bytes, handed on as they come in.
    pub streams: bool,
    /// The problems that the access check responds with.
    pub problems: Vec<DocumentedProblem>,
}

/// Problems that many operations share.
const SHARED_PROBLEMS: &[DocumentedProblem] = &[
    DocumentedProblem::new("400", "malformed", "The request is not HTTP, or its body is not JSON"),
    DocumentedProblem::new("404", "not-found", "It does not exist, or you do not have access to it"),
    DocumentedProblem::new("408", "slow-body", "The rest of the body did not arrive in time"),
    DocumentedProblem::new("413", "body-too-large", "The body is larger than 1 MiB"),
    DocumentedProblem::new("415", "unsupported-media-type", "The body's content type is not JSON"),
    DocumentedProblem::new("422", "invalid-input", "The input is invalid. `errors` names the fields"),
    DocumentedProblem::new("429", "too-many-requests", "A rate limit is reached. `Retry-After` says how long to wait"),
    DocumentedProblem::new("500", "internal", "An error on our side. `request_id` finds it in the log"),
    DocumentedProblem::new("503", "overloaded", "Too many concurrent requests. Retry shortly"),
    DocumentedProblem::new("503", "timed-out", "The request took too long and may still have taken effect. No `Retry-After`"),
    DocumentedProblem::new("503", "unavailable", "A dependency is unavailable or timed out. Retry shortly"),
];

/// Problems of requests that match no operation.
const PROBLEMS_OUTSIDE_OPERATIONS: &[DocumentedProblem] = &[
    DocumentedProblem::new("405", "method-not-allowed", "The method is not allowed here. `Allow` lists those that are"),
    DocumentedProblem::new("431", "head-too-large", "The head of the request is larger than 32 KiB"),
    DocumentedProblem::new("400", "refused", "The request was refused before it reached an operation"),
];

/// Completes the document that comes from the handlers' annotations.
///
/// # Errors
/// The annotations cannot be serialized to JSON.
pub fn complete(
    document: &utoipa::openapi::OpenApi,
    security_schemes: Value,
    scopes: impl IntoIterator<Item = &'static str>,
    operations: impl IntoIterator<Item = Access>,
) -> serde_json::Result<Value> {
    let mut document = serde_json::to_value(document)?;
    for access in operations {
        if let Some(operation) = document["paths"].get_mut(access.path).and_then(|path| path.get_mut(&access.method)) {
            describe(operation, &access);
        }
    }
    let (parameters, responses) = (share(&mut document, parameters_of), share(&mut document, problems_of));
    let components = &mut document["components"];
    components["securitySchemes"] = security_schemes;
    components["schemas"]["Problem"] = serde_json::to_value(problem::Body::schema())?;
    if let Some(scope) = components["schemas"].get_mut("Scope") {
        scope["enum"] = scopes.into_iter().collect();
    }
    refer_to_items(&mut components["schemas"]);
    components["headers"] = json!({
        "Link": { "description": "The next page (RFC 8288)", "schema": { "type": "string" } },
        "Retry-After": { "description": "Seconds to wait", "schema": { "type": "integer" } },
    });
    components["parameters"] = parameters;
    components["responses"] = responses;
    // A dependency of the tests makes a map keep the order of insertion, also in the programs that `bin/dev` builds.
    document.sort_all_objects();
    Ok(document)
}

/// The problem types that a document names. Each has its status and its descriptions of when it happens, one a line.
pub fn problems(document: &Value) -> BTreeMap<String, (u16, String)> {
    let operations = document["paths"].as_object().into_iter().flatten().filter_map(|(_, path)| path.as_object()).flatten();
    let own = operations.filter_map(|(_, operation)| operation["responses"].as_object()).flatten();
    let shared = document["components"]["responses"].as_object().into_iter().flatten();
    let examples = own.chain(shared).filter_map(|(_, response)| response["content"]["application/problem+json"]["examples"].as_object());
    let mut problems = BTreeMap::<_, (u16, String)>::new();
    let mut add = |slug: &str, status: u16, when: &str| {
        let (known, text) = problems.entry(slug.to_owned()).or_default();
        *known = status;
        if !text.lines().any(|line| line == when) {
            text.push_str(&format!("{when}\n"));
        }
    };
    for (slug, example) in examples.flatten() {
        let status = example["value"]["status"].as_u64().and_then(|status| status.try_into().ok());
        add(slug, status.unwrap_or_default(), example["summary"].as_str().unwrap_or_default());
    }
    for problem in PROBLEMS_OUTSIDE_OPERATIONS {
        add(problem.slug, problem.status.parse().unwrap_or_default(), problem.when);
    }
    problems
}

fn describe(operation: &mut Value, access: &Access) {
    operation["security"] = access.security.clone();
    operation["x-rate-limit"] = access.limit.into();
    if let Some(flag) = access.flag {
        operation["x-feature-flag"] = flag.into();
    }
    let body = operation.get("requestBody").is_some();
    let parameters = operation.get("parameters").and_then(Value::as_array).cloned().unwrap_or_default();
    let has = |place: &str| parameters.iter().any(|parameter| parameter["in"] == place);
    let happens = |slug| match slug {
        "malformed" | "slow-body" => body,
        "body-too-large" | "unsupported-media-type" => body && !access.streams,
        "timed-out" => !matches!(&*access.method, "get" | "head"),
        "not-found" => has("path"),
        "invalid-input" => body || has("query"),
        _ => true,
    };
    let mut responses = operation["responses"].take();
    if parameters.iter().any(|parameter| parameter["name"] == "cursor") {
        responses["200"]["headers"]["Link"] = reference("headers", "Link");
    }
    let mut problems = own_problems(&responses);
    let others = access.problems.iter().chain(SHARED_PROBLEMS.iter().filter(|problem| happens(problem.slug)));
    for problem in others {
        problems.entry(problem.status.to_owned()).or_default().push((problem.slug.to_owned(), problem.when.to_owned()));
    }
    for (status, problems) in problems {
        responses[&status] = response(&status, &problems);
    }
    operation["responses"] = responses;
}

/// The problems that an operation's annotation names, by status: slug and when.
fn own_problems(responses: &Value) -> BTreeMap<String, Vec<(String, String)>> {
    let mut problems = BTreeMap::<_, Vec<_>>::new();
    for (status, response) in responses.as_object().into_iter().flatten().filter(|(status, _)| status.as_str() >= "400") {
        let lines = response["description"].as_str().unwrap_or_default().lines().filter_map(|line| line.split_once(": "));
        problems.entry(status.clone()).or_default().extend(lines.map(|(slug, when)| (slug.to_owned(), when.to_owned())));
    }
    problems
}

/// A problem response with its types and an example of each.
fn response(status: &str, problems: &[(String, String)]) -> Value {
    let number: u16 = status.parse().unwrap_or_default();
    let title = StatusCode::from_u16(number).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
    let examples: Map<_, _> = problems
        .iter()
        .map(|(slug, when)| {
            let mut example = json!({
                "type": format!("/problems/{slug}"), "title": title, "status": number, "detail": when,
                "request_id": "0b8f0c3e-6a7e-4b52-9a3c-2f8a6f0a7c11",
            });
            if slug == "invalid-input" {
                example["errors"] = json!([{ "field": "email", "detail": "must be an email address such as ada@example.com" }]);
            }
            (slug.clone(), json!({ "summary": when, "value": example }))
        })
        .collect();
    let types: Vec<_> = problems.iter().map(|(slug, _)| format!("/problems/{slug}")).collect();
    let when: Vec<_> = problems.iter().map(|(slug, when)| format!("`{slug}`: {when}")).collect();
    let schema = json!({ "allOf": [{ "$ref": "#/components/schemas/Problem" }, { "properties": { "type": { "enum": types } } }] });
    let mut response = json!({
        "description": when.join("\n\n"),
        "content": { "application/problem+json": { "schema": schema, "examples": examples } },
    });
    if matches!(number, 429 | 503) {
        response["headers"]["Retry-After"] = reference("headers", "Retry-After");
    }
    response
}

/// Parts of an operation that other operations may share: their kind under `components`, and each with a name.
type Parts<'a> = (&'static str, Vec<(String, &'a mut Value)>);

fn parameters_of(operation: &mut Value) -> Parts<'_> {
    let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten();
    let name = |parameter: &Value| parameter["name"].as_str().unwrap_or_default().to_ascii_lowercase();
    ("parameters", parameters.map(|parameter| (name(parameter), parameter)).collect())
}

fn problems_of(operation: &mut Value) -> Parts<'_> {
    let responses = operation["responses"].as_object_mut().into_iter().flatten().filter(|(status, _)| status.as_str() >= "400");
    let name = |response: &Value| {
        let examples = response["content"]["application/problem+json"]["examples"].as_object();
        // Sorted, because a dependency of the tests makes a map keep the order of insertion.
        examples.into_iter().flat_map(Map::keys).map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(".")
    };
    ("responses", responses.map(|(_, response)| (name(response), response)).collect())
}

/// Moves each part that several operations share into a component and leaves a reference. Returns the components by name.
fn share(document: &mut Value, parts_of: fn(&mut Value) -> Parts<'_>) -> Value {
    let mut count = BTreeMap::<String, usize>::new();
    for (_, part) in operations(document).flat_map(|operation| parts_of(operation).1) {
        *count.entry(part.to_string()).or_default() += 1;
    }
    let mut shared = Map::new();
    for operation in operations(document) {
        let (kind, parts) = parts_of(operation);
        for (mut name, part) in parts.into_iter().filter(|(_, part)| count.get(&part.to_string()).is_some_and(|count| *count > 1)) {
            while shared.get(&name).is_some_and(|other| other != part) {
                name.push('_');
            }
            let part = std::mem::replace(part, reference(kind, &name));
            shared.insert(name, part);
        }
    }
    Value::Object(shared)
}

/// Replaces the item schema of each list, which the derive macro repeats there, by a reference.
fn refer_to_items(schemas: &mut Value) {
    let known = schemas.as_object().cloned().unwrap_or_default();
    for (_, schema) in schemas.as_object_mut().into_iter().flatten() {
        if let Some(item) = schema.pointer_mut("/properties/items/items")
            && let Some((name, _)) = known.iter().find(|(_, known)| *known == item)
        {
            *item = reference("schemas", name);
        }
    }
}

fn operations(document: &mut Value) -> impl Iterator<Item = &mut Value> {
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    paths.flat_map(|(_, path)| path.as_object_mut().into_iter().flatten()).map(|(_, operation)| operation)
}

fn reference(kind: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{kind}/{name}") })
}
