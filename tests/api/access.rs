//! Who may do what: every route of the table, asked for by everybody.

use app::http::access::{Rate, Who, rule};
use app::web::ACCESS;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use sqlx::Row;
use uuid::Uuid;

use crate::support::Deploy;
use crate::support::deploy::{Web, client};
use crate::support::person::{Person, problem};

/// Ada, whose things are asked for, and the others who ask for them.
struct Cast {
    ada: Person,
    eve: Person,
    admin: Person,
    /// Ada's tokens: with each scope, and with one.
    with_scope: String,
    read: String,
    write: String,
    reminder: Uuid,
    token: String,
    session: String,
    account: Uuid,
}

impl Cast {
    async fn assemble(deploy: &Deploy, web: &Web) -> Self {
        let (ada, eve, admin) = tokio::join!(Person::known(deploy, web), Person::unverified(web), Person::unverified(web));
        let mut database = deploy.database().await;
        let grant = "UPDATE accounts SET role = 'admin' WHERE email = $1";
        sqlx::query(grant).bind(&admin.email).execute(&mut database).await.unwrap();
        admin.log_in().await;
        let account: Uuid = ada.get("/session").await.json::<Value>().await.unwrap()["id"].as_str().unwrap().parse().unwrap();
        let remind = "INSERT INTO reminders (id, account_id, message, due_at) VALUES ($1, $2, 'x', now() + interval '1 day') RETURNING id";
        let reminder = sqlx::query(remind).bind(Uuid::now_v7()).bind(account).fetch_one(&mut database).await.unwrap().get(0);
        let token = async |scopes: &[&str]| {
            let body = json!({ "name": "test", "scopes": scopes, "expires_in_days": 1 });
            ada.post("/tokens", body).await.json::<Value>().await.unwrap()
        };
        let all = token(&["reminders:read", "reminders:write"]).await;
        let (read, write) = (token(&["reminders:read"]).await, token(&["reminders:write"]).await);
        let sessions: Value = ada.get("/account/sessions").await.json().await.unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Self {
            with_scope: text(&all["secret"]),
            read: text(&read["secret"]),
            write: text(&write["secret"]),
            reminder,
            token: text(&read["id"]),
            session: text(&sessions["items"][0]["id"]),
            account,
            ada,
            eve,
            admin,
        }
    }

    /// The path with the id of something of Ada's in it.
    fn path(&self, template: &str) -> String {
        let id = match template {
            path if path.contains("reminders") => self.reminder.to_string(),
            path if path.contains("tokens") => self.token.clone(),
            path if path.contains("sessions") => self.session.clone(),
            _ => self.account.to_string(),
        };
        template.replace("{id}", &id)
    }
}

async fn ask(client: &Client, web: &Web, method: &Method, path: &str, token: Option<&str>) -> (u16, String) {
    let mut request = client.request(method.clone(), format!("{}{path}", web.url)).header("sec-fetch-site", "same-origin");
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if method == Method::POST || method == Method::PATCH {
        // Nothing that would do anything: who is let in is told that it is not valid.
        request = request.json(&json!({}));
    }
    let answer = request.send().await.unwrap();
    let (status, body) = (answer.status().as_u16(), answer.text().await.unwrap());
    let slug = serde_json::from_str::<Value>(&body).ok().and_then(|body| Some(body["type"].as_str()?.replace("/problems/", "")));
    (status, slug.unwrap_or_default())
}

