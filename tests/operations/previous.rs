//! Two releases share one schema, as `migrations/README.md` promises. `tests/operations/previous` builds the last release.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::done;
use crate::support::deploy::Web;
use crate::support::person::Person;
use crate::support::{Deploy, Process, eventually};

/// One process of each type, all of one release.
struct Running {
    deploy: Deploy,
    web: Web,
    worker: Process,
    clock: Process,
}

impl Running {
    async fn start(deploy: &Deploy) -> Self {
        let (web, worker, clock) = (deploy.web().await, deploy.start("worker"), deploy.start("clock"));
        for process in [&worker, &clock] {
            process.says("ready").await;
        }
        let running = Self { deploy: deploy.clone(), web, worker, clock };
        running.is_ready().await;
        running
    }

    async fn is_ready(&self) {
        let answer = self.web.get("/readyz").await;
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    }

    /// A new person signs up, verifies the address and requests a reset. A person of another release uses what that release
    /// stored: the session, the password, and the mailed link, which ends both.
    async fn serves(&self, before: Option<&Person>) -> Person {
        self.is_ready().await;
        let new = Person::unverified(&self.web).await;
        self.verifies(&new).await;
        assert_eq!(new.request_reset().await.status(), 202);
        self.mailed(&new, "/reset").await;
        if let Some(before) = before {
            let before = before.at(&self.web);
            let me: Value = before.get("/session").await.json().await.unwrap();
            assert_eq!((&me["email"], &me["verified"]), (&json!(before.email), &json!(true)), "the other release's session works");
            assert_eq!(before.elsewhere().log_in().await.status(), 200, "the other release's password works");
            let reset = json!({ "token": self.mailed(&before, "/reset").await, "password": "another password altogether" });
            assert_eq!(before.post("/password-resets/redeem", reset).await.status(), 204, "the other release's link works");
            assert_eq!(before.get("/session").await.status(), 401, "the session has ended");
            assert_eq!(before.elsewhere().log_in().await.status(), 401, "the password has changed");
        }
        new
    }

    /// Opens the link that verifies the address. Either release may have sent it.
    async fn verifies(&self, person: &Person) {
        // The last release takes only the token. This one needs the password, too.
        let token = self.mailed(person, "/verify").await;
        let redeemed = person.at(&self.web).redeem(&token).await;
        let redeemed = if redeemed.status() == 422 {
            person.at(&self.web).post("/email-verifications/redeem", json!({ "token": token })).await
        } else {
            redeemed
        };
        assert_eq!(redeemed.status(), 204);
    }

    /// Waits for a mail with a link to a page, and returns its token.
    async fn mailed(&self, person: &Person, page: &str) -> String {
        let link = format!("{page}?token=");
        let mail = async || {
            let mails = self.deploy.mail.all().await.into_iter();
            mails.filter(|mail| mail.to == [person.email.as_str()]).find(|mail| mail.text.contains(&link))
        };
        eventually(&format!("a mail with a link to {page}"), mail).await.token()
    }

    /// Stops the processes, and leaves the job of a new sign-up to the next release.
    async fn leaves_a_job(mut self) -> Person {
        assert_eq!(self.worker.terminate().await, Some(0));
        let person = Person::unverified(&self.web).await;
        for process in [&mut self.web.process, &mut self.clock] {
            assert_eq!(process.terminate().await, Some(0));
        }
        person
    }
}

/// It runs before this release, beside it, and after a rollback.
#[tokio::test]
async fn previous_release_runs_on_the_new_schema() {
    let Some(programs) = std::env::var_os("PREVIOUS_PROGRAMS") else {
        println!("skipped: needs the programs of the last release: bin/test previous");
        return;
    };
    let new = Deploy::unmigrated().await;
    let old = new.run_by(PathBuf::from(programs));
    let version = done(&old, &["--version"]).await;
    assert_ne!(version, done(&new, &["--version"]).await, "the two releases must differ");

    // A deploy migrates first, while the old processes run.
    done(&old, &["migrate"]).await;
    let mut before = Running::start(&old).await;
    let ada = before.serves(None).await;
    done(&new, &["migrate"]).await;
    let bob = before.serves(Some(&ada)).await;
    // An old process can also start on the new schema.
    done(&old, &["migrate", "--check"]).await;
    let again = Running::start(&old).await;
    let carol = again.serves(Some(&bob)).await;
    // No old worker runs any more, so the new release's worker must run the job.
    assert_eq!(before.worker.terminate().await, Some(0));
    let left = again.leaves_a_job().await;

    let after = Running::start(&new).await;
    after.verifies(&left).await;
    // The old processes continue beside the new ones.
    before.worker = old.start("worker");
    before.worker.says("ready").await;
    let dave = after.serves(Some(&carol)).await;
    let erin = before.serves(Some(&dave)).await;
    let left = before.leaves_a_job().await;
    after.verifies(&left).await;
    let fay = after.serves(Some(&erin)).await;
    let left = after.leaves_a_job().await;

    // A rollback to the old release.
    let back = Running::start(&old).await;
    back.verifies(&left).await;
    back.serves(Some(&fay)).await;
}
