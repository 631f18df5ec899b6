//! Threads for statements, apart from those that watch them: a statement may compute for long between two awaits, and then keeps
//! every timer and signal of its own threads waiting.

use std::sync::LazyLock;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::{JoinError, JoinHandle};

/// Never shut down: what does not stop when it is told to ends with the process.
static WORKERS: LazyLock<Option<Runtime>> = LazyLock::new(|| {
    let runtime = Builder::new_multi_thread()
        .thread_name("sparse-statement")
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => Some(runtime),
        Err(error) => {
            tracing::warn!(%error, "no threads of their own for statements");
            None
        }
    }
});

/// Work on those threads, told to stop when this is dropped.
pub(crate) struct Task<T>(JoinHandle<T>);

/// Begins work on those threads.
pub(crate) fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Task<T> {
    let handle = WORKERS
        .as_ref()
        .map_or_else(Handle::current, |runtime| runtime.handle().clone());
    Task(handle.spawn(work))
}

impl<T> Task<T> {
    /// Waits for the work. A panic in it goes on here.
    pub(crate) async fn join(mut self) -> Result<T, JoinError> {
        match (&mut self.0).await {
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            ended => ended,
        }
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
