//! The arguments of every command.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sparse_codec::Effort;

const ABOUT: &str = "Fine-tuned models as deltas of their base: lossless, small, in SQL";

const LONG_ABOUT: &str = "\
Fine-tuned models as deltas of their base: lossless, small, in SQL.

A model is a path (a .safetensors file, a folder, a sharded checkpoint), an object-store URL (s3://, gs://, az://, http://, \
https://) or a Hub id (org/name or org/name@revision).";

const EXAMPLES: &str = "\
Examples:
  sparse compress org/base ./my-finetune -o my-delta
  sparse reconstruct org/base my-delta -o my-finetune-again
  sparse sql -c \"SELECT * FROM sparse_diff('org/base', './my-finetune')\"

Exit codes:
  0    done
  1    the operation failed (disk, network, permission)
  2    the command or a statement is wrong, or the output is taken
  3    a check failed (verify, diff --fail-on)
  4    the base is not the one the delta was made against
  5    a file is corrupt, or of a later version
  6    something was not found
  130  interrupted; nothing was left half-done";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "sparse", version, about = ABOUT, long_about = LONG_ABOUT, after_help = EXAMPLES)]
#[command(
    propagate_version = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Print one JSON document instead of text; errors too, on standard error
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print results only: no progress, no summaries
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// CPU threads to use; 0 means all
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    pub(crate) threads: usize,
    /// Where to compute
    #[arg(long, global = true, value_enum, default_value_t = Device::Auto)]
    pub(crate) device: Device,
    /// Use caches only, never the network
    #[arg(long, global = true)]
    pub(crate) offline: bool,
    /// Where fetched models, deltas without an output, and locks are kept [default: SPARSE_CACHE, or ~/.cache/sparse]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Log to standard error: error, warn, info, debug, trace, or a filter such as sparse_delta=debug
    #[arg(long, global = true, value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// At the end, well or not, put metrics on this Pushgateway
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) metrics_push: Option<String>,
    /// At the end, well or not, write metrics to this file, for the node exporter's textfile collector
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) metrics_file: Option<PathBuf>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object per line
    Json,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// The best there is
    Auto,
    /// The CPU
    Cpu,
    /// An NVIDIA GPU
    Cuda,
}

/// One per command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Store a fine-tuned model as the lossless delta of its base
    Compress(Compress),
    /// Find the adapter that was merged into a model
    Unmerge(Unmerge),
    /// Rebuild a fine-tuned model from its base and its delta, byte for byte
    Reconstruct(Reconstruct),
    /// Show what a fine-tune changed, tensor by tensor
    Diff(Diff),
    /// Show what a delta holds
    Info(Info),
    /// Check every hash of a delta; with the base, rebuild everything in memory and compare
    Verify(Verify),
    /// Run SQL: a shell, a statement, or a script
    Sql(Sql),
    /// Run SQL stages over catalogs: planned, resumable, scheduled, watched
    #[command(subcommand)]
    Pipeline(Pipeline),
    /// Show version, instruction sets and devices
    Features(Features),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Print docs/cli.md
    #[command(hide = true)]
    Page,
}

impl Command {
    /// Its name, for the metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Compress(_) => "compress",
            Self::Unmerge(_) => "unmerge",
            Self::Reconstruct(_) => "reconstruct",
            Self::Diff(_) => "diff",
            Self::Info(_) => "info",
            Self::Verify(_) => "verify",
            Self::Sql(_) => "sql",
            Self::Pipeline(_) => "pipeline",
            Self::Features(_) => "features",
            Self::Completions(_) => "completions",
            Self::Page => "page",
        }
    }
}

/// `sparse compress`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse compress examples/models/base examples/models/sft -o sft-delta
  sparse compress org/base ./my-finetune -o s3://bucket/deltas/my-finetune
  sparse compress org/base ./merged --adapter ./my-lora -o merged-delta
  sparse compress org/base ./my-finetune --dry-run --json")]
