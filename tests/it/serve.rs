//! The daemon, through the binary and HTTP: who may ask what, schedules, reloads, ends, kills, the page.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::http::{Answer, get, request, wait};
use crate::pipelines::Work;
use crate::support::{Random, example, run_python, sparse, stderr, text};

const TOKEN: &str = "a-token-for-tests";

/// `sparse pipeline serve`, killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) address: String,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    /// Starts it on a free port, and waits until it listens.
    pub(crate) fn start(work: &Work, more: &[&str]) -> Self {
        let mut all = vec!["--listen", "127.0.0.1:0"];
        all.extend(more);
        Self::spawn(work.sparse("serve", &all).env("SPARSE_SERVE_TOKEN", TOKEN))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().strip_prefix("listening on http://");
        let address = address.unwrap_or_else(|| panic!("{line}")).to_owned();
        Self { child, address }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        get(&self.address, path)
    }

    fn json(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    fn post(&self, path: &str) -> Answer {
        let token = format!("Bearer {TOKEN}");
        request(&self.address, "POST", path, &[("Authorization", &token)]).unwrap()
    }

    /// Asks for a run of a pipeline; returns its id.
    pub(crate) fn ask(&self, pipeline: &str) -> String {
        let answer = self.post(&format!("/api/pipelines/{pipeline}/runs"));
        assert_eq!(answer.status, 202, "{answer:?}");
        let id = answer.json()["run"].as_str().unwrap().to_owned();
        let place = format!("location: /api/runs/{id}");
        assert!(answer.headers.to_lowercase().contains(&place), "{answer:?}");
        id
    }

    /// Its runs, newest first.
    fn runs(&self, pipeline: &str) -> Vec<Value> {
        let all = self.json(&format!("/api/runs?pipeline={pipeline}&limit=1000"));
        all.as_array().unwrap().clone()
    }

    fn count(&self, pipeline: &str, status: &str) -> usize {
        let runs = self.runs(pipeline);
        runs.iter().filter(|run| run["status"] == status).count()
    }

    /// Waits for so many runs of a status; returns the newest.
    pub(crate) fn wait_for(&self, pipeline: &str, status: &str, count: usize) -> Value {
        wait(&format!("{count} runs of {pipeline} {status}"), || {
            (self.count(pipeline, status) >= count).then(|| self.runs(pipeline)[0].clone())
        })
    }

    fn metric(&self, series: &str) -> Option<f64> {
        value(&self.get("/metrics").body, series)
    }

    /// Sends a signal and waits for its end; returns the exit code.
    fn end(mut self, signal: &str) -> Option<i32> {
        crate::support::signal(&self.child, signal);
        self.child.wait().unwrap().code()
    }
}

/// The value of a series in the text format.
pub(crate) fn value(metrics: &str, series: &str) -> Option<f64> {
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    line.parse().ok()
}

/// A stage that is under way until it is stopped, and computes nothing.
const WAITS: &str = "    retries: { times: 1000, delay: 1h, max_delay: 1h }
    sql: SELECT CAST(x AS INT) AS x FROM (VALUES ('no number')) AS t(x)
";
const QUICK: &str = "    sql: SELECT 1 AS x\n";

fn one_stage(name: &str, top: &str, stage: &str) -> String {
    format!("name: {name}\n{top}stages:\n  - name: only\n{stage}")
}

