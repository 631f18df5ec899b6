//! The arguments of `sparse catalog`.

use clap::{Args, Subcommand};

/// `sparse catalog`.
#[derive(Args, Debug)]
pub(crate) struct Catalog {
    #[command(subcommand)]
    pub(crate) command: CatalogCommand,
}

/// One per command below `sparse catalog`.
#[derive(Debug, Subcommand)]
pub(crate) enum CatalogCommand {
    /// List the models of a catalog and what they say of themselves
    List(CatalogList),
    /// Find the base a fine-tune descends from, by its weights
    FindBase(FindBase),
}

/// `sparse catalog list`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse catalog list examples/models
  sparse catalog list hf-cache --json
  sparse catalog list 'hub:org/base?relation=finetune&limit=50'
  sparse catalog list mlflow:http://localhost:5000")]
pub(crate) struct CatalogList {
    /// A folder, which is looked through for models; a table (.parquet, .csv, .jsonl) with a column model and perhaps base and
    /// relation; hf-cache, the Hub's local cache (hf-cache:FOLDER for another); hub:ORG/BASE, what the Hub lists as descending from a
    /// base, or hub:ORG, all of an owner; mlflow:URL, MLflow's model registry
    pub(crate) catalog: String,
}

/// `sparse catalog find-base`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sparse catalog find-base examples/models/sft examples/models
  sparse catalog find-base examples/models/lora-merged examples/models --candidates
  sparse catalog find-base ./my-finetune hf-cache --json

Exit code 3 if the catalog holds no base of the model.")]
pub(crate) struct FindBase {
    /// The fine-tune: a path, or a Hub id
    pub(crate) model: String,
    /// Where to look, as in `sparse catalog list`; only models whose weights are on this machine are compared
    pub(crate) catalog: String,
    /// Show every model of the catalog with its score
    #[arg(long)]
    pub(crate) candidates: bool,
}
