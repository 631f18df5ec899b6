//! What a run would do, and why.

use std::collections::BTreeMap;

use super::{Engine, EngineError};
use crate::examine::{AllReady, Examined, Item};
use crate::spec::StageSpec;
use crate::summary::{ItemPlan, Plan, StagePlan};

/// How many items a plan names.
const EXAMPLES: usize = 5;

impl Engine {
    /// What a run would do, and why. Nothing is run but the queries of for_each.
    pub async fn plan(&self) -> Result<Plan, EngineError> {
        self.check_force()?;
        let mut examiner = self.examiner();
        let mut ready = AllReady::new();
        let mut plans = Vec::new();
        for (name, after) in self.order() {
            let Some(stage) = self.pipeline.stage(&name) else {
                continue;
            };
            let waits: Vec<&str> = after
                .keys()
                .map(String::as_str)
                .filter(|before| !ready.contains_key(*before))
                .collect();
            if !waits.is_empty() {
                let reason = format!("it depends on what {} makes", waits.join(", "));
                plans.push(StagePlan {
                    stage: name,
                    action: "maybe",
                    reason,
                    after,
                    items: None,
                    to_run: None,
                    examples: Vec::new(),
                    input_bytes: None,
                    output_bytes: None,
                });
                continue;
            }
            let mut examined =
                examiner
                    .examine(stage, &ready)
                    .await
                    .map_err(|source| EngineError::Examine {
                        stage: name.clone(),
                        source: Box::new(source),
                    })?;
            self.apply_force(&name, &mut examined)?;
            let to_run = examined.to_run();
            if to_run == 0 && examined.whole {
                ready.insert(name.clone(), self.ready(&examined));
            }
            plans.push(self.stage_plan(stage, after, &examined)?);
        }
        Ok(Plan {
            pipeline: self.pipeline.name.clone(),
            stages: plans,
        })
    }

    fn stage_plan(
        &self,
        stage: &StageSpec,
        after: BTreeMap<String, String>,
        examined: &Examined,
    ) -> Result<StagePlan, EngineError> {
        let due: Vec<&Item> = examined
            .items
            .iter()
            .filter(|item| item.why.is_some())
            .collect();
        let input: u64 = due.iter().map(|item| item.input_bytes).sum();
        let share = self.state.past_share(&self.pipeline.name, &stage.name)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "an estimate"
        )]
        let output = share.map(|share| (input as f64 * share) as u64);
        Ok(StagePlan {
            stage: stage.name.clone(),
            action: match (due.is_empty(), examined.whole) {
                (true, true) => "skip",
                _ => "run",
            },
            reason: reason(stage, examined),
            after,
            items: Some(examined.items.len() as u64),
            to_run: Some(due.len() as u64),
            examples: due
                .iter()
                .filter(|item| !item.name.is_empty())
                .take(EXAMPLES)
                .map(|item| ItemPlan {
                    item: item.name.clone(),
                    reason: item.why.clone().unwrap_or_default(),
                })
                .collect(),
            input_bytes: Some(input),
            output_bytes: output.filter(|_| !due.is_empty()),
        })
    }
}

/// Why a stage runs, or does not.
pub(super) fn reason(stage: &StageSpec, examined: &Examined) -> String {
    let due: Vec<&Item> = examined
        .items
        .iter()
        .filter(|item| item.why.is_some())
        .collect();
    match (due.as_slice(), stage.for_each.is_some()) {
        ([], _) if !examined.whole && stage.checks.is_empty() => {
            "its items are done, it is not recorded yet".to_owned()
        }
        ([], _) if !examined.whole => "its checks are due".to_owned(),
        ([], true) => format!("all {} items are up to date", examined.items.len()),
        ([], false) => "nothing changed".to_owned(),
        ([only], false) => only.why.clone().unwrap_or_default(),
        ([first, ..], _) => format!(
            "{} of {} items: {}: {}{}",
            due.len(),
            examined.items.len(),
            first.name,
            first.why.as_deref().unwrap_or_default(),
            if due.len() > 1 { ", ..." } else { "" }
        ),
    }
}
