//! Metrics: of one-shot commands, of the daemon, and of what `monitoring/` makes of them, with the real Prometheus, Pushgateway and
//! promtool where they are installed.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::datasets::words;
use crate::http::{free_address, get, wait};
use crate::pipelines::Work;
use crate::serve::{Daemon, value};
use crate::support::{
    damage, example, program, root, run, run_fails, run_json, run_ok, signal, sparse, stderr, text,
};

/// A server that is killed when dropped.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server and waits until it says that it is ready.
fn start(program: &str, arguments: &[String], address: &str) -> Service {
    let child = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let service = Service(child);
    wait(&format!("answer of {program}"), || {
        let answer = crate::http::request(address, "GET", "/-/ready", &[]).ok()?;
        (answer.status == 200).then_some(())
    });
    service
}

fn gateway(program: &str) -> (Service, String) {
    let address = free_address();
    let listen = format!("--web.listen-address={address}");
    (start(program, &[listen], &address), address)
}

/// Prometheus, with the configuration and the rules of `monitoring/`; only addresses and intervals are other ones.
fn prometheus(work: &Path, daemon: &str, gateway: &str) -> (Service, String) {
    let monitoring = root().join("monitoring");
    let mut config = std::fs::read_to_string(monitoring.join("prometheus.yml")).unwrap();
    for (shipped, here) in [
        ("127.0.0.1:8642", daemon),
        ("127.0.0.1:9091", gateway),
        ("scrape_interval: 15s", "scrape_interval: 1s"),
        ("evaluation_interval: 15s", "evaluation_interval: 1s"),
    ] {
        assert!(config.contains(shipped), "{shipped}");
        config = config.replace(shipped, here);
    }
    std::fs::write(work.join("prometheus.yml"), config).unwrap();
    std::fs::copy(monitoring.join("rules.yml"), work.join("rules.yml")).unwrap();
    let address = free_address();
    let arguments = [
        format!("--config.file={}", text(&work.join("prometheus.yml"))),
        format!("--storage.tsdb.path={}", text(&work.join("tsdb"))),
        format!("--web.listen-address={address}"),
    ];
    (start("prometheus", &arguments, &address), address)
}

/// What a query returns: labels and value of each series.
fn query(prometheus: &str, promql: &str, at: Option<u64>) -> Vec<(Value, f64)> {
    let mut path = "/api/v1/query?query=".to_owned();
    for byte in promql.bytes() {
        path += &format!("%{byte:02X}");
    }
    if let Some(at) = at {
        path += &format!("&time={at}");
    }
    let answer = get(prometheus, &path).json();
    assert_eq!(answer["status"], "success", "{promql}: {answer}");
    let series = answer["data"]["result"].as_array().unwrap().iter();
    series
        .map(|one| {
            let value = one["value"][1].as_str().unwrap().parse().unwrap();
            (one["metric"].clone(), value)
        })
        .collect()
}

/// The queries of the dashboard, by panel.
fn dashboard() -> Vec<(String, String)> {
    let file = root().join("monitoring/dashboard.json");
    let document: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let mut all = Vec::new();
    for panel in document["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            all.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    assert!(all.len() > 20);
    all
}

/// The rules that Prometheus has loaded: name and query.
fn rules(prometheus: &str) -> Vec<(String, String)> {
    let answer = get(prometheus, "/api/v1/rules").json();
    let groups = answer["data"]["groups"].as_array().unwrap().iter();
    groups
        .flat_map(|group| group["rules"].as_array().unwrap())
        .map(|rule| {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (text(&rule["name"]), text(&rule["query"]))
        })
        .collect()
}

/// The lines about our metrics: a gateway has some of its own.
fn ours(metrics: &str) -> String {
    let is_ours = |line: &&str| {
        let name = line
            .strip_prefix("# HELP ")
            .or(line.strip_prefix("# TYPE "));
        name.unwrap_or(line).starts_with("sparse_")
    };
    let lines: Vec<&str> = metrics.lines().filter(is_ours).collect();
    assert!(!lines.is_empty(), "{metrics}");
    lines.join("\n") + "\n"
}

/// promtool finds nothing wrong with these metrics, style included.
fn check_metrics(metrics: &str) {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(metrics.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        stderr(&output)
    );
    assert!(
        output.status.success() && said.is_empty(),
        "{said}\n{metrics}"
    );
}

#[test]
fn promtool_finds_nothing_wrong_with_the_configuration_and_the_rules() {
    if program(&["promtool"]).is_none() {
        return;
    }
    for arguments in [
        ["check", "config", "monitoring/prometheus.yml"],
        ["check", "rules", "monitoring/rules.yml"],
        ["test", "rules", "monitoring/rules.test.yml"],
    ] {
        let output = Command::new("promtool")
            .args(arguments)
            .current_dir(root())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

/// A Pushgateway that takes one request and remembers it.
fn one_request(listener: TcpListener, answer: &'static str) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let count = stream.read(&mut piece).unwrap();
            all.extend_from_slice(&piece[..count]);
            let text = String::from_utf8_lossy(&all).into_owned();
            let length = text.to_lowercase();
            let length = length.split("content-length: ").nth(1);
            let length = length.and_then(|rest| rest.lines().next()?.trim().parse::<usize>().ok());
            if let (Some((_, body)), Some(length)) = (text.split_once("\r\n\r\n"), length)
                && body.len() >= length
            {
                stream.write_all(answer.as_bytes()).unwrap();
                return text;
            }
            assert!(count > 0, "{text}");
        }
    })
}