#[test]
fn anybody_may_read_and_only_the_token_changes_something() {
    let work = Work::new(&one_stage("read", "description: All of it\n", QUICK));
    let daemon = Daemon::start(&work, &[]);
    let health = daemon.json("/healthz");
    assert_eq!(
        (&health["status"], &health["problems"]),
        (&"ok".into(), &Value::Array(vec![]))
    );
    let pipelines = daemon.json("/api/pipelines");
    assert_eq!(pipelines[0]["pipeline"], "read");
    assert_eq!(pipelines[0]["description"], "All of it");
    assert_eq!(pipelines[0]["stages"][0], "only");
    assert_eq!(pipelines[0]["next_ms"], Value::Null);

    let start = "/api/pipelines/read/runs";
    for headers in [
        &[][..],
        &[("Authorization", "Bearer another")],
        &[("Authorization", TOKEN)],
        &[("Authorization", "Basic YTpi")],
        &[("Cookie", "token=a-token-for-tests")],
    ] {
        for path in [start, "/api/runs/x/cancel", "/api/pipelines/none/runs"] {
            let answer = request(&daemon.address, "POST", path, headers).unwrap();
            assert_eq!(answer.status, 401, "{path} {headers:?}: {answer:?}");
            assert!(answer.json()["error"].as_str().unwrap().contains("Bearer"));
        }
    }
    assert_eq!(daemon.runs("read").len(), 0);
    assert_eq!(daemon.get(start).status, 405);
    assert_eq!(daemon.post("/api/pipelines/none/runs").status, 404);
    let id = daemon.ask("read");
    let run = daemon.wait_for("read", "succeeded", 1);
    assert_eq!(run["trigger"], "api");
    assert_eq!(run["run"], id[..]);

    let told = daemon.json(&format!("/api/runs/{}", &id[..18]));
    assert_eq!(told["run"]["run"], id);
    assert_eq!(told["stages"][0]["status"], "succeeded");
    let items = daemon.json(&format!("/api/runs/{id}/items"));
    assert_eq!(
        (&items[0]["stage"], &items[0]["status"]),
        (&"only".into(), &"succeeded".into())
    );
    let logs = daemon.json(&format!("/api/runs/{id}/logs"));
    assert!(logs[0]["message"].as_str().unwrap().contains("begins"));
    assert_eq!(daemon.post(&format!("/api/runs/{id}/cancel")).status, 409);
    for path in ["", "/items", "/logs"] {
        let answer = daemon.get(&format!("/api/runs/none{path}"));
        assert_eq!(answer.status, 404);
        assert!(answer.json()["error"].is_string());
    }
    assert_eq!(daemon.get("/runs/none").status, 404);
    assert_eq!(daemon.get("/none").status, 404);
    assert_eq!(daemon.get("/api/runs?limit=many").status, 400);
    let metrics = daemon.get("/metrics");
    assert!(
        metrics.headers.contains("text/plain; version=0.0.4"),
        "{metrics:?}"
    );
    let succeeded = "sparse_pipeline_runs_total{pipeline=\"read\",status=\"succeeded\"}";
    assert_eq!(value(&metrics.body, succeeded), Some(1.0));
}

