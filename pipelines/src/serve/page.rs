//! The page: rendered here, complete without JavaScript; while something runs it asks for itself again.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, SecondsFormat, Utc};
use minijinja::{Environment, context};
use serde::Serialize;

use super::Daemon;
use crate::graph::Graph;
use crate::schedule;
use crate::state::{RunRow, StageRow, StateError, now_ms};

/// Runs on the front page.
const RUNS: u32 = 30;

/// Lines of the log on a run's page.
const LINES: u32 = 500;

/// Seconds between two looks while something runs.
const REFRESH: u32 = 2;

/// A stage's box in the picture.
#[derive(Serialize)]
struct Node {
    x: usize,
    y: usize,
    name: String,
    status: String,
    progress: String,
}

/// A line between two boxes.
#[derive(Serialize)]
struct Edge {
    x1: usize,
    y1: usize,
    x2: usize,
    y2: usize,
    why: String,
}

#[derive(Serialize)]
struct Picture {
    width: usize,
    height: usize,
    nodes: Vec<Node>,
    edges: Vec<Edge>,
}

/// A bar of the savings over time.
#[derive(Serialize)]
struct Saving {
    x: usize,
    input: f64,
    delta: f64,
    label: String,
}

#[derive(Serialize)]
struct Line {
    run: String,
    pipeline: String,
    status: String,
    trigger: String,
    started: String,
    seconds: String,
    saved: String,
    error: String,
}

const WIDTH: usize = 190;
const HEIGHT: usize = 56;
const GAP: usize = 50;

fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    // Names that end in .html are escaped.
    environment.add_template("layout.html", include_str!("layout.html"))?;
    environment.add_template("dag.html", include_str!("dag.html"))?;
    environment.add_template("index.html", include_str!("index.html"))?;
    environment.add_template("run.html", include_str!("run.html"))?;
    Ok(environment)
}

fn render(name: &str, values: minijinja::Value) -> Result<String, StateError> {
    environment()
        .and_then(|environment| environment.get_template(name)?.render(values))
        .map_err(|error| StateError::Page(error.to_string()))
}

