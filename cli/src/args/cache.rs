//! The arguments of `sparse cache`.

use clap::{Args, Subcommand};

/// `sparse cache`.
#[derive(Args, Debug)]
pub(crate) struct Cache {
    #[command(subcommand)]
    pub(crate) command: CacheCommand,
    /// The most gigabytes (10^9 bytes) of models the cache may hold
    #[arg(
        long,
        global = true,
        value_name = "GB",
        env = "SPARSE_CACHE_SIZE_GB",
        default_value_t = 100.0
    )]
    pub(crate) max_size_gb: f64,
    /// How many jobs run at once
    #[arg(long, global = true, value_name = "N", default_value_t = 2)]
    pub(crate) max_workers: usize,
}

/// One per command below `sparse cache`.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Print the path of a model, rebuilt from its delta if it is not there
    GetOrReconstruct(GetOrReconstruct),
    /// Print a path to load: of a full model, or of a delta's rebuilt one
    Resolve(Resolve),
    /// Rebuild models in the background
    Prefetch(Prefetch),
    /// Show, run or cancel jobs
    Jobs(Jobs),
    /// Show the models in the cache, its counters and its size
    Stats(Stats),
    /// Evict the models that were not used for longest
    Gc(Gc),
    /// Keep a model from being evicted
    Pin(Pin),
    /// Let a model be evicted again
    Unpin(Pin),
    /// Check every byte of the models; damaged ones are set aside
    Verify(VerifyCache),
}

/// `sparse cache get-or-reconstruct`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse compress examples/models/base examples/models/sft -o sft-delta
  sparse cache get-or-reconstruct examples/models/base sft-delta
  sparse cache get-or-reconstruct org/base ./my-delta --background
  sparse cache get-or-reconstruct org/base ./my-delta -- python generate.py

After --, a command: it runs with the model's path in SPARSE_MODEL, and the model is not evicted before it ends.")]
pub(crate) struct GetOrReconstruct {
    /// The base model the delta was made against
    pub(crate) base: String,
    /// The delta: a folder, an object-store URL, or a key in the delta store. An adapter comes merged into its base, an
    /// approximation at its largest rank
    pub(crate) delta: String,
    /// Do not wait: queue a job and begin it in a process of its own
    #[arg(long, conflicts_with = "command")]
    pub(crate) background: bool,
    /// Keep the model from being evicted
    #[arg(long, conflicts_with = "background")]
    pub(crate) pin: bool,
    /// A command to run with the model
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// What to do with a reference that is, or holds, a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// Full weights where there are some, else the delta
    Auto,
    /// The delta where there is one, else full weights
    PreferDelta,
    /// Full weights only
    FullOnly,
}

/// `sparse cache resolve`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse cache resolve examples/models/sft
  sparse cache resolve sft-delta --base examples/models/base
  sparse cache resolve ./my-delta --delta-mode full_only      # exit code 2: it is a delta")]
pub(crate) struct Resolve {
    /// A model or a delta
    pub(crate) model: String,
    /// The base model of a delta. Default: the one the delta names
    #[arg(long)]
    pub(crate) base: Option<String>,
    /// Which of the two to take
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    pub(crate) delta_mode: Mode,
}

/// `sparse cache prefetch`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse cache prefetch examples/models/base sft-delta
  sparse cache prefetch org/base ./delta-1 ./delta-2 --background

Jobs outlive their process: `sparse cache jobs --run` takes up what was left. Exit code 3 if a job failed.")]
pub(crate) struct Prefetch {
    /// The base model the deltas were made against
    pub(crate) base: String,
    /// The deltas
    #[arg(required = true)]
    pub(crate) deltas: Vec<String>,
    /// Do not wait: run the jobs in a process of its own
    #[arg(long)]
    pub(crate) background: bool,
}

/// `sparse cache jobs`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse cache jobs
  sparse cache jobs --run
  sparse cache jobs --cancel 0123456789abcdef")]
pub(crate) struct Jobs {
    /// Show this job only
    pub(crate) id: Option<String>,
    /// Run what is queued, and what killed processes left, to its end
    #[arg(long, conflicts_with = "id")]
    pub(crate) run: bool,
    /// Cancel this job
    #[arg(long, value_name = "ID", conflicts_with_all = ["id", "run"])]
    pub(crate) cancel: Option<String>,
}

/// `sparse cache stats`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse cache stats
  sparse cache stats --json")]
pub(crate) struct Stats {}

/// `sparse cache gc`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse cache gc                     # down to nine tenths of the limit
  sparse cache gc --to-gb 20
  sparse cache gc --to-gb 0           # everything that is neither pinned nor in use")]
pub(crate) struct Gc {
    /// Evict until at most so many gigabytes are used. Default: nine tenths of the limit
    #[arg(long, value_name = "GB")]
    pub(crate) to_gb: Option<f64>,
}

/// `sparse cache pin` and `unpin`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse cache pin ./my-delta
  sparse cache unpin 0a1b2c3d")]
pub(crate) struct Pin {
    /// The model: its key or the beginning of it, its path, or its delta
    pub(crate) model: String,
}

/// `sparse cache verify`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse cache verify
  sparse cache verify ./my-delta

Exit code 3 if a model was damaged; the next request rebuilds it.")]
pub(crate) struct VerifyCache {
    /// The model: its key or the beginning of it, its path, or its delta. Default: all
    pub(crate) model: Option<String>,
}
