//! What happens in a run, told to whoever watches.

use std::sync::Arc;
use std::time::Duration;

use crate::summary::{CheckReport, RunSummary, StageSummary};

/// What happens in a run, for whoever watches.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run begins.
    RunBegins {
        /// Its id.
        run: &'a str,
    },
    /// A stage begins to run.
    StageBegins {
        /// The stage.
        stage: &'a str,
        /// Its items to be run.
        to_run: u64,
        /// Why.
        reason: &'a str,
    },
    /// A try of an item begins.
    ItemBegins {
        /// The stage.
        stage: &'a str,
        /// The item; empty for a stage without for_each.
        item: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// A try of an item ended.
    ItemEnds {
        /// The stage.
        stage: &'a str,
        /// The item.
        item: &'a str,
        /// Why it failed.
        error: Option<&'a str>,
        /// Before the next try.
        retry_in: Option<Duration>,
    },
    /// A check ended.
    Checked(&'a CheckReport),
    /// A stage ended, or was passed over.
    StageEnds(&'a StageSummary),
    /// The run ended.
    RunEnds(&'a RunSummary),
}

/// Called from many threads; must not block.
pub type Observer = Arc<dyn Fn(&Event<'_>) + Send + Sync>;
