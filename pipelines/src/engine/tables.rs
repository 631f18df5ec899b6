//! The files of the tables that stages make, below the state's folder.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::run::Run;
use crate::state::{Outcome, StateError};

impl Run {
    /// Below the state's folder.
    pub(super) fn tables_of(&self, stage: &str) -> PathBuf {
        PathBuf::from("tables")
            .join(&self.engine.pipeline.name)
            .join(stage)
    }

    pub(super) fn remove_tables(&self, stage: &str, id: i64) {
        let folder = self
            .engine
            .state
            .dir()
            .join(self.tables_of(stage))
            .join(id.to_string());
        let _ = std::fs::remove_dir_all(folder);
    }

    /// Removes tables that nothing recorded names: of tries before, and of those that were killed.
    pub(super) fn sweep(&self, stage: &str) -> Result<(), StateError> {
        let below = self.tables_of(stage);
        let kept: HashSet<String> = self
            .engine
            .state
            .done(&self.engine.pipeline.name, stage)?
            .values()
            .filter_map(|done| serde_json::from_str::<Outcome>(&done.result).ok())
            .flat_map(|outcome| outcome.tables)
            .filter_map(|table| {
                let below = Path::new(&table.file).strip_prefix(&below).ok()?;
                Some(
                    below
                        .components()
                        .next()?
                        .as_os_str()
                        .to_string_lossy()
                        .into_owned(),
                )
            })
            .collect();
        let entries = std::fs::read_dir(self.engine.state.dir().join(&below));
        for entry in entries.into_iter().flatten().flatten() {
            if !kept.contains(entry.file_name().to_string_lossy().as_ref()) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }
}