pub(crate) struct Compress {
    /// The base model
    pub(crate) base: String,
    /// The fine-tuned model
    pub(crate) finetune: String,
    /// Where the delta goes: a folder or an object-store URL. Default: its key, in the delta store
    #[arg(short, long)]
    pub(crate) output: Option<String>,
    /// How hard to try: fast (the base alone), default (merged adapters are found), max (low-rank predictions of
    /// full fine-tunes too, at some megabytes a second)
    #[arg(long, default_value_t = Effort::Default)]
    pub(crate) effort: Effort,
    /// A PEFT adapter that was merged into the base to make the fine-tune: its updates are tried as predictions
    #[arg(long, value_name = "ADAPTER")]
    pub(crate) adapter: Option<String>,
    /// Compute everything, write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Replace another delta at the output. Nothing but a delta is ever replaced
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// `sparse unmerge`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse unmerge examples/models/base examples/models/lora-merged -o adapter
  sparse unmerge org/base ./merged --dry-run --json")]
pub(crate) struct Unmerge {
    /// The base model
    pub(crate) base: String,
    /// The model with the adapter in it
    pub(crate) merged: String,
    /// The folder the adapter goes to, as PEFT stores adapters
    #[arg(short, long, required_unless_present = "dry_run")]
    pub(crate) output: Option<String>,
    /// Find the adapter and say how exact it is, write nothing
    #[arg(long, conflicts_with = "output")]
    pub(crate) dry_run: bool,
    /// Replace another adapter at the output. Nothing but an adapter is ever replaced
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// `sparse reconstruct`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse reconstruct examples/models/base sft-delta -o sft-again
  sparse reconstruct org/base s3://bucket/deltas/my-finetune -o my-finetune
  sparse reconstruct org/base sft-delta --dry-run")]
pub(crate) struct Reconstruct {
    /// The base model the delta was made against
    pub(crate) base: String,
    /// The delta: a folder, an object-store URL, a Hub id, or a key in the delta store
    pub(crate) delta: String,
    /// Where the model goes: a folder, or a file for a model that was one. Default: the cache, by key
    #[arg(short, long)]
    pub(crate) output: Option<String>,
    /// Rebuild and check everything, write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Replace another state of the model at the output. A folder with files the delta does not know stays
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// `sparse diff`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse diff examples/models/base examples/models/sft
  sparse diff org/base ./my-finetune --all --json
  sparse diff rebuilt original --fail-on any     # exit code 3 unless all tensors are the same")]
pub(crate) struct Diff {
    /// The base model
    pub(crate) base: String,
    /// The fine-tuned model
    pub(crate) finetune: String,
    /// Show unchanged tensors too
    #[arg(long)]
    pub(crate) all: bool,
    /// Exit with code 3 if a tensor has this status
    #[arg(long, value_enum, value_delimiter = ',', value_name = "STATUS")]
    pub(crate) fail_on: Vec<FailOn>,
}

/// A status of a tensor that `diff` may fail on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailOn {
    /// Every status but "same"
    Any,
    /// Other values
    Changed,
    /// Not in the base
    Added,
    /// Not in the fine-tune
    Removed,
    /// Another shape
    Reshaped,
    /// Another dtype
    Retyped,
}

impl FailOn {
    /// Whether a tensor of `status` is one to fail on.
    pub(crate) fn matches(self, status: &str) -> bool {
        match self {
            Self::Any => status != "same",
            Self::Changed => status == "changed",
            Self::Added => status == "added",
            Self::Removed => status == "removed",
            Self::Reshaped => status == "reshaped",
            Self::Retyped => status == "retyped",
        }
    }
}

/// `sparse info`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse info sft-delta
  sparse info s3://bucket/deltas/my-finetune --json")]
pub(crate) struct Info {
    /// The delta: a folder, an object-store URL, a Hub id, or a key in the delta store
    pub(crate) delta: String,
}

/// `sparse verify`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse verify sft-delta
  sparse verify sft-delta --base examples/models/base     # rebuilds every file in memory, writes nothing")]
pub(crate) struct Verify {
    /// The delta: a folder, an object-store URL, a Hub id, or a key in the delta store
    pub(crate) delta: String,
    /// The base model: every file is rebuilt in memory and compared with its SHA-256
    #[arg(long)]
    pub(crate) base: Option<String>,
}

/// `sparse sql`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse sql                                               # a shell, with history and completion
  sparse sql -c \"SELECT * FROM sparse_tensors('examples/models/base')\"
  sparse sql -f nightly.sql --param base=org/base --format json
  echo 'SELECT 1' | sparse sql --format csv

A script is checked as a whole before its first statement runs. $name in it stands for a --param.")]
pub(crate) struct Sql {
    /// Run this SQL and leave; may be given more than once
    #[arg(short, long, value_name = "SQL", conflicts_with = "file")]
    pub(crate) command: Vec<String>,
    /// Run the SQL in this file and leave
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// A parameter of the SQL: name=text, or name:=value for a number, true, false or null
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) param: Vec<String>,
    /// How rows are printed; json is one object per line
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    /// Run the statements after one that failed too
    #[arg(long)]
    pub(crate) keep_going: bool,
    /// The history of pipelines, where there is one: the tables sparse_runs, sparse_stages and sparse_items
    #[command(flatten)]
    pub(crate) state: StateDir,
}

/// How rows are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table for people
    Table,
    /// Comma-separated values with a header
    Csv,
    /// One JSON object per line
    Json,
}

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
  curl -X POST -H \"Authorization: Bearer $TOKEN\" localhost:8642/api/pipelines/nightly/runs")]
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

/// `sparse features`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse features
  sparse features --json")]
pub(crate) struct Features {}

/// `sparse completions`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  source <(sparse completions bash)
  sparse completions fish > ~/.config/fish/completions/sparse.fish")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}
