//! Statistics of an update: `kernels/stats.cu`.

use cudarc::driver::{CudaSlice, DeviceRepr, PushKernelArg, ValidAsZeroBits};
use sparse_codec::{DeltaStats, TensorView};

use crate::device::launch_over;
use crate::error::During;
use crate::kernels::{Module, dtype_name};
use crate::{Device, GpuError};

/// Elements that a warp sums: as the codec's chunks.
const CHUNK: usize = 1 << 16;
/// Threads of a block.
const BLOCK: u32 = 128;

/// What a warp writes.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Part {
    changed: u64,
    sum: f64,
    sum_sq: f64,
    max_abs: f64,
    dot: f64,
    base_sq: f64,
    target_sq: f64,
}

// SAFETY: plain numbers in the kernel's layout.
unsafe impl DeviceRepr for Part {}
// SAFETY: zeros are numbers.
unsafe impl ValidAsZeroBits for Part {}

impl Device {
    /// [`DeltaStats::of`] on the device, to the last bit; `None` where it gives none.
    ///
    /// # Errors
    /// Dtypes other than BF16, F16 and F32, and failures of the device.
    pub fn delta_stats(
        &self,
        target: TensorView<'_>,
        base: TensorView<'_>,
    ) -> Result<Option<DeltaStats>, GpuError> {
        let name = |view: &TensorView<'_>| view.dtype.and_then(dtype_name).zip(view.dtype);
        let (Some((t_name, t)), Some((b_name, b))) = (name(&target), name(&base)) else {
            return Err(GpuError::unsupported(
                "statistics on a GPU take BF16, F16 and F32: use the device cpu",
            ));
        };
        let count = target.data.len() / t.word_bytes();
        if base.data.len() / b.word_bytes() != count {
            return Ok(None);
        }
        let (target, base) = (self.upload(target.data)?, self.upload(base.data)?);
        let parts = self.stats_parts(&format!("stats_{t_name}_{b_name}"), &target, &base, count)?;
        let mut all = DeltaStats::default();
        for (i, part) in parts.iter().enumerate() {
            all.merge(&DeltaStats {
                count: (count - i * CHUNK).min(CHUNK) as u64,
                changed: part.changed,
                sum: part.sum,
                sum_sq: part.sum_sq,
                max_abs: part.max_abs,
                dot: part.dot,
                base_sq: part.base_sq,
                target_sq: part.target_sq,
            });
        }
        Ok(Some(all))
    }

    /// Words of `count` elements each; a part for every chunk.
    pub(crate) fn stats_parts(
        &self,
        name: &str,
        target: &CudaSlice<u8>,
        base: &CudaSlice<u8>,
        count: usize,
    ) -> Result<Vec<Part>, GpuError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let chunks = count.div_ceil(CHUNK);
        let mut parts = self.alloc::<Part>(chunks)?;
        let function = self.function(Module::Stats, name)?;
        let elements = count as u64;
        let config = launch_over(chunks as u64 * 32, BLOCK)?;
        let mut launch = self.stream().launch_builder(&function);
        launch.arg(target).arg(base).arg(&elements).arg(&mut parts);
        // SAFETY: the kernel's parameters in their order; buffers hold `count` words and a part for each chunk.
        unsafe { launch.launch(config) }.during("summing statistics")?;
        self.download(&parts, chunks)
    }
}
