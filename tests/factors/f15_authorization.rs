//! XV. Authentication and authorization: every request shows whose it is, and does what that person may and nothing else.
//!
//! Violated by a route that nobody guards, a role that nobody asks for, a thing that is given to whoever knows its id.

use std::collections::BTreeSet;

use app::http::access::scopes;
use app::web::ACCESS;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sqlx::Row;
use uuid::Uuid;

use crate::support::Deploy;
use crate::support::deploy::{Web, client};
use crate::support::person::Person;

/// Who may do what, written by hand: n is nobody, t a token without the scope, s one with every scope, u a user with a
/// session, a an admin with one; - is a refusal.
const MAY: &str = "
    POST   /api/v1/accounts                      n t s u a
    POST   /api/v1/session                       n t s u a
    GET    /api/v1/session                       - - - u a
    DELETE /api/v1/session                       n t s u a
    POST   /api/v1/email-verifications           - - - u a
    POST   /api/v1/email-verifications/redeem    n t s u a
    POST   /api/v1/password-resets               n t s u a
    POST   /api/v1/password-resets/redeem        n t s u a
    GET    /verify                               n t s u a
    POST   /verify                               n t s u a
    GET    /reset                                n t s u a
    POST   /reset                                n t s u a
    PATCH  /api/v1/account                       - - - u a
    DELETE /api/v1/account                       - - - u a
    POST   /api/v1/account/password              - - - u a
    GET    /api/v1/account/sessions              - - - u a
    DELETE /api/v1/account/sessions              - - - u a
    DELETE /api/v1/account/sessions/{id}         - - - u a
    POST   /api/v1/tokens                        - - - u a
    GET    /api/v1/tokens                        - - s u a
    DELETE /api/v1/tokens/{id}                   - - s u a
    GET    /api/v1/admin/accounts                - - - - a
    POST   /api/v1/admin/accounts/{id}/suspend   - - - - a
    POST   /api/v1/admin/accounts/{id}/restore   - - - - a
";

const MAY_WITH_REMINDERS: &str = "
    GET    /api/v1/reminders                     - - s u a
    POST   /api/v1/reminders                     - - s u a
    GET    /api/v1/reminders/{id}                - - s u a
    PATCH  /api/v1/reminders/{id}                - - s u a
    DELETE /api/v1/reminders/{id}                - - s u a
";

/// The lines of the table: method, path, who.
fn operations() -> impl Iterator<Item = (Method, &'static str, Vec<&'static str>)> {
    let lines = MAY.lines();
    let lines = lines.chain(MAY_WITH_REMINDERS.lines());
    lines.filter(|line| !line.is_empty()).map(|line| {
        let mut words = line.split_whitespace();
        let mut next = || words.next().unwrap();
        (next().parse().unwrap(), next(), words.collect())
    })
}

/// Ada, whose things are asked for, and the others who ask for them.
struct Cast {
    ada: Person,
    eve: Person,
    admin: Person,
    /// Ada's tokens: with each scope, and with one.
    with_scope: String,
    read: String,
    write: String,
    reminder: String,
    token: String,
    session: String,
    account: String,
}

impl Cast {
    async fn assemble(deploy: &Deploy, web: &Web) -> Self {
        let (ada, eve, admin) = tokio::join!(Person::known(deploy, web), Person::known(deploy, web), Person::unverified(web));
        let mut database = deploy.database().await;
        let grant = "UPDATE accounts SET role = 'admin' WHERE email = $1";
        sqlx::query(grant).bind(&admin.email).execute(&mut database).await.unwrap();
        admin.log_in().await;
        let account: Uuid = ada.get("/session").await.json::<Value>().await.unwrap()["id"].as_str().unwrap().parse().unwrap();
        let remind = "INSERT INTO reminders (id, account_id, message, due_at) VALUES ($1, $2, 'x', now() + interval '1 day') RETURNING id";
        let reminder: Uuid = sqlx::query(remind).bind(Uuid::now_v7()).bind(account).fetch_one(&mut database).await.unwrap().get(0);
        let all = token(&ada, &scopes(ACCESS)).await;
        let (read, write) = (token(&ada, &["tokens:read"]).await, token(&ada, &["tokens:write"]).await);
        let sessions: Value = ada.get("/account/sessions").await.json().await.unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Self {
            with_scope: text(&all["secret"]),
            read: text(&read["secret"]),
            write: text(&write["secret"]),
            reminder: reminder.to_string(),
            token: text(&read["id"]),
            session: text(&sessions["items"][0]["id"]),
            account: account.to_string(),
            ada,
            eve,
            admin,
        }
    }

    /// The path with the id of something of Ada's in it.
    fn path(&self, template: &str) -> String {
        let id = match template {
            path if path.contains("reminders") => &self.reminder,
            path if path.contains("tokens") => &self.token,
            path if path.contains("sessions") => &self.session,
            _ => &self.account,
        };
        template.replace("{id}", id)
    }
}

async fn token(person: &Person, scopes: &[&str]) -> Value {
    let body = json!({ "name": "test", "scopes": scopes, "expires_in_days": 1 });
    person.post("/tokens", body).await.json().await.unwrap()
}

