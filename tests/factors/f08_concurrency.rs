//! VIII. Concurrency: the service scales by processes, of the types that the Procfile names.
//!
//! Violated by work that only one process may do, by work that two processes do twice, or by a process that daemonizes.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::process::{procfile, programs};
use crate::support::{Deploy, Process, Proxy, eventually};

#[tokio::test]
async fn processes_neither_daemonize_nor_write_pid_files() {
    let text = std::fs::read_to_string("Procfile").unwrap();
    let types: Vec<_> = text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
    assert_eq!(types, ["release", "web", "worker", "clock"], "the one-off before a release, and the process types");
    let deploy = Deploy::new().await;
    for name in &types[1..] {
        let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir(&folder).unwrap();
        let mut command = tokio::process::Command::new(programs().join(procfile(name)));
        command.env_clear().envs(&deploy.environment).envs(["HOME", "TMPDIR"].map(|name| (name, &folder))).current_dir(&folder);
        let mut process = Process::spawn(command);
        let line = process.says("is starting").await;
        let pid = process.pid().to_string();
        assert!(
            line["instance"].as_str().unwrap().ends_with(&format!(":{pid}")),
            "the logging process is the one that was started: {line}"
        );
        // The fields after the name in parentheses: state, parent, process group, session.
        let about = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().rsplit_once(") ").unwrap().1.to_owned();
        let (its, ours) = (about(&pid), about("self"));
        let field = |stat: &str, number: usize| stat.split(' ').nth(number).unwrap().to_owned();
        assert_eq!(field(&its, 1), std::process::id().to_string(), "{name} is no longer a child of the test");
        assert_eq!(field(&its, 3), field(&ours, 3), "{name} has left the test's session");
        assert!(process.ended().is_none(), "{name} still runs");
        for place in [Path::new("/run"), Path::new("/tmp"), &folder] {
            let files = std::fs::read_dir(place).into_iter().flatten().filter_map(|file| Some(file.ok()?.path()));
            // Files only: reading a named pipe would block.
            let mut texts = files.filter(|file| file.is_file()).filter_map(|file| std::fs::read_to_string(file).ok());
            assert!(!texts.any(|text| text.trim() == pid), "{name} has written its process id to {}", place.display());
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}

#[tokio::test]
async fn four_workers_at_least_triple_the_throughput() {
    const JOBS: usize = 48;
    // Concurrently, so that a busy machine slows both.
    let (one, four) = tokio::join!(with_slow_jobs(JOBS), with_slow_jobs(JOBS));
    let _one = one.0.start("worker");
    let _four = ["worker"; 4].map(|name| four.0.start(name));
    let mailed = async |deploy: &Deploy| deploy.mail.all().await.len();
    let until = async |deploy: &Deploy, count: usize| {
        eventually("so many mails", async || (mailed(deploy).await >= count).then_some(())).await;
    };
    tokio::join!(until(&one.0, 1), until(&four.0, 4));
    let before = (mailed(&one.0).await, mailed(&four.0).await);
    until(&one.0, before.0 + 6).await;
    let done = (mailed(&one.0).await - before.0, mailed(&four.0).await - before.1);
    assert!(done.1 >= done.0 * 3, "while one worker did {} jobs, four together did {}", done.0, done.1);

    four.1.heal();
    eventually("an empty queue", async || {
        let left = "SELECT count(*) FROM jobs";
        (sqlx::query_scalar::<_, i64>(left).fetch_one(&mut four.0.database().await).await.unwrap() == 0).then_some(())
    })
    .await;
    let mails = four.0.mail.all().await;
    let different: BTreeSet<_> = mails.iter().map(|mail| &mail.message_id).collect();
    assert_eq!((mails.len(), different.len()), (JOBS, JOBS), "each job runs once");
}

/// A deploy whose workers run one job at a time, and this many jobs that send mail over a slow connection.
async fn with_slow_jobs(jobs: usize) -> (Deploy, Proxy) {
    let deploy = Deploy::new().await.with("WORKER_CONCURRENCY", 1);
    let smtp = Proxy::to(deploy.address_of("SMTP_URL")).await;
    smtp.delay(Duration::from_millis(50));
    let fill = "WITH new AS (INSERT INTO accounts (id, email, password_hash) \
                SELECT gen_random_uuid(), n || '@example.com', '' FROM generate_series(1, $1) AS n RETURNING id) \
                INSERT INTO jobs (kind, payload, max_attempts) SELECT 'send_verification', jsonb_build_object('account_id', id), 5 FROM new";
    sqlx::query(fill).bind(i32::try_from(jobs).unwrap()).execute(&mut deploy.database().await).await.unwrap();
    (deploy.clone_with("SMTP_URL", deploy.through("SMTP_URL", &smtp)), smtp)
}

/// The schedule, as `admin` prints it.
async fn schedule(deploy: &Deploy) -> Vec<Value> {
    let printed = deploy.admin(&["schedule", "--json"]).await;
    assert!(printed.status.success(), "{printed:?}");
    String::from_utf8(printed.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn every_schedule_has_a_next_tick() {
    let schedule = schedule(&Deploy::new().await).await;
    assert!(!schedule.is_empty());
    for line in schedule {
        assert!(line["next_tick"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn surviving_clocks_enqueue_each_tick_once() {
    let deploy = Deploy::new().await;
    let mut clocks = ["clock"; 3].map(|name| deploy.start(name));
    let mut database = deploy.database().await;
    let schedules = schedule(&deploy).await.len();
    eventually("every schedule", async || {
        let seen = clocks.iter().flat_map(Process::lines).filter(|line| line.contains("it first fires at its next tick")).count();
        (seen == schedules).then_some(())
    })
    .await;
    let jobs = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM jobs").fetch_one(&mut database).await.unwrap();
    assert_eq!(jobs, 0, "a schedule that is new fires nothing");
    clocks[0].signal(nix::sys::signal::Signal::SIGKILL);
    clocks[0].exit().await;

    // As if the clocks had stopped for days: the latest missed tick fires once.
    sqlx::query("UPDATE schedules SET last_tick = last_tick - interval '3 days'").execute(&mut database).await.unwrap();
    eventually("a tick of each", async || {
        let ticked = clocks.iter().flat_map(Process::lines).filter(|line| line.contains(" ticked")).count();
        (ticked >= schedules).then_some(())
    })
    .await;
    let kinds = sqlx::query_scalar::<_, String>("SELECT kind FROM jobs ORDER BY kind").fetch_all(&mut database).await.unwrap();
    assert_eq!(kinds.len(), schedules, "{kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| *kind == "purge_expired").count(), 1, "{kinds:?}");

    // A tick of the future, from a clock that was wrong, stops no schedule.
    sqlx::query("UPDATE schedules SET last_tick = last_tick + interval '1 year'").execute(&mut database).await.unwrap();
    eventually("a tick of each again", async || {
        let ticked = clocks.iter().flat_map(Process::lines).filter(|line| line.contains(" ticked")).count();
        (ticked >= 2 * schedules).then_some(())
    })
    .await;
}
