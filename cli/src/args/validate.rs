//! The arguments of the commands that judge what a delta makes of a fine-tune.

use std::path::PathBuf;

use clap::Args;
use sparse_codec::Granularity;
use sparse_inference::Sample;

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
