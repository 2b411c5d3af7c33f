//! A person at a browser: a cookie jar, an address, a password.

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
    /// Somebody who has never been here.
    pub fn stranger(web: &Web) -> Self {
        Self { client: client(), email: format!("{}@example.com", Uuid::new_v4().simple()), url: web.url.clone() }
    }

    /// Somebody who has signed up and logged in, and not yet opened the mail.
    pub async fn unverified(web: &Web) -> Self {
        let person = Self::stranger(web);
        assert_eq!(person.sign_up().await.status(), StatusCode::ACCEPTED);
        assert_eq!(person.log_in().await.status(), StatusCode::OK);
        person
    }

    /// Somebody whose address counts as verified, without a worker and a mail.
    pub async fn known(deploy: &Deploy, web: &Web) -> Self {
        let person = Self::unverified(web).await;
        let verify = sqlx::query("UPDATE accounts SET verified_at = now() WHERE email = $1").bind(&person.email);
        verify.execute(&mut deploy.database().await).await.expect("the account is there");
        person
    }

    /// Somebody who has done that too; needs a worker, which sends the mail.
    pub async fn verified(deploy: &Deploy, web: &Web) -> Self {
        let person = Self::unverified(web).await;
        let mail = deploy.mail.to(&person.email, "Did you sign up?").await;
        assert_eq!(person.redeem(&mail.token()).await.status(), StatusCode::NO_CONTENT);
        person
    }

    /// The same person at another browser.
    pub fn elsewhere(&self) -> Self {
        Self { client: client(), email: self.email.clone(), url: self.url.clone() }
    }

    /// The same person at another process.
    pub fn at(&self, web: &Web) -> Self {
        Self { client: self.client.clone(), email: self.email.clone(), url: web.url.clone() }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        // As a browser says it on this deploy's own pages.
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

    /// Presses the button of a page, as a browser does.
    pub async fn press(&self, web: &Web, path: &str, form: &[(&str, &str)]) -> Response {
        let post = self.client.post(format!("{}{path}", web.url)).header("sec-fetch-site", "same-origin").form(form);
        post.send().await.expect("web answers")
    }

    pub async fn sign_up(&self) -> Response {
        self.post("/accounts", json!({ "email": self.email, "password": PASSWORD })).await
    }

    /// Signs up and logs in, and gives the cookie that clients of another kind can take.
    pub async fn cookie(&self) -> String {
        self.sign_up().await;
        self.another_cookie().await
    }

    /// Logs in once more, and gives that cookie.
    pub async fn another_cookie(&self) -> String {
        let answer = self.log_in().await;
        let cookie = answer.headers()["set-cookie"].to_str().expect("a text");
        cookie.split(';').next().expect("a name and a value").to_owned()
    }

    pub async fn log_in(&self) -> Response {
        self.post("/session", json!({ "email": self.email, "password": PASSWORD })).await
    }

    /// Shows the token of a mail that verifies an address, and the password.
    pub async fn redeem(&self, token: &str) -> Response {
        self.post("/email-verifications/redeem", json!({ "token": token, "password": PASSWORD })).await
    }

    /// Asks for a mail to set another password.
    pub async fn forget(&self) -> Response {
        self.post("/password-resets", json!({ "email": self.email })).await
    }
}

/// The problem in an answer, after a look at what every problem must have.
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
