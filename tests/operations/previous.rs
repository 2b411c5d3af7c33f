//! Two releases, one schema: what `migrations/README.md` promises the last release, whose programs `tests/operations/previous` builds.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::done;
use crate::support::deploy::Web;
use crate::support::person::{Person, in_seconds};
use crate::support::{Deploy, Process, eventually};

/// One process of each type, of one release.
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

    /// Somebody new comes and is reminded; so is who came before, of what another release has written down.
    async fn serves(&self, before: Option<&Person>) -> Person {
        self.is_ready().await;
        let new = Person::verified(&self.deploy, &self.web).await;
        assert_eq!(new.remind("a short while", 1).await.status(), 201);
        assert_eq!(new.remind("a long while", 3600).await.status(), 201);
        self.mailed(&new, "a short while").await;
        if let Some(before) = before {
            let before = before.at(&self.web);
            assert_eq!(before.get("/session").await.status(), 200, "the session of before");
            let reminders: Value = before.get("/reminders").await.json().await.unwrap();
            let left = reminders["items"].as_array().unwrap().iter().find(|item| item["message"] == "a long while").unwrap().clone();
            let sooner = json!({ "message": "sooner", "due_at": in_seconds(1) });
            assert_eq!(before.patch(&format!("/reminders/{}", left["id"].as_str().unwrap()), sooner).await.status(), 200);
            self.mailed(&before, "sooner").await;
            assert_eq!(before.elsewhere().log_in().await.status(), 200, "the password of before");
        }
        new
    }

    /// Waits for the mail of a reminder, whoever asked for it.
    async fn mailed(&self, person: &Person, message: &str) {
        let mail = async || {
            self.deploy.mail.all().await.into_iter().find(|mail| mail.to == [person.email.as_str()] && mail.text.trim() == message)
        };
        eventually(&format!("the mail: {message}"), mail).await;
    }

    /// Leaves a job behind for whoever comes next.
    async fn leaves_a_job(mut self, person: &Person) {
        assert_eq!(self.worker.terminate().await, Some(0));
        assert_eq!(person.at(&self.web).remind("for the next", 1).await.status(), 201);
        for process in [&mut self.web.process, &mut self.clock] {
            assert_eq!(process.terminate().await, Some(0));
        }
    }
}

#[tokio::test]
async fn the_last_release_runs_on_the_schema_of_this_one_before_it_beside_it_and_after_it() {
    let Some(programs) = std::env::var_os("PREVIOUS_PROGRAMS") else {
        println!("skipped: needs the programs of the last release: bin/test previous");
        return;
    };
    let new = Deploy::unmigrated().await;
    let old = new.run_by(PathBuf::from(programs));
    let version = done(&old, &["--version"]).await;
    assert_ne!(version, done(&new, &["--version"]).await, "two commits");

    // As a deploy goes: migrations first, under the running processes.
    done(&old, &["migrate"]).await;
    let before = Running::start(&old).await;
    let ada = before.serves(None).await;
    done(&new, &["migrate"]).await;
    let bob = before.serves(Some(&ada)).await;
    // What restarts meanwhile starts on the new schema.
    done(&old, &["migrate", "--check"]).await;
    let again = Running::start(&old).await;
    let carol = again.serves(Some(&bob)).await;
    again.leaves_a_job(&carol).await;

    let after = Running::start(&new).await;
    let dave = after.serves(Some(&carol)).await;
    after.mailed(&carol, "for the next").await;
    // The last of the old is still there.
    let erin = before.serves(Some(&dave)).await;
    before.leaves_a_job(&erin).await;
    after.mailed(&erin, "for the next").await;
    let fay = after.serves(Some(&erin)).await;
    after.leaves_a_job(&fay).await;

    // And back.
    let back = Running::start(&old).await;
    back.mailed(&fay, "for the next").await;
    let gil = back.serves(Some(&fay)).await;
    back.leaves_a_job(&gil).await;
}
