//! The arguments of the commands of low-rank approximations.

use clap::{Args, ValueEnum};
use sparse_delta::{Precision, Profile};

/// `sparse svd-compress`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse svd-compress examples/models/base examples/models/sft -o sft-svd --rank 16
  sparse svd-compress org/base ./my-finetune -o my-svd --ranks 8,16,32 --precision int4
  sparse svd-compress org/base ./my-finetune -o my-svd --bytes 50e6 --profile vllm
  sparse svd-compress org/base ./my-finetune --energy 0.9 --dry-run --json

A GPU (--device) decomposes where there is one with cuBLAS (libcublas.so.12): as near to the difference as the CPU does, and not to
the same bits. The errors are measured on the CPU either way.")]
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
