//! The arguments of `sparse pipeline`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `sparse pipeline`.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  sparse pipeline plan examples/nightly
  sparse pipeline run examples/nightly
  sparse pipeline history

Exit codes of run and backfill: 0 done, 1 a stage failed, 2 the pipeline is wrong, 3 a check failed, 130 interrupted.")]
pub(crate) enum Pipeline {
    /// Show what a run would do, and why; nothing is run but the queries of for_each
    Plan(PipelineOf),
    /// Run what is not up to date
    Run(PipelineRun),
    /// The daemon: schedules, an HTTP API, metrics, a page
    Serve(PipelineServe),
    /// Show the latest runs, or the stages of one
    History(PipelineHistory),
    /// Show why a stage, or one of its items, runs or does not
    Explain(PipelineExplain),
    /// Run stages or items again although nothing changed
    Backfill(PipelineBackfill),
    /// Check pipelines: YAML, SQL, tables, order
    Validate(PipelineValidate),
}

/// Where the history of pipelines is.
#[derive(Args, Clone, Debug)]
pub(crate) struct StateDir {
    /// The folder of the history and of the tables that stages make
    #[arg(
        long,
        value_name = "DIR",
        env = "SPARSE_STATE_DIR",
        default_value = ".sparse"
    )]
    pub(crate) state_dir: PathBuf,
}

/// A pipeline, and where its history is.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sparse pipeline plan examples/nightly
  sparse pipeline plan nightly.yaml --param base=org/base --json")]
pub(crate) struct PipelineOf {
    /// A YAML file, or a folder with a pipeline.yaml
    pub(crate) pipeline: PathBuf,
    /// A parameter in place of the pipeline's: name=text, or name:=value for a number, true, false or null
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) param: Vec<String>,
    #[command(flatten)]
    pub(crate) state: StateDir,
}

/// `sparse pipeline run`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse pipeline run examples/nightly
  sparse pipeline run nightly.yaml --metrics-push http://localhost:9091
  sparse pipeline run nightly.yaml --log info --log-format json")]
pub(crate) struct PipelineRun {
    #[command(flatten)]
    pub(crate) of: PipelineOf,
    /// Run every stage, up to date or not
    #[arg(long)]
    pub(crate) force: bool,
}

/// `sparse pipeline serve`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse pipeline serve examples/nightly
  sparse pipeline serve pipelines/ --listen 0.0.0.0:8642 --token-file /run/secrets/sparse-token
  curl -X POST -H \"Authorization: Bearer $TOKEN\" localhost:8642/api/pipelines/nightly/runs

Over HTTP: / and /runs/ID are pages; /metrics, /healthz, /api/pipelines, /api/runs?pipeline=NAME&limit=N, /api/runs/ID, \
/api/runs/ID/items and /api/runs/ID/logs tell; POST /api/pipelines/NAME/runs and /api/runs/ID/cancel need the token. A daemon that \
listens on loopback answers requests to localhost only.

SIGTERM or Ctrl-C ends it with 0: nothing new begins, and what runs has its grace; at the next start it takes up what was cancelled, \
was killed, or waited. A second signal ends it at once, with 130.")]
pub(crate) struct PipelineServe {
    /// A YAML file, a folder with a pipeline.yaml, or a folder of such; read again when they change
    pub(crate) pipelines: PathBuf,
    /// Where to listen; anybody who reaches it may read
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8642")]
    pub(crate) listen: std::net::SocketAddr,
    /// A file with the token that requests need which change something [default: SPARSE_SERVE_TOKEN; without one, nothing
    /// can be changed]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Once it is to stop: how many seconds running statements may go on before they are cancelled
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) grace: u64,
    /// The most gigabytes (10^9 bytes) of models the cache of this machine may hold: a metric
    #[arg(
        long,
        value_name = "GB",
        env = "SPARSE_CACHE_SIZE_GB",
        default_value_t = 100.0
    )]
    pub(crate) max_size_gb: f64,
    #[command(flatten)]
    pub(crate) state: StateDir,
}

/// `sparse pipeline history`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse pipeline history
  sparse pipeline history --pipeline nightly --limit 50 --json
  sparse pipeline history 0198c2d4")]
pub(crate) struct PipelineHistory {
    /// A run's id, or how it begins: its stages are shown
    pub(crate) run: Option<String>,
    /// Of this pipeline only
    #[arg(long, value_name = "NAME")]
    pub(crate) pipeline: Option<String>,
    /// So many runs
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) state: StateDir,
}

/// `sparse pipeline explain`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse pipeline explain examples/nightly compress
  sparse pipeline explain examples/nightly compress --item sft --json")]
pub(crate) struct PipelineExplain {
    #[command(flatten)]
    pub(crate) of: PipelineOf,
    /// The stage
    pub(crate) stage: String,
    /// One of its items
    #[arg(long)]
    pub(crate) item: Option<String>,
}

/// `sparse pipeline backfill`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse pipeline backfill examples/nightly --stage compress
  sparse pipeline backfill examples/nightly --stage compress --item sft --item lora-merged")]
pub(crate) struct PipelineBackfill {
    #[command(flatten)]
    pub(crate) of: PipelineOf,
    /// The stage to run again; may be given more than once
    #[arg(long, required = true)]
    pub(crate) stage: Vec<String>,
    /// Only this item of it; may be given more than once
    #[arg(long)]
    pub(crate) item: Vec<String>,
}

/// `sparse pipeline validate`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse pipeline validate examples/nightly
  sparse pipeline validate pipelines/ --json")]
pub(crate) struct PipelineValidate {
    /// A YAML file, a folder with a pipeline.yaml, or a folder of such
    pub(crate) pipeline: PathBuf,
    /// A parameter in place of the pipeline's: name=text, or name:=value for a number, true, false or null
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) param: Vec<String>,
}
