//! VIII. Concurrency: the service grows by processes, of the types that the Procfile names.
//!
//! Violated by work that only one process may do, or that two of them do twice.

use crate::support::person::Person;
use crate::support::{Deploy, Process};

#[test]
fn every_line_of_the_schedule_is_a_cron_expression_that_ticks() {
    assert!(!app::clock::schedule().unwrap().is_empty());
}

#[tokio::test]
async fn several_workers_share_the_jobs_and_do_each_once() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let workers = ["worker"; 3].map(|name| deploy.start(name));
    let people: Vec<_> = (0..8).map(|_| Person::stranger(&web)).collect();
    for person in &people {
        person.sign_up().await;
    }
    for person in &people {
        deploy.mail.to(&person.email, "Is this your address?").await;
    }
    assert_eq!(deploy.mail.all().await.len(), people.len());
    drop(workers);
}

#[tokio::test]
async fn of_three_clocks_one_dies_and_each_tick_becomes_one_job() {
    let deploy = Deploy::new().await;
    let mut clocks = ["clock"; 3].map(|name| deploy.start(name));
    let mut database = deploy.database().await;
    crate::support::eventually("both schedules", async || {
        let seen = clocks.iter().flat_map(Process::lines).filter(|line| line.contains("its first tick is the next")).count();
        (seen == 2).then_some(())
    })
    .await;
    let jobs = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM jobs").fetch_one(&mut database).await.unwrap();
    assert_eq!(jobs, 0, "a schedule that is new fires nothing");
    clocks[0].signal(nix::sys::signal::Signal::SIGKILL);
    clocks[0].exit().await;

    // As if the clocks had stood still for days: the latest missed tick fires, once.
    sqlx::query("UPDATE schedules SET last_tick = last_tick - interval '3 days'").execute(&mut database).await.unwrap();
    for schedule in ["daily-digest", "purge-expired"] {
        crate::support::eventually(schedule, async || {
            clocks.iter().any(|clock| clock.lines().iter().any(|line| line.contains(&format!("schedule {schedule} ticked")))).then_some(())
        })
        .await;
    }
    let kinds = sqlx::query_scalar::<_, String>("SELECT kind FROM jobs ORDER BY kind").fetch_all(&mut database).await.unwrap();
    assert_eq!(kinds, ["purge_expired", "send_digests"]);
}

#[tokio::test]
async fn the_daily_digest_fans_out_into_one_mail_for_each_account() {
    let deploy = Deploy::new().await;
    let (web, _worker, clock) = (deploy.web().await, deploy.start("worker"), deploy.start("clock"));
    clock.says("schedule daily-digest is new").await;
    let (ada, grace) = tokio::join!(Person::verified(&deploy, &web), Person::verified(&deploy, &web));
    for (person, message) in [(&ada, "first\nand its second line"), (&ada, "second"), (&grace, "third")] {
        assert_eq!(person.remind(message, 3600).await.status(), 201);
    }
    // Whatever the time of day is, they are due on the day of the tick, and not yet.
    let mut database = deploy.database().await;
    sqlx::query("UPDATE reminders SET due_at = date_trunc('day', last_tick AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + interval '23 hours' FROM schedules WHERE name = 'daily-digest'")
        .execute(&mut database)
        .await
        .unwrap();
    sqlx::query("UPDATE schedules SET last_tick = last_tick - interval '1 day' WHERE name = 'daily-digest'")
        .execute(&mut database)
        .await
        .unwrap();
    let tick = clock.says("schedule daily-digest ticked").await["tick"].as_str().unwrap()[..10].to_owned();
    let digest = deploy.mail.to(&ada.email, &format!("Due on {tick}")).await;
    assert_eq!(digest.text.trim().lines().collect::<Vec<_>>(), ["23:00 UTC  first", "23:00 UTC  second"]);
    assert_eq!(deploy.mail.to(&grace.email, &format!("Due on {tick}")).await.text.trim(), "23:00 UTC  third");
}
