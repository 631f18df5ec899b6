//! SQL over models: table functions, their plan nodes, the SAFETENSORS file format and the session that has them all.
//!
//! [`session`] is a DataFusion session with everything registered. A function is described once (its [`Spec`](spec::Spec)):
//! arguments are checked, schemas built and `docs/sql.md` generated from that. The functions hold no arithmetic: they hand
//! references to the operations of `sparse-delta` and `sparse-store`.

mod call;
mod columns;
pub mod config;
pub mod docs;
pub mod error;
mod exec;
mod format;
pub mod function;
pub mod functions;
mod planner;
mod provider;
mod rows;
mod session;
pub mod spec;
mod tensors;

pub use config::SparseConfig;
pub use format::SafetensorsFormatFactory;
pub use planner::SparsePlanner;
pub use session::{register, session, session_with};
