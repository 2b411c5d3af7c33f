//! Access rules: reads the rules that the built `admin` prints, and checks hand-written tables against a running `web`.
//!
//! A table has a line for each operation: its method, its path, and its callers. The letters stand for the callers: n is
//! anonymous, t a token without the scope, s a token with every scope, u a user with a session, a an admin with one. A `-`
//! means that the caller is rejected. Each feature tests its own table. `tests/factors/f15_authorization.rs` has the accounts'.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::{Client, Method, RequestBuilder};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Deploy;
use super::deploy::{Web, client};
use super::person::Person;

const LETTERS: [&str; 5] = ["n", "t", "s", "u", "a"];

/// A rule, as `admin access --json` prints it.
#[derive(Debug, Deserialize)]
pub struct Rule {
    pub method: String,
    pub path: String,
    pub who: String,
    pub limit: String,
    pub feature: String,
}

impl Rule {
    /// The scope that a token needs.
    pub fn scope(&self) -> Option<&str> {
        self.who.strip_prefix("session or scope ")
    }
}

/// Every rule of the built programs.
pub async fn rules(deploy: &Deploy) -> Vec<Rule> {
    let output = deploy.admin(&["access", "--json"]).await;
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    printed.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// A line of a hand-written table.
#[derive(Debug, Clone)]
pub struct Row {
    pub method: Method,
    pub path: String,
    who: Vec<String>,
}

impl Row {
    /// Returns `None` for a text that is not a line of a table.
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<_> = text.split_whitespace().collect();
        let [method, path, who @ ..] = words.as_slice() else { return None };
        let known = ["GET", "POST", "PUT", "PATCH", "DELETE"].contains(method) && path.starts_with('/') && who.len() == LETTERS.len();
        let known = known && who.iter().zip(LETTERS).all(|(word, letter)| [letter, "-"].contains(word));
        let who = who.iter().map(ToString::to_string).collect();
        known.then(|| Self { method: method.parse().expect("a method"), path: (*path).to_owned(), who })
    }

    /// The operation: method and path.
    pub fn operation(&self) -> (String, String) {
        (self.method.to_string(), self.path.clone())
    }
}

/// Every line of a table.
fn rows(table: &str) -> Vec<Row> {
    let lines = table.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| Row::parse(line).unwrap_or_else(|| panic!("not a line of the table: {line}"))).collect()
}

/// Things that belong to the owner.
pub struct Things {
    /// The id for `{id}`, by the beginning of the path.
    pub ids: Vec<(&'static str, String)>,
    /// Other texts that only the owner may read.
    pub texts: Vec<String>,
}

/// The people of a test: Ada owns the things, the others request them.
struct Cast {
    ada: Person,
    eve: Person,
    admin: Person,
    things: Things,
    /// Ada's tokens. The scopes that end in `:read` are for GET, those that end in `:write` for the rest.
    every_scope: String,
    read: String,
    write: String,
    /// With every scope except one, by that scope.
    all_but: BTreeMap<String, String>,
}

impl Cast {
    async fn assemble(deploy: &Deploy, web: &Web, rules: &[Rule], make: &impl AsyncFn(&Deploy, &Person) -> Things) -> Self {
        let (ada, eve, admin) = tokio::join!(Person::known(deploy, web), Person::known(deploy, web), Person::unverified(web));
        let grant = sqlx::query("UPDATE accounts SET role = 'admin' WHERE email = $1").bind(&admin.email);
        grant.execute(&mut deploy.database().await).await.expect("the account is there");
        admin.log_in().await;
        let scopes: BTreeSet<_> = rules.iter().filter_map(Rule::scope).collect();
        let with = async |wanted: &dyn Fn(&str) -> bool| {
            let scopes: Vec<_> = scopes.iter().copied().filter(|scope| wanted(scope)).collect();
            token(&ada, &scopes).await
        };
        let mut all_but = BTreeMap::new();
        for left_out in &scopes {
            all_but.insert((*left_out).to_owned(), with(&|scope| scope != *left_out).await);
        }
        let every_scope = with(&|_| true).await;
        let (read, write) = (with(&|scope| scope.ends_with(":read")).await, with(&|scope| scope.ends_with(":write")).await);
        let things = make(deploy, &ada).await;
        Self { ada, eve, admin, things, every_scope, read, write, all_but }
    }

