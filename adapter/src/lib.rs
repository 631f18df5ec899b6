//! LoRA adapters as PEFT (Hugging Face) stores them: a folder with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! [`PeftAdapter::open`] checks one; [`PeftAdapter::prediction`] gives the update of one tensor to the codec, by the rule with
//! which PEFT merges on a CPU. [`write()`] writes one that PEFT loads.

mod config;
mod error;
mod layout;
mod peft;
mod writer;

pub use config::AdapterConfig;
pub use error::AdapterError;
pub use layout::Layout;
pub use peft::{CONFIG, Module, PeftAdapter, WEIGHTS};
pub use writer::{FILES, FactorType, Learned, write, write_as};
