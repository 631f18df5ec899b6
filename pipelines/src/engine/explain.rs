//! All that a stage's key is made of, and what is recorded of it.

use std::collections::BTreeSet;

use super::{Engine, EngineError};
use crate::analysis::Template;
use crate::state::stored;

impl Engine {
    /// Why a stage, or one of its items, would run or not, with all that its key is made of.
    pub async fn explain(
        &self,
        stage: &str,
        item: Option<&str>,
    ) -> Result<serde_json::Value, EngineError> {
        let spec = self.stage(stage)?;
        let plan = self.plan().await?;
        let own = plan.stages.into_iter().find(|plan| plan.stage == stage);
        let mut document = serde_json::json!({
            "pipeline": self.pipeline.name,
            "stage": stage,
            "sql": self.pipeline.redact(&spec.sql),
            "plan": own,
        });
        let analysis = self.graph.analyses.get(stage);
        if let (Some(analysis), Some(map)) = (analysis, document.as_object_mut()) {
            let shown = |templates: &BTreeSet<Template>| {
                templates.iter().map(Template::shown).collect::<Vec<_>>()
            };
            map.insert("reads_tables".into(), serde_json::json!(analysis.reads));
            map.insert("makes_tables".into(), serde_json::json!(analysis.makes));
            map.insert("reads".into(), serde_json::json!(shown(&analysis.inputs)));
            map.insert("writes".into(), serde_json::json!(shown(&analysis.outputs)));
            let recorded = self.state.done(&self.pipeline.name, stage)?;
            let parts = recorded
                .get(&stored(item.unwrap_or_default()))
                .and_then(|done| serde_json::from_str::<serde_json::Value>(&done.parts).ok());
            map.insert("recorded".into(), serde_json::json!(parts));
            let attempts =
                self.state
                    .attempts(&self.pipeline.name, stage, item.unwrap_or_default(), 10)?;
            map.insert("attempts".into(), serde_json::json!(attempts));
        }
        Ok(document)
    }
}