    /// The path with the id of something of Ada's in it.
    fn path(&self, row: &Row) -> String {
        if !row.path.contains("{id}") {
            return row.path.clone();
        }
        let id = self.things.ids.iter().find(|(start, _)| row.path.starts_with(start));
        row.path.replace("{id}", &id.unwrap_or_else(|| panic!("Ada has no thing for {}", row.path)).1)
    }
}

/// Creates a token, and returns its secret.
async fn token(person: &Person, scopes: &[&str]) -> String {
    let answer = person.post("/tokens", json!({ "name": "test", "scopes": scopes, "expires_in_days": 1 })).await;
    let made: Value = answer.json().await.expect("JSON");
    made["secret"].as_str().unwrap_or_else(|| panic!("no token with {scopes:?}: {made}")).to_owned()
}

/// Sends a request whose body is invalid, so that it changes nothing. Returns the status and the name of the problem.
async fn ask(client: &Client, web: &Web, method: &Method, path: &str, token: Option<&str>) -> (u16, String) {
    let mut request = client.request(method.clone(), format!("{}{path}", web.url)).header("sec-fetch-site", "same-origin");
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if [Method::POST, Method::PUT, Method::PATCH].contains(method) {
        request = request.json(&json!({}));
    }
    let answer = request.send().await.expect("web answers");
    let status = answer.status().as_u16();
    // Only a problem is read, because an event stream does not end.
    let body = if status < 400 { String::new() } else { answer.text().await.expect("a body") };
    let slug = serde_json::from_str::<Value>(&body).ok().and_then(|body| Some(body["type"].as_str()?.replace("/problems/", "")));
    (status, slug.unwrap_or_default())
}

/// Checks a table: every caller requests every operation, and may do exactly what the table says.
/// `make` creates Ada's things, and is called again after each operation that may have deleted them.
pub async fn prove_table(table: &str, make: impl AsyncFn(&Deploy, &Person) -> Things) {
    let deploy = Deploy::new().await;
    let (web, rules) = (deploy.web().await, rules(&deploy).await);
    let mut cast = Cast::assemble(&deploy, &web, &rules, &make).await;
    for row in rows(table) {
        let (path, nobody) = (cast.path(&row), client());
        let Row { method, path: template, who } = &row;
        let other_kind = if method == Method::GET { &cast.write } else { &cast.read };
        let rule = rules.iter().find(|rule| rule.method == method.as_str() && rule.path == *template);
        let scope = rule.and_then(Rule::scope);
        if let Some((resource, kind)) = scope.and_then(|scope| scope.split_once(':')) {
            let expected = if method == Method::GET { "read" } else { "write" };
            assert!(template.split('/').any(|part| part == resource) && kind == expected, "{method} {template} needs {scope:?}");
        }
        let all_but = scope.map_or(other_kind, |scope| &cast.all_but[scope]);
        // The owner and the admin come last, because their requests take effect.
        let askers = [
            ("n", "an anonymous caller", &nobody, None, (401, "unauthenticated")),
            ("n", "a forged token", &nobody, Some("pat_forged"), (401, "unauthenticated")),
            ("t", "a token without the scope", &nobody, Some(&**other_kind), (403, "insufficient-scope")),
            ("t", "a token with every other scope", &nobody, Some(&**all_but), (403, "insufficient-scope")),
            ("u", "another user", &cast.eve.client, None, (403, "insufficient-role")),
            ("s", "a token with every scope", &nobody, Some(&*cast.every_scope), (403, "insufficient-scope")),
            ("u", "the owner", &cast.ada.client, None, (403, "insufficient-role")),
            ("a", "an admin", &cast.admin.client, None, (403, "")),
        ];
        for (letter, name, client, token, refusal) in askers {
            let answer = ask(client, &web, method, &path, token).await;
            if who.iter().any(|may| may == letter) {
                assert!(!matches!(answer.0, 401 | 403 | 405) && answer.0 < 500, "{name} may {method} {template}: {answer:?}");
                let others = template.contains("{id}") && !template.contains("admin") && matches!(name, "another user" | "an admin");
                assert!(!others || answer.0 == 404, "another user's thing must be 404: {name} sends {method} {template}: {answer:?}");
            } else {
                assert_eq!((answer.0, &*answer.1), refusal, "{name} may not {method} {template}");
            }
        }
        if method == Method::DELETE || template.contains("admin/") && method == Method::POST {
            cast = Cast::assemble(&deploy, &web, &rules, &make).await;
        }
    }
}

/// Checks that other users can neither read nor change Ada's things, by their ids at the table's operations or in any
/// feature's lists.
pub async fn prove_privacy(table: &str, make: impl AsyncFn(&Deploy, &Person) -> Things) {
    let deploy = Deploy::new().await;
    let (web, rules) = (deploy.web().await, rules(&deploy).await);
    let cast = Cast::assemble(&deploy, &web, &rules, &make).await;
    let scopes: BTreeSet<_> = rules.iter().filter_map(Rule::scope).collect();
    let eves = token(&cast.eve, &scopes.into_iter().collect::<Vec<_>>()).await;
    let things: Vec<_> = cast.things.ids.iter().map(|(_, id)| id).chain(&cast.things.texts).collect();
    let (rows, by_token) = (rows(table), client());
    let as_owner = async || {
        let mut read = Vec::new();
        for row in rows.iter().filter(|row| row.method == Method::GET && row.path.contains("{id}")) {
            let answer = cast.ada.client.get(format!("{}{}", web.url, cast.path(row))).send().await.expect("web answers");
            // Content is a redirect to the object store.
            assert!(matches!(answer.status().as_u16(), 200 | 303), "the owner reads {}: {}", row.path, answer.status());
            read.push(answer.text().await.expect("a body"));
        }
        read
    };
    let before = as_owner().await;
    for (client, token) in [(&cast.eve.client, None), (&by_token, Some(&*eves))] {
        for row in rows.iter().filter(|row| row.path.contains("{id}")) {
            let answer = ask(client, &web, &row.method, &cast.path(row), token).await;
            assert!(matches!(answer.0, 403 | 404), "{} {}: {answer:?}", row.method, row.path);
        }
        for Rule { path, .. } in rules.iter().filter(|rule| rule.method == "GET" && !rule.path.contains("{id}")) {
            let request = client.get(format!("{}{path}", web.url));
            let read = token.into_iter().fold(request, RequestBuilder::bearer_auth).send().await.expect("web answers");
            if read.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream") {
                continue;
            }
            let read = read.text().await.expect("a body");
            assert!(!things.iter().any(|thing| read.contains(*thing)), "GET {path} shows another user's thing: {read}");
        }
    }
    assert_eq!(as_owner().await, before, "Ada's things have changed");
    assert_eq!(cast.ada.get("/session").await.status(), 200);
    assert_eq!(ask(&by_token, &web, &Method::GET, "/api/v1/tokens", Some(&cast.read)).await.0, 200, "Ada's tokens still work");
}