#[test]
fn a_name_that_is_not_ours_is_refused_and_the_address_is_loopback_by_default() {
    let work = Work::new(&one_stage("names", "", QUICK));
    let daemon = Daemon::start(&work, &[]);
    assert!(daemon.address.starts_with("127.0.0.1:"));
    let port = daemon.address.rsplit(':').next().unwrap();
    let token = format!("Bearer {TOKEN}");
    let with = |host: &str, path: &str, method: &str| {
        let headers = [("Host", host), ("Authorization", token.as_str())];
        request(&daemon.address, method, path, &headers).unwrap()
    };
    // A page of another site that points its own name at this machine (DNS rebinding) sends its own name.
    for host in [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:8642",
        "10.0.0.1",
        "[::2]",
        "",
    ] {
        for path in ["/", "/healthz", "/metrics", "/api/runs", "/api/pipelines"] {
            assert_eq!(with(host, path, "GET").status, 403, "{host:?} {path}");
        }
        let start = "/api/pipelines/names/runs";
        assert_eq!(with(host, start, "POST").status, 403, "{host:?}");
    }
    for host in [
        "localhost",
        &format!("localhost:{port}"),
        "127.0.0.1",
        &format!("[::1]:{port}"),
    ] {
        assert_eq!(with(host, "/healthz", "GET").status, 200, "{host}");
    }
    // Nothing on the page comes from elsewhere, and nobody frames it.
    let page = daemon.get("/");
    for header in [
        "default-src 'none'",
        "frame-ancestors 'none'",
        "nosniff",
        "no-store",
    ] {
        assert!(page.headers.contains(header), "{header}: {page:?}");
    }
    assert_eq!(daemon.runs("names").len(), 0);
    let help = work.sparse("serve", &["--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("[default: 127.0.0.1:8642]"), "{help}");

    // A second daemon of the same history, and one on the same port.
    let second = work
        .sparse("serve", &["--listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(
        stderr(&second).contains("another daemon"),
        "{}",
        stderr(&second)
    );
    let other = Work::new(&one_stage("other", "", QUICK));
    let taken = other
        .sparse("serve", &["--listen", &daemon.address])
        .output()
        .unwrap();
    assert_eq!(taken.status.code(), Some(1));
    assert!(
        stderr(&taken).contains("cannot listen on") && stderr(&taken).contains("--listen"),
        "{}",
        stderr(&taken)
    );

    // Told to listen for others it answers them; without a token, nothing can be changed.
    let mut command = other.sparse("serve", &["--listen", "0.0.0.0:0"]);
    let open = Daemon::spawn(command.env_remove("SPARSE_SERVE_TOKEN"));
    let port = open.address.rsplit(':').next().unwrap();
    let local = format!("127.0.0.1:{port}");
    let ask = |method, path| request(&local, method, path, &[("Host", "sparse.example")]).unwrap();
    assert_eq!(ask("GET", "/healthz").status, 200);
    let answer = ask("POST", "/api/pipelines/other/runs");
    assert_eq!(answer.status, 403);
    assert!(answer.body.contains("--token-file"), "{answer:?}");
}

#[test]
fn what_changes_is_read_again() {
    let work = Work::new(&one_stage("unused", "", QUICK));
    std::fs::remove_file(work.at("pipeline.yaml")).unwrap();
    work.write("one.yaml", &one_stage("one", "", QUICK));
    work.write(
        "two/pipeline.yaml",
        "name: two\nstages:\n  - { name: rows, file: rows.sql }\n",
    );
    work.write("two/rows.sql", "SELECT 1 AS x");
    let daemon = Daemon::start(&work, &[]);
    let names = || -> Vec<String> {
        let all = daemon.json("/api/pipelines");
        let all = all.as_array().unwrap().iter();
        all.map(|p| p["pipeline"].as_str().unwrap().to_owned())
            .collect()
    };
    let problems = || -> Vec<String> {
        let health = daemon.json("/healthz");
        let all = health["problems"].as_array().unwrap().iter();
        all.map(|p| p.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(), ["one", "two"]);
    daemon.ask("two");
    daemon.wait_for("two", "succeeded", 1);

    // The file of a statement.
    work.write("two/rows.sql", "SELECT 1 AS x UNION ALL SELECT 2");
    wait("reload of the SQL", || {
        let seen = daemon.runs("two").len();
        daemon.ask("two");
        daemon.wait_for("two", "succeeded", seen + 1);
        let id = daemon.runs("two")[0]["run"].clone();
        let told = daemon.json(&format!("/api/runs/{}", id.as_str().unwrap()));
        (told["stages"][0]["rows"] == 2).then_some(())
    });

    // A pipeline that became wrong stays as it was, and says so.
    work.write(
        "one.yaml",
        "name: one\nstages:\n  - { name: a, sql: SELEC }\n",
    );
    let told = wait("a problem", || problems().pop());
    assert!(
        told.contains("one.yaml") && told.contains("SELEC"),
        "{told}"
    );
    assert!(daemon.get("/").body.contains("one.yaml"));
    daemon.ask("one");
    daemon.wait_for("one", "succeeded", 1);

    // One that is new and wrong, and one that takes the name of another.
    work.write("one.yaml", &one_stage("one", "", QUICK));
    work.write("three.yaml", "stages: [\n");
    work.write("twin.yaml", &one_stage("two", "", QUICK));
    wait("both problems", || (problems().len() == 2).then_some(()));
    let told = problems().join("\n");
    assert!(
        told.contains("three.yaml") && told.contains("named \"two\""),
        "{told}"
    );
    assert!(daemon.get("/").body.contains("three.yaml"));
    std::fs::remove_file(work.at("twin.yaml")).unwrap();

    // A schedule that is added works, and what it would have had before counts as nothing missed.
    work.write(
        "three.yaml",
        &one_stage("three", "schedule: { cron: \"0 0 1 1 *\" }\n", QUICK),
    );
    wait("the new pipeline", || (names().len() == 3).then_some(()));
    assert!(problems().is_empty(), "{:?}", problems());
    work.write(
        "one.yaml",
        &one_stage("one", "schedule: { cron: \"* * * * * *\" }\n", QUICK),
    );
    wait("a scheduled run", || {
        let runs = daemon.runs("one");
        let run = runs.iter().find(|run| run["trigger"] == "schedule")?;
        run["scheduled_ms"].is_i64().then_some(())
    });
    assert_eq!(
        daemon.metric("sparse_pipeline_missed_runs_total{pipeline=\"three\"}"),
        Some(0.0)
    );

    // One that is gone.
    std::fs::remove_file(work.at("one.yaml")).unwrap();
    std::fs::remove_file(work.at("three.yaml")).unwrap();
    wait("the end of one", || (names() == ["two"]).then_some(()));
    assert_eq!(daemon.post("/api/pipelines/one/runs").status, 404);
    // Its history stays.
    assert!(!daemon.runs("one").is_empty());
}

#[test]
fn runs_that_overlap_are_dropped_queued_or_replace_the_one_before() {
    let work = Work::new(&one_stage("unused", "", QUICK));
    std::fs::remove_file(work.at("pipeline.yaml")).unwrap();
    for policy in ["forbid", "queue", "replace"] {
        let top = format!("schedule: {{ cron: \"* * * * * *\", overlap: {policy} }}\n");
        work.write(&format!("{policy}.yaml"), &one_stage(policy, &top, WAITS));
    }
    let daemon = Daemon::start(&work, &[]);
    let missed = |name: &str| {
        daemon
            .metric(&format!(
                "sparse_pipeline_missed_runs_total{{pipeline=\"{name}\"}}"
            ))
            .unwrap_or(0.0)
    };
    wait("runs that are dropped", || {
        (missed("forbid") >= 2.0).then_some(())
    });
    let newest = daemon.wait_for("replace", "cancelled", 2);
    assert!(newest["scheduled_ms"].is_i64(), "{newest}");
    wait("runs that wait", || {
        let all = daemon.json("/api/pipelines");
        let queue = all.as_array().unwrap();
        let queue = queue.iter().find(|p| p["pipeline"] == "queue").unwrap();
        (queue["queued"].as_u64().unwrap() >= 2).then_some(())
    });
    assert_eq!(
        (daemon.runs("forbid").len(), daemon.runs("queue").len()),
        (1, 1)
    );
    assert_eq!(missed("queue"), 0.0);

    // Cancelling the one under way lets the next one begin.
    let first = daemon.runs("queue")[0]["run"].as_str().unwrap().to_owned();
    let answer = daemon.post(&format!("/api/runs/{first}/cancel"));
    assert_eq!(answer.status, 202, "{answer:?}");
    daemon.wait_for("queue", "cancelled", 1);
    daemon.wait_for("queue", "running", 1);
    assert!(daemon.runs("queue").len() >= 2);
    let lag = daemon.metric("sparse_pipeline_schedule_lag_seconds{pipeline=\"queue\"}");
    assert!(lag.unwrap() > 0.0);
}

#[test]
fn a_run_that_waits_is_known_and_can_be_cancelled() {
    let work = Work::new(&one_stage("slow", "", WAITS));
    let daemon = Daemon::start(&work, &[]);
    let status = |id: &str| daemon.json(&format!("/api/runs/{id}"))["run"]["status"].clone();
    let (first, second, third) = (daemon.ask("slow"), daemon.ask("slow"), daemon.ask("slow"));
    daemon.wait_for("slow", "running", 1);
    assert_eq!(status(&first), "running");
    for waits in [&second, &third] {
        let told = daemon.json(&format!("/api/runs/{waits}"));
        assert_eq!(told["run"]["status"], "queued");
        assert_eq!(
            (&told["run"]["pipeline"], &told["run"]["trigger"]),
            (&"slow".into(), &"api".into())
        );
    }
    assert_eq!(
        daemon.post(&format!("/api/runs/{second}/cancel")).status,
        202
    );
    assert_eq!(status(&second), "cancelled");
    assert_eq!(
        daemon.post(&format!("/api/runs/{second}/cancel")).status,
        409
    );
    assert_eq!(daemon.json("/api/pipelines")[0]["queued"], 1);
    // The next one has the id that was promised.
    assert_eq!(
        daemon.post(&format!("/api/runs/{first}/cancel")).status,
        202
    );
    daemon.wait_for("slow", "cancelled", 2);
    daemon.wait_for("slow", "running", 1);
    assert_eq!(status(&third), "running");
    assert_eq!(status(&first), "cancelled");
}

#[test]
fn times_that_passed_meanwhile_are_skipped_caught_up_with_once_or_all() {
    let work = Work::new(&one_stage("unused", "", QUICK));
    std::fs::remove_file(work.at("pipeline.yaml")).unwrap();
    // A time of day some twelve hours from now, and so from what was the latest.
    let hour = (crate::pipelines::now_hours() + 12) % 24;
    for policy in ["skip", "once", "all"] {
        let top = format!(
            "schedule: {{ cron: \"30 {hour} * * *\", timezone: UTC, misfire: {policy}, catch_up: 2d }}\n"
        );
        work.write(&format!("{policy}.yaml"), &one_stage(policy, &top, QUICK));
    }
    let daemon = Daemon::start(&work, &[]);
    wait("the schedules", || {
        (daemon.json("/api/pipelines").as_array()?.len() == 3).then_some(())
    });
    assert!(daemon.json("/api/pipelines")[0]["next_ms"].is_i64());
    assert_eq!(daemon.end("-TERM"), Some(0));

    // The daemon was away for four days.
    let state = rusqlite::Connection::open(work.at(".sparse/state.db")).unwrap();
    let changed = state.execute("UPDATE schedules SET seen_ms = seen_ms - 4 * 86400000", []);
    assert_eq!(changed.unwrap(), 3);
    drop(state);
    let daemon = Daemon::start(&work, &[]);
    daemon.wait_for("once", "succeeded", 1);
    let newest = daemon.wait_for("all", "succeeded", 2);
    assert_eq!(newest["trigger"], "catch_up");
    let missed = |name: &str| {
        daemon.metric(&format!(
            "sparse_pipeline_missed_runs_total{{pipeline=\"{name}\"}}"
        ))
    };
    // Four times passed, two of them no longer ago than two days.
    let all = daemon.runs("all");
    assert_eq!((all.len(), missed("all")), (2, Some(2.0)), "{all:?}");
    let times: Vec<i64> = all
        .iter()
        .map(|run| run["scheduled_ms"].as_i64().unwrap())
        .collect();
    assert!(
        times.windows(2).all(|pair| pair[0] - pair[1] == 86_400_000),
        "{times:?}"
    );
    assert_eq!((daemon.runs("once").len(), missed("once")), (1, Some(3.0)));
    assert_eq!(daemon.runs("once")[0]["scheduled_ms"], times[0]);
    assert_eq!((daemon.runs("skip").len(), missed("skip")), (0, Some(4.0)));
}

#[test]
fn stopped_or_killed_it_takes_up_what_was_asked_for() {
    let work = Work::new(&one_stage("taken", "", WAITS));
    let ends = [
        ("-TERM", "0", Some(0), "cancelled"),
        ("-INT", "1", Some(0), "cancelled"),
        ("-KILL", "30", None, "interrupted"),
    ];
    for (round, (signal, grace, code, left)) in ends.into_iter().enumerate() {
        work.write("pipeline.yaml", &one_stage("taken", "", WAITS));
        let daemon = Daemon::start(&work, &["--grace", grace]);
        for _ in 0..3 {
            daemon.ask("taken");
        }
        daemon.wait_for("taken", "running", 1);
        assert_eq!(daemon.end(signal), code, "{signal}");
        // Its statements would never succeed: they are mended meanwhile.
        work.write("pipeline.yaml", &one_stage("taken", "", QUICK));
        let daemon = Daemon::start(&work, &[]);
        let done = wait("the three runs", || {
            let runs = daemon.runs("taken");
            (runs.len() == 4 * (round + 1)
                && runs[..3].iter().all(|run| run["status"] == "succeeded"))
            .then_some(runs)
        });
        assert_eq!(done[3]["status"], left, "{signal}");
        assert!(done[..4].iter().all(|run| run["trigger"] == "api"));
        assert_eq!(daemon.end("-TERM"), Some(0));
    }
    // What runs is waited for, and nothing new begins meanwhile.
    work.write(
        "pipeline.yaml",
        &one_stage(
            "taken",
            "",
            "    retries: { times: 1, delay: 3s, max_delay: 3s }\n    sql: SELECT CAST(x AS INT) AS y FROM (VALUES ('no')) AS t(x)\n",
        ),
    );
    let daemon = Daemon::start(&work, &["--grace", "60"]);
    daemon.ask("taken");
    daemon.wait_for("taken", "running", 1);
    assert_eq!(daemon.end("-TERM"), Some(0));
    let latest = "SELECT status FROM sparse_runs ORDER BY started_at DESC LIMIT 1";
    assert!(work.sql(latest).contains("failed"));
    // A second signal ends it at once.
    work.write("pipeline.yaml", &one_stage("taken", "", WAITS));
    let mut daemon = Daemon::start(&work, &["--grace", "600"]);
    daemon.ask("taken");
    daemon.wait_for("taken", "running", 1);
    crate::support::signal(&daemon.child, "-TERM");
    wait("the end to be announced", || {
        (daemon.get("/healthz").status == 503).then_some(())
    });
    assert_eq!(daemon.post("/api/pipelines/taken/runs").status, 503);
    crate::support::signal(&daemon.child, "-TERM");
    assert_eq!(daemon.child.wait().unwrap().code(), Some(130));
}

#[test]
fn killed_at_random_points_every_scheduled_time_is_done_once() {
    let work = Work::new(&one_stage("often", "", QUICK));
    let top = "schedule: { cron: \"* * * * * *\", overlap: queue }\n";
    work.write("pipeline.yaml", &one_stage("often", top, QUICK));
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let mut random = Random::new(nanos.subsec_nanos().into());
    for _ in 0..8 {
        let daemon = Daemon::start(&work, &[]);
        let pause = 300 + random.below(1200) as u64;
        std::thread::sleep(std::time::Duration::from_millis(pause));
        daemon.end("-KILL");
    }
    let daemon = Daemon::start(&work, &[]);
    let all = daemon.wait_for("often", "succeeded", 8);
    assert!(all["scheduled_ms"].is_i64());
    assert_eq!(daemon.end("-TERM"), Some(0));
    // Times in a row, each with one run that ended; what was killed before its end was taken up again.
    let mut done: Vec<i64> = work
        .sql("SELECT arrow_cast(scheduled_at, 'Int64') AS at FROM sparse_runs WHERE status = 'succeeded'")
        .lines()
        .skip(1)
        .map(|line| line.parse().unwrap())
        .collect();
    done.sort_unstable();
    assert!(
        done.windows(2).all(|pair| pair[1] - pair[0] == 1000),
        "{done:?}"
    );
}

#[test]
fn a_run_by_hand_and_the_daemon_do_not_disturb_each_other() {
    let work = Work::new(&one_stage("shared", "", WAITS));
    let daemon = Daemon::start(&work, &[]);
    let mut by_hand = work
        .sparse("run", &[])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    daemon.wait_for("shared", "running", 1);
    work.write("pipeline.yaml", &one_stage("shared", "", QUICK));
    daemon.ask("shared");
    // It waits for the other to end, and then runs.
    let queued = || daemon.json("/api/pipelines")[0]["queued"].as_u64();
    std::thread::sleep(std::time::Duration::from_millis(600));
    assert_eq!((queued(), daemon.runs("shared").len()), (Some(1), 1));
    crate::support::signal(&by_hand, "-INT");
    assert_eq!(by_hand.wait().unwrap().code(), Some(130));
    let run = daemon.wait_for("shared", "succeeded", 1);
    assert_eq!(run["trigger"], "api");
}

/// Two models compressed and one that waits: a page with everything on it.
fn lively() -> Work {
    let yaml = r#"
name: lively
description: "Compresses <b>models</b> & more"
resources: { concurrency: 1 }
stages:
  - name: models
    sql: SELECT * FROM (VALUES (1, '{sft}'), (2, '{merged}'), (3, '')) AS t(name, path)
  - name: compress
    for_each: { query: "SELECT name, path FROM models WHERE path <> '' ORDER BY name", key: name }
    sql: SELECT $name AS name, sum(compressed_bytes) AS bytes FROM sparse_compress('{base}', $path, '{dir}/deltas/' || $name)
  - name: waits
    needs: [compress]
    for_each: { query: "SELECT name, CASE WHEN path = '' THEN 'no number' ELSE '1' END AS x FROM models ORDER BY name", key: name }
    retries: { times: 1000, delay: 1h, max_delay: 1h }
    sql: SELECT CAST($x AS INT) AS x
  - name: report
    sql: SELECT count(*) AS n FROM waits
"#;
    Work::new(
        &yaml
            .replace("{sft}", &example("sft"))
            .replace("{merged}", &example("lora-merged"))
            .replace("{base}", &example("base")),
    )
}

/// Waits until the last stage has done two of its three items.
fn until_lively(daemon: &Daemon) -> String {
    daemon.ask("lively");
    let run = daemon.wait_for("lively", "running", 1);
    let id = run["run"].as_str().unwrap().to_owned();
    wait("progress", || {
        let told = daemon.json(&format!("/api/runs/{id}"));
        let stages = told["stages"].as_array().unwrap().clone();
        let waits = stages.iter().find(|stage| stage["stage"] == "waits")?;
        (waits["items_done"] == 2).then_some(())
    });
    id
}

#[test]
fn the_page_shows_runs_stages_progress_logs_and_savings_without_a_script() {
    let work = lively();
    let daemon = Daemon::start(&work, &[]);
    assert!(daemon.get("/").body.contains("No run yet."));
    let id = until_lively(&daemon);
    let (index, run) = (daemon.get("/"), daemon.get(&format!("/runs/{id}")));
    for page in [&index, &run] {
        assert_eq!(page.status, 200);
        assert!(page.headers.contains("text/html"), "{}", page.headers);
        assert!(
            !page.body.contains("<script") && !page.body.contains("http://"),
            "{}",
            page.body
        );
        // Live: it asks for itself again.
        assert!(page.body.contains("<meta http-equiv=\"refresh\""));
        for needle in [
            "<svg",
            "models",
            "compress",
            "waits",
            "report",
            "running",
            "2 of 3 items",
        ] {
            assert!(page.body.contains(needle), "{needle}: {}", page.body);
        }
    }
    assert!(index.body.contains("&lt;b&gt;models&lt;") && !index.body.contains("<b>models"));
    assert!(index.body.contains("Savings over time") && index.body.contains(" of deltas</title>"));
    assert!(index.body.contains(&format!("href=\"/runs/{id}\"")));
    assert!(run.body.contains("begins:") && run.body.contains("2 of 2"));

    assert_eq!(daemon.post(&format!("/api/runs/{id}/cancel")).status, 202);
    daemon.wait_for("lively", "cancelled", 1);
    let ended = daemon.get(&format!("/runs/{id}")).body;
    assert!(
        ended.contains("cancelled") && !ended.contains("http-equiv=\"refresh\""),
        "{ended}"
    );
}

/// The sizes of a PNG, and how many of its pixels have each of some colours.
const PIXELS: &str = r#"
import json, struct, sys, zlib
data = open(sys.argv[1], "rb").read()
assert data[:8] == b"\x89PNG\r\n\x1a\n"
at, packed = 8, b""
while at < len(data):
    size, kind = struct.unpack(">I4s", data[at:at + 8])
    body = data[at + 8:at + 8 + size]
    if kind == b"IHDR":
        width, height, depth, colour = struct.unpack(">IIBB", body[:10])
    elif kind == b"IDAT":
        packed += body
    at += 12 + size
assert depth == 8 and colour in (2, 6)
step = 3 if colour == 2 else 4
raw, before, counts = zlib.decompress(packed), bytes(width * step), {}
wanted = {bytes.fromhex(colour): colour for colour in sys.argv[2:]}
counts = {colour: 0 for colour in sys.argv[2:]}
for y in range(height):
    at = y * (width * step + 1)
    filter, line = raw[at], bytearray(raw[at + 1:at + 1 + width * step])
    for x in range(len(line)):
        a = line[x - step] if x >= step else 0
        b, c = before[x], before[x - step] if x >= step else 0
        if filter == 1: line[x] = line[x] + a & 255
        elif filter == 2: line[x] = line[x] + b & 255
        elif filter == 3: line[x] = line[x] + (a + b) // 2 & 255
        elif filter == 4:
            p = a + b - c
            near = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            line[x] = line[x] + near & 255
    before = bytes(line)
    for x in range(0, len(line), step):
        colour = wanted.get(before[x:x + 3])
        if colour: counts[colour] += 1
print(json.dumps({"width": width, "height": height, "counts": counts}))
"#;

#[test]
fn a_browser_without_javascript_draws_the_page() {
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    let Some(browser) = crate::support::program(&names) else {
        return;
    };
    let Some(python) = crate::support::python() else {
        return;
    };
    let work = lively();
    // Scripts are switched off as a person would do it: in the settings.
    work.write(
        "profile/Default/Preferences",
        r#"{"profile":{"default_content_setting_values":{"javascript":2}}}"#,
    );
    let daemon = Daemon::start(&work, &[]);
    let id = until_lively(&daemon);
    for (page, blue) in [("/".to_owned(), 200), (format!("/runs/{id}"), 100)] {
        let picture = work.at("page.png");
        let _ = std::fs::remove_file(&picture);
        let output = Command::new(browser)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
            ])
            .args([
                "--no-first-run",
                "--disable-dev-shm-usage",
                "--force-device-scale-factor=1",
            ])
            .arg("--window-size=1100,900")
            .arg(format!("--user-data-dir={}", text(&work.at("profile"))))
            .arg(format!("--screenshot={}", text(&picture)))
            .arg(format!("http://{}{page}", daemon.address))
            .output()
            .unwrap();
        assert!(picture.exists(), "{page}: {}", stderr(&output));
        if let Some(keep) = std::env::var_os("SPARSE_TEST_SCREENSHOTS") {
            let name = if page == "/" { "index.png" } else { "run.png" };
            std::fs::copy(&picture, Path::new(&keep).join(name)).unwrap();
        }
        // Green: stages that are done; blue: the one under way, and deltas; white: paper.
        let colours = ["2a8a3e", "2468c4", "ffffff"];
        let mut arguments = vec![text(&picture)];
        arguments.extend(colours.map(str::to_owned));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let seen: Value = serde_json::from_str(&run_python(&python, PIXELS, &arguments)).unwrap();
        assert_eq!(
            (&seen["width"], &seen["height"]),
            (&1100.into(), &900.into())
        );
        let count = |at: usize| seen["counts"][colours[at]].as_u64().unwrap();
        // Two boxes of 190 by 56 pixels with borders of 2 are green, one is blue.
        assert!(
            count(0) > 1000 && count(1) > blue && count(2) > 300_000,
            "{page}: {seen}"
        );
    }
}

#[test]
fn a_token_of_a_file_and_arguments_that_make_no_sense() {
    let work = Work::new(&one_stage("token", "", QUICK));
    work.write("token", "from-a-file\n");
    let file = text(&work.at("token"));
    let daemon = Daemon::start(&work, &["--token-file", &file]);
    let post = |token: &str| {
        let token = format!("Bearer {token}");
        let headers = [("Authorization", token.as_str())];
        request(
            &daemon.address,
            "POST",
            "/api/pipelines/token/runs",
            &headers,
        )
        .unwrap()
    };
    assert_eq!((post(TOKEN).status, post("from-a-file").status), (401, 202));
    drop(daemon);
    for (token, needle) in [("", "token is empty"), (" \n", "token is empty")] {
        let output = work
            .sparse("serve", &["--listen", "127.0.0.1:0"])
            .env("SPARSE_SERVE_TOKEN", token)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(needle), "{}", stderr(&output));
    }
    let nowhere = sparse(work.path())
        .args(["pipeline", "serve", "/no/such/place", "--state-dir"])
        .arg(work.at("other"))
        .output()
        .unwrap();
    assert_eq!(nowhere.status.code(), Some(2), "{}", stderr(&nowhere));
}
