//! Ctrl-C and SIGTERM: the first asks to stop, which leaves nothing half-done; the second ends the process at once, which
//! leaves nothing half-done either, but may leave a temporary file for the next run to remove.

use std::sync::{Arc, Mutex, PoisonError};

use sparse_delta::CancelToken;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;

/// The exit code of an interrupted command.
const INTERRUPTED: i32 = 130;

/// The wish to stop what is being done.
#[derive(Clone)]
pub(crate) struct Interrupt(Arc<Mutex<CancelToken>>);

impl Interrupt {
    /// Starts to listen.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let this = Self(Arc::default());
        let listened = |kind| {
            signal(kind)
                .map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")))
        };
        let mut interrupts = listened(SignalKind::interrupt())?;
        let mut terminations = listened(SignalKind::terminate())?;
        let listener = this.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupts.recv() => {}
                    _ = terminations.recv() => {}
                }
                let token = listener.token();
                if token.is_cancelled() {
                    std::process::exit(INTERRUPTED);
                }
                token.cancel();
            }
        });
        Ok(this)
    }

    /// Set when the user asks to stop.
    pub(crate) fn token(&self) -> CancelToken {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A new wish, for the next statement of a shell.
    pub(crate) fn renew(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = CancelToken::default();
    }
}