fn time(ms: i64) -> String {
    DateTime::<Utc>::from_timestamp_millis(ms)
        .map(|time| {
            time.to_rfc3339_opts(SecondsFormat::Secs, true)
                .replace('T', " ")
        })
        .unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn seconds(started: i64, ended: Option<i64>) -> String {
    let ended = ended.unwrap_or_else(now_ms);
    format!("{:.1} s", (ended - started).max(0) as f64 / 1000.0)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn bytes(count: i64) -> String {
    let mut value = count.max(0) as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return match unit {
                "B" => format!("{value:.0} B"),
                unit => format!("{value:.1} {unit}"),
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

fn line(run: &RunRow) -> Line {
    Line {
        run: run.run.clone(),
        pipeline: run.pipeline.clone(),
        status: run.status.clone(),
        trigger: run.trigger.clone(),
        started: time(run.started_ms),
        seconds: seconds(run.started_ms, run.ended_ms),
        saved: match run.input_bytes {
            0 => String::new(),
            input => format!("{} of {}", bytes(input - run.delta_bytes), bytes(input)),
        },
        error: run.error.clone().unwrap_or_default(),
    }
}

/// Stages in columns: each right of all it needs.
fn picture(graph: &Graph, stages: &[StageRow]) -> Picture {
    let known: HashMap<&str, &StageRow> = stages.iter().map(|s| (s.stage.as_str(), s)).collect();
    let mut column: BTreeMap<&str, usize> = BTreeMap::new();
    let mut filled: Vec<usize> = Vec::new();
    let mut places: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for name in graph.order() {
        let before = graph.before.get(name);
        let at = before
            .into_iter()
            .flat_map(BTreeMap::keys)
            .filter_map(|before| column.get(before.as_str()))
            .max()
            .map_or(0, |at| at + 1);
        column.insert(name, at);
        if filled.len() <= at {
            filled.resize(at + 1, 0);
        }
        places.insert(
            name,
            (10 + at * (WIDTH + GAP), 10 + filled[at] * (HEIGHT + 20)),
        );
        filled[at] += 1;
    }
    let mut nodes = Vec::new();
    let mut edges = Vec::new();
    for (name, (x, y)) in &places {
        let row = known.get(name);
        nodes.push(Node {
            x: *x,
            y: *y,
            name: (*name).to_owned(),
            status: row.map_or("waiting", |row| row.status.as_str()).to_owned(),
            progress: row.map_or_else(String::new, |row| {
                format!(
                    "{} of {} items",
                    row.items_done + row.items_skipped,
                    row.items
                )
            }),
        });
        for (before, why) in graph.before.get(*name).into_iter().flatten() {
            if let Some((bx, by)) = places.get(before.as_str()) {
                edges.push(Edge {
                    x1: bx + WIDTH,
                    y1: by + HEIGHT / 2,
                    x2: *x,
                    y2: y + HEIGHT / 2,
                    why: why.clone(),
                });
            }
        }
    }
    let rows = filled.iter().copied().max().unwrap_or(0);
    Picture {
        width: 20 + filled.len() * (WIDTH + GAP),
        height: 10 + rows * (HEIGHT + 20),
        nodes,
        edges,
    }
}

/// Runs that compressed something, oldest first, as shares of the largest.
#[expect(clippy::cast_precision_loss, reason = "for people")]
fn savings(runs: &[RunRow]) -> Vec<Saving> {
    let with: Vec<&RunRow> = runs
        .iter()
        .filter(|run| run.input_bytes > 0)
        .rev()
        .collect();
    let most = with.iter().map(|run| run.input_bytes).max().unwrap_or(1) as f64;
    with.iter()
        .enumerate()
        .map(|(at, run)| Saving {
            x: at * 22,
            input: 100.0 * run.input_bytes as f64 / most,
            delta: 100.0 * run.delta_bytes as f64 / most,
            label: format!(
                "{} {}: {} in {} of deltas",
                time(run.started_ms),
                run.pipeline,
                bytes(run.input_bytes),
                bytes(run.delta_bytes)
            ),
        })
        .collect()
}

pub(super) fn index(daemon: &Daemon) -> Result<String, StateError> {
    let runs = daemon.state.runs(None, RUNS)?;
    let now = now_ms();
    let mut pipelines = Vec::new();
    let mut busy = false;
    for slot in daemon.slots().values() {
        let latest = daemon.state.runs(Some(&slot.pipeline.name), 1)?;
        let stages = match latest.first() {
            Some(run) => daemon.state.stages(&run.run)?,
            None => Vec::new(),
        };
        busy |= slot.running.is_some() || !slot.queue.is_empty();
        let next = slot.pipeline.schedule.as_ref().and_then(|schedule| {
            schedule::next(schedule, now)
                .map(|at| format!("{} ({} {})", time(at), schedule.cron, schedule.timezone))
        });
        pipelines.push(context! {
            name => slot.pipeline.name,
            description => slot.pipeline.description,
            problem => slot.problem,
            queued => slot.queue.len(),
            next,
            run => latest.first().map(|run| run.run.clone()),
            picture => picture(&slot.graph, &stages),
        });
    }
    let lines: Vec<Line> = runs.iter().map(line).collect();
    render(
        "index.html",
        context! { title => "pipelines", problems => daemon.problems().clone(), refresh => busy.then_some(REFRESH), pipelines, runs => lines, savings => savings(&runs) },
    )
}

pub(super) fn run(daemon: &Daemon, run: &RunRow) -> Result<String, StateError> {
    let stages = daemon.state.stages(&run.run)?;
    let drawn = daemon
        .slots()
        .get(&run.pipeline)
        .map(|slot| picture(&slot.graph, &stages));
    let rows: Vec<_> = stages
        .iter()
        .map(|stage| {
            context! {
                stage => stage.stage, status => stage.status, reason => stage.reason, error => stage.error,
                seconds => seconds(stage.started_ms, stage.ended_ms), items => stage.items,
                done => stage.items_done + stage.items_skipped, failed => stage.items_failed, rows => stage.rows,
            }
        })
        .collect();
    let lines: Vec<_> = daemon
        .state
        .logs(&run.run, LINES)?
        .into_iter()
        .map(|line| context! { at => time(line.at_ms), level => line.level, stage => line.stage, item => line.item, message => line.message })
        .collect();
    render(
        "run.html",
        context! {
            title => format!("{} {}", run.pipeline, run.status),
            refresh => (run.status == "running").then_some(REFRESH),
            run => line(run), picture => drawn, stages => rows, lines,
        },
    )
}
