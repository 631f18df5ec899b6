//! A SQL script as ordered stages: one statement each, run one after another in one session, timed and reported.
//!
//! ```no_run
//! # async fn example(context: datafusion::prelude::SessionContext) -> Result<(), Box<dyn std::error::Error>> {
//! use sparse_pipelines::{Discard, Params, Runner, Script};
//!
//! let params = Params::parse(["model=./ft"])?;
//! let script = Script::parse("-- name: count\nSELECT count(*) FROM sparse_tensors($model);", &params)?;
//! let report = Runner::new(&context).run(&script, &mut Discard).await?;
//! println!("{}", report.to_json());
//! # Ok(())
//! # }
//! ```
//!
//! The whole script is split, bound and checked for syntax before its first statement runs. Parameters become literal
//! tokens of the parsed statement, never pieces of its text: no value can change what a statement does.

mod analysis;
mod attempt;
mod engine;
mod error;
mod examine;
mod fingerprint;
mod graph;
mod lineage;
pub mod metrics;
mod notify;
mod params;
mod report;
mod run;
mod schedule;
mod script;
pub mod serve;
pub mod spec;
mod split;
pub mod state;
pub mod summary;
mod workers;

pub use engine::{Engine, EngineError, Event, Force, Observer};
pub use error::PipelineError;
pub use examine::{ExamineError, Sessions};
pub use graph::Graph;
pub use params::{ParamValue, Params};
pub use report::{RunReport, RunStatus, StageError, StageReport, StageStatus};
pub use run::{Discard, Runner, Sink};
pub use script::{Script, Stage};
pub use spec::{Pipeline, SpecError};
pub use split::{Input, input_state};
pub use state::State;
pub use workers::shutdown;
