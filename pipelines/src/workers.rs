//! Threads for statements, apart from those that watch them: a statement may compute for long between two awaits, and then keeps
//! every timer and signal of its own threads waiting.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::{JoinError, JoinHandle};

static WORKERS: Mutex<Option<Runtime>> = Mutex::new(None);

fn handle() -> Handle {
    let mut workers = WORKERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = &*workers {
        return runtime.handle().clone();
    }
    let built = Builder::new_multi_thread()
        .thread_name("sparse-statement")
        .enable_all()
        .build();
    match built {
        Ok(runtime) => workers.insert(runtime).handle().clone(),
        Err(error) => {
            tracing::warn!(%error, "no threads of their own for statements");
            Handle::current()
        }
    }
}

/// Ends the threads on which statements run, as a program does before it exits: what was told to stop has `timeout` to remove
/// what it had begun. Statements that run later get new threads.
pub fn shutdown(timeout: Duration) {
    let workers = WORKERS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(runtime) = workers {
        runtime.shutdown_timeout(timeout);
    }
}

/// Work on those threads, told to stop when this is dropped.
pub(crate) struct Task<T>(JoinHandle<T>);

/// Begins work on those threads.
pub(crate) fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Task<T> {
    Task(handle().spawn(work))
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