#[test]
fn a_command_tells_how_it_ended_whichever_way() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("sparse.prom");
    let (path, delta) = (text(&file), text(&work.path().join("delta")));
    let read = || std::fs::read_to_string(&file).unwrap();
    let compress = [
        "compress",
        &example("base"),
        &example("sft"),
        "-o",
        &delta,
        "--json",
        "--metrics-file",
        &path,
    ];
    let report: Value = serde_json::from_str(&run_ok(work.path(), &compress)).unwrap();
    let metrics = read();
    let labels = "{codec=\"lossless\",command=\"compress\",kind=\"model\"}";
    let labels_in_order = "{command=\"compress\",kind=\"model\",codec=\"lossless\"}";
    let of = |name: &str| {
        value(&metrics, &format!("{name}{labels}"))
            .or_else(|| value(&metrics, &format!("{name}{labels_in_order}")))
    };
    assert_eq!(
        of("sparse_command_last_input_bytes"),
        report["original_bytes"].as_f64()
    );
    assert_eq!(
        of("sparse_command_last_delta_bytes"),
        report["artifact_bytes"].as_f64()
    );
    let code = |command: &str| {
        value(
            &read(),
            &format!("sparse_command_last_exit_code{{command=\"{command}\"}}"),
        )
    };
    assert_eq!(code("compress"), Some(0.0));
    assert!(metrics.contains("sparse_command_last_success_timestamp_seconds"));
    assert!(metrics.contains("sparse_build_info{version="));

    // A failure replaces what the file held.
    run_fails(
        work.path(),
        &["info", "/no/such/delta", "--metrics-file", &path],
        6,
        &["/no/such/delta"],
    );
    assert_eq!((code("info"), code("compress")), (Some(6.0), None));
    assert!(
        read().contains("sparse_command_last_failure_timestamp_seconds{command=\"info\"}")
            && !read().contains("_success_")
    );

    // A verification that fails.
    damage(Path::new(&delta));
    let output = run(work.path(), &["verify", &delta, "--metrics-file", &path]);
    assert!(!output.status.success());
    let failures = "sparse_command_last_verify_failures{command=\"verify\"}";
    assert!(value(&read(), failures).unwrap() >= 1.0, "{}", read());

    // A dataset's rows, as its report has them.
    let words_delta = text(&work.path().join("words"));
    let report = run_json(
        work.path(),
        &[
            "dataset-compress",
            &words("base"),
            &words("derivative"),
            "-o",
            &words_delta,
            "--metrics-file",
            &path,
        ],
    );
    for class in ["shared", "edited", "new", "removed"] {
        let splits = report["manifest"]["splits"].as_array().unwrap().iter();
        let rows: f64 = splits.map(|split| split[class].as_f64().unwrap()).sum();
        let series = format!(
            "sparse_command_last_dataset_rows{{command=\"dataset-compress\",class=\"{class}\"}}"
        );
        let found = value(&read(), &series).or_else(|| {
            let other = format!(
                "sparse_command_last_dataset_rows{{class=\"{class}\",command=\"dataset-compress\"}}"
            );
            value(&read(), &other)
        });
        assert_eq!(found, Some(rows), "{class}: {}", read());
    }

    // The cache, as its statistics have it.
    run_ok(
        work.path(),
        &[
            "cache",
            "stats",
            "--metrics-file",
            &path,
            "--max-size-gb",
            "2",
        ],
    );
    assert_eq!(value(&read(), "sparse_cache_limit_bytes"), Some(2e9));
    assert_eq!(
        value(&read(), "sparse_cache_requests_total{result=\"hit\"}"),
        Some(0.0)
    );

    // Ctrl-C, once the statement before is done.
    let marker = work.path().join("marker.csv");
    let mut child = sparse(work.path())
        .args(["sql", "--metrics-file", &path, "-c"])
        .arg(format!("COPY (SELECT 1 AS x) TO '{}' STORED AS CSV", text(&marker)))
        .args(["-c", "SELECT count(*) FROM range(1000000) a CROSS JOIN range(1000000) b WHERE a.value % 7 = b.value % 11"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait("the first statement", || marker.exists().then_some(()));
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(code("sql"), Some(130.0));
    assert_eq!(
        crate::support::names(work.path())
            .iter()
            .filter(|name| name.contains("sparse.prom"))
            .count(),
        1
    );
}

#[test]
fn metrics_that_cannot_be_handed_over_do_not_undo_what_was_done() {
    let work = tempfile::tempdir().unwrap();
    for (answer, warns) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false),
        (
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\n\r\nno!\n",
            true,
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/some/where/", listener.local_addr().unwrap());
        let asked = one_request(listener, answer);
        let file = text(&work.path().join("both.prom"));
        let output = run(
            work.path(),
            &["features", "--metrics-push", &url, "--metrics-file", &file],
        );
        assert!(output.status.success(), "{}", stderr(&output));
        let asked = asked.join().unwrap();
        // Grouped by the command, whatever was there before is replaced.
        assert!(
            asked.starts_with("PUT /some/where/metrics/job/sparse/command/features HTTP/1.1\r\n"),
            "{asked}"
        );
        let body = asked.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(
            value(body, "sparse_command_last_exit_code{command=\"features\"}"),
            Some(0.0)
        );
        assert_eq!(body, std::fs::read_to_string(&file).unwrap());
        assert_eq!(
            stderr(&output).contains("warning: --metrics-push: it answered 400"),
            warns
        );
    }
    let nobody = format!("http://{}", free_address());
    let below_a_file = text(&work.path().join("both.prom/x.prom"));
    for (arguments, needle) in [
        (["--metrics-push", nobody.as_str()], "the request failed"),
        (["--metrics-push", "localhost:9091"], "http://host:9091"),
        (["--metrics-file", below_a_file.as_str()], "both.prom"),
    ] {
        let mut all = vec!["features"];
        all.extend(arguments);
        let output = run(work.path(), &all);
        let said = stderr(&output);
        assert!(output.status.success(), "{arguments:?}: {said}");
        assert!(
            said.contains("warning: ") && said.contains(needle),
            "{said}"
        );
    }
}

