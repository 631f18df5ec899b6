//! `sparse pipeline`: plan, run, history, explain, backfill, validate.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sparse_cache::DeltaCache;
use sparse_operators::session_with;
use sparse_pipelines::serve::Options;
use sparse_pipelines::spec::find_all;
use sparse_pipelines::summary::{Plan, RunSummary, Status};
use sparse_pipelines::{Engine, Force, Params, Pipeline, Sessions, State};

use super::print_json;
use crate::args::{
    Pipeline as Command, PipelineBackfill, PipelineExplain, PipelineHistory, PipelineOf,
    PipelineServe, PipelineValidate,
};
use crate::context::Context;
use crate::failure::Failure;
use crate::format::bytes;
use crate::progress::Stages;

pub(super) async fn run(command: &Command, context: &Context) -> Result<u8, Failure> {
    match command {
        Command::Plan(args) => plan(args, context).await,
        Command::Run(args) => {
            let force = Force {
                all: args.force,
                ..Force::default()
            };
            execute(&args.of, force, "manual", context).await
        }
        Command::Serve(args) => serve(args, context).await,
        Command::History(args) => history(args, context),
        Command::Explain(args) => explain(args, context).await,
        Command::Backfill(args) => backfill(args, context).await,
        Command::Validate(args) => validate(args, context),
    }
}

/// What makes the sessions of a pipeline's statements.
pub(super) fn sessions(context: &Context) -> Sessions {
    let config = context.config();
    Arc::new(move || session_with(config.clone()))
}

fn engine(args: &PipelineOf, context: &Context) -> Result<(Engine, Arc<State>), Failure> {
    let pipeline = Pipeline::read(&args.pipeline, &Params::parse(&args.param)?)?;
    let state = Arc::new(State::open(&args.state.state_dir)?);
    context.measure_history(&state, &pipeline.name);
    let engine = Engine::new(pipeline, Arc::clone(&state), sessions(context))?;
    Ok((engine, state))
}

async fn plan(args: &PipelineOf, context: &Context) -> Result<u8, Failure> {
    let (engine, _) = engine(args, context)?;
    let plan = engine.plan().await?;
    if context.global.json {
        print_json(&super::json(&plan))?;
    } else {
        write!(std::io::stdout(), "{}", plan_text(&plan))?;
    }
    Ok(0)
}

fn plan_text(plan: &Plan) -> String {
    let mut out = format!("pipeline {}\n", plan.pipeline);
    for stage in &plan.stages {
        let _ = write!(out, "{:<6} {}: {}", stage.action, stage.stage, stage.reason);
        let runs = stage.action == "run";
        if let Some(read) = stage.input_bytes.filter(|read| *read > 0 && runs) {
            let _ = write!(out, "; reads {}", bytes(read));
        }
        if let Some(written) = stage.output_bytes.filter(|_| runs) {
            let _ = write!(out, ", writes about {}", bytes(written));
        }
        out.push('\n');
        for (before, why) in &stage.after {
            let _ = writeln!(out, "         after {before} ({why})");
        }
        for item in &stage.examples {
            let _ = writeln!(out, "         item {}: {}", item.item, item.reason);
        }
        let more = stage
            .to_run
            .unwrap_or(0)
            .saturating_sub(stage.examples.len() as u64);
        if more > 0 && !stage.examples.is_empty() {
            let _ = writeln!(out, "         and {more} more");
        }
    }
    out
}

async fn execute(
    args: &PipelineOf,
    force: Force,
    trigger: &str,
    context: &Context,
) -> Result<u8, Failure> {
    let (engine, _) = engine(args, context)?;
    let stages = Stages::new(context.global.quiet);
    let cancel = context.cancel();
    let summary = engine
        .force(force)
        .trigger(trigger, None)
        .observe(stages.observer())
        .stop_when(move || cancel.is_cancelled())
        .run()
        .await?;
    drop(stages);
    if context.global.json {
        print_json(&super::json(&summary))?;
    } else {
        summary_text(&summary, context)?;
    }
    Ok(summary.exit_code())
}