#[tokio::test]
async fn everybody_may_do_what_the_table_says_and_nothing_else() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    for (method, template, who, _) in ACCESS {
        let cast = Cast::assemble(&deploy, &web).await;
        let path = cast.path(template);
        let nobody = client();
        let without_scope = if *who == Who::Scope("reminders:read") { &cast.write } else { &cast.read };
        let refused = |slug: &str| (if slug == "unauthenticated" { 401 } else { 403 }, slug.to_owned());
        // The owner and the admin come last, since what they ask for is done.
        let askers = [
            ("nobody", &nobody, None, *who == Who::Anyone, "unauthenticated"),
            ("a forged token", &nobody, Some("pat_forged"), *who == Who::Anyone, "unauthenticated"),
            ("a token without the scope", &nobody, Some(&**without_scope), *who == Who::Anyone, "insufficient-scope"),
            ("a user", &cast.eve.client, None, *who != Who::Admin, "insufficient-role"),
            (
                "a token with every scope",
                &nobody,
                Some(&*cast.with_scope),
                matches!(who, Who::Anyone | Who::Scope(_)),
                "insufficient-scope",
            ),
            ("the owner", &cast.ada.client, None, *who != Who::Admin, "insufficient-role"),
            ("an admin", &cast.admin.client, None, true, ""),
        ];
        for (name, client, token, may, slug) in askers {
            let answer = ask(client, &web, method, &path, token).await;
            let what = format!("{name} asks {method} {template}: {answer:?}");
            if may {
                assert!(!matches!(answer.0, 401 | 403 | 405) && answer.0 < 500, "{what}");
            } else {
                assert_eq!(answer, refused(slug), "{what}");
            }
            let others = template.contains("{id}") && !template.contains("admin") && matches!(name, "a user" | "an admin");
            assert!(!others || answer.0 == 404, "what is another's is not there: {what}");
        }
    }
}

#[tokio::test]
async fn a_route_is_served_if_and_only_if_it_is_in_the_table() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    for (method, path, ..) in ACCESS {
        let request = client().request(method.clone(), format!("{}{}", web.url, path.replace("{id}", &Uuid::nil().to_string())));
        let answer = request.header("x-request-id", format!("{method}-is-served")).send().await.unwrap();
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        let template = *path;
        web.process.logged("the route", |line| line["request_id"] == id && line["route"] == template).await;
        assert_ne!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path} is in the table, and served by no handler");
    }
    let answer = client().put(format!("{}/api/v1/session", web.url)).send().await.unwrap();
    assert_eq!(answer.headers()["allow"], "POST,GET,HEAD,DELETE");
    problem(answer, 405, "method-not-allowed").await;
}

#[test]
fn what_is_not_in_the_table_nobody_may() {
    let table = [(Method::GET, "/mine", Who::SignedIn, Rate::Requests)];
    for asked in [Method::GET, Method::HEAD] {
        assert_eq!(rule(&table, &asked, "/mine").unwrap(), (Method::GET, Who::SignedIn, Rate::Requests));
    }
    for (method, path) in [(Method::POST, "/mine"), (Method::GET, "/mine/"), (Method::GET, "/other"), (Method::OPTIONS, "/mine")] {
        assert_eq!(rule(&table, &method, path).unwrap_err().status, 405, "{method} {path}");
    }
}

#[tokio::test]
async fn each_documented_problem_has_a_type_and_an_example() {
    let document: Value = serde_json::from_str(&std::fs::read_to_string("openapi.json").unwrap()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let responses = operation["responses"].as_object().unwrap();
            for (status, response) in responses.iter().filter(|(status, _)| status.as_str() >= "400") {
                let problem = &response["content"]["application/problem+json"];
                let types = problem["schema"]["allOf"][1]["properties"]["type"]["enum"].as_array().unwrap();
                let examples = problem["examples"].as_object().unwrap();
                assert_eq!(types.len(), examples.len(), "{method} {path} {status}");
                for example in examples.values() {
                    assert!(types.contains(&example["value"]["type"]) && example["value"]["status"] == status.parse::<u16>().unwrap());
                }
            }
            for status in ["500", "503", "429"] {
                assert!(responses.contains_key(status), "{method} {path} {status}");
            }
        }
    }
}

#[tokio::test]
async fn the_browsable_page_of_the_api_needs_no_other_site() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let page = web.get("/docs/").await;
    assert_eq!(page.status(), 200);
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'self'") && !policy.contains("http"), "{policy}");
    let html = page.text().await.unwrap();
    let scripts: Vec<_> = html.split("src=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(!scripts.is_empty() && scripts.iter().all(|script| !script.contains("//")), "{scripts:?}");
    for script in scripts {
        let script = web.get(&format!("/docs/{}", script.trim_start_matches("./"))).await;
        assert_eq!(script.status(), 200);
        assert!(!script.text().await.unwrap().is_empty());
    }
    assert_eq!(web.get("/docs").await.headers()["location"], "/docs/");
}
