//! Progress bars, on standard error, only where that is a terminal.

use std::io::IsTerminal as _;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Units of a whole bar.
const WHOLE: u64 = 10_000;

/// A bar that follows `(message, fraction)`.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new(quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let target = if shown {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(WHOLE), target);
        if let Ok(style) =
            ProgressStyle::with_template("{bar:24} {percent:>3} %  {msg}  {eta} left")
        {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// What operations are given.
    pub(crate) fn callback(&self) -> sparse_delta::Progress {
        let bar = self.0.clone();
        Arc::new(move |message, fraction| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a fraction between 0 and 1"
            )]
            let position = (fraction.clamp(0.0, 1.0) * WHOLE as f64) as u64;
            // A new phase begins: its time left is not that of the one before.
            if position < bar.position() {
                bar.reset_eta();
            }
            bar.set_message(message.to_owned());
            bar.set_position(position);
        })
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