/// A pipeline that makes something of every metric.
fn watched() -> (Work, Value) {
    let work = Work::new(
        &r#"
name: watched
stages:
  - name: models
    sql: SELECT * FROM (VALUES ('sft', '{models}/sft'), ('lora', '{models}/lora-merged')) AS t(name, path)
  - name: compress
    for_each: { query: "SELECT name, path FROM models", key: name }
    sql: SELECT $name AS name, sum(compressed_bytes) AS bytes FROM sparse_compress('{models}/base', $path, '{dir}/deltas/' || $name)
  - name: words
    sql: SELECT split, shared FROM sparse_dataset_compress('{base}', '{derivative}', '{dir}/words')
  - name: verified
    sql: SELECT * FROM sparse_verify('{dir}/damaged')
    checks:
      - { name: sound, severity: warn, sql: SELECT * FROM verified }
"#
        .replace("{models}", &text(&root().join("examples/models")))
        .replace("{base}", &words("base"))
        .replace("{derivative}", &words("derivative")),
    );
    let damaged = work.at("damaged");
    run_ok(
        work.path(),
        &[
            "compress",
            &example("base"),
            &example("sft"),
            "-o",
            &text(&damaged),
        ],
    );
    // The cache has a miss and a hit.
    for _ in 0..2 {
        let made = [
            "cache",
            "get-or-reconstruct",
            &example("base"),
            &text(&damaged),
        ];
        run_ok(work.path(), &made);
    }
    damage(&damaged);
    let (code, report) = work.run(&[]);
    assert_eq!(code, 0, "{report}");
    (work, report)
}

