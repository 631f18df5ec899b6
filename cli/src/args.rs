//! The arguments of every command.

pub(crate) mod cache;
pub(crate) mod catalog;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sparse_codec::{Effort, Granularity};
use sparse_delta::{MergeRule, Precision, Profile};
use sparse_inference::Sample;

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
    /// Where to compute what has GPU kernels, which is `diff` so far; the rest runs on the CPU
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
    /// What is kept: lossless (every byte), or int8 (of large tensors an approximation by 8-bit codes and scales: lossy,
    /// labelled so in the artifact, and mostly larger than lossless; `sparse validate-int8` judges it)
    #[arg(long, value_parser = ["lossless", "int8"], default_value = "lossless")]
    pub(crate) mode: String,
    /// What shares a scale in mode int8: tensor, row or group (128 elements of a row). Default: row
    #[arg(long)]
    pub(crate) granularity: Option<Granularity>,
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

/// `sparse svd-compress`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse svd-compress examples/models/base examples/models/sft -o sft-svd --rank 16
  sparse svd-compress org/base ./my-finetune -o my-svd --ranks 8,16,32 --precision int4
  sparse svd-compress org/base ./my-finetune -o my-svd --bytes 50e6 --profile vllm
  sparse svd-compress org/base ./my-finetune --energy 0.9 --dry-run --json")]
pub(crate) struct SvdCompress {
    /// The base model
    pub(crate) base: String,
    /// The fine-tuned model
    pub(crate) finetune: String,
    /// Where the approximation goes: a folder or an object-store URL. Default: its key, in the delta store
    #[arg(short, long)]
    pub(crate) output: Option<String>,
    /// The rank of every update, or auto: all that stands out of the rounding noise of both models [default: 16]
    #[arg(long, value_name = "RANK", group = "rule")]
    pub(crate) rank: Option<String>,
    /// Several ranks, each of which can be rebuilt from the one artifact
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "RANK",
        num_args = 1..,
        group = "rule"
    )]
    pub(crate) ranks: Option<Vec<u64>>,
    /// The share of each difference's squared Frobenius norm that its update holds
    #[arg(long, value_name = "SHARE", group = "rule")]
    pub(crate) energy: Option<f64>,
    /// How many bytes all factors may take, as 50e6
    #[arg(long, value_name = "BYTES", group = "rule")]
    pub(crate) bytes: Option<f64>,
    /// The largest rank that auto, energy or bytes come to
    #[arg(long, value_name = "RANK", default_value_t = 256)]
    pub(crate) max_rank: usize,
    /// How factors are stored: f32, f16, bf16, int8 or int4
    #[arg(long, default_value = "f16", value_parser = precision)]
    pub(crate) precision: Precision,
    /// Store the sign of what the factors leave of every element, with one magnitude a row
    #[arg(long)]
    pub(crate) signs: bool,
    /// Approximate embeddings too; otherwise they are kept exactly
    #[arg(long)]
    pub(crate) embeddings: bool,
    /// The adapter in the artifact
    #[arg(long, value_enum, default_value_t = AdapterProfile::Peft)]
    pub(crate) profile: AdapterProfile,
    /// Compute everything, write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Replace another approximation at the output. Nothing but one is ever replaced
    #[arg(long)]
    pub(crate) overwrite: bool,
}

fn precision(name: &str) -> Result<Precision, String> {
    Precision::parse(name).ok_or_else(|| {
        let all: Vec<&str> = Precision::ALL.iter().map(|(_, name)| *name).collect();
        format!("use {}", all.join(", "))
    })
}

/// Which adapter an approximation holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AdapterProfile {
    /// Every approximated module, each with its rank
    Peft,
    /// Linear layers only, all of one rank
    Vllm,
    /// No adapter
    None,
}

impl AdapterProfile {
    pub(crate) fn profile(self) -> Option<Profile> {
        match self {
            Self::Peft => Some(Profile::Peft),
            Self::Vllm => Some(Profile::Vllm),
            Self::None => None,
        }
    }
}

/// `sparse svd-reconstruct`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse svd-reconstruct examples/models/base sft-svd -o sft-approximate
  sparse svd-reconstruct org/base my-svd -o my-approximate --rank 8")]