fn summary_text(summary: &RunSummary, context: &Context) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for stage in &summary.stages {
        let bad = !stage.status.is_good();
        if !bad && !context.talks() {
            continue;
        }
        let name = status(stage.status);
        match &stage.error {
            Some(error) => writeln!(out, "{name:<13} {}: {error}", stage.stage)?,
            None => writeln!(out, "{name:<13} {}: {}", stage.stage, stage.reason)?,
        }
        for sizes in &stage.bytes {
            writeln!(
                out,
                "{:<13} {} of {}s in {} of deltas",
                "",
                bytes(sizes.input_bytes),
                sizes.kind,
                bytes(sizes.delta_bytes)
            )?;
        }
    }
    for check in &summary.checks {
        if check.failed_rows > 0 {
            writeln!(
                out,
                "{:<13} {}: check {} returned {} rows",
                check.severity, check.stage, check.name, check.failed_rows
            )?;
        }
    }
    if context.talks() {
        writeln!(
            out,
            "{} run {}: {} in {:.1} s",
            summary.pipeline,
            summary.run,
            status(summary.status),
            summary.seconds
        )?;
    }
    Ok(())
}

fn status(status: Status) -> String {
    status.name().replace('_', " ")
}

async fn serve(args: &PipelineServe, context: &Context) -> Result<u8, Failure> {
    let token = match &args.token_file {
        Some(file) => Some(std::fs::read_to_string(file).map_err(|error| {
            Failure::usage(format!("--token-file {}: {error}", file.display()))
        })?),
        None => std::env::var("SPARSE_SERVE_TOKEN").ok(),
    };
    let token = token.map(|token| token.trim().to_owned());
    if token.as_deref() == Some("") {
        return Err(Failure::usage(
            "the token is empty; write a long random one",
        ));
    }
    let options = Options {
        path: args.pipelines.clone(),
        listen: args.listen,
        token,
        grace: Duration::from_secs(args.grace),
        cache: Some(cache(args, context)?),
    };
    let state = Arc::new(State::open(&args.state.state_dir)?);
    let cancel = context.cancel();
    let json = context.global.json;
    let ready = move |address: std::net::SocketAddr| {
        let line = match json {
            true => json!({ "listening": address }).to_string(),
            false => format!("listening on http://{address}"),
        };
        // Where nobody reads it, the server serves all the same.
        let mut out = std::io::stdout();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    };
    sparse_pipelines::serve::serve(options, state, sessions(context), ready, move || {
        cancel.is_cancelled()
    })
    .await?;
    Ok(0)
}

/// The cache of rebuilt models that the metrics tell of.
fn cache(args: &PipelineServe, context: &Context) -> Result<DeltaCache, Failure> {
    Ok(DeltaCache::new()
        .open_options(context.config().open_options())
        .max_cache_size_gb(args.max_size_gb)
        .open()?)
}

fn history(args: &PipelineHistory, context: &Context) -> Result<u8, Failure> {
    let state = State::open(&args.state.state_dir)?;
    let mut out = std::io::stdout().lock();
    if let Some(id) = &args.run {
        let run = state.run(id)?.ok_or_else(|| {
            Failure::new(
                format!("no run begins with {id}; see sparse pipeline history"),
                6,
            )
        })?;
        let stages = state.stages(&run.run)?;
        if context.global.json {
            print_json(&json!({ "run": run, "stages": stages }))?;
            return Ok(0);
        }
        writeln!(out, "{} {} {}", run.run, run.pipeline, run.status)?;
        for stage in stages {
            let why = stage.error.as_deref().unwrap_or(&stage.reason);
            writeln!(
                out,
                "  {:<13} {:>8}  {} ({} of {} items done): {why}",
                stage.status,
                seconds(stage.started_ms, stage.ended_ms),
                stage.stage,
                stage.items_done,
                stage.items
            )?;
        }
        return Ok(0);
    }
    let runs = state.runs(args.pipeline.as_deref(), args.limit)?;
    if context.global.json {
        print_json(&super::json(&runs))?;
        return Ok(0);
    }
    for run in runs {
        writeln!(
            out,
            "{}  {:<13} {:>8}  {}  {}",
            run.run,
            run.status,
            seconds(run.started_ms, run.ended_ms),
            run.pipeline,
            run.error.unwrap_or_default()
        )?;
    }
    Ok(0)
}