/// A pipeline that fails, with its metrics pushed.
fn push_failure(gateway: &str) {
    let work = Work::new(
        "name: failing\nstages:\n  - name: a\n    sql: SELECT CAST(x AS INT) AS x FROM (VALUES ('no')) AS t(x)\n",
    );
    let url = format!("http://{gateway}");
    assert_eq!(work.run(&["--metrics-push", &url]).0, 1);
}

/// What the report of a run says that its metrics must say, too.
fn expected(report: &Value) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    let mut add = |series: String, value: &Value| {
        *all.entry(series).or_insert(0.0) += value.as_f64().unwrap();
    };
    for stage in report["stages"].as_array().unwrap() {
        let name = stage["stage"].as_str().unwrap();
        add(
            format!(
                "sparse_stage_runs_total{{pipeline='watched',stage='{name}',status='succeeded'}}"
            ),
            &1.into(),
        );
        add(
            format!(
                "sparse_stage_attempts_total{{pipeline='watched',stage='{name}',status='succeeded'}}"
            ),
            &stage["attempts"],
        );
        add(
            format!("sparse_stage_duration_seconds_count{{pipeline='watched',stage='{name}'}}"),
            &1.into(),
        );
        for bytes in stage["bytes"].as_array().unwrap() {
            let (kind, codec) = (
                bytes["kind"].as_str().unwrap(),
                bytes["codec"].as_str().unwrap(),
            );
            add(
                format!("sparse_input_bytes_total{{pipeline='watched',kind='{kind}'}}"),
                &bytes["input_bytes"],
            );
            add(
                format!(
                    "sparse_delta_bytes_total{{pipeline='watched',kind='{kind}',codec='{codec}'}}"
                ),
                &bytes["delta_bytes"],
            );
            let saved =
                bytes["input_bytes"].as_u64().unwrap() - bytes["delta_bytes"].as_u64().unwrap();
            add(
                "sparse_saved_bytes_total{pipeline='watched'}".to_owned(),
                &saved.into(),
            );
        }
        for (class, rows) in stage["dataset_rows"].as_object().unwrap() {
            add(
                format!("sparse_dataset_rows_total{{pipeline='watched',class='{class}'}}"),
                rows,
            );
        }
        add(
            "sparse_verify_failures_total{pipeline='watched'}".to_owned(),
            &stage["verify_failures"],
        );
    }
    for check in report["checks"].as_array().unwrap() {
        let severity = check["severity"].as_str().unwrap();
        add(
            format!("sparse_check_failures_total{{pipeline='watched',severity='{severity}'}}"),
            &u64::from(check["failed_rows"] != 0).into(),
        );
    }
    add(
        "sparse_pipeline_runs_total{pipeline='watched',status='succeeded'}".to_owned(),
        &1.into(),
    );
    all
}

