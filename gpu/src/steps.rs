//! Predictions from the base's words: as they are, moved by steps (`kernels/steps.cu`), or with a low-rank update.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, PushKernelArg};
use sparse_codec::{DType, Moved};

use crate::device::launch_over;
use crate::error::During;
use crate::kernels::{Module, dtype_name};
use crate::{Device, DeviceMatrices, GpuError};

/// [`Moved`] in the device's memory.
#[derive(Debug)]
pub(crate) enum DeviceMoved {
    No,
    Steps(CudaSlice<i32>),
    LowRank(Box<DeviceMatrices>),
}

impl DeviceMoved {
    pub(crate) fn new(device: &Arc<Device>, moved: &Moved<'_>) -> Result<Self, GpuError> {
        Ok(match moved {
            Moved::No => Self::No,
            Moved::Steps(steps) => Self::Steps(device.upload(steps)?),
            Moved::LowRank(matrices) => {
                Self::LowRank(Box::new(DeviceMatrices::new(device, matrices)?))
            }
        })
    }

    /// Whether predictions are the base's words themselves.
    pub(crate) fn is_no(&self) -> bool {
        matches!(self, Self::No)
    }

    /// Whether predictions have classes.
    pub(crate) fn has_classes(&self) -> bool {
        matches!(self, Self::LowRank(_))
    }

    /// Queues the predictions of `count` words from the tensor's `first` on; `base`, `out` and `classes` begin with that word.
    /// Nothing where predictions are the base's words.
    #[expect(clippy::too_many_arguments, reason = "the buffers and what they hold")]
    pub(crate) fn apply(
        &self,
        device: &Device,
        stream: &CudaStream,
        dtype: DType,
        base: &CudaSlice<u8>,
        out: &mut CudaSlice<u8>,
        classes: &mut CudaSlice<u8>,
        first: usize,
        count: usize,
    ) -> Result<(), GpuError> {
        match self {
            Self::No => Ok(()),
            Self::LowRank(matrices) => {
                matrices.launch(stream, base, out, Some(classes), first, count)
            }
            Self::Steps(steps) => {
                let bytes = count.saturating_mul(dtype.word_bytes());
                // As many as the top bits of a mantissa make.
                let values = if dtype == DType::BF16 { 128 } else { 256 };
                let fits = base.len() >= bytes && out.len() >= bytes && steps.len() == values;
                let name = dtype_name(dtype).filter(|_| fits);
                let name = name.ok_or_else(|| {
                    GpuError::unsupported("the words lie outside of the base's tensor")
                })?;
                let function = device.function(Module::Steps, &format!("steps_{name}"))?;
                let count = count as u64;
                let config = launch_over(count, 256)?;
                let mut launch = stream.launch_builder(&function);
                launch.arg(base).arg(out).arg(steps).arg(&count);
                // SAFETY: the kernel's parameters in their order; the buffers hold the words, and there is a step for every
                // value of the mantissa's top bits.
                unsafe { launch.launch(config) }.during("moving predictions")?;
                Ok(())
            }
        }
    }
}
