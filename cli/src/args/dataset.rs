//! The arguments of the commands of datasets.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use sparse_codec::Effort;
use sparse_dataset::Restore;

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
    /// How hard to try: fast, default (new values are told by mixing, in splits of more than 262,144 rows only where they are
    /// few), or max (by mixing, however many: the smallest, at a megabyte or two of them a second, both ways)
    #[arg(long, default_value_t = Effort::Default)]
    pub(crate) effort: Effort,
    /// What comes back of Parquet files: rows, in files written anew; bytes, whatever it costs; auto: bytes where it costs little
    #[arg(long, value_name = "WHAT", default_value_t = Restore::Auto)]
    pub(crate) restore: Restore,
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
    /// Write files anew, with the same rows, even where they could come back byte for byte
    #[arg(long)]
    pub(crate) rows_only: bool,
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
