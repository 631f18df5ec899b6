//! Progress bars, on standard error, only where that is a terminal.

use std::io::IsTerminal as _;
use std::sync::Arc;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use sparse_pipelines::{Event, Observer};

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

/// One line per stage that is under way.
pub(crate) struct Stages {
    all: MultiProgress,
    shown: bool,
}

impl Stages {
    pub(crate) fn new(quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let target = if shown {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            all: MultiProgress::with_draw_target(target),
            shown,
        }
    }

    /// What a run is given.
    pub(crate) fn observer(&self) -> Observer {
        if !self.shown {
            return Arc::new(|_| {});
        }
        let all = self.all.clone();
        let bars: Mutex<HashMap<String, ProgressBar>> = Mutex::default();
        Arc::new(move |event| {
            let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                Event::StageBegins { stage, to_run, .. } => {
                    let bar = all.add(ProgressBar::new(*to_run));
                    let style = "{spinner} {prefix:<20} {pos}/{len}  {elapsed}  {wide_msg}";
                    if let Ok(style) = ProgressStyle::with_template(style) {
                        bar.set_style(style);
                    }
                    bar.set_prefix((*stage).to_owned());
                    bar.enable_steady_tick(Duration::from_millis(200));
                    bars.insert((*stage).to_owned(), bar);
                }
                Event::ItemBegins { stage, item, .. } => {
                    if let Some(bar) = bars.get(*stage) {
                        bar.set_message((*item).to_owned());
                    }
                }
                Event::ItemEnds {
                    stage,
                    error,
                    retry_in,
                    ..
                } => {
                    if let Some(bar) = bars.get(*stage) {
                        if retry_in.is_none() {
                            bar.inc(1);
                        }
                        if let Some(error) = error {
                            bar.set_message((*error).to_owned());
                        }
                    }
                }
                Event::StageEnds(summary) => {
                    if let Some(bar) = bars.remove(&summary.stage) {
                        bar.finish_and_clear();
                    }
                }
                _ => {}
            }
        })
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        let _ = self.all.clear();
    }
}
