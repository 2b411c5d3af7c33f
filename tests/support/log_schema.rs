//! Checks log lines against `docs/logs.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::LazyLock;

use serde::Deserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

struct Schema {
    everywhere: BTreeMap<String, String>,
    somewhere: BTreeMap<String, String>,
}

/// The field and type of each row of the table under a heading.
fn table(text: &str, heading: &str) -> BTreeMap<String, String> {
    let (_, below) = text.split_once(&format!("## {heading}\n")).expect("the heading");
    let rows = below.lines().take_while(|line| !line.starts_with("## ")).filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.map(|row| row.split_once("` | ").expect("a field and its type"));
    cells.map(|(field, rest)| (field.to_owned(), rest.split(" |").next().expect("a type").to_owned())).collect()
}

fn is(value: &Value, kind: &str) -> bool {
    let text = value.as_str();
    match kind {
        "text" => text.is_some_and(|text| !text.is_empty()),
        "text or null" => text.is_some() || value.is_null(),
        "number" => value.is_i64() || value.is_u64(),
        "level" => text.is_some_and(|level| ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&level)),
        "time" => text.is_some_and(|text| text.len() == "2026-01-01T00:00:00.000000Z".len() && text.parse::<jiff::Timestamp>().is_ok()),
        kind => panic!("docs/logs.md has an unknown type: {kind}"),
    }
}

/// Returns a field that a line has twice, if there is one. Readers of JSON disagree on which of the two counts (RFC 8259, 4).
pub fn repeated(line: &str) -> Option<String> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let (mut seen, mut repeated) = (BTreeSet::new(), None);
            while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                if !seen.insert(name.clone()) {
                    repeated = Some(name);
                }
            }
            Ok(repeated)
        }
    }
    serde_json::Deserializer::from_str(line).deserialize_map(Names).ok().flatten()
}

/// Returns what is wrong with a line, if anything.
pub fn fault(line: &Value) -> Option<String> {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
        let text = std::fs::read_to_string("docs/logs.md").expect("docs/logs.md");
        Schema { everywhere: table(&text, "Every line"), somewhere: table(&text, "Where it applies") }
    });
    for (field, kind) in &SCHEMA.everywhere {
        if !is(&line[field], kind) {
            return Some(format!("{field} is not {kind}"));
        }
    }
    let ours = line["target"].as_str().is_some_and(|target| target.split("::").next() == Some("app"));
    let fields = line.as_object()?.iter().filter(|(field, _)| !SCHEMA.everywhere.contains_key(*field));
    for (field, value) in fields {
        match SCHEMA.somewhere.get(field) {
            Some(kind) if is(value, kind) => {}
            Some(kind) => return Some(format!("{field} is not {kind}")),
            None if ours => return Some(format!("{field} is not in docs/logs.md")),
            None => {}
        }
    }
    let (request, trace, job) = (line["request_id"].is_string(), line["trace_id"].is_string(), line["job_id"].is_number());
    ((request || (job && line["run_ms"].is_number())) && !trace).then(|| "a request or job without a trace".to_owned())
}