#[test]
fn what_the_daemon_exposes_is_what_the_run_reported() {
    let (work, report) = watched();
    let daemon = Daemon::start(&work, &[]);
    let metrics = daemon.get("/metrics").body;
    let all = expected(&report);
    for class in ["shared", "edited", "new", "removed"] {
        let series = format!("sparse_dataset_rows_total{{pipeline='watched',class='{class}'}}");
        assert!(all.contains_key(&series), "{report}");
    }
    assert!(
        all["sparse_verify_failures_total{pipeline='watched'}"] >= 1.0,
        "{report}"
    );
    assert_eq!(
        all["sparse_check_failures_total{pipeline='watched',severity='warn'}"],
        1.0
    );
    for (series, wanted) in all {
        let series = series.replace('\'', "\"");
        assert_eq!(
            value(&metrics, &series),
            Some(wanted),
            "{series}\n{metrics}"
        );
    }
    for (series, wanted) in [
        ("sparse_cache_requests_total{result=\"miss\"}", 1.0),
        ("sparse_cache_requests_total{result=\"hit\"}", 1.0),
        ("sparse_cache_models", 1.0),
        ("sparse_cache_limit_bytes", 100e9),
        ("sparse_cache_evictions_total{reason=\"room\"}", 0.0),
        ("sparse_prefetch_jobs{state=\"queued\"}", 0.0),
    ] {
        assert_eq!(value(&metrics, series), Some(wanted), "{series}\n{metrics}");
    }
    let stats = run_json(work.path(), &["cache", "stats"]);
    let size = stats["cache_size_bytes"].as_f64();
    assert_eq!(value(&metrics, "sparse_cache_size_bytes"), size);
    if program(&["promtool"]).is_some() {
        check_metrics(&metrics);
    }
}

/// A daemon with a history, and a gateway that a pipeline and a command pushed to.
struct Scene {
    work: Work,
    /// Of the daemon's pipeline.
    report: Value,
    /// Of the command.
    compressed: Value,
    daemon: Daemon,
    _gateway: Service,
    gateway: String,
}

/// `None` where what it takes is not installed.
fn scene() -> Option<Scene> {
    let _ = (program(&["prometheus"])?, program(&["promtool"])?);
    let (_gateway, gateway) = gateway(program(&["prometheus-pushgateway", "pushgateway"])?);
    let (work, report) = watched();
    let daemon = Daemon::start(&work, &[]);
    push_failure(&gateway);
    let (url, delta) = (format!("http://{gateway}"), text(&work.at("pushed")));
    let (base, model) = (example("base"), example("sft"));
    let arguments = [
        "compress",
        &base,
        &model,
        "-o",
        &delta,
        "--metrics-push",
        &url,
    ];
    let compressed = run_json(work.path(), &arguments);
    Some(Scene {
        work,
        report,
        compressed,
        daemon,
        _gateway,
        gateway,
    })
}

#[test]
fn prometheus_scrapes_what_was_reported_and_every_panel_has_data() {
    let Some(scene) = scene() else {
        return;
    };
    let (report, gateway) = (&scene.report, &scene.gateway);
    // What the gateway has is grouped by job and pipeline or command, and promtool likes it.
    let pushed = get(gateway, "/metrics").body;
    assert!(
        pushed.contains(
            "sparse_command_last_exit_code{command=\"compress\",instance=\"\",job=\"sparse\"} 0"
        ),
        "{pushed}"
    );
    assert!(
        pushed.contains("push_time_seconds{instance=\"\",job=\"sparse\",pipeline=\"failing\"}"),
        "{pushed}"
    );
    check_metrics(&ours(&pushed));

    let (_prometheus, prometheus) = prometheus(scene.work.path(), &scene.daemon.address, gateway);
    // Rates need two samples.
    wait("samples of both", || {
        let counts = "sum by (job) (count_over_time(up[5m])) >= 4 and sum by (job) (up) == 1";
        (query(&prometheus, counts, None).len() == 2).then_some(())
    });
    for (series, wanted) in expected(report) {
        let found = query(&prometheus, &series, None);
        assert_eq!(found.len(), 1, "{series}: {found:?}");
        assert_eq!(found[0].1, wanted, "{series}");
    }
    for (series, wanted) in [
        (
            "sparse_command_last_input_bytes{command='compress',job='sparse'}",
            "original_bytes",
        ),
        (
            "sparse_command_last_delta_bytes{command='compress',job='sparse'}",
            "artifact_bytes",
        ),
    ] {
        let found = query(&prometheus, series, None);
        assert_eq!(
            (found.len(), Some(found[0].1)),
            (1, scene.compressed[wanted].as_f64())
        );
    }
    let failed = "sparse_pipeline_runs_total{pipeline='failing',status='failed',job='sparse'}";
    assert_eq!(query(&prometheus, failed, None)[0].1, 1.0);
    let seconds = "sum(sparse_stage_duration_seconds_sum{pipeline='watched'})";
    let stages = report["stages"].as_array().unwrap().iter();
    let reported: f64 = stages.map(|stage| stage["seconds"].as_f64().unwrap()).sum();
    let scraped = query(&prometheus, seconds, None)[0].1;
    assert!(
        (scraped - reported).abs() < 0.5 + 0.2 * reported,
        "{scraped} {reported}"
    );

    for (panel, promql) in dashboard() {
        wait(&format!("data for {panel:?}: {promql}"), || {
            (!query(&prometheus, &promql, None).is_empty()).then_some(())
        });
    }
    // Recording rules have recorded, no rule is in error, and the failure of the one pipeline is an alert.
    for (name, _) in rules(&prometheus)
        .iter()
        .filter(|(name, _)| name.contains(':'))
    {
        wait(&format!("data of {name}"), || {
            (!query(&prometheus, name, None).is_empty()).then_some(())
        });
    }
    wait("the alert", || {
        let alert = "ALERTS{alertname='SparsePipelineFailed',alertstate='firing'}";
        let found = query(&prometheus, alert, None);
        (found.len() == 1 && found[0].0["pipeline"] == "failing").then_some(())
    });
    let answer = get(&prometheus, "/api/v1/rules").body;
    assert!(!answer.contains("\"health\":\"err\""), "{answer}");
}

