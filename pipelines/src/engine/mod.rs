//! Runs a pipeline: stages as their predecessors are done, items as tokens are free, each try recorded.

mod backoff;
mod checks;
mod events;
mod explain;
mod item;
mod plan;
mod run;
mod stage;
mod tables;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use events::{Event, Observer};

use crate::examine::{ExamineError, Examined, Examiner, Ready, Sessions};
use crate::graph::Graph;
use crate::spec::{Pipeline, SpecError, StageSpec};
use crate::state::{Asked, State, StateError};

/// Why a run could not be done, or a plan not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The pipeline is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The history.
    #[error(transparent)]
    State(#[from] StateError),
    /// A stage could not be looked at.
    #[error("stage {stage:?}: {source}")]
    Examine {
        /// The stage.
        stage: String,
        /// Why.
        source: Box<ExamineError>,
    },
    /// Another process runs it.
    #[error("another run of pipeline {pipeline:?} is under way; wait for its end, or stop it")]
    Busy {
        /// The pipeline.
        pipeline: String,
    },
    /// Something that was named is not there.
    #[error("{0}")]
    Unknown(String),
}

/// What is run although nothing changed.
#[derive(Clone, Debug, Default)]
pub struct Force {
    /// Stages; with no items named, all of theirs.
    pub stages: Vec<String>,
    /// Items of those stages.
    pub items: Vec<String>,
    /// Every stage.
    pub all: bool,
}

impl Force {
    fn hits(&self, stage: &str, item: &str) -> bool {
        self.all
            || (self.stages.iter().any(|name| name == stage)
                && (self.items.is_empty() || self.items.iter().any(|name| name == item)))
    }
}

/// A pipeline with all that running it needs.
#[derive(Clone)]
pub struct Engine {
    pipeline: Arc<Pipeline>,
    graph: Arc<Graph>,
    state: Arc<State>,
    sessions: Sessions,
    observer: Observer,
    stop: Arc<dyn Fn() -> bool + Send + Sync>,
    force: Force,
    trigger: String,
    scheduled_ms: Option<i64>,
    asked: Option<Asked>,
}

impl Engine {
    /// Checks the pipeline: its SQL, its tables, its order.
    pub fn new(
        pipeline: Pipeline,
        state: Arc<State>,
        sessions: Sessions,
    ) -> Result<Self, SpecError> {
        let graph = Graph::new(&pipeline)?;
        Ok(Self {
            pipeline: Arc::new(pipeline),
            graph: Arc::new(graph),
            state,
            sessions,
            observer: Arc::new(|_| {}),
            stop: Arc::new(|| false),
            force: Force::default(),
            trigger: "manual".to_owned(),
            scheduled_ms: None,
            asked: None,
        })
    }

    /// Tells `observer` what happens.
    #[must_use]
    pub fn observe(mut self, observer: Observer) -> Self {
        self.observer = observer;
        self
    }

    /// Asked some fifty times a second: once it says `true`, running statements are stopped and nothing new begins.
    #[must_use]
    pub fn stop_when(mut self, stop: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.stop = Arc::new(stop);
        self
    }

    /// Runs these although nothing changed.
    #[must_use]
    pub fn force(mut self, force: Force) -> Self {
        self.force = force;
        self
    }

    /// Who asked for the run, and the time it was scheduled for.
    #[must_use]
    pub fn trigger(mut self, trigger: &str, scheduled_ms: Option<i64>) -> Self {
        trigger.clone_into(&mut self.trigger);
        self.scheduled_ms = scheduled_ms;
        self
    }

    /// What the daemon's queue knows the run by: once it ended, unless it was stopped, it is asked for no longer.
    #[must_use]
    pub(crate) fn asked(mut self, asked: Asked) -> Self {
        self.asked = Some(asked);
        self
    }

    /// The pipeline.
    #[must_use]
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// The names of its stages in order, with those before each and why.
    #[must_use]
    pub fn order(&self) -> Vec<(String, BTreeMap<String, String>)> {
        let before = |stage: &String| self.graph.before.get(stage).cloned().unwrap_or_default();
        self.graph
            .order
            .iter()
            .map(|stage| (stage.clone(), before(stage)))
            .collect()
    }

    /// The stage of this name, or the names there are.
    fn stage(&self, name: &str) -> Result<&StageSpec, EngineError> {
        self.pipeline.stage(name).ok_or_else(|| {
            let names: Vec<&str> = self
                .pipeline
                .stages
                .iter()
                .map(|s| s.name.as_str())
                .collect();
            EngineError::Unknown(format!(
                "pipeline {:?} has no stage {name:?}; it has {}",
                self.pipeline.name,
                names.join(", ")
            ))
        })
    }

    fn check_force(&self) -> Result<(), EngineError> {
        for stage in &self.force.stages {
            self.stage(stage)?;
        }
        Ok(())
    }

    fn examiner(&self) -> Examiner<'_> {
        Examiner::new(&self.pipeline, &self.graph, &self.state, &self.sessions)
    }

    fn apply_force(&self, stage: &str, examined: &mut Examined) -> Result<(), EngineError> {
        if self.force.stages.iter().any(|name| name == stage) {
            let there = |name: &&String| examined.items.iter().any(|item| item.name == **name);
            if let Some(name) = self.force.items.iter().find(|name| !there(name)) {
                return Err(EngineError::Unknown(format!(
                    "stage {stage:?} has no item {name:?}; `sparse pipeline plan` shows its query, \
                     and sparse_items the items there were"
                )));
            }
        }
        for item in &mut examined.items {
            if self.force.hits(stage, &item.name) {
                item.why = Some("it was asked for".to_owned());
            }
        }
        Ok(())
    }

    /// What an up-to-date stage gives to later ones.
    fn ready(&self, examined: &Examined) -> Ready {
        let outcomes = examined
            .items
            .iter()
            .filter_map(|item| item.outcome.as_ref());
        Ready::new(&self.state, &examined.key, outcomes)
    }
}
