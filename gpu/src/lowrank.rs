//! Prediction by the base plus a low-rank update: `kernels/lowrank.cu`.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, LaunchConfig, PushKernelArg};
use sparse_codec::{DType, Matrices};

use crate::error::During;
use crate::kernels::{Module, NULL, dtype_name};
use crate::{Device, GpuError};

/// Threads of a block: columns.
const BLOCK: u32 = 256;
/// Rows of a thread.
const ROWS: u64 = 8;
/// Blocks that a grid has along rows.
const MOST: u64 = 65535;

/// Factors in the device's memory.
#[derive(Debug)]
pub struct DeviceMatrices {
    device: Arc<Device>,
    left: CudaSlice<f32>,
    right: CudaSlice<f32>,
    rows: u64,
    cols: u64,
    rank: u32,
    scale: f32,
    dtype: DType,
    rounded: bool,
}

impl DeviceMatrices {
    /// Copies factors to a device.
    ///
    /// # Errors
    /// Failures of the device.
    pub fn new(device: &Arc<Device>, matrices: &Matrices) -> Result<Self, GpuError> {
        let rank = matrices.rank().max(1);
        Ok(Self {
            left: device.upload(matrices.left())?,
            right: device.upload(&matrices.right())?,
            rows: (matrices.left().len() / rank) as u64,
            cols: matrices.cols() as u64,
            rank: u32::try_from(matrices.rank())
                .map_err(|_| GpuError::unsupported("the rank is too large"))?,
            scale: matrices.scale(),
            dtype: matrices.dtype(),
            rounded: matrices.rounded(),
            device: Arc::clone(device),
        })
    }

    /// Bytes of a word.
    pub fn word_bytes(&self) -> usize {
        self.dtype.word_bytes()
    }

    /// Elements of the matrix.
    pub fn elements(&self) -> u64 {
        self.rows * self.cols
    }

    /// [`Matrices::predict`] on the device: the base's words from the `first` on become predictions. Returns the classes.
    ///
    /// # Errors
    /// Words past the matrix's end, and failures of the device.
    pub fn predict(&self, first: usize, words: &mut [u8]) -> Result<Vec<u8>, GpuError> {
        let count = words.len() / self.word_bytes();
        if count == 0 {
            return Ok(Vec::new());
        }
        let device = &self.device;
        let base = device.upload(words)?;
        let mut out = device.alloc::<u8>(words.len())?;
        let mut classes = device.alloc::<u8>(count)?;
        self.launch(
            device.stream(),
            &base,
            &mut out,
            Some(&mut classes),
            first,
            count,
        )?;
        let predicted = device.download(&out, words.len())?;
        let classes = device.download(&classes, count)?;
        words.copy_from_slice(&predicted);
        Ok(classes)
    }

    /// Queues the kernel.
    pub(crate) fn launch(
        &self,
        stream: &CudaStream,
        base: &CudaSlice<u8>,
        out: &mut CudaSlice<u8>,
        classes: Option<&mut CudaSlice<u8>>,
        first: usize,
        count: usize,
    ) -> Result<(), GpuError> {
        let bytes = count.saturating_mul(self.word_bytes());
        let (first, count) = (first as u64, count as u64);
        if first
            .checked_add(count)
            .is_none_or(|end| end > self.elements())
            || count == 0
            || base.len() < bytes
            || out.len() < bytes
            || classes.as_ref().is_some_and(|c| (c.len() as u64) < count)
        {
            return Err(GpuError::unsupported(
                "the words lie outside of the low-rank prediction's matrix",
            ));
        }
        let name = dtype_name(self.dtype).ok_or_else(|| {
            GpuError::unsupported("low-rank predictions are of BF16, F16 and F32")
        })?;
        // F32 has no second rounding.
        let twice = self.rounded && self.dtype != DType::F32;
        let name = format!("lowrank_{name}{}", if twice { "_twice" } else { "" });
        let function = self.device.function(Module::LowRank, &name)?;
        let rows = (first + count - 1) / self.cols - first / self.cols + 1;
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let config = LaunchConfig {
            grid_dim: (
                narrow(self.cols.div_ceil(u64::from(BLOCK))),
                narrow(rows.div_ceil(ROWS).min(MOST)),
                1,
            ),
            block_dim: (BLOCK, 1, 1),
            shared_mem_bytes: 0,
        };
        let mut launch = stream.launch_builder(&function);
        launch.arg(base).arg(out);
        match classes {
            Some(classes) => launch.arg(classes),
            None => launch.arg(&NULL),
        };
        launch
            .arg(&self.left)
            .arg(&self.right)
            .arg(&self.rank)
            .arg(&self.cols)
            .arg(&first)
            .arg(&count)
            .arg(&self.scale);
        // SAFETY: the kernel's parameters in their order; words and classes have the lengths checked above, factors those
        // of the matrix that contains the words.
        unsafe { launch.launch(config) }.during("predicting")?;
        Ok(())
    }
}