/// What a series of the daemon or the gateway looked like for eight days before `end`, with trouble in its last hour.
fn past(series: &str, now: f64, end: u64, at: u64) -> f64 {
    let name = series.split('{').next().unwrap_or_default();
    let (end, at) = (end as f64, at as f64);
    let ago = end - at;
    let hours = |count: f64| end - count * 3600.0;
    match name {
        "sparse_pipeline_last_success_timestamp_seconds" => hours(30.0),
        "sparse_pipeline_last_failure_timestamp_seconds" => end - 60.0,
        "sparse_pipeline_last_start_timestamp_seconds" => hours(13.0),
        "sparse_pipeline_schedule_lag_seconds" => 900.0,
        "sparse_stages_running" => 1.0,
        "sparse_delta_ratio" => f64::from(if ago < 3600.0 { 0.9_f32 } else { 0.2 }),
        _ if ago >= 1800.0 && (name.ends_with("_total") || name.contains("_seconds_")) => 0.0,
        _ if name.ends_with("_total") && series.contains("\"hit\"") => now + 10.0,
        _ if name.ends_with("_total") => now + 40.0,
        _ => now,
    }
}

#[test]
fn every_rule_and_panel_has_data_in_a_bad_week() {
    let Some(scene) = scene() else {
        return;
    };
    let (work, daemon, gateway) = (&scene.work, &scene.daemon, &scene.gateway);
    // The series are those that are really exposed; only their values are put into the past.
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs();
    let end = now / 60 * 60 - 3 * 3600;
    let mut times: Vec<u64> = (1..=8 * 24).rev().map(|hours| end - hours * 3600).collect();
    times.extend((0..60).rev().map(|minutes| end - minutes * 60));
    let mut history = String::new();
    let exposed = [
        (
            daemon.get("/metrics").body,
            "job=\"sparse\",instance=\"here\"",
        ),
        (ours(&get(gateway, "/metrics").body), "scraped=\"gateway\""),
    ];
    for (metrics, labels) in &exposed {
        for line in metrics.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let value: f64 = value.parse().unwrap();
            let labelled = match series.split_once('{') {
                Some((name, rest)) => format!("{name}{{{labels},{rest}"),
                None => format!("{series}{{{labels}}}"),
            };
            for at in &times {
                history += &format!("{labelled} {} {at}\n", past(series, value, end, *at));
            }
        }
    }
    history += "# EOF\n";
    std::fs::write(work.at("history.om"), history).unwrap();
    let output = Command::new("promtool")
        .args(["tsdb", "create-blocks-from", "openmetrics"])
        .args([work.at("history.om"), work.at("tsdb")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let (_prometheus, prometheus) = prometheus(scene.work.path(), &scene.daemon.address, gateway);
    let rules = wait("the rules", || {
        Some(rules(&prometheus)).filter(|rules| !rules.is_empty())
    });
    assert_eq!(rules.len(), 12);
    for (name, promql) in rules.into_iter().chain(dashboard()) {
        let found = query(&prometheus, &promql, Some(end));
        assert!(!found.is_empty(), "{name} has no data: {promql}");
    }
}
