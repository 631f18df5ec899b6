//! Catalogs of models (folders, tables, the Hub and its local cache, MLflow's registry), and which model of a catalog a fine-tune
//! descends from.
//!
//! [`Catalog`] lists models with what they say of themselves: configuration, README, safetensors headers. [`FindBase`] finds the
//! base of a fine-tune that says nothing, by its weights: a few hundred kilobytes of samples of each model, whatever its size.

mod card;
mod catalog;
mod directory;
mod distance;
mod entry;
mod error;
mod family;
mod find;
mod hub;
mod local;
mod mlflow;
mod sample;
mod table;
mod weights;

pub use catalog::{Catalog, ListOptions};
pub use entry::{DeclaredIn, ModelEntry, Source};
pub use error::CatalogError;
pub use find::{BaseFound, CandidateScore, FindBase, Outcome};
