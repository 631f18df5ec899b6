//! The order of stages: who makes the tables that another reads, who writes the paths that another reads, who is needed.

use std::collections::{BTreeMap, BTreeSet};

use crate::analysis::{Analysis, analyse};
use crate::spec::yaml::closest;
use crate::spec::{Pipeline, SpecError};
use crate::state::TABLES as STATE_TABLES;

/// A pipeline's stages with their dependencies.
#[derive(Debug)]
pub struct Graph {
    /// By stage.
    pub(crate) analyses: BTreeMap<String, Analysis>,
    /// By stage: the stages before it, with why.
    pub(crate) before: BTreeMap<String, BTreeMap<String, String>>,
    /// By table: the stage that makes it.
    pub(crate) makers: BTreeMap<String, String>,
    /// Every stage after all it needs; as written where that leaves a choice.
    pub(crate) order: Vec<String>,
}

impl Graph {
    /// Analyses every stage and finds the order.
    pub fn new(pipeline: &Pipeline) -> Result<Self, SpecError> {
        let mut analyses = BTreeMap::new();
        for stage in &pipeline.stages {
            analyses.insert(stage.name.clone(), analyse(pipeline, stage)?);
        }
        let mut makers: BTreeMap<String, String> = BTreeMap::new();
        for stage in &pipeline.stages {
            for table in &analyses[&stage.name].makes {
                if STATE_TABLES.contains(&table.as_str()) {
                    return Err(wrong(
                        pipeline,
                        &stage.name,
                        format!("it makes {table}, which is a table of the history"),
                        "choose another name",
                    ));
                }
                if let Some(other) = makers.insert(table.clone(), stage.name.clone()) {
                    return Err(wrong(
                        pipeline,
                        &stage.name,
                        format!("it makes table {table}, as stage {other:?} does"),
                        "give one of them another name",
                    ));
                }
            }
        }
        let mut before = BTreeMap::new();
        for (at, stage) in pipeline.stages.iter().enumerate() {
            before.insert(
                stage.name.clone(),
                needed(pipeline, at, &analyses, &makers)?,
            );
        }
        let order = sort(pipeline, &before)?;
        Ok(Self {
            analyses,
            before,
            makers,
            order,
        })
    }

    /// The names of the stages, each after all it needs.
    #[must_use]
    pub fn order(&self) -> &[String] {
        &self.order
    }

    /// All stages before `stage`, near and far.
    pub(crate) fn ancestors(&self, stage: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut next = vec![stage.to_owned()];
        while let Some(stage) = next.pop() {
            for name in self.before.get(&stage).into_iter().flat_map(BTreeMap::keys) {
                if found.insert(name.clone()) {
                    next.push(name.clone());
                }
            }
        }
        found
    }
}

fn wrong(
    pipeline: &Pipeline,
    stage: &str,
    problem: String,
    remedy: impl Into<String>,
) -> SpecError {
    let line = pipeline.stage(stage).map_or(0, |stage| stage.line);
    SpecError::new(
        &pipeline.file,
        line,
        &format!("stage {stage:?}"),
        problem,
        remedy,
    )
}

fn needed(
    pipeline: &Pipeline,
    at: usize,
    analyses: &BTreeMap<String, Analysis>,
    makers: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, SpecError> {
    let stage = &pipeline.stages[at];
    let own = &analyses[&stage.name];
    let mut before = BTreeMap::new();
    for name in &stage.needs {
        if pipeline.stage(name).is_none() {
            let remedy = match closest(name, pipeline.stages.iter().map(|s| s.name.as_str())) {
                Some(near) => format!("did you mean {near}?"),
                None => "name a stage of this pipeline".to_owned(),
            };
            return Err(wrong(
                pipeline,
                &stage.name,
                format!("needs: there is no stage {name}"),
                remedy,
            ));
        }
        before.insert(name.clone(), "needs".to_owned());
    }
    for table in own
        .reads
        .iter()
        .chain(&own.item_reads)
        .chain(&own.check_reads)
    {
        match makers.get(table) {
            Some(maker) if *maker == stage.name => {}
            Some(maker) => {
                before.insert(maker.clone(), format!("reads {table}"));
            }
            None if STATE_TABLES.contains(&table.as_str()) => {}
            None => {
                let remedy = match closest(table, makers.keys().map(String::as_str)) {
                    Some(near) => format!("did you mean {near}?"),
                    None => "a file is read as FROM 'path.parquet', and a stage's rows go by the stage's name".to_owned(),
                };
                return Err(wrong(
                    pipeline,
                    &stage.name,
                    format!("it reads table {table}, which no stage makes"),
                    remedy,
                ));
            }
        }
    }
    for earlier in &pipeline.stages[..at] {
        let wrote = analyses[&earlier.name].outputs.iter().find(|output| {
            own.inputs.iter().any(|input| {
                let (a, b) = (output.prefix(), input.prefix());
                !a.is_empty() && !b.is_empty() && (a.starts_with(b) || b.starts_with(a))
            })
        });
        if let Some(output) = wrote {
            before
                .entry(earlier.name.clone())
                .or_insert_with(|| format!("reads what it writes below {}", output.shown()));
        }
    }
    before.remove(&stage.name);
    Ok(before)
}

fn sort(
    pipeline: &Pipeline,
    before: &BTreeMap<String, BTreeMap<String, String>>,
) -> Result<Vec<String>, SpecError> {
    let mut order: Vec<String> = Vec::new();
    while order.len() < pipeline.stages.len() {
        let next = pipeline.stages.iter().find(|stage| {
            !order.contains(&stage.name)
                && before[&stage.name].keys().all(|name| order.contains(name))
        });
        let Some(next) = next else {
            let left: Vec<&str> = pipeline
                .stages
                .iter()
                .map(|stage| stage.name.as_str())
                .filter(|name| !order.iter().any(|done| done == name))
                .collect();
            return Err(SpecError::new(
                &pipeline.file,
                pipeline.stage(left[0]).map_or(0, |stage| stage.line),
                "",
                format!("these stages wait for each other: {}", left.join(", ")),
                "break the circle: look at their `needs` and the tables they read",
            ));
        };
        order.push(next.name.clone());
    }
    Ok(order)
}
