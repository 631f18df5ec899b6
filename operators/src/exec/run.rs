//! What one execution of a writing statement has staged: handles stay here, their tokens travel as rows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::function::Staged;

/// The staged work of one execution. The commit node makes it and hands it to the write nodes below in the task context;
/// when the execution is dropped, what was not committed goes with it.
#[derive(Default)]
pub(crate) struct Run {
    handles: Mutex<Handles>,
}

#[derive(Default)]
struct Handles {
    last_token: u64,
    staged: HashMap<u64, Box<dyn Staged>>,
}

impl Run {
    /// Keeps staged work, and returns its token.
    pub(crate) fn put(&self, staged: Box<dyn Staged>) -> u64 {
        let mut state = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        state.last_token += 1;
        let token = state.last_token;
        state.staged.insert(token, staged);
        token
    }

    /// Takes staged work back, once.
    pub(crate) fn take(&self, token: u64) -> Option<Box<dyn Staged>> {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        handles.staged.remove(&token)
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").finish_non_exhaustive()
    }
}

/// The run a task belongs to.
pub(crate) fn of(context: &datafusion::execution::TaskContext) -> Option<Arc<Run>> {
    context.session_config().get_extension::<Run>()
}
