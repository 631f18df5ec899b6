//! The arguments of the commands of lossless deltas: making, rebuilding, looking at and checking them.

use clap::{Args, ValueEnum};
use sparse_codec::{Effort, Granularity};
use sparse_delta::MergeRule;

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
    /// full fine-tunes too, at some megabytes a second; where few weights changed smaller still, but tens of megabytes a
    /// second to reconstruct)
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
