//! A person with a browser: a cookie jar, an address, a password.

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Deploy;
use super::deploy::{Web, client};

pub const PASSWORD: &str = "correct horse battery staple";

pub struct Person {
    pub client: Client,
    pub email: String,
    pub url: String,
}

impl Person {
    /// A person who has not signed up.
    pub fn stranger(web: &Web) -> Self {
        Self { client: client(), email: format!("{}@example.com", Uuid::new_v4().simple()), url: web.url.clone() }
    }

    /// A person who has signed up and logged in, but not verified the address.
    pub async fn unverified(web: &Web) -> Self {
        let person = Self::stranger(web);
        assert_eq!(person.sign_up().await.status(), StatusCode::ACCEPTED);
        assert_eq!(person.log_in().await.status(), StatusCode::OK);
        person
    }

    /// A person whose address is verified directly in the database, without a worker and a mail.
    pub async fn known(deploy: &Deploy, web: &Web) -> Self {
        let person = Self::unverified(web).await;
        let verify = sqlx::query("UPDATE accounts SET verified_at = now() WHERE email = $1").bind(&person.email);
        verify.execute(&mut deploy.database().await).await.expect("the account is there");
        person
    }

    /// A person with the role admin.
    pub async fn admin(deploy: &Deploy, web: &Web) -> Self {
        let person = Self::known(deploy, web).await;
        let grant = sqlx::query("UPDATE accounts SET role = 'admin' WHERE email = $1").bind(&person.email);
        grant.execute(&mut deploy.database().await).await.expect("the account is there");
        // A session has the role that the account had at its log-in.
        assert_eq!(person.log_in().await.status(), StatusCode::OK);
        person
    }

    /// A person who has verified the address by mail. Needs a worker, which sends the mail.
    pub async fn verified(deploy: &Deploy, web: &Web) -> Self {
        let person = Self::unverified(web).await;
        let mail = deploy.mail.to(&person.email, "Did you sign up?").await;
        assert_eq!(person.redeem(&mail.token()).await.status(), StatusCode::NO_CONTENT);
        person
    }

    /// The same person with another browser.
    pub fn elsewhere(&self) -> Self {
        Self { client: client(), email: self.email.clone(), url: self.url.clone() }
    }

    /// The same person and browser at another process.
    pub fn at(&self, web: &Web) -> Self {
        Self { client: self.client.clone(), email: self.email.clone(), url: web.url.clone() }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        // As a browser sends it from this deploy's own pages.
        self.client.request(method, format!("{}/api/v1{path}", self.url)).header("sec-fetch-site", "same-origin")
    }

    pub async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.expect("web answers")
    }

    pub async fn post(&self, path: &str, body: Value) -> Response {
        self.request(Method::POST, path).json(&body).send().await.expect("web answers")
    }

    pub async fn patch(&self, path: &str, body: Value) -> Response {
        self.request(Method::PATCH, path).json(&body).send().await.expect("web answers")
    }

    pub async fn delete(&self, path: &str) -> Response {
        self.request(Method::DELETE, path).send().await.expect("web answers")
    }

    /// Submits the form of a page, as a browser does.
    pub async fn press(&self, web: &Web, path: &str, form: &[(&str, &str)]) -> Response {
        let post = self.client.post(format!("{}{path}", web.url)).header("sec-fetch-site", "same-origin").form(form);
        post.send().await.expect("web answers")
    }

    pub async fn sign_up(&self) -> Response {
        self.post("/accounts", json!({ "email": self.email, "password": PASSWORD })).await
    }

    /// Signs up and logs in, and returns the cookie for use by other clients.
    pub async fn cookie(&self) -> String {
        self.sign_up().await;
        self.another_cookie().await
    }

    /// Logs in again, and returns the new cookie.
    pub async fn another_cookie(&self) -> String {
        let answer = self.log_in().await;
        let cookie = answer.headers()["set-cookie"].to_str().expect("a text");
        cookie.split(';').next().expect("a name and a value").to_owned()
    }

    pub async fn log_in(&self) -> Response {
        self.post("/session", json!({ "email": self.email, "password": PASSWORD })).await
    }

    /// Verifies the address with the mailed token and the password.
    /// Raises the account's epoch and makes other changes to its row, such as `, role = 'user'`. `web` has just found the account
    /// as it was, and Redis still has the session, as if the deletion there were lost.
    pub async fn ends_unnoticed(&self, deploy: &Deploy, changes: &str) {
        assert_eq!(self.get("/session").await.status(), 200);
        let end = format!("UPDATE accounts SET session_epoch = session_epoch + 1{changes} WHERE email = $1");
        let end = sqlx::query(sqlx::AssertSqlSafe(end)).bind(&self.email);
        end.execute(&mut deploy.database().await).await.expect("Postgres answers");
    }

    pub async fn redeem(&self, token: &str) -> Response {
        self.post("/email-verifications/redeem", json!({ "token": token, "password": PASSWORD })).await
    }

    /// Requests a mail with a link to reset the password.
    pub async fn request_reset(&self) -> Response {
        self.post("/password-resets", json!({ "email": self.email })).await
    }
}

/// Checks what every problem must have, and returns the problem.
pub async fn problem(response: Response, status: u16, slug: &str) -> Value {
    let headers = response.headers().clone();
    assert_eq!(response.status(), status);
    assert_eq!(headers["content-type"], "application/problem+json");
    let problem: Value = response.json().await.expect("a problem is JSON");
    assert_eq!(problem["type"], format!("/problems/{slug}"), "{problem}");
    assert_eq!(problem["status"], status);
    assert!(problem["title"].is_string());
    assert_eq!(problem["request_id"].as_str(), headers["x-request-id"].to_str().ok());
    problem
}
