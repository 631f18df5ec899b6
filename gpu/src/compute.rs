//! The codec's functions wherever the choice of device leads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sparse_codec::{DeltaStats, TensorView};

use crate::kernels::dtype_name;
use crate::{Choice, Device, GpuError};

/// The codec's functions on the chosen device, for as many threads as like. The results are the same everywhere.
///
/// At [`Choice::Auto`] a GPU that fails is left for good, with one line in the log, and the CPU does the rest.
#[derive(Debug)]
pub struct Compute {
    choice: Choice,
    device: Option<Arc<Device>>,
    failed: AtomicBool,
}

impl Compute {
    /// Opens the device.
    ///
    /// # Errors
    /// At [`Choice::Cuda`], no GPU that can be used.
    pub fn open(choice: Choice) -> Result<Self, GpuError> {
        Ok(Self {
            choice,
            device: choice.open()?,
            failed: AtomicBool::new(false),
        })
    }

    pub(crate) fn choice(&self) -> Choice {
        self.choice
    }

    /// The GPU, while it is used.
    pub fn device(&self) -> Option<&Arc<Device>> {
        self.device
            .as_ref()
            .filter(|_| !self.failed.load(Ordering::Relaxed))
    }

    /// [`DeltaStats::of`]. What no kernel takes is computed on the CPU whatever was chosen.
    ///
    /// # Errors
    /// At [`Choice::Cuda`], failures of the device.
    pub fn delta_stats(
        &self,
        target: TensorView<'_>,
        base: TensorView<'_>,
    ) -> Result<Option<DeltaStats>, GpuError> {
        let takes = |view: &TensorView<'_>| view.dtype.is_some_and(|d| dtype_name(d).is_some());
        let done = if takes(&target) && takes(&base) {
            self.attempt(|device| device.delta_stats(target, base))?
        } else {
            None
        };
        Ok(done.unwrap_or_else(|| DeltaStats::of(target, base)))
    }

    /// What work on the GPU gives; `None` where there is none, where it has no kernel for the work, or where it failed and the CPU
    /// goes on.
    pub(crate) fn attempt<T>(
        &self,
        work: impl FnOnce(&Arc<Device>) -> Result<T, GpuError>,
    ) -> Result<Option<T>, GpuError> {
        let Some(device) = self.device() else {
            return Ok(None);
        };
        match work(device) {
            Err(error) if self.choice != Choice::Cuda && error.is_of_device() => {
                if !self.failed.swap(true, Ordering::Relaxed) {
                    tracing::warn!("going on on the CPU: {error}");
                }
                Ok(None)
            }
            Err(error @ GpuError::Unsupported { .. }) => {
                tracing::debug!("left to the CPU: {error}");
                Ok(None)
            }
            result => result.map(Some),
        }
    }
}
