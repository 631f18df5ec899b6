//! Language models run in process, to judge lossy deltas by behaviour.
//!
//! [`Validate`] measures what INT8, or a delta artifact of any kind, makes of a fine-tune: layer by layer, and by running both
//! models on prompts. Tensors are produced when a layer needs them ([`Weights`]), so that of either model one layer is in
//! memory at a time. [`logits`] runs one model.

mod behaviour;
mod candidate;
mod config;
mod decoder;
mod error;
mod gpt2;
mod layers;
mod llama;
mod prompts;
mod run;
mod tokens;
mod validate;
mod weights;

pub use behaviour::{Behaviour, DeltaP, Divergence, Measured};
pub use candidate::Candidate;
pub use error::InferenceError;
pub use layers::{LayerMetrics, Sample};
pub use prompts::DEFAULT_PROMPTS;
pub use run::{Logits, logits};
pub use validate::{PromptMetrics, Validate, Validation};
pub use weights::Weights;
