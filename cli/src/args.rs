//! The arguments of every command.

pub(crate) mod cache;
pub(crate) mod catalog;
mod dataset;
mod delta;
mod pipeline;
mod svd;
mod validate;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use self::dataset::{
    DatasetCompress, DatasetDiff, DatasetEstimate, DatasetReconstruct, FailOnRows,
};
pub(crate) use self::delta::{Compress, CompressAdapter, Diff, Info, Reconstruct, Unmerge, Verify};
use self::pipeline::StateDir;
pub(crate) use self::pipeline::{
    Pipeline, PipelineBackfill, PipelineExplain, PipelineHistory, PipelineOf, PipelineServe,
    PipelineValidate,
};
pub(crate) use self::svd::{SvdCompress, SvdReconstruct};
pub(crate) use self::validate::{Judging, Validate, ValidateInt8};

const ABOUT: &str = "Fine-tuned models as deltas of their base: lossless, small, in SQL";

const LONG_ABOUT: &str = "\
Fine-tuned models as deltas of their base: lossless, small, in SQL.

A model is a path (a .safetensors file, a folder, a sharded checkpoint), an object-store URL (s3://, gs://, az://, http://, \
https://) or a Hub id (org/name or org/name@revision). A dataset is named the same way: a .parquet, .arrow, .csv or .jsonl file, or a \
folder of splits.";

const EXAMPLES: &str = "\
Examples:
  sparse compress org/base ./my-finetune -o my-delta
  sparse reconstruct org/base my-delta -o my-finetune-again
  sparse sql -c \"SELECT * FROM sparse_diff('org/base', './my-finetune')\"

Exit codes:
  0    done
  1    the operation failed (disk, network, permission)
  2    the command or a statement is wrong, or the output is taken
  3    a check failed (verify, diff --fail-on, dataset-diff --fail-on)
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
    /// Where to compute what a GPU can do (blocks of compress, reconstruct, verify, bench and cache; INT8 of compress and
    /// validate-int8; the decompositions of svd-compress, with cuBLAS; diff); the rest runs on the CPU. Not yet measured on
    /// hardware
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
    /// Approximate a fine-tuned model by low-rank updates of its base, with an adapter for PEFT
    SvdCompress(SvdCompress),
    /// Rebuild the approximate model of a base and a low-rank approximation
    SvdReconstruct(SvdReconstruct),
    /// Store a PEFT adapter as a delta of the model it was trained on
    CompressAdapter(CompressAdapter),
    /// Judge what INT8 would make of a fine-tune, by error and by behaviour
    ValidateInt8(ValidateInt8),
    /// Judge what a delta makes of a fine-tune, by error and by behaviour
    Validate(Validate),
    /// Show what a fine-tune changed, tensor by tensor
    Diff(Diff),
    /// Show what a delta holds
    Info(Info),
    /// Check every hash of a delta; with the base, rebuild everything in memory and compare
    Verify(Verify),
    /// Store a derivative dataset as the exact delta of its base
    DatasetCompress(DatasetCompress),
    /// Rebuild a derivative dataset from its base and its delta
    DatasetReconstruct(DatasetReconstruct),
    /// Estimate how large the delta of a dataset would be, without making it
    DatasetEstimate(DatasetEstimate),
    /// Show what a derivative dataset changed, value by value
    DatasetDiff(DatasetDiff),
    /// Rebuilt models, kept within a limit and shared by processes
    Cache(cache::Cache),
    /// List models, and find the base a fine-tune descends from
    Catalog(catalog::Catalog),
    /// Measure how fast models are rebuilt here, and estimate it for common sizes
    Bench(Bench),
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
            Self::SvdCompress(_) => "svd-compress",
            Self::SvdReconstruct(_) => "svd-reconstruct",
            Self::CompressAdapter(_) => "compress-adapter",
            Self::ValidateInt8(_) => "validate-int8",
            Self::Validate(_) => "validate",
            Self::Diff(_) => "diff",
            Self::Info(_) => "info",
            Self::Verify(_) => "verify",
            Self::DatasetCompress(_) => "dataset-compress",
            Self::DatasetReconstruct(_) => "dataset-reconstruct",
            Self::DatasetEstimate(_) => "dataset-estimate",
            Self::DatasetDiff(_) => "dataset-diff",
            Self::Cache(_) => "cache",
            Self::Catalog(_) => "catalog",
            Self::Bench(_) => "bench",
            Self::Sql(_) => "sql",
            Self::Pipeline(_) => "pipeline",
            Self::Features(_) => "features",
            Self::Completions(_) => "completions",
            Self::Page => "page",
        }
    }
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

/// `sparse bench`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse bench --tensor-size 100000 --iterations 1
  sparse bench --json

Measures, on a generated model: copying memory, writing and reading the disk of the cache folder, SHA-256, decoding in memory, and \
rebuilding from files to files. Nothing stays.")]
pub(crate) struct Bench {
    /// Elements of each of the four generated BF16 tensors
    #[arg(long, value_name = "N", default_value_t = 4_000_000)]
    pub(crate) tensor_size: u64,
    /// How often everything is measured
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) iterations: u64,
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
