//! What commands share: the global options, the wish to stop, how models are opened.

use sparse_delta::CancelToken;
use sparse_operators::SparseConfig;
use sparse_store::OpenOptions;

use crate::args::{Device, Global};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::progress::Bar;

/// The surroundings of a command.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) interrupt: Interrupt,
}

impl Context {
    /// Checks the global options.
    pub(crate) fn new(global: Global, interrupt: Interrupt) -> Result<Self, Failure> {
        if global.device == Device::Cuda
            && let Err(absent) = sparse_gpu::probe()
        {
            let error = sparse_gpu::GpuError::from(absent);
            return Err(Failure::usage(format!("--device cuda: {error}")));
        }
        Ok(Self { global, interrupt })
    }

    /// Set when the user asks to stop.
    pub(crate) fn cancel(&self) -> CancelToken {
        self.interrupt.token()
    }

    /// A progress bar on standard error, where that is a terminal.
    pub(crate) fn bar(&self) -> Bar {
        Bar::new(self.global.quiet)
    }

    /// How models are opened; downloads show on `bar`.
    pub(crate) fn open_options(&self, bar: &Bar) -> OpenOptions {
        let mut options = self.config().open_options();
        options.progress = Some(bar.callback());
        options
    }

    /// The options of a SQL session.
    pub(crate) fn config(&self) -> SparseConfig {
        SparseConfig {
            cache_dir: self.global.cache_dir.clone(),
            offline: self.global.offline.then_some(true),
            threads: self.global.threads,
            device: self.device(),
            ..SparseConfig::default()
        }
    }

    /// Where to compute what has GPU kernels.
    pub(crate) fn device(&self) -> sparse_gpu::Choice {
        match self.global.device {
            Device::Auto => sparse_gpu::Choice::Auto,
            Device::Cpu => sparse_gpu::Choice::Cpu,
            Device::Cuda => sparse_gpu::Choice::Cuda,
        }
    }

    /// Whether summaries are printed for people.
    pub(crate) fn talks(&self) -> bool {
        !self.global.quiet && !self.global.json
    }
}