pub(crate) struct SvdReconstruct {
    /// The base model the approximation was made against
    pub(crate) base: String,
    /// The approximation: a folder, an object-store URL, or a key in the delta store
    pub(crate) delta: String,
    /// The folder the model goes to. Default: the cache, by key and rank
    #[arg(short, long)]
    pub(crate) output: Option<String>,
    /// Which of the artifact's ranks. Default: its largest
    #[arg(long)]
    pub(crate) rank: Option<u64>,
    /// Rebuild and check everything, write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Replace another model at the output, where it has no file that this one has not
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// `sparse compress-adapter`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse compress-adapter examples/models/base examples/models/lora -o lora-delta
  sparse reconstruct examples/models/base lora-delta -o lora-again              # the adapter's files, byte for byte
  sparse reconstruct examples/models/base lora-delta -o merged --merge          # the base with the adapter merged into it")]
pub(crate) struct CompressAdapter {
    /// The model the adapter was trained on
    pub(crate) base: String,
    /// The PEFT adapter
    pub(crate) adapter: String,
    /// Where the artifact goes: a folder or an object-store URL. Default: its key, in the delta store
    #[arg(short, long)]
    pub(crate) output: Option<String>,
    /// How hard to try to make it small
    #[arg(long, default_value_t = Effort::Default)]
    pub(crate) effort: Effort,
    /// Compute everything, write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Replace another delta at the output. Nothing but a delta is ever replaced
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// `sparse reconstruct`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse reconstruct examples/models/base sft-delta -o sft-again
  sparse reconstruct org/base lora-delta -o merged --merge
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
    /// Of an adapter's artifact: the base with the adapter merged into it, as PEFT's merge_and_unload gives it bit for
    /// bit; `safe` as its safe_merge does
    #[arg(long, value_name = "RULE", num_args = 0..=1, default_missing_value = "default", value_parser = merge_rule)]
    pub(crate) merge: Option<MergeRule>,
    /// Rebuild and check everything, write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Replace another state of the model at the output. A folder with files the delta does not know stays
    #[arg(long)]
    pub(crate) overwrite: bool,
}

fn merge_rule(name: &str) -> Result<MergeRule, String> {
    MergeRule::parse(name).ok_or_else(|| "use default or safe".to_owned())
}

/// What both validating commands take.
#[derive(Args, Debug)]
pub(crate) struct Judging {
    /// How many of the largest tensors that are not exact are measured, or all
    #[arg(long, value_name = "N|all", default_value = "2")]
    pub(crate) sample_layers: Sample,
    /// A text both models are run on; may be given more than once. Default: a small built-in set
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Vec<String>,
    /// A file of texts, one a line
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// Tokens of a text that are looked at; never more than the model's positions
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    pub(crate) max_length: usize,
    /// Measure layers, run nothing
    #[arg(long, conflicts_with_all = ["prompt", "prompts"])]
    pub(crate) layers_only: bool,
}

/// `sparse validate-int8`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse validate-int8 examples/models/base examples/models/sft
  sparse validate-int8 org/base ./my-finetune --sample-layers all --layers-only
  sparse validate-int8 org/base ./my-finetune --granularity group --prompts texts.txt --json

The fine-tune's difference from the base is rounded to 8-bit integers times a scale, the model is rebuilt from that, and both \
are run, in f32. Models of the types llama, mistral, qwen2, qwen3 and gpt2 are run; of others the layers are measured.")]
pub(crate) struct ValidateInt8 {
    /// The base model
    pub(crate) base: String,
    /// The fine-tuned model
    pub(crate) finetune: String,
    /// What shares a scale: tensor, row or group (128 elements of a row)
    #[arg(long, default_value_t = Granularity::Row)]
    pub(crate) granularity: Granularity,
    #[command(flatten)]
    pub(crate) judging: Judging,
}

/// `sparse validate`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse validate org/base ./my-finetune --delta ./approximation
  sparse validate org/base ./my-finetune --delta ./approximation --rank 8 --prompts texts.txt --json
  sparse validate org/base ./my-finetune                   # the base itself: what doing nothing costs

The model that the delta makes of the base is run beside the fine-tune, its tensors produced when they are needed.")]
pub(crate) struct Validate {
    /// The base model the delta was made against
    pub(crate) base: String,
    /// The fine-tuned model it was made of
    pub(crate) finetune: String,
    /// The delta: a low-rank approximation, an INT8 delta or a lossless one. Without one the base itself is judged
    #[arg(long)]
    pub(crate) delta: Option<String>,
    /// Which of a low-rank approximation's ranks. Default: its largest
    #[arg(long, requires = "delta")]
    pub(crate) rank: Option<u64>,
    #[command(flatten)]
    pub(crate) judging: Judging,
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
  sparse info words-delta        # of a dataset: its splits
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
    /// The base model or dataset: every file is rebuilt in memory and compared with its SHA-256, every split of a dataset with its
    /// logical hash
    #[arg(long)]
    pub(crate) base: Option<String>,
}

/// `sparse dataset-compress`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse dataset-compress examples/datasets/wordnet/base examples/datasets/wordnet/derivative -o words-delta
  sparse dataset-compress org/words ./words-edited --splits train,test -o s3://bucket/deltas/words
  sparse dataset-compress examples/datasets/wordnet/base examples/datasets/wordnet/derivative --dry-run --json

A dataset is a .parquet, .arrow, .csv or .jsonl file, a folder of splits (train.parquet, train-00000-of-00003.parquet, data/), an
object-store URL or a Hub id. No key is needed. Tables and queries: sparse_dataset_compress in SQL.")]
pub(crate) struct DatasetCompress {
    /// The base dataset
    pub(crate) base: String,
    /// The derivative dataset
    pub(crate) derivative: String,
    /// Where the delta goes: a folder or an object-store URL. Default: its key, in the delta store
    #[arg(short, long)]
    pub(crate) output: Option<String>,
    /// The splits of the derivative to store [default: all]
    #[arg(long, value_delimiter = ',', value_name = "SPLIT")]
    pub(crate) splits: Vec<String>,
    /// How hard to try: fast, default, or max
    #[arg(long, default_value_t = Effort::Default)]
    pub(crate) effort: Effort,
    /// Memory to use, about; what is larger goes to temporary files: bytes, or with a unit (512MB, 2GiB)
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub(crate) memory: Bytes,
    /// Compute everything, write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Replace another dataset delta at the output. Nothing but one is ever replaced
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// `sparse dataset-reconstruct`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse dataset-reconstruct words-delta -o words-again
  sparse dataset-reconstruct s3://bucket/deltas/words --base ./words -o words-again
  sparse dataset-reconstruct words-delta --dry-run")]
pub(crate) struct DatasetReconstruct {
    /// The delta: a folder, an object-store URL, or a key in the delta store
    pub(crate) delta: String,
    /// The base dataset [default: the one the delta names]
    #[arg(long)]
    pub(crate) base: Option<String>,
    /// Where the dataset goes: a folder, or a file for a dataset that was one. Default: the cache, by key
    #[arg(short, long)]
    pub(crate) output: Option<String>,
    /// Memory to use, about; what is larger goes to temporary files: bytes, or with a unit (512MB, 2GiB)
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub(crate) memory: Bytes,
    /// Rebuild and check everything, write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Replace another state of the dataset at the output. A folder with other files in it stays
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// `sparse dataset-estimate`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse dataset-estimate examples/datasets/wordnet/base examples/datasets/wordnet/derivative
  sparse dataset-estimate org/words ./words-edited --split validation --sample-size 5000 --json")]
pub(crate) struct DatasetEstimate {
    /// The base dataset
    pub(crate) base: String,
    /// The derivative dataset
    pub(crate) derivative: String,
    /// The split of the derivative to look at
    #[arg(long, default_value = "train")]
    pub(crate) split: String,
    /// Rows that are coded to see what they cost
    #[arg(long, value_name = "ROWS", default_value_t = 1000)]
    pub(crate) sample_size: u64,
    /// The effort the delta would be made with
    #[arg(long, default_value_t = Effort::Default)]
    pub(crate) effort: Effort,
    /// Memory to use, about: bytes, or with a unit (512MB, 2GiB)
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub(crate) memory: Bytes,
}

/// `sparse dataset-diff`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse dataset-diff examples/datasets/wordnet/base examples/datasets/wordnet/derivative --key id
  sparse dataset-diff examples/datasets/wordnet/base examples/datasets/wordnet/derivative --report words.html --limit 0
  sparse dataset-diff org/words ./words-edited --splits train --json
  sparse dataset-diff rebuilt original --fail-on changed,added,removed,schema     # exit code 3 unless they are the same

Rows are counted from 0. Values are written as JSON, so that nothing is lost: null and \"\" differ, as do 0.0 and -0.0; binary is
x'00ff', a NaN that is not the usual one has its bits, NaN(0x7ff8000000000001). Without a key, rows are matched by their content.")]
pub(crate) struct DatasetDiff {
    /// The base dataset
    pub(crate) base: String,
    /// The derivative dataset
    pub(crate) derivative: String,
    /// The columns that identify a row [default: rows are matched by their content]
    #[arg(long, value_delimiter = ',', value_name = "COLUMN")]
    pub(crate) key: Vec<String>,
    /// The splits to compare [default: all]
    #[arg(long, value_delimiter = ',', value_name = "SPLIT")]
    pub(crate) splits: Vec<String>,
    /// Memory to use, about; what is larger goes to temporary files: bytes, or with a unit (512MB, 2GiB)
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub(crate) memory: Bytes,
    /// Differences printed; with --json, all unless this is given
    #[arg(long, value_name = "ROWS")]
    pub(crate) limit: Option<usize>,
    /// Write a report to this file: .html for people, .json for programs
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Exit with code 3 if there is a difference of this kind
    #[arg(long, value_enum, value_delimiter = ',', value_name = "OP")]
    pub(crate) fail_on: Vec<FailOnRows>,
}

/// A number of bytes, as it is written: `1048576`, `512MB`, `1.5GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

impl std::str::FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        sparse_operators::config::parse_bytes(text).map(Self)
    }
}

/// A difference that `dataset-diff` may fail on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailOnRows {
    /// Another value
    Changed,
    /// A row that the base has not
    Added,
    /// A row that the derivative has not
    Removed,
    /// Other columns, types, metadata or splits
    Schema,
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
