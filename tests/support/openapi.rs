//! Reads the committed `openapi.json`, and checks responses against it.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::Value;

use super::person::Person;

/// The API's document.
pub struct Contract(pub Value);

impl Contract {
    /// Reads the committed document.
    pub fn committed() -> Self {
        Self(serde_json::from_str(&std::fs::read_to_string("openapi.json").expect("openapi.json")).expect("JSON"))
    }

    /// Resolves a reference. Any other value is returned unchanged.
    pub fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => self.resolve(self.0.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("no {reference}"))),
            None => value,
        }
    }

    /// The methods of each path.
    pub fn operations(&self) -> BTreeMap<String, BTreeSet<String>> {
        let methods = |methods: &Value| methods.as_object().expect("methods").keys().map(|method| method.to_uppercase()).collect();
        self.0["paths"].as_object().expect("paths").iter().map(|(path, operations)| (path.clone(), methods(operations))).collect()
    }

    /// The response of an operation under `/api/v1`.
    pub fn response(&self, method: &Method, path: &str, status: &str) -> &Value {
        let operation = &self.0["paths"][format!("/api/v1{path}")][method.as_str().to_ascii_lowercase()];
        self.resolve(&operation["responses"][status])
    }

    /// Returns what is wrong with a value: a property that is missing, unknown, or of another type.
    pub fn fault(&self, schema: &Value, value: &Value) -> Option<String> {
        let schema = self.whole(schema);
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let kinds = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
        if !kinds.iter().any(|may| may == kind) {
            return Some(format!("{value} is not of type {}", schema["type"]));
        }
        if let Some(items) = value.as_array() {
            return items.iter().find_map(|item| self.fault(&schema["items"], item));
        }
        let properties = value.as_object()?;
        let required = schema["required"].as_array().into_iter().flatten();
        let missing = required.filter_map(Value::as_str).find(|name| !properties.contains_key(*name));
        missing.map(|name| format!("it lacks {name}")).or_else(|| {
            properties.iter().find_map(|(name, value)| match schema["properties"].get(name) {
                Some(schema) => self.fault(schema, value).map(|fault| format!("{name}: {fault}")),
                None => Some(format!("the document does not have {name}")),
            })
        })
    }

    /// A schema with its references resolved and its `allOf` merged.
    fn whole(&self, schema: &Value) -> Value {
        let mut whole = self.resolve(schema).clone();
        for part in whole["allOf"].take().as_array().into_iter().flatten().map(|part| self.whole(part)) {
            whole["type"] = part["type"].clone();
            for (name, property) in part["properties"].as_object().into_iter().flatten() {
                whole["properties"][name] = property.clone();
            }
            let required = [&whole["required"], &part["required"]].into_iter().filter_map(Value::as_array).flatten();
            whole["required"] = required.cloned().collect();
        }
        whole
    }

    /// Sends a request and checks the response against the document. `{id}` in the path becomes `id`.
    pub async fn holds(&self, person: &Person, id: &str, (method, path, body, status): (Method, &str, Option<Value>, &str)) -> Value {
        let mut request = person.request(method.clone(), &path.replace("{id}", id));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.expect("web answers");
        let what = format!("{method} {path}");
        assert_eq!(answer.status().as_str(), status, "{what}");
        let answer: Value = answer.json().await.expect("JSON");
        let schema = &self.response(&method, path, status)["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{what}: the document describes no response");
        assert_eq!(self.fault(schema, &answer), None, "{what}: the response differs from the document: {answer}");
        answer
    }
}