/// Asks with a body that does nothing: who is let in is told that it is not valid.
async fn ask(client: &reqwest::Client, web: &Web, method: &Method, path: &str, token: Option<&str>) -> (u16, String) {
    let mut request = client.request(method.clone(), format!("{}{path}", web.url)).header("sec-fetch-site", "same-origin");
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if method == Method::POST || method == Method::PATCH {
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
    let mut cast = Cast::assemble(&deploy, &web).await;
    for (method, template, who) in operations() {
        let path = cast.path(template);
        let nobody = client();
        let without_scope = if method == Method::GET { &cast.write } else { &cast.read };
        // The owner and the admin come last, since what they ask for is done.
        let askers = [
            ("n", "nobody", &nobody, None, (401, "unauthenticated")),
            ("n", "a forged token", &nobody, Some("pat_forged"), (401, "unauthenticated")),
            ("t", "a token without the scope", &nobody, Some(&**without_scope), (403, "insufficient-scope")),
            ("u", "another user", &cast.eve.client, None, (403, "insufficient-role")),
            ("s", "a token with every scope", &nobody, Some(&*cast.with_scope), (403, "insufficient-scope")),
            ("u", "the owner", &cast.ada.client, None, (403, "insufficient-role")),
            ("a", "an admin", &cast.admin.client, None, (403, "")),
        ];
        for (letter, name, client, token, refusal) in askers {
            let answer = ask(client, &web, &method, &path, token).await;
            if who.contains(&letter) {
                assert!(!matches!(answer.0, 401 | 403 | 405) && answer.0 < 500, "{name} may {method} {template}: {answer:?}");
                let others = template.contains("{id}") && !template.contains("admin") && matches!(name, "another user" | "an admin");
                assert!(!others || answer.0 == 404, "what is another's is not there: {name} asks {method} {template}: {answer:?}");
            } else {
                assert_eq!((answer.0, &*answer.1), refusal, "{name} may not {method} {template}");
            }
        }
        if method == Method::DELETE || template.contains("admin/") && method == Method::POST {
            cast = Cast::assemble(&deploy, &web).await;
        }
    }
    let document: Value = web.get("/openapi.json").await.json().await.unwrap();
    let methods = |path: &str| document["paths"][path].as_object().unwrap().keys().map(|method| method.to_uppercase()).collect::<Vec<_>>();
    let paths = document["paths"].as_object().unwrap().keys();
    let documented: BTreeSet<_> = paths.flat_map(|path| methods(path).into_iter().map(move |method| (path.clone(), method))).collect();
    let proved =
        operations().filter(|(_, path, _)| path.starts_with("/api/")).map(|(method, path, _)| (path.to_owned(), method.to_string()));
    assert_eq!(proved.collect::<BTreeSet<_>>(), documented, "the table of this proof names every operation");
}

#[tokio::test]
async fn nothing_of_anothers_is_in_what_a_person_can_read_and_nothing_happens_to_it() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let cast = Cast::assemble(&deploy, &web).await;
    let eves = token(&cast.eve, &scopes(ACCESS)).await["secret"].as_str().unwrap().to_owned();
    let by_token = client();
    let things = [&cast.token, &cast.session, &cast.account, &cast.ada.email];
    let things = [&things[..], &[&cast.reminder]].concat();
    for (client, token) in [(&cast.eve.client, None), (&by_token, Some(&*eves))] {
        for (method, template, _) in operations().filter(|(_, path, _)| path.contains("{id}")) {
            let answer = ask(client, &web, &method, &cast.path(template), token).await;
            assert!(matches!(answer.0, 403 | 404), "{method} {template}: {answer:?}");
        }
        for (_, template, _) in operations().filter(|(method, path, _)| method == Method::GET && !path.contains("{id}")) {
            let request = client.get(format!("{}{template}", web.url));
            let read = token.into_iter().fold(request, RequestBuilder::bearer_auth).send().await.unwrap().text().await.unwrap();
            assert!(!things.iter().any(|thing| read.contains(*thing)), "GET {template} shows what is another's: {read}");
        }
    }
    assert_eq!(cast.ada.get("/session").await.status(), 200);
    assert_eq!(cast.ada.get(&format!("/reminders/{}", cast.reminder)).await.status(), 200);
    assert_eq!(ask(&by_token, &web, &Method::GET, "/api/v1/tokens", Some(&cast.read)).await.0, 200);
}

#[tokio::test]
async fn who_shows_nothing_that_is_valid_now_is_nobody() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let cast = Cast::assemble(&deploy, &web).await;
    let cookie = cast.ada.elsewhere().cookie().await;
    let (name, id) = cookie.split_once('=').unwrap();
    let ask = async |name: &str, value: &str| {
        let asking = client().get(format!("{}/api/v1/tokens", web.url)).header(name, value);
        asking.send().await.unwrap().status().as_u16()
    };
    let bearer = format!("Bearer {}", cast.read);
    assert_eq!((ask("cookie", &cookie).await, ask("authorization", &bearer).await), (200, 200));
    let forged = [format!("{name}="), format!("{name}={}", id.to_lowercase()), format!("{name}={}", cast.session)];
    for cookie in forged {
        assert_eq!(ask("cookie", &cookie).await, 401, "{cookie}");
    }
    // Each by itself, as a client that ignores its end would.
    let log_out = client().delete(format!("{}/api/v1/session", web.url)).header("cookie", &cookie).header("sec-fetch-site", "same-origin");
    assert_eq!(log_out.send().await.unwrap().status(), 204);
    assert_eq!(ask("cookie", &cookie).await, 401, "a session that has ended");
    assert_eq!(cast.ada.delete(&format!("/tokens/{}", cast.token)).await.status(), 204);
    assert_eq!(ask("authorization", &bearer).await, 401, "a token that has ended");
}