fn seconds(started_ms: i64, ended_ms: Option<i64>) -> String {
    match ended_ms {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        Some(ended) => format!("{:.1} s", (ended - started_ms) as f64 / 1000.0),
        None => "-".to_owned(),
    }
}

async fn explain(args: &PipelineExplain, context: &Context) -> Result<u8, Failure> {
    let (engine, _) = engine(&args.of, context)?;
    let document = engine.explain(&args.stage, args.item.as_deref()).await?;
    if context.global.json {
        print_json(&document)?;
        return Ok(0);
    }
    let mut out = std::io::stdout().lock();
    let plan = &document["plan"];
    writeln!(
        out,
        "{}: {}: {}",
        args.stage,
        plan["action"].as_str().unwrap_or_default(),
        plan["reason"].as_str().unwrap_or_default()
    )?;
    for (title, key) in [
        ("reads tables", "reads_tables"),
        ("makes tables", "makes_tables"),
        ("reads", "reads"),
        ("writes", "writes"),
    ] {
        let names: Vec<&str> = document[key]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if !names.is_empty() {
            writeln!(out, "  {title}: {}", names.join(", "))?;
        }
    }
    for (title, key) in [
        ("with inputs", "inputs"),
        ("with tables", "tables"),
        ("with parameters", "params"),
    ] {
        for (name, value) in document["recorded"][key].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default();
            writeln!(
                out,
                "  last done {title}: {name} = {}",
                value.get(..16).unwrap_or(value)
            )?;
        }
    }
    for attempt in document["attempts"].as_array().into_iter().flatten() {
        let text = |key: &str| attempt[key].as_str().unwrap_or_default().to_owned();
        let error = text("error");
        writeln!(
            out,
            "  {} in run {}: {}{}{error}",
            text("status"),
            text("run"),
            text("reason"),
            if error.is_empty() { "" } else { ": " }
        )?;
    }
    writeln!(
        out,
        "\n{}",
        document["sql"].as_str().unwrap_or_default().trim_end()
    )?;
    Ok(0)
}

async fn backfill(args: &PipelineBackfill, context: &Context) -> Result<u8, Failure> {
    let force = Force {
        stages: args.stage.clone(),
        items: args.item.clone(),
        all: false,
    };
    execute(&args.of, force, "backfill", context).await
}

fn validate(args: &PipelineValidate, context: &Context) -> Result<u8, Failure> {
    let params = Params::parse(&args.param)?;
    let mut found = Vec::new();
    for file in find_all(&args.pipeline)? {
        let pipeline = Pipeline::read(&file, &params)?;
        let graph = sparse_pipelines::Graph::new(&pipeline)?;
        found.push((pipeline, graph));
    }
    if context.global.json {
        let all: Vec<Value> = found
            .iter()
            .map(|(pipeline, graph)| {
                json!({ "file": pipeline.file, "pipeline": pipeline.name, "stages": graph.order() })
            })
            .collect();
        print_json(&all.into())?;
        return Ok(0);
    }
    let mut out = std::io::stdout().lock();
    for (pipeline, graph) in &found {
        writeln!(
            out,
            "{}: pipeline {} is well: {}",
            pipeline.file.display(),
            pipeline.name,
            graph.order().join(", ")
        )?;
    }
    Ok(0)
}
